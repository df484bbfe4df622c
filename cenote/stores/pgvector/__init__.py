"""The store for production: pgvector in the application's own Postgres, through SQLAlchemy.

`PgVectorStore` opens and closes here; what it does is in the modules of this package, by kind. SQL,
sessions and columns are in the modules beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, Self, overload

from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from cenote import config as defaults
from cenote import connections
from cenote.config import SchemaConfig
from cenote.cures import APPLICATION_MIGRATIONS
from cenote.errors import InvalidInputError, MigrationError
from cenote.mapping import config_from_model, model_for_config
from cenote.orm import ChunkRow
from cenote.stores.columns import UserColumns
from cenote.stores.pgvector.base import Model
from cenote.stores.pgvector.loading import Loading
from cenote.stores.pgvector.reading import Reading
from cenote.stores.pgvector.searching import Searching
from cenote.stores.search import DEFAULT_EF_SEARCH
from cenote.stores.sessions import Session, StatementExecutor, check_session
from cenote.stores.statements import ReadStatements, SearchStatements, WriteStatements
from cenote.telemetry import NamespaceInTelemetry, Telemetry
from cenote.types import ColumnType
from cenote.validation import (
    check_embedding_model,
    check_namespace,
    check_operation_timeout,
)

if TYPE_CHECKING:
    from cenote.drift import Finding

__all__ = ["PgVectorStore"]


class PgVectorStore(Loading[Model], Reading[Model], Searching[Model]):
    """A `VectorStore` in Postgres with pgvector.

    Searches take the ANN index for large sets and are exact for small ones (see
    `cenote.stores.search`); ties at the cut are settled by id wherever they are exact. The table
    must exist: `apply_migrations`, or ``alembic upgrade head``.

    **Failures.** An operation on a connection of the store's own is tried again, up to three times,
    if the server has undone it (a deadlock, a serialization failure), and once if the table was
    changed under a prepared statement, or if the connection was lost and doing it twice does no
    harm: reading, `upsert`, `delete` and `delete_namespace`. Whatever else fails is an error of
    `cenote.errors`.

    **Your transaction.** Every method but `bulk_load` takes ``session=``: an `AsyncSession` or an
    `AsyncConnection` on asyncpg. The method then flushes what is pending in the session (what fails
    there is raised as it is), runs in its transaction or savepoint, and never commits, rolls back
    or closes
    anything: that is yours. What it wrote is seen by others when you commit, and gone when you
    roll back. As ever in Postgres, an error of the server leaves a transaction in which only a
    rollback, to a savepoint at least, goes on. The isolation level is yours too; above READ
    COMMITTED a write may fail with `sqlstate` 40001 and is to be tried again. A session is not for
    several tasks at once.

    Objects of the model that the session holds are kept in step. Those that an upsert wrote get
    what is stored, with one query and only if there are any; their relationships stay loaded unless
    their foreign keys changed. Those that were deleted are deleted in the session, too. What other
    objects have loaded of them, such as a document's list of passages, is left as it is.

    Args:
        engine: an `AsyncEngine` on asyncpg, or an `async_sessionmaker` bound to one. Calls without
            ``session=`` borrow connections from its pool, and none is closed.
        dimensions: the length of every vector.
        model: a chunk model of yours (see `cenote.ChunkMixin`), from which the store takes all that
            shapes the table; its migrations are yours. Instead of `dimensions` and of all settings
            up to `row_security`.
        table_name: the chunk table. One table holds the vectors of one embedding model.
        schema: its schema; the connection's default one when None.
        column_type: ``"vector"`` or ``"halfvec"``.
        hnsw_m, hnsw_ef_construction, partitions, extension_schema: what `apply_migrations`
            creates; see `SchemaConfig`.
        text_search: the text search configuration of full text, or several, for `search_text` and
            `search_hybrid`; see `SchemaConfig`.
        row_security: the table has row-level security, for which each call names its tenant to the
            server first; see `tenant`.
        hnsw_ef_search: candidates that the ANN index considers at least, 1 to 1,000: more find
            more and take longer.
        embedding_model: refuse chunks that another model embedded.
        operation_timeout: seconds that an operation may take, waiting for a connection of the pool
            included; any number when None. A bulk load's is that of each batch.
        namespaces_in_telemetry: ``"hashed"`` or ``"plain"``; see `cenote.telemetry`.

    Raises:
        ConfigurationError: a setting cannot work.
    """

    @overload
    def __init__(
        self: PgVectorStore[ChunkRow],
        engine: AsyncEngine | async_sessionmaker[AsyncSession],
        dimensions: int,
        *,
        table_name: str = ...,
        schema: str | None = ...,
        column_type: ColumnType = ...,
        hnsw_m: int = ...,
        hnsw_ef_construction: int = ...,
        hnsw_ef_search: int = ...,
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
        engine: AsyncEngine | async_sessionmaker[AsyncSession],
        *,
        model: type[Model],
        hnsw_ef_search: int = ...,
        embedding_model: str | None = ...,
        operation_timeout: float | None = ...,
        namespaces_in_telemetry: NamespaceInTelemetry = ...,
    ) -> None: ...

    def __init__(
        self,
        engine: AsyncEngine | async_sessionmaker[AsyncSession],
        dimensions: int | None = None,
        *,
        model: type[Any] | None = None,
        table_name: str = defaults.DEFAULT_TABLE_NAME,
        schema: str | None = None,
        column_type: ColumnType = "vector",
        hnsw_m: int = defaults.DEFAULT_HNSW_M,
        hnsw_ef_construction: int = defaults.DEFAULT_HNSW_EF_CONSTRUCTION,
        hnsw_ef_search: int = DEFAULT_EF_SEARCH,
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
        self._engine = connections.asyncpg_engine(engine)
        self._translated = "schema_translate_map" in self._engine.get_execution_options()
        self._owns_engine = False
        self._embedding_model = embedding_model
        self._indexing_later = 0
        self._telemetry = Telemetry(self._model.__table__.fullname, namespaces_in_telemetry)
        self._user_columns = UserColumns(self._model, self._engine.dialect)
        check_embedding_model(embedding_model)
        check_operation_timeout(operation_timeout)
        self._operation_timeout = operation_timeout
        self._executor = self._build_executor()
        table = self._model.__table__
        self._reads = ReadStatements(table)
        self._writes = WriteStatements(table, self._config.column_type, self._user_columns)
        self._searches = SearchStatements(
            self._model, self._config, hnsw_ef_search, schemas_translated=self._translated
        )

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
        """A store with an engine of its own, which `close` disposes of.

        Waits for a server that is not there yet, starting up, full or slow; fails at once where
        waiting cannot help, as with a wrong password or an unknown database.

        Args:
            dsn: ``postgresql://``, ``postgres://`` or ``postgresql+asyncpg://``; for a Unix socket
                ``postgresql:///database?host=/folder``.
            dimensions: the length of every vector; not with ``model=``.
            min_size: connections to open now, at most `max_size`.
            max_size: the most connections; no overflow.
            startup_retries: how often to try again.
            startup_backoff_seconds: the first wait; it doubles each time, less a random part.
            timeout: seconds that one attempt may take.
            **store_kwargs: passed to the constructor. For ``model=Passage``, type checkers want
                ``PgVectorStore[Passage].connect(...)``.

        Raises:
            ConfigurationError: an argument cannot work.
            StoreConnectionError: the server refused, or could not be reached.
        """
        connections.check_pool_arguments(
            min_size, max_size, startup_retries, startup_backoff_seconds, timeout
        )
        engine = connections.create_engine(dsn, pool_size=max_size, timeout=timeout)
        try:
            store: Self = cls(engine, dimensions, **store_kwargs)  # type: ignore[arg-type]
            store._owns_engine = True
            await connections.open_pool(
                engine, min_size, startup_retries, startup_backoff_seconds, dsn=dsn
            )
        except BaseException:
            await engine.dispose()
            raise
        return store

    async def close(self) -> None:
        """Dispose of the engine that `connect` opened; an engine of the caller's stays open.

        A store that `connect` opened cannot be used afterwards.
        """
        if self._owns_engine:
            self._executor.closed = True
            # Those of another event loop can only be let go.
            await self._engine.dispose(close=not connections.belongs_to_other_loop(self._engine))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        table = self._model.__table__.fullname
        return f"PgVectorStore(table={table!r}, dimensions={self._config.dimensions})"

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for queries of the caller's own."""
        return self._engine

    @property
    def model(self) -> type[Model]:
        """The mapped class of the table: yours, or `ChunkRow` for the table of the default name."""
        return self._model

    @property
    def dimensions(self) -> int:
        return self._config.dimensions

    @property
    def config(self) -> SchemaConfig:
        """What the table is expected to look like."""
        return self._config

    @asynccontextmanager
    async def tenant(self, session: Session, namespace: str) -> AsyncIterator[None]:
        """Show a tenant's rows to statements of your own, on a table with row-level security.

        ::

            async with store.tenant(session, "acme"):
                rows = await session.scalars(select(Passage))

        Outside of it a query sees no rows, an UPDATE or DELETE finds none, and an INSERT is an
        error. What is pending in the session is flushed at the begin and at the end. The methods of
        the store need it not, and may be called inside, for this tenant or another. End savepoints
        inside that you begin inside: rolling one back later brings the setting back.

        Args:
            session: an `AsyncSession` or `AsyncConnection` in a transaction, which must be open
                until the end: the tenant is a setting of the transaction.
            namespace: the tenant.

        Raises:
            InvalidInputError: an argument cannot work.
            VectorStoreError: the server refused.
        """
        check_namespace(namespace)
        transaction = check_session(session)
        if transaction is None:
            raise InvalidInputError("session is needed here", field="session")
        async with self._executor.tenant(transaction, namespace):
            yield

    def with_own_pool(self) -> Self:
        """The same store on another pool of connections, for another event loop.

        The engine is made by the same URL and arguments; :attr:`engine` is the caller's to dispose
        of. Listeners on the other engine's pool do not come along.
        """
        pool = self._engine.sync_engine.pool.recreate()
        options = self._engine.get_execution_options()
        other = copy(self)
        other._owns_engine = False
        other._engine = create_async_engine(self._engine.url, pool=pool, execution_options=options)
        other._executor = other._build_executor()
        return other

    def _build_executor(self) -> StatementExecutor:
        return StatementExecutor(
            self._engine,
            self._model,
            self._config,
            user_model=self._has_user_model,
            operation_timeout=self._operation_timeout,
        )

    async def apply_migrations(self) -> None:
        """Bring the table to the newest revision; see `cenote.schema.upgrade`.

        Raises:
            MigrationError: the database refused, and the transaction was rolled back; or the table
                is a model's of your own, which your own migrations make.
        """
        if self._has_user_model:
            raise MigrationError(
                f"table {self._model.__table__.fullname!r} is that of your model "
                f"{self._model.__name__}, and made by {APPLICATION_MIGRATIONS}"
            )
        from cenote import schema  # imports alembic, which a running application need not

        await schema.upgrade(self._engine, self._config)

    async def check_schema(self) -> list[Finding]:
        """What differs between the database and what this store expects; see `schema.check`.

        Raises:
            MigrationError: the database refused.
        """
        from cenote import schema

        return await schema.check(self._engine, self._config, user_model=self._has_user_model)
