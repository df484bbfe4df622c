"""Reads from a replica, a standby that streams from a primary server, and waits for one."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import programs
from support.drivers import ASYNCPG, SYNCHRONOUS, engine_on, store_on

from cenote import PgVectorStore, StoreTimeoutError, VectorStoreError
from cenote.embedded import EmbeddedPostgres
from cenote.postgres.dsn import create_engine
from cenote.testing import embedded, found, stored

NEAR = [1.0, 0.0, 0.0, 0.0]


async def test_reads_from_a_replica(tmp_path: Path) -> None:
    """All reads work on the replica, writes fail, and new rows arrive from the primary."""
    with EmbeddedPostgres(tmp_path / "primary" / "data") as server:
        primary = create_engine(server.dsn, pool_size=1)
        primary_store = PgVectorStore(primary, 4, text_search="english")
        await primary_store.apply_migrations()
        await primary_store.upsert([embedded("a", content="Cats purr."), embedded("b")], "n")
        folder = tmp_path / "replica" / "data"
        _copy(server, folder)
        with EmbeddedPostgres(folder) as standby:
            replica = create_engine(standby.dsn, pool_size=1)
            replica_store = PgVectorStore(replica, 4, text_search="english")
            assert await found(replica_store, NEAR, "n") == ["a", "b"]
            results = await replica_store.search_text("cats", "n")
            assert [result.chunk.id for result in results] == ["a"]
            assert len(await replica_store.search_hybrid("cats", NEAR, "n")) == 2
            assert await replica_store.check_schema() == []
            with pytest.raises(VectorStoreError) as error:
                await replica_store.upsert([embedded("c")], "n")
            assert error.value.sqlstate == "25006"

            await primary_store.upsert([embedded("c")], "n")
            for _ in range(600):  # wait until the replica has received the row
                if len(await stored(replica_store, "n")) == 3:
                    break
                await asyncio.sleep(0.05)
            assert await replica_store.count("n") == len(await replica_store.search(NEAR, "n")) == 3
            await replica.dispose()
        await primary.dispose()


@pytest.mark.parametrize("driver", [ASYNCPG, SYNCHRONOUS])
async def test_a_time_limit_during_synchronous_replication(tmp_path: Path, driver: str) -> None:
    """A write that no replica confirms in time raises an error, also if the server has kept it.

    If the wait for the replica is cancelled, the server reports success.
    """
    with EmbeddedPostgres(tmp_path / "data") as server:
        engine = engine_on(driver, server.url)
        unlimited = store_on(engine, 4)
        await unlimited.apply_migrations()
        await unlimited.upsert([embedded("a"), embedded("b")], "n")
        admin = create_engine(server.dsn, pool_size=1)
        await _require_a_replica(admin)
        store = store_on(engine, 4, operation_timeout=0.5)
        with pytest.raises(StoreTimeoutError):
            await store.delete(["a"], "n")
        with pytest.raises(StoreTimeoutError):
            await store.update_metadata({"b": {"k": 1}}, "n")
        assert await unlimited.count("n") == 1
        await admin.dispose()
        await engine.dispose()


async def _require_a_replica(admin: AsyncEngine) -> None:
    """Make writes wait for a replica that does not exist."""
    async with admin.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = 'missing'"))
        await connection.execute(text("SELECT pg_reload_conf()"))
    write = text("COMMENT ON EXTENSION vector IS 'vectors'")
    with suppress(TimeoutError):
        while True:  # the server's processes read the setting soon
            async with asyncio.timeout(0.2), admin.begin() as connection:
                await connection.execute(write)


def _copy(server: EmbeddedPostgres, folder: Path) -> None:
    """Make a base backup that starts as a standby, as the user who runs the server."""
    owner = (folder.parents[1] / "primary" / "data").stat().st_uid
    folder.parent.mkdir()
    os.chown(folder.parent, owner, -1)
    command = [str(programs(18) / "pg_basebackup"), "--pgdata", str(folder)]
    command += ["--dbname", server.dsn, "--write-recovery-conf", "--checkpoint=fast"]
    subprocess.run(command, check=True, user=owner if owner != os.getuid() else None, cwd="/")
    # The lock file is a copy of the primary's, and belongs to its socket.
    (folder / ".s.PGSQL.5432.lock").unlink()
