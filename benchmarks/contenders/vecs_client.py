"""vecs, Supabase's client. It is synchronous, so the clients are threads.

``get_or_create_collection`` creates the collection and ``create_index`` the HNSW index, with its
default parameters, which are pgvector's. A record has an id, a vector and metadata; the tenant and
the content are part of the metadata. Searches return values and metadata, like the other
contenders. Its ``query`` rejects limits above 1,000, and it cannot read all records of a tenant.

The driver is psycopg2, which vecs depends on. The connection string must name it, because
SQLAlchemy 2.1 uses psycopg for a plain ``postgresql://``.

The tuned contender uses these options of its API:

- ``ef_search=200`` of ``query``;
- ``?options=-c hnsw.iterative_scan=strict_order`` in the connection string (pgvector's README,
  "Iterative Index Scans"), the only way to configure its connections;
- an index on the metadata's ``namespace``, created with SQL because vecs creates none (the index of
  the deprecated ``create_collection`` does not support comparisons of texts).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import vecs
from sqlalchemy import text

from benchmarks.contenders.base import ITERATIVE_SCAN, TUNED_EF_SEARCH, Contender, Job, Row

_INDEX = "CREATE INDEX ON vecs.chunks ((metadata -> 'namespace'))"


class Vecs(Contender):
    """A vecs collection.

    Args:
        tuned: Set the options listed above, for better results.
    """

    def __init__(self, *, tuned: bool = False) -> None:
        self._tuned = tuned

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dimensions = dimensions
        url = dsn.replace("postgresql://", "postgresql+psycopg2://", 1)
        if self._tuned:
            options = quote(f"-c hnsw.iterative_scan={ITERATIVE_SCAN}")
            url += ("&" if "?" in url else "?") + "options=" + options
        self._client: Any = vecs.create_client(url)
        self._collection = self._get_or_create_collection()

    async def close(self) -> None:
        self._client.disconnect()

    async def create_table(self) -> None:
        self._client.delete_collection("chunks")
        self._collection = self._get_or_create_collection()

    async def create_index(self) -> None:
        self._collection.create_index(method=vecs.IndexMethod.hnsw)
        if self._tuned:
            await self.tune()

    async def tune(self) -> None:
        with self._client.engine.begin() as connection:
            connection.execute(text(_INDEX))

    def as_query(self, vector: Any) -> Any:
        return vector.tolist()

    def as_batch(self, rows: Sequence[Row]) -> Any:
        return [
            (
                row.id,
                row.vector.tolist(),
                {**row.metadata, "namespace": row.tenant, "content": row.content},
            )
            for row in rows
        ]

    async def upsert(self, batch: Any) -> None:
        self._collection.upsert(records=batch)

    async def search(self, job: Job) -> list[str]:
        return self._search(job)

    def _search(self, job: Job) -> list[str]:
        values = {"namespace": job.tenant, **(job.filter or {})}
        conditions = [{key: {"$eq": value}} for key, value in values.items()]
        records = self._collection.query(
            data=job.query,
            limit=job.limit,
            filters={"$and": conditions},
            include_value=True,
            include_metadata=True,
            ef_search=TUNED_EF_SEARCH if self._tuned else None,
        )
        return [record[0] for record in records]

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """Run the searches with one thread for each client."""
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(self._search, jobs))

    def _get_or_create_collection(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._client.get_or_create_collection(name="chunks", dimension=self._dimensions)
