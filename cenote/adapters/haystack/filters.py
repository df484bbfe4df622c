"""Translation of Haystack filters to cenote filters.

Haystack compares values in Python: ``True`` equals ``1``, and texts that are dates compare as dates
in any format and time zone. Cenote filters can express the first rule but not the second. A filter
with dates is therefore translated to a *wide* filter, which finds every document that may match.
`document_matches_filter` of the installed Haystack then decides about each document.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from itertools import count, islice
from typing import Any

from haystack.dataclasses import Document
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from cenote.errors import InvalidInputError
from cenote.filters.checks import as_filter
from cenote.filters.language import (
    MAX_DEPTH,
    MAX_PARTS,
    And,
    Field,
    Filter,
    Meta,
    Not,
    Or,
    field,
    meta,
)
from cenote.filters.operands import MetadataOperand
from cenote.validation.arguments import safe_repr

RESERVED = "_haystack"
"""Metadata key for the parts of a document that a chunk has no column for."""

NO_CONTENT = "no_content"
"""Flag under the reserved key: the content is None."""

NOTHING = Or(())
EVERYTHING = And(())

_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARISONS = ("==", "!=", *_ORDERS, "in", "not in")
_LOGIC = ("AND", "OR", "NOT")
_DOCUMENT_FIELDS = {document_field.name for document_field in fields(Document)}
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:$|[Tt ])")
_DATE_PATTERNS = ("____-0_-__%", "____-10-__%", "____-11-__%", "____-12-__%")
_SLACK = timedelta(days=3)
"""Maximum distance between the dates of two equal times: two time zones, and the time 24:00."""
_MAX_DATE_LENGTH = 1000
"""Maximum number of characters of a date. dateutil takes a minute to reject a megabyte of text."""


@dataclass(frozen=True)
class TranslatedFilter:
    """Translation of a Haystack filter.

    Attributes:
        filter: Filter for the store.
        exact: True if `filter` has the same meaning. If False, :meth:`matches` decides about each
            document that the store finds.
    """

    filter: Filter | None
    exact: bool
    _tree: Mapping[str, Any] | None

    def matches(self, document: Document) -> bool:
        """Return True if Haystack matches a document."""
        return self._tree is None or _matches(self._tree, document)


def translate(filters: Mapping[str, Any] | None) -> TranslatedFilter:
    """Translate a Haystack filter to a cenote filter.

    A comparison that raises an error in Haystack because of a document's value, for example a text
    compared with a number, does not match that document.

    Raises:
        FilterError: Haystack rejects the filter for any document, or a store cannot evaluate it.
            The error names the field or the operator.
    """
    if is_empty(filters):
        return TranslatedFilter(None, True, None)
    translation = _Translation()
    try:
        translated = as_filter(translation.translate(filters, wide=True, depth=0))
    except InvalidInputError as error:
        raise FilterError(str(error)) from error
    return TranslatedFilter(translated, translation.exact, filters)


def is_empty(filters: Any) -> bool:
    """Return True if the filters are None or an empty dict."""
    return filters is None or (isinstance(filters, Mapping) and not filters)


def _matches(tree: Mapping[str, Any], document: Document) -> bool:
    if "field" in tree:
        if tree["operator"] in _ORDERS and _too_long_for_date(tree["field"], document):
            return False
        if _Operand.of(tree["field"]).key is None:  # Haystack 2 raises an error for these fields
            document = Document(id=document.id)
            tree = {**tree, "field": "meta.none"}
        try:
            return document_matches_filter(dict(tree), document)
        except (FilterError, TypeError, OverflowError):
            return False  # because of the document's value: the filter itself is valid
    parts = (_matches(condition, document) for condition in tree["conditions"])
    match tree["operator"]:
        case "AND":
            return all(parts)
        case "OR":
            return any(parts)
        case _:
            return not all(parts)


def _too_long_for_date(name: str, document: Document) -> bool:
    """Return True if the value of a field is a text that is too long to be a date."""
    if name == "content":
        value: Any = document.content
    else:
        path = tuple(name.removeprefix("meta.").split("."))
        value = MetadataOperand.within(document.meta, path)
    return isinstance(value, str) and len(value) > _MAX_DATE_LENGTH


@dataclass(frozen=True)
class _Operand:
    """Operand that a field name refers to.

    Attributes:
        key: Metadata key or column; None if the field never has a value.
        is_none: Filter for documents in which Haystack finds None.
    """

    key: Meta | Field | None
    is_none: Filter

    @classmethod
    def of(cls, name: str) -> _Operand:
        root, *path = name.split(".")
        if not path and root not in _DOCUMENT_FIELDS:
            root, path = "meta", [root]
        match root, path:
            case "id", []:
                return cls(field("id"), NOTHING)
            case "content", []:
                return cls(field("content"), meta(RESERVED, NO_CONTENT).exists())
            case "meta", [first, *_] if first != RESERVED:
                key = meta(*path)
                return cls(key, ~key.exists() | key.is_null())
            case _ if root in _DOCUMENT_FIELDS and path[:1] != [RESERVED]:
                raise FilterError(
                    f"documents cannot be filtered by {safe_repr(name)}: use 'id', 'content' or "
                    "'meta.<key>'"
                )
        return cls(None, EVERYTHING)


class _Translation:
    """Translation of one filter tree.

    Attributes:
        exact: False once a part of the translation differs in meaning from the original.
    """

    def __init__(self) -> None:
        self.exact = True
        self._part_numbers = count()

    def translate(self, tree: Any, *, wide: bool, depth: int) -> Filter:
        """Translate a tree to a filter that matches at least the same documents.

        If `wide` is False, the filter matches at most the same documents instead. A negation needs
        this for its operands.
        """
        if not isinstance(tree, Mapping):
            raise FilterError(f"a filter must be a dict, not {type(tree).__name__}")
        if depth > MAX_DEPTH:  # checked here because this method is recursive
            raise FilterError(f"the filter is nested more than {MAX_DEPTH} levels deep")
        if next(self._part_numbers) >= MAX_PARTS:  # a shared part counts each time
            raise FilterError(f"the filter has more than {MAX_PARTS:,} parts")
        if "field" in tree:
            return self._comparison(tree, wide)
        _check_keys(tree, ("operator", "conditions"), _LOGIC)
        if not isinstance(tree["conditions"], list | tuple):
            raise FilterError("'conditions' must be a list of filters")
        negated = tree["operator"] == "NOT"
        parts = tuple(
            self.translate(condition, wide=wide is not negated, depth=depth + 1)
            for condition in tree["conditions"]
        )
        if negated:
            return Not(And(parts))
        return And(parts) if tree["operator"] == "AND" else Or(parts)

    def _comparison(self, condition: Mapping[str, Any], wide: bool) -> Filter:
        _check_keys(condition, ("operator", "value"), _COMPARISONS)
        name, symbol, value = condition["field"], condition["operator"], condition["value"]
        if not isinstance(name, str):
            raise FilterError(f"'field' must be a string, not {type(name).__name__}")
        operand = _Operand.of(name)
        if symbol in ("in", "not in") and not isinstance(value, list):
            raise FilterError(
                f"{safe_repr(name)} {symbol} requires a list, not {type(value).__name__}"
            )
        try:
            match symbol:
                case "==":
                    return self._equal(operand, value, wide)
                case "!=":
                    return Not(self._equal(operand, value, not wide))
                case "in":
                    return self._in(operand, value, wide)
                case "not in":
                    return Not(self._in(operand, value, not wide))
            return self._ordered(operand, symbol, value, wide)
        except _NotComparableError as error:
            raise FilterError(f"{safe_repr(name)} {symbol} {error}") from None

    def _in(self, operand: _Operand, values: list[Any], wide: bool) -> Filter:
        plain = [value for value in values if _is_plain(value)]
        parts = [self._equal(operand, value, wide) for value in values if not _is_plain(value)]
        if plain and operand.key is not None:
            if not isinstance(operand.key, Meta):  # columns hold texts
                plain = [value for value in plain if isinstance(value, str)]
            parts.append(operand.key.in_(plain))  # one predicate for any number of values
        return Or(tuple(parts))

    def _equal(self, operand: _Operand, value: Any, wide: bool) -> Filter:
        """Match values that are equal in Python, and texts that stand for the same time."""
        key, kind = operand.key, _kind(value)
        if value is None:
            return operand.is_none
        if kind is datetime:
            return self._dates(key, "==", value.date(), wide)
        if key is None or (kind is not str and isinstance(key, Field)):
            return NOTHING
        equal: Filter = key == value
        if kind in (int, float):
            return Or((key == int(value), key == bool(value))) if value in (0, 1) else equal
        if kind is str:
            if value == "" and isinstance(key, Field):
                equal = equal & ~operand.is_none
            day = _day(value)
            return equal if day is None else equal | self._dates(key, "==", day, wide)
        if _contains_bool_or_equal(value):
            self.exact = False
            return ~operand.is_none if wide else equal
        return equal

    def _ordered(self, operand: _Operand, symbol: str, value: Any, wide: bool) -> Filter:
        """Compare numbers and booleans with numbers, and dates with dates."""
        key, kind = operand.key, _kind(value)
        if value is None:
            return NOTHING
        if kind is str:
            value, kind = _time(value), datetime
            if value is None:
                raise _NotComparableError(
                    "compares texts as dates only: the value must be a date in ISO 8601 format, "
                    "such as 2024-12-31T23:59:00Z"
                )
        if kind is datetime:
            return self._dates(key, symbol, value.date(), wide)
        if kind in (dict, list):
            raise _NotComparableError(f"requires a number or a date, not {kind.__name__}")
        if not isinstance(key, Meta):
            return NOTHING
        compare = _ORDERS[symbol]
        bools = (key == constant for constant in (False, True) if compare(constant, value))
        number: Filter = compare(key, value + 0)  # True + 0 is 1
        return Or((number, *bools))

    def _dates(self, key: Meta | Field | None, symbol: str, day: date, wide: bool) -> Filter:
        """Match texts that may be dates in this order to `day`. If not `wide`, match nothing."""
        if key is None:
            return NOTHING
        self.exact = False
        if not wide:
            return NOTHING
        iso_date = Or(tuple(key.like(pattern) for pattern in _DATE_PATTERNS))
        near: Filter = iso_date
        if symbol in ("==", ">", ">=") and day - date.min > _SLACK:
            near = near & (key >= (day - _SLACK).isoformat())
        if symbol in ("==", "<", "<=") and date.max - day > _SLACK:
            near = near & (key <= (day + _SLACK).isoformat())
        if symbol == "==":
            return near
        return near | ((key >= "") & ~iso_date)  # other formats, such as 20241231


class _NotComparableError(Exception):
    """Reason why a value cannot be compared. The message does not quote the value."""


def _check_keys(tree: Mapping[str, Any], keys: tuple[str, ...], operators: tuple[str, ...]) -> None:
    for key in keys:
        if key not in tree:
            present = ", ".join(map(safe_repr, islice(tree, 5))) or "no keys"
            raise FilterError(f"a filter lacks the key {key!r}; it has {present}")
    if not isinstance(tree["operator"], str) or tree["operator"] not in operators:
        raise FilterError(f"unknown operator: use one of {', '.join(operators)}")


def _kind(value: Any) -> type:
    """Return the JSON type of a value, or datetime. Booleans count as int."""
    for kind in (str, int, float, list, dict, datetime, type(None)):
        if isinstance(value, kind):
            return kind
    raise _NotComparableError(f"requires a JSON value or a datetime, not {type(value).__name__}")


def _is_plain(value: Any) -> bool:
    """Return True if equality with a value means the same in Haystack and in cenote."""
    if isinstance(value, str):
        return _day(value) is None and value != ""
    return isinstance(value, int | float) and value not in (0, 1)


def _contains_bool_or_equal(value: Any) -> bool:
    """Return True if a container holds a boolean, or a 0 or 1 that equals one in Python."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return any(map(_contains_bool_or_equal, items))
    return isinstance(value, int | float) and value in (0, 1)


def _time(text: str) -> datetime | None:
    """Parse a time, or return None.

    Raising an error here would attach Python's own error, which quotes the text, as its context.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _day(text: str) -> date | None:
    """Return the date of a text that Haystack treats as a date in comparisons for equality."""
    try:
        return date.fromisoformat(text[:10]) if _ISO_DATE.match(text) else None
    except ValueError:
        return None
