"""A contender's process: orders come in as lines of JSON, answers go out so.

    python -m benchmarks.worker CONTENDER FOLDER

The data are in the folder's files; only numbers and ids go through the pipe. The worker times what
it is ordered to do, so that the pipe costs nothing. It runs in each contender's environment, and
imports nothing beyond numpy and the contender.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collection import id_of, row_of
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.base import Contender, Job, NotOfferedError, Row


class Worker:
    """What can be ordered: each method takes the order's arguments and returns the answer."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self._contender = contender
        self._folder = folder
        self._queries = [contender.as_query(one) for one in np.load(folder / "queries.npy")]

    async def open(self, dsn: str, dimensions: int) -> None:
        await self._contender.open(dsn, dimensions)

    async def close(self) -> None:
        await self._contender.close()

    async def create_table(self) -> None:
        await self._contender.create_table()

    async def create_index(self) -> None:
        await self._contender.create_index()

    async def upsert(self, start: int, stop: int, batch: int, tenant: str | None) -> float:
        """Seconds to write rows, of their own tenants or of one."""
        return await self._write(self._contender.upsert, start, stop, batch, tenant)

    async def rewrite(self, start: int, stop: int, batch: int, tenant: str | None) -> float:
        """Seconds to write the same once more."""
        return await self._write(self._contender.rewrite, start, stop, batch, tenant)

    async def _write(self, write: Any, start: int, stop: int, batch: int, tenant: Any) -> float:
        seconds = 0.0
        rows = self._rows(start, stop, tenant)
        while part := list(islice(rows, batch)):
            prepared = self._contender.as_batch(part)
            begin = time.perf_counter()
            await write(prepared)
            seconds += time.perf_counter() - begin
        return seconds

    async def bulk_load(self, start: int, stop: int, tenant: str | None) -> dict[str, float]:
        """Seconds to fill the table, and by how many bytes the process grew meanwhile."""
        rows = list(self._rows(start, stop, tenant))
        before = _restart_peak()
        begin = time.perf_counter()
        await self._contender.bulk_load(rows)
        return {"seconds": time.perf_counter() - begin, "growth": _peak() - before}

    async def search(
        self, queries: list[int], filters: list[Any], tenant: str, limit: int
    ) -> dict[str, Any]:
        """Milliseconds of each search, and the rows it found."""
        milliseconds, found = [], []
        for number, filter in zip(queries, filters, strict=True):
            job = Job(self._queries[number], tenant, filter, limit)
            begin = time.perf_counter()
            ids = await self._contender.search(job)
            milliseconds.append((time.perf_counter() - begin) * 1000)
            found.append([row_of(str(id)) for id in ids])
        return {"milliseconds": milliseconds, "found": found}

    async def set_ef_search(self, ef_search: int) -> None:
        await self._contender.set_ef_search(ef_search)

    async def clients(self, jobs: list[list[Any]], limit: int, count: int) -> float:
        """Searches a second of so many clients."""
        ready = [Job(self._queries[number], tenant, None, limit) for number, tenant in jobs]
        # Opens the connections, and goes past the five plans that a server makes anew on each.
        await self._contender.clients(ready[: 10 * count], count)
        begin = time.perf_counter()
        await self._contender.clients(ready, count)
        return len(ready) / (time.perf_counter() - begin)

    async def scan(self, tenant: str) -> dict[str, float]:
        """Rows, seconds, and by how many bytes the process grew meanwhile."""
        before = _restart_peak()
        begin = time.perf_counter()
        rows = await self._contender.scan(tenant)
        seconds = time.perf_counter() - begin
        return {"rows": rows, "seconds": seconds, "growth": _peak() - before}

    async def peak(self) -> int:
        """The most bytes that the process held, since it was last asked to start counting."""
        return _peak()

    def _rows(self, start: int, stop: int, tenant: str | None) -> Iterator[Row]:
        vectors = np.load(self._folder / "vectors.npy", mmap_mode="r")
        with (self._folder / "rows.jsonl").open(encoding="utf-8") as lines:
            for number, line in enumerate(islice(lines, start, stop), start):
                given = json.loads(line)
                yield Row(
                    id=id_of(number),
                    document_id=str(number // 10),
                    content=given["content"],
                    position=number % 10,
                    metadata=given["metadata"],
                    tenant=tenant or given["tenant"],
                    vector=np.array(vectors[number]),
                )


def _peak() -> int:
    """The most memory that was resident.

    Not ``ru_maxrss`` where the kernel tells better: a process inherits that from the one which
    started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _restart_peak() -> int:
    """Count from what is resident now, where the kernel can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


async def serve(worker: Worker, answers: Any) -> None:
    """Take orders until there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"result": await getattr(worker, order.pop("do"))(**order)}
        except NotOfferedError as reason:
            answer = {"not_offered": str(reason)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve; whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    name, folder = sys.argv[1:]
    asyncio.run(serve(Worker(CONTENDERS[name].make(), Path(folder)), answers))


if __name__ == "__main__":
    main()
