"""The conditions that a host gives a search beside the filter (``where=``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Alias, ColumnElement, FromClause, Table, and_, literal, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.elements import Grouping

from cenote.errors import InvalidInputError


def check_condition(where: Any, table: Table) -> ColumnElement[bool] | None:
    """The host's conditions, checked: they may speak of the chunk's own row only.

    Raises:
        InvalidInputError: they are none, or bring other tables along.
    """
    if where is None:
        return None
    read = _read(where, table)
    if read is None:  # outside of the handler: SQLAlchemy's error quotes what was given
        raise InvalidInputError(
            f"where must be one SQL condition (join several by and_), not one of type "
            f"{type(where).__name__}",
            field="where",
        )
    condition, froms = read
    others = [_described(other) for other in froms if other is not table]
    if others:
        raise InvalidInputError(
            f"where brings in {', '.join(others)}: speak of other tables than "
            f"{table.name!r} in exists(...), or as Model.relationship.has(...)",
            field="where",
        )
    return condition


def _read(where: Any, table: Table) -> tuple[ColumnElement[bool], Sequence[FromClause]] | None:
    """A condition, and the tables of a query of the chunks that meet it; None if it is none."""
    try:
        # In brackets, since text("a OR b") would otherwise reach beyond the namespace.
        condition: ColumnElement[bool] = Grouping(and_(where))
        query = select(literal(1)).select_from(table).where(condition)
        return condition, query.get_final_froms()
    except (ArgumentError, ValueError):  # the latter of a repr() that fails
        return None


def _described(source: FromClause) -> str:
    """What a condition brings along, for a message."""
    if isinstance(source, Alias) and isinstance(source.element, Table):
        return f"an alias of {source.element.name!r}"
    return repr(source.name) if isinstance(source, Table) else "a subquery"
