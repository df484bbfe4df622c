"""Haystack's filters over a store: what the store answers, and what Haystack itself decides.

Haystack compares in Python: ``True`` equals ``1``, and texts that are dates compare as dates, in
any spelling and time zone. The first can be said in cenote's filters. The second cannot, so a
filter with dates is *wide*: the store finds what may match, and `document_matches_filter` of the
Haystack that is installed decides of each document. Nothing that matches is missed.
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
from cenote.filters import (
    MAX_DEPTH,
    MAX_PARTS,
    And,
    Field,
    Filter,
    Meta,
    Not,
    Or,
    as_filter,
    field,
    meta,
)
from cenote.predicates import MetadataOperand
from cenote.validation import shown

RESERVED = "_haystack"
"""The key of the metadata for what a document has and a chunk lacks."""

NO_CONTENT = "no_content"
"""The key within it that says that the content is None."""

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
_FIELDS = {one.name for one in fields(Document)}
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:$|[Tt ])")
_DATE_PATTERNS = ("____-0_-__%", "____-10-__%", "____-11-__%", "____-12-__%")
_SLACK = timedelta(days=3)
"""How far the dates of equal times are apart, at most: two time zones, and 24:00."""
_LONGEST_DATE = 1000
"""Characters of a text that may be a date: of a megabyte, dateutil knows after a minute."""


@dataclass(frozen=True)
class Wanted:
    """What filters of Haystack's ask for.

    Attributes:
        filter: what the store is to look for.
        exact: whether that is all; if not, :meth:`holds` decides of what it finds.
    """

    filter: Filter | None
    exact: bool
    _tree: Mapping[str, Any] | None

    def holds(self, document: Document) -> bool:
        """Whether Haystack finds that a document matches."""
        return self._tree is None or _holds(self._tree, document)


def wanted(filters: Mapping[str, Any] | None) -> Wanted:
    """Translate filters.

    A comparison that Haystack refuses because of what it finds in a document, such as a text where
    numbers are compared, does not hold of that document.

    Raises:
        FilterError: Haystack refuses them whatever the documents hold, or a store cannot answer
            them; names the field or the operator.
    """
    if is_empty(filters):
        return Wanted(None, True, None)
    translation = _Translation()
    try:
        found = as_filter(translation.of(filters, wide=True, depth=0))
    except InvalidInputError as error:
        raise FilterError(str(error)) from error
    return Wanted(found, translation.exact, filters)


def is_empty(filters: Any) -> bool:
    """Whether filters restrict nothing."""
    return filters is None or (isinstance(filters, Mapping) and not filters)


def _holds(tree: Mapping[str, Any], document: Document) -> bool:
    if "field" in tree:
        if tree["operator"] in _ORDERS and _is_long(tree["field"], document):
            return False
        if _Operand.of(tree["field"]).key is None:  # Haystack 2 has an error for it
            document = Document(id=document.id)
            tree = {**tree, "field": "meta.none"}
        try:
            return document_matches_filter(dict(tree), document)
        except (FilterError, TypeError, OverflowError):
            return False  # for what the document holds; the filter has been checked
    parts = (_holds(one, document) for one in tree["conditions"])
    match tree["operator"]:
        case "AND":
            return all(parts)
        case "OR":
            return any(parts)
        case _:
            return not all(parts)


def _is_long(name: str, document: Document) -> bool:
    """Whether a text is too long for a date."""
    path = tuple(name.removeprefix("meta.").split("."))
    found = MetadataOperand.within(document.meta, path)
    value = document.content if name == "content" else found
    return isinstance(value, str) and len(value) > _LONGEST_DATE


@dataclass(frozen=True)
class _Operand:
    """What a field's name means.

    Attributes:
        key: a key of the metadata or a column; None where there never is a value.
        none: holds where Haystack finds None.
    """

    key: Meta | Field | None
    none: Filter

    @classmethod
    def of(cls, name: str) -> _Operand:
        root, *path = name.split(".")
        if not path and root not in _FIELDS:
            root, path = "meta", [root]
        match root, path:
            case "id", []:
                return cls(field("id"), NOTHING)
            case "content", []:
                return cls(field("content"), meta(RESERVED, NO_CONTENT).exists())
            case "meta", [first, *_] if first != RESERVED:
                key = meta(*path)
                return cls(key, ~key.exists() | key.is_null())
            case _ if root in _FIELDS and path[:1] != [RESERVED]:
                raise FilterError(
                    f"documents cannot be filtered by {shown(name)}; by 'id', 'content' and "
                    "'meta. ...'"
                )
        return cls(None, EVERYTHING)


class _Translation:
    """A filter tree as a filter that matches no less, and no more if `exact` is left true."""

    def __init__(self) -> None:
        self.exact = True
        self._number = count()

    def of(self, tree: Any, *, wide: bool, depth: int) -> Filter:
        """What matches no less than the tree does if `wide`, else no more."""
        if not isinstance(tree, Mapping):
            raise FilterError(f"a filter is a dict, not {type(tree).__name__}")
        if depth > MAX_DEPTH:  # before it is a filter, for this method calls itself
            raise FilterError(f"the filter is nested more than {MAX_DEPTH} deep")
        if next(self._number) >= MAX_PARTS:  # one may be in several places
            raise FilterError(f"the filter has more than {MAX_PARTS:,} parts")
        if "field" in tree:
            return self._comparison(tree, wide)
        _need(tree, ("operator", "conditions"), _LOGIC)
        if not isinstance(tree["conditions"], list | tuple):
            raise FilterError("'conditions' is a list of filters")
        negated = tree["operator"] == "NOT"
        parts = tuple(
            self.of(one, wide=wide is not negated, depth=depth + 1) for one in tree["conditions"]
        )
        if negated:
            return Not(And(parts))
        return And(parts) if tree["operator"] == "AND" else Or(parts)

    def _comparison(self, condition: Mapping[str, Any], wide: bool) -> Filter:
        _need(condition, ("operator", "value"), _COMPARISONS)
        name, symbol, value = condition["field"], condition["operator"], condition["value"]
        if not isinstance(name, str):
            raise FilterError(f"'field' is a text, not {type(name).__name__}")
        operand = _Operand.of(name)
        if symbol in ("in", "not in") and not isinstance(value, list):
            raise FilterError(f"{shown(name)} {symbol} takes a list, not {type(value).__name__}")
        try:
            match symbol:
                case "==":
                    return self._equal(operand, value, wide)
                case "!=":
                    return Not(self._equal(operand, value, not wide))
                case "in":
                    return self._one_of(operand, value, wide)
                case "not in":
                    return Not(self._one_of(operand, value, not wide))
            return self._ordered(operand, symbol, value, wide)
        except _NotComparableError as error:
            raise FilterError(f"{shown(name)} {symbol} {error}") from None

    def _one_of(self, operand: _Operand, values: list[Any], wide: bool) -> Filter:
        plain = [one for one in values if _is_plain(one)]
        parts = [self._equal(operand, one, wide) for one in values if not _is_plain(one)]
        if plain and operand.key is not None:
            kept = plain if isinstance(operand.key, Meta) else _texts(plain)
            parts.append(operand.key.in_(kept))  # one test, however many there are
        return Or(tuple(parts))

    def _equal(self, operand: _Operand, value: Any, wide: bool) -> Filter:
        """Equal as Python has it, or the same time."""
        key, kind = operand.key, _kind(value)
        if value is None:
            return operand.none
        if kind is datetime:
            return self._dates(key, "==", value.date(), wide)
        if key is None or (kind is not str and isinstance(key, Field)):
            return NOTHING
        equal: Filter = key == value
        if kind in (int, float):
            return Or((key == int(value), key == bool(value))) if value in (0, 1) else equal
        if kind is str:
            if value == "" and isinstance(key, Field):
                equal = equal & ~operand.none
            day = _day(value)
            return equal if day is None else equal | self._dates(key, "==", day, wide)
        if _has_flags(value):
            self.exact = False
            return ~operand.none if wide else equal
        return equal

    def _ordered(self, operand: _Operand, symbol: str, value: Any, wide: bool) -> Filter:
        """Numbers with numbers, among which booleans are, and dates with dates."""
        key, kind = operand.key, _kind(value)
        if value is None:
            return NOTHING
        if kind is str:
            value, kind = _time(value), datetime
            if value is None:
                raise _NotComparableError(
                    "compares texts as dates only, and the value is no date in ISO 8601, such as "
                    "2024-12-31T23:59:00Z"
                )
        if kind is datetime:
            return self._dates(key, symbol, value.date(), wide)
        if kind in (dict, list):
            raise _NotComparableError(f"takes a number or a date, not {kind.__name__}")
        if not isinstance(key, Meta):
            return NOTHING
        compare = _ORDERS[symbol]
        flags = (key == flag for flag in (False, True) if compare(flag, value))
        number: Filter = compare(key, value + 0)  # True + 0 is 1
        return Or((number, *flags))

    def _dates(self, key: Meta | Field | None, symbol: str, day: date, wide: bool) -> Filter:
        """Texts that may be dates in this order to a day, or none; Haystack decides."""
        if key is None:
            return NOTHING
        self.exact = False
        if not wide:
            return NOTHING
        shaped = Or(tuple(key.like(pattern) for pattern in _DATE_PATTERNS))
        near: Filter = shaped
        if symbol in ("==", ">", ">=") and day - date.min > _SLACK:
            near = near & (key >= (day - _SLACK).isoformat())
        if symbol in ("==", "<", "<=") and date.max - day > _SLACK:
            near = near & (key <= (day + _SLACK).isoformat())
        if symbol == "==":
            return near
        return near | ((key >= "") & ~shaped)  # in another spelling, such as 20241231


class _NotComparableError(Exception):
    """Says what about a value cannot be compared, without quoting it."""


def _need(tree: Mapping[str, Any], keys: tuple[str, ...], operators: tuple[str, ...]) -> None:
    for key in keys:
        if key not in tree:
            known = ", ".join(map(shown, islice(tree, 5)))
            raise FilterError(f"a filter lacks {key!r}; it has {known or 'nothing'}")
    if not isinstance(tree["operator"], str) or tree["operator"] not in operators:
        raise FilterError(f"there is no such operator here; there are: {', '.join(operators)}")


def _kind(value: Any) -> type:
    """The type of a value, as JSON has it; int of booleans."""
    for kind in (str, int, float, list, dict, datetime, type(None)):
        if isinstance(value, kind):
            return kind
    raise _NotComparableError(f"takes a JSON value or a datetime, not {type(value).__name__}")


def _is_plain(value: Any) -> bool:
    """Whether equality with a value means the same everywhere."""
    if isinstance(value, str):
        return _day(value) is None and value != ""
    return isinstance(value, int | float) and value not in (0, 1)


def _texts(values: list[Any]) -> list[str]:
    return [one for one in values if isinstance(one, str)]


def _has_flags(value: Any) -> bool:
    """Whether there is a boolean in a list or an object, or a number that Python takes for one."""
    if isinstance(value, dict | list):
        return any(map(_has_flags, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and value in (0, 1)


def _time(text: str) -> datetime | None:
    """The time of a text; an error would have Python's, which quotes it, for its context."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _day(text: str) -> date | None:
    """The day of a text that Haystack takes for a date when it looks for equal ones."""
    try:
        return date.fromisoformat(text[:10]) if _ISO_DATE.match(text) else None
    except ValueError:
        return None
