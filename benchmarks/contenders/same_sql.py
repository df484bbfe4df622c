"""Bare asyncpg that runs the SQL of another contender, in the same process.

The statements are recorded where they enter the driver, so they are exactly those that the library
sends, however it builds them. What remains is the least that a client can spend on them: one
`fetch` with pgvector's codec on a connection of its own, without a pool, checks or result objects.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import asyncpg
import pgvector.asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from benchmarks.contenders.base import Job, run_clients

Call: TypeAlias = tuple[str, list[Any]]
"""SQL and arguments of a call of the driver."""


async def recorded_calls(search: Callable[[Job], Awaitable[Any]], job: Job) -> list[Call]:
    """Run a search, and return its calls of `Connection.fetch` and `PreparedStatement.fetch`.

    SQLAlchemy prepares statements and fetches from them; asyncpg's own query loggers do not report
    that. A vector that is encoded already is replaced by the query: the bare search has to encode
    it, too.
    """
    calls: list[Call] = []

    def record(query: str, arguments: Iterable[Any]) -> None:
        calls.append((query, [job.query if isinstance(a, bytes) else a for a in arguments]))

    fetch: Any = asyncpg.Connection.fetch
    fetch_prepared: Any = PreparedStatement.fetch

    async def recording_fetch(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        record(query, arguments)
        return await fetch(connection, query, *arguments, **options)

    async def recording_fetch_prepared(prepared: Any, *arguments: Any, **options: Any) -> Any:
        record(prepared.get_query(), arguments)
        return await fetch_prepared(prepared, *arguments, **options)

    asyncpg.Connection.fetch = recording_fetch
    PreparedStatement.fetch = recording_fetch_prepared
    try:
        await search(job)
    finally:
        asyncpg.Connection.fetch = fetch
        PreparedStatement.fetch = fetch_prepared
    assert calls, "the search did not call the driver"
    return calls


class SameSql:
    """Connections of bare asyncpg.

    Args:
        dsn: Connection string of the contender's database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connections: list[asyncpg.Connection] = []

    async def run(self, searches: Sequence[Any], count: int) -> None:
        """Run the recorded calls of each search, with this number of concurrent clients."""
        while len(self._connections) < count:
            connection = await asyncpg.connect(self._dsn, server_settings={"jit": "off"})
            await pgvector.asyncpg.register_vector(connection)
            self._connections.append(connection)
        await run_clients(searches, self._connections[:count], self._search)

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            await connection.close()

    async def _search(self, connection: asyncpg.Connection, calls: Any) -> list[str]:
        ids: list[str] = []
        for sql, arguments in calls:
            ids = [record[0] for record in await connection.fetch(sql, *arguments)]
        return ids
