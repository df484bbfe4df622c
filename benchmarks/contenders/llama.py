"""llama-index-vector-stores-postgres: PGVectorStore through its async methods.

By default the library creates no ANN index (``hnsw_kwargs=None``) and every search compares all
rows. It is measured with the index and the parameters that its documentation shows: m 16,
ef_construction 64, ef_search 40, cosine. The library creates the index with the table; here a
second store creates it after the load, as for the other contenders. The tenant is a metadata
filter, since the library has no concept of tenants.

The library adds rows and never replaces them: writing the same rows again creates duplicates. Its
search sets ``enable_bitmapscan = off`` whenever it has ``hnsw_kwargs``.

The tuned contender uses these options of its API:

- ``hnsw_ef_search`` 200;
- ``use_jsonb=True`` and ``indexed_metadata_keys={("namespace", "text")}``: an index on the tenant;
- the caller's engines (``engine=``, ``async_engine=``), whose connections start with
  ``hnsw.iterative_scan=strict_order`` (pgvector's README, "Iterative Index Scans").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.postgres import PGVectorStore
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.contenders.base import (
    EF_CONSTRUCTION,
    ITERATIVE_SCAN,
    TUNED_EF_SEARCH,
    Contender,
    Job,
    M,
    Row,
    UnsupportedError,
)

_DEFAULT_EF_SEARCH = 40


class LlamaIndex(Contender):
    """LlamaIndex's PGVectorStore.

    Args:
        tuned: Set the options listed above, for better results.
    """

    def __init__(self, *, tuned: bool = False) -> None:
        self._tuned = tuned
        self._store: Any = None

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dimensions = dimensions
        self._sync_url = dsn.replace("postgresql://", "postgresql+psycopg2://", 1)
        self._async_url = dsn.replace("postgresql://", "postgresql+asyncpg://", 1)
        self._engine = create_engine(self._sync_url)
        self._store = self._new_store(indexed=True)

    async def close(self) -> None:
        await self._store.close()
        self._engine.dispose()

    async def create_table(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS data_chunks"))
        # A store creates its table at its first use, and then also its index if it has one.
        await self._store.close()
        self._store = self._new_store(indexed=False)
        await self._store.aget_nodes(node_ids=["none"])

    async def create_index(self) -> None:
        await self._store.close()
        self._store = self._new_store(indexed=True)
        await self._store.aget_nodes(node_ids=["none"])

    def as_query(self, vector: Any) -> Any:
        return vector.tolist()

    def as_batch(self, rows: Sequence[Row]) -> Any:
        return [
            TextNode(
                id_=row.id,
                text=row.content,
                embedding=row.vector.tolist(),
                metadata={**row.metadata, "namespace": row.tenant},
            )
            for row in rows
        ]

    async def upsert(self, batch: Any) -> None:
        await self._store.async_add(batch)

    async def rewrite(self, batch: Any) -> None:
        raise UnsupportedError("adds duplicates instead of replacing rows")

    async def search(self, job: Job) -> list[str]:
        query = VectorStoreQuery(
            query_embedding=job.query,
            similarity_top_k=job.limit,
            filters=_filters({"namespace": job.tenant, **(job.filter or {})}),
        )
        result = await self._store.aquery(query)
        return list(result.ids)

    async def scan(self, tenant: str) -> int:
        """Read all rows of a tenant. The library always reads the vectors, too."""
        return len(await self._store.aget_nodes(filters=_filters({"namespace": tenant})))

    def _new_store(self, *, indexed: bool) -> Any:
        ef_search = TUNED_EF_SEARCH if self._tuned else _DEFAULT_EF_SEARCH
        hnsw = {
            "hnsw_m": M,
            "hnsw_ef_construction": EF_CONSTRUCTION,
            "hnsw_ef_search": ef_search,
            "hnsw_dist_method": "vector_cosine_ops",
        }
        return PGVectorStore(
            connection_string=self._sync_url,
            async_connection_string=self._async_url,
            table_name="chunks",
            embed_dim=self._dimensions,
            hnsw_kwargs=hnsw if indexed else None,
            initialization_fail_on_error=True,
            **(self._tuning() if self._tuned else {}),
        )

    def _tuning(self) -> dict[str, Any]:
        scan = {"hnsw.iterative_scan": ITERATIVE_SCAN}
        return {
            "use_jsonb": True,
            "indexed_metadata_keys": {("namespace", "text")},
            "engine": create_engine(self._sync_url),
            "async_engine": create_async_engine(
                self._async_url, connect_args={"server_settings": scan}
            ),
        }


def _filters(values: dict[str, Any]) -> MetadataFilters:
    return MetadataFilters(
        filters=[MetadataFilter(key=key, value=value) for key, value in values.items()]
    )
