"""Conversion of metadata from document loaders to JSON.

Chunk metadata is JSON, but document loaders also put other objects into metadata. The adapters of
LangChain, LlamaIndex and Haystack convert the values of these types. They convert them in documents
that are written and in filters, so a filter finds a document by the value with which it was
written. Searches return the JSON.

=================================  ==============================================================
Python                             JSON
=================================  ==============================================================
`datetime` with a time zone        text in ISO 8601, in UTC: ``"2024-02-29T10:00:00+00:00"``.
                                   These texts sort by instant.
`datetime` without a time zone     text in ISO 8601: ``"2024-02-29T12:00:00"``
`date`, `time`                     text in ISO 8601: ``"2024-02-29"``, ``"12:00:00"``
`numpy.datetime64`                 text, like a date or a datetime without a time zone
`uuid.UUID`                        text: ``"12345678-1234-5678-1234-567812345678"``
`pathlib.Path` and other paths     text: ``"docs/guide.pdf"``
`decimal.Decimal`                  a number: the integer of the same value, or the nearest float
numpy numbers and booleans         a number or a boolean
member of an `Enum`                its value, converted
`tuple`                            a list of the converted elements
numpy array                        a list, with one more level for each further dimension
other mapping than `dict`          an object
=================================  ==============================================================

The adapters reject all other types, among them `bytes`, `set`, `timedelta`, dataclasses and
pydantic models: each has several JSON forms, or none. They also reject NaN and infinities, integers
of more than 4,300 digits, times that are outside the years 1 to 9999 in UTC or, from numpy, finer
than microseconds, keys that are not strings, texts with a NUL character or a lone surrogate, and
nesting deeper than 200 levels. The error names the document and the path of keys, such as
``'author.born'`` or ``'pages[2]'``, and never the value. No document of the batch is written.

The stores convert nothing: `VectorStore.upsert` accepts JSON only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from itertools import count
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

from cenote.errors import InvalidInputError
from cenote.filters.language import MAX_DEPTH, MAX_PARTS, Field, Filter, Meta
from cenote.validation.arguments import is_iterable, safe_repr
from cenote.validation.json import MAX_METADATA_DEPTH, unstorable

__all__: list[str] = []

_MAX_DIGITS = 4300
"""Maximum number of digits of an integer: more are not converted to text by Python."""


class NoJSONFormError(Exception):
    """Explains why a value cannot be converted to JSON, without quoting it.

    Attributes:
        reason: A predicate, such as "is NaN or infinite".
        path: Path from the outermost value to the rejected one, such as ``"author.born"`` or
            ``"[2]"``; empty if that is the outermost value itself.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._steps: list[str | int] = []  # innermost first

    def inside(self, step: str | int) -> NoJSONFormError:
        """Add the key or the position of the container's element that contains the value."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        path = ""
        for step in reversed(self._steps):
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        return path


def json_metadata(metadata: Any, item: str, item_id: Any = None) -> Any:
    """Return metadata with all values converted to JSON.

    Returns anything but a dict unchanged; the store rejects it.

    Args:
        metadata: Metadata of a document.
        item: The document, for the message: ``"document 'a'"``.
        item_id: Id of the document, for the error's attribute.

    Raises:
        InvalidInputError: A value has no JSON form. The error names the path of its keys.
    """
    if not isinstance(metadata, dict):
        return metadata
    try:
        return json_form(metadata)
    except NoJSONFormError as error:
        rejected = error
    # Raised outside the except block, so that the error has no context.
    subject = f"metadata key {safe_repr(rejected.path)}" if rejected.path else "the metadata"
    raise InvalidInputError(
        f"{item}: {subject} {rejected.reason}", field="metadata", chunk_id=item_id
    )


def json_filter(given: Any) -> Any:
    """Return a cenote filter with all values of its dicts converted to JSON.

    Expressions, and anything that is not a filter, are returned unchanged.

    Raises:
        InvalidInputError: A value has no JSON form. The error names the filter key.
    """
    part_numbers = count()

    def convert(part: Any, depth: int) -> Any:
        # The filter language rejects a filter that is too deep or has too many parts, counting a
        # shared part each time, so those parts do not have to be converted.
        if not isinstance(part, Mapping) or depth > MAX_DEPTH or next(part_numbers) >= MAX_PARTS:
            return part
        return {key: convert_value(key, value, depth) for key, value in part.items()}

    def convert_value(key: Any, value: Any, depth: int) -> Any:
        if key == "$not":
            return convert(value, depth + 1)
        if key in ("$and", "$or") and _is_list(value):
            return [convert(part, depth + 1) for part in value]
        if isinstance(value, Mapping) and _has_operators(value):
            return convert_operators(key, value, depth + 1)
        return json_operand(value, f"filter key {safe_repr(key)}")

    def convert_operators(key: Any, operators: Any, depth: int) -> Any:
        if not isinstance(operators, Mapping) or depth > MAX_DEPTH:
            return operators
        subject = f"filter key {safe_repr(key)}"
        return {
            name: convert_operators(key, value, depth + 1)
            if name == "$not"
            else json_operands(value, subject)
            if name in _LIST_OPERATORS
            else json_operand(value, subject)
            for name, value in operators.items()
        }

    return convert(given, 0)


_PLAIN = frozenset((str, int, float, bool, type(None)))
_LIST_OPERATORS = ("$in", "$nin", "$any", "$all", "$between")


def _has_operators(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(name, str) and name.startswith("$") for name in value)


def json_operand(value: Any, subject: str) -> Any:
    """Return the value of a filter converted to JSON. Filter expressions are returned unchanged.

    Args:
        value: The value.
        subject: The filter, for the message: ``"filter key 'a'"``.

    Raises:
        InvalidInputError: The value has no JSON form.
    """
    if isinstance(value, Filter | Meta | Field):  # rejected by the filter language
        return value
    if type(value) is list and _PLAIN.issuperset(map(type, value)):
        return value  # the filter language checks it; in a thread if the list is long
    try:
        return json_form(value)
    except NoJSONFormError as error:
        rejected = error
    where = f"the value at {safe_repr(rejected.path)}" if rejected.path else "the value"
    raise InvalidInputError(f"{subject}: {where} {rejected.reason}", field="filter")


def json_operands(values: Any, subject: str) -> Any:
    """Return the values of a list operator as a list, converted to JSON.

    Accepts any iterable, as the filter language does. Anything else is returned unchanged.

    Raises:
        InvalidInputError: A value has no JSON form.
    """
    return json_operand(list(values), subject) if _is_list(values) else values


def _is_list(values: Any) -> bool:
    return not isinstance(values, str | bytes | Mapping) and is_iterable(values)


# -- values ----------------------------------------------------------------------------------------


def json_form(value: Any) -> Any:
    """Return a value converted to JSON, as a deep copy.

    Raises:
        NoJSONFormError: The value, or a value in it, has no JSON form.
    """
    try:
        return _convert(value, 0)
    except RecursionError:
        rejected = NoJSONFormError("is nested too deep for what is left of the call stack")
    raise rejected


def _convert(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:  # the common cases: matching is slow
        return _text(value)
    if kind is int:
        return _integer(value)
    if kind is bool or value is None:
        return value
    match value:
        case Enum():  # before str and int, which members may be, too
            return _convert(value.value, depth)
        case str():
            return _text(value)
        case bool() | np.bool_():
            return bool(value)
        case np.timedelta64():  # an np.integer, too
            raise _unknown_type(value)
        case int() | np.integer():
            return _integer(int(value))
        case float() | np.floating():
            return _finite(float(value))
        case Mapping() | list() | tuple() | np.ndarray() if depth >= MAX_METADATA_DEPTH:
            raise NoJSONFormError(f"is nested more than {MAX_METADATA_DEPTH} levels deep")
        case Mapping():
            return _object(value, depth + 1)
        case list() | tuple():
            return _list(value, depth + 1)
        case np.ndarray():
            return _array(value, depth)
        case datetime():
            return _datetime(value)
        case date() | time():
            return value.isoformat()
        case np.datetime64():
            return _datetime64(value)
        case Decimal():
            return _number(value)
        case UUID() | PurePath():
            return _text(str(value))
    raise _unknown_type(value)


def _unknown_type(value: Any) -> NoJSONFormError:
    return NoJSONFormError(
        f"is of type {type(value).__name__}, which is not JSON: convert it first, or leave it out"
    )


def _text(value: str) -> str:
    if reason := unstorable(value):
        raise NoJSONFormError(reason)
    return str.__str__(value)


def _integer(value: int) -> int:
    if value.bit_length() > 3 * _MAX_DIGITS and abs(value) >= 10**_MAX_DIGITS:
        raise NoJSONFormError(f"is an integer of more than {_MAX_DIGITS:,} digits")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NoJSONFormError("is NaN or infinite, which is not JSON: replace it, e.g. with None")
    return value


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise NoJSONFormError(f"has a key of type {type(key).__name__}, not str")
        if reason := unstorable(key):
            raise NoJSONFormError(f"has a key that {reason}")
        name = str.__str__(key)
        try:
            converted[name] = _convert(item, depth)
        except NoJSONFormError as error:
            raise error.inside(name) from None
    return converted


def _list(values: Iterable[Any], depth: int) -> list[Any]:
    converted: list[Any] = []
    for item in values:
        try:
            converted.append(_convert(item, depth))
        except NoJSONFormError as error:
            raise error.inside(len(converted)) from None
    return converted


def _array(value: np.ndarray[Any, Any], depth: int) -> Any:
    if type(value) is not np.ndarray:  # for example a masked array, whose masked values are unknown
        raise _unknown_type(value)
    if value.ndim == 0:
        return _convert(value[()], depth + 1)
    # Not tolist(), which returns integers for datetime64 in nanoseconds.
    return _list(value, depth + 1)


def _datetime(value: datetime) -> str:
    if value != value:  # NaT, the missing value of pandas
        raise NoJSONFormError("is not a time (NaT): replace it, e.g. with None")
    try:
        return (value if value.utcoffset() is None else value.astimezone(UTC)).isoformat()
    except OverflowError:
        reason = "is a time that is outside the years 1 to 9999 in UTC"
    raise NoJSONFormError(reason)


def _datetime64(value: np.datetime64) -> str:
    if np.isnat(value):
        raise NoJSONFormError("is not a time (NaT): replace it, e.g. with None")
    converted: Any = value.item()
    if isinstance(converted, int):  # finer than microseconds, or outside the years 1 to 9999
        microseconds = value.astype("datetime64[us]")
        converted = microseconds.item() if microseconds == value else None
    if not isinstance(converted, date):
        raise NoJSONFormError(
            "is a time that is finer than microseconds or outside the years 1 to 9999"
        )
    return converted.isoformat()


def _number(value: Decimal) -> int | float:
    if not value.is_finite():
        return _finite(math.nan)
    if value.adjusted() > _MAX_DIGITS:  # its integer might fill the memory
        raise NoJSONFormError(f"is a number of more than {_MAX_DIGITS:,} digits")
    if value == value.to_integral_value():
        return _integer(int(value))
    # The nearest float: a fraction such as 1/3 from a database has more digits than a float holds,
    # and jsonb would return it as the nearest float, too.
    return _finite(float(value))
