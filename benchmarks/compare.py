"""Compare cenote with hand-written asyncpg, the design it replaced and three libraries in one run.

    make benchmark ARGS="--rows 50000 --json run.json --markdown run.md --pictures pictures"

benchmarks/README.md describes the contenders and the method. Contenders whose library is not
installed are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import collection, measurements, memory, report
from benchmarks.collection import FILTERS, SHARES, Collection, Truth, name_of
from benchmarks.contenders import CONTENDERS
from benchmarks.measurements import ONE_TENANT, Comparison
from benchmarks.server import Server, benchmark_server
from benchmarks.workers import WorkerProcess, installed

SINGLE_FILTERS = ("none", "half", "hundredth", "topic")
LARGE_LIMITS = (100, 1000)
LARGE_LIMIT_SHARES = (47.0, 3.0)
SWEEP_SHARE = 12.0
MEASUREMENTS = ("upsert", "bulk", "search", "single", "memory")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the measurements, print the tables and write the requested files."""
    options = _options(argv)
    begin = time.monotonic()

    def log(text: str) -> None:
        if not options.quiet:
            print(f"[{time.monotonic() - begin:6.0f} s] {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="cenote-benchmark-data-") as temporary:
        folder = Path(temporary)
        data = _collection(options)
        options.bulk_rows = min(options.bulk_rows, len(data.vectors))
        options.upsert_rows = min(options.upsert_rows, len(data.vectors))
        data.write(folder)
        log(f"{data.size:,} rows x {data.vectors.shape[1]}, {len(data.queries)} queries")
        with benchmark_server(options.dsn) as server:
            run = Comparison(
                names=options.contenders,
                server=server,
                collection=data,
                folder=folder,
                environments=options.environments,
                rounds=options.rounds,
                batch=options.batch,
                log=log,
            )
            result = {"about": _run_details(options, data, server)} | _measure(run, options)
    if "memory" in options.measure:
        log("in-memory store")
        result["memory"] = memory.run(options.memory_rows, options.memory_queries)
    _write(result, options)
    return result


def _measure(run: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"cells": []}
    if "upsert" in options.measure:
        run.log(f"upserts of {options.upsert_rows:,} rows")
        result |= measurements.upserts(run, options.upsert_rows)
    if "bulk" in options.measure:
        run.log(f"bulk load of {options.bulk_rows:,} rows")
        result["bulk"] = measurements.bulk(run, options.bulk_rows)
    if "search" in options.measure:
        result |= _many_tenants(run, options)
    if "single" in options.measure:
        result["cells"] += _one_tenant(run, options)
    return result


def _many_tenants(run: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """Load the collection of many tenants and measure searches, clients, scans and upserts."""
    run.log("load of many tenants")
    dsns = run.databases("tenants", run.names)
    result: dict[str, Any] = {"load": measurements.load(run, dsns, None)}
    truth = Truth(run.collection)
    largest = name_of(SHARES[0])
    cells = [(share, kind, 10) for share in options.shares for kind in options.filters]
    cells += [
        (share, "none", limit) for share in LARGE_LIMIT_SHARES for limit in options.large_limits
    ]
    with run.workers(dsns) as workers:
        result["cells"] = [
            _cell(run, workers, truth, share, name_of(share), kind, limit)
            for share, kind, limit in cells
        ]
        run.log(f"{options.clients} clients")
        result["clients"] = measurements.clients(
            run, workers, options.client_searches, options.clients
        )
        result["peak"] = {name: workers[name]("peak") for name in workers}
        chosen = {name: workers[name]("chosen_ef_search") for name in workers}
        result["chosen_ef_search"] = {name: ef for name, ef in chosen.items() if ef is not None}
        if "cenote" in workers:
            run.log("client CPU")
            result["client_cpu"] = measurements.client_cpu(
                run, workers["cenote"], options.shares, options.clients
            )
        run.log("ef_search")
        tenant = name_of(SWEEP_SHARE)
        result["sweep"] = measurements.sweep(run, workers, truth, tenant, SWEEP_SHARE)
    run.log("scan")
    result["scan"] = measurements.scans(run, dsns, largest)
    run.log(f"upserts of {options.live_rows:,} rows into the index")
    result["live"] = measurements.live_upserts(run, dsns, options.live_rows)
    return result


def _one_tenant(run: Comparison, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Load the same rows as a single tenant into other tables, and measure searches."""
    run.log("load of one tenant")
    dsns = run.databases("single", run.names)
    measurements.load(run, dsns, ONE_TENANT)
    truth = Truth(run.collection, one_tenant=True)
    kinds = [kind for kind in SINGLE_FILTERS if kind in options.filters]
    with run.workers(dsns) as workers:
        return [_cell(run, workers, truth, 100.0, ONE_TENANT, kind, 10) for kind in kinds]


def _cell(
    run: Comparison,
    workers: dict[str, WorkerProcess],
    truth: Truth,
    share: float,
    tenant: str,
    kind: str,
    limit: int,
) -> dict[str, Any]:
    run.log(f"search {share:g} %, filter {kind}, limit {limit}")
    return measurements.search(
        run, workers, truth, tenant=tenant, kind=kind, limit=limit, share=share
    )


def _collection(options: argparse.Namespace) -> Collection:
    extra = max(
        options.live_rows, options.bulk_rows - options.rows, options.upsert_rows - options.rows
    )
    if options.data:
        return collection.read(
            options.data, rows=options.rows, queries=options.queries, extra=options.live_rows
        )
    return collection.generate(
        options.rows, dimensions=options.dimensions, queries=options.queries, extra=extra
    )


def _run_details(options: argparse.Namespace, data: Collection, server: Server) -> dict[str, Any]:
    return {
        "rows": data.size,
        "dimensions": data.vectors.shape[1],
        "queries": len(data.queries),
        "data": "given" if options.data else "generated",
        "tenants": data.tenant_sizes(),
        "contenders": options.contenders,
        "rounds": options.rounds,
        "batch": options.batch,
        "upsert_rows": options.upsert_rows,
        "live_rows": options.live_rows,
        "settings": server.settings(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cenote", "sqlalchemy", "asyncpg", "pgvector")},
        },
    }


def _write(result: dict[str, Any], options: argparse.Namespace) -> None:
    if not options.quiet:
        print(report.as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.as_markdown(result), encoding="utf-8")
    if options.pictures:
        from benchmarks import pictures

        pictures.draw(result, options.pictures)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare")
    add = parser.add_argument
    add("--rows", type=int, default=50_000, help="rows of the collection")
    add("--dimensions", type=int, default=384, help="dimensions of generated vectors")
    add("--queries", type=int, default=150, help="number of queries")
    add("--data", type=Path, help="folder with docs.jsonl, docs.npy, queries.jsonl, queries.npy")
    add("--contenders", type=_words, help="names, separated by commas (default: all installed)")
    add("--measure", type=_words, default=list(MEASUREMENTS), help=", ".join(MEASUREMENTS))
    add("--filters", type=_words, default=list(FILTERS), help=", ".join(FILTERS))
    add(
        "--shares",
        type=_numbers,
        default=list(SHARES),
        help="tenants, by their percentage of the rows",
    )
    add("--large-limits", type=_integers, default=list(LARGE_LIMITS))
    add("--rounds", type=int, default=3, help="number of turns of each contender")
    add("--batch", type=int, default=1000, help="rows of an upsert call")
    add("--upsert-rows", type=int, default=5000)
    add("--bulk-rows", type=int, default=50_000)
    add("--live-rows", type=int, default=2000)
    add("--clients", type=int, default=8)
    add("--client-searches", type=int, default=800)
    add("--memory-rows", type=_integers, default=[10_000, 50_000, 200_000])
    add("--memory-queries", type=int, default=100)
    add("--dsn", help="server to use as it is (default: an embedded one with tuned settings)")
    add(
        "--environments",
        type=Path,
        default=Path(".bench"),
        help="folder of the other libraries' virtual environments",
    )
    add("--json", type=Path, help="write all numbers to this file")
    add("--markdown", type=Path, help="write the tables to this file")
    add("--pictures", type=Path, help="draw pictures into this folder (needs matplotlib)")
    add("--quiet", action="store_true")
    options = parser.parse_args(argv)
    options.environments = options.environments.absolute()
    available = installed(options.environments)
    options.contenders = options.contenders or available
    if "floor" not in options.contenders:
        parser.error("all ratios are relative to the contender 'floor': add it to --contenders")
    for name in options.contenders:
        if name not in available:
            reason = "is not installed: run make benchmark" if name in CONTENDERS else "is unknown"
            parser.error(f"contender {name!r} {reason}")
        if (owner := CONTENDERS[name].table_of or name) not in options.contenders:
            parser.error(
                f"contender {name!r} reads the table of {owner!r}: add {owner!r} to --contenders"
            )
    return options


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


if __name__ == "__main__":
    main()
