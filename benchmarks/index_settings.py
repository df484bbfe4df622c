"""Compare parameters of the HNSW index: recall, search time, build time and live insertion.

    python -m benchmarks.index_settings --data folder --json settings.json

Each collection is one tenant: the generated one, and the folders with docs.npy and queries.npy that
are given. Every pair of `m` and `ef_construction` has its own table with the same rows, and all
tables take turns. The defaults of `PgVectorStore` rest on this measurement.

Besides durations, the CPU time of the server's process is measured, which depends less on other
load. Linux reports it, so this runs on Linux and with the embedded server only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from benchmarks import collection
from benchmarks.collection import SHARES, Floats, id_of, row_of
from benchmarks.report import Table
from benchmarks.server import Server, benchmark_server
from benchmarks.workers import rotated
from cenote import Chunk, EmbeddedChunk, PgVectorStore

SETTINGS = ((16, 64), (16, 128), (24, 64), (24, 128))
"""Pairs of `m` and `ef_construction`. All ratios are relative to the first, pgvector's default."""
EF_SEARCHES = (60, 100, 120, 150, 200)
REFERENCE_EF_SEARCH = 200
"""Search times are relative to the first pair's at this ``ef_search``."""
LIMIT = 10
INSERTED, BATCH = 1000, 100
"""Number of rows that are inserted into the live index, and of each call."""
_BUILDS = 2
_TENANT = "tenant"
_INDEX = "ix_cenote_chunks_embedding"


@dataclass(frozen=True, slots=True)
class Data:
    """A collection of one tenant.

    Attributes:
        name: Name for the tables.
        vectors: Vectors of the rows. The last `INSERTED` rows are inserted into the live index.
        queries: Query vectors, none of which is a row's vector.
    """

    name: str
    vectors: Floats
    queries: Floats


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the measurement, print the tables and write the requested files."""
    options = _options(argv)
    measured = []
    with benchmark_server(None) as server:
        result: dict[str, Any] = {"settings": server.settings()}
        for data in _collections(options):
            measured.append(asyncio.run(_measure(server, data, options)))
            server.drop_databases()
    result["collections"] = measured
    print("\n\n".join(_table(numbers).as_text() for numbers in measured))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        tables = "\n\n".join(_table(numbers).as_markdown() for numbers in measured)
        options.markdown.write_text(tables + "\n", encoding="utf-8")
    return result


async def _measure(server: Server, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    size = len(data.vectors) - INSERTED
    _log(f"{data.name}: {size:,} rows, {len(data.queries)} queries")
    stores = {}
    for m, ef_construction in SETTINGS:
        name = f"settings_{m}_{ef_construction}"
        dsn = await asyncio.to_thread(server.create_database, name)
        url = dsn.replace("postgresql://", "postgresql+asyncpg://", 1)
        stores[m, ef_construction] = PgVectorStore(
            create_async_engine(url, pool_size=1, max_overflow=0),
            data.vectors.shape[1],
            hnsw_m=m,
            hnsw_ef_construction=ef_construction,
        )
        await _load(stores[m, ef_construction], data.vectors[:size])
    builds = await _build(stores)
    for store in stores.values():
        dsn = store.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        await asyncio.to_thread(server.vacuum, dsn)
    _log("searches")
    searches = await _search(stores, data, size, options.rounds)
    _log("insertions")
    inserted = await _insert(stores, data, size)
    for store in stores.values():
        await store.engine.dispose()
    return {
        "name": data.name,
        "rows": size,
        "queries": len(data.queries),
        "measured": [
            {
                "m": m,
                "ef_construction": ef_construction,
                "build_cpu": builds[m, ef_construction],
                "insertion": inserted[m, ef_construction],
                "searches": searches[m, ef_construction],
            }
            for m, ef_construction in SETTINGS
        ],
    }


async def _load(store: PgVectorStore[Any], vectors: Floats) -> None:
    """Create the table without its ANN index and write the rows."""
    await store.apply_migrations()
    async with store.engine.begin() as connection:
        await connection.execute(text(f"DROP INDEX {_INDEX}"))
    for start in range(0, len(vectors), 1000):
        await store.upsert(_chunks(vectors, range(start, min(start + 1000, len(vectors)))), _TENANT)


async def _build(stores: dict[Any, PgVectorStore[Any]]) -> dict[Any, float]:
    """Build each ANN index several times, in turns, and return the medians of the CPU seconds."""
    seconds: dict[Any, list[float]] = {key: [] for key in stores}
    for turn in range(_BUILDS):
        for key in rotated(list(stores), turn):
            m, ef_construction = key
            async with stores[key].engine.begin() as connection:
                if turn:
                    await connection.execute(text(f"DROP INDEX {_INDEX}"))
                await connection.execute(text("SET LOCAL max_parallel_maintenance_workers = 0"))
                process = await _server_process(connection)
                begin = _cpu_seconds(process)
                await connection.execute(
                    text(
                        f"CREATE INDEX {_INDEX} ON cenote_chunks"
                        " USING hnsw (embedding vector_cosine_ops)"
                        f" WITH (m = {m}, ef_construction = {ef_construction})"
                    )
                )
                seconds[key].append(_cpu_seconds(process) - begin)
            _log(f"index {key}: {seconds[key][-1]:.1f} s of CPU")
    return {key: statistics.median(values) for key, values in seconds.items()}


async def _search(
    stores: dict[Any, PgVectorStore[Any]], data: Data, size: int, rounds: int
) -> dict[Any, list[dict[str, float]]]:
    """Run all queries with every setting in turn, and return recall, p50 and CPU per search.

    The first round is a warm-up. Recall is counted as in `benchmarks.collection.Truth`.
    """
    scores = data.queries @ data.vectors[:size].T
    last = np.partition(scores, size - LIMIT, axis=1)[:, size - LIMIT]
    processes = {}
    for key, store in stores.items():
        async with store.engine.connect() as connection:
            processes[key] = await _server_process(connection)
    cases = [(key, ef_search) for ef_search in EF_SEARCHES for key in stores]
    milliseconds: dict[Any, list[float]] = {case: [] for case in cases}
    cpu: dict[Any, list[float]] = {case: [] for case in cases}
    recall: dict[Any, float] = {}
    for turn in range(rounds + 1):
        for key, ef_search in rotated(cases, turn * 7):
            hits = 0
            begin_cpu = _cpu_seconds(processes[key])
            elapsed = []
            for number, query in enumerate(data.queries):
                begin = time.perf_counter()
                found = await stores[key].search(query, _TENANT, LIMIT, ef_search=ef_search)
                elapsed.append((time.perf_counter() - begin) * 1000)
                rows = [row_of(result.chunk.id) for result in found]
                hits += min(int((scores[number, rows] >= last[number] - 1e-6).sum()), LIMIT)
            recall[key, ef_search] = hits / LIMIT / len(data.queries)
            if turn:
                milliseconds[key, ef_search] += elapsed
                spent = _cpu_seconds(processes[key]) - begin_cpu
                cpu[key, ef_search].append(spent * 1000 / len(data.queries))
    return {
        key: [
            {
                "ef_search": ef_search,
                "recall": recall[key, ef_search],
                "p50": statistics.median(milliseconds[key, ef_search]),
                "cpu": statistics.median(cpu[key, ef_search]),
            }
            for ef_search in EF_SEARCHES
        ]
        for key in stores
    }


async def _insert(
    stores: dict[Any, PgVectorStore[Any]], data: Data, size: int
) -> dict[Any, dict[str, float]]:
    """Upsert new rows into the live indexes, in turns.

    Returns:
        The seconds per batch and the seconds of the server's CPU, as medians.
    """
    seconds: dict[Any, list[float]] = {key: [] for key in stores}
    cpu: dict[Any, list[float]] = {key: [] for key in stores}
    for turn, start in enumerate(range(size, size + INSERTED, BATCH)):
        chunks = _chunks(data.vectors, range(start, start + BATCH))
        for key in rotated(list(stores), turn):
            async with stores[key].engine.connect() as connection:
                process = await _server_process(connection)
            begin, begin_cpu = time.perf_counter(), _cpu_seconds(process)
            await stores[key].upsert(chunks, _TENANT)
            seconds[key].append(time.perf_counter() - begin)
            cpu[key].append(_cpu_seconds(process) - begin_cpu)
    return {
        key: {"seconds": statistics.median(seconds[key]), "cpu": statistics.median(cpu[key])}
        for key in stores
    }


async def _server_process(connection: AsyncConnection) -> int:
    """Return the number of the server's process for a connection."""
    process: int = await connection.scalar(text("SELECT pg_backend_pid()"))
    return process


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of a process; the first number of schedstat is in nanoseconds."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def _table(numbers: dict[str, Any]) -> Table:
    first = numbers["measured"][0]
    at_reference = {step["ef_search"]: step for step in first["searches"]}[REFERENCE_EF_SEARCH]
    rows = []
    for pair in numbers["measured"]:
        row = [f"{pair['m']}, {pair['ef_construction']}"]
        for step in pair["searches"]:
            ratios = [step[key] / at_reference[key] for key in ("p50", "cpu")]
            row.append(f"{step['recall']:.3f} / {ratios[0]:.2f} / {ratios[1]:.2f}")
        row.append(f"{pair['build_cpu'] / first['build_cpu']:.2f}")
        ratios = [first["insertion"][key] / pair["insertion"][key] for key in ("seconds", "cpu")]
        row.append(f"{ratios[0]:.2f} / {ratios[1]:.2f}")
        rows.append(row)
    title = (
        f"{numbers['name']}, {numbers['rows']:,} rows: recall@{LIMIT} / p50 / server CPU, relative "
        f"to the first pair's at ef_search {REFERENCE_EF_SEARCH}; rate of insertion / by CPU"
    )
    head = ["m, ef_construction", *(f"ef {ef}" for ef in EF_SEARCHES), "build CPU", "insertion"]
    return Table(title, head, rows)


def _collections(options: argparse.Namespace) -> list[Data]:
    """Return the generated collection's largest tenant, and the given collections."""
    wanted = options.rows + INSERTED
    generated = collection.generate(
        round(wanted * 100 / SHARES[0]) + 1,
        dimensions=options.dimensions,
        queries=options.queries,
        extra=0,
        words=1,
    )
    found = [Data("generated", generated.vectors[:wanted], generated.queries)]
    random = np.random.default_rng(0)
    for folder in options.data:
        vectors, queries = (
            _unit(np.load(folder / name).astype(np.float32)) for name in ("docs.npy", "queries.npy")
        )
        found.append(Data(folder.name, random.permutation(vectors), queries[: options.queries]))
    return found


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _chunks(vectors: Floats, rows: range) -> list[EmbeddedChunk]:
    return [
        EmbeddedChunk(
            chunk=Chunk(id=id_of(row), document_id=str(row // 10), content="some words " * 40),
            embedding=vectors[row],
            embedding_model="model",
        )
        for row in rows
    ]


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index_settings")
    add = parser.add_argument
    add("--rows", type=int, default=25_000, help="rows of the generated collection")
    add("--dimensions", type=int, default=384, help="dimensions of generated vectors")
    add("--queries", type=int, default=150, help="maximum number of queries")
    add("--rounds", type=int, default=3, help="timed searches of each query")
    add(
        "--data",
        type=Path,
        action="append",
        default=[],
        help="folder with docs.npy and queries.npy; may be repeated",
    )
    add("--json", type=Path)
    add("--markdown", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
