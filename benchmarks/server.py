"""The server of a comparison, with settings that a careful administrator would choose."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from cenote.embedded import EmbeddedPostgres

SETTINGS = {
    "shared_buffers": "2GB",
    "effective_cache_size": "6GB",
    "maintenance_work_mem": "1GB",
    "max_parallel_maintenance_workers": "2",
    "work_mem": "32MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "random_page_cost": "1.1",
    "max_connections": "300",
}
"""Settings that keep all data and index builds in memory, and commits durable."""

_REPORTED_SETTINGS = ("server_version", "jit", "synchronous_commit", "fsync", *SETTINGS)
_PREFIX = "benchmark_"
_TRUNCATE = """
DO $$ DECLARE names text; BEGIN
    SELECT string_agg(oid::regclass::text, ', ') INTO names FROM pg_class
    WHERE relkind IN ('r', 'p') AND NOT relispartition AND relname !~ 'alembic_version'
        AND relnamespace::regnamespace::text !~ '^(pg_|information)';
    EXECUTE 'TRUNCATE ' || names;
END $$
"""


class Server:
    """A server with one database for each contender's table.

    Args:
        dsn: Connection string of any database on the server. Its role must be allowed to create
            databases.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._databases: list[str] = []

    def create_database(self, name: str) -> str:
        """Create a database with pgvector and return its connection string.

        A database of this name that an earlier run left behind is dropped first.
        """
        name = _PREFIX + name.replace("-", "_")
        self._execute(self.dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._execute(self.dsn, f'CREATE DATABASE "{name}" TEMPLATE template0')
        self._databases.append(name)
        dsn = make_url(self.dsn).set(drivername="postgresql", database=name)
        text = dsn.render_as_string(hide_password=False)
        self._execute(text, "CREATE EXTENSION vector")
        return text

    def copy_database(self, source: str, target: str) -> None:
        """Replace the target by a copy of the source. Nobody may be connected to the source."""
        names = [make_url(dsn).database for dsn in (source, target)]
        self._execute(self.dsn, f'DROP DATABASE "{names[1]}" WITH (FORCE)')
        self._execute(self.dsn, f'CREATE DATABASE "{names[1]}" TEMPLATE "{names[0]}"')

    def set_synchronous_commit(self, dsn: str, value: str) -> None:
        """Set ``synchronous_commit`` for new connections to a database."""
        name = make_url(dsn).database
        self._execute(self.dsn, f'ALTER DATABASE "{name}" SET synchronous_commit = {value}')

    def truncate(self, dsn: str) -> None:
        """Delete all rows; tables and prepared statements stay."""
        self._execute(dsn, _TRUNCATE)

    def vacuum(self, dsn: str) -> None:
        """Vacuum and analyze after a load, as autovacuum would do later, and write a checkpoint."""
        self._execute(dsn, "VACUUM ANALYZE")
        self._execute(dsn, "CHECKPOINT")

    def sizes(self, dsn: str) -> dict[str, int]:
        """Return the bytes of all HNSW indexes, and of all tables without their indexes."""
        return {
            "index": self._value(
                dsn,
                "SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint FROM pg_class c"
                " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' AND c.relkind = 'i'",
            ),
            "table": self._value(
                dsn,
                "SELECT sum(pg_table_size(c.oid))::bigint FROM pg_class c WHERE c.relkind = 'r'"
                " AND c.relnamespace::regnamespace::text !~ '^(pg_|information)'",
            ),
        }

    def settings(self) -> dict[str, str]:
        """Return the server's version and the settings that matter for the results."""
        return {name: self._value(self.dsn, f"SHOW {name}") for name in _REPORTED_SETTINGS}

    def drop_databases(self) -> None:
        """Drop all databases that this object created."""
        for name in self._databases:
            self._execute(self.dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, dsn: str, statement: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(dsn)
            await connection.execute(statement)
            await connection.close()

        asyncio.run(run())

    def _value(self, dsn: str, query: str) -> Any:
        async def run() -> Any:
            connection = await asyncpg.connect(dsn)
            value: Any = await connection.fetchval(query)
            await connection.close()
            return value

        return asyncio.run(run())


@contextmanager
def benchmark_server(dsn: str | None) -> Iterator[Server]:
    """Yield the server at `dsn` as it is, or an embedded one with `SETTINGS`.

    All databases created on it are dropped at the end.
    """
    if dsn is not None:
        server = Server(make_url(dsn).set(drivername="postgresql").render_as_string(False))
        try:
            yield server
        finally:
            server.drop_databases()
        return
    with tempfile.TemporaryDirectory(
        prefix="cenote-benchmark-", ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary) / "postgres"
        with EmbeddedPostgres(folder) as embedded:
            configured = Server(embedded.dsn)
            for name, value in SETTINGS.items():
                configured._execute(embedded.dsn, f"ALTER SYSTEM SET {name} = '{value}'")
        with EmbeddedPostgres(folder) as embedded:  # restarted, since some settings need it
            yield Server(embedded.dsn)
