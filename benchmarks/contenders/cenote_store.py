"""cenote's `PgVectorStore`: 16 partitions, complete searches.

`cenote` has the store's defaults. `cenote-measured` searches the same table with the smallest
``ef_search`` with which `PgVectorStore.measure_recall` finds a recall of .98 in every namespace
that it measures. That measurement samples stored rows as queries; it does not see the comparison's
queries. The value is not stored in the index, since `cenote` would read it there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.schema import CreateIndex, DropIndex

from benchmarks.contenders.base import Contender, Job, Row, by_tenant
from benchmarks.contenders.same_sql import SameSql, recorded_calls
from cenote import Chunk, EmbeddedChunk, PgVectorStore

_RECALL = 0.98
_EF_SEARCHES = (40, 60, 80, 100, 120, 150, 200, 300)


class Cenote(Contender):
    """cenote's `PgVectorStore`.

    Args:
        measured: Measure recall when the contender is opened, and choose ``ef_search`` by it. The
            table must have its rows then.
    """

    def __init__(self, *, measured: bool = False) -> None:
        self._measured = measured
        self._ef_search: int | None = None

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dimensions = dimensions
        self._store = await PgVectorStore.connect(dsn, dimensions)
        self._search_store = self._store
        self._bare = SameSql(dsn)
        if self._measured:
            report = await self._store.measure_recall(ef_search=_EF_SEARCHES)
            # Without a large tenant, no search uses the index and nothing is measured.
            if report.namespaces:
                chosen = report.smallest(_RECALL)
                self._ef_search = chosen.ef_search if chosen else _EF_SEARCHES[-1]
                await self.set_ef_search(self._ef_search)

    async def close(self) -> None:
        await self._bare.close()
        await self._store.close()

    async def create_table(self) -> None:
        await self._drop_table()
        await self._store.apply_migrations()
        async with self._store.engine.begin() as connection:
            await connection.execute(DropIndex(self._ann_index()))

    async def create_index(self) -> None:
        async with self._store.engine.begin() as connection:
            await connection.execute(CreateIndex(self._ann_index()))

    def as_batch(self, rows: Sequence[Row]) -> Any:
        return [(tenant, [_chunk(row) for row in group]) for tenant, group in by_tenant(rows)]

    async def upsert(self, batch: Any) -> None:
        for tenant, chunks in batch:
            await self._store.upsert(chunks, tenant)

    async def bulk_load(self, rows: Sequence[Row]) -> None:
        """Load the rows into a table as the migrations create it, with its ANN index.

        For a single tenant, `bulk_load` drops the index of the empty table and builds it
        afterwards. Several tenants are loaded within `deferred_ann_index`, as its documentation
        recommends.
        """
        store: Any = self._store
        if not hasattr(store, "bulk_load"):
            await super().bulk_load(rows)
            return
        await self.create_index()
        tenants = list(by_tenant(rows))
        async with nullcontext() if len(tenants) == 1 else store.deferred_ann_index():
            for tenant, group in tenants:
                await store.bulk_load((_chunk(row) for row in group), tenant)

    async def search(self, job: Job) -> list[str]:
        found = await self._search_store.search(job.query, job.tenant, job.limit, job.filter)
        return [result.chunk.id for result in found]

    async def same_sql(self, jobs: Sequence[Job]) -> Callable[[int], Awaitable[None]]:
        recorded = [await recorded_calls(self.search, job) for job in jobs]
        return partial(self._bare.run, recorded)

    async def chosen_ef_search(self) -> int | None:
        return self._ef_search

    async def scan(self, tenant: str) -> int:
        count = 0
        async for _ in self._store.get_all_chunks(tenant):
            count += 1
        return count

    async def set_ef_search(self, ef_search: int) -> None:
        self._search_store = PgVectorStore(
            self._store.engine, self._dimensions, hnsw_ef_search=ef_search
        )

    async def _drop_table(self) -> None:
        async with self._store.engine.begin() as connection:
            await connection.execute(text("DROP TABLE IF EXISTS cenote_chunks"))
            await connection.execute(text("DROP TABLE IF EXISTS cenote_chunks_alembic_version"))

    def _ann_index(self) -> Index:
        table: Any = self._store.model.__table__
        (index,) = (i for i in table.indexes if i.name == f"ix_{table.name}_embedding")
        assert isinstance(index, Index)
        return index


def _chunk(row: Row) -> EmbeddedChunk:
    return EmbeddedChunk(
        chunk=Chunk(
            id=row.id,
            document_id=row.document_id,
            content=row.content,
            position=row.position,
            metadata=row.metadata,
        ),
        embedding=row.vector,
        embedding_model="model",
    )
