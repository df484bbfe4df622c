"""Hand-written asyncpg that runs cenote's own statement on cenote's own table.

The SQL is what the store compiles, taken once for each shape of a filter and each size of a limit;
a search then makes a tuple and fetches records. What cenote takes longer than this is the price of
the library and of SQLAlchemy; what this takes longer than `floor` is the price of all results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pgvector.asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.contenders.base import Contender, Job, share_out
from cenote import PgVectorStore
from cenote.filters import Conditions, as_filter


class Complete(Contender):
    """By hand, and complete."""

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dsn = dsn
        # Of the store nothing is used but the text of its statements.
        self._store = PgVectorStore(create_async_engine("postgresql+asyncpg://"), dimensions)
        self._prepared: dict[Any, tuple[str, list[Any], dict[str, int]]] = {}
        self._connections = [await self._connect()]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def search(self, job: Job) -> list[str]:
        return await self._searched(self._connections[0], job)

    async def _searched(self, connection: asyncpg.Connection, job: Job) -> list[str]:
        sql, arguments, places = self._statement(job)
        arguments = arguments.copy()
        arguments[places["namespace"]] = job.tenant
        arguments[places["query"]] = job.query
        if job.filter:
            arguments[places["filter_0"]] = json.dumps(job.filter)
        return [record["id"] for record in await connection.fetch(sql, *arguments)]

    def _statement(self, job: Job) -> tuple[str, list[Any], dict[str, int]]:
        """The SQL, its arguments with what is the same each time, and the places of the others."""
        shape = (bool(job.filter), job.limit)
        if shape not in self._prepared:
            statements = self._store._searches
            statement = statements.search(Conditions(as_filter(job.filter)), job.limit, exact=False)
            compiled = statement.compile(dialect=self._store.engine.dialect)
            names = list(getattr(compiled, "positiontup", None) or ())
            values = dict(compiled.params) | statements.search_parameters(job.limit)
            places = {name: place for place, name in enumerate(names)}
            self._prepared[shape] = compiled.string, [values[name] for name in names], places
        return self._prepared[shape]

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """A connection for each client."""
        while len(self._connections) < count:
            self._connections.append(await self._connect())
        await share_out(jobs, self._connections[:count], self._searched)

    async def _connect(self) -> asyncpg.Connection:
        """As cenote's own connections: without JIT."""
        connection = await asyncpg.connect(self._dsn, server_settings={"jit": "off"})
        await pgvector.asyncpg.register_vector(connection)
        return connection
