"""Store methods for test_fuzz.py, and strategies for their arguments, any of which may be odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from support.fuzzing import filters as fuzz_filters
from support.fuzzing import values
from support.fuzzing.values import MARKER, Recipe, Strategy, anything, resolve

from cenote import Chunk, EmbeddedChunk
from cenote.retrievers import BM25Retriever, HybridRetriever, TextRetriever, VectorRetriever
from cenote.testing import embedded, stored

DOCUMENT = "doc"
SEEDS = [
    embedded(
        name,
        [1.0, float(place), 0.5, 0.0],
        document_id=DOCUMENT,
        content=f"{MARKER} cat {name}",
        position=place,
        metadata={"a": place, "b": [MARKER]},
    )
    for place, name in enumerate(["1", "2", "3"])
]
"""Chunks in each namespace before a call."""


@dataclass(frozen=True)
class OwnNamespace:
    """Placeholder for the namespace of the example."""


@dataclass(frozen=True)
class Argument:
    """Strategies for valid and for possibly invalid values of an argument."""

    good: Strategy
    odd: Strategy


def some_odd(arguments: Mapping[str, Argument]) -> Strategy:
    """Draw arguments of which none, one or two may be odd."""
    return st.sets(st.sampled_from([*arguments]), max_size=2).flatmap(
        lambda odd: st.fixed_dictionaries(
            {
                name: argument.odd if name in odd else argument.good
                for name, argument in arguments.items()
            }
        )
    )


# -- chunks


@dataclass(frozen=True)
class Item(Recipe):
    """Recipe for a chunk with its embedding."""

    fields: dict[str, Any]
    embedding: Any
    embedding_model: Any = "model"
    columns: Any = None

    def chunk(self) -> Chunk:
        return Chunk(**resolve(self.fields))

    def make(self) -> EmbeddedChunk:
        options = {} if self.columns is None else {"columns": resolve(self.columns)}
        return EmbeddedChunk(
            chunk=self.chunk(),
            embedding=resolve(self.embedding),
            embedding_model=resolve(self.embedding_model),
            **options,
        )


@dataclass(frozen=True)
class BareItem(Item):
    """Recipe for a chunk without its embedding."""

    def make(self) -> Any:
        return self.chunk()


_names = st.sampled_from(["1", "2", "3"]) | values.good_keys
_positions = st.integers(-(2**63), 2**63 - 1) | st.just(values.Level.TWO)
_odd_positions = anything | values.odd_part("position", 2**63, -(2**63) - 1, True, 1.0, "1", None)
_documents = st.just(DOCUMENT) | values.good_keys


def _item(kind: type[Item], **changes: Strategy) -> Strategy:
    parts = {
        "id": _names,
        "document_id": _documents,
        "content": values.secret_texts,
        "position": _positions,
        "metadata": values.good_metadata,
        "embedding": values.good_vectors,
        "embedding_model": st.just("model") | values.good_texts,
        **changes,
    }

    def item(drawn: dict[str, Any]) -> Item:
        options = {name: drawn.pop(name) for name in ("embedding", "embedding_model")}
        if "columns" in drawn:
            options["columns"] = drawn.pop("columns")
        return kind(drawn, **options)

    return st.fixed_dictionaries(parts).map(item)


_odd_parts: dict[str, Strategy] = {
    "id": values.odd_keys,
    "document_id": values.odd_keys,
    "content": values.odd_contents,
    "position": _odd_positions,
    "metadata": values.odd_metadata,
    "content_hash": anything,
    "embedding": values.odd_vectors,
    "embedding_model": values.odd_contents,
    "columns": anything,
}


def _with_one_odd(good: Strategy, odd: Strategy) -> Strategy:
    """Draw valid chunks with one odd chunk at any place, or no list of chunks at all."""
    with_one_odd = st.builds(
        lambda before, odd_item, after: [*before, odd_item, *after],
        *(st.lists(good, max_size=2), odd, st.lists(good, max_size=2)),
    )
    return st.one_of(with_one_odd, with_one_odd, with_one_odd, anything)


def batches_with_an_odd_part() -> Iterator[tuple[str, list[Item]]]:
    """Return batches of two valid chunks around a chunk with one odd part, for each odd value."""
    first, last = (
        Item({"id": name, "document_id": DOCUMENT, "content": ""}, [1.0] * 4) for name in ("8", "9")
    )
    for part, odd_values in values.ODD_PARTS.items():
        for value in odd_values:
            odd = replace(first, fields={**first.fields, "id": "odd"})
            if part == "embedding":
                odd = replace(odd, embedding=value)
            else:
                odd = replace(odd, fields={**odd.fields, part: value})
            yield part, [first, odd, last]


def _items(kind: type[Item], names: Mapping[str, Strategy], **changes: Strategy) -> Strategy:
    return st.one_of(*(_item(kind, **changes, **{n: odd}) for n, odd in names.items())) | anything


_in_document: dict[str, Any] = {"document_id": st.just(DOCUMENT)}
_odd_in_document = {name: odd for name, odd in _odd_parts.items() if name != "document_id"}
_odd_chunk_parts = {
    name: odd
    for name, odd in _odd_parts.items()
    if name not in ("embedding", "embedding_model", "columns")
}
_stored_items = st.sampled_from(
    [
        BareItem(_fields, None)
        for _fields in [
            {
                name: getattr(seed.chunk, name)
                for name in ("id", "document_id", "content", "metadata")
            }
            for seed in SEEDS
        ]
    ]
)
batches = Argument(
    st.lists(_item(Item), max_size=4), _with_one_odd(_item(Item), _items(Item, _odd_parts))
)
_document_items = _item(Item, **_in_document) | _stored_items
documents = Argument(
    st.lists(_document_items, max_size=4, unique_by=lambda item: item.fields["id"]),
    _with_one_odd(
        _document_items,
        _items(Item, _odd_in_document, **_in_document)
        | _item(Item)
        | _item(BareItem, **_in_document),
    ),
)
bare_batches = Argument(
    st.lists(_item(BareItem) | _stored_items, max_size=4),
    _with_one_odd(_item(BareItem) | _stored_items, _items(BareItem, _odd_chunk_parts)),
)


# -- arguments


_ids = Argument(st.lists(_names, max_size=3), anything | st.lists(values.odd_keys, max_size=2))
_filters = Argument(fuzz_filters.good_filters, fuzz_filters.odd_filters)
_vectors = Argument(values.good_vectors, values.odd_vectors)
_limits = Argument(values.good_limits, values.odd_limits)
_texts = Argument(st.just("cat") | values.secret_texts, values.odd_contents)
_weights = Argument(values.good_weights, anything)
_namespaces = Argument(st.just(OwnNamespace()), values.good_keys | values.odd_keys)
_search = {"namespace": _namespaces, "limit": _limits, "filter": _filters}
_scores = {"min_score": Argument(values.good_scores, anything)}
_exact = {
    "exact": Argument(st.booleans(), anything),
    "ef_search": Argument(st.none() | st.integers(1, 1000), anything),
}
_odd_update = st.dictionaries(
    _names | st.sampled_from([1, None, "\x00", "x" * 1025]),
    values.good_metadata | values.odd_metadata,
    max_size=3,
)
_small_numbers = st.integers(0, 3) | st.sampled_from([2**31 - 1, values.Level.TWO])

_ARGUMENTS: dict[str, dict[str, Argument]] = {
    "upsert": {"embedded_chunks": batches},
    "bulk_load": {
        "embedded_chunks": batches,
        "ann_index": Argument(st.sampled_from(["keep", "keep", "auto"]), anything),
    },
    "sync_document": {
        "document_id": Argument(st.just(DOCUMENT), values.good_keys | values.odd_keys),
        "chunks": documents,
    },
    "missing": {"chunks": bare_batches},
    "get": {"chunk_ids": _ids},
    "get_embeddings": {"chunk_ids": _ids},
    "delete": {"chunk_ids": _ids},
    "delete_document": {"document_id": Argument(_documents, values.odd_keys)},
    "delete_matching": {"filter": _filters},
    "delete_namespace": {"namespace": _namespaces},
    "update_metadata": {
        "metadata": Argument(
            st.dictionaries(_names, values.good_metadata, max_size=3), anything | _odd_update
        ),
        "merge": Argument(st.booleans(), anything),
    },
    "count": {"filter": _filters},
    "count by expression": {
        "filter": Argument(fuzz_filters.good_expressions, fuzz_filters.odd_expressions),
    },
    "search by dict": {
        "query_vector": _vectors,
        "filter": Argument(fuzz_filters.good_dicts, fuzz_filters.odd_dicts),
    },
    "get_all_chunks": {"filter": _filters},
    "list_chunks": {
        "filter": _filters,
        "after": Argument(st.none() | values.good_texts, values.odd_contents),
        "limit": _limits,
    },
    "neighbours": {
        "chunk_id": Argument(_names, values.odd_keys),
        "before": Argument(_small_numbers, anything),
        "after": Argument(_small_numbers, anything),
    },
    "search": {
        "query_vector": _vectors,
        **_search,
        **_scores,
        "per_document": Argument(st.none() | st.integers(1, 3), values.odd_limits),
    },
    "search by options": {"query_vector": _vectors, **_exact},
    "search_many": {
        "query_vectors": Argument(
            st.lists(values.good_vectors, max_size=3),
            st.lists(values.good_vectors | values.odd_vectors, max_size=3) | anything,
        ),
        **_search,
        **_scores,
    },
    "search_diverse": {
        "query_vector": _vectors,
        **_search,
        "diversity": Argument(st.floats(0, 1), anything),
        "candidates": Argument(st.none() | st.integers(12, 50), values.odd_limits),
    },
    "search_text": {"text": _texts, **_search},
    "search_hybrid": {
        "text": _texts,
        "query_vector": _vectors,
        **_search,
        "vector_weight": _weights,
        "text_weight": _weights,
        "depth": Argument(values.good_limits, anything),
    },
    "search_namespaces": {
        "query_vector": _vectors,
        "namespaces": Argument(
            st.lists(st.just(OwnNamespace()) | values.good_keys, max_size=2),
            anything | st.lists(values.odd_keys, max_size=2),
        ),
        "limit": _limits,
    },
    "retrieve": {
        "retriever": Argument(st.sampled_from(["vector", "bm25", "both"]), st.just("text")),
        "text": _texts,
        **_search,
    },
}


def arguments_of(entry: str) -> Strategy:
    """Draw the arguments of a method."""
    arguments = _ARGUMENTS[entry]
    if entry not in ("search_namespaces", "delete_namespace"):
        arguments = {"namespace": _namespaces, **arguments}
    return some_odd(arguments)


ENTRY_POINTS = list(_ARGUMENTS)


async def call(store: Any, entry: str, arguments: dict[str, Any]) -> Any:
    """Call a method and return its answer."""
    arguments = resolve(arguments)
    if entry == "get_all_chunks":
        return await stored(store, **arguments)
    if entry == "retrieve":
        return await _retriever(store, arguments.pop("retriever")).retrieve(**arguments)
    answer = await getattr(store, entry.split()[0])(**arguments)
    # missing() returns the caller's own objects, of which only the ids can be compared.
    return [chunk.id for chunk in answer] if entry == "missing" else answer


def _retriever(store: Any, kind: str) -> Any:
    vectors = VectorRetriever(store, lambda text: [1.0, float(len(text)), 0.0, 0.0])
    if kind == "vector":
        return vectors
    if kind == "text":
        return TextRetriever(store)
    words = BM25Retriever(store)
    return words if kind == "bm25" else HybridRetriever([vectors, words])
