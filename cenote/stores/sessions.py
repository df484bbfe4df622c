"""Where a store's statements run: on its engine's connections, or in the caller's transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import RowMapping, Text, any_, delete, inspect, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
)
from sqlalchemy.orm.attributes import set_committed_value

from cenote import connections
from cenote.config import SchemaConfig
from cenote.cures import HOSTS_COMMANDS, store_cure
from cenote.errors import InvalidInputError, StoreConnectionError, VectorStoreError
from cenote.text_search import languages_of

Session: TypeAlias = "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection"
"""What a caller may join a transaction by."""

Joined: TypeAlias = AsyncSession | AsyncConnection
"""The same, checked."""


class Connections:
    """Opens connections for a store's statements, and translates errors.

    Args:
        engine: the store's engine.
        model: the chunk model.
        config: what its table is expected to look like.
        hosts_own: whether the model is the host's.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        model: type[Any],
        config: SchemaConfig,
        *,
        hosts_own: bool,
    ) -> None:
        # One statement is one round trip where no BEGIN and COMMIT go around it.
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        # Whatever the host's engine does: a stricter level would make overlapping upserts fail.
        self._read_committed = engine.execution_options(isolation_level="READ COMMITTED")
        self._model = model
        self.table = model.__table__
        self._config = config
        self._hosts_own = hosts_own
        self._table_checked = False
        self.closed = False

    @asynccontextmanager
    async def transaction(
        self, operation: str, session: Joined | None, *, whole: bool
    ) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction: one of its own, or the caller's.

        Args:
            operation: what it is for, for messages.
            session: the caller's.
            whole: several statements are to come: in the caller's transaction they get a savepoint,
                since one that fails on this side of the wire would leave the others behind.
        """
        async with self._connection(operation, session, self._read_committed.begin) as connection:
            if session is not None:
                await _refuse_autocommit(connection)
            async with connection.begin_nested() if whole else nullcontext():
                yield connection

    @asynccontextmanager
    async def single_statement(
        self, operation: str, session: Joined | None
    ) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement, which is a transaction by itself or in the caller's."""
        async with self._connection(operation, session, self._autocommit.connect) as connection:
            yield connection

    @asynccontextmanager
    async def _connection(
        self, operation: str, session: Joined | None, connect: Callable[[], Any]
    ) -> AsyncIterator[AsyncConnection]:
        if isinstance(session, AsyncSession):
            await session.flush()  # what fails here is the caller's, and raised as it is
        with self._own_errors(operation):
            if session is None:
                async with connect() as connection:
                    await self._prepare(connection)
                    yield connection
            else:
                connection = await self._joined(session)
                await self._prepare(connection)
                yield connection

    async def _joined(self, session: Joined) -> AsyncConnection:
        if isinstance(session, AsyncConnection):
            connection = session
        else:
            connection = await session.connection(
                bind_arguments={"mapper": inspect(self._model), "clause": self.table}
            )
        if connection.dialect.driver != "asyncpg":
            raise InvalidInputError(
                f"session must use asyncpg (postgresql+asyncpg://...), not "
                f"{connection.dialect.driver}",
                field="session",
            )
        return connection

    async def _prepare(self, connection: AsyncConnection) -> None:
        """Look at the extension once for each connection, and at the table once for the store."""
        await connections.prepare(connection)
        if self._table_checked:
            return
        # Needed once for a store, and not to import this package.
        from cenote import catalog, drift

        query = catalog.shape_query(self._config.table_name, self._config.schema)
        live = (await connection.execute(query)).one_or_none()
        # A missing table, or one of others, is for the statement itself to find.
        if live is not None and live.column_type is not None:
            subject = "table " + self.table.fullname
            finding = drift.embedding_finding(
                subject, live.column_type, live.dimensions, self._config
            )
            text_search = languages_of(live.generates_words)
            if finding is None and self._config.languages:
                rows = (await connection.execute(catalog.CONFIGURATIONS)).all()
                names = catalog.configurations_of(rows)
                finding = drift.text_search_finding(subject, text_search, self._config, names)
            if finding is not None:
                if self._hosts_own and text_search is None:
                    finding = replace(finding, cure="run " + HOSTS_COMMANDS)
                raise VectorStoreError(str(finding))
            self._table_checked = True

    @contextmanager
    def _own_errors(self, operation: str) -> Iterator[None]:
        """Turn what SQLAlchemy and the driver raise into errors of cenote's tree.

        Their texts are left out: they may quote parameters and rows.
        """
        if self.closed:
            raise VectorStoreError("the store is closed")
        try:
            yield
        except connections.database_errors() as error:
            cause = connections.driver_error(error)
            state = getattr(cause, "sqlstate", None)
            message = (
                f"{operation} on table {self.table.fullname!r} failed: "
                + connections.describe(cause)
                + store_cure(state, self._config, hosts_own=self._hosts_own)
            )
            kind = StoreConnectionError if connections.is_lost(error) else VectorStoreError
            raise kind(message, sqlstate=state) from cause


def check_session(session: Any) -> Joined | None:
    """The session or connection itself, or None.

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(session, async_scoped_session):
        session = session()
    if not isinstance(session, AsyncSession | AsyncConnection | None):
        raise InvalidInputError(
            f"session must be an AsyncSession or an AsyncConnection, not {type(session).__name__}",
            field="session",
        )
    return session


async def _refuse_autocommit(connection: AsyncConnection) -> None:
    """An upsert of several statements would not be whole."""
    raw = await connection.get_raw_connection()
    if getattr(raw.dbapi_connection, "autocommit", False):
        raise InvalidInputError(
            "session is in AUTOCOMMIT: there is no transaction to join; leave it out, and the "
            "store makes one",
            field="session",
        )


# -- objects in the caller's session ---------------------------------------------------------------

_PARAMETERS = 10_000  # of the 32,767 that a statement may have


async def refresh(
    session: Joined | None, model: type[Any], namespace: str, ids: Sequence[str]
) -> None:
    """Load anew what the session holds of some rows: the columns of each that are loaded."""
    held = _held(session, model, namespace, set(ids))
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
    for found in (await session.execute(query)).mappings():
        _set(held[found["id"]], found)


def _set(row: Any, found: RowMapping) -> None:
    """Set the loaded columns of an object to what is stored, and expire what depends on them."""
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


def holds_any(session: Joined | None, model: type[Any], namespace: str) -> bool:
    """Whether the session holds objects of a namespace's rows."""
    return bool(_held(session, model, namespace, None))


async def remove(
    session: Joined | None, model: type[Any], namespace: str, ids: Sequence[str] | None
) -> int:
    """Delete rows of which the session holds objects, so that it knows; all of None's.

    Returns:
        How many there were.
    """
    held = [*_held(session, model, namespace, None if ids is None else set(ids))]
    for start in range(0, len(held), _PARAMETERS):
        part = model.id.in_(held[start : start + _PARAMETERS])
        statement = delete(model).where(model.namespace == namespace, part)
        assert isinstance(session, AsyncSession)
        await session.execute(statement, execution_options={"synchronize_session": "fetch"})
    return len(held)


def _held(
    session: Joined | None,
    model: type[Any],
    namespace: str,
    ids: set[str] | None,
) -> dict[str, Any]:
    """The objects that a session holds of some rows, all of the namespace for None; by id."""
    if not isinstance(session, AsyncSession):
        return {}
    held = {}
    for row in session.identity_map.values():
        if isinstance(row, model):
            row_namespace, row_id = inspect(row).identity
            if row_namespace == namespace and (ids is None or row_id in ids):
                held[row_id] = row
    return held
