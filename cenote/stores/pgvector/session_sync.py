"""Keep objects in an ORM session consistent with rows that the store writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Executable, RowMapping, Text, any_, delete, inspect, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from cenote.stores.pgvector.executor import CallerTransaction

# -- objects in the caller's session ---------------------------------------------------------------

_MAX_IDS = 10_000  # a statement may have 32,767 parameters


async def refresh(
    session: CallerTransaction | None, model: type[Any], namespace: str, ids: Sequence[str]
) -> None:
    """Reload the loaded columns of the objects in the session that represent certain rows."""
    held = _objects_held(session, model, namespace, set(ids))
    if not isinstance(session, AsyncSession) or not held:
        return
    table = model.__table__
    columns = {
        attribute.key: attribute.columns[0]
        for mapper in inspect(model).self_and_descendants
        for attribute in mapper.column_attrs
        if attribute.columns[0].table is table
        and any(attribute.key in inspect(row).dict for row in held.values())
    }
    columns["id"] = table.c.id
    ids_held = literal(list(held), ARRAY(Text))
    query = select(*(column.label(name) for name, column in columns.items()))
    query = query.where(table.c.namespace == namespace, table.c.id == any_(ids_held))
    for found in (await _execute(session, query)).mappings():
        _set(held[found["id"]], found)


def _set(row: Any, found: RowMapping) -> None:
    """Set an object's loaded columns to the stored values, and expire dependent attributes."""
    state = inspect(row)
    mapper = state.mapper
    outdated = [
        attribute.key
        for attribute in mapper.relationships
        for column in attribute.local_columns
        if _differs(state.dict, found, mapper.get_property_by_column(column).key)
    ]
    outdated += [attribute.key for attribute in mapper.column_attrs if attribute.key not in found]
    for name in found.keys() & state.dict.keys():
        set_committed_value(row, name, found[name])
    if loaded := [name for name in outdated if name in state.dict]:
        state.session.expire(row, loaded)


def _differs(loaded: Mapping[str, Any], found: RowMapping, name: str) -> bool:
    return name in loaded and name in found and bool(loaded[name] != found[name])


def holds_any(
    session: CallerTransaction | None,
    model: type[Any],
    namespace: str,
    ids: Sequence[str] | None = None,
) -> bool:
    """Return whether the session holds objects for rows of a namespace, or for some of its ids."""
    return bool(_objects_held(session, model, namespace, None if ids is None else set(ids)))


async def remove(
    session: CallerTransaction | None, model: type[Any], namespace: str, ids: Sequence[str]
) -> int:
    """Delete rows for which the session holds objects, through the session.

    The session then knows that these objects are deleted.

    Args:
        session: The caller's transaction.
        model: Chunk model.
        namespace: Namespace of the rows.
        ids: Ids of the rows.

    Returns:
        The number of deleted rows.
    """
    held = [*_objects_held(session, model, namespace, set(ids))]
    for start in range(0, len(held), _MAX_IDS):
        some_ids = model.id.in_(held[start : start + _MAX_IDS])
        statement = delete(model).where(model.namespace == namespace, some_ids)
        assert isinstance(session, AsyncSession)
        await _execute(session, statement, {"synchronize_session": "fetch"})
    return len(held)


async def _execute(
    session: AsyncSession, statement: Executable, options: Mapping[str, Any] | None = None
) -> Any:
    """Execute a statement in a session, whose own method SQLModel deprecates."""

    def execute(synchronous: Session) -> Any:
        return Session.execute(synchronous, statement, execution_options=options or {})

    return await session.run_sync(execute)


def _objects_held(
    session: CallerTransaction | None,
    model: type[Any],
    namespace: str,
    ids: set[str] | None,
) -> dict[str, Any]:
    """Return the objects that a session holds for rows of a namespace, by id.

    If `ids` is None, return the objects for all its rows.
    """
    if not isinstance(session, AsyncSession):
        return {}
    held = {}
    for row in session.identity_map.values():
        if isinstance(row, model):
            row_namespace, row_id = inspect(row).identity
            if row_namespace == namespace and (ids is None or row_id in ids):
                held[row_id] = row
    return held
