"""Run statements on the store's own connections or in the caller's transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import (
    Executable,
    Row,
    Select,
    Text,
    UniqueConstraint,
    bindparam,
    cast,
    exists,
    func,
    inspect,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

from cenote.config import SchemaConfig
from cenote.errors import (
    InvalidInputError,
    StoreConnectionError,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.inspection.hints import (
    APPLICATION_MIGRATIONS,
    error_hint,
    migration_hint,
    row_security_command,
)
from cenote.postgres.ann_index import AnnIndex
from cenote.postgres.connection_parameters import unsupported_argument
from cenote.postgres.driver_errors import (
    database_errors,
    describe,
    driver_error,
    is_lost,
    is_stale_plan,
    redact,
    violated_key,
)
from cenote.postgres.event_loops import (
    cancellations,
    check_event_loop,
    event_loop_error,
    forget_loop,
    is_event_loop_error,
    raise_lost_cancellation,
)
from cenote.postgres.extension import prepare
from cenote.postgres.full_text import languages_of
from cenote.postgres.pg_catalog import pg_class
from cenote.postgres.psycopg_engine import adapted_connection
from cenote.postgres.row_security import NAME
from cenote.postgres.sync_engine import SyncEngine, SyncScopedSession
from cenote.postgres.watchdog import TimeLimit
from cenote.responsive import Pauses, is_driving
from cenote.stores.pgvector.direct import DirectConnections
from cenote.stores.pgvector.direct_psycopg import DirectPsycopgConnections
from cenote.stores.pgvector.sql.statement_cache import compile_options, is_kept
from cenote.validation.arguments import safe_repr

Session: TypeAlias = "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection"
"""Type of ``session=``: a session or connection in the caller's transaction."""

CallerTransaction: TypeAlias = AsyncSession | AsyncConnection
"""A session or connection that `check_session` has accepted."""


class StatementExecutor:
    """Opens connections for a store's statements, and translates errors.

    Args:
        engine: Engine of the store.
        model: Chunk model.
        config: Expected configuration of the model's table.
        user_model: True if the application defines the model.
        operation_timeout: Maximum seconds per operation; unlimited if None.
        on_index: Called with the ANN index that searches use, or None, when the table is checked.

    Attributes:
        table: Chunk table.
        table_checked: True if the table was checked, which the first statement does.
        has_citus: True if the database had the citus extension at that time.
        closed: True if the store is closed.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        model: type[Any],
        config: SchemaConfig,
        *,
        user_model: bool,
        operation_timeout: float | None,
        on_index: Callable[[AnnIndex | None], None],
    ) -> None:
        # Without BEGIN and COMMIT, one statement is one round trip.
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        # Overrides the application's engine: at a stricter level, overlapping upserts would fail.
        self._read_committed = engine.execution_options(isolation_level="READ COMMITTED")
        self._model = model
        self.table = model.__table__
        self._config = config
        self._has_user_model = user_model
        self._is_synchronous = isinstance(engine, SyncEngine)
        self._migrations = migration_hint(
            config, user_model=user_model, synchronous=self._is_synchronous
        )
        self._has_row_security = bool(config.row_security)
        self._operation_timeout = operation_timeout
        self._on_index = on_index
        self._driver = engine.dialect.driver
        self.table_checked = False
        self._checked_at = 0.0
        self.has_citus = False
        direct = DirectPsycopgConnections if self._is_synchronous else DirectConnections
        self._direct = direct(engine, self._migrations)
        self.closed = False

    async def fetch(
        self,
        operation: str,
        session: CallerTransaction | None,
        namespace: str,
        statement: Select[Any],
        parameters: Mapping[str, Any],
        *,
        sets_tenant: bool = False,
    ) -> Sequence[Sequence[Any]]:
        """Run one statement that is executed often, and return its rows.

        The statement is compiled once. Outside a caller's transaction, it runs directly on a
        connection of the driver, in one round trip.

        Args:
            operation: Name of the operation, for messages.
            session: The caller's transaction; None for none.
            namespace: Namespace of the rows.
            statement: The statement. Keep it: its compiled form is found by its identity.
            parameters: Its parameters by name.
            sets_tenant: True if the statement itself sets the tenant of row-level security.
        """
        if not is_kept(statement):
            await asyncio.sleep(0)  # it was just built; to compile it takes as long again
        if self._runs_directly(session, statement, sets_tenant=sets_tenant):
            rows = await self._fetch_directly(operation, statement, parameters)
            if rows is not None:
                return rows
        return await self.execute(
            operation, session, namespace, statement, parameters, sets_tenant=sets_tenant
        )

    async def execute(
        self,
        operation: str,
        session: CallerTransaction | None,
        namespace: str,
        statement: Select[Any],
        parameters: Mapping[str, Any],
        *,
        sets_tenant: bool = False,
    ) -> Sequence[Sequence[Any]]:
        """Run one statement through SQLAlchemy, and return its rows; see :meth:`fetch`."""
        async with self.statement(
            operation, session, namespace, sets_tenant=sets_tenant
        ) as connection:
            result = await run_statement(connection, statement, parameters)
            return await fetch_all(result)

    async def _fetch_directly(
        self, operation: str, statement: Select[Any], parameters: Mapping[str, Any]
    ) -> Sequence[Sequence[Any]] | None:
        # Context managers cost time, so they are entered only if they have something to do.
        limit_time = partial(self._cancel_in_time, operation)
        try:
            if self._operation_timeout is None or is_driving():
                return await self._direct.fetch(statement, parameters, limit_time)
            async with self._limit_time(operation):
                return await self._direct.fetch(statement, parameters, limit_time)
        except Exception:
            with self._translate_errors(operation):
                raise

    def _runs_directly(
        self, session: CallerTransaction | None, statement: Select[Any], *, sets_tenant: bool
    ) -> bool:
        return (
            session is None
            and self.table_checked
            and not self.closed
            and (sets_tenant or not self._has_row_security)
            and self._direct.accepts(statement)
        )

    @asynccontextmanager
    async def transaction(
        self, operation: str, session: CallerTransaction | None, namespace: str, *, savepoint: bool
    ) -> AsyncIterator[AsyncConnection]:
        """Open a connection in a new transaction, or return the connection of the caller's.

        Args:
            operation: Name of the operation, for messages.
            session: The caller's transaction; None for a new one.
            namespace: Namespace of the rows.
            savepoint: Begin a savepoint. Several statements in the caller's transaction need it:
                if one fails before it reaches the server, the others must be rolled back.
        """
        begin = self._read_committed.begin
        async with self._connection(operation, session, namespace, begin) as connection:
            if session is not None:
                await _check_not_autocommit(connection)
            async with connection.begin_nested() if savepoint else nullcontext():
                yield connection

    @asynccontextmanager
    async def statement(
        self,
        operation: str,
        session: CallerTransaction | None,
        namespace: str | None,
        *,
        sets_tenant: bool = False,
    ) -> AsyncIterator[AsyncConnection]:
        """Open a connection for one statement, or return that of the caller's transaction.

        Args:
            operation: Name of the operation, for messages.
            session: The caller's transaction; None for none.
            namespace: Namespace of the rows; None for all.
            sets_tenant: True if the statement itself sets the tenant of row-level security.
        """
        needs_transaction = self._has_row_security and not sets_tenant
        connect = self._read_committed.begin if needs_transaction else self._autocommit.connect
        tenant = None if sets_tenant else namespace
        async with self._connection(operation, session, tenant, connect) as connection:
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
            await session.flush()  # the caller's own errors are raised unchanged
        prepared = self._prepared_connection(operation, session, namespace, connect)
        async with self._limit_time(operation), prepared as connection:
            yield connection

    async def _synchronous_limit(
        self, operation: str, connection: AsyncConnection
    ) -> AbstractContextManager[TimeLimit | None]:
        """Return the time limit of a synchronous connection. Tasks have another one."""
        if self._operation_timeout is None or not is_driving():
            return nullcontext()
        raw = await connection.get_raw_connection()
        return self._cancel_in_time(operation, raw.driver_connection)

    @contextmanager
    def _cancel_in_time(self, operation: str, driver: Any) -> Iterator[TimeLimit | None]:
        """Cancel what a synchronous connection does if it takes too long.

        The wait for a connection is not limited. For this, set ``pool_timeout`` and libpq's
        ``connect_timeout``.
        """
        if self._operation_timeout is None:
            yield None
            return
        limit = TimeLimit(self._operation_timeout, driver)
        try:
            with limit:
                yield limit
        except database_errors() as error:
            is_cancelled = getattr(driver_error(error), "sqlstate", None) == _CANCELED
            if not limit.disconnected and not (limit.expired and is_cancelled):
                raise
            redact(error)
            cause: BaseException = TimeoutError()
            raise self._timeout_error(operation) from cause
        # A write in AUTOCOMMIT that waits for synchronous replication succeeds if it is cancelled.
        if limit.disconnected or (limit.expired and limit.may_cancel):
            raise self._timeout_error(operation) from TimeoutError()

    def _timeout_error(self, operation: str) -> StoreTimeoutError:
        return StoreTimeoutError(
            f"{operation} on table {self.table.fullname!r}: no answer within "
            f"{self._operation_timeout} s"
        )

    @asynccontextmanager
    async def _limit_time(self, operation: str) -> AsyncIterator[None]:
        if self._operation_timeout is None or is_driving():
            yield
            return
        limit = asyncio.timeout(self._operation_timeout)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._timeout_error(operation) from error

    @asynccontextmanager
    async def _prepared_connection(
        self,
        operation: str,
        session: CallerTransaction | None,
        namespace: str | None,
        connect: Callable[[], Any],
    ) -> AsyncIterator[AsyncConnection]:
        with self._translate_errors(operation):
            if session is None:
                check_event_loop(self._autocommit)
                before = cancellations()
                async with connect() as connection:
                    raise_lost_cancellation(before)
                    with await self._synchronous_limit(operation, connection) as limit:
                        await self._prepare(connection)
                        if self._has_row_security and namespace is not None:
                            await connection.execute(_SET_TENANT, {"namespace": namespace})
                        try:
                            yield connection
                        except DBAPIError as error:
                            if self._driver == "psycopg" and is_stale_plan(error):
                                await _replace_connections(connection, error)
                            raise
                        in_transaction = connect == self._read_committed.begin
                        if limit is not None and in_transaction:
                            limit.stop_cancelling()
                            await connection.commit()
                return
            connection = await self._connection_of(session)
            with ExitStack() as limits:
                limits.enter_context(await self._synchronous_limit(operation, connection))
                await self._prepare(connection)
                await self._check_snapshot(connection, operation)
                if not self._has_row_security or namespace is None:
                    yield connection
                    return
                await _check_not_autocommit(connection)
                previous = await _swap_tenant(connection, namespace)
                try:
                    with limits.pop_all():  # it must not cancel what restores the tenant
                        yield connection
                finally:
                    await _restore_tenant(connection, previous)

    async def _connection_of(self, session: CallerTransaction) -> AsyncConnection:
        if isinstance(session, AsyncConnection):
            connection = session
        else:
            connection = await session.connection(
                bind_arguments={"mapper": inspect(self._model), "clause": self.table}
            )
        driver = connection.dialect.driver
        if driver != self._driver:
            raise InvalidInputError(
                f"session must use {self._driver} (postgresql+{self._driver}://...), not {driver}",
                field="session",
            )
        return adapted_connection(connection)

    async def _prepare(self, connection: AsyncConnection) -> None:
        """Check the extension once per connection, and the table once per store."""
        await prepare(connection, migrations=self._migrations)
        if self.table_checked:
            return
        # Needed rarely, and not for importing this package.
        from cenote.inspection import live_table

        query = live_table.shape_query(self._config.table_name, self._config.schema)
        live = (await connection.execute(query)).one_or_none()
        # If the table is missing or is not a chunk table, the statement fails by itself.
        if live is not None and live.column_type is not None:
            await self._check_table(connection, live)
            self._on_index(live_table.search_index_of(live, self.table.name))
            self.has_citus = bool(live.has_citus)
            self._checked_at = time.monotonic()
            self.table_checked = True

    def must_check_table(self) -> bool:
        """Return whether the next statement must check the table, at first and once a minute."""
        if self.table_checked and time.monotonic() - self._checked_at > _CHECK_SECONDS:
            self.forget_table()
        return not self.table_checked

    def forget_table(self) -> None:
        """Make the next statement check the table, because its ANN index may have changed."""
        self.table_checked = False

    async def _check_snapshot(self, connection: AsyncConnection, operation: str) -> None:
        """Check that a caller's transaction does not see the table from before a rewrite.

        `cenote.maintenance.repartition` copies the rows to a new table. A transaction at REPEATABLE
        READ or SERIALIZABLE whose snapshot is older finds the new table, but none of its rows. Its
        snapshot does not contain the table's row in pg_class either. A rewrite that comes later
        waits for the transaction, because the query locks the table. The query is only for
        isolation levels that SQLAlchemy has set: to ask for the level would take as long.
        """
        raw = await connection.get_raw_connection()
        # SQLAlchemy's adapter for asyncpg knows the level; for psycopg, the driver does.
        connection_with_level = (
            raw.driver_connection if self._driver == "psycopg" else raw.dbapi_connection
        )
        level: Any = getattr(connection_with_level, "isolation_level", None)
        level = getattr(level, "name", level)  # psycopg has an enumeration
        options = connection.sync_connection.get_execution_options()  # type: ignore[union-attr]
        if (
            level is None
            or level.lower() not in _SNAPSHOT_LEVELS
            or "schema_translate_map" in options
        ):
            return
        name = connection.dialect.identifier_preparer.format_table(self.table)
        visible = exists().where(pg_class.c.oid == cast(literal(name, Text), REGCLASS))
        no_rows: Select[Any] = select(literal_column("1")).select_from(self.table).limit(0)
        if not await connection.scalar(select(visible).add_columns(exists(no_rows))):
            raise VectorStoreError(
                f"{operation} on table {self.table.fullname!r}: the transaction began before the "
                "table was rewritten into other partitions, and sees none of its rows; roll it "
                "back, and repeat it"
            )

    @asynccontextmanager
    async def tenant(self, session: CallerTransaction, namespace: str) -> AsyncIterator[None]:
        """Make row-level security show a tenant's rows within the block.

        The session is flushed before and after the block.
        """
        if isinstance(session, AsyncSession):
            await session.flush()  # pending objects belong to the previous tenant
        with self._translate_errors("tenant"):
            connection = await self._connection_of(session)
            await _check_not_autocommit(connection)
            previous = await _swap_tenant(connection, namespace)
        try:
            yield
            if isinstance(session, AsyncSession):
                await session.flush()
        finally:
            await _restore_tenant(connection, previous)

    async def _check_table(self, connection: AsyncConnection, live: Row[Any]) -> None:
        from cenote.inspection import live_table
        from cenote.inspection.checks.table import (
            embedding_finding,
            metric_finding,
            text_search_finding,
        )

        subject = "table " + self.table.fullname
        finding = embedding_finding(subject, live.column_type, live.dimensions, self._config)
        finding = finding or metric_finding(subject, live.comment, self._config)
        text_search = languages_of(live.generates_words)
        if finding is None and self._config.languages:
            rows = (await connection.execute(live_table.CONFIGURATIONS)).all()
            names = live_table.configurations_of(rows)
            finding = text_search_finding(subject, text_search, self._config, names)
        if finding is not None:
            if self._has_user_model and text_search is None:
                finding = replace(finding, hint="run " + APPLICATION_MIGRATIONS)
            raise VectorStoreError(str(finding))
        if live.row_security_active and not self._has_row_security:
            raise VectorStoreError(
                f"{subject} has row-level security, which hides all rows from this store; create "
                "the store with row_security=True"
            )
        if self._has_row_security and not live.row_security:
            raise VectorStoreError(
                f"{subject} has no row-level security, but the store has row_security=True; run "
                + row_security_command(self._config, on=True)
            )

    async def check_sees_all_rows(self, connection: AsyncConnection) -> None:
        """Check that row-level security does not hide rows from the role of a connection."""
        if self._has_row_security:
            name = connection.dialect.identifier_preparer.format_table(self.table)
            if await connection.scalar(select(func.row_security_active(literal(name, Text)))):
                raise VectorStoreError(
                    f"row-level security of table {self.table.fullname!r} shows this role one "
                    "namespace at a time; use a role with BYPASSRLS"
                )

    def translated(
        self, operation: str, error: Exception, *, chunk_id: str | None = None
    ) -> VectorStoreError:
        """Return cenote's error for an error of SQLAlchemy or the driver, which is redacted.

        Args:
            operation: Name of the operation.
            error: The error.
            chunk_id: Chunk that caused the error, if that is known.
        """
        cause = driver_error(error)
        state = getattr(cause, "sqlstate", None)
        subject = "" if chunk_id is None else f" for chunk {safe_repr(chunk_id)}"
        message = (
            f"{operation} on table {self.table.fullname!r} failed{subject}: "
            + describe(cause)
            + self._declared_constraint(cause)
            + error_hint(
                state,
                self._config,
                user_model=self._has_user_model,
                driver=self._driver,
                synchronous=self._is_synchronous,
            )
        )
        kind = StoreConnectionError if is_lost(error) else VectorStoreError
        translated = kind(message, sqlstate=state)
        translated._is_stale_plan = is_stale_plan(error)
        redact(error)
        return translated

    def _declared_constraint(self, cause: BaseException) -> str:
        """Return the name of a violated unique constraint in the model.

        Postgres reports the index of the partition, whose name the application has not chosen.
        """
        columns = set(violated_key(cause)[0])
        unique = [c for c in self.table.constraints if isinstance(c, UniqueConstraint)]
        for declared in (*unique, *(index for index in self.table.indexes if index.unique)):
            names = {column.name for column in declared.columns}
            if declared.name is not None and names == columns:
                return f" ({declared.name!r} of the model)"
        return ""

    @contextmanager
    def _translate_errors(self, operation: str) -> Iterator[None]:
        """Translate errors of SQLAlchemy and the driver to errors of cenote.

        Their texts are left out, because they may quote parameters and rows.
        """
        if self.closed:
            raise VectorStoreError("the store is closed")
        try:
            yield
        except RecursionError:  # SQLAlchemy's compiler recurses for each level of a filter
            raise VectorStoreError(
                "the call stack is too deep for this filter: make the call from a less nested "
                "function, or nest the filter less"
            ) from None
        except database_errors() as error:
            raise self.translated(operation, error) from driver_error(error)
        except TypeError as error:
            configuration_error = unsupported_argument(error)
            if configuration_error is None:
                raise
            raise configuration_error from error
        except RuntimeError as error:
            if not is_event_loop_error(error):
                raise
            forget_loop(self._autocommit)
            raise event_loop_error() from error


_BLOCK_ROWS = 500
"""Number of rows that SQLAlchemy converts at a time."""


async def fetch_all(result: Any) -> list[Any]:
    """Return all rows of a buffered result, and let other tasks run in between."""
    rows: list[Any] = []
    pauses = Pauses()
    while block := result.fetchmany(_BLOCK_ROWS):
        rows += block
        await pauses()
    return rows


async def run_statement(
    connection: AsyncConnection, statement: Executable, parameters: Mapping[str, Any]
) -> Any:
    """Execute a statement that `StatementCache` has built, and return its result.

    If it must not be kept, neither SQLAlchemy, nor the driver, nor the server keeps it. The adapter
    of SQLAlchemy for asyncpg, and psycopg, keep the last 100 statements on each connection, of any
    length, and SQLAlchemy has no option for one statement.
    """
    options = compile_options(statement)
    if is_kept(statement):
        return await connection.execute(statement, parameters, execution_options=options)
    await asyncio.sleep(0)  # it was just built; to compile it takes as long again
    raw = await connection.get_raw_connection()
    if connection.dialect.driver == "psycopg":
        keeper, setting = raw.driver_connection, "prepare_threshold"
    else:
        keeper, setting = raw.dbapi_connection, "_prepared_statement_cache"
    before = getattr(keeper, setting)
    setattr(keeper, setting, None)
    try:
        return await connection.execute(statement, parameters, execution_options=options)
    finally:
        setattr(keeper, setting, before)


_CHECK_SECONDS = 60.0
"""Seconds after which a search checks the table again.

If the index was rebuilt as another kind meanwhile, searches up to then were exact, and slow.
"""

_CANCELED = "57014"
"""SQLSTATE query_canceled. Source: PostgreSQL manual, appendix A."""

_SNAPSHOT_LEVELS = ("repeatable_read", "serializable")
"""Isolation levels, as SQLAlchemy's adapter of asyncpg names them, at which all statements of a
transaction see the same snapshot."""

_SET_TENANT = select(func.set_config(NAME, bindparam("namespace", type_=Text), true()))
_SWAP_TENANT = select(func.current_setting(NAME, true())).add_columns(*_SET_TENANT.selected_columns)


async def _swap_tenant(connection: AsyncConnection, namespace: str) -> str:
    """Make row-level security show a tenant's rows.

    Returns:
        The previous tenant; empty if there was none.
    """
    previous = await connection.execute(_SWAP_TENANT, {"namespace": namespace})
    return previous.one()[0] or ""


async def _restore_tenant(connection: AsyncConnection, previous: str) -> None:
    """Restore the previous tenant. The rollback of a failed transaction does it by itself."""
    with suppress(*database_errors()):
        await connection.execute(_SET_TENANT, {"namespace": previous})


def check_session(session: Any) -> CallerTransaction | None:
    """Return a caller's session or connection; None if there is none.

    Raises:
        InvalidInputError: The argument is of another type.
    """
    if isinstance(session, async_scoped_session | SyncScopedSession):
        session = session()
    if not isinstance(session, AsyncSession | AsyncConnection | None):
        raise InvalidInputError(
            f"session must be an AsyncSession or an AsyncConnection, not {type(session).__name__}",
            field="session",
        )
    return session


async def _replace_connections(connection: AsyncConnection, error: DBAPIError) -> None:
    """Make the pool replace all of its connections, as SQLAlchemy does after a lost one.

    psycopg keeps a prepared statement on each connection, also if its table has changed.
    """
    raw = await connection.get_raw_connection()
    connection.sync_engine.pool._invalidate(raw, error, _checkin=False)
    await connection.invalidate()


async def _check_not_autocommit(connection: AsyncConnection) -> None:
    """Check that a caller's connection has a transaction: in AUTOCOMMIT, a batch is not atomic."""
    raw = await connection.get_raw_connection()
    if getattr(raw.dbapi_connection, "autocommit", False):
        raise InvalidInputError(
            "session is in AUTOCOMMIT, so there is no transaction to join; omit session, and the "
            "store begins a transaction",
            field="session",
        )
