"""Where a store's statements run: on its engine's connections, or in the caller's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import (
    Row,
    RowMapping,
    Text,
    any_,
    bindparam,
    delete,
    func,
    inspect,
    literal,
    select,
    true,
)
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
from cenote.cures import APPLICATION_MIGRATIONS, error_hint, migration_hint, row_security_command
from cenote.errors import (
    InvalidInputError,
    StoreConnectionError,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.policies import NAME
from cenote.text_search import languages_of

Session: TypeAlias = "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection"
"""What a caller may join a transaction by."""

CallerTransaction: TypeAlias = AsyncSession | AsyncConnection
"""The same, checked."""


class StatementExecutor:
    """Opens connections for a store's statements, and translates errors.

    Args:
        engine: the store's engine.
        model: the chunk model.
        config: what its table is expected to look like.
        user_model: whether the model is the host's.
        operation_timeout: seconds that an operation may take; any number when None.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        model: type[Any],
        config: SchemaConfig,
        *,
        user_model: bool,
        operation_timeout: float | None,
    ) -> None:
        # One statement is one round trip where no BEGIN and COMMIT go around it.
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        # Whatever the host's engine does: a stricter level would make overlapping upserts fail.
        self._read_committed = engine.execution_options(isolation_level="READ COMMITTED")
        self._model = model
        self.table = model.__table__
        self._config = config
        self._has_user_model = user_model
        self._migrations = migration_hint(config, user_model=user_model)
        self._secured = bool(config.row_security)
        self._timeout = operation_timeout
        self._table_checked = False
        self.closed = False

    @asynccontextmanager
    async def transaction(
        self, operation: str, session: CallerTransaction | None, namespace: str, *, whole: bool
    ) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction: one of its own, or the caller's.

        Args:
            operation: what it is for, for messages.
            session: the caller's.
            namespace: whose rows it is about.
            whole: several statements are to come: in the caller's transaction they get a savepoint,
                since one that fails on this side of the wire would leave the others behind.
        """
        begin = self._read_committed.begin
        async with self._connection(operation, session, namespace, begin) as connection:
            if session is not None:
                await _refuse_autocommit(connection)
            async with connection.begin_nested() if whole else nullcontext():
                yield connection

    @asynccontextmanager
    async def statement(
        self, operation: str, session: CallerTransaction | None, namespace: str | None
    ) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement, which is a transaction by itself or in the caller's."""
        connect = self._read_committed.begin if self._secured else self._autocommit.connect
        async with self._connection(operation, session, namespace, connect) as connection:
            yield connection

    @asynccontextmanager
    async def _connection(
        self,
        operation: str,
        session: CallerTransaction | None,
        namespace: str | None,
        connect: Callable[[], Any],
    ) -> AsyncIterator[AsyncConnection]:
        if isinstance(session, AsyncSession):
            await session.flush()  # what fails here is the caller's, and raised as it is
        connected = self._connected(operation, session, namespace, connect)
        async with self._in_time(operation), connected as connection:
            yield connection

    @asynccontextmanager
    async def _in_time(self, operation: str) -> AsyncIterator[None]:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StoreTimeoutError(
                f"{operation} on table {self.table.fullname!r}: no answer within {self._timeout} s"
            ) from error

    @asynccontextmanager
    async def _connected(
        self,
        operation: str,
        session: CallerTransaction | None,
        namespace: str | None,
        connect: Callable[[], Any],
    ) -> AsyncIterator[AsyncConnection]:
        with self._own_errors(operation):
            if session is None:
                connections.check_event_loop(self._autocommit)
                async with connect() as connection:
                    await self._prepare(connection)
                    if self._secured and namespace is not None:
                        await connection.execute(_SET_TENANT, {"namespace": namespace})
                    yield connection
                return
            connection = await self._joined(session)
            await self._prepare(connection)
            if not self._secured or namespace is None:
                yield connection
                return
            await _refuse_autocommit(connection)
            before = await _exchange_tenant(connection, namespace)
            try:
                yield connection
            finally:
                await _give_back_tenant(connection, before)

    async def _joined(self, session: CallerTransaction) -> AsyncConnection:
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
        await connections.prepare(connection, migrations=self._migrations)
        if self._table_checked:
            return
        # Needed once for a store, and not to import this package.
        from cenote import catalog

        query = catalog.shape_query(self._config.table_name, self._config.schema)
        live = (await connection.execute(query)).one_or_none()
        # A missing table, or one of others, is for the statement itself to find.
        if live is not None and live.column_type is not None:
            await self._refuse_other_shape(connection, live)
            self._table_checked = True

    @asynccontextmanager
    async def tenant(self, session: CallerTransaction, namespace: str) -> AsyncIterator[None]:
        """Row-level security shows a tenant's rows inside; at the end, the session is flushed."""
        if isinstance(session, AsyncSession):
            await session.flush()  # for whom it was before
        with self._own_errors("tenant"):
            connection = await self._joined(session)
            await _refuse_autocommit(connection)
            before = await _exchange_tenant(connection, namespace)
        try:
            yield
            if isinstance(session, AsyncSession):
                await session.flush()
        finally:
            await _give_back_tenant(connection, before)

    async def _refuse_other_shape(self, connection: AsyncConnection, live: Row[Any]) -> None:
        from cenote import catalog, drift

        subject = "table " + self.table.fullname
        finding = drift.embedding_finding(subject, live.column_type, live.dimensions, self._config)
        text_search = languages_of(live.generates_words)
        if finding is None and self._config.languages:
            rows = (await connection.execute(catalog.CONFIGURATIONS)).all()
            names = catalog.configurations_of(rows)
            finding = drift.text_search_finding(subject, text_search, self._config, names)
        if finding is not None:
            if self._has_user_model and text_search is None:
                finding = replace(finding, hint="run " + APPLICATION_MIGRATIONS)
            raise VectorStoreError(str(finding))
        if live.row_security_active and not self._secured:
            raise VectorStoreError(
                f"{subject} has row-level security, which hides all rows from this store; make it "
                "with row_security=True"
            )
        if self._secured and not live.row_security:
            raise VectorStoreError(
                f"{subject} has no row-level security, and row_security=True; run "
                + row_security_command(self._config, on=True)
            )

    async def refuse_hidden_rows(self, connection: AsyncConnection) -> None:
        """Refuse what is about all tenants to a role that row-level security restricts to one."""
        if self._secured:
            name = connection.dialect.identifier_preparer.format_table(self.table)
            if await connection.scalar(select(func.row_security_active(literal(name, Text)))):
                raise VectorStoreError(
                    f"row-level security of table {self.table.fullname!r} shows this role one "
                    "namespace at a time; use a role with BYPASSRLS"
                )

    @contextmanager
    def _own_errors(self, operation: str) -> Iterator[None]:
        """Turn what SQLAlchemy and the driver raise into errors of cenote's tree.

        Their texts are left out: they may quote parameters and rows.
        """
        if self.closed:
            raise VectorStoreError("the store is closed")
        try:
            yield
        except RecursionError:  # of SQLAlchemy's compiler, which calls itself for each level
            raise VectorStoreError(
                "too little is left of the call stack: call from less deep, or with a filter that "
                "is nested less"
            ) from None
        except connections.database_errors() as error:
            cause = connections.driver_error(error)
            state = getattr(cause, "sqlstate", None)
            message = (
                f"{operation} on table {self.table.fullname!r} failed: "
                + connections.describe(cause)
                + error_hint(state, self._config, user_model=self._has_user_model)
            )
            kind = StoreConnectionError if connections.is_lost(error) else VectorStoreError
            connections.redact(error)
            raise kind(message, sqlstate=state) from cause
        except RuntimeError as error:
            if not connections.is_event_loop_error(error):
                raise
            connections.forget_loop(self._autocommit)
            raise connections.event_loop_error() from error


_SET_TENANT = select(func.set_config(NAME, bindparam("namespace", type_=Text), true()))
_EXCHANGE_TENANT = select(func.current_setting(NAME, true())).add_columns(
    *_SET_TENANT.selected_columns
)


async def _exchange_tenant(connection: AsyncConnection, namespace: str) -> str:
    """Have row-level security show a tenant's rows; returns whose it showed before."""
    found = await connection.execute(_EXCHANGE_TENANT, {"namespace": namespace})
    return found.one()[0] or ""


async def _give_back_tenant(connection: AsyncConnection, before: str) -> None:
    """Undo that. A transaction that has failed does it by itself, and takes no statement."""
    with suppress(*connections.database_errors()):
        await connection.execute(_SET_TENANT, {"namespace": before})


def check_session(session: Any) -> CallerTransaction | None:
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
    session: CallerTransaction | None, model: type[Any], namespace: str, ids: Sequence[str]
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


def holds_any(session: CallerTransaction | None, model: type[Any], namespace: str) -> bool:
    """Whether the session holds objects of a namespace's rows."""
    return bool(_held(session, model, namespace, None))


async def remove(
    session: CallerTransaction | None, model: type[Any], namespace: str, ids: Sequence[str] | None
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
    session: CallerTransaction | None,
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
