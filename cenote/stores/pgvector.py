"""The store for production: pgvector in the application's own Postgres, through SQLAlchemy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from cenote import catalog, connections, drift, filters, validation
from cenote import config as defaults
from cenote.config import SchemaConfig
from cenote.cures import upgrade_command
from cenote.errors import StoreConnectionError, VectorStoreError
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.orm import chunk_table
from cenote.settings import given_in_code
from cenote.sqltypes import to_wire
from cenote.stores.base import VectorStore
from cenote.stores.statements import DEFAULT_EF_SEARCH, ChunkStatements
from cenote.types import ColumnType, Vector

PAGE_SIZE = 500
"""Chunks that `get_all_chunks` reads at a time."""

UPSERT_ROWS = 1000
"""The most rows that one INSERT of an upsert writes."""

UPSERT_BYTES = 8 * 2**20
"""About the most that one such INSERT carries, unless a single chunk is larger."""


class PgVectorStore(VectorStore):
    """A `VectorStore` in Postgres with pgvector.

    Searches take the ANN index for large sets and are exact for small ones (see
    `cenote.stores.statements`); ties at the cut are settled by id wherever they are exact. The
    table must exist: `apply_migrations`, or ``alembic upgrade head``.

    Args:
        engine: an `AsyncEngine` on asyncpg, or an `async_sessionmaker` bound to one. The store
            borrows connections from its pool and closes none of them.
        dimensions: the length of every vector.
        table_name: the chunk table. One table holds the vectors of one embedding model.
        schema: its schema; the connection's default one when None.
        column_type: ``"vector"`` or ``"halfvec"``.
        hnsw_m, hnsw_ef_construction, partitions, extension_schema: what `apply_migrations`
            creates; see `SchemaConfig`.
        hnsw_ef_search: candidates that the ANN index considers at least, 1 to 1,000: more find
            more and take longer.
        embedding_model: refuse chunks that another model embedded.

    Raises:
        ConfigurationError: a setting cannot work.
    """

    def __init__(
        self,
        engine: AsyncEngine | async_sessionmaker[AsyncSession],
        dimensions: int,
        *,
        table_name: str = defaults.DEFAULT_TABLE_NAME,
        schema: str | None = None,
        column_type: ColumnType = "vector",
        hnsw_m: int = defaults.DEFAULT_HNSW_M,
        hnsw_ef_construction: int = defaults.DEFAULT_HNSW_EF_CONSTRUCTION,
        hnsw_ef_search: int = DEFAULT_EF_SEARCH,
        partitions: int | None = None,
        extension_schema: str | None = None,
        embedding_model: str | None = None,
    ) -> None:
        self._config = SchemaConfig(
            dimensions=dimensions,
            column_type=column_type,
            table_name=table_name,
            schema=schema,
            hnsw_m=hnsw_m,
            hnsw_ef_construction=hnsw_ef_construction,
            partitions=partitions,
            extension_schema=extension_schema,
        )
        self._engine = connections.asyncpg_engine(engine)
        # One statement is one round trip where no BEGIN and COMMIT go around it.
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # Whatever the host's engine does: a stricter level would make overlapping upserts fail.
        self._read_committed = self._engine.execution_options(isolation_level="READ COMMITTED")
        self._owns_engine = False
        self._closed = False
        self._table_checked = False
        self._embedding_model = embedding_model
        self._statements = ChunkStatements(chunk_table(self._config), column_type, hnsw_ef_search)

    # -- opening and closing

    @classmethod
    async def connect(
        cls,
        dsn: str,
        dimensions: int,
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
            dimensions: the length of every vector.
            min_size: connections to open now, at most `max_size`.
            max_size: the most connections; no overflow.
            startup_retries: how often to try again.
            startup_backoff_seconds: the first wait; it doubles each time, less a random part.
            timeout: seconds that one attempt may take.
            **store_kwargs: passed to the constructor.

        Raises:
            ConfigurationError: an argument cannot work.
            StoreConnectionError: the server refused, or could not be reached.
        """
        connections.check_pool_arguments(
            min_size, max_size, startup_retries, startup_backoff_seconds, timeout
        )
        engine = connections.create_engine(dsn, pool_size=max_size, timeout=timeout)
        store = cls(engine, dimensions, **store_kwargs)
        store._owns_engine = True
        try:
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
            self._closed = True
            await self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        config = self._config
        return (
            f"PgVectorStore(table={chunk_table(config).fullname!r}, dimensions={config.dimensions})"
        )

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for queries of the caller's own."""
        return self._engine

    @property
    def config(self) -> SchemaConfig:
        """What the table is expected to look like."""
        return self._config

    async def apply_migrations(self) -> None:
        """Bring the table to the newest revision; see `cenote.schema.upgrade`.

        Raises:
            MigrationError: the database refused; the transaction was rolled back.
        """
        from cenote import schema  # imports alembic, which a running application need not

        await schema.upgrade(self._engine, self._config)

    async def check_schema(self) -> list[drift.Finding]:
        """What differs between the database and what this store expects; see `schema.check`.

        Raises:
            MigrationError: the database refused.
        """
        from cenote import schema

        return await schema.check(self._engine, self._config)

    # -- writing

    async def upsert(self, embedded_chunks: list[EmbeddedChunk], namespace: str) -> None:
        validation.check_namespace(namespace)
        batch = validation.check_batch(
            embedded_chunks,
            self._config.dimensions,
            self._config.column_type,
            self._embedding_model,
        )
        if not batch.chunks:
            return
        async with self._transaction("upsert") as connection:
            for part in _parts(batch):
                await connection.execute(
                    self._statements.upsert,
                    {"namespace": namespace, **_columns(part, self._config.column_type)},
                )

    async def delete(self, chunk_ids: list[str], namespace: str) -> None:
        validation.check_namespace(namespace)
        ids = validation.check_ids(chunk_ids)
        if not ids:
            return
        async with self._single_statement("delete") as connection:
            await connection.execute(self._statements.delete, {"namespace": namespace, "ids": ids})

    async def delete_namespace(self, namespace: str) -> None:
        validation.check_namespace(namespace)
        async with self._single_statement("delete_namespace") as connection:
            await connection.execute(self._statements.delete_namespace, {"namespace": namespace})

    # -- reading

    async def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: dict[str, Any] | None = None,
        *,
        exact: bool = False,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector; see `VectorStore.search`.

        Args:
            exact: compare with every matching chunk, without the ANN index.
        """
        validation.check_namespace(namespace)
        validation.check_limit(limit)
        query = validation.check_query_vector(
            query_vector, self._config.dimensions, self._config.column_type
        )
        filter = validation.check_filter(filter)
        if not query.any():
            return []
        statement = self._statements.search(filters.filter_shape(filter), limit, exact=exact)
        parameters = {
            "namespace": namespace,
            "query": to_wire(query.reshape(1, -1), self._config.column_type)[0],
            **self._statements.search_parameters(limit),
            **filters.filter_parameters(filter),
        }
        async with self._single_statement("search") as connection:
            rows = (await connection.execute(statement, parameters)).all()
        return [RetrievalResult(chunk=_chunk(row), score=row.score) for row in rows]

    def get_all_chunks(
        self, namespace: str, filter: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        validation.check_namespace(namespace)
        return self._chunks(namespace, validation.check_filter(filter))

    async def _chunks(self, namespace: str, filter: dict[str, Any]) -> AsyncIterator[Chunk]:
        shape = filters.filter_shape(filter)
        parameters = {
            "namespace": namespace,
            "page_size": PAGE_SIZE,
            **filters.filter_parameters(filter),
        }
        statement = self._statements.page(shape, first=True)
        while True:
            async with self._single_statement("get_all_chunks") as connection:
                rows = (await connection.execute(statement, parameters)).all()
            for row in rows:
                yield _chunk(row)
            if len(rows) < PAGE_SIZE:
                return
            statement = self._statements.page(shape, first=False)
            parameters["after"] = rows[-1].id

    # -- connections

    @asynccontextmanager
    async def _transaction(self, operation: str) -> AsyncIterator[AsyncConnection]:
        with self._own_errors(operation):
            async with self._read_committed.begin() as connection:
                await self._prepare(connection)
                yield connection

    @asynccontextmanager
    async def _single_statement(self, operation: str) -> AsyncIterator[AsyncConnection]:
        with self._own_errors(operation):
            async with self._autocommit.connect() as connection:
                await self._prepare(connection)
                yield connection

    async def _prepare(self, connection: AsyncConnection) -> None:
        """Look at the extension once for each connection, and at the table once for the store."""
        await connections.prepare(connection)
        if not self._table_checked:
            query = catalog.shape_query(self._config.table_name, self._config.schema)
            live = (await connection.execute(query)).one_or_none()
            # A missing table, or one of others, is for the statement itself to find.
            if live is not None and live.column_type is not None:
                finding = drift.embedding_finding(
                    "table " + chunk_table(self._config).fullname,
                    live.column_type,
                    live.dimensions,
                    self._config,
                )
                if finding is not None:
                    raise VectorStoreError(str(finding))
                self._table_checked = True

    @contextmanager
    def _own_errors(self, operation: str) -> Iterator[None]:
        """Turn what SQLAlchemy and the driver raise into errors of cenote's tree.

        Their texts are left out: they may quote parameters and rows.
        """
        if self._closed:
            raise VectorStoreError("the store is closed")
        try:
            yield
        except (SQLAlchemyError, OSError, *connections.DRIVER_ERRORS) as error:
            cause = connections.driver_error(error)
            state = getattr(cause, "sqlstate", None)
            message = (
                f"{operation} on table {chunk_table(self._config).fullname!r} failed: "
                + connections.describe(cause)
                + self._cure(state)
            )
            kind = StoreConnectionError if connections.is_lost(error) else VectorStoreError
            raise kind(message, sqlstate=state) from cause

    def _cure(self, state: str | None) -> str:
        """What to do about an error of the server."""
        match state:
            case "42P01":
                return (
                    "; the table does not exist: run await store.apply_migrations(), or "
                    + upgrade_command(given_in_code(self._config))
                )
            case "42703":
                return "; the table was not made by cenote's revisions: choose another table_name"
            case "22003":
                return "; positions in an adopted table are of 32 bits until cenote repartition"
            case "42501":
                return "; the role lacks the privilege: GRANT it on the table"
        return ""


def _parts(batch: validation.Batch) -> Iterator[validation.Batch]:
    """The batch in pieces of a size that neither server nor driver minds."""
    start = size = 0
    for index, chunk in enumerate(batch.chunks):
        row = len(chunk.content) + len(batch.metadata[index]) + batch.embeddings[index].nbytes
        if index > start and (size + row > UPSERT_BYTES or index - start == UPSERT_ROWS):
            yield batch[start:index]
            start, size = index, 0
        size += row
    yield batch[start:]


def _columns(batch: validation.Batch, column_type: ColumnType) -> dict[str, list[Any]]:
    """What the upsert statement binds: a list for each column."""
    chunks = batch.chunks
    return {
        "id_list": [chunk.id for chunk in chunks],
        "document_id_list": [chunk.document_id for chunk in chunks],
        "content_list": [chunk.content for chunk in chunks],
        "position_list": [chunk.position for chunk in chunks],
        "metadata_list": batch.metadata,
        "content_hash_list": [chunk.content_hash for chunk in chunks],
        "embedding_list": to_wire(batch.embeddings, column_type),
        "embedding_model_list": batch.models,
    }


def _chunk(row: Row[Any]) -> Chunk:
    return Chunk(
        id=row.id,
        document_id=row.document_id,
        content=row.content,
        position=row.position,
        metadata=json.loads(row.metadata),
        content_hash=row.content_hash,
    )
