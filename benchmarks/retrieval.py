"""Measure agreement, recall and nDCG@10 of both stores on a collection with relevance judgements.

    python -m benchmarks.retrieval FOLDER

The folder contains docs.jsonl and queries.jsonl (one {"id", "text"} per line), docs.npy and
queries.npy (their embeddings, row by row), and qrels.tsv (qid, docid, rel; with a header).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from cenote import (
    Chunk,
    EmbeddedChunk,
    InMemoryVectorStore,
    PgVectorStore,
    RetrievalResult,
    VectorStore,
)
from cenote.embedded import EmbeddedPostgres
from cenote.retrievers import BM25Retriever, HybridRetriever, VectorRetriever, stems

BATCH = 1000

Search = Callable[[str], Awaitable[list[RetrievalResult]]]


async def measure(dsn: str, folder: Path) -> None:
    """Load the collection into both stores, run its queries and print the measurements."""
    documents, vectors = _read(folder, "docs")
    queries, query_vectors = _read(folder, "queries")
    relevant = _judgements(folder)
    chunks = [
        EmbeddedChunk(
            chunk=Chunk(id=document["id"], document_id=document["id"], content=document["text"]),
            embedding=vector,
            embedding_model="given",
        )
        for document, vector in zip(documents, vectors, strict=True)
    ]
    memory = InMemoryVectorStore(vectors.shape[1], text_search="english")
    connecting = PgVectorStore.connect(dsn, vectors.shape[1], text_search="english")
    async with await connecting as store:
        await store.apply_migrations()
        for start in range(0, len(chunks), BATCH):
            await store.upsert(chunks[start : start + BATCH], "collection")
            await memory.upsert(chunks[start : start + BATCH], "collection")
        identical, recalls, gains, difference = 0, [], [], 0.0
        for query, vector in zip(queries, query_vectors, strict=True):
            default = await store.search(vector, "collection")
            exact = await store.search(vector, "collection", exact=True)
            in_memory = await memory.search(vector, "collection")
            identical += _ids(exact) == _ids(in_memory)
            pairs = zip(exact, in_memory, strict=True)
            difference = max(difference, *(abs(a.score - b.score) for a, b in pairs))
            recalls.append(len(set(_ids(default)) & set(_ids(exact))) / len(exact))
            gains.append(_ndcg(_ids(default), relevant[query["id"]]))
        print(f"{len(documents):,} documents, {len(queries)} queries, limit 10")
        print(f"  exact search, Postgres and memory: same ids in {identical} of {len(queries)}")
        print(f"  largest difference of a score: {difference:.1e}")
        print(f"  recall of the default search: {np.mean(recalls):.3f}")
        print(f"  nDCG@10 of the default search: {np.mean(gains):.4f}")
        await _measure_text_search(store, memory, queries, query_vectors, relevant)


async def _measure_text_search(
    store: VectorStore, memory: VectorStore, queries: Any, query_vectors: Any, relevant: Any
) -> None:
    """Print nDCG@10 of the text searches, alone and combined with vectors, and their times."""
    vector_of = {
        query["text"]: vector for query, vector in zip(queries, query_vectors, strict=True)
    }
    by_vector = VectorRetriever(store, vector_of.__getitem__)
    by_words = BM25Retriever(store)
    by_stems = BM25Retriever(store, tokenize=stems("english"))

    def vector_search(store: VectorStore) -> Search:
        return lambda text: store.search(vector_of[text], "collection")

    def text_search(store: VectorStore) -> Search:
        return lambda text: store.search_text(text, "collection")

    def hybrid_search(store: VectorStore) -> Search:
        return lambda text: store.search_hybrid(text, vector_of[text], "collection")

    searches: dict[str, Search] = {
        "BM25 of words": lambda text: by_words.retrieve(text, "collection"),
        "BM25 of words and vectors": lambda text: HybridRetriever([by_vector, by_words]).retrieve(
            text, "collection"
        ),
        "BM25 of stems": lambda text: by_stems.retrieve(text, "collection"),
        "search_text in Postgres": text_search(store),
        "search_text in memory": text_search(memory),
        "search_hybrid in Postgres": hybrid_search(store),
        "search_hybrid in memory": hybrid_search(memory),
    }
    for name, search in searches.items():
        gains = [
            _ndcg(_ids(await search(query["text"])), relevant[query["id"]]) for query in queries
        ]
        print(f"  nDCG@10 of {name}: {np.mean(gains):.4f}")
    print("  median times, relative to a vector search of the same store:")
    for name, measured in (("Postgres", store), ("memory", memory)):
        timed: list[Search] = [
            vector_search(measured),
            text_search(measured),
            hybrid_search(measured),
        ]
        vector, words, hybrid = [await _median_seconds(queries, search) for search in timed]
        print(f"    {name}: text {words / vector:.2f}, hybrid {hybrid / vector:.2f}")


async def _median_seconds(queries: Any, search: Search) -> float:
    """Return the median duration of a search."""
    times = []
    for query in queries:
        start = time.perf_counter()
        await search(query["text"])
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _read(folder: Path, name: str) -> tuple[list[dict[str, Any]], Any]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], np.load(folder / f"{name}.npy").astype(np.float32)


def _judgements(folder: Path) -> dict[str, set[str]]:
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            relevant.setdefault(query, set()).add(document)
    return relevant


def _ids(results: list[RetrievalResult]) -> list[str]:
    return [result.chunk.id for result in results]


def _ndcg(found: list[str], relevant: set[str]) -> float:
    """Return the normalised discounted cumulative gain, with binary grades and a log2 discount."""
    gain = sum(1 / math.log2(rank + 2) for rank, hit in enumerate(found) if hit in relevant)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Measure both stores on a collection with relevance judgements."
    )
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with EmbeddedPostgres() as server:
        asyncio.run(measure(server.dsn, arguments.folder))
