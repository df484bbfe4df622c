"""vecs, the client of Supabase: synchronous, so that clients are threads.

A collection comes from ``get_or_create_collection``, the index from ``create_index`` with HNSW and
its default parameters, which are pgvector's. A record is an id, a vector and metadata: the tenant
and the content are metadata. Searches ask for values and metadata, as the others give them. Its
``query`` refuses limits above 1,000, and there is no way to read all records of a tenant.

The driver is psycopg2, the one it depends on; it must be named in the connection string, since
SQLAlchemy 2.1 takes psycopg for a plain ``postgresql://``.

Tuned, by what its API takes:

- ``ef_search=200`` of ``query``;
- ``?options=-c hnsw.iterative_scan=strict_order`` in the connection string (pgvector's README,
  "Iterative Index Scans"), the only way to its connections;
- an index on the metadata's ``namespace``, by SQL: it has none (that of ``create_collection``,
  which is deprecated, serves no comparison of texts).
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
    """A collection.

    Args:
        tuned: with what its API takes for better results.
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
        self._collection = self._get()

    async def close(self) -> None:
        self._client.disconnect()

    async def create_table(self) -> None:
        self._client.delete_collection("chunks")
        self._collection = self._get()

    async def create_index(self) -> None:
        self._collection.create_index(method=vecs.IndexMethod.hnsw)
        if self._tuned:
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
        return self._searched(job)

    def _searched(self, job: Job) -> list[str]:
        wanted = {"namespace": job.tenant, **(job.filter or {})}
        conditions = [{key: {"$eq": value}} for key, value in wanted.items()]
        found = self._collection.query(
            data=job.query,
            limit=job.limit,
            filters={"$and": conditions},
            include_value=True,
            include_metadata=True,
            ef_search=TUNED_EF_SEARCH if self._tuned else None,
        )
        return [record[0] for record in found]

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """A thread for each client."""
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(self._searched, jobs))

    def _get(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._client.get_or_create_collection(name="chunks", dimension=self._dimensions)
