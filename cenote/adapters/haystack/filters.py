r"""Translation of Haystack filters to cenote filters.

Haystack compares values in Python: ``True`` equals ``1``, and texts that are dates compare as dates
in any format and time zone. Cenote filters can express the first rule but not the second. A filter
with dates is therefore translated to a *wide* filter, which finds every document that may match.
`document_matches_filter` of the installed Haystack then decides about each document.

Values in filters may be of the types that `cenote.adapters.metadata` converts. In addition to
Haystack's operators, filters may use these, whose names come from Haystack's integrations for
pgvector, Chroma and Weaviate:

==============================  ==================================================================
Operator                        Meaning
==============================  ==================================================================
``like``, ``not like``          The text matches a pattern: ``%`` stands for any text, ``_`` for one
                                character, and ``\`` escapes the character that follows.
``ilike``, ``not ilike``        The same, ignoring the case of A to Z.
``contains``, ``not contains``  The list has an element equal to the value, or the text contains
                                the value.
``array_contains``              The list has all of the values, which must not be empty.
``array_overlaps``              The list has any of the values; never matches without values.
==============================  ==================================================================

All apply to meta keys; ``like``, ``ilike`` and ``contains`` also to ``content`` and ``id``.
Elements of lists compare as JSON: ``1`` equals ``1.0`` but not ``True``, and dates compare as
texts. The operators with ``not`` also match documents without the key, as ``!=`` and ``not in`` do.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from itertools import count, islice
from typing import Any, TypeAlias

from haystack.dataclasses import Document
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from cenote.adapters._arguments import substring_pattern
from cenote.adapters.metadata import NoJSONFormError, json_form
from cenote.errors import InvalidInputError
from cenote.filters.checks import as_filter
from cenote.filters.compiler import holds
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
from cenote.filters.operands import MetadataOperand, json_token
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
_EXTENSIONS = (
    *("like", "not like", "ilike", "not ilike", "contains", "not contains"),
    *("array_contains", "array_overlaps"),
)
"""Operators that Haystack itself does not have."""
_LOGIC = ("AND", "OR", "NOT")
_DOCUMENT_FIELDS = {document_field.name for document_field in fields(Document)}
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:$|[Tt ])")
_DATE_PATTERNS = ("____-0_-__%", "____-10-__%", "____-11-__%", "____-12-__%")
_SLACK = timedelta(days=3)
"""Maximum distance between the dates of two equal times: two time zones, and the time 24:00."""
_FEW_DAYS = 5
"""Maximum number of days in a list that become a condition each. More become one condition, for the
time from the first day to the last."""
_MAX_DATE_LENGTH = 1000
"""Maximum number of characters of a date. dateutil takes a minute to reject a megabyte of text."""


Matcher: TypeAlias = Callable[[Document], bool]
"""Function that returns True if a document matches."""


@dataclass(frozen=True)
class TranslatedFilter:
    """Translation of a Haystack filter.

    Attributes:
        filter: Filter for the store.
        exact: True if `filter` has the same meaning. If False, `matches` decides about each
            document that the store finds.
        matches: Function that returns True if Haystack matches a document.
    """

    filter: Filter | None
    exact: bool
    matches: Matcher


def translate(filters: Mapping[str, Any] | None) -> TranslatedFilter:
    """Translate a Haystack filter to a cenote filter.

    A comparison that raises an error in Haystack because of a document's value, for example a text
    compared with a number, does not match that document.

    Raises:
        FilterError: Haystack rejects the filter for any document, or a store cannot evaluate it.
            The error names the field or the operator.
    """
    if is_empty(filters):
        return TranslatedFilter(None, True, lambda _: True)
    translation = _Translation()
    try:
        translated, matches = translation.translate(filters, wide=True, depth=0)
        return TranslatedFilter(as_filter(translated), translation.exact, matches)
    except InvalidInputError as error:
        raise FilterError(str(error)) from error


def is_empty(filters: Any) -> bool:
    """Return True if the filters are None or an empty dict."""
    return filters is None or (isinstance(filters, Mapping) and not filters)


def _matcher(comparison: dict[str, Any]) -> Matcher:
    """Return a function that decides about a document as Haystack does."""
    name, symbol = comparison["field"], comparison["operator"]
    if _Operand.of(name).key is None:  # Haystack 2 raises an error for these fields
        comparison = {**comparison, "field": "meta.none"}

    def matches(document: Document) -> bool:
        if symbol in _ORDERS and _too_long_for_date(name, document):
            return False
        if comparison["field"] != name:
            document = Document(id=document.id)
        try:
            return document_matches_filter(comparison, document)
        except (FilterError, TypeError, OverflowError):
            return False  # because of the document's value: the filter itself is valid

    return matches


@dataclass(frozen=True)
class _DocumentRow:
    """A document as cenote's predicates read it."""

    document: Document

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.document.meta

    @property
    def fields(self) -> Mapping[str, Any]:
        return {"id": self.document.id, "content": self.document.content}


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

    def translate(self, tree: Any, *, wide: bool, depth: int) -> tuple[Filter, Matcher]:
        """Translate a tree to a filter that matches at least the same documents, and to a function.

        If `wide` is False, the filter matches at most the same documents instead. A negation needs
        this for its operands. The function decides about a document exactly.
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
        translated = [
            self.translate(condition, wide=wide is not negated, depth=depth + 1)
            for condition in tree["conditions"]
        ]
        parts = tuple(part for part, _ in translated)
        matchers = [matches for _, matches in translated]
        if negated:
            return Not(And(parts)), lambda document: not _all_match(matchers, document)
        if tree["operator"] == "AND":
            return And(parts), lambda document: _all_match(matchers, document)
        return Or(parts), lambda document: any(matches(document) for matches in matchers)

    def _comparison(self, condition: Mapping[str, Any], wide: bool) -> tuple[Filter, Matcher]:
        _check_keys(condition, ("operator", "value"), (*_COMPARISONS, *_EXTENSIONS))
        name, symbol = condition["field"], condition["operator"]
        if not isinstance(name, str):
            raise FilterError(f"'field' must be a string, not {type(name).__name__}")
        operand = _Operand.of(name)
        try:
            if symbol in _EXTENSIONS:
                extended = _extended(operand, symbol, json_form(condition["value"]))
                return extended, lambda document: holds(extended, _DocumentRow(document))
            value = _operand_value(symbol, condition["value"])
            comparison = {"field": name, "operator": symbol, "value": value}
            return self._haystack_comparison(operand, symbol, value, wide), _matcher(comparison)
        except _NotComparableError as error:
            reason = str(error)
        except NoJSONFormError as error:
            where = f"the value at {safe_repr(error.path)}" if error.path else "the value"
            reason = f"cannot use its value: {where} {error.reason}"
        raise FilterError(f"{safe_repr(name)} {symbol} {reason}")

    def _haystack_comparison(
        self, operand: _Operand, symbol: str, value: Any, wide: bool
    ) -> Filter:
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

    def _in(self, operand: _Operand, values: list[Any], wide: bool) -> Filter:
        """Match any of the values: a few predicates for any number of values."""
        key = operand.key
        plain: list[Any] = []
        texts: list[str] = []  # that may stand for times
        days: set[date] = set()
        others: dict[Hashable, Any] = {}
        for value in values:
            kind = _kind(value)
            if kind is datetime:
                days.add(value.date())
            elif kind is str and (day := _day(value)) is not None:
                texts.append(value)
                days.add(day)
            elif _is_plain(value):
                plain.append(value)
            else:
                others[json_token(value)] = value
        parts = [self._equal(operand, value, wide) for value in others.values()]
        if key is not None:
            if isinstance(key, Field):  # columns hold texts
                plain = [value for value in plain if isinstance(value, str)]
            parts.append(key.in_([*plain, *texts]))
        if len(days) > _FEW_DAYS:
            parts.append(self._dates(key, "==", min(days), wide, until=max(days)))
        else:
            parts += [self._dates(key, "==", day, wide) for day in sorted(days)]
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

    def _dates(
        self,
        key: Meta | Field | None,
        symbol: str,
        day: date,
        wide: bool,
        until: date | None = None,
    ) -> Filter:
        """Match texts that may be dates in this order to `day`. If not `wide`, match nothing.

        Args:
            key: Metadata key or column.
            symbol: Operator.
            day: Day to compare with.
            wide: True to match too many documents rather than too few.
            until: Last day to be equal to, if `symbol` is ``==``.
        """
        last = day if until is None else until
        if key is None:
            return NOTHING
        self.exact = False
        if not wide:
            return NOTHING
        iso_date = Or(tuple(key.like(pattern) for pattern in _DATE_PATTERNS))
        near: Filter = iso_date
        if symbol in ("==", ">", ">=") and day - date.min > _SLACK:
            near = near & (key >= (day - _SLACK).isoformat())
        if symbol in ("==", "<", "<=") and date.max - last > _SLACK:
            near = near & (key <= (last + _SLACK).isoformat())
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


def _all_match(matchers: list[Matcher], document: Document) -> bool:
    return all(matches(document) for matches in matchers)


def _operand_value(symbol: str, value: Any) -> Any:
    """Return a value to compare with, converted to JSON except for datetimes.

    Haystack compares a datetime with the dates of documents, in its own time zone if they have
    none.

    Raises:
        NoJSONFormError: The value has no JSON form.
        _NotComparableError: The value is not a list, which the operator requires.
    """
    if symbol not in ("in", "not in"):
        return value if _is_datetime(value) else json_form(value)
    if not isinstance(value, list):  # Haystack's own suite requires a list, not a tuple
        raise _NotComparableError(f"requires a list, not {type(value).__name__}")
    # Converts all other values at once, so that an error names the position.
    plain = json_form([None if _is_datetime(item) else item for item in value])
    return [
        item if _is_datetime(item) else converted
        for item, converted in zip(value, plain, strict=True)
    ]


def _is_datetime(value: Any) -> bool:
    return isinstance(value, datetime) and value == value  # NaT of pandas does not equal itself


def _extended(operand: _Operand, symbol: str, value: Any) -> Filter:
    """Translate an operator that Haystack itself does not have."""
    key, name = operand.key, symbol.removeprefix("not ")
    if name in ("like", "ilike"):
        positive = _text_filter(operand, name, value)
    elif name != "contains":
        positive = _list_filter(key, name, value)
    elif isinstance(key, Field):
        positive = _text_filter(operand, "like", substring_pattern(value))
    else:
        positive = NOTHING if key is None else key.contains(value)
        if isinstance(value, str):
            positive = positive | _text_filter(operand, "like", substring_pattern(value))
    return positive if name == symbol else ~positive


def _text_filter(operand: _Operand, name: str, pattern: Any) -> Filter:
    if not isinstance(pattern, str):
        raise _NotComparableError(f"requires a text, not {type(pattern).__name__}")
    if operand.key is None:
        return NOTHING
    matches = operand.key.like(pattern) if name == "like" else operand.key.ilike(pattern)
    # A content of None is stored as an empty text.
    return matches & ~operand.is_none if isinstance(operand.key, Field) else matches


def _list_filter(key: Meta | Field | None, name: str, values: Any) -> Filter:
    if isinstance(key, Field):
        raise _NotComparableError("compares lists in the meta only: use a field 'meta.<key>'")
    if not isinstance(values, list):
        raise _NotComparableError(f"requires a list, not {type(values).__name__}")
    if key is None:
        return NOTHING
    return key.all_of(values) if name == "array_contains" else key.any_of(values)


def _kind(value: Any) -> type:
    """Return the JSON type of a value, or datetime. Booleans count as int."""
    kinds = (str, int, float, list, dict, datetime)
    return next((kind for kind in kinds if isinstance(value, kind)), type(None))


def _is_plain(value: Any) -> bool:
    """Return True if equality with a value means the same in Haystack and in cenote."""
    if isinstance(value, str):
        return _day(value) is None and value != ""
    if isinstance(value, dict | list):
        return not _contains_bool_or_equal(value)
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
