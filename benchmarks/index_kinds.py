"""Compare the kinds of ANN index: size, build time, recall, search time and throughput.

    python -m benchmarks.index_kinds --markdown kinds.md --picture docs/pictures/index_kinds.svg

Each kind has its own table with the same rows in the default partitions. `--data` names a folder
with docs.npy and queries.npy (and docs.jsonl, queries.jsonl and qrels.tsv for nDCG@10), which is
loaded as a single tenant instead of the generated rows. All ratios are relative to the kind
``"vector"``; the tables take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks import collection
from benchmarks.collection import Collection, Truth, id_of, row_of
from benchmarks.pictures import pair_of_axes
from benchmarks.report import Table
from benchmarks.server import Server, benchmark_server
from benchmarks.workers import rotated
from cenote import Chunk, EmbeddedChunk, PgVectorStore
from cenote.types import IndexKind

KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
CLIENTS = 8
LIMIT = 10
_BATCH = 1000
_CLIENT_SECONDS = 5.0
_SMALLEST_TENANT = 1000  # smaller tenants are compared exactly, whatever the index


@dataclass(frozen=True, slots=True)
class Data:
    """The rows, the tenants that are searched, and the judgements.

    Attributes:
        collection: Rows and queries.
        tenants: Searched tenants, largest first.
        relevant: For each query, the rows that are relevant; empty without judgements.
    """

    collection: Collection
    tenants: list[str]
    relevant: list[set[int]]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the measurement, print the table and write the requested files."""
    options = _options(argv)
    data = _generated(options) if options.data is None else _given(options)
    with benchmark_server(None) as server:
        result = _measure(server, data, options)
        server.drop_databases()
    table = _table(result)
    print(table.as_text())
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(table.as_markdown() + "\n", encoding="utf-8")
    if options.picture:
        _draw(result, options.picture)
    return result


# -- measuring -------------------------------------------------------------------------------------


def _measure(server: Server, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    dsns = {kind: server.create_database(f"kind_{kind}") for kind in KINDS}
    dimensions = data.collection.vectors.shape[1]
    _log(f"{data.collection.size:,} rows of {dimensions} dimensions")
    asyncio.run(_load(dsns["none"], data))
    server.vacuum(dsns["none"])
    numbers: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        if kind != "none":
            server.copy_database(dsns["none"], dsns[kind])
            numbers[kind]["build"] = asyncio.run(_build(dsns[kind], kind, dimensions))
            server.vacuum(dsns[kind])
        numbers[kind]["index"] = server.sizes(dsns[kind])["index"] / data.collection.size
        _log(f"{kind}: {numbers[kind]}")
    for kind, found in asyncio.run(_search(dsns, data, options.rounds)).items():
        numbers[kind] |= found
    for kind, throughput in _throughput(dsns, data).items():
        numbers[kind]["throughput"] = throughput
    return {
        "rows": data.collection.size,
        "dimensions": dimensions,
        "queries": len(data.collection.queries),
        "tenants": len(data.tenants),
        "settings": server.settings(),
        "kinds": numbers,
    }


def _store(dsn: str, dimensions: int, **settings: Any) -> PgVectorStore[Any]:
    url = dsn.replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, pool_size=1, max_overflow=1)
    return PgVectorStore(engine, dimensions, **settings)


async def _load(dsn: str, data: Data) -> None:
    """Create the table without an ANN index and write the rows."""
    rows = data.collection
    store = _store(dsn, rows.vectors.shape[1], index="none")
    await store.apply_migrations()
    for start in range(0, rows.size, _BATCH):
        by_tenant: dict[str, list[EmbeddedChunk]] = {}
        for row in range(start, min(start + _BATCH, rows.size)):
            chunk = Chunk(
                id=id_of(row),
                document_id=str(row // 10),
                content=rows.contents[row],
                metadata=rows.metadata[row],
            )
            embedded = EmbeddedChunk(chunk=chunk, embedding=rows.vectors[row], embedding_model="m")
            by_tenant.setdefault(rows.tenants[row], []).append(embedded)
        for tenant, chunks in by_tenant.items():
            await store.upsert(chunks, tenant)
    await store.engine.dispose()


async def _build(dsn: str, kind: IndexKind, dimensions: int) -> float:
    """Build the ANN index as ``cenote reindex`` does, and return the seconds."""
    from cenote import SchemaConfig
    from cenote.maintenance import reindex

    store = _store(dsn, dimensions)
    begin = time.perf_counter()
    await reindex(store.engine, SchemaConfig(dimensions=dimensions, index=kind))
    seconds = time.perf_counter() - begin
    await store.engine.dispose()
    return seconds


async def _search(dsns: dict[Any, str], data: Data, rounds: int) -> dict[Any, dict[str, Any]]:
    """Run all queries in every tenant and kind in turn; the first round is a warm-up."""
    rows = data.collection
    truth = Truth(rows)
    stores = {kind: _store(dsn, rows.vectors.shape[1]) for kind, dsn in dsns.items()}
    paths = _Paths()
    cases = [(kind, tenant) for tenant in data.tenants for kind in stores]
    milliseconds: dict[Any, list[float]] = {kind: [] for kind in stores}
    counts: dict[Any, dict[str, float]] = {
        kind: {"searches": 0, "exact": 0, "expected": 0, "returned": 0, "hits": 0, "gain": 0.0}
        for kind in stores
    }
    for turn in range(rounds + 1):
        for kind, tenant in rotated(cases, turn * 7):
            paths.enabled = turn == 0
            for number, query in enumerate(rows.queries):
                begin = time.perf_counter()
                results = await stores[kind].search(query, tenant, LIMIT)
                elapsed = (time.perf_counter() - begin) * 1000
                if turn and tenant == data.tenants[0]:
                    milliseconds[kind].append(elapsed)
                if turn:
                    continue
                found = [row_of(result.chunk.id) for result in results]
                judged = truth.judge(number, tenant, None, LIMIT, found)
                count = counts[kind]
                count["searches"] += 1
                count["exact"] += paths.last == "exact"
                for name in ("expected", "returned", "hits"):
                    count[name] += getattr(judged, name)
                if data.relevant:
                    count["gain"] += _ndcg(found, data.relevant[number])
        _log(f"searches, round {turn} of {rounds}")
    for store in stores.values():
        await store.engine.dispose()
    return {
        kind: {
            "p50": statistics.median(milliseconds[kind]),
            "recall": counts[kind]["hits"] / counts[kind]["expected"],
            "completeness": counts[kind]["returned"] / counts[kind]["expected"],
            "exact": counts[kind]["exact"] / counts[kind]["searches"],
            "ndcg": counts[kind]["gain"] / counts[kind]["searches"] if data.relevant else None,
        }
        for kind in stores
    }


class _Paths(logging.Handler):
    """Remember the path of the last search, ``"ann"`` or ``"exact"``, from its log record."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""
        self._logger = logging.getLogger("cenote.telemetry")
        self._logger.addHandler(self)
        self._logger.propagate = False

    @property
    def enabled(self) -> bool:
        return self._logger.level == logging.DEBUG

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._logger.setLevel(logging.DEBUG if enabled else logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self.last = getattr(record, "cenote_path", "")


def _ndcg(found: list[int], relevant: set[int]) -> float:
    """Return nDCG@10 with binary judgements."""
    gains = (1 / math.log2(rank + 2) for rank, row in enumerate(found) if row in relevant)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(LIMIT, len(relevant))))
    return sum(gains) / ideal


def _throughput(dsns: dict[Any, str], data: Data) -> dict[Any, float]:
    """Return the searches per second of eight processes in the largest tenant, in turns."""
    rates: dict[Any, list[float]] = {kind: [] for kind in dsns}
    queries = data.collection.queries
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CLIENTS, mp_context=context) as pool:
        for turn in range(3):
            for kind in rotated(list(dsns), turn):
                clients = [
                    pool.submit(_client, dsns[kind], queries, data.tenants[0])
                    for _ in range(CLIENTS)
                ]
                rates[kind].append(sum(client.result() for client in clients))
            _log(f"eight clients, turn {turn + 1} of 3")
    return {kind: statistics.median(values) for kind, values in rates.items()}


def _client(dsn: str, queries: Any, tenant: str) -> float:
    """Search for a few seconds, and return the searches per second."""

    async def run() -> float:
        store = _store(dsn, queries.shape[1])
        for query in queries[:20]:
            await store.search(query, tenant, LIMIT)
        begin, searches = time.perf_counter(), 0
        while time.perf_counter() - begin < _CLIENT_SECONDS:
            await store.search(queries[searches % len(queries)], tenant, LIMIT)
            searches += 1
        rate = searches / (time.perf_counter() - begin)
        await store.engine.dispose()
        return rate

    return asyncio.run(run())


# -- data ------------------------------------------------------------------------------------------


def _generated(options: argparse.Namespace) -> Data:
    rows = collection.generate(
        options.rows, dimensions=options.dimensions, queries=options.queries, extra=0
    )
    sizes = rows.tenant_sizes()
    tenants = [name for name, size in sizes.items() if size > _SMALLEST_TENANT]
    return Data(rows, tenants, [])


def _given(options: argparse.Namespace) -> Data:
    """Return the collection of a folder as one tenant, in the order of its files."""
    folder: Path = options.data
    vectors, queries = (
        np.load(folder / name).astype(np.float32) for name in ("docs.npy", "queries.npy")
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    numbers, query_ids = _ids(folder / "docs.jsonl"), _ids(folder / "queries.jsonl")
    relevant: list[set[int]] = [set() for _ in query_ids]
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            relevant[query_ids[query]].add(numbers[document])
    count = len(vectors)
    rows = Collection(
        vectors=vectors,
        queries=queries,
        tenants=["collection"] * count,
        metadata=[{"row": row} for row in range(count)],
        contents=["some words " * 40] * count,
        query_topics=[0] * len(queries),
        size=count,
    )
    return Data(rows, ["collection"], relevant)


def _ids(file: Path) -> dict[str, int]:
    """Return the line numbers of a file's ids."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["id"]: number for number, line in enumerate(lines)}


# -- results ---------------------------------------------------------------------------------------


def _table(result: dict[str, Any]) -> Table:
    kinds = result["kinds"]
    first = kinds["vector"]
    has_judgements = first["ndcg"] is not None
    head = ["index", "bytes per vector", "build", f"recall@{LIMIT}", "p50", "throughput", "exact"]
    rows = []
    for kind, numbers in kinds.items():
        row = [
            kind,
            f"{numbers['index']:,.0f} ({numbers['index'] / first['index']:.3f})",
            f"{numbers['build'] / first['build']:.2f}" if "build" in numbers else "-",
            f"{numbers['recall']:.4f}",
            f"{numbers['p50'] / first['p50']:.2f}",
            f"{numbers['throughput'] / first['throughput']:.2f}",
            f"{numbers['exact']:.1%}",
        ]
        rows.append([*row, f"{numbers['ndcg']:.4f}"] if has_judgements else row)
    complete = min(numbers["completeness"] for numbers in kinds.values())
    title = (
        f"{result['rows']:,} rows of {result['dimensions']} dimensions, {result['queries']} "
        f"queries in {result['tenants']} tenants, relative to vector; completeness {complete:.4f}"
    )
    return Table(title, [*head, "nDCG@10"] if has_judgements else head, rows)


def _draw(result: dict[str, Any], file: Path) -> None:
    """Draw the size of the index and the p50 of each kind, relative to ``"vector"``."""
    kinds = result["kinds"]
    first = kinds["vector"]
    with pair_of_axes(file) as axes:
        for (measure, title), panel in zip(
            (("index", "Size of the index"), ("p50", "p50 of a search")), axes, strict=True
        ):
            names = [kind for kind in kinds if kinds[kind][measure]]
            values = [kinds[kind][measure] / first[measure] for kind in names]
            bars = panel.barh(names[::-1], values[::-1], color="#0072B2", height=0.6)
            panel.bar_label(bars, fmt="%.2f", padding=4)
            panel.set_xlim(0, max(values) * 1.15)
            panel.set_title(title, loc="left")
            panel.set_xlabel("relative to vector")


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index_kinds")
    add = parser.add_argument
    add("--rows", type=int, default=200_000, help="rows of the generated collection")
    add("--dimensions", type=int, default=768, help="dimensions of generated vectors")
    add("--queries", type=int, default=100, help="number of generated queries")
    add("--rounds", type=int, default=3, help="timed searches of each query")
    add("--data", type=Path, help="folder with a collection, instead of generated rows")
    add("--json", type=Path)
    add("--markdown", type=Path)
    add("--picture", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
