"""The filter language: which chunks a search, an iteration or a deletion is about.

A filter is a dict, or an expression over :func:`meta` (a key of the metadata) and :func:`field` (a
column of the chunk), joined by ``&``, ``|`` and ``~``::

    {"lang": "es"}
    {"year": {"$gte": 2020}, "$or": [{"lang": "es"}, {"lang": {"$exists": False}}]}
    (meta("year") >= 2020) & ~meta("tags").contains("draft") & (field("position") == 0)

Every filter holds of a chunk or does not; there is nothing between. ``~`` and ``!=`` are the plain
opposite, so that both hold of chunks that lack the key. What each test means, in Python and in SQL,
is in `cenote.predicates`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, NoReturn, TypeAlias

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, true
from sqlalchemy.types import TypeEngine

from cenote.errors import InvalidInputError
from cenote.jsonvalues import NotJSONError, canonical_json, json_text
from cenote.predicates import (
    ColumnOperand,
    Contains,
    Equals,
    Exists,
    IsOneOf,
    Like,
    Match,
    MetadataOperand,
    Next,
    Operand,
    Ordered,
    Predicate,
    Row,
    StartsWith,
)
from cenote.validation import check_text, listed, shown

__all__ = ["MAX_DEPTH", "MAX_PREDICATES", "Field", "Filter", "FilterLike", "Meta", "field", "meta"]

MAX_PREDICATES = 1000
"""Tests in one filter, each element of a list among them where it is compared by itself."""

MAX_DEPTH = 50
"""Nesting of ``&``, ``|`` and ``~``, and of the keys of a path: each is a level of the SQL."""

MAX_PARTS = 10 * MAX_PREDICATES
"""Filters inside a filter: one that appears in several places is there as often, and so may be a
billion by thirty lines of code."""

_LONG_LIST = 20
"""Values of ``in_()`` up to which each is looked up in the index of the metadata."""

# -- expressions -----------------------------------------------------------------------------------


class Filter:
    """A condition on chunks. Made by :func:`meta`, :func:`field` and of others."""

    __slots__ = ()

    def __and__(self, other: Filter) -> Filter:
        return And((*_parts(self, And), *_parts(_filter(other), And)))

    def __or__(self, other: Filter) -> Filter:
        return Or((*_parts(self, Or), *_parts(_filter(other), Or)))

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError("a filter has no truth value; join filters by &, | and ~, in brackets")


@dataclass(frozen=True, slots=True, eq=False)
class Leaf(Filter):
    """One test."""

    predicate: Predicate


@dataclass(frozen=True, slots=True, eq=False)
class And(Filter):
    """Holds if all of its parts do, and so if there are none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Or(Filter):
    """Holds if one of its parts does, and so not if there are none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Not(Filter):
    """Holds if its part does not."""

    part: Filter


def _parts(filter: Filter, kind: type[And | Or]) -> tuple[Filter, ...]:
    """The parts of a filter of this kind, so that long chains are not nested deep."""
    return filter.parts if isinstance(filter, kind) else (filter,)


class _Comparable:
    """What :func:`meta` and :func:`field` have in common."""

    __slots__ = ("_operand",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, operand: Operand) -> None:
        self._operand = operand

    def __repr__(self) -> str:
        return str(self._operand)

    def _value(self, value: Any) -> Any:
        return _canonical(value, self._operand)

    def _ordered(self, operator: str, value: Any) -> Filter:
        value = self._value(value)
        if not self._operand.orders(value):
            raise _bad(f"{self._operand} {operator} takes {self._operand.ordered_kinds}")
        return Leaf(Ordered(self._operand, operator, value))

    def _text(self, operator: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _bad(f"{self._operand} {operator} takes a text, not {type(value).__name__}")
        text: str = self._value(value)
        return text

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        """The value is equal: numbers by value, never to booleans; lists and objects as a whole."""
        return Leaf(Equals(self._operand, self._value(value)))

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        """The opposite of ``==``: also where there is no value."""
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
        """From `low` to `high`, both included."""
        return And((self._ordered(">=", low), self._ordered("<=", high)))

    def in_(self, values: Iterable[Any]) -> Filter:
        """Equal to one of the values; of none, never."""
        several = [self._value(value) for value in _several(values, f"{self._operand} in_")]
        if len(several) > _LONG_LIST:
            listed = Leaf(IsOneOf(self._operand, [one for one in several if one is not None]))
            return listed | self.is_null() if None in several else listed
        return Or(tuple(Leaf(Equals(self._operand, value)) for value in several))

    def not_in(self, values: Iterable[Any]) -> Filter:
        """The opposite of :meth:`in_`: also where there is no value."""
        return Not(self.in_(values))

    def is_null(self) -> Filter:
        """There is a JSON null, or an SQL NULL in a column."""
        return Leaf(Equals(self._operand, None))

    def like(self, pattern: str) -> Filter:
        """A text that matches all of a pattern: ``%`` is any text, ``_`` one character, ``\\``
        takes the meaning from the next one."""
        return self._like("like", pattern, ignore_case=False)

    def ilike(self, pattern: str) -> Filter:
        """The same, without regard to the case of the letters A to Z; of others it matters."""
        return self._like("ilike", pattern, ignore_case=True)

    def _like(self, operator: str, pattern: str, *, ignore_case: bool) -> Filter:
        pattern = self._text(operator, pattern)
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise _bad(f"the pattern of {self._operand} {operator} ends with a single backslash")
        return Leaf(Like(self._operand, pattern, ignore_case))

    def startswith(self, prefix: str) -> Filter:
        """A text that begins so; nothing in it has a special meaning."""
        return Leaf(StartsWith(self._operand, self._text("startswith", prefix)))


class Meta(_Comparable):
    """A value of the metadata, found by its key, or by the keys that lead to it."""

    __slots__ = ()

    @property
    def _key(self) -> MetadataOperand:
        assert isinstance(self._operand, MetadataOperand)
        return self._operand

    def exists(self) -> Filter:
        """The key is there, be it with a null."""
        return Leaf(Exists(self._key))

    def contains(self, value: Any) -> Filter:
        """A list that has an element equal to the value."""
        return Leaf(Contains(self._key, self._value(value)))

    def any_of(self, values: Iterable[Any]) -> Filter:
        """A list that has at least one of the values."""
        several = _several(values, f"{self._operand} any_of")
        return Or(tuple(self.contains(value) for value in several))

    def all_of(self, values: Iterable[Any]) -> Filter:
        """A list that has all of the values, one or more."""
        several = _several(values, f"{self._operand} all_of")
        if not several:
            raise _bad(f"{self._operand} all_of takes one value or more")
        return And(tuple(self.contains(value) for value in several))


class Field(_Comparable):
    """A column of the chunk."""

    __slots__ = ()


def meta(*path: str) -> Meta:
    """A value of the metadata.

    Args:
        *path: its key; several lead into objects, as ``meta("author", "name")`` does. Lists are not
            entered.

    Raises:
        InvalidInputError: a key is no text that can be stored, or there is none, or more than 50.
    """
    if not path:
        raise _bad("meta() needs a key")
    if len(path) > MAX_DEPTH:
        raise _bad(f"meta() takes at most {MAX_DEPTH} keys, not {len(path):,}")
    for key in path:
        check_text(key, field="filter")
    return Meta(MetadataOperand(path))


def field(name: str) -> Field:
    """A column: ``document_id``, ``position``, ``embedding_model``, ``created_at``, or a host's.

    Args:
        name: of the column. In memory, where there is no table, a host's is called as in
            `EmbeddedChunk.columns`.

    Raises:
        InvalidInputError: the name is no text. A name that the store's table lacks is refused by
            the store.
    """
    check_text(name, field="filter")
    return Field(ColumnOperand(name))


# -- dicts -----------------------------------------------------------------------------------------

FilterLike: TypeAlias = "Filter | Mapping[str, Any] | None"
"""What a store takes for a filter."""

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


def as_filter(given: Any) -> Filter | None:
    """What a caller gave as a filter, checked; None where it filters nothing.

    A dict holds of chunks whose metadata have all of its keys with equal values. A value that is an
    object of operators (``{"$gte": 2020}``) tests; ``$and`` and ``$or`` take lists of filters,
    ``$not`` takes one. What begins with ``$`` and is meant literally goes into ``{"$eq": ...}``, or
    into :func:`meta`.

    Raises:
        InvalidInputError: it is none; names the key.
    """
    if given is None:
        return None
    found = _filter(given)
    if _depth(found) > MAX_DEPTH:  # after which the rest may call itself
        raise _bad(f"the filter is nested more than {MAX_DEPTH} deep")
    if sum(1 for _ in predicates(found)) > MAX_PREDICATES:
        raise _bad(f"the filter has more than {MAX_PREDICATES:,} tests")
    return None if _constant(found) else found


def narrowing_filter(given: Any) -> Filter:
    """The same, for what is to be removed: it must not match everything.

    Raises:
        InvalidInputError: it filters nothing.
    """
    found = as_filter(given)
    if found is None:
        raise _bad("the filter matches every chunk; say delete_namespace() if that is meant")
    return found


def _filter(given: Any, depth: int = 0, number: Iterator[int] | None = None) -> Filter:
    """A filter of a dict, or of an expression.

    Args:
        given: either.
        depth: how deep it is in another one.
        number: counts the filters of the outermost one.
    """
    number = count() if number is None else number
    if isinstance(given, Filter):
        return given
    if next(number) >= MAX_PARTS:
        raise _too_many_parts()
    if not isinstance(given, Mapping):
        raise _bad(f"filter must be a dict or a filter expression, not {type(given).__name__}")
    if depth > MAX_DEPTH:  # before it is a filter, for this function calls itself
        raise _bad(f"the filter is nested more than {MAX_DEPTH} deep")
    equal: dict[str, Any] = {}
    parts: list[Filter] = []
    for key, value in given.items():
        if key in ("$and", "$or"):
            joined = And if key == "$and" else Or
            several = _several(value, key)
            parts.append(joined(tuple(_filter(one, depth + 1, number) for one in several)))
        elif key == "$not":
            parts.append(Not(_filter(value, depth + 1, number)))
        elif isinstance(key, str) and key.startswith("$"):
            raise _bad(
                f"filter key {shown(key)} is no operator; for a key of the metadata that begins "
                'with "$", say meta(...)'
            )
        elif isinstance(value, Mapping) and _has_operators(value):
            parts.append(_of_key(meta(key), value, depth + 1))
        elif isinstance(value, Filter | _Comparable):
            raise _bad(f"filter key {shown(key)} has an expression for a value; join them by &")
        else:
            equal |= _canonical_item(key, value)
    if equal:
        parts.insert(0, Leaf(Match(equal)))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _has_operators(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and key.startswith("$") for key in value)


def _of_key(key: Meta, operators: Any, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise _bad(f"the filter is nested more than {MAX_DEPTH} deep")
    if not isinstance(operators, Mapping):
        raise _bad(f"$not of {key!r} takes an object of operators; say $ne for a value")
    parts: list[Filter] = []
    for name, value in operators.items():
        if name == "$not":
            parts.append(Not(_of_key(key, value, depth + 1)))
            continue
        if name not in _BY_OPERATOR:
            known = ", ".join([*_BY_OPERATOR, "$not"])
            raise _bad(f"{key!r} has no operator {shown(name)}; there are: {known}")
        parts.append(_BY_OPERATOR[name](key, value))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _pair(value: Any) -> tuple[Any, Any]:
    several = _several(value, "$between")
    if len(several) != 2:
        raise _bad("$between takes two values")
    return several[0], several[1]


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _bad(f"$exists takes True or False, not a value of type {type(value).__name__}")
    return value


# -- what a filter means ---------------------------------------------------------------------------


def predicates(filter: Filter | None) -> Iterator[Predicate]:
    """The tests of a filter, in order."""
    match filter:
        case Leaf(predicate):
            yield predicate
        case And(parts) | Or(parts):
            for part in parts:
                yield from predicates(part)
        case Not(part):
            yield from predicates(part)


def holds(filter: Filter | None, row: Row) -> bool:
    """Whether a filter holds of a chunk."""
    match filter:
        case Leaf(predicate):
            return predicate.holds(row)
        case And(parts):
            return all(holds(part, row) for part in parts)
        case Or(parts):
            return any(holds(part, row) for part in parts)
        case Not(part):
            return not holds(part, row)
    return True


Bind: TypeAlias = Callable[[str, TypeEngine[Any]], ColumnElement[Any]]
"""Makes a parameter of a name and type: one to be bound at each call, or one with its value."""


class Conditions:
    """A filter as SQL."""

    def __init__(self, filter: Filter | None) -> None:
        self._filter = filter
        self._shape = _shape(filter)

    def __bool__(self) -> bool:
        return self._filter is not None

    @property
    def shape(self) -> Hashable:
        """What the SQL depends on: the values are not in it."""
        return self._shape

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The values to bind."""
        values = [value for predicate in predicates(self._filter) for value in predicate.values]
        return {_name(number): value for number, value in enumerate(values)}

    def sql(self, columns: Any, bind: Bind) -> list[ColumnElement[bool]]:
        """The conditions, to be joined by AND.

        Args:
            columns: of the chunk table, by name.
            bind: makes the parameters.

        Raises:
            InvalidInputError: the table lacks a column.
        """
        number = -1

        def following(type_: TypeEngine[Any]) -> ColumnElement[Any]:
            nonlocal number
            number += 1
            return bind(_name(number), type_)

        whole = self._filter
        parts = whole.parts if isinstance(whole, And) else (whole,)
        return [_sql(part, columns, following) for part in parts if part is not None]


def _name(number: int) -> str:
    return f"filter_{number}"


def _shape(filter: Filter | None) -> Hashable:
    match filter:
        case Leaf(predicate):
            return predicate.shape
        case And(parts) | Or(parts):
            return (type(filter).__name__, *map(_shape, parts))
        case Not(part):
            return ("Not", _shape(part))
    return None


def _sql(filter: Filter, columns: Any, following: Next) -> ColumnElement[bool]:
    match filter:
        case Leaf(predicate):
            return predicate.sql(columns, following)
        case And(parts):
            return and_(true(), *(_sql(part, columns, following) for part in parts))
        case Or(parts):
            return or_(false(), *(_sql(part, columns, following) for part in parts))
        case Not(part):  # everywhere else a condition that is NULL does as one that is false
            return not_(func.coalesce(_sql(part, columns, following), false()))
    raise TypeError(type(filter).__name__)


# -- pieces ----------------------------------------------------------------------------------------


def _constant(filter: Filter) -> bool | None:
    """Whether a filter holds of everything, or of nothing; None where that depends."""
    match filter:
        case And(parts):
            known = {_constant(part) for part in parts}
            return False if False in known else None if None in known else True
        case Or(parts):
            known = {_constant(part) for part in parts}
            return True if True in known else None if None in known else False
        case Not(part):
            inner = _constant(part)
            return None if inner is None else not inner
    return None


def _depth(filter: Filter) -> int:
    """How deep a filter is nested, or more than what is allowed."""
    deepest, parts, level = 0, 0, [filter]
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        parts += len(level)
        if parts > MAX_PARTS:
            raise _too_many_parts()
        paths = max((_keys(one) for one in level), default=0)
        if deepest + paths > MAX_DEPTH + 1:  # of one key there is always room
            return deepest + paths
        level = [part for one in level for part in _parts_of(one)]
    return deepest


def _keys(filter: Filter) -> int:
    """How many keys lead to what a test is about."""
    if isinstance(filter, Leaf) and isinstance(filter.predicate.operand, MetadataOperand):
        return len(filter.predicate.operand.path)
    return 0


def _parts_of(filter: Filter) -> tuple[Filter, ...]:
    match filter:
        case And(parts) | Or(parts):
            return parts
        case Not(part):
            return (part,)
    return ()


def _several(values: Any, what: str) -> list[Any]:
    rule = f"{what} takes a list of values"
    return listed(values, rule, field="filter", but_not=(str, bytes, Mapping))


def _canonical_item(key: Any, value: Any) -> dict[str, Any]:
    try:
        item: dict[str, Any] = canonical_json({key: value})
        json_text(item)
    except NotJSONError as error:
        raise _bad(f"filter key {shown(key)} {error}") from None
    return item


def _canonical(value: Any, operand: Operand) -> Any:
    if isinstance(operand, ColumnOperand):
        return operand.checked(value)
    try:
        canonical = canonical_json(value)
        json_text(canonical)
    except NotJSONError as error:
        raise _bad(f"the value of {operand} {error}") from None
    return canonical


def _too_many_parts() -> InvalidInputError:
    return _bad(f"the filter has more than {MAX_PARTS:,} parts")


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="filter")
