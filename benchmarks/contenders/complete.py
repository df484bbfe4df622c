"""Hand-written asyncpg that searches cenote's table with the statement that cenote had at 1f4661a.

The statement is frozen in `benchmarks.contenders.complete_sql`, so this baseline does not move when
cenote's own statements change. A search only makes a tuple of arguments and fetches records. The
difference between this contender and `floor` is the cost that complete results had then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pgvector.asyncpg

from benchmarks.contenders.base import Contender, Job, run_clients
from benchmarks.contenders.complete_sql import FILTERED, UNFILTERED

_EF_SEARCH, _MAX_EF_SEARCH = 200, 1000
_SPARE = 40
_VISITS_PER_ROW = 10


class Complete(Contender):
    """Hand-written asyncpg with complete results."""

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dsn, self._dimensions = dsn, dimensions
        self._sql: dict[tuple[bool, int], str] = {}
        self._connections = [await self._connect()]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def search(self, job: Job) -> list[str]:
        return await self._search(self._connections[0], job)

    async def _search(self, connection: asyncpg.Connection, job: Job) -> list[str]:
        shape = (bool(job.filter), job.limit)
        sql = self._sql.get(shape)
        if sql is None:
            sql = self._sql[shape] = statement(self._dimensions, job.limit, filtered=shape[0])
        ef_search = str(min(max(_EF_SEARCH, job.limit + _SPARE), _MAX_EF_SEARCH))
        if job.filter:
            filter = json.dumps(job.filter)
            records = await connection.fetch(
                sql, ef_search, job.tenant, filter, job.query, job.limit, True
            )
        else:
            records = await connection.fetch(sql, ef_search, job.tenant, job.query, job.limit)
        return [record["id"] for record in records]

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """Run the searches with one connection for each client."""
        while len(self._connections) < count:
            self._connections.append(await self._connect())
        await run_clients(jobs, self._connections[:count], self._search)

    async def _connect(self) -> asyncpg.Connection:
        """Connect without JIT, like cenote's connections."""
        connection = await asyncpg.connect(self._dsn, server_settings={"jit": "off"})
        await pgvector.asyncpg.register_vector(connection)
        return connection


def statement(dimensions: int, limit: int, *, filtered: bool) -> str:
    """Return the SQL of a search with this limit."""
    wanted = limit + _SPARE
    power = 10 ** (len(str(wanted)) - 1)
    fetch = next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)
    literals: dict[str, Any] = {
        "fetch": fetch,
        "visits": fetch * _VISITS_PER_ROW,
        "row_bytes": 4 * dimensions + 600,
    }
    return (FILTERED if filtered else UNFILTERED).format(**literals)
