"""Evaluate filters in Python, and compile them to SQL conditions."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement
from sqlalchemy.types import TypeEngine

from cenote.filters.checks import as_filter, constant_value, is_long, predicates
from cenote.filters.condition import FilterCondition, Piece, PredicateTemplate
from cenote.filters.language import And, Filter, Leaf, Not, Or
from cenote.filters.operands import ColumnOperand, Row
from cenote.filters.predicates import IsOneOf, Predicate
from cenote.responsive import run_in_thread

MAX_KEPT_PARAMETERS = 24
"""Maximum number of parameters of a filter whose statements are kept: in the store's cache, as
prepared statements of the driver and the server, and in SQLAlchemy's cache.

A kept statement takes up to 0.6 MB in the client and 0.7 MB on each connection's server process.
A filter of 1,000 predicates took 5 to 39 MB in the client, and up to 25 MB on the server.
"""

MAX_KEPT_BYTES = 16 * 1024
"""Maximum bytes of the values of a filter whose statements are kept.

Some statements contain their values. For others, Postgres may choose a generic plan after five
executions, which converts a value from text to jsonb once for each row.
"""

_MAX_KEPT_COLUMN_LIST = 100
"""Maximum number of values that a column is compared with in a kept statement.

Postgres hashes the values of ``= ANY(...)`` in a custom plan only. A generic plan compares them one
by one.
"""

# -- the meaning in Python -------------------------------------------------------------------------


def holds(filter: Filter | None, row: Row) -> bool:
    """Return whether a filter matches a row. None matches every row."""
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


# -- the meaning in SQL ----------------------------------------------------------------------------

Bind: TypeAlias = Callable[[str, TypeEngine[Any]], ColumnElement[Any]]
"""Function that creates a parameter from a name and a type: one to bind at each execution, or one
that already holds its value."""


class Conditions:
    """A filter compiled to SQL conditions, with its values as bound parameters."""

    def __init__(self, filter: Filter | None) -> None:
        self._filter = filter
        self._shape = _shape(filter)
        self._last_sql: tuple[Any, Bind, list[ColumnElement[bool]]] | None = None

    def __bool__(self) -> bool:
        return self._filter is not None

    @property
    def filter(self) -> Filter | None:
        """The filter."""
        return self._filter

    @property
    def shape(self) -> Hashable:
        """Cache key of the SQL: everything that the SQL depends on, without the values."""
        return self._shape

    @cached_property
    def weight(self) -> int:
        """Number of parameters. A predicate without parameters counts as one."""
        return sum(max(1, len(values)) for values in self._values)

    @cached_property
    def _values(self) -> list[list[Any]]:
        """The values to bind, by predicate."""
        return [predicate.values for predicate in predicates(self._filter)]

    @cached_property
    def is_kept(self) -> bool:
        """True if statements with this filter are kept for the next call."""
        return (
            self.weight <= MAX_KEPT_PARAMETERS
            and self._size <= MAX_KEPT_BYTES
            and not any(map(_is_long_column_list, predicates(self._filter)))
        )

    @cached_property
    def _size(self) -> int:
        return sum(predicate.size for predicate in predicates(self._filter))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The values to bind, by parameter name."""
        return {_name(number): value for number, value in enumerate(chain(*self._values))}

    @property
    def never_holds(self) -> bool:
        """True if no chunk can match, for example because of ``meta("x").in_([])``."""
        return self._filter is not None and constant_value(self._filter) is False

    @cached_property
    def fingerprint(self) -> int:
        """Hash of the filter and its values, the same for equal filters of one process."""
        return hash((self._shape, repr(self.parameters)))

    def sql(self, columns: Any, bind: Bind) -> list[ColumnElement[bool]]:
        """Return the conditions, to be joined by AND.

        Args:
            columns: Columns of the chunk table, by name.
            bind: Function that creates the parameters.

        Raises:
            InvalidInputError: the table lacks a column that the filter names.
        """
        if self._filter is None:
            return []
        # A search contains the condition up to three times.
        if self._last_sql is None or self._last_sql[0] is not columns or self._last_sql[1] != bind:
            builder = _ConditionBuilder(columns, bind)
            builder.add(self._filter)
            self._last_sql = columns, bind, [builder.condition(self._shape)]
        return self._last_sql[2]


async def conditions_of(
    given: Any, check: Callable[[Any], Filter | None] = as_filter
) -> Conditions:
    """Check and compile a filter; in a thread if its values are long.

    Args:
        given: The filter.
        check: `as_filter` or `narrowing_filter`.

    Raises:
        InvalidInputError: `given` is not a valid filter.
    """
    if not is_long(given):
        return Conditions(check(given))
    return await run_in_thread(_convert, given, check)


def _convert(given: Any, check: Callable[[Any], Filter | None]) -> Conditions:
    conditions = Conditions(check(given))
    # These properties are kept, so they are computed here and not on the event loop.
    _ = conditions.parameters, conditions.fingerprint
    return conditions


def _is_long_column_list(predicate: Predicate) -> bool:
    return (
        isinstance(predicate, IsOneOf)
        and isinstance(predicate.operand, ColumnOperand)
        and len(predicate.wanted) > _MAX_KEPT_COLUMN_LIST
    )


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


class _ConditionBuilder:
    """Composes the SQL of a filter."""

    def __init__(self, columns: Any, bind: Bind) -> None:
        self._columns = columns
        self._bind = bind
        self._numbers: dict[Hashable, int] = {}
        self._templates: list[PredicateTemplate] = []
        self._pieces: list[Piece] = []
        self._parameters: list[ColumnElement[Any]] = []

    def condition(self, shape: Hashable) -> FilterCondition:
        templates = [template.sql for template in self._templates]
        return FilterCondition(self._pieces, templates, self._parameters, shape)

    def add(self, filter: Filter) -> None:
        """Append the SQL of a filter."""
        match filter:
            case Leaf(predicate):
                self._add_predicate(predicate)
            case And(parts):
                self._add_parts(parts, " AND ", "true")
            case Or(parts):
                self._add_parts(parts, " OR ", "false")
            case Not(part):  # elsewhere, NULL has the effect of false
                self._pieces.append("(NOT coalesce(")
                self.add(part)
                self._pieces.append(", false))")

    def _add_parts(self, parts: tuple[Filter, ...], operator: str, if_empty: str) -> None:
        if not parts:
            self._pieces.append(if_empty)
            return
        before = "("
        for part in parts:
            self._pieces.append(before)
            self.add(part)
            before = operator
        self._pieces.append(")")

    def _add_predicate(self, predicate: Predicate) -> None:
        number = self._numbers.get(predicate.shape)
        if number is None:
            number = self._numbers[predicate.shape] = len(self._templates)
            template = PredicateTemplate()
            template.sql = predicate.sql(self._columns, template.next_parameter)
            self._templates.append(template)
        types = self._templates[number].types
        first = len(self._parameters)
        self._parameters += [
            self._bind(_name(first + position), type_) for position, type_ in enumerate(types)
        ]
        self._pieces += ["(", (number, len(types)), ")"]
