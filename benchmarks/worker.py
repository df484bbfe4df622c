"""A contender's process, which reads requests and writes responses as lines of JSON.

    python -m benchmarks.worker CONTENDER FOLDER

The data is in the folder's files; only numbers and ids go through the pipe. The worker itself
measures the time of each operation, so the pipe does not count. It runs in the contender's
environment, and imports only numpy and the contender.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
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
from benchmarks.contenders.base import Contender, Job, Row, UnsupportedError


class Worker:
    """The operations: each method takes a request's arguments and returns the result."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self._contender = contender
        self._folder = folder
        self._queries = [contender.as_query(vector) for vector in np.load(folder / "queries.npy")]

    async def open(self, dsn: str, dimensions: int) -> None:
        await self._contender.open(dsn, dimensions)

    async def close(self) -> None:
        await self._contender.close()

    async def create_table(self) -> None:
        await self._contender.create_table()

    async def create_index(self) -> None:
        await self._contender.create_index()

    async def tune(self) -> None:
        await self._contender.tune()

    async def upsert(self, start: int, stop: int, batch: int, tenant: str | None) -> float:
        """Upsert rows and return the seconds; None as `tenant` keeps each row's tenant."""
        return await self._write(self._contender.upsert, start, stop, batch, tenant)

    async def rewrite(self, start: int, stop: int, batch: int, tenant: str | None) -> float:
        """Upsert rows that are stored already and return the seconds."""
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
        """Fill the table, and return the seconds and the growth of the process in bytes."""
        rows = list(self._rows(start, stop, tenant))
        before = _restart_peak()
        begin = time.perf_counter()
        await self._contender.bulk_load(rows)
        return {"seconds": time.perf_counter() - begin, "growth": _peak() - before}

    async def search(
        self, queries: list[int], filters: list[Any], tenant: str, limit: int
    ) -> dict[str, Any]:
        """Run searches, and return the milliseconds and the found rows of each.

        ``cpu`` is the CPU time of this process in milliseconds for each search.
        """
        milliseconds, cpu, found = [], [], []
        for number, filter in zip(queries, filters, strict=True):
            job = Job(self._queries[number], tenant, filter, limit)
            begin_cpu, begin = time.process_time(), time.perf_counter()
            ids = await self._contender.search(job)
            milliseconds.append((time.perf_counter() - begin) * 1000)
            cpu.append((time.process_time() - begin_cpu) * 1000)
            found.append([row_of(str(id)) for id in ids])
        return {"milliseconds": milliseconds, "cpu": cpu, "found": found}

    async def client_cpu(
        self, jobs: list[list[Any]], limit: int, count: int, rounds: int
    ) -> dict[str, float]:
        """Measure the CPU time of this process, relative to bare asyncpg running the same SQL.

        Both take turns in this process. A job consists of a query's number, a tenant and a filter.
        Returns the ratio, and the milliseconds of CPU per search of both.
        """
        searches = [
            Job(self._queries[number], tenant, filter, limit) for number, tenant, filter in jobs
        ]
        await self._contender.clients(searches, count)
        run_same_sql = await self._contender.same_sql(searches)
        await run_same_sql(count)
        own: list[float] = []
        bare: list[float] = []
        for turn in range(rounds):
            for is_bare in (turn % 2 == 0, turn % 2 == 1):
                begin = time.process_time()
                if is_bare:
                    await run_same_sql(count)
                else:
                    await self._contender.clients(searches, count)
                cpu = (time.process_time() - begin) * 1000 / len(searches)
                (bare if is_bare else own).append(cpu)
        ratio = statistics.median(a / b for a, b in zip(own, bare, strict=True))
        return {
            "ratio": ratio,
            "milliseconds": statistics.median(own),
            "same_sql": statistics.median(bare),
        }

    async def set_ef_search(self, ef_search: int) -> None:
        await self._contender.set_ef_search(ef_search)

    async def chosen_ef_search(self) -> int | None:
        """Return the number of candidates that the contender chose by a measurement, if it did."""
        return await self._contender.chosen_ef_search()

    async def clients(self, jobs: list[list[Any]], limit: int, count: int) -> dict[str, float]:
        """Run searches with this number of clients.

        Returns the searches per second, and the milliseconds of this process's CPU per search.
        """
        searches = [Job(self._queries[number], tenant, None, limit) for number, tenant in jobs]
        # The warm-up opens the connections. The server also makes a new plan for the first five
        # executions on each of them.
        await self._contender.clients(searches[: 10 * count], count)
        begin_cpu, begin = time.process_time(), time.perf_counter()
        await self._contender.clients(searches, count)
        seconds = time.perf_counter() - begin
        cpu = (time.process_time() - begin_cpu) * 1000
        return {"per_second": len(searches) / seconds, "cpu": cpu / len(searches)}

    async def scan(self, tenant: str) -> dict[str, float]:
        """Read a tenant, and return rows, seconds and the growth of the process in bytes."""
        before = _restart_peak()
        begin = time.perf_counter()
        rows = await self._contender.scan(tenant)
        seconds = time.perf_counter() - begin
        return {"rows": rows, "seconds": seconds, "growth": _peak() - before}

    async def peak(self) -> int:
        """Return the peak memory in bytes since the last restart of the peak."""
        return _peak()

    def _rows(self, start: int, stop: int, tenant: str | None) -> Iterator[Row]:
        vectors = np.load(self._folder / "vectors.npy", mmap_mode="r")
        with (self._folder / "rows.jsonl").open(encoding="utf-8") as lines:
            for number, line in enumerate(islice(lines, start, stop), start):
                fields = json.loads(line)
                yield Row(
                    id=id_of(number),
                    document_id=str(number // 10),
                    content=fields["content"],
                    position=number % 10,
                    metadata=fields["metadata"],
                    tenant=tenant or fields["tenant"],
                    vector=np.array(vectors[number]),
                )


def _peak() -> int:
    """Return the peak of the resident memory in bytes.

    Linux reports it in ``/proc``. ``ru_maxrss`` is the fallback, since a process inherits its value
    from the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _restart_peak() -> int:
    """Restart the peak at the current memory, where the kernel supports it, and return it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


async def serve(worker: Worker, responses: Any) -> None:
    """Answer the requests on stdin until it is closed."""
    for line in sys.stdin:
        request = json.loads(line)
        response: dict[str, Any]
        try:
            response = {"result": await getattr(worker, request.pop("operation"))(**request)}
        except UnsupportedError as reason:
            response = {"unsupported": str(reason)}
        except Exception as error:
            response = {"error": f"{type(error).__name__}: {error}"[:2000]}
        responses.write(json.dumps(response) + "\n")
        responses.flush()


def main() -> None:
    """Serve requests, and redirect everything a library prints to stderr."""
    responses = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    name, folder = sys.argv[1:]
    asyncio.run(serve(Worker(CONTENDERS[name].make(), Path(folder)), responses))


if __name__ == "__main__":
    main()
