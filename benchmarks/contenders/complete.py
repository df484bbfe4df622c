"""Hand-written asyncpg that runs cenote's own statement on cenote's own table.

The store compiles the SQL once with and without a filter and for each limit. A search then only
makes a tuple of arguments and fetches records. The difference between cenote and this contender is
the cost of the library and of SQLAlchemy. The difference between this contender and `floor` is the
cost of complete results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pgvector.asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.contenders.base import Contender, Job, run_clients
from cenote import PgVectorStore
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions


class Complete(Contender):
    """Hand-written asyncpg with complete results."""

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dsn = dsn
        # The store only compiles statements; it never connects.
        self._store = PgVectorStore(create_async_engine("postgresql+asyncpg://"), dimensions)
        self._prepared: dict[Any, tuple[str, list[Any], dict[str, int]]] = {}
        self._connections = [await self._connect()]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def search(self, job: Job) -> list[str]:
        return await self._search(self._connections[0], job)

    async def _search(self, connection: asyncpg.Connection, job: Job) -> list[str]:
        sql, arguments, positions = self._statement(job)
        arguments = arguments.copy()
        arguments[positions["namespace"]] = job.tenant
        arguments[positions["query"]] = job.query
        if job.filter:
            arguments[positions["filter_0"]] = json.dumps(job.filter)
        return [record["id"] for record in await connection.fetch(sql, *arguments)]

    def _statement(self, job: Job) -> tuple[str, list[Any], dict[str, int]]:
        """Return the SQL, its constant arguments, and the position of each argument by name."""
        shape = (bool(job.filter), job.limit)
        if shape not in self._prepared:
            statements = self._store._searches
            statement = statements.search(Conditions(as_filter(job.filter)), job.limit, exact=False)
            compiled = statement.compile(dialect=self._store.engine.dialect)
            names = list(getattr(compiled, "positiontup", None) or ())
            values = dict(compiled.params) | statements.search_parameters(job.limit)
            positions = {name: position for position, name in enumerate(names)}
            self._prepared[shape] = compiled.string, [values[name] for name in names], positions
        return self._prepared[shape]

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
