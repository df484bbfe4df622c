"""Chunks, results and errors, and the lists of public names."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import pickle
import pkgutil
import re
from pathlib import Path
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
    "cenote.maintenance",
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

REFERENCE = Path(__file__).parents[2] / "docs/reference"
DIRECTIVE = re.compile(r"^::: (\S+)\n((?: +.*\n)*)", re.MULTILINE)
MEMBERS = re.compile(r"members:(?: \[.*\]|(?:\n +- \w+)+)")


def test_chunks_are_frozen_and_have_keyword_arguments() -> None:
    """Unknown arguments and positional arguments raise TypeError."""
    chunk = Chunk(id="a", document_id="d", content="text", position=3, metadata={"k": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        chunk.id = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Chunk(id="a", document_id="d", content="text", title="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Chunk("a", "d", "text")  # type: ignore[call-arg]


def test_content_hash() -> None:
    """The hash is the SHA-256 of the content in UTF-8, unless another hash is passed."""
    expected = hashlib.sha256("señal".encode()).hexdigest()
    assert Chunk(id="a", document_id="d", content="señal").content_hash == expected
    assert Chunk(id="a", document_id="d", content="x", content_hash="v7").content_hash == "v7"


def test_make_id() -> None:
    """Ids differ for different documents or positions, even if a document's id ends in a number."""
    pairs = [("a", 1), ("a", 11), ("a:1", 1), ("a", 0), ("", 1), ("a:", 1)]
    assert len({Chunk.make_id(*pair) for pair in pairs}) == len(pairs)
    assert Chunk.make_id("guide", 4) == "guide:4"


def test_equality_hash_and_pickle() -> None:
    """Embeddings in lists and arrays are equal; pickled chunks equal the originals."""
    chunk = Chunk(id="a", document_id="d", content="text", metadata={"k": [1]})
    with_list = EmbeddedChunk(chunk=chunk, embedding=[1.0, 2.0], embedding_model="m")
    with_array = EmbeddedChunk(chunk=chunk, embedding=np.array([1.0, 2.0]), embedding_model="m")
    assert with_list == with_array
    assert hash(with_list) == hash(with_array)
    assert with_list != EmbeddedChunk(chunk=chunk, embedding=[1.0, 2.5], embedding_model="m")
    assert with_list != "a"
    assert pickle.loads(pickle.dumps(with_list)) == with_list  # noqa: S301
    assert RetrievalResult(chunk=chunk, score=0.5).retriever == "vector"


@pytest.mark.parametrize("embedding", [[1.0, 2.0, 3.0], (1.0, 2.0, 3.0), np.ones(3)])
def test_dimensions_of_an_embedded_chunk(embedding: Any) -> None:
    """`dimensions` is a read-only property, and no argument."""
    chunk = Chunk(id="a", document_id="d", content="text")
    embedded = EmbeddedChunk(chunk=chunk, embedding=embedding, embedding_model="m")
    assert embedded.dimensions == 3
    with pytest.raises((AttributeError, TypeError)):  # slotted dataclasses raise TypeError
        embedded.dimensions = 4  # type: ignore[misc]
    arguments: dict[str, Any] = {"chunk": chunk, "embedding": embedding, "embedding_model": "m"}
    arguments["dimensions"] = 3
    with pytest.raises(TypeError):
        EmbeddedChunk(**arguments)


@pytest.mark.parametrize("name", [name for name in cenote.__all__ if name.endswith("Error")])
def test_errors_derive_from_cenote_error_and_can_be_pickled(name: str) -> None:
    """Errors can be sent to another process."""
    error_class: Any = getattr(cenote, name)
    assert issubclass(error_class, cenote.CenoteError)
    assert getattr(errors, name) is error_class
    assert str(pickle.loads(pickle.dumps(error_class("text")))) == "text"  # noqa: S301


def test_attributes_of_pickled_errors() -> None:
    """A pickled error keeps its attributes."""
    error = DimensionMismatchError("text", expected=3, actual=4, chunk_id="a", field="embedding")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (copy.expected, copy.actual, copy.chunk_id, copy.field) == (3, 4, "a", "embedding")


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_names_of_public_modules(name: str) -> None:
    """`__all__` contains existing public names, each of them once."""
    module = importlib.import_module(name)
    names = module.__all__
    assert all(hasattr(module, public) and not public.startswith("_") for public in names)
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_names_hide_no_modules(name: str) -> None:
    """In a package, a name and a module differ: otherwise the name would hide the module."""
    module = importlib.import_module(name)
    modules = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))}
    assert modules.isdisjoint(module.__all__)


def test_the_reference_documents_public_names() -> None:
    """A page names public paths, or shows the introduction of an internal module without a name."""
    public = {f"{name}.{member}" for name in PUBLIC_MODULES for member in _public_names(name)}
    documented = 0
    for page in REFERENCE.glob("*.md"):
        for path, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if "show_root_heading: false" in options and "members: []" in options:
                continue
            members = re.findall(r"\w+", (MEMBERS.search(options) or [""])[0])[1:]
            names = [f"{path}.{member}" for member in members] if members else [path]
            assert public.union(PUBLIC_MODULES).issuperset(names), page.name
            documented += len(names)
    assert documented > 50


def _public_names(module: str) -> list[str]:
    names: list[str] = importlib.import_module(module).__all__
    return names


def test_names_of_the_package_are_sorted() -> None:
    """`cenote.__all__` is sorted, upper case first."""
    assert sorted(cenote.__all__) == cenote.__all__
