"""The measurements of a comparison. Contenders take turns in each, so that a ratio is of one time.

Each function gives plain data, for JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collection import Collection, Truth
from benchmarks.contenders import CONTENDERS
from benchmarks.server import Server
from benchmarks.workers import NotOfferedError, WorkerProcess, open_workers, rotated

EF_SEARCHES = (20, 40, 80, 160, 320, 640)
ONE_TENANT = "everything"

_SCRATCH = "scratch"
_WARM_UP = 10
_SLOW = 20.0
"""Milliseconds; who takes longer in the warm-up of a cell answers a part of its queries only."""
_FEWER = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """What all measurements need.

    Attributes:
        names: the contenders, in order.
        server, collection: where and what.
        folder: of the collection's files.
        environments: of the contenders' libraries.
        rounds: how often they take turns.
        batch: rows of an upsert.
        say: tells how far the run is.
    """

    names: list[str]
    server: Server
    collection: Collection
    folder: Path
    environments: Path
    rounds: int
    batch: int
    say: Callable[[str], None]

    @property
    def writers(self) -> list[str]:
        """The contenders that have a table of their own."""
        return [name for name in self.names if CONTENDERS[name].table_of is None]

    def databases(self, purpose: str, names: Sequence[str]) -> dict[str, str]:
        """A database for each contender; readers get that of whose table they read."""
        owners = {name: CONTENDERS[name].table_of or name for name in names}
        made = {owner: self.server.database(f"{owner}_{purpose}") for owner in {*owners.values()}}
        return {name: made[owner] for name, owner in owners.items()}

    def workers(self, dsns: dict[str, str]) -> Any:
        """A worker for each contender, in a context."""
        dimensions = self.collection.vectors.shape[1]
        return open_workers(dsns, self.folder, self.environments, dimensions)


def upserts(run: Comparison, rows: int) -> dict[str, Any]:
    """Rows a second into an empty table without an ANN index, and of the same once more.

    After a batch that does not count, with which libraries and server get to know the table.
    """
    part = {"start": 0, "stop": rows, "batch": run.batch, "tenant": ONE_TENANT}
    fresh: dict[str, list[float]] = {}
    again: dict[str, list[float]] = {}
    dsns = run.databases(_SCRATCH, run.writers)
    with run.workers(dsns) as workers:
        for name in run.writers:
            workers[name]("create_table")
            workers[name]("upsert", **{**part, "stop": min(rows, run.batch)})
        for turn in range(run.rounds):
            for name in rotated(run.writers, turn):
                run.server.empty(dsns[name])
                fresh.setdefault(name, []).append(rows / workers[name]("upsert", **part))
                seconds = _offered(workers[name], "rewrite", **part)
                if seconds is not None:
                    again.setdefault(name, []).append(rows / seconds)
    return {"upsert": _medians(fresh), "rewrite": _medians(again)}


def bulk(run: Comparison, rows: int) -> dict[str, Any]:
    """Seconds to bring rows of one tenant into an empty table, the ANN index at the end."""
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
    """Fill every contender's table, and index it."""
    seconds = {}
    size = run.collection.size
    for name in run.writers:
        with run.workers({name: dsns[name]}) as workers:
            workers[name]("create_table")
            loaded = workers[name]("bulk_load", start=0, stop=size, tenant=tenant)
        run.server.settle(dsns[name])
        seconds[name] = loaded["seconds"]
        run.say(f"  {name}: {size:,} rows in {loaded['seconds']:.1f} s")
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
    """A cell: all queries within one tenant, under one kind of filter.

    Who is slow answers a third of them, or a run would take hours.
    """
    queries = range(len(run.collection.queries))
    filters = [run.collection.filter_of(kind, number) for number in queries]
    expected = [
        truth.judge(number, tenant, filters[number], limit, ()).expected for number in queries
    ]
    asked = [number for number in queries if expected[number]]
    cell: dict[str, Any] = {"tenant": tenant, "share": share, "filter": kind, "limit": limit}
    cell |= {"queries": len(asked), "contenders": {}}
    if not asked:
        return cell
    milliseconds: dict[str, list[float]] = {name: [] for name in workers}
    found: dict[str, dict[int, list[int]]] = {name: {} for name in workers}
    fewer: dict[str, int] = {}
    for name in workers:
        warm = _searched(workers[name], asked[:_WARM_UP], filters, tenant, limit)
        fewer[name] = _FEWER if statistics.median(warm["milliseconds"]) > _SLOW else 1
    for turn in range(run.rounds):
        for name in rotated(list(workers), turn):
            part = asked[turn :: run.rounds * fewer[name]]
            answer = _searched(workers[name], part, filters, tenant, limit)
            milliseconds[name] += answer["milliseconds"]
            found[name] |= dict(zip(part, answer["found"], strict=True))
    for name in workers:
        judged = [
            truth.judge(number, tenant, filters[number], limit, rows)
            for number, rows in found[name].items()
        ]
        cell["contenders"][name] = {
            "queries": len(judged),
            "p50": float(np.percentile(milliseconds[name], 50)),
            "p95": float(np.percentile(milliseconds[name], 95)),
            "completeness": statistics.fmean(one.returned / one.expected for one in judged),
            "recall": statistics.fmean(one.hits / one.expected for one in judged),
            "foreign": sum(one.foreign for one in judged),
        }
    return cell


def sweep(
    run: Comparison, workers: dict[str, WorkerProcess], truth: Truth, tenant: str, share: float
) -> list[dict[str, Any]]:
    """The cells of one tenant at several settings of ``hnsw.ef_search``, where one can set it."""
    able = {name: worker for name, worker in workers.items() if name in ("floor", "cenote")}
    cells = []
    for ef_search in EF_SEARCHES if able else ():
        for worker in able.values():
            worker("set_ef_search", ef_search=ef_search)
        cell = search(run, able, truth, tenant=tenant, kind="none", limit=10, share=share)
        cells.append({**cell, "ef_search": ef_search})
    return cells


def clients(
    run: Comparison, workers: dict[str, WorkerProcess], searches: int, count: int
) -> dict[str, Any]:
    """Searches a second of clients at once, of tenants as often as they have rows."""
    random = np.random.default_rng(1)
    rows = random.integers(0, run.collection.size, searches)
    jobs = [
        [number % len(run.collection.queries), run.collection.tenants[row]]
        for number, row in enumerate(rows)
    ]
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(run.rounds):
        for name in rotated(list(workers), turn):
            rates[name].append(workers[name]("clients", jobs=jobs, limit=10, count=count))
    return {"clients": count, "searches": searches, "per_second": _medians(rates)}


def scans(run: Comparison, dsns: dict[str, str], tenant: str) -> dict[str, Any]:
    """Rows a second when a tenant is read, and how much the reader grows; fresh processes."""
    rates: dict[str, list[float]] = {}
    growth: dict[str, float] = {}
    missing: dict[str, str] = {}
    rows = 0
    with run.workers({name: dsns[name] for name in run.writers}) as workers:
        for turn in range(run.rounds):
            for name in rotated(run.writers, turn):
                try:
                    answer = workers[name]("scan", tenant=tenant)
                except NotOfferedError as reason:
                    missing[name] = str(reason)
                    continue
                rows = answer["rows"]
                rates.setdefault(name, []).append(rows / answer["seconds"])
                growth.setdefault(name, answer["growth"])
    return {"rows": rows, "per_second": _medians(rates), "growth": growth, "missing": missing}


def live_upserts(run: Comparison, dsns: dict[str, str], rows: int) -> dict[str, float]:
    """Rows a second into the full table with its ANN index; of the largest tenant."""
    seconds = dict.fromkeys(run.writers, 0.0)
    bounds = np.linspace(run.collection.size, run.collection.size + rows, 5).astype(int)
    with run.workers({name: dsns[name] for name in run.writers}) as workers:
        for turn, (start, stop) in enumerate(pairwise(bounds)):
            part = {"start": int(start), "stop": int(stop), "batch": run.batch, "tenant": None}
            for name in rotated(run.writers, turn):
                seconds[name] += workers[name]("upsert", **part)
    return {name: rows / spent for name, spent in seconds.items()}


def _searched(
    worker: WorkerProcess, queries: Sequence[int], filters: list[Any], tenant: str, limit: int
) -> dict[str, Any]:
    answer: dict[str, Any] = worker(
        "search",
        queries=list(queries),
        filters=[filters[number] for number in queries],
        tenant=tenant,
        limit=limit,
    )
    return answer


def _offered(worker: WorkerProcess, do: str, **arguments: Any) -> Any:
    try:
        return worker(do, **arguments)
    except NotOfferedError:
        return None


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(some) for name, some in values.items()}
