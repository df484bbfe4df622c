"""Test of reads from a replica, a real standby that streams from a real server."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from support.database import programs

from cenote import PgVectorStore, VectorStoreError
from cenote.embedded import EmbeddedPostgres
from cenote.postgres.dsn import create_engine
from cenote.testing import embedded, found, stored

NEAR = [1.0, 0.0, 0.0, 0.0]


async def test_a_read_replica(tmp_path: Path) -> None:
    """All reads work on the replica, writes fail, and it catches up with the primary."""
    with EmbeddedPostgres(tmp_path / "primary" / "data") as server:
        primary = create_engine(server.dsn, pool_size=1)
        writes = PgVectorStore(primary, 4, text_search="english")
        await writes.apply_migrations()
        await writes.upsert([embedded("a", content="Cats purr."), embedded("b")], "n")
        folder = tmp_path / "replica" / "data"
        _copy(server, folder)
        with EmbeddedPostgres(folder) as standby:
            replica = create_engine(standby.dsn, pool_size=1)
            reads = PgVectorStore(replica, 4, text_search="english")
            assert await found(reads, NEAR, "n") == ["a", "b"]
            results = await reads.search_text("cats", "n")
            assert [result.chunk.id for result in results] == ["a"]
            assert len(await reads.search_hybrid("cats", NEAR, "n")) == 2
            assert await reads.check_schema() == []
            with pytest.raises(VectorStoreError) as caught:
                await reads.upsert([embedded("c")], "n")
            assert caught.value.sqlstate == "25006"

            await writes.upsert([embedded("c")], "n")
            for _ in range(600):  # until the replica has received the row
                if len(await stored(reads, "n")) == 3:
                    break
                await asyncio.sleep(0.05)
            assert await reads.count("n") == len(await reads.search(NEAR, "n")) == 3
            await replica.dispose()
        await primary.dispose()


def _copy(server: EmbeddedPostgres, folder: Path) -> None:
    """Make a base backup that starts as a standby, as the user who runs the server."""
    owner = (folder.parents[1] / "primary" / "data").stat().st_uid
    folder.parent.mkdir()
    os.chown(folder.parent, owner, -1)
    command = [str(programs(18) / "pg_basebackup"), "--pgdata", str(folder)]
    command += ["--dbname", server.dsn, "--write-recovery-conf", "--checkpoint=fast"]
    subprocess.run(command, check=True, user=owner if owner != os.getuid() else None, cwd="/")
    (folder / ".s.PGSQL.5432.lock").unlink()  # copied from the primary, whose socket is there
