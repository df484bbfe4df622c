"""Both stores on a real collection: agreement, recall, nDCG@10, and that of words beside vectors.

    python -m benchmarks.retrieval FOLDER

The folder holds docs.jsonl and queries.jsonl (one {"id", "text"} a line), docs.npy and queries.npy
(their embeddings, row by row), and qrels.tsv (qid, docid, rel; with a header).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cenote import Chunk, EmbeddedChunk, InMemoryVectorStore, PgVectorStore, RetrievalResult
from cenote.embedded import EmbeddedPostgres
from cenote.retrievers import BM25Retriever, HybridRetriever, Retriever, VectorRetriever

BATCH = 1000


async def measure(dsn: str, folder: Path) -> None:
    """Load the collection into one namespace of both stores, and play its queries."""
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
    memory = InMemoryVectorStore(vectors.shape[1])
    async with await PgVectorStore.connect(dsn, vectors.shape[1]) as store:
        await store.apply_migrations()
        for start in range(0, len(chunks), BATCH):
            await store.upsert(chunks[start : start + BATCH], "collection")
            await memory.upsert(chunks[start : start + BATCH], "collection")
        agreeing, recalls, gains, difference = 0, [], [], 0.0
        for query, vector in zip(queries, query_vectors, strict=True):
            default = await store.search(vector, "collection")
            exact = await store.search(vector, "collection", exact=True)
            in_memory = await memory.search(vector, "collection")
            agreeing += _ids(exact) == _ids(in_memory)
            pairs = zip(exact, in_memory, strict=True)
            difference = max(difference, *(abs(one.score - two.score) for one, two in pairs))
            recalls.append(len(set(_ids(default)) & set(_ids(exact))) / len(exact))
            gains.append(_ndcg(_ids(default), relevant[query["id"]]))
    print(f"{len(documents):,} documents, {len(queries)} queries, limit 10")
    print(f"  exact in Postgres and memory: {agreeing} of {len(queries)} queries the same ids")
    print(f"  largest difference of a score: {difference:.1e}")
    print(f"  recall of the default search against exact: {np.mean(recalls):.3f}")
    print(f"  nDCG@10 of the default search: {np.mean(gains):.4f}")
    vector_of = {
        query["text"]: vector for query, vector in zip(queries, query_vectors, strict=True)
    }
    by_words = BM25Retriever(memory)
    both = HybridRetriever([VectorRetriever(memory, vector_of.__getitem__), by_words])
    retrievers: dict[str, Retriever] = {"BM25": by_words, "both": both}
    for name, retriever in retrievers.items():
        gains = [
            _ndcg(
                _ids(await retriever.retrieve(query["text"], "collection")), relevant[query["id"]]
            )
            for query in queries
        ]
        print(f"  nDCG@10 of {name}: {np.mean(gains):.4f}")


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
    """Normalised discounted cumulative gain, binary grades, log2 discount."""
    gain = sum(1 / math.log2(rank + 2) for rank, hit in enumerate(found) if hit in relevant)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure both stores on a collection.")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with EmbeddedPostgres() as server:
        asyncio.run(measure(server.dsn, arguments.folder))
