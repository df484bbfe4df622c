"""langchain-postgres: PGVectorStore (v2) over a PGEngine, through its async methods.

The tenant is a metadata column, ``namespace``, as its guide recommends for filters. The other keys
stay in the JSON column. ``aapply_vector_index`` creates the HNSW index after the load, with its
default parameters, which are pgvector's. The driver is psycopg, as in its README.

The tuned contender uses these options of its API:

- ``HNSWQueryOptions(ef_search=200)`` as ``index_query_options`` (langchain_postgres/v2/indexes.py);
- an engine from ``PGEngine.from_engine``, which runs in the caller's event loop instead of a thread
  and whose connections start with ``hnsw.iterative_scan=strict_order`` (``connect_args`` of
  SQLAlchemy's ``create_async_engine``; pgvector's README, "Iterative Index Scans");
- an index on the column ``namespace``, created with SQL because the library creates none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.indexes import HNSWIndex, HNSWQueryOptions
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.contenders.base import ITERATIVE_SCAN, TUNED_EF_SEARCH, Contender, Job, Row

_TABLE = "chunks"


class _NoEmbeddings(Embeddings):  # type: ignore[misc, unused-ignore]
    """The embedding model that the store requires, never called: all vectors are passed in."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError


class Langchain(Contender):
    """langchain-postgres' PGVectorStore.

    Args:
        tuned: Set the options listed above, for better results.
    """

    def __init__(self, *, tuned: bool = False) -> None:
        self._tuned = tuned
        self._opened: Any = None

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dimensions = dimensions
        url = dsn.replace("postgresql://", "postgresql+psycopg://", 1)
        if self._tuned:
            settings = {"options": f"-c hnsw.iterative_scan={ITERATIVE_SCAN}"}
            self._sql_engine = create_async_engine(url, connect_args=settings)
            self._engine = PGEngine.from_engine(self._sql_engine)
        else:
            self._sql_engine = create_async_engine(url)  # for statements that the library lacks
            self._engine = PGEngine.from_connection_string(url)

    async def close(self) -> None:
        await self._engine.close()
        await self._sql_engine.dispose()

    async def create_table(self) -> None:
        await self._engine.ainit_vectorstore_table(
            _TABLE,
            self._dimensions,
            metadata_columns=[Column("namespace", "TEXT", nullable=False)],
            overwrite_existing=True,
        )

    async def create_index(self) -> None:
        await (await self._store()).aapply_vector_index(HNSWIndex())
        if self._tuned:
            await self.tune()

    async def tune(self) -> None:
        async with self._sql_engine.begin() as connection:
            await connection.execute(text("CREATE INDEX ON chunks (namespace)"))

    def as_query(self, vector: Any) -> Any:
        return vector.tolist()

    def as_batch(self, rows: Sequence[Row]) -> Any:
        return {
            "texts": [row.content for row in rows],
            "embeddings": [row.vector.tolist() for row in rows],
            "metadatas": [{**row.metadata, "namespace": row.tenant} for row in rows],
            "ids": [row.id for row in rows],
        }

    async def upsert(self, batch: Any) -> None:
        await (await self._store()).aadd_embeddings(**batch)

    async def search(self, job: Job) -> list[str]:
        filter = {"namespace": job.tenant, **(job.filter or {})}
        store = await self._store()
        results = await store.asimilarity_search_with_score_by_vector(
            job.query, k=job.limit, filter=filter
        )
        return [document.id for document, _ in results]

    async def scan(self, tenant: str) -> int:
        return len((await (await self._store()).aget(where={"namespace": tenant}))["ids"])

    async def _store(self) -> Any:
        """Return the store. The library requires that its table exists before it is created."""
        if self._opened is None:
            options = HNSWQueryOptions(ef_search=TUNED_EF_SEARCH) if self._tuned else None
            self._opened = await PGVectorStore.create(
                self._engine,
                _NoEmbeddings(),
                _TABLE,
                metadata_columns=["namespace"],
                index_query_options=options,
            )
        return self._opened
