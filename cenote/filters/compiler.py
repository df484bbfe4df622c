"""Evaluate filters in Python, and compile them to SQL conditions."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, true
from sqlalchemy.types import TypeEngine

from cenote.filters.checks import constant_value, predicates
from cenote.filters.language import And, Filter, Leaf, Not, Or
from cenote.filters.operands import NextParameter, Row

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

    def __bool__(self) -> bool:
        return self._filter is not None

    @property
    def shape(self) -> Hashable:
        """Cache key of the SQL: everything that the SQL depends on, without the values."""
        return self._shape

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The values to bind, by parameter name."""
        values = [value for predicate in predicates(self._filter) for value in predicate.values]
        return {_name(number): value for number, value in enumerate(values)}

    @property
    def never_holds(self) -> bool:
        """True if no chunk can match, for example because of ``meta("x").in_([])``."""
        return self._filter is not None and constant_value(self._filter) is False

    @property
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
        number = -1

        def next_parameter(type_: TypeEngine[Any]) -> ColumnElement[Any]:
            nonlocal number
            number += 1
            return bind(_name(number), type_)

        whole = self._filter
        parts = whole.parts if isinstance(whole, And) else (whole,)
        return [_sql(part, columns, next_parameter) for part in parts if part is not None]


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


def _sql(filter: Filter, columns: Any, next_parameter: NextParameter) -> ColumnElement[bool]:
    match filter:
        case Leaf(predicate):
            return predicate.sql(columns, next_parameter)
        case And(parts):
            return and_(true(), *(_sql(part, columns, next_parameter) for part in parts))
        case Or(parts):
            return or_(false(), *(_sql(part, columns, next_parameter) for part in parts))
        case Not(part):  # elsewhere, a condition that is NULL has the effect of one that is false
            return not_(func.coalesce(_sql(part, columns, next_parameter), false()))
    raise TypeError(type(filter).__name__)
