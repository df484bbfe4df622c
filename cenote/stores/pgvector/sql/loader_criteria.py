"""Criteria that an application adds to a search statement by ``with_loader_criteria()``.

SQLAlchemy adds the criteria to every SELECT from the mapped class. A search statement finds its
chunks in a subquery of the table, which SQLAlchemy does not recognise: it would apply the criteria
only after the limit, and shorten the results. The elements here apply them before the limit. They
look for the criteria when the statement is compiled, because an event handler
(``do_orm_execute``) may add them as late as that.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, ColumnElement, and_, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

from cenote.stores.pgvector.sql.where import check_condition


class LoaderCriteria(ColumnElement[bool]):
    """SQL condition that contains the loader criteria for a chunk model; true if there are none."""

    _traverse_internals = [("model", InternalTraversal.dp_plain_obj)]  # noqa: RUF012

    def __init__(self, model: Any) -> None:
        self.model = model
        self.type = Boolean()


@compiles(LoaderCriteria)
def _compile(element: LoaderCriteria, compiler: Any, **kw: Any) -> str:
    criteria = loader_criteria(element.model, compiler)
    sql: str = compiler.process(and_(*criteria).self_group(), **kw) if criteria else "true"
    return sql


def loader_criteria(model: type[Any], compiler: Any) -> list[ColumnElement[bool]]:
    """Return the loader criteria for a chunk model in the statement that a compiler compiles.

    SQLAlchemy has no public access to them. `tests/stores/test_loader_criteria.py` notices if it
    keeps them elsewhere.

    Raises:
        InvalidInputError: Criteria refer to another table outside of a subquery.
    """
    mapper = inspect(model)
    criteria = []
    for option in compiler._global_attributes.get(("additional_entity_criteria", mapper), ()):
        if option.include_aliases or option.entity is mapper:
            condition = option.where_criteria
            if option.deferred_where_criteria:
                condition = condition._resolve_with_args(model)
            check_condition(condition, mapper.local_table, field="with_loader_criteria")
            criteria.append(option._resolve_where_criteria(mapper))
    return criteria
