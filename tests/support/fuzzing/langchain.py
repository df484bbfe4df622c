"""Input for the LangChain adapter."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from support.fuzzing import filters as fuzz_filters
from support.fuzzing import objects, values
from support.fuzzing.calls import Argument
from support.fuzzing.values import MARKER, Lazy, anything

from cenote.adapters import langchain


class FakeEmbeddings(Embeddings):
    """Embeddings that return a fixed answer, which may be invalid."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def embed_documents(self, texts: list[str]) -> Any:
        good = [[1.0, float(place), 0.5, 0.0] for place, _ in enumerate(texts)]
        return good if self.answer is None else self.answer

    def embed_query(self, text: str) -> Any:
        return [1.0, 0.2, 0.5, 0.1] if self.answer is None else self.answer

    async def aembed_documents(self, texts: list[str]) -> Any:
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> Any:
        return self.embed_query(text)


_embeddings = Argument(
    st.none(), anything.filter(lambda answer: answer is not None) | st.lists(values.odd_vectors)
)
_query_embeddings = Argument(
    st.none(), values.odd_vectors.filter(lambda answer: answer is not None)
)
_documents = objects.list_of(
    objects.built(
        Document,
        {
            "id": objects.ids,
            "page_content": objects.contents,
            "metadata": objects.metadata_naming("document_id"),
        },
        settable=("id", "page_content", "metadata"),
    )
)
_filters = Argument(fuzz_filters.good_filters, fuzz_filters.odd_filters)
_search = {"k": objects.limits, "filter": _filters, "embedding": _query_embeddings}
_lambdas = Argument(st.floats(0, 1), anything)
_fetch = Argument(st.integers(1, 50), values.odd_limits)
_LANGCHAIN: dict[str, dict[str, Argument]] = {
    "add_documents": {
        "documents": _documents,
        "ids": Argument(st.none(), anything | st.lists(objects.ids.odd, max_size=3)),
        "embedding": _embeddings,
    },
    "add_texts": {
        "texts": Argument(
            st.lists(objects.contents.good, min_size=2, max_size=2),
            anything | st.lists(objects.contents.odd, min_size=2, max_size=2),
        ),
        "metadatas": Argument(
            st.none()
            | st.lists(objects.metadata_naming("document_id").good, min_size=2, max_size=2),
            anything | st.lists(objects.metadata_naming("document_id").odd, min_size=1, max_size=2),
        ),
        "ids": Argument(
            st.none() | st.lists(objects.ids.good, min_size=2, max_size=2),
            anything | st.lists(objects.ids.odd, min_size=2, max_size=2),
        ),
        "embedding": _embeddings,
    },
    "delete": {
        "ids": Argument(
            objects.id_lists.good, objects.id_lists.odd.filter(lambda ids: ids is not None)
        ),
    },
    "delete by filter": {"filter": _filters},
    "get_by_ids": {"ids": objects.id_lists},
    "similarity_search_with_score": {
        "query": objects.search_by,
        **_search,
        "min_score": Argument(values.good_scores, anything),
    },
    "similarity_search_by_vector": {
        "embedding_given": objects.vectors,
        "k": objects.limits,
        "filter": _filters,
    },
    "similarity_search_with_relevance_scores": {
        "query": objects.search_by,
        **_search,
        "score_threshold": Argument(st.floats(0, 1) | st.none(), st.floats()),
    },
    "max_marginal_relevance_search": {
        "query": objects.search_by,
        **_search,
        "fetch_k": _fetch,
        "lambda_mult": _lambdas,
    },
    "max_marginal_relevance_search_by_vector": {
        "embedding_given": objects.vectors,
        "k": objects.limits,
        "fetch_k": _fetch,
        "lambda_mult": _lambdas,
        "filter": _filters,
    },
}


def _langchain(store: Any, namespace: str, arguments: dict[str, Any]) -> Any:
    return langchain.CenoteVectorStore(
        store, FakeEmbeddings(arguments.pop("embedding", None)), namespace
    )


def _call_langchain(adapter: Any, entry: str, arguments: dict[str, Any], *, awaited: bool) -> Any:
    if "embedding_given" in arguments:
        arguments["embedding"] = arguments.pop("embedding_given")
    name = entry.split()[0]
    if name == "get_by_ids":
        return objects.method(adapter, "a" * awaited + name)(arguments["ids"])
    return objects.method(adapter, "a" * awaited + name)(**arguments)


ADAPTER = objects.Adapter(_langchain, _call_langchain, _LANGCHAIN)

# -- regressions

_TEXT = Document(page_content="text")


def _of_document(name: Any) -> dict[str, Any]:
    """Return arguments with a document whose metadata name another document."""
    document = {"page_content": "text", "id": "8", "metadata": {"document_id": name}}
    return {"documents": [objects.Built(Document, document)]}


def _deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    return nested


REGRESSIONS: list[tuple[str, dict[str, Any], bool]] = [
    ("add_documents", {"documents": objects.generator_of(_TEXT)}, True),
    ("add_documents", {"documents": ["text"]}, False),
    ("add_documents", {"documents": [_TEXT], "ids": ["8", "9"]}, False),
    ("add_documents", {"documents": [_TEXT], "ids": [0]}, False),
    ("add_documents", {"documents": [_TEXT], "embedding": 5}, False),
    ("add_documents", {"documents": [_TEXT], "embedding": []}, False),
    ("add_documents", _of_document(10**5000), False),
    ("add_documents", _of_document(objects.ARRAY), False),
    ("add_documents", _of_document(Lazy("deep", _deep)), False),
    ("add_texts", {"texts": "text"}, False),
    ("add_texts", {"texts": ["a", "b"], "metadatas": [{}]}, False),
    ("add_texts", {"texts": ["a"], "metadatas": [MARKER]}, False),
    ("max_marginal_relevance_search", {"query": "cat", "lambda_mult": "1"}, False),
    ("max_marginal_relevance_search", {"query": "cat", "fetch_k": None}, False),
]
"""Inputs that once caused errors: method, arguments, and True if the adapter accepts them."""
