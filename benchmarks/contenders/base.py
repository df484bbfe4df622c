"""The interface of a contender, for the worker that drives it.

This module and the worker run in every contender's environment, so they import only numpy and the
standard library.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

M, EF_CONSTRUCTION = 16, 64
"""HNSW parameters of all contenders: pgvector's defaults."""

TUNED_EF_SEARCH = 200
"""``hnsw.ef_search`` of the tuned contenders, between cenote's defaults without and with a filter.

It was cenote's default at 1f4661a, which `complete` keeps.
"""

ITERATIVE_SCAN = "strict_order"
"""``hnsw.iterative_scan`` of the tuned contenders.

pgvector's README names it first. These contenders return results in the order of the scan, so
``relaxed_order`` would return them in a wrong order.
"""

BULK_BATCH = 1000


class UnsupportedError(Exception):
    """The contender does not support the operation."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the collection."""

    id: str
    document_id: str
    content: str
    position: int
    metadata: dict[str, Any]
    tenant: str
    vector: NDArray[np.float32]


class Job(NamedTuple):
    """A search: the query in the contender's format, and the tenant, filter and limit."""

    query: Any
    tenant: str
    filter: dict[str, Any] | None
    limit: int


class Contender(ABC):
    """A library or hand-written code over a table in its own database."""

    @abstractmethod
    async def open(self, dsn: str, dimensions: int) -> None:
        """Connect to a database that has pgvector installed."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    async def create_table(self) -> None:
        """Replace the table with an empty one without an ANN index."""
        raise UnsupportedError("searches the table of another contender")

    async def create_index(self) -> None:
        """Create the ANN index, and any other indexes of a tuned contender."""
        raise UnsupportedError("searches the table of another contender")

    async def tune(self) -> None:
        """Add to a copy of the untuned contender's indexed table what the tuned one has."""
        raise UnsupportedError("has no table like that of the untuned contender")

    def as_query(self, vector: NDArray[np.float32]) -> Any:
        """Convert a query to the format that the library documents. This is not timed."""
        return vector

    def as_batch(self, rows: Sequence[Row]) -> Any:
        """Convert rows to the format that the library documents. This is not timed."""
        return rows

    async def upsert(self, batch: Any) -> None:
        """Write a batch from `as_batch`, whose rows may belong to several tenants."""
        raise UnsupportedError("searches the table of another contender")

    async def rewrite(self, batch: Any) -> None:
        """Upsert a batch that is stored already."""
        await self.upsert(batch)

    async def bulk_load(self, rows: Sequence[Row]) -> None:
        """Fill an empty table in the fastest way the library has, and create the ANN index.

        The default upserts the rows and then creates the index.
        """
        for start in range(0, len(rows), BULK_BATCH):
            await self.upsert(self.as_batch(rows[start : start + BULK_BATCH]))
        await self.create_index()

    @abstractmethod
    async def search(self, job: Job) -> list[str]:
        """Return the ids of the nearest rows, nearest first."""

    async def same_sql(self, jobs: Sequence[Job]) -> Callable[[int], Awaitable[None]]:
        """Record the SQL of the searches, and return a function that runs it with bare asyncpg.

        The function's argument is the number of concurrent clients.
        """
        raise UnsupportedError("is not compared with bare asyncpg running the same SQL")

    async def scan(self, tenant: str) -> int:
        """Read all rows of a tenant, without vectors, and return their number."""
        raise UnsupportedError("cannot read the rows of a tenant")

    async def set_ef_search(self, ef_search: int) -> None:
        """Set the number of candidates of the following searches."""
        raise UnsupportedError("is measured at its defaults and tuned only")

    async def chosen_ef_search(self) -> int | None:
        """Return the number of candidates that the contender chose by a measurement, if it did."""
        return None

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """Run all searches with this number of concurrent clients."""
        await run_clients(jobs, range(count), lambda _, job: self.search(job))


async def run_clients(
    jobs: Sequence[Job], clients: Sequence[Any], search: Callable[[Any, Job], Awaitable[Any]]
) -> None:
    """Run all searches; each client, e.g. a connection, takes the next search when it is free."""
    remaining = iter(jobs)

    async def run(client: Any) -> None:
        for job in remaining:
            await search(client, job)

    await asyncio.gather(*(run(client) for client in clients))


def by_tenant(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each tenant with its rows, which must be adjacent."""
    for tenant, group in groupby(rows, key=lambda row: row.tenant):
        yield tenant, list(group)
