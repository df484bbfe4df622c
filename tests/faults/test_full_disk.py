"""A full disk: a real server loses no acknowledged row, and callers get a clear error.

The tests run on Linux only. A library preloaded into the server fails all writes that extend a
file.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cenote import (
    CenoteError,
    EmbeddedChunk,
    MigrationError,
    PgVectorStore,
    StoreConnectionError,
)
from cenote.embedded import EmbeddedPostgres
from cenote.postgres.dsn import create_engine
from cenote.progress import LoadProgress
from cenote.testing import embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.0]
ROWS = 200
WRITERS = [f"n{number}" for number in range(3)]


class Disk:
    """A disk that tests can fill. It must be created before the server that uses it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.data = folder / "data"
        self._flag = folder / "full"
        library = folder / "full_disk.so"
        source = Path(__file__).with_name("full_disk.c")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"],  # noqa: S607
            check=True,
        )
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("FULL_DISK", str(self._flag))

    def fill(self, folder: str) -> None:
        """Fail all writes that extend a file in this folder of the server's data."""
        new = self._flag.with_suffix(".new")
        new.write_text(f"{self.data / folder}/")
        new.chmod(0o644)
        new.rename(self._flag)

    def log(self) -> str:
        """Return the server's log."""
        return (self.data / "log").read_text()

    def free_space(self) -> None:
        self._flag.unlink()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    if sys.platform != "linux":
        pytest.skip("the full disk is simulated with LD_PRELOAD and /proc, which need Linux")
    return Disk(tmp_path, monkeypatch)


def batch(writer: int, rows: int = ROWS) -> list[EmbeddedChunk]:
    """Return chunks whose contents name their writer and cannot be compressed."""
    return [
        embedded(f"{n:04}", [1, n % 7, n % 11, 1], content=f"{writer} {os.urandom(2000).hex()}")
        for n in range(rows)
    ]


async def test_no_space_for_the_tables(disk: Disk) -> None:
    """Writers and a bulk load get an error that names the full disk; later, all writes succeed."""
    with EmbeddedPostgres(disk.data) as server:
        engine = create_engine(server.dsn, pool_size=5)
        store = PgVectorStore(engine, 4)
        await store.apply_migrations()
        acknowledged: dict[str, int] = {}
        loaded_counts: list[int] = []
        tasks = [asyncio.create_task(_write(store, name, acknowledged)) for name in WRITERS]
        tasks.append(asyncio.create_task(_load(store, loaded_counts)))
        await _until(lambda: len(acknowledged) == len(WRITERS) and loaded_counts[-1:] >= [2000])
        disk.fill("base")
        errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        for error in errors:
            assert isinstance(error, CenoteError)
            assert "No space left on device" in str(error)
            assert isinstance(error, MigrationError) or "free some space" in str(error)
        assert [getattr(error, "sqlstate", None) for error in errors[:-1]] == ["53100"] * 3
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert len(await stored(store, WRITERS[0])) == ROWS  # reads work
        disk.free_space()
        await _check(store, acknowledged)
        # Another load builds the index that the failed load dropped.
        await store.bulk_load([embedded("last")], "loaded")
        assert await store.count("loaded") >= loaded_counts[-1]
        assert await store.check_schema() == []
        await engine.dispose()


async def test_no_space_for_the_write_ahead_log(disk: Disk) -> None:
    """The server panics, and has all acknowledged rows when it starts with free space."""
    acknowledged: dict[str, int] = {}
    with EmbeddedPostgres(disk.data) as server:
        engine = create_engine(server.dsn, pool_size=4)
        store = PgVectorStore(engine, 4)
        await store.apply_migrations()
        tasks = [asyncio.create_task(_write(store, name, acknowledged)) for name in WRITERS]
        await _until(lambda: len(acknowledged) == len(WRITERS))
        disk.fill("pg_wal")
        errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {type(error) for error in errors} == {StoreConnectionError}
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        log = disk.data / "log"
        await _until(
            lambda: "database system is shut down" in log.read_text().partition("PANIC")[2]
        )
        with pytest.raises(StoreConnectionError):
            await store.count("n")
    disk.free_space()
    with EmbeddedPostgres(disk.data):
        await _check(store, acknowledged)
        await engine.dispose()


async def _write(store: PgVectorStore, namespace: str, acknowledged: dict[str, int]) -> None:
    """Upsert one batch after another over the same ids, until the disk is full."""
    writer = acknowledged.get(namespace, 0)
    while True:
        writer += 1
        await store.upsert(batch(writer), namespace)
        acknowledged[namespace] = writer


async def _load(store: PgVectorStore, loaded_counts: list[int]) -> None:
    """Bulk load more rows than the disk has room for."""

    def chunks() -> Iterator[EmbeddedChunk]:
        for number in range(1_000_000):
            yield embedded(f"{number:06}", [1, number % 7, number % 11, 1])

    def report(state: Any) -> None:
        if isinstance(state, LoadProgress):
            loaded_counts.append(state.chunks)

    await store.bulk_load(chunks(), "loaded", progress=report)


async def _check(store: PgVectorStore, acknowledged: dict[str, int]) -> None:
    """Check that all acknowledged batches are whole, and that the store can write."""
    for namespace, writer in acknowledged.items():
        chunks = await stored(store, namespace)
        assert len(chunks) == ROWS
        (found_writer,) = {chunk.content.split()[0] for chunk in chunks}
        assert writer <= int(found_writer) <= writer + 1
        await store.upsert([embedded("new", [100.0, 0, 0, 0])], namespace)
        assert await found(store, [1.0, 0, 0, 0], namespace, 1) == ["new"]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110, the server changes it
            await asyncio.sleep(0.05)
