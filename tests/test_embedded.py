"""The embedded server: folders kept and temporary, shared, and left behind by the killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest

from cenote import ConfigurationError
from cenote.embedded import POSTGRES_VERSIONS, EmbeddedPostgres

SCRIPT = """
import sys, time
from cenote.embedded import EmbeddedPostgres
with EmbeddedPostgres(sys.argv[1]) as server:
    print(server.dsn, flush=True)
    sys.stdin.readline()
"""


async def scalar(dsn: str, query: str) -> str:
    """One value, over a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(query))
    finally:
        await connection.close()


def servers(folder: Path) -> int:
    """Postmasters that run on a folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return sum("-D" in line and str(folder) in line for line in lines)


@pytest.mark.parametrize("version", POSTGRES_VERSIONS)
async def test_a_temporary_server(version: int) -> None:
    """Has pgvector 0.8 or newer, listens on no network, and is gone afterwards."""
    with EmbeddedPostgres(postgres_version=version) as server:
        assert (await scalar(server.dsn, "SHOW server_version")).startswith(str(version))
        assert await scalar(server.dsn, "SHOW listen_addresses") == ""
        await scalar(server.dsn, "CREATE EXTENSION vector")
        query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        assert await scalar(server.dsn, query) >= "0.8"
        folder = Path(await scalar(server.dsn, "SHOW data_directory"))
    assert not folder.exists()
    assert servers(folder) == 0


async def test_a_kept_folder(tmp_path: Path) -> None:
    """Keeps the data, and the version it began with."""
    folder = tmp_path / "new" / "postgres"
    with EmbeddedPostgres(folder, postgres_version=16) as server:
        await scalar(server.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert servers(folder) == 0
    with EmbeddedPostgres(folder, postgres_version=16) as server:
        assert await scalar(server.dsn, "SELECT n FROM kept") == "7"
    with pytest.raises(ConfigurationError) as error, EmbeddedPostgres(folder):
        pass
    assert error.value.setting == "postgres_version"


async def test_a_shared_folder(tmp_path: Path) -> None:
    """Contexts of one process and other processes share one server; the last one stops it."""
    folder = tmp_path / "postgres"
    with EmbeddedPostgres(folder) as first, EmbeddedPostgres(folder) as second:
        other = _process(folder)
        assert other.stdout is not None
        dsn = first.dsn
        assert dsn == second.dsn == other.stdout.readline().strip()
        assert servers(folder) == 1
    assert servers(folder) == 1
    assert await scalar(dsn, "SELECT 1") == "1"
    other.communicate("\n")
    assert servers(folder) == 0


async def test_the_killed_are_forgotten(tmp_path: Path) -> None:
    """A process that was killed leaves the server running; the next one stops it."""
    folder = tmp_path / "postgres"
    killed = _process(folder)
    assert killed.stdout is not None
    killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert servers(folder) == 1
    with EmbeddedPostgres(folder) as server:
        assert await scalar(server.dsn, "SELECT 1") == "1"
    assert servers(folder) == 0


def test_mistakes(tmp_path: Path) -> None:
    """Each with what to do."""
    with pytest.raises(ConfigurationError, match="is not running"):
        _ = EmbeddedPostgres(tmp_path).dsn
    with pytest.raises(ConfigurationError, match="postgres_version"):
        EmbeddedPostgres(tmp_path, postgres_version=9)
    for name in ("a b", "a;b", "a$HOME", "a'b", "a&b"):
        with pytest.raises(ConfigurationError, match="spaces"), EmbeddedPostgres(tmp_path / name):
            pass
    server = EmbeddedPostgres(tmp_path / "postgres")
    with server, pytest.raises(ConfigurationError, match="already running"):
        server.__enter__()
    assert servers(tmp_path / "postgres") == 0


def _process(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
