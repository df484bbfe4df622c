"""cenote's `PgVectorStore` with its defaults: 16 partitions, complete searches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.schema import CreateIndex, DropIndex

from benchmarks.contenders.base import Contender, Job, Row, by_tenant
from cenote import Chunk, EmbeddedChunk, PgVectorStore


class Cenote(Contender):
    """cenote's `PgVectorStore`."""

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dimensions = dimensions
        self._store = await PgVectorStore.connect(dsn, dimensions)
        self._search_store = self._store

    async def close(self) -> None:
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
