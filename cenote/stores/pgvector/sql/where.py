"""Check the caller's SQL condition, which applies in addition to the filter (``where=``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Alias, ColumnElement, FromClause, Table, and_, literal, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.elements import Grouping

from cenote.errors import InvalidInputError


def check_condition(
    where: Any, table: Table, *, field: str = "where"
) -> ColumnElement[bool] | None:
    """Return the caller's condition. It may refer only to the chunk's own row.

    Args:
        where: The condition; None for none.
        table: Chunk table.
        field: Name of the argument, for messages.

    Raises:
        InvalidInputError: `where` is not a SQL condition, or adds other tables to FROM.
    """
    if where is None:
        return None
    parsed = _parse(where, table)
    if parsed is None:
        # Raised here, and not where SQLAlchemy's error is caught, because that error quotes the
        # condition, and would become the context of ours.
        raise InvalidInputError(
            f"{field} must be one SQL condition (combine several with and_), not an object of type "
            f"{type(where).__name__}",
            field=field,
        )
    condition, sources = parsed
    others = [_describe(source) for source in sources if source is not table]
    if others:
        raise InvalidInputError(
            f"{field} adds {', '.join(others)} to the query: refer to tables other than "
            f"{table.name!r} in exists(...) or Model.relationship.has(...)",
            field=field,
        )
    return condition


def _parse(where: Any, table: Table) -> tuple[ColumnElement[bool], Sequence[FromClause]] | None:
    """Return a condition and the FROM clauses of a query with it; None if it is not a condition."""
    try:
        # Without the parentheses, text("a OR b") would match rows of other namespaces.
        condition: ColumnElement[bool] = Grouping(and_(where))
        query = select(literal(1)).select_from(table).where(condition)
        return condition, query.get_final_froms()
    except (ArgumentError, ValueError):  # ValueError: SQLAlchemy called a repr() that failed
        return None


def _describe(source: FromClause) -> str:
    """Return a description of a FROM clause, for a message."""
    if isinstance(source, Alias) and isinstance(source.element, Table):
        return f"an alias of {source.element.name!r}"
    return repr(source.name) if isinstance(source, Table) else "a subquery"
