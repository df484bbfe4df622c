"""Retrievers over either store: by vectors, by words, by both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cenote import (
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    meta,
)
from cenote.ranking import maximal_marginal_relevance, reciprocal_rank_fusion
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
    """Either store with some texts."""
    filled: VectorStore = store if request.param == "postgres" else InMemoryVectorStore(4)
    chunks = [
        embedded(one, VECTORS[one], content=text, metadata={"n": number})
        for number, (one, text) in enumerate(TEXTS.items())
    ]
    await filled.upsert(chunks, "acme")
    return filled


def embed(text: str) -> list[float]:
    """An embedding that knows one meaning."""
    return [1.0, 0.0, 0.0, 0.0] if "whale" in text.lower() else [0.0, 0.0, 1.0, 0.0]


async def embed_later(text: str) -> list[float]:
    """The same, to be awaited."""
    await asyncio.sleep(0)
    return embed(text)


async def ids(retriever: Any, text: str, *args: Any) -> list[str]:
    """What is found."""
    return [one.chunk.id for one in await retriever.retrieve(text, "acme", *args)]


async def test_by_vectors(filled: VectorStore) -> None:
    """With embeddings that are made at once, or awaited; arguments of the store go along."""
    for make in (embed, embed_later):
        retriever = VectorRetriever(filled, make, min_score=0.5)
        assert await ids(retriever, "whale") == ["a", "c"]
        assert await ids(retriever, "whale", 1, meta("n") > 0) == ["c"]


async def test_by_words(filled: VectorStore) -> None:
    """Whatever their case; the score is BM25's, and all that is found has a word of the text."""
    retriever = BM25Retriever(filled)
    results = await retriever.retrieve("WHITE whale", "acme")
    assert [one.chunk.id for one in results] == ["a", "b"]
    assert all(one.retriever == "bm25" and one.score > 0 for one in results)
    assert results[0].chunk.content == TEXTS["a"]
    assert await ids(retriever, "white", 1) == ["b"]
    assert await ids(retriever, "white", 9, {"n": 0}) == ["a"]
    assert await ids(retriever, "WEISS") == ["c"]
    assert await ids(retriever, "unheard") == []
    assert await ids(retriever, "?!") == []
    assert await retriever.retrieve("white", "nobody") == []


async def test_words_that_are_written_later(filled: VectorStore) -> None:
    """Are found after a refresh; what is deleted is not found at once."""
    retriever = BM25Retriever(filled)
    assert await ids(retriever, "white") == ["b", "a"]
    await filled.upsert([embedded("e", content="white white white")], "acme")
    await filled.delete(["b"], "acme")
    assert await ids(retriever, "white") == ["a"]
    assert await retriever.refresh("acme") == 4
    assert await ids(retriever, "white") == ["e", "a"]


async def test_another_tokenizer(filled: VectorStore) -> None:
    """Decides which words are the same."""
    retriever = BM25Retriever(filled, tokenize=lambda text: [w[:3] for w in text.lower().split()])
    assert set(await ids(retriever, "whistle")) == {"a", "b"}
    assert await ids(retriever, "horrible") == ["b"]


async def test_by_both(filled: VectorStore) -> None:
    """What both find comes first; weights shift it."""
    both: list[Retriever] = [VectorRetriever(filled, embed), BM25Retriever(filled)]
    results = await HybridRetriever(both).retrieve("white whale", "acme", 3)
    assert [one.chunk.id for one in results] == ["a", "b", "c"]
    assert {one.retriever for one in results} == {"hybrid"}
    assert results[0].score == pytest.approx(2 / 61)
    by_vector = HybridRetriever(both, weights=[1, 0.01])
    assert await ids(by_vector, "white whale", 2) == ["a", "c"]
    assert await ids(HybridRetriever(both), "white whale", 9, {"n": 1}) == ["b"]


async def test_bad_arguments(filled: VectorStore) -> None:
    """Of the retrievers, and of their questions."""
    with pytest.raises(ConfigurationError):
        HybridRetriever([])
    with pytest.raises(ConfigurationError):
        HybridRetriever([BM25Retriever(filled)], weights=[1, 2])
    for weights in ([0, 0], [-1, 1]):
        with pytest.raises(ConfigurationError):
            HybridRetriever([BM25Retriever(filled)] * 2, weights=weights)
    retrievers: list[Any] = [BM25Retriever(filled), VectorRetriever(filled, embed)]
    for retriever in retrievers:
        for arguments in (("x\x00", "n"), ("x", ""), ("x", "n", 0), ("x", "n", 1, 7)):
            with pytest.raises(InvalidInputError):
                await retriever.retrieve(*arguments)


def test_fusion() -> None:
    """By ranks alone; equal ones in their own order; one of no weight has no part in it."""
    assert list(reciprocal_rank_fusion([["x"], ["y"]], [0, 1])) == ["y"]
    assert list(reciprocal_rank_fusion([["x", "y"], ["y", "z"]])) == ["y", "x", "z"]
    assert list(reciprocal_rank_fusion([["x"], ["y"]])) == ["x", "y"]
    assert reciprocal_rank_fusion([["x"], []], [3, 1]) == {"x": 3 / 61}
    assert reciprocal_rank_fusion([]) == {}


def test_marginal_relevance_of_nothing() -> None:
    """Is nothing."""
    import numpy as np

    assert maximal_marginal_relevance(np.ones(3), np.empty((0, 3)), 5, 0.5) == []
