"""The measurements of a comparison.

In each measurement the contenders take turns, so that changes in the machine's speed affect all of
them. Each function returns plain data for JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collection import Collection, Truth, name_of
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.base import UnsupportedError
from benchmarks.server import Server
from benchmarks.workers import WorkerProcess, open_workers, rotated

EF_SEARCHES = (20, 40, 80, 160, 320, 640)
ONE_TENANT = "everything"

_SCRATCH = "scratch"
_WARM_UP = 10
_PROBE = 3
"""Number of searches whose median decides how many queries a contender runs in a cell."""
_CELL_SECONDS = 1.0
"""Time that the searches of one contender in one cell should take."""
_FEWEST_QUERIES = 18
"""Minimum number of queries of a slow contender in a cell."""
_CLIENT_SECONDS = 4.0
_FEWEST_CLIENT_SEARCHES = 80
"""Time and minimum number of the searches of a contender's concurrent clients in a round."""
_UPSERT_SECONDS = 2.0
"""Time that the upserts of one contender should take in a round."""
_CPU_QUERIES = 40
"""Number of searches in each run that measures the client's CPU."""
_CPU_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """The inputs of all measurements.

    Attributes:
        names: Names of the contenders, in order.
        server: Server with the contenders' databases.
        collection: Rows and queries.
        folder: Folder of the collection's files.
        environments: Folder of the contenders' virtual environments.
        rounds: Number of turns of each contender.
        batch: Number of rows of an upsert call.
        log: Function that prints the progress of the run.
    """

    names: list[str]
    server: Server
    collection: Collection
    folder: Path
    environments: Path
    rounds: int
    batch: int
    log: Callable[[str], None]

    @property
    def writers(self) -> list[str]:
        """Names of the contenders that have their own table."""
        return [name for name in self.names if CONTENDERS[name].table_of is None]

    def databases(self, purpose: str, names: Sequence[str]) -> dict[str, str]:
        """Create a database for each contender and return the connection strings.

        A contender that reads the table of another gets the database of that contender.
        """
        owners = {name: CONTENDERS[name].table_of or name for name in names}
        dsns = {
            owner: self.server.create_database(f"{owner}_{purpose}") for owner in {*owners.values()}
        }
        return {name: dsns[owner] for name, owner in owners.items()}

    def workers(self, dsns: dict[str, str]) -> Any:
        """Return a context manager that runs a worker for each contender."""
        dimensions = self.collection.vectors.shape[1]
        return open_workers(dsns, self.folder, self.environments, dimensions)


def upserts(run: Comparison, rows: int) -> dict[str, Any]:
    """Measure upserts into an empty table without an ANN index, and upserts of unchanged rows.

    The rates are in rows per second. A first batch is not counted: it warms up the library's and
    the server's caches. A contender that would need more than `_UPSERT_SECONDS` for the rows
    upserts fewer batches.
    """
    parts: dict[str, dict[str, Any]] = {}
    new_rates: dict[str, list[float]] = {}
    unchanged_rates: dict[str, list[float]] = {}
    dsns = run.databases(_SCRATCH, run.writers)
    with run.workers(dsns) as workers:
        for name in run.writers:
            workers[name]("create_table")
            first = {"start": 0, "stop": min(rows, run.batch), "tenant": ONE_TENANT}
            seconds = workers[name]("upsert", **first, batch=run.batch)
            batches = max(1, round(_UPSERT_SECONDS / seconds))
            parts[name] = first | {"stop": min(rows, batches * run.batch), "batch": run.batch}
        for turn in range(run.rounds):
            for name in rotated(run.writers, turn):
                run.server.truncate(dsns[name])
                count = parts[name]["stop"]
                seconds = workers[name]("upsert", **parts[name])
                new_rates.setdefault(name, []).append(count / seconds)
                seconds = _if_supported(workers[name], "rewrite", **parts[name])
                if seconds is not None:
                    unchanged_rates.setdefault(name, []).append(count / seconds)
    return {"upsert": _medians(new_rates), "rewrite": _medians(unchanged_rates)}


def bulk(run: Comparison, rows: int) -> dict[str, Any]:
    """Measure the seconds to load one tenant's rows into an empty table and build the ANN index.

    The upserts into a live index serve as a comparison.
    """
    names = [name for name in ("floor", "cenote") if name in run.names]
    whole = {"start": 0, "stop": rows, "tenant": ONE_TENANT}
    seconds: dict[str, float] = {}
    growth: dict[str, float] = {}
    with run.workers(run.databases(_SCRATCH, names)) as workers:
        for name in names:
            workers[name]("create_table")
            loaded = workers[name]("bulk_load", **whole)
            seconds[name], growth[name] = loaded["seconds"], loaded["growth"]
        for name in names:
            workers[name]("create_table")
            workers[name]("create_index")
            seconds[f"{name}, upsert into a live index"] = workers[name](
                "upsert", **whole, batch=run.batch
            )
    return {"rows": rows, "seconds": seconds, "growth": growth}


def load(run: Comparison, dsns: dict[str, str], tenant: str | None) -> dict[str, Any]:
    """Fill and index every contender's table, and measure the seconds.

    A tuned contender copies the table of the untuned one, where the tables differ in indexes only.
    Commits do not wait for the disk: langchain-postgres commits every row. The later measurements
    do wait. The seconds are for the log; `bulk` compares loads.
    """
    seconds = {}
    size = run.collection.size
    for name in run.writers:
        source = CONTENDERS[name].tunes
        if source in run.names:
            run.server.copy_database(dsns[source], dsns[name])
            with run.workers({name: dsns[name]}) as workers:
                workers[name]("tune")
            run.server.vacuum(dsns[name])
            continue
        run.server.set_synchronous_commit(dsns[name], "off")
        with run.workers({name: dsns[name]}) as workers:
            workers[name]("create_table")
            loaded = workers[name]("bulk_load", start=0, stop=size, tenant=tenant)
        run.server.set_synchronous_commit(dsns[name], "DEFAULT")
        run.server.vacuum(dsns[name])
        seconds[name] = loaded["seconds"]
        run.log(f"  {name}: {size:,} rows in {loaded['seconds']:.1f} s")
    return {"rows": size, "seconds": seconds}


def search(
    run: Comparison,
    workers: dict[str, WorkerProcess],
    truth: Truth,
    *,
    tenant: str,
    kind: str,
    limit: int,
    share: float,
) -> dict[str, Any]:
    """Measure one cell: all queries within one tenant, with one kind of filter.

    A slow contender runs fewer queries, spread over all of them, so that it needs about
    `_CELL_SECONDS`; otherwise a run would take hours.
    """
    queries = range(len(run.collection.queries))
    filters = [run.collection.filter_of(kind, number) for number in queries]
    expected = [
        truth.judge(number, tenant, filters[number], limit, ()).expected for number in queries
    ]
    answerable = [number for number in queries if expected[number]]
    cell: dict[str, Any] = {"tenant": tenant, "share": share, "filter": kind, "limit": limit}
    cell |= {"queries": len(answerable), "contenders": {}}
    if not answerable:
        return cell
    milliseconds: dict[str, list[float]] = {name: [] for name in workers}
    cpu: dict[str, list[float]] = {name: [] for name in workers}
    found: dict[str, dict[int, list[int]]] = {name: {} for name in workers}
    selected = {
        name: _selected(workers[name], answerable, filters, tenant, limit) for name in workers
    }
    for turn in range(run.rounds):
        for name in rotated(list(workers), turn):
            part = selected[name][turn :: run.rounds]
            result = _run_queries(workers[name], part, filters, tenant, limit)
            milliseconds[name] += result["milliseconds"]
            cpu[name] += result["cpu"]
            found[name] |= dict(zip(part, result["found"], strict=True))
    for name in workers:
        judgements = [
            truth.judge(number, tenant, filters[number], limit, rows)
            for number, rows in found[name].items()
        ]
        cell["contenders"][name] = {
            "queries": len(judgements),
            "p50": float(np.percentile(milliseconds[name], 50)),
            "p95": float(np.percentile(milliseconds[name], 95)),
            "cpu": statistics.median(cpu[name]),
            "completeness": statistics.fmean(j.returned / j.expected for j in judgements),
            "recall": statistics.fmean(j.hits / j.expected for j in judgements),
            "foreign": sum(j.foreign for j in judgements),
        }
    return cell


def sweep(
    run: Comparison, workers: dict[str, WorkerProcess], truth: Truth, tenant: str, share: float
) -> list[dict[str, Any]]:
    """Measure one tenant's cell at several settings of ``hnsw.ef_search``, for floor and cenote."""
    swept = {name: worker for name, worker in workers.items() if name in ("floor", "cenote")}
    cells = []
    for ef_search in EF_SEARCHES if swept else ():
        for worker in swept.values():
            worker("set_ef_search", ef_search=ef_search)
        cell = search(run, swept, truth, tenant=tenant, kind="none", limit=10, share=share)
        cells.append({**cell, "ef_search": ef_search})
    return cells


def clients(
    run: Comparison, workers: dict[str, WorkerProcess], searches: int, count: int
) -> dict[str, Any]:
    """Measure the searches per second of concurrent clients.

    Each tenant is searched in proportion to its rows. A slow contender runs fewer searches, so that
    a round takes about `_CLIENT_SECONDS`.
    """
    random = np.random.default_rng(1)
    rows = random.integers(0, run.collection.size, searches)
    jobs = [
        [number % len(run.collection.queries), run.collection.tenants[row]]
        for number, row in enumerate(rows)
    ]
    rates: dict[str, list[float]] = {name: [] for name in workers}
    cpu: dict[str, list[float]] = {name: [] for name in workers}
    fewer: dict[str, list[Any]] = {}
    for name in workers:
        rate = workers[name]("clients", jobs=jobs[:_FEWEST_CLIENT_SEARCHES], limit=10, count=count)
        wanted = max(_FEWEST_CLIENT_SEARCHES, round(rate["per_second"] * _CLIENT_SECONDS))
        fewer[name] = jobs[:wanted]
    for turn in range(run.rounds):
        for name in rotated(list(workers), turn):
            measured = workers[name]("clients", jobs=fewer[name], limit=10, count=count)
            rates[name].append(measured["per_second"])
            cpu[name].append(measured["cpu"])
    return {
        "clients": count,
        "searches": searches,
        "per_second": _medians(rates),
        "cpu": _medians(cpu),
    }


def client_cpu(
    run: Comparison, worker: WorkerProcess, shares: Sequence[float], count: int
) -> dict[str, Any]:
    """Measure cenote's client CPU per search, relative to bare asyncpg running the same SQL.

    Returns:
        ``cells`` with one client each, and ``clients``, several clients that search all tenants of
        `shares` in turn.
    """
    queries = range(min(_CPU_QUERIES, len(run.collection.queries)))

    def measure(jobs: list[Any], clients: int) -> dict[str, float]:
        numbers: dict[str, float] = worker(
            "client_cpu", jobs=jobs, limit=10, rounds=_CPU_ROUNDS, count=clients
        )
        return numbers

    cells = []
    for share, kind in product(shares, ("none", "tenth")):
        jobs = [[n, name_of(share), run.collection.filter_of(kind, n)] for n in queries]
        cells.append({"share": share, "filter": kind, **measure(jobs, 1)})
    mixed = [[n, name_of(shares[n % len(shares)]), None] for n in queries]
    return {"cells": cells, "clients": measure(mixed * count, count)}


def scans(run: Comparison, dsns: dict[str, str], tenant: str) -> dict[str, Any]:
    """Measure the rows per second of reading a tenant, and the growth of the process's memory.

    Each contender runs in a new process.
    """
    rates: dict[str, list[float]] = {}
    growth: dict[str, float] = {}
    missing: dict[str, str] = {}
    rows = 0
    with run.workers({name: dsns[name] for name in run.writers}) as workers:
        for turn in range(run.rounds):
            for name in rotated(run.writers, turn):
                try:
                    result = workers[name]("scan", tenant=tenant)
                except UnsupportedError as reason:
                    missing[name] = str(reason)
                    continue
                rows = result["rows"]
                rates.setdefault(name, []).append(rows / result["seconds"])
                growth.setdefault(name, result["growth"])
    return {"rows": rows, "per_second": _medians(rates), "growth": growth, "missing": missing}


def live_upserts(run: Comparison, dsns: dict[str, str], rows: int) -> dict[str, float]:
    """Measure upserts of the largest tenant into the full table with its ANN index.

    The rates are in rows per second.
    """
    seconds = dict.fromkeys(run.writers, 0.0)
    bounds = np.linspace(run.collection.size, run.collection.size + rows, 5).astype(int)
    with run.workers({name: dsns[name] for name in run.writers}) as workers:
        for turn, (start, stop) in enumerate(pairwise(bounds)):
            part = {"start": int(start), "stop": int(stop), "batch": run.batch, "tenant": None}
            for name in rotated(run.writers, turn):
                seconds[name] += workers[name]("upsert", **part)
    return {name: rows / elapsed for name, elapsed in seconds.items()}


def _selected(
    worker: WorkerProcess, queries: list[int], filters: list[Any], tenant: str, limit: int
) -> list[int]:
    """Warm a cell up, and return the queries that the contender runs in it."""
    probe = _run_queries(worker, queries[:_PROBE], filters, tenant, limit)
    seconds = statistics.median(probe["milliseconds"]) / 1000
    if seconds * len(queries) <= _CELL_SECONDS:
        _run_queries(worker, queries[_PROBE:_WARM_UP], filters, tenant, limit)
        return queries
    # Planning anew, as the server does for the first five executions, matters little here.
    count = min(len(queries), max(_FEWEST_QUERIES, round(_CELL_SECONDS / seconds)))
    return [queries[position * len(queries) // count] for position in range(count)]


def _run_queries(
    worker: WorkerProcess, queries: Sequence[int], filters: list[Any], tenant: str, limit: int
) -> dict[str, Any]:
    result: dict[str, Any] = worker(
        "search",
        queries=list(queries),
        filters=[filters[number] for number in queries],
        tenant=tenant,
        limit=limit,
    )
    return result


def _if_supported(worker: WorkerProcess, operation: str, **arguments: Any) -> Any:
    try:
        return worker(operation, **arguments)
    except UnsupportedError:
        return None


def _medians(series: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in series.items()}
