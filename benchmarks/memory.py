"""Compare searches of the in-memory store with the product and partial sort that they require.

python -m benchmarks.memory
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.collection import Floats
from cenote import Chunk, EmbeddedChunk, InMemoryVectorStore

DIMENSIONS = 384


async def measure(count: int, queries: int) -> list[dict[str, Any]]:
    """Measure the medians of store and plain product for each filter, alternating by query."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((count, DIMENSIONS)).astype(np.float32)
    store = InMemoryVectorStore(DIMENSIONS)
    await store.upsert(_chunks(vectors), "n")
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    measurements = []
    for filter in (None, {"half": 1}, {"year": 2007}):
        product_seconds, search_seconds = [], []
        for query in generator.standard_normal((queries, DIMENSIONS)).astype(np.float32):
            begin = time.perf_counter()
            np.argpartition(units @ query, -10)[-10:]
            middle = time.perf_counter()
            await store.search(query, "n", 10, filter)
            product_seconds.append(middle - begin)
            search_seconds.append(time.perf_counter() - middle)
        product = statistics.median(product_seconds)
        search = statistics.median(search_seconds)
        measurements.append(
            {
                "rows": count,
                "filter": filter,
                "ratio": search / product,
                "microseconds": search * 1e6,
                "microseconds_above": (search - product) * 1e6,
            }
        )
    return measurements


def run(counts: list[int], queries: int) -> list[dict[str, Any]]:
    """Run the measurement for several numbers of rows."""
    return [result for count in counts for result in asyncio.run(measure(count, queries))]


def _chunks(vectors: Floats) -> list[EmbeddedChunk]:
    return [
        EmbeddedChunk(
            chunk=Chunk(
                id=f"{row:06}",
                document_id=f"d{row // 10}",
                content="some words " * 10,
                position=row % 10,
                metadata={"year": 2000 + row % 20, "half": row % 2},
            ),
            embedding=vector,
            embedding_model="model",
        )
        for row, vector in enumerate(vectors)
    ]


if __name__ == "__main__":
    for result in run([10_000, 50_000, 200_000], queries=100):
        print(
            f"{result['rows']:9,} rows, filter {result['filter']!s:16} "
            f"{result['ratio']:5.2f} x the plain product and argpartition"
        )
