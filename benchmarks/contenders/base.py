"""What a contender does, for the worker that drives it.

This module and the worker run in every contender's environment: they import numpy and the standard
library, and nothing else.
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
"""The HNSW parameters of all: pgvector's defaults."""

TUNED_EF_SEARCH = 200
"""What the tuned contenders ask for: as many candidates as cenote does by default."""

ITERATIVE_SCAN = "strict_order"
"""What the tuned contenders scan by: pgvector's README names it first, and their results come in
the order of the scan, so that the relaxed one would be wrong."""

BULK_BATCH = 1000


class NotOfferedError(Exception):
    """The library has no way to do this."""


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
    """A search: the query as the contender takes it, and what it is limited to."""

    query: Any
    tenant: str
    filter: dict[str, Any] | None
    limit: int


class Contender(ABC):
    """A library, or code by hand, over a table in a database of its own."""

    @abstractmethod
    async def open(self, dsn: str, dimensions: int) -> None:
        """Connect to a database that has the extension."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    async def create_table(self) -> None:
        """An empty table without an ANN index, in the place of any that is there."""
        raise NotOfferedError("it searches the table of another contender")

    async def create_index(self) -> None:
        """The ANN index, and what other ones the contender is tuned by."""
        raise NotOfferedError("it searches the table of another contender")

    def as_query(self, vector: NDArray[np.float32]) -> Any:
        """A query as the library's documentation has it; made before the clock starts."""
        return vector

    def as_batch(self, rows: Sequence[Row]) -> Any:
        """Rows as the library's documentation has them; made before the clock starts."""
        return rows

    async def upsert(self, batch: Any) -> None:
        """Write what `as_batch` made; the rows of a batch may be of several tenants."""
        raise NotOfferedError("it searches the table of another contender")

    async def rewrite(self, batch: Any) -> None:
        """Write the same once more."""
        await self.upsert(batch)

    async def bulk_load(self, rows: Sequence[Row]) -> None:
        """Fill an empty table the fastest way there is; the ANN index is there at the end.

        Where the library has no way of its own: upserts, then the index.
        """
        for start in range(0, len(rows), BULK_BATCH):
            await self.upsert(self.as_batch(rows[start : start + BULK_BATCH]))
        await self.create_index()

    @abstractmethod
    async def search(self, job: Job) -> list[str]:
        """The ids of the nearest rows, the nearest first."""

    async def scan(self, tenant: str) -> int:
        """Read all rows of a tenant, without vectors, and count them."""
        raise NotOfferedError("it has no way to read a tenant's rows")

    async def set_ef_search(self, ef_search: int) -> None:
        """Search with other than the default number of candidates from now on."""
        raise NotOfferedError("it is measured at its defaults, and tuned")

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """All searches, by so many clients at once."""
        await share_out(jobs, range(count), lambda _, job: self.search(job))


async def share_out(
    jobs: Sequence[Job], seats: Sequence[Any], search: Callable[[Any, Job], Awaitable[Any]]
) -> None:
    """Let each seat, a connection for instance, take the next search that is left."""
    left = iter(jobs)

    async def client(seat: Any) -> None:
        for job in left:
            await search(seat, job)

    await asyncio.gather(*(client(seat) for seat in seats))


def by_tenant(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Neighbouring rows of a tenant."""
    for tenant, group in groupby(rows, key=lambda row: row.tenant):
        yield tenant, list(group)
