"""Measure how the cost of a filter grows with the number of values in its list, in both stores.

python -m benchmarks.membership
python -m benchmarks.membership --rows 20000 --values 20,2000 --filters in_,not_in
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cenote import Chunk, EmbeddedChunk, InMemoryVectorStore, PgVectorStore, field, meta
from cenote.embedded import EmbeddedPostgres

DIMENSIONS = 64
FILTERS: dict[str, Callable[[list[str]], Any]] = {
    "in_": lambda values: meta("doc").in_(values),
    "not_in": lambda values: meta("doc").not_in(values),
    "in_ nested": lambda values: meta("source", "doc").in_(values),
    "any_of": lambda values: meta("docs").any_of(values),
    "all_of": lambda values: meta("docs").all_of(["all", *values[1:]]),
    "in_ column": lambda values: field("content").in_(values),
}
"""Functions that build a filter from a list of values."""


def chunks(rows: int) -> list[EmbeddedChunk]:
    """Return one chunk for each of `rows` documents."""
    vectors = np.random.default_rng(0).standard_normal((rows, DIMENSIONS)).astype(np.float32)
    return [
        EmbeddedChunk(
            chunk=Chunk(
                id=f"{row:06}",
                document_id=f"d{row}",
                content=_document(row),
                metadata={
                    "doc": _document(row),
                    "source": {"doc": _document(row)},
                    "docs": ["all", _document(row)],
                },
            ),
            embedding=vector,
            embedding_model="model",
        )
        for row, vector in enumerate(vectors)
    ]


def _document(number: int) -> str:
    return f"document-{number:06}"


def documents(count: int, rows: int) -> list[str]:
    """Return the names of `count` documents, evenly spread over the rows."""
    return [_document(number * max(rows // count, 1)) for number in range(count)]


def calls(query: Any) -> dict[str, Callable[[Any, Any], Awaitable[Any]]]:
    """Return the measured methods."""
    return {
        "count": lambda store, filter: store.count("n", filter),
        "search": lambda store, filter: store.search(query, "n", 10, filter),
    }


async def measure(
    store: Any, rows: int, counts: list[int], names: list[str], rounds: int
) -> dict[tuple[str, str, int], float]:
    """Return the median seconds by method, filter and number of values.

    In each round, the lengths take turns. The number 0 stands for a scan: a filter that compares
    each row with one value, without an index.
    """
    query = np.random.default_rng(1).standard_normal(DIMENSIONS).astype(np.float32)
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for name in names:
        filters = {0: meta("doc") >= "document"}
        filters |= {count: FILTERS[name](documents(count, rows)) for count in counts}
        for method, call in calls(query).items():
            for filter in filters.values():
                await call(store, filter)
            for _ in range(rounds):
                for count, filter in filters.items():
                    begin = time.perf_counter()
                    await call(store, filter)
                    elapsed = time.perf_counter() - begin
                    seconds.setdefault((method, name, count), []).append(elapsed)
    return {key: statistics.median(values) for key, values in seconds.items()}


def table(medians: dict[str, dict[tuple[str, str, int], float]], counts: list[int]) -> str:
    """Return a Markdown table of the times, relative to the same filter with the first count."""
    first = counts[0]
    lines = [
        f"| store | call | filter | a scan | {' | '.join(f'{count:,}' for count in counts)} |",
        "|---" * (4 + len(counts)) + "|",
    ]
    for store, seconds in medians.items():
        for method, name in dict.fromkeys(key[:2] for key in seconds):
            base = seconds[method, name, first]
            ratios = [seconds[method, name, count] / base for count in (0, *counts)]
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {store} | {method} | `{name}` | {cells} |")
    return "\n".join(lines)


async def main() -> None:
    """Load both stores and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--values", default="20,200,2000,20000,40000")
    parser.add_argument("--filters", default=",".join(FILTERS))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    counts = [int(count) for count in options.values.split(",")]
    names = options.filters.split(",")
    medians = {}
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        postgres = PgVectorStore(engine, DIMENSIONS)
        await postgres.apply_migrations()
        stores: dict[str, Any] = {
            "PgVectorStore": postgres,
            "InMemoryVectorStore": InMemoryVectorStore(DIMENSIONS),
        }
        for name, store in stores.items():
            await store.upsert(chunks(options.rows), "n")
            if store is postgres:
                async with engine.connect() as connection:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    await connection.execute(text("VACUUM ANALYZE"))
            medians[name] = await measure(store, options.rows, counts, names, options.rounds)
        await engine.dispose()
    print(f"{options.rows:,} rows; medians of {options.rounds}")
    print(table(medians, counts))


if __name__ == "__main__":
    asyncio.run(main())
