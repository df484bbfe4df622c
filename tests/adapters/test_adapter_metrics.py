"""Adapters over stores of each metric."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from haystack import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from cenote import InMemoryVectorStore, SyncInMemoryVectorStore
from cenote.adapters.haystack import CenoteDocumentStore
from cenote.adapters.langchain import CenoteVectorStore
from cenote.testing import embedded

METRICS: list[Any] = ["cosine", "inner_product", "l2"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("make", [InMemoryVectorStore, SyncInMemoryVectorStore])
def test_relevance_is_between_0_and_1(metric: Any, make: Any) -> None:
    """LangChain's relevance grows with the score of every metric."""
    store = make(4, metric=metric)
    adapter = CenoteVectorStore(store, DeterministicFakeEmbedding(size=4), "n")
    scores: dict[str, list[float]] = {
        "cosine": [-1, 0, 1],
        "inner_product": [-1e6, 0, 1e6],
        "l2": [-1e6, -1, 0],
    }
    relevance = [adapter._select_relevance_score_fn()(score) for score in scores[metric]]
    assert relevance == pytest.approx([0, 0.5, 1], abs=1e-5)
    adapter.add_texts(["a", "b", "c"])
    found = adapter.similarity_search_with_relevance_scores("b", k=3)
    values = [value for _, value in found]
    assert len(found) == 3
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)
    adapter.close()


@pytest.mark.parametrize("metric", METRICS)
def test_documents_without_embeddings_are_not_found_by_vector(metric: Any) -> None:
    """Haystack documents without embeddings are stored as zero vectors, which have scores."""
    documents = CenoteDocumentStore(SyncInMemoryVectorStore(4, metric=metric), "n")
    written = [
        Document(id="a", content="a", embedding=[1.0, 0.0, 0.0, 0.0]),
        Document(id="b", content="b"),
        Document(id="zero", content="zero", embedding=[0.0] * 4),
    ]
    documents.write_documents(written)
    query = [1.0, 0.0, 0.0, 0.0]
    expected = ["a"] if metric == "cosine" else ["a", "zero"]
    assert [found.id for found in documents.embedding_retrieval(query)] == expected
    filters = {"field": "meta.lang", "operator": "!=", "value": "de"}
    assert [found.id for found in documents.embedding_retrieval(query, filters)] == expected
    assert documents.filter_documents() == written


def test_stores_state_their_metric() -> None:
    """The property is cosine by default."""
    assert [InMemoryVectorStore(4, metric=metric).metric for metric in METRICS] == METRICS
    assert SyncInMemoryVectorStore(4, metric="l2").metric == "l2"
    store = InMemoryVectorStore(4, metric="l2")
    asyncio.run(store.upsert([embedded("a")], "n"))
    assert asyncio.run(store.search([0, 0, 0, 0], "n"))[0].score == -1.0
