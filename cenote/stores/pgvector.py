"""The store for production: pgvector in the application's own Postgres, through SQLAlchemy.

One class, and long for its docstrings: SQL, sessions and columns are in the modules beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, overload

from sqlalchemy import ColumnElement, Select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from typing_extensions import TypeVar

from cenote import config as defaults
from cenote import connections, filters, validation
from cenote.config import SchemaConfig
from cenote.cures import HOSTS_COMMANDS
from cenote.errors import MigrationError
from cenote.mapping import config_of, model_of
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.orm import ChunkMixin, ChunkRow
from cenote.progress import Report
from cenote.sqltypes import to_wire
from cenote.stores import bulk, rows, sessions
from cenote.stores.base import VectorStore
from cenote.stores.columns import OwnColumns
from cenote.stores.conditions import checked_condition
from cenote.stores.search import DEFAULT_EF_SEARCH
from cenote.stores.sessions import Connections, Joined, Session, check_session
from cenote.stores.statements import ChunkStatements
from cenote.types import ColumnType, Float32Array, Vector

if TYPE_CHECKING:
    from cenote.drift import Finding

PAGE_SIZE = 1000
"""Chunks that `get_all_chunks` reads at a time."""

Model = TypeVar("Model", bound=ChunkMixin, default=ChunkRow)
"""The mapped class of a store."""


class PgVectorStore(VectorStore, Generic[Model]):
    """A `VectorStore` in Postgres with pgvector.

    Searches take the ANN index for large sets and are exact for small ones (see
    `cenote.stores.search`); ties at the cut are settled by id wherever they are exact. The table
    must exist: `apply_migrations`, or ``alembic upgrade head``.

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
            up to `extension_schema`.
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
        embedding_model: str | None = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        engine: AsyncEngine | async_sessionmaker[AsyncSession],
        *,
        model: type[Model],
        hnsw_ef_search: int = ...,
        embedding_model: str | None = ...,
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
        embedding_model: str | None = None,
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
        }
        self._hosts_own = model is not None
        self._config = SchemaConfig(**given) if model is None else config_of(model, given)
        self._model = model_of(self._config) if model is None else model
        self._engine = connections.asyncpg_engine(engine)
        self._translated = "schema_translate_map" in self._engine.get_execution_options()
        self._owns_engine = False
        self._embedding_model = embedding_model
        self._indexing_later = 0
        self._own_columns = OwnColumns(self._model, self._engine.dialect)
        self._connections = Connections(
            self._engine, self._model, self._config, hosts_own=self._hosts_own
        )
        self._statements = ChunkStatements(
            self._model,
            self._config,
            self._own_columns,
            hnsw_ef_search,
            schemas_translated=self._translated,
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
            self._connections.closed = True
            await self._engine.dispose()

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
    def config(self) -> SchemaConfig:
        """What the table is expected to look like."""
        return self._config

    async def apply_migrations(self) -> None:
        """Bring the table to the newest revision; see `cenote.schema.upgrade`.

        Raises:
            MigrationError: the database refused, and the transaction was rolled back; or the table
                is a model's of your own, which your own migrations make.
        """
        if self._hosts_own:
            raise MigrationError(
                f"table {self._model.__table__.fullname!r} is that of your model "
                f"{self._model.__name__}, and made by {HOSTS_COMMANDS}"
            )
        from cenote import schema  # imports alembic, which a running application need not

        await schema.upgrade(self._engine, self._config)

    async def check_schema(self) -> list[Finding]:
        """What differs between the database and what this store expects; see `schema.check`.

        Raises:
            MigrationError: the database refused.
        """
        from cenote import schema

        return await schema.check(self._engine, self._config, hosts_own=self._hosts_own)

    # -- writing

    async def upsert(
        self,
        embedded_chunks: list[EmbeddedChunk],
        namespace: str,
        *,
        session: Session | None = None,
    ) -> None:
        """Write chunks; see `VectorStore.upsert`.

        `EmbeddedChunk.columns` gives values for columns of your own; all chunks of a call name the
        same ones. A column that they do not name gets its default in a row that is new, and keeps
        its value in a row that is there, unless it has an ``onupdate``.

        Args:
            session: the transaction to join; see above. Not one in AUTOCOMMIT.
        """
        validation.check_namespace(namespace)
        await self._upsert(embedded_chunks, namespace, check_session(session))

    async def _upsert(
        self,
        embedded_chunks: list[EmbeddedChunk],
        namespace: str,
        joined: Joined | None = None,
        partition: str | None = None,
    ) -> None:
        batch = self._checked_batch(embedded_chunks)
        if not batch.chunks:
            return
        names = self._own_columns.given(batch)
        parts = list(rows.parts(batch))
        of_own = [self._own_columns.parameters(names, part) for part in parts]
        whole = joined is not None and len(parts) > 1
        async with self._connections.transaction("upsert", joined, whole=whole) as connection:
            for part, own in zip(parts, of_own, strict=True):
                parameters = rows.parameters(part, self._config.column_type)
                parameters |= {"namespace": namespace, **own}
                await connection.execute(self._statements.upsert(names, partition), parameters)
            ids = [chunk.id for chunk in batch.chunks]
            await sessions.refresh(joined, self._model, namespace, ids)

    async def bulk_load(
        self,
        embedded_chunks: bulk.Stream,
        namespace: str,
        *,
        ann_index: bulk.AnnIndexDuringLoad = "auto",
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """Write any number of chunks, and build the ANN index after them where that may be.

        The chunks are taken as they are needed, and written in batches of up to 1,000 of which each
        is committed: memory stays flat, and what a crash leaves is whole batches. Load the same
        chunks again to go on: those that are stored already are not rewritten. Of an id that
        appears twice the last one wins.

        Others may search and write meanwhile. Searches are complete throughout, and slow in large
        namespaces while there is no ANN index. It has connections and transactions of its own
        (there is no ``session=``), and waits for yours: call it with none open. While the index is
        built, migrations of the database wait.

        Args:
            embedded_chunks: an iterable or an async iterable, of any length.
            namespace: where to write.
            ann_index: ``"auto"``: if the whole table is empty and belongs to the role, drop the
                index, and build it after the rows; if it is missing, as after a crash, build it
                then. If only the namespace's partition is empty, set that aside, and put it back
                with its rows and its part of the index at the end, when others see them all at
                once (not where the table has foreign keys, triggers or the like). Otherwise, or if
                others hold the table, insert into the live index. ``"rebuild"``: drop and build the
                index, whoever may be using it. ``"keep"``: leave it as it is, there or not. For
                many namespaces, see :meth:`without_ann_index`.
            memory, workers: of the build, see `cenote.indexes.reindex`.
            progress: takes a `LoadProgress` after each batch, and an `IndexProgress` twice a second
                while the index is built; what it raises is logged. `cenote.progress.progress_bar()`
                makes one that draws a bar.

        Returns:
            How many chunks there were.

        Raises:
            DimensionMismatchError, InvalidInputError: as `VectorStore.upsert` does, of a chunk
                whose batch was not written.
            VectorStoreError: a batch could not be written.
            MigrationError: the index was not dropped or not built.

            Batches before an error are stored. What a crash leaves undone, an index that is missing
            or a partition that is set aside, the next bulk load of the namespace mends, or
            `cenote reindex`.
        """
        validation.check_namespace(namespace)
        bulk.check_stream(embedded_chunks)
        bulk.check_ann_index(ann_index)
        if ann_index == "auto" and (self._indexing_later or self._translated):
            ann_index = "keep"
        async with bulk.batches(embedded_chunks) as batches:
            first: list[EmbeddedChunk] = await anext(batches, [])
            self._checked_batch(first)  # before an index is dropped for nothing
            await self._look_at_table("bulk_load")
            build = bulk.Build(self._engine, self._config, memory, workers, progress)
            async with build.after_load(namespace, ann_index) as partition:
                return await bulk.load(
                    partial(self._upsert, namespace=namespace, partition=partition),
                    bulk.with_first(batches, first),
                    progress,
                )

    @asynccontextmanager
    async def without_ann_index(
        self,
        *,
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> AsyncIterator[None]:
        """Drop the ANN index, whoever may be using it, and build it at the end of the block.

        For loading many namespaces::

            async with store.without_ann_index():
                for tenant, chunks in collections:
                    await store.bulk_load(chunks, tenant)

        Searches are complete meanwhile, and slow in large namespaces. If the block raises, the
        index stays missing: enter it again to go on, or build it by `cenote reindex`. As for
        `bulk_load`, have no transaction of your own open at its begin and end. One store does this;
        others that load into the table at the same time pass ``ann_index="keep"``.

        Args:
            memory, workers, progress: of the build, see `cenote.indexes.reindex`.

        Raises:
            MigrationError: the index was not dropped or not built.
        """
        await self._look_at_table("without_ann_index")
        build = bulk.Build(self._engine, self._config, memory, workers, progress)
        await build.drop()
        with build.telling_what_is_left(None):
            self._indexing_later += 1
            try:
                yield
            finally:
                self._indexing_later -= 1
            if not self._indexing_later:  # of several blocks at once the last one builds
                await build.now()

    async def _look_at_table(self, operation: str) -> None:
        """Refuse a closed store, and a table of another shape."""
        async with self._connections.single_statement(operation, None):
            pass

    def _checked_batch(self, embedded_chunks: list[EmbeddedChunk]) -> validation.Batch:
        return validation.check_batch(
            embedded_chunks,
            self._config.dimensions,
            self._config.column_type,
            self._embedding_model,
        )

    async def delete(
        self, chunk_ids: list[str], namespace: str, *, session: Session | None = None
    ) -> None:
        """Remove chunks; see `VectorStore.delete`.

        Args:
            session: the transaction to join; see above.
        """
        validation.check_namespace(namespace)
        joined = check_session(session)
        ids = validation.check_ids(chunk_ids)
        if not ids:
            return
        async with self._connections.single_statement("delete", joined) as connection:
            await sessions.remove(joined, self._model, namespace, ids)
            await connection.execute(self._statements.delete, {"namespace": namespace, "ids": ids})

    async def delete_namespace(self, namespace: str, *, session: Session | None = None) -> None:
        """Remove every chunk of a namespace; see `VectorStore.delete_namespace`.

        Args:
            session: the transaction to join; see above.
        """
        validation.check_namespace(namespace)
        joined = check_session(session)
        async with self._connections.single_statement("delete_namespace", joined) as connection:
            await sessions.remove(joined, self._model, namespace, None)
            await connection.execute(self._statements.delete_namespace, {"namespace": namespace})

    # -- reading

    async def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: dict[str, Any] | None = None,
        *,
        where: ColumnElement[bool] | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        session: Session | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector; see `VectorStore.search`.

        Args:
            where: a SQL condition that chunks must meet besides, before the limit is counted; see
                :meth:`search_statement`.
            exact: compare with every matching chunk, without the ANN index.
            ef_search: for this call, instead of the store's `hnsw_ef_search`.
            session: the transaction to join; see above.
        """
        query, filter, condition = self._checked(
            query_vector, namespace, limit, filter, where, ef_search
        )
        joined = check_session(session)
        if not query.any():
            return []
        shape = filters.filter_shape(filter)
        parameters: dict[str, Any] = {
            "namespace": namespace,
            "query": to_wire(query.reshape(1, -1), self._config.column_type)[0],
            **self._statements.search_parameters(limit, ef_search),
            **filters.filter_parameters(filter),
        }
        if condition is None:
            statement = self._statements.search(shape, limit, exact=exact)
        else:
            statement = self._statements.search_where(
                condition, shape, limit, parameters, exact=exact
            )
            parameters = {}
        async with self._connections.single_statement("search", joined) as connection:
            found = (await connection.execute(statement, parameters)).all()
        return [rows.result(row) for row in found]

    def search_statement(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: dict[str, Any] | None = None,
        *,
        where: ColumnElement[bool] | None = None,
        exact: bool = False,
        ef_search: int | None = None,
    ) -> Select[Model, float]:
        """A search as a statement: rows of (mapped chunk, score), to go on with and to execute.

        Join it, give it options and order it like any select::

            statement = (
                store.search_statement(vector, "acme", where=Passage.lang == "en")
                .join(Passage.document)
                .add_columns(Document.title)
                .options(contains_eager(Passage.document))
            )
            for passage, score, title in await session.execute(statement):
                ...

        The nearest `limit` chunks are found inside, by the ANN index or exactly as in
        :meth:`search`, and nothing that is added outside can change how. So **a condition that is
        added outside, by ``.where()`` or by an inner join that finds no partner, takes away from
        these**; what must hold before the limit is counted goes into `filter` or `where`. `where`
        speaks of the chunk's columns, and of other tables in ``exists(...)`` or
        ``Passage.document.has(...)``.

        It starts in the order of :meth:`search`; ``.order_by(None)`` clears that for another one.
        The settings of the scan end with it. It carries its values, can be executed by any session
        or connection, also a synchronous one, and used twice or twice in one statement. Do not give
        it to ``stream()`` or a server-side cursor in a transaction in which you query vectors
        yourself before the cursor is read.

        Args:
            query_vector, namespace, limit, filter: as in `VectorStore.search`.
            where: a SQL condition that chunks must meet besides.
            exact: compare with every matching chunk, without the ANN index.
            ef_search: for this call, instead of the store's `hnsw_ef_search`.

        Raises:
            InvalidInputError: an argument cannot work.
        """
        query, filter, condition = self._checked(
            query_vector, namespace, limit, filter, where, ef_search
        )
        statement: Select[Model, float] = self._statements.composable_search(
            query, namespace, limit, filter, exact=exact, ef_search=ef_search, where=condition
        )
        return statement

    def _checked(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int,
        filter: Any,
        where: Any,
        ef_search: int | None,
    ) -> tuple[Float32Array, dict[str, Any], ColumnElement[bool] | None]:
        """The arguments of a search that are more than checked."""
        validation.check_namespace(namespace)
        validation.check_limit(limit)
        validation.check_ef_search(ef_search)
        query = validation.check_query_vector(
            query_vector, self._config.dimensions, self._config.column_type
        )
        return (
            query,
            validation.check_filter(filter),
            checked_condition(where, self._connections.table),
        )

    def get_all_chunks(
        self,
        namespace: str,
        filter: dict[str, Any] | None = None,
        *,
        where: ColumnElement[bool] | None = None,
        session: Session | None = None,
    ) -> AsyncIterator[Chunk]:
        """Iterate over a namespace's chunks; see `VectorStore.get_all_chunks`.

        Args:
            where: a SQL condition that chunks must meet besides; see :meth:`search_statement`.
            session: the transaction to join; see above. It may be used while the iteration is
                suspended.
        """
        validation.check_namespace(namespace)
        filter = validation.check_filter(filter)
        condition = checked_condition(where, self._connections.table)
        return self._chunks(namespace, filter, condition, check_session(session))

    async def _chunks(
        self,
        namespace: str,
        filter: dict[str, Any],
        where: ColumnElement[bool] | None,
        session: Joined | None,
    ) -> AsyncIterator[Chunk]:
        shape = filters.filter_shape(filter)
        values = {
            "namespace": namespace,
            "page_size": PAGE_SIZE,
            **filters.filter_parameters(filter),
        }
        while True:
            first = "after" not in values
            if where is None:
                statement, parameters = self._statements.page(shape, first=first), values
            else:
                statement = self._statements.page_where(where, shape, values, first=first)
                parameters = {}
            async with self._connections.single_statement("get_all_chunks", session) as connection:
                page = (await connection.execute(statement, parameters)).all()
            for row in page:
                yield rows.chunk(row)
            if len(page) < PAGE_SIZE:
                return
            values["after"] = page[-1].id
