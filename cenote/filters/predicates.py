"""The predicates that filters are built from, each defined in Python and in SQL, side by side.

A predicate compares one value of a chunk: a column, or a value in the metadata that a path of keys
leads to. A predicate is either true or false. It is false if the chunk has no such value, or if the
value has a type that the predicate does not handle:

=================  =======================================================================
Predicate          Meaning
=================  =======================================================================
``==``, ``in_``    JSON equality: ``1`` equals ``1.0``; ``True`` does not equal ``1``; ``None``
                   equals an explicit null; lists and objects compare as a whole
``<`` and so on,   numbers compare with numbers by value, strings with strings in code-point
``between``        order; other types, including booleans, do not compare
``like``, ...      strings only; ``ilike`` ignores the case of A to Z alone, as the "C" collation
                   does
``contains``, ...  lists only; the elements compare as with ``==``
``exists``         true if the key is present, even if its value is null
=================  =======================================================================

Strings always compare under the "C" collation, so the database's locale cannot change an answer.
Keys and values are bound as parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Numeric,
    TableValuedAlias,
    Text,
    any_,
    case,
    cast,
    exists,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from cenote.filters.like import LikePattern
from cenote.filters.operands import (
    MISSING,
    ColumnOperand,
    Columns,
    MetadataOperand,
    NextParameter,
    Operand,
    Row,
    has_json_type,
    json_number,
    json_string,
    json_token,
    jsonb,
    lower_ascii,
    metadata_contains,
    parameter_type,
)
from cenote.validation.arguments import is_number
from cenote.validation.json import approximate_bytes, json_text

_MAX_CONTAINED = 20
"""Maximum number of values that ``@>`` looks up in the metadata index for `ContainsAll`."""

# -- predicates ------------------------------------------------------------------------------------


class Predicate(Protocol):
    """A comparison of one value that is either true or false."""

    @property
    def operand(self) -> Operand:
        """The value to compare."""
        ...

    @property
    def shape(self) -> Hashable:
        """Cache key of the SQL: everything that the SQL depends on, without the values."""
        ...

    @property
    def values(self) -> list[Any]:
        """The values to bind, in the order of the SQL's parameters."""
        ...

    @property
    def size(self) -> int:
        """Approximate bytes of the keys and values; see `approximate_bytes`."""
        ...

    def holds(self, row: Row) -> bool:
        """Return whether the predicate is true for a row."""
        ...

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        """Return the SQL condition. It may be NULL, which the caller must treat as false."""
        ...


@dataclass(frozen=True)
class Match:
    """Every key of a plain dict is present, with an equal value.

    ``@>`` uses the GIN index. For scalars it means equality. A list or an object may contain
    another without being equal to it, so lists and objects are also compared as a whole.
    """

    wanted: dict[str, Any] = field(repr=False)

    @property
    def operand(self) -> Operand:
        return MetadataOperand(())

    @cached_property
    def tokens(self) -> frozenset[tuple[str, Hashable]]:
        """The keys and the tokens of their values; see :func:`json_token`."""
        return frozenset((key, json_token(value)) for key, value in self.wanted.items())

    @cached_property
    def _containers(self) -> dict[str, Any]:
        return {key: value for key, value in self.wanted.items() if isinstance(value, dict | list)}

    @property
    def shape(self) -> Hashable:
        return ("match", bool(self._containers))

    @property
    def values(self) -> list[Any]:
        values = [json_text(self.wanted)]
        return [*values, json_text(self._containers)] if self._containers else values

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        metadata = row.metadata
        return all(
            key in metadata and json_token(metadata[key]) == token for key, token in self.tokens
        )

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        contained = metadata_contains(columns.metadata, next_parameter)
        if not self._containers:
            return contained
        wanted = func.jsonb_each(jsonb(next_parameter)).table_valued("key", "value")
        same = columns.metadata.op("->")(wanted.c.key) == wanted.c.value
        # No wanted list or object differs from the stored one.
        return contained & ~exists().select_from(wanted).where(same.is_not(true()))


@dataclass(frozen=True)
class Equals:
    """The value equals the wanted one. None means JSON null in metadata, and NULL in a column."""

    operand: Operand
    wanted: Any = field(repr=False)

    @property
    def shape(self) -> Hashable:
        if isinstance(self.operand, ColumnOperand):
            return ("equals", self.operand.shape, self.wanted is None)
        return ("equals", self.operand.shape, self._is_container)

    @property
    def _is_container(self) -> bool:
        return isinstance(self.wanted, dict | list)

    @property
    def values(self) -> list[Any]:
        if isinstance(self.operand, ColumnOperand):
            return [] if self.wanted is None else [self.wanted]
        smallest = self.operand.smallest_metadata(self.wanted)
        if not self._is_container:
            return [smallest]
        return [smallest, *self.operand.path, json_text(self.wanted)]

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        if isinstance(self.operand, ColumnOperand):  # a NULL column is MISSING
            return value is MISSING if self.wanted is None else bool(value == self.wanted)
        return value is not MISSING and json_token(value) == json_token(self.wanted)

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        if isinstance(self.operand, ColumnOperand):
            column = self.operand.sql(columns)
            if self.wanted is None:
                return column.is_(None)
            return column == next_parameter(parameter_type(column))
        contained = metadata_contains(columns.metadata, next_parameter)
        if not self._is_container:
            return contained
        value = self.operand.sql(columns, next_parameter)
        return contained & value.is_not_distinct_from(jsonb(next_parameter))


@dataclass(frozen=True)
class IsOneOf:
    """The value equals any of many wanted values.

    For a few values, one `Equals` each is faster, because `Equals` uses the GIN index.
    """

    operand: Operand
    wanted: list[Any] = field(repr=False)

    @cached_property
    def tokens(self) -> frozenset[Hashable]:
        """Tokens of the wanted values in the metadata; see :func:`json_token`."""
        return frozenset(map(json_token, self.wanted))

    @cached_property
    def _column_values(self) -> Collection[Any]:
        try:
            return frozenset(self.wanted)
        except TypeError:  # values of user columns may have types without a hash
            return self.wanted

    @property
    def shape(self) -> Hashable:
        return ("is one of", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        if isinstance(self.operand, ColumnOperand):
            return [self.wanted]
        return [*self.operand.path, json_text(self.wanted)]

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        if isinstance(self.operand, ColumnOperand):
            try:
                return value in self._column_values
            except TypeError:
                return value in self.wanted
        return value is not MISSING and json_token(value) in self.tokens

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        if isinstance(self.operand, ColumnOperand):
            column = self.operand.sql(columns)
            return column == any_(next_parameter(ARRAY(parameter_type(column))))
        return _in_hashed_set(self.operand.sql(columns, next_parameter), next_parameter)


def _in_hashed_set(value: ColumnElement[Any], next_parameter: NextParameter) -> ColumnElement[bool]:
    """Return the condition that a jsonb value equals an element of the next parameter, a list.

    Postgres hashes the elements once per scan ("hashed SubPlan") and looks each value up. It
    compares ``= ANY(ARRAY(SELECT ...))`` value by value: 2,000 values over 20,000 rows took 10.9 s,
    and take 0.05 s so. The planner hashes the elements as long as it estimates that they fit into
    work_mem. It always estimates 100 elements, whatever the list, so it always hashes.

    Without ``IS true``, the planner could turn the condition into a join, and then choose an order
    of joins without the ANN index.
    """
    elements = select(func.jsonb_array_elements(jsonb(next_parameter)))
    return value.in_(elements).is_(true())


_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Ordered:
    """The value compares with the wanted one by ``<``, ``<=``, ``>`` or ``>=``."""

    operand: Operand
    operator: str
    wanted: Any = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("ordered", self.operand.shape, self.operator, self._compares_strings)

    @property
    def _compares_strings(self) -> bool:
        return isinstance(self.wanted, str)

    @property
    def values(self) -> list[Any]:
        if isinstance(self.operand, ColumnOperand):
            return [self.wanted]
        wanted = self.wanted if self._compares_strings else json_text(self.wanted)
        return [*self.operand.path, wanted]

    @property
    def size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        if isinstance(self.operand, ColumnOperand):
            try:
                return value is not MISSING and bool(_ORDERS[self.operator](value, self.wanted))
            except TypeError:  # values of user columns may have types that do not compare
                return False
        comparable = isinstance(value, str) if self._compares_strings else is_number(value)
        return comparable and bool(_ORDERS[self.operator](value, self.wanted))

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        compare: Callable[[Any, Any], ColumnElement[bool]] = _ORDERS[self.operator]
        if isinstance(self.operand, ColumnOperand):
            column = self.operand.sql(columns)
            return compare(self.operand.ordered(column), next_parameter(parameter_type(column)))
        value = self.operand.sql(columns, next_parameter)
        if self._compares_strings:
            return compare(json_string(value), next_parameter(Text()))
        return compare(json_number(value), cast(next_parameter(Text()), Numeric))


class _StringPredicate:
    """Helpers of the predicates on strings."""

    __slots__ = ()
    operand: Operand

    def _string_sql(
        self,
        columns: Columns,
        next_parameter: NextParameter,
        compare: Callable[[ColumnElement[str], ColumnElement[str]], ColumnElement[bool]],
    ) -> ColumnElement[bool]:
        if isinstance(self.operand, ColumnOperand):
            return compare(self.operand.text(self.operand.sql(columns)), next_parameter(Text()))
        return compare(
            json_string(self.operand.sql(columns, next_parameter)), next_parameter(Text())
        )

    def _values(self, text: str) -> list[Any]:
        return [text] if isinstance(self.operand, ColumnOperand) else [*self.operand.path, text]


@dataclass(frozen=True)
class Like(_StringPredicate):
    """The value is a string that matches a LIKE pattern."""

    operand: Operand
    pattern: str = field(repr=False)
    ignore_case: bool

    @property
    def shape(self) -> Hashable:
        return ("like", self.operand.shape, self.ignore_case)

    @property
    def values(self) -> list[Any]:
        return self._values(self.pattern)

    @property
    def size(self) -> int:
        return self.operand.size + approximate_bytes(self.pattern)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        if not isinstance(value, str):
            return False
        return self._parsed.matches(lower_ascii(value) if self.ignore_case else value)

    @cached_property
    def _parsed(self) -> LikePattern:
        return LikePattern(lower_ascii(self.pattern) if self.ignore_case else self.pattern)

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        return self._string_sql(
            columns,
            next_parameter,
            lambda text, pattern: text.ilike(pattern) if self.ignore_case else text.like(pattern),
        )


@dataclass(frozen=True, slots=True)
class StartsWith(_StringPredicate):
    """The value is a string that starts with a prefix."""

    operand: Operand
    prefix: str = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("starts with", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        return self._values(self.prefix)

    @property
    def size(self) -> int:
        return self.operand.size + approximate_bytes(self.prefix)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        return isinstance(value, str) and value.startswith(self.prefix)

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        return self._string_sql(columns, next_parameter, func.starts_with)


@dataclass(frozen=True)
class Contains:
    """The value is a list that has an element equal to the wanted one.

    ``@>`` compares scalar elements for equality. A wanted list or object also matches an element
    that merely contains it, so the elements are then compared as a whole too.
    """

    operand: MetadataOperand
    wanted: Any = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("contains", self.operand.shape, self._is_container)

    @property
    def _is_container(self) -> bool:
        return isinstance(self.wanted, dict | list)

    @property
    def values(self) -> list[Any]:
        smallest = self.operand.smallest_metadata([self.wanted])
        if not self._is_container:
            return [smallest]
        return [smallest, *self.operand.path, json_text(self.wanted)]

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        token = json_token(self.wanted)
        return isinstance(value, list) and any(json_token(element) == token for element in value)

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        contained = metadata_contains(columns.metadata, next_parameter)
        if not self._is_container:
            return contained
        value = self.operand.sql(columns, next_parameter)
        element = _elements(value)
        same = element.c.value == jsonb(next_parameter)
        return contained & exists().select_from(element).where(same)


@dataclass(frozen=True)
class ContainsAny:
    """The value is a list that has an element equal to any of many wanted values.

    For a few values, one `Contains` each is faster, because `Contains` uses the GIN index.
    """

    operand: MetadataOperand
    wanted: list[Any] = field(repr=False)

    @cached_property
    def tokens(self) -> frozenset[Hashable]:
        """Tokens of the wanted values; see :func:`json_token`."""
        return frozenset(map(json_token, self.wanted))

    @property
    def shape(self) -> Hashable:
        return ("contains any", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        return [*self.operand.path, json_text(self.wanted)]

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        return isinstance(value, list) and not self.tokens.isdisjoint(map(json_token, value))

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        element = _elements(self.operand.sql(columns, next_parameter))
        wanted = _in_hashed_set(element.c.value, next_parameter)
        return exists().select_from(element).where(wanted)


@dataclass(frozen=True)
class ContainsAll:
    """The value is a list that has all of many wanted values among its elements.

    ``@>`` with the whole list would compare each wanted value with each element of a row. It only
    selects the rows that contain the first wanted values here, by the GIN index.
    """

    operand: MetadataOperand
    wanted: list[Any] = field(repr=False)

    @cached_property
    def tokens(self) -> frozenset[Hashable]:
        """Tokens of the wanted values; see :func:`json_token`."""
        return frozenset(map(json_token, self.wanted))

    @property
    def shape(self) -> Hashable:
        return ("contains all", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        first = self.operand.smallest_metadata(self.wanted[:_MAX_CONTAINED])
        return [first, *self.operand.path, len(self.tokens), json_text(self.wanted)]

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return self.operand.size + approximate_bytes(self.wanted)

    def holds(self, row: Row) -> bool:
        value = self.operand.value_in(row)
        if not isinstance(value, list) or len(value) < len(self.tokens):
            return False
        return self.tokens.issubset(map(json_token, value))

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        contains_first = metadata_contains(columns.metadata, next_parameter)
        value = self.operand.sql(columns, next_parameter)
        distinct = next_parameter(Integer())
        element = _elements(value, at_least=distinct)
        found = (
            select(func.count(element.c.value.distinct()))
            .select_from(element)
            .where(_in_hashed_set(element.c.value, next_parameter))
        )
        return contains_first & (found.scalar_subquery() == distinct)


def _elements(
    value: ColumnElement[Any], *, at_least: ColumnElement[int] | None = None
) -> TableValuedAlias:
    """Return the elements of a jsonb list, in the column ``value``; none for other values.

    Args:
        value: The list.
        at_least: Minimum length of the list. A shorter list has no elements here.
    """
    empty = cast(literal_column("'[]'"), JSONB)
    elements = value
    if at_least is not None:
        elements = case((func.jsonb_array_length(value) >= at_least, value), else_=empty)
    values = case((has_json_type(value, "array"), elements), else_=empty)
    return func.jsonb_array_elements(values).table_valued("value")


@dataclass(frozen=True, slots=True)
class Exists:
    """The key is present, even if its value is null."""

    operand: MetadataOperand

    @property
    def shape(self) -> Hashable:
        return ("exists", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        return [*self.operand.path]

    @property
    def size(self) -> int:
        return self.operand.size

    def holds(self, row: Row) -> bool:
        return self.operand.value_in(row) is not MISSING

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[bool]:
        return self.operand.sql(columns, next_parameter).is_not(None)
