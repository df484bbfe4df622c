"""The embedded server: temporary, kept and shared folders, and killed processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import psutil
import pytest

from cenote import ConfigurationError
from cenote.embedded import POSTGRES_VERSIONS, EmbeddedPostgres, only_one_creates_the_user

SCRIPT = """
import sys, time
from cenote.embedded import EmbeddedPostgres
with EmbeddedPostgres(sys.argv[1]) as server:
    print(server.dsn, flush=True)
    sys.stdin.readline()
"""


async def scalar(dsn: str, query: str) -> str:
    """Return one value, read over a new connection."""
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(query))
    finally:
        await connection.close()


def servers(folder: Path) -> int:
    """Return the number of running servers of a folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return sum("-D" in line and str(folder) in line for line in lines)


@pytest.mark.parametrize("version", POSTGRES_VERSIONS)
async def test_temporary_server(version: int) -> None:
    """The server has pgvector 0.8 or newer, opens no TCP port, and its folder is removed."""
    with EmbeddedPostgres(postgres_version=version) as server:
        assert (await scalar(server.dsn, "SHOW server_version")).startswith(str(version))
        assert await scalar(server.dsn, "SHOW listen_addresses") == ""
        await scalar(server.dsn, "CREATE EXTENSION vector")
        query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        assert await scalar(server.dsn, query) >= "0.8"
        folder = Path(await scalar(server.dsn, "SHOW data_directory"))
    assert not folder.exists()
    assert servers(folder) == 0


async def test_server_with_a_folder(tmp_path: Path) -> None:
    """A folder keeps its data and its Postgres version."""
    folder = tmp_path / "new" / "postgres"
    with EmbeddedPostgres(folder, postgres_version=16) as server:
        await scalar(server.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert servers(folder) == 0
    with EmbeddedPostgres(folder, postgres_version=16) as server:
        assert await scalar(server.dsn, "SELECT n FROM kept") == "7"
    with pytest.raises(ConfigurationError) as error, EmbeddedPostgres(folder):
        pass
    assert error.value.setting == "postgres_version"


async def test_shared_server(tmp_path: Path) -> None:
    """Contexts and processes share one server, which the last of them stops."""
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


async def test_killed_process(tmp_path: Path) -> None:
    """A killed process leaves the server running, and the next process stops it."""
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


def test_invalid_use(tmp_path: Path) -> None:
    """Invalid arguments and nested use raise `ConfigurationError` and start no server."""
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root creates the user of the server")
def test_concurrent_creation_of_the_user() -> None:
    """Processes that start at the same time wait for each other while one creates the user."""
    inside = threading.Event()

    def wait_for_the_lock() -> None:
        with only_one_creates_the_user():
            inside.set()

    with only_one_creates_the_user():
        thread = threading.Thread(target=wait_for_the_lock)
        thread.start()
        assert not inside.wait(0.2)
    assert inside.wait(10)
    thread.join()
