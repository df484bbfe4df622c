"""The records that cross the API, and the errors."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import pickle
from typing import Any

import numpy as np
import pytest

import cenote
from cenote import Chunk, DimensionMismatchError, EmbeddedChunk, RetrievalResult, errors

PUBLIC_MODULES = [
    "cenote",
    "cenote.adapters.haystack",
    "cenote.adapters.langchain",
    "cenote.adapters.llama_index",
    "cenote.autogenerate",
    "cenote.embedded",
    "cenote.errors",
    "cenote.filters",
    "cenote.models",
    "cenote.operations",
    "cenote.orm",
    "cenote.progress",
    "cenote.retrievers",
    "cenote.schema",
    "cenote.stores",
    "cenote.stores.pgvector",
    "cenote.telemetry",
    "cenote.testing",
    "cenote.types",
]
"""Modules for users of the library. All others are internal."""


def test_chunks_are_built_by_keyword_and_frozen() -> None:
    """Unknown names and positions are refused."""
    chunk = Chunk(id="a", document_id="d", content="text", position=3, metadata={"k": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        chunk.id = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Chunk(id="a", document_id="d", content="text", title="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Chunk("a", "d", "text")  # type: ignore[call-arg]


def test_content_hash_is_the_sha256_of_the_content_unless_given() -> None:
    """In lower-case hex, of the UTF-8."""
    expected = hashlib.sha256("señal".encode()).hexdigest()
    assert Chunk(id="a", document_id="d", content="señal").content_hash == expected
    assert Chunk(id="a", document_id="d", content="x", content_hash="v7").content_hash == "v7"


def test_make_id_tells_documents_and_positions_apart() -> None:
    """Also where a document's id ends like a position."""
    pairs = [("a", 1), ("a", 11), ("a:1", 1), ("a", 0), ("", 1), ("a:", 1)]
    assert len({Chunk.make_id(*pair) for pair in pairs}) == len(pairs)
    assert Chunk.make_id("guide", 4) == "guide:4"


def test_records_compare_hash_and_pickle() -> None:
    """Arrays and lists of the same numbers are the same embedding."""
    chunk = Chunk(id="a", document_id="d", content="text", metadata={"k": [1]})
    one = EmbeddedChunk(chunk=chunk, embedding=[1.0, 2.0], embedding_model="m")
    two = EmbeddedChunk(chunk=chunk, embedding=np.array([1.0, 2.0]), embedding_model="m")
    assert one == two
    assert hash(one) == hash(two)
    assert one != EmbeddedChunk(chunk=chunk, embedding=[1.0, 2.5], embedding_model="m")
    assert one != "a"
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    assert RetrievalResult(chunk=chunk, score=0.5).retriever == "vector"


@pytest.mark.parametrize("name", [name for name in cenote.__all__ if name.endswith("Error")])
def test_errors_are_one_tree_and_survive_pickling(name: str) -> None:
    """As processes send them to one another."""
    kind: Any = getattr(cenote, name)
    assert issubclass(kind, cenote.CenoteError)
    assert getattr(errors, name) is kind
    assert str(pickle.loads(pickle.dumps(kind("text")))) == "text"  # noqa: S301


def test_facts_are_attributes_that_survive_pickling() -> None:
    """With the message."""
    error = DimensionMismatchError("text", expected=3, actual=4, chunk_id="a", field="embedding")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (copy.expected, copy.actual, copy.chunk_id, copy.field) == (3, 4, "a", "embedding")


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_modules_list_their_names(name: str) -> None:
    """`__all__` holds existing names, each once, and no private ones."""
    module = importlib.import_module(name)
    names = module.__all__
    assert all(hasattr(module, public) and not public.startswith("_") for public in names)
    assert len(set(names)) == len(names) > 0


def test_names_of_the_package_are_sorted() -> None:
    """Upper case before lower case, as in an index of the API."""
    assert sorted(cenote.__all__) == cenote.__all__
