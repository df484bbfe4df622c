"""Retrievers over each kind of store: by vector, by words, and hybrid."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from cenote import (
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    meta,
)
from cenote.ranking.fusion import maximal_marginal_relevance, reciprocal_rank_fusion
from cenote.retrievers import BM25Retriever, HybridRetriever, Retriever, VectorRetriever
from cenote.stores import VectorStore
from cenote.testing import embedded

TEXTS = {
    "a": "The Whale, white and alone",
    "b": "a white horse; a white house",
    "c": "der Wal ist weiß",
    "d": "nothing of all that",
}
VECTORS: dict[str, list[float]] = {
    "a": [1, 0, 0, 0],
    "b": [0, 1, 0, 0],
    "c": [1, 0.2, 0, 0],
    "d": [0, 0, 1, 0],
}


@pytest.fixture(params=["memory", "postgres"])
async def filled(request: pytest.FixtureRequest, store: PgVectorStore) -> VectorStore:
    """A store of each kind with four texts."""
    filled: VectorStore = store if request.param == "postgres" else InMemoryVectorStore(4)
    chunks = [
        embedded(chunk_id, VECTORS[chunk_id], content=text, metadata={"n": number})
        for number, (chunk_id, text) in enumerate(TEXTS.items())
    ]
    await filled.upsert(chunks, "acme")
    return filled


def embed(text: str) -> list[float]:
    """Return one vector for texts about whales and another for all other texts."""
    return [1.0, 0.0, 0.0, 0.0] if "whale" in text.lower() else [0.0, 0.0, 1.0, 0.0]


async def embed_async(text: str) -> list[float]:
    """Return the result of `embed` asynchronously."""
    await asyncio.sleep(0)
    return embed(text)


async def ids(retriever: Any, text: str, *args: Any) -> list[str]:
    """Return the ids of the retrieved chunks."""
    return [result.chunk.id for result in await retriever.retrieve(text, "acme", *args)]


async def test_vector_retriever(filled: VectorStore) -> None:
    """The embedding function may be asynchronous, and options are passed to the store."""
    for embed_text in (embed, embed_async):
        retriever = VectorRetriever(filled, embed_text, min_score=0.5)
        assert await ids(retriever, "whale") == ["a", "c"]
        assert await ids(retriever, "whale", 1, meta("n") > 0) == ["c"]


async def test_bm25_retriever(filled: VectorStore) -> None:
    """BM25 ignores case, and every result contains a word of the query."""
    retriever = BM25Retriever(filled)
    results = await retriever.retrieve("WHITE whale", "acme")
    assert [result.chunk.id for result in results] == ["a", "b"]
    assert all(result.retriever == "bm25" and result.score > 0 for result in results)
    assert results[0].chunk.content == TEXTS["a"]
    assert await ids(retriever, "white", 1) == ["b"]
    assert await ids(retriever, "white", 9, {"n": 0}) == ["a"]
    assert await ids(retriever, "WEISS") == ["c"]
    assert await ids(retriever, "unheard") == []
    assert await ids(retriever, "?!") == []
    assert await retriever.retrieve("white", "nobody") == []


async def test_refreshing_bm25(filled: VectorStore) -> None:
    """New chunks are found after a refresh; deleted chunks disappear at once."""
    retriever = BM25Retriever(filled)
    assert await ids(retriever, "white") == ["b", "a"]
    await filled.upsert([embedded("e", content="white white white")], "acme")
    await filled.delete(["b"], "acme")
    assert await ids(retriever, "white") == ["a"]
    assert await retriever.refresh("acme") == 4
    assert await ids(retriever, "white") == ["e", "a"]


async def test_a_tokenizer_of_the_application(filled: VectorStore) -> None:
    """BM25 compares words as the tokenizer returns them."""
    retriever = BM25Retriever(filled, tokenize=lambda text: [w[:3] for w in text.lower().split()])
    assert set(await ids(retriever, "whistle")) == {"a", "b"}
    assert await ids(retriever, "horrible") == ["b"]


async def test_hybrid_retriever(filled: VectorStore) -> None:
    """Chunks that both retrievers find come first; weights change the order."""
    both: list[Retriever] = [VectorRetriever(filled, embed), BM25Retriever(filled)]
    results = await HybridRetriever(both).retrieve("white whale", "acme", 3)
    assert [result.chunk.id for result in results] == ["a", "b", "c"]
    assert {result.retriever for result in results} == {"hybrid"}
    assert results[0].score == pytest.approx(2 / 61)
    mostly_vectors = HybridRetriever(both, weights=[1, 0.01])
    assert await ids(mostly_vectors, "white whale", 2) == ["a", "c"]
    assert await ids(HybridRetriever(both), "white whale", 9, {"n": 1}) == ["b"]


async def test_invalid_arguments(filled: VectorStore) -> None:
    """Constructors and `retrieve` reject invalid arguments."""
    with pytest.raises(ConfigurationError):
        HybridRetriever([])
    with pytest.raises(ConfigurationError):
        HybridRetriever([BM25Retriever(filled)], depth=10_001)
    with pytest.raises(ConfigurationError):
        HybridRetriever([BM25Retriever(filled)], weights=[1, 2])
    for weights in ([0, 0], [-1, 1]):
        with pytest.raises(ConfigurationError):
            HybridRetriever([BM25Retriever(filled)] * 2, weights=weights)
    retrievers: list[Any] = [BM25Retriever(filled), VectorRetriever(filled, embed)]
    for retriever in retrievers:
        for arguments in (
            ("x\x00", "n"),
            ("x", ""),
            ("x", "n", 0),
            ("x", "n", 10_001),
            ("x", "n", 1, 7),
        ):
            with pytest.raises(InvalidInputError):
                await retriever.retrieve(*arguments)


def test_reciprocal_rank_fusion() -> None:
    """Fusion uses ranks only, orders ties by item and ignores rankings of weight 0."""
    assert list(reciprocal_rank_fusion([["x"], ["y"]], [0, 1])) == ["y"]
    assert list(reciprocal_rank_fusion([["x", "y"], ["y", "z"]])) == ["y", "x", "z"]
    assert list(reciprocal_rank_fusion([["x"], ["y"]])) == ["x", "y"]
    assert reciprocal_rank_fusion([["x"], []], [3, 1]) == {"x": 3 / 61}
    assert reciprocal_rank_fusion([]) == {}


def test_maximal_marginal_relevance_without_candidates() -> None:
    """Without candidates, nothing is selected."""
    assert maximal_marginal_relevance(np.ones(3), np.empty((0, 3)), 5, 0.5) == []
