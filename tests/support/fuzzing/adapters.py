"""Input for test_fuzz_adapters.py, and conversion of the adapters' answers to plain values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.dataclasses import Document as HaystackDocument
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.utils import Secret
from hypothesis import strategies as st
from langchain_core.documents import Document
from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from support.fuzzing import calls as fuzz_calls
from support.fuzzing import haystack as fuzz_haystack
from support.fuzzing import langchain as fuzz_langchain
from support.fuzzing import llama_index as fuzz_llama_index
from support.fuzzing import objects, values
from support.fuzzing.calls import Argument
from support.fuzzing.values import MARKER, anything

from cenote import InMemoryVectorStore
from cenote.adapters import langchain, llama_index
from cenote.adapters.haystack import CenoteDocumentStore, CenoteEmbeddingRetriever
from cenote.testing import embedded

SEEDS = [
    *fuzz_calls.SEEDS,
    embedded("4", [0.3, 0.1, 0.7, 0.9], metadata={"a": "2024-02-29", "b": "9" * 30}),
]
"""Chunks in each namespace before a call, written without an adapter."""

_MODULES = {
    "langchain": fuzz_langchain,
    "haystack": fuzz_haystack,
    "llama_index": fuzz_llama_index,
}
ADAPTERS = {name: module.ADAPTER for name, module in _MODULES.items()}
REGRESSIONS = {name: module.REGRESSIONS for name, module in _MODULES.items()}
STORE_SPECIFIC = ("query by words",)
"""Methods whose results are specific to the kind of store."""


@contextmanager
def numbered_ids() -> Iterator[None]:
    """Make the adapter generate the same ids for each store."""
    numbers = itertools.count()
    with patch.object(langchain, "uuid", SimpleNamespace(uuid4=lambda: f"made {next(numbers)}")):
        yield


# -- answers


def plain(answer: Any) -> Any:
    """Convert the framework's objects in an answer to plain values."""
    match answer:
        case Document():
            return {"id": answer.id, "content": answer.page_content, "metadata": answer.metadata}
        case HaystackDocument():
            return {name: plain(getattr(answer, name)) for name in vars(answer)}
        case ByteStream() | SparseEmbedding():
            return vars(answer)
        case BaseNode():
            return answer.model_dump(mode="json", exclude={"embedding"})
        case VectorStoreQueryResult():
            return {name: plain(value) for name, value in vars(answer).items()}
        case list() | tuple():
            return [plain(item) for item in answer]
        case dict():
            return {name: plain(value) for name, value in answer.items()}
    return answer


# -- constructors

_STORE = InMemoryVectorStore(values.DIMENSIONS)
_DSN = f"postgresql://u:{MARKER}@127.0.0.1:1/nowhere"
_models = Argument(st.just("model"), values.odd_contents)
_namespaces = Argument(values.good_keys, values.odd_keys)


async def _construct_langchain(**arguments: Any) -> None:
    adapter = langchain.CenoteVectorStore(_STORE, fuzz_langchain.FakeEmbeddings(), **arguments)
    await adapter.aadd_texts(["text"], [{"document_id": "d"}], ids=["1"])
    await adapter.aget_by_ids(["1"])


async def _construct_haystack(**arguments: Any) -> None:
    adapter = CenoteDocumentStore(_STORE, **arguments)
    await adapter.write_documents_async([HaystackDocument(id="1")], DuplicatePolicy.OVERWRITE)


async def _construct_from_string(**arguments: Any) -> None:
    CenoteDocumentStore.from_connection_string(**arguments)


async def _construct_retriever(**arguments: Any) -> None:
    CenoteEmbeddingRetriever(CenoteDocumentStore(_STORE, "n"), **arguments)


async def _construct_llama_index(**arguments: Any) -> None:
    adapter = objects.Built(partial(llama_index.CenoteVectorStore, _STORE, **arguments), {}).make()
    await adapter.async_add([TextNode(id_="1", text="", embedding=[1, 0, 0, 0])])


CONSTRUCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Argument], tuple[Any, ...]]] = {
    "langchain": (
        _construct_langchain,
        {"namespace": _namespaces, "embedding_model": _models, "document_id_key": _namespaces},
        (),
    ),
    "haystack": (_construct_haystack, {"namespace": _namespaces, "embedding_model": _models}, ()),
    "haystack by string": (
        _construct_from_string,
        {
            "connection_string": Argument(
                st.just(Secret.from_token(_DSN)),
                anything | st.sampled_from([_DSN, Secret.from_env_var("NONE", strict=False)]),
            ),
            "dimensions": Argument(st.just(4), anything),
            "namespace": Argument(st.just("n"), st.just("n")),
            "table_name": Argument(st.just("t"), values.odd_keys),
        },
        (),
    ),
    "haystack retriever": (
        _construct_retriever,
        {
            "top_k": Argument(st.integers(1, 5), values.odd_limits),
            "filter_policy": Argument(st.sampled_from([*FilterPolicy]), anything),
        },
        (ValueError,),
    ),
    "llama_index": (
        _construct_llama_index,
        {"namespace": _namespaces, "embedding_model": _models},
        (),
    ),
}
"""For each constructor: a function that calls it and uses the result once, its arguments, and the
framework's own errors."""
