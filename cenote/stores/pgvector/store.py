"""The store for production: pgvector in the application's own Postgres, through SQLAlchemy.

This module opens and closes a `PgVectorStore`. The modules beside it contain its operations, and
`cenote.stores.pgvector.sql` contains the statements.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from copy import copy
from typing import TYPE_CHECKING, Any, Self, overload

from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from cenote import config as defaults
from cenote.config import SchemaConfig
from cenote.errors import InvalidInputError, MigrationError, StoreConnectionError
from cenote.inspection.citus import is_distributed
from cenote.inspection.hints import APPLICATION_MIGRATIONS
from cenote.inspection.recall_comment import parse_comment
from cenote.orm.factory import config_from_model, model_for_config
from cenote.orm.mixin import ChunkRow
from cenote.orm.user_columns import UserColumns
from cenote.postgres.ann_index import AnnIndex
from cenote.postgres.driver_errors import database_errors
from cenote.postgres.dsn import CITUS_SETTINGS, create_engine
from cenote.postgres.event_loops import belongs_to_other_loop
from cenote.postgres.pools import async_engine, check_pool_arguments, open_pool
from cenote.postgres.psycopg_engine import adapted_engine
from cenote.stores.pgvector.base import Model
from cenote.stores.pgvector.executor import Session, StatementExecutor, check_session
from cenote.stores.pgvector.loading import Loading
from cenote.stores.pgvector.measuring import Measuring
from cenote.stores.pgvector.partition_searches import PartitionSearches
from cenote.stores.pgvector.reading import Reading
from cenote.stores.pgvector.searching import Searching
from cenote.stores.pgvector.sql.read_statements import ReadStatements
from cenote.stores.pgvector.sql.search_statements import SearchStatements
from cenote.stores.pgvector.sql.statement_cache import StatementCache
from cenote.stores.pgvector.sql.write_statements import WriteStatements
from cenote.telemetry import NamespaceInTelemetry, Telemetry
from cenote.types import ColumnType, IndexKind, Metric
from cenote.validation.arguments import (
    check_embedding_model,
    check_namespace,
    check_operation_timeout,
)

if TYPE_CHECKING:
    from cenote.inspection.checks.findings import Finding

__all__ = ["PgVectorStore"]

_PROTOCOL_VIOLATION = "08P01"
"""SQLSTATE with which PgBouncer rejects an unknown setting at the start of a connection."""

_logger = logging.getLogger(__name__)


class PgVectorStore(Loading[Model], Measuring[Model], Reading[Model], Searching[Model]):
    """A `VectorStore` in Postgres with pgvector.

    A search compares up to 1,000 matching chunks exactly and uses the ANN index for larger sets.
    Where a search is exact, the id decides ties at the cut. The table must exist: run
    `apply_migrations` or ``alembic upgrade head``.

    **Failures.** The store retries an operation on a connection of its own up to three times if the
    server rolled it back (deadlock, serialization failure). It retries once if the table of a
    prepared statement has changed, or if the connection was lost and a second run does no harm:
    reads, `upsert`, `delete` and `delete_namespace`. Other failures raise an error of
    `cenote.errors`.

    **Deadlocks.** Calls of the store do not deadlock with one another, because each locks and
    inserts rows in ascending order of id. Your transaction may still deadlock with another one if
    it contains several calls, or locks rows by itself.

    **Your transaction.** Methods that read, search or write chunks accept ``session=``, except
    `bulk_load`, `measure_recall` and `search_statement`, whose statement you execute. Pass an
    `AsyncSession` or an `AsyncConnection` on the engine's driver. The method flushes the session
    (errors of the flush are raised unchanged), runs in its transaction or savepoint, and never
    commits, rolls back or closes anything. Others see what it wrote when you commit; it is gone
    when you roll back. As always in Postgres, after a server error a transaction accepts nothing
    but a rollback, at least to a savepoint. The isolation level is yours, too: above READ
    COMMITTED, a write may fail with `sqlstate` 40001, and you must retry the transaction. Do not
    use a session from several tasks at once.

    The store keeps objects of the model in your session up to date. If it upserts their rows, it
    reloads them, with one query and only if there are any; their relationships stay loaded unless
    their foreign keys changed. If it deletes their rows, they are deleted in the session as well.
    It does not change collections that other objects have loaded, such as a document's list of
    passages.

    Args:
        engine: `AsyncEngine` on asyncpg or psycopg 3, or an `async_sessionmaker` bound to one.
            Calls without ``session=`` borrow connections from its pool. The store does not close
            it. With an `AsyncConnection`, every call joins its transaction; see `in_session`.
        dimensions: Number of dimensions of every vector.
        model: Chunk model of your application (see `cenote.ChunkMixin`), which determines
            everything about the table; your own migrations create it. Replaces `dimensions` and all
            settings up to `row_security`.
        table_name: Name of the chunk table. One table holds the vectors of one embedding model.
        schema: Schema of the table; the connection's default schema if None.
        column_type: ``"vector"`` or ``"halfvec"``.
        metric: ``"cosine"``, ``"inner_product"`` or ``"l2"``; the table must have the same.
        index: Kind of the ANN index for `apply_migrations`; see `SchemaConfig`. Searches use the
            kind that the table has, and notice within a minute if it was rebuilt as another kind.
        hnsw_m, hnsw_ef_construction, partitions, extension_schema: Settings for
            `apply_migrations`; see `SchemaConfig`.
        text_search: One or more text search configurations for `search_text` and `search_hybrid`;
            see `SchemaConfig`.
        row_security: True if the table has row-level security. Each call then first tells the
            server its tenant; see `tenant`.
        hnsw_ef_search: Minimum number of candidates that the ANN index considers, 1 to 1,000. A
            larger number finds more and takes longer. If None, the store uses the number that
            `apply_recall` has stored in the index, which its first operation reads, or else 150. In
            these two cases, a search with a filter considers two thirds more. Each search considers
            at least its limit and 40 more, but not more than 1,000.
        rerank: Minimum number of candidates that an index of kind ``"bit"`` finds, 1 to 10,000. A
            search compares them again with their stored vectors. It is raised to the limit and 40
            spare rows, and rounded up to 1, 2 or 5 times a power of ten. If None, the store uses
            the number that `apply_recall` has stored in the index, or else 200.
        embedding_model: Reject chunks with the embedding of another model.
        operation_timeout: Maximum seconds for each attempt of an operation, including the wait for
            a connection of the pool; unlimited if None. In a bulk load, it applies to each batch.
        namespaces_in_telemetry: ``"hashed"`` or ``"plain"``; see `cenote.telemetry`.

    Raises:
        ConfigurationError: A setting is invalid.
    """

    @overload
    def __init__(
        self: PgVectorStore[ChunkRow],
        engine: AsyncEngine | AsyncConnection | async_sessionmaker[AsyncSession],
        dimensions: int,
        *,
        table_name: str = ...,
        schema: str | None = ...,
        column_type: ColumnType = ...,
        metric: Metric = ...,
        index: IndexKind | None = ...,
        hnsw_m: int = ...,
        hnsw_ef_construction: int = ...,
        hnsw_ef_search: int | None = ...,
        rerank: int | None = ...,
        partitions: int | None = ...,
        extension_schema: str | None = ...,
        text_search: str | None = ...,
        row_security: bool | None = ...,
        embedding_model: str | None = ...,
        operation_timeout: float | None = ...,
        namespaces_in_telemetry: NamespaceInTelemetry = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        engine: AsyncEngine | AsyncConnection | async_sessionmaker[AsyncSession],
        *,
        model: type[Model],
        hnsw_ef_search: int | None = ...,
        rerank: int | None = ...,
        embedding_model: str | None = ...,
        operation_timeout: float | None = ...,
        namespaces_in_telemetry: NamespaceInTelemetry = ...,
    ) -> None: ...

    def __init__(
        self,
        engine: AsyncEngine | AsyncConnection | async_sessionmaker[AsyncSession],
        dimensions: int | None = None,
        *,
        model: type[Any] | None = None,
        table_name: str = defaults.DEFAULT_TABLE_NAME,
        schema: str | None = None,
        column_type: ColumnType = "vector",
        metric: Metric = "cosine",
        index: IndexKind | None = None,
        hnsw_m: int = defaults.DEFAULT_HNSW_M,
        hnsw_ef_construction: int = defaults.DEFAULT_HNSW_EF_CONSTRUCTION,
        hnsw_ef_search: int | None = None,
        rerank: int | None = None,
        partitions: int | None = None,
        extension_schema: str | None = None,
        text_search: str | None = None,
        row_security: bool | None = None,
        embedding_model: str | None = None,
        operation_timeout: float | None = None,
        namespaces_in_telemetry: NamespaceInTelemetry = "hashed",
    ) -> None:
        given: dict[str, Any] = {
            "dimensions": dimensions,
            "column_type": column_type,
            "metric": metric,
            "index": index,
            "table_name": table_name,
            "schema": schema,
            "hnsw_m": hnsw_m,
            "hnsw_ef_construction": hnsw_ef_construction,
            "partitions": partitions,
            "extension_schema": extension_schema,
            "text_search": text_search,
            "row_security": row_security,
        }
        self._has_user_model = model is not None
        self._config = SchemaConfig(**given) if model is None else config_from_model(model, given)
        self._model = model_for_config(self._config) if model is None else model
        self._application_engine = async_engine(engine)
        self._engine = adapted_engine(self._application_engine)
        self._session = engine if isinstance(engine, AsyncConnection) else None
        self._translates_schemas = "schema_translate_map" in self._engine.get_execution_options()
        self._owns_engine = False
        self._embedding_model = embedding_model
        self._deferrals = 0
        self._telemetry = Telemetry(self._model.__table__.fullname, namespaces_in_telemetry)
        self._user_columns = UserColumns(self._model, self._engine.dialect)
        check_embedding_model(embedding_model)
        check_operation_timeout(operation_timeout)
        self._operation_timeout = operation_timeout
        table = self._model.__table__
        cache = StatementCache()
        self._reads = ReadStatements(table, cache)
        self._writes = WriteStatements(table, self._config.column_type, self._user_columns, cache)
        self._searches = SearchStatements(
            self._model,
            self._config,
            hnsw_ef_search,
            rerank,
            cache,
            schemas_translated=self._translates_schemas,
        )
        self._executor = self._build_executor()
        self._partition_searches = self._build_partition_searches()

    # -- opening and closing

    @classmethod
    async def connect(
        cls,
        dsn: str,
        dimensions: int | None = None,
        *,
        min_size: int = 1,
        max_size: int = 10,
        startup_retries: int = 5,
        startup_backoff_seconds: float = 1.0,
        timeout: float = 10.0,
        **store_kwargs: Any,
    ) -> Self:
        """Create a store with an engine of its own, which `close` disposes of.

        Retry while the server is not there yet, starts up, is full or slow. Fail at once if waiting
        cannot help, for example after a wrong password or an unknown database.

        If Citus has distributed the table already, the connections start with the setting
        ``citus.override_table_visibility=off``, unless a pooler rejects it. Without the setting,
        the first operation on each connection takes up to a second longer.

        Args:
            dsn: Connection string with ``postgresql://``, ``postgres://`` or
                ``postgresql+asyncpg://``; for a Unix socket
                ``postgresql:///database?host=/folder``.
            dimensions: Number of dimensions of every vector; omit it with ``model=``.
            min_size: Number of connections to open now, at most `max_size`. With 0, `connect` does
                not find out whether the table is distributed.
            max_size: Maximum number of connections; there is no overflow.
            startup_retries: Maximum number of retries.
            startup_backoff_seconds: First wait. It doubles each time, minus a random part.
            timeout: Maximum seconds for one attempt to connect.
            **store_kwargs: Arguments of the constructor. With ``model=Passage``, write
                ``PgVectorStore[Passage].connect(...)`` for type checkers.

        Raises:
            ConfigurationError: An argument is invalid.
            StoreConnectionError: The server rejected the connection, or cannot be reached.
        """
        check_pool_arguments(min_size, max_size, startup_retries, startup_backoff_seconds, timeout)

        async def open_store(*, distributed: bool) -> Self:
            engine = create_engine(
                dsn, pool_size=max_size, timeout=timeout, distributed=distributed
            )
            try:
                store: Self = cls(engine, dimensions, **store_kwargs)  # type: ignore[arg-type]
                store._owns_engine = True
                await open_pool(engine, min_size, startup_retries, startup_backoff_seconds, dsn=dsn)
            except BaseException:
                await engine.dispose()
                raise
            return store

        store: Self = await open_store(distributed=False)
        replacement: Self | None = None
        try:
            if min_size > 0 and await store._is_distributed():
                replacement = await open_store(distributed=True)
        except StoreConnectionError as error:
            if error.sqlstate != _PROTOCOL_VIOLATION:
                await store.close()
                raise
            _logger.info("a pooler rejects the settings %s", ", ".join(CITUS_SETTINGS))
        except BaseException:
            await store.close()
            raise
        if replacement is None:
            return store
        await store.close()
        return replacement

    async def _is_distributed(self) -> bool:
        """Return whether Citus has distributed the table, as far as the server answers."""
        name, schema = self._config.table_name, self._config.schema
        with suppress(*database_errors()):
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                return await connection.run_sync(is_distributed, name, schema)
        return False

    async def close(self) -> None:
        """Dispose of the engine that `connect` created. The caller's engine stays open.

        A store created by `connect` cannot be used afterwards.
        """
        if self._owns_engine:
            self._executor.closed = True
            # Connections of another event loop cannot be closed, only dropped.
            await self._engine.dispose(close=not belongs_to_other_loop(self._engine))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        table = self._model.__table__.fullname
        return f"PgVectorStore(table={table!r}, dimensions={self._config.dimensions})"

    @property
    def engine(self) -> AsyncEngine:
        """Engine of the store, for your own queries."""
        return self._application_engine

    @property
    def model(self) -> type[Model]:
        """Mapped class of the table: your model, or `ChunkRow` for the default table name."""
        return self._model

    @property
    def dimensions(self) -> int:
        return self._config.dimensions

    @property
    def metric(self) -> Metric:
        return self._config.metric

    @property
    def config(self) -> SchemaConfig:
        """Expected configuration of the table."""
        return self._config

    def in_session(self, session: Session) -> Self:
        """Return a store whose every call joins a session, as if it had ``session=``.

        ::

            async with async_session() as session, session.begin():
                session.add(Document(id="a"))
                await index(document, store.in_session(session))

        What ``session=`` does holds for every call: see "Your transaction" in `PgVectorStore`. An
        explicit ``session=`` takes precedence. Methods that have transactions of their own raise an
        error: `bulk_load`, `deferred_ann_index`, `measure_recall`, `apply_recall`,
        `apply_migrations`, `check_schema` and `with_own_pool`. To create the bound store costs
        nothing, and `close` does nothing to it.

        Args:
            session: `AsyncSession`, `async_scoped_session` or `AsyncConnection`.

        Raises:
            InvalidInputError: `session` is of another type.
        """
        if check_session(session) is None:
            raise InvalidInputError("session is required", field="session")
        bound = copy(self)
        bound._session = session
        bound._owns_engine = False
        return bound

    @asynccontextmanager
    async def tenant(self, session: Session, namespace: str) -> AsyncIterator[None]:
        """Make a tenant's rows visible to your own statements, on a table with row-level security.

        ::

            async with store.tenant(session, "acme"):
                rows = await session.scalars(select(Passage))

        Outside the block a query returns no rows, an UPDATE or DELETE changes none, and an INSERT
        raises an error. The session is flushed at the beginning and at the end. Store methods do
        not need the block; you may call them inside it, for this tenant or another. End a savepoint
        within the block in which it begins: rolling it back later would restore the setting.

        Args:
            session: `AsyncSession` or `AsyncConnection` in a transaction, which must stay open
                until the block ends, because the tenant is a setting of the transaction.
            namespace: Tenant whose rows are visible.

        Raises:
            InvalidInputError: An argument is invalid.
            VectorStoreError: The server raised an error.
        """
        check_namespace(namespace)
        transaction = check_session(session)
        if transaction is None:
            raise InvalidInputError("session is required", field="session")
        async with self._executor.tenant(transaction, namespace):
            yield

    def with_own_pool(self) -> Self:
        """Return a copy of the store with its own connection pool, for another event loop.

        Its engine has the same URL and arguments, but not the listeners of the pool. Dispose of
        :attr:`engine` yourself.
        """
        self._reject_if_bound("with_own_pool", "call it on the store that is not bound")
        pool = self._engine.sync_engine.pool.recreate()
        options = self._engine.get_execution_options()
        other = copy(self)
        other._owns_engine = False
        engine = create_async_engine(self._engine.url, pool=pool, execution_options=options)
        other._application_engine, other._engine = engine, adapted_engine(engine)
        other._executor = other._build_executor()
        other._partition_searches = other._build_partition_searches()
        return other

    def _build_executor(self) -> StatementExecutor:
        return StatementExecutor(
            self._engine,
            self._model,
            self._config,
            user_model=self._has_user_model,
            operation_timeout=self._operation_timeout,
            on_index=self._set_index,
        )

    def _set_index(self, index: AnnIndex | None) -> None:
        """Adapt searches to the ANN index of the table. Without one, they are exact."""
        if index is None:
            self._searches.set_index("none", None)
        else:
            self._searches.set_index(index.kind, parse_comment(index.comment))

    def _build_partition_searches(self) -> PartitionSearches:
        return PartitionSearches(
            self._executor, self._searches, row_security=bool(self._config.row_security)
        )

    async def apply_migrations(self) -> None:
        """Bring the table to the newest revision; see `cenote.schema.upgrade`.

        Raises:
            MigrationError: The database raised an error, and the transaction was rolled back; or
                your own migrations create the table, because the store has your model.
        """
        self._reject_if_bound("apply_migrations", "call it on the store that is not bound")
        if self._has_user_model:
            raise MigrationError(
                f"table {self._model.__table__.fullname!r} belongs to your model "
                f"{self._model.__name__}; create it with {APPLICATION_MIGRATIONS}"
            )
        # This imports alembic, which a running application does not need.
        from cenote.migrate.api import upgrade

        await upgrade(self._engine, self._config)

    async def check_schema(self) -> list[Finding]:
        """Return the differences between the database and the store's settings.

        See `cenote.schema.check`.

        Raises:
            MigrationError: The database raised an error.
        """
        self._reject_if_bound("check_schema", "call it on the store that is not bound")
        from cenote.migrate.api import check

        return await check(self._engine, self._config, user_model=self._has_user_model)
