"""Parse filters, as expressions and as dicts, into one tree of conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn, TypeAlias

from cenote.errors import InvalidInputError
from cenote.filters.operands import (
    ColumnOperand,
    MetadataOperand,
    Operand,
    filter_reason,
)
from cenote.filters.predicates import (
    Contains,
    ContainsAll,
    ContainsAny,
    Equals,
    Exists,
    IsOneOf,
    Like,
    Match,
    Ordered,
    Predicate,
    StartsWith,
)
from cenote.validation.arguments import as_list, check_text, safe_repr
from cenote.validation.json import NotJSONError, canonical_json, json_text

MAX_PREDICATES = 100
"""Maximum number of predicates in a filter.

Each element of a list counts as one if it is compared separately, and each key of a path after the
first counts as one more. Compiling 100 predicates blocks the event loop for 5 to 25 ms, depending
on the statement.
"""

MAX_VALUE_BYTES = 4 * 2**20
"""Maximum bytes of the keys and values in a filter. Each element of a list or an object counts 32
bytes more. A list may have 43,000 values of 64 characters, or 100,000 numbers."""

MAX_DEPTH = 50
"""Maximum nesting of ``&``, ``|`` and ``~`` plus the keys of a path; each is a level of the SQL."""

MAX_PARTS = 10 * MAX_PREDICATES
"""Maximum number of filters nested in a filter. A filter that appears in several places counts each
time: thirty lines of code can build one with a billion parts."""

_LONG_LIST = 20
"""Up to this many values, ``in_()``, ``any_of()`` and ``all_of()`` look each one up in the metadata
index. A longer list is one predicate, which looks each row's value up in a hashed set."""

# -- expressions -----------------------------------------------------------------------------------


class Filter:
    """A condition on chunks, built by :func:`meta`, :func:`field`, or by combining filters."""

    __slots__ = ()

    def __and__(self, other: Filter) -> Filter:
        return And((*_flattened(self, And), *_flattened(parse_filter(other), And)))

    def __or__(self, other: Filter) -> Filter:
        return Or((*_flattened(self, Or), *_flattened(parse_filter(other), Or)))

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a filter has no truth value; combine filters with &, | and ~, and put each comparison "
            "in parentheses"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Leaf(Filter):
    """A filter that consists of one predicate."""

    predicate: Predicate


@dataclass(frozen=True, slots=True, eq=False)
class And(Filter):
    """A filter that matches if all of its parts match. Without parts, it matches every chunk."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Or(Filter):
    """A filter that matches if any of its parts matches. Without parts, it matches no chunk."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Not(Filter):
    """A filter that matches if its part does not."""

    part: Filter


def _flattened(filter: Filter, kind: type[And | Or]) -> tuple[Filter, ...]:
    """Return the parts of a filter of this kind, so that long chains do not nest deeply."""
    return filter.parts if isinstance(filter, kind) else (filter,)


class _Comparable:
    """The operators that :func:`meta` and :func:`field` share."""

    __slots__ = ("_operand",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, operand: Operand) -> None:
        self._operand = operand

    def __repr__(self) -> str:
        return str(self._operand)

    def _value(self, value: Any) -> Any:
        return self._operand.checked(value)

    def _ordered(self, operator: str, value: Any) -> Filter:
        value = self._value(value)
        if not self._operand.orders(value):
            raise invalid_filter(
                f"{self._operand} {operator} requires {self._operand.ordered_kinds}, not "
                f"{type(value).__name__}"
            )
        return Leaf(Ordered(self._operand, operator, value))

    def _text(self, operator: str, value: Any) -> str:
        if not isinstance(value, str):
            raise invalid_filter(
                f"{self._operand} {operator} requires a string, not {type(value).__name__}"
            )
        text: str = self._value(value)
        return text

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        """Equals `value`: numbers compare by value and never equal booleans; lists and objects
        compare as a whole."""
        return Leaf(Equals(self._operand, self._value(value)))

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        """The opposite of ``==``: also matches chunks without a value."""
        return Not(self == value)

    def __lt__(self, value: Any) -> Filter:
        return self._ordered("<", value)

    def __le__(self, value: Any) -> Filter:
        return self._ordered("<=", value)

    def __gt__(self, value: Any) -> Filter:
        return self._ordered(">", value)

    def __ge__(self, value: Any) -> Filter:
        return self._ordered(">=", value)

    def between(self, low: Any, high: Any) -> Filter:
        """Lies between `low` and `high`, both included."""
        return And((self._ordered(">=", low), self._ordered("<=", high)))

    def in_(self, values: Iterable[Any]) -> Filter:
        """Equals any of `values`; never matches if `values` is empty."""
        wanted = self._operand.checked_list(_value_list(values, f"{self._operand} in_"))
        if len(wanted) > _LONG_LIST:
            return self._in_long_list(wanted)
        return Or(tuple(Leaf(Equals(self._operand, value)) for value in wanted))

    def _in_long_list(self, wanted: list[Any]) -> Filter:
        if isinstance(self._operand, MetadataOperand) or all(value is not None for value in wanted):
            return Leaf(IsOneOf(self._operand, wanted))
        # In a column, None means NULL, which does not equal itself.
        not_null = [value for value in wanted if value is not None]
        return Leaf(IsOneOf(self._operand, not_null)) | self.is_null()

    def not_in(self, values: Iterable[Any]) -> Filter:
        """The opposite of :meth:`in_`: also matches chunks without a value."""
        return Not(self.in_(values))

    def is_null(self) -> Filter:
        """Is a JSON null, or SQL NULL in a column."""
        return Leaf(Equals(self._operand, None))

    def like(self, pattern: str) -> Filter:
        """Is a string that matches a whole pattern: ``%`` stands for any text, ``_`` for one
        character, and ``\\`` escapes the character that follows."""
        return self._like("like", pattern, ignore_case=False)

    def ilike(self, pattern: str) -> Filter:
        """Like :meth:`like`, but ignores the case of the letters A to Z, and only of those."""
        return self._like("ilike", pattern, ignore_case=True)

    def _like(self, operator: str, pattern: str, *, ignore_case: bool) -> Filter:
        pattern = self._text(operator, pattern)
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise invalid_filter(
                f"the pattern of {self._operand} {operator} ends with a single backslash; a "
                "literal backslash is written as two"
            )
        return Leaf(Like(self._operand, pattern, ignore_case))

    def startswith(self, prefix: str) -> Filter:
        """Is a string that starts with `prefix`, in which no character is special."""
        return Leaf(StartsWith(self._operand, self._text("startswith", prefix)))


class Meta(_Comparable):
    """A value of the metadata, addressed by a key or by a path of keys."""

    __slots__ = ()

    @property
    def _key(self) -> MetadataOperand:
        assert isinstance(self._operand, MetadataOperand)
        return self._operand

    def exists(self) -> Filter:
        """Has the key, even if its value is null."""
        return Leaf(Exists(self._key))

    def contains(self, value: Any) -> Filter:
        """Is a list with an element equal to `value`."""
        return Leaf(Contains(self._key, self._value(value)))

    def any_of(self, values: Iterable[Any]) -> Filter:
        """Is a list that contains any of `values`; never matches if `values` is empty."""
        wanted = _value_list(values, f"{self._operand} any_of")
        if len(wanted) > _LONG_LIST:
            return Leaf(ContainsAny(self._key, self._key.checked_list(wanted)))
        return Or(tuple(self.contains(value) for value in wanted))

    def all_of(self, values: Iterable[Any]) -> Filter:
        """Is a list that contains all of `values`, which must not be empty."""
        wanted = _value_list(values, f"{self._operand} all_of")
        if not wanted:
            raise invalid_filter(f"{self._operand} all_of requires at least one value")
        if len(wanted) > _LONG_LIST:
            return Leaf(ContainsAll(self._key, self._key.checked_list(wanted)))
        return And(tuple(self.contains(value) for value in wanted))


class Field(_Comparable):
    """A column of the chunk."""

    __slots__ = ()


def meta(*path: str) -> Meta:
    """Address a value of the metadata.

    Args:
        *path: Key of the value. Several keys lead into nested objects:
            ``meta("author", "name")``. A path never leads into lists.

    Raises:
        InvalidInputError: a key is not a string that can be stored, or there are no keys or more
            than 50.
    """
    if not path:
        raise invalid_filter("meta() requires at least one key")
    if len(path) > MAX_DEPTH:
        raise invalid_filter(f"meta() accepts at most {MAX_DEPTH} keys, not {len(path):,}")
    for key in path:
        check_text(key, field="filter")
    return Meta(MetadataOperand(path))


def field(name: str) -> Field:
    """Address a column of the chunk.

    Args:
        name: ``"id"``, ``"document_id"``, ``"content"``, ``"position"``, ``"content_hash"``,
            ``"embedding_model"``, ``"created_at"``, or a column of the user model, by the name of
            the attribute or of the column. An `InMemoryVectorStore` without a model finds a user
            column by its key in `EmbeddedChunk.columns`.

    Raises:
        InvalidInputError: `name` is not a string. A store that uses the filter checks whether the
            column exists and accepts the values.
    """
    check_text(name, field="filter")
    return Field(ColumnOperand(name))


# -- dicts -----------------------------------------------------------------------------------------

FilterLike: TypeAlias = "Filter | Mapping[str, Any] | None"
"""The types that store methods accept as a filter."""

_BY_OPERATOR: dict[str, Callable[[Any, Any], Filter]] = {
    "$eq": lambda key, value: key == value,
    "$ne": lambda key, value: key != value,
    "$gt": lambda key, value: key > value,
    "$gte": lambda key, value: key >= value,
    "$lt": lambda key, value: key < value,
    "$lte": lambda key, value: key <= value,
    "$in": lambda key, value: key.in_(value),
    "$nin": lambda key, value: key.not_in(value),
    "$between": lambda key, value: key.between(*_pair(value)),
    "$exists": lambda key, value: key.exists() if _flag(value) else ~key.exists(),
    "$contains": lambda key, value: key.contains(value),
    "$any": lambda key, value: key.any_of(value),
    "$all": lambda key, value: key.all_of(value),
    "$like": lambda key, value: key.like(value),
    "$ilike": lambda key, value: key.ilike(value),
}


def parse_filter(given: Any, depth: int = 0, number: Iterator[int] | None = None) -> Filter:
    """Parse a filter.

    Args:
        given: A dict, or an expression, which is returned as it is.
        depth: Nesting level of `given` in the outermost filter.
        number: Counter of the filters in the outermost filter.
    """
    number = count() if number is None else number
    if isinstance(given, Filter):
        return given
    if next(number) >= MAX_PARTS:
        raise too_many_parts()
    if not isinstance(given, Mapping):
        raise invalid_filter(
            f"filter must be a dict or a filter expression, not {type(given).__name__}"
        )
    if depth > MAX_DEPTH:  # this function is recursive, so it cannot leave the check to as_filter()
        raise invalid_filter(f"the filter is nested more than {MAX_DEPTH} levels deep")
    equal: dict[str, Any] = {}
    parts: list[Filter] = []
    for key, value in given.items():
        if key in ("$and", "$or"):
            kind = And if key == "$and" else Or
            parts.append(
                kind(
                    tuple(parse_filter(part, depth + 1, number) for part in _value_list(value, key))
                )
            )
        elif key == "$not":
            parts.append(Not(parse_filter(value, depth + 1, number)))
        elif isinstance(key, str) and key.startswith("$"):
            raise invalid_filter(
                f"filter key {safe_repr(key)} is not an operator; for a metadata key that begins "
                'with "$", use meta(...)'
            )
        elif isinstance(value, Mapping) and _has_operators(value):
            parts.append(_apply_operators(meta(key), value, depth + 1))
        elif isinstance(value, Filter | _Comparable):
            raise invalid_filter(
                f"the value of filter key {safe_repr(key)} is an expression; combine expressions "
                "with &"
            )
        else:
            equal |= _canonical_item(key, value)
    if equal:
        parts.insert(0, Leaf(Match(equal)))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _has_operators(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and key.startswith("$") for key in value)


def _apply_operators(key: Meta, operators: Any, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise invalid_filter(f"the filter is nested more than {MAX_DEPTH} levels deep")
    if not isinstance(operators, Mapping):
        raise invalid_filter(
            f"$not of {key!r} requires an object of operators; for a value, use $ne"
        )
    parts: list[Filter] = []
    for name, value in operators.items():
        if name == "$not":
            parts.append(Not(_apply_operators(key, value, depth + 1)))
            continue
        if name not in _BY_OPERATOR:
            known = ", ".join([*_BY_OPERATOR, "$not"])
            raise invalid_filter(
                f"{key!r} has unknown operator {safe_repr(name)}; valid operators are: {known}"
            )
        parts.append(_BY_OPERATOR[name](key, value))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _pair(value: Any) -> tuple[Any, Any]:
    values = _value_list(value, "$between")
    if len(values) != 2:
        raise invalid_filter(f"$between requires two values, not {len(values):,}")
    return values[0], values[1]


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid_filter(f"$exists requires True or False, not {type(value).__name__}")
    return value


def _value_list(values: Any, operator: str) -> list[Any]:
    rule = f"{operator} requires a list of values"
    return as_list(values, rule, field="filter", but_not=(str, bytes, Mapping))


def _canonical_item(key: Any, value: Any) -> dict[str, Any]:
    try:
        item: dict[str, Any] = canonical_json({key: value})
        json_text(item)
    except NotJSONError as error:
        reason = filter_reason(error)
        raise invalid_filter(f"filter key {safe_repr(key)} {reason}") from None
    return item


def too_many_parts() -> InvalidInputError:
    return invalid_filter(f"the filter has more than {MAX_PARTS:,} parts")


def invalid_filter(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="filter")
