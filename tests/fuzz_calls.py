"""What test_fuzz.py calls: the arguments of each entry point, of which any may be odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import fuzz_filters
import fuzzing as values
from fuzzing import MARKER, Recipe, Strategy, anything, given
from hypothesis import strategies as st

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
"""What each namespace holds before a call."""


@dataclass(frozen=True)
class Own:
    """Stands for the namespace of the example."""


@dataclass(frozen=True)
class Argument:
    """What an argument is drawn from, where it is to be good, and where it may be odd."""

    good: Strategy
    odd: Strategy


def some_odd(arguments: Mapping[str, Argument]) -> Strategy:
    """Arguments of which none, one or two may be odd."""
    return st.sets(st.sampled_from([*arguments]), max_size=2).flatmap(
        lambda odd: st.fixed_dictionaries(
            {name: one.odd if name in odd else one.good for name, one in arguments.items()}
        )
    )


# -- chunks


@dataclass(frozen=True)
class Item(Recipe):
    """A chunk with its embedding."""

    fields: dict[str, Any]
    embedding: Any
    embedding_model: Any = "model"
    columns: Any = None

    def chunk(self) -> Chunk:
        return Chunk(**given(self.fields))

    def make(self) -> EmbeddedChunk:
        more = {} if self.columns is None else {"columns": given(self.columns)}
        return EmbeddedChunk(
            chunk=self.chunk(),
            embedding=given(self.embedding),
            embedding_model=given(self.embedding_model),
            **more,
        )


@dataclass(frozen=True)
class Bare(Item):
    """One that goes without its embedding."""

    def make(self) -> Any:
        return self.chunk()


_names = st.sampled_from(["1", "2", "3"]) | values.good_keys
_positions = st.integers(-(2**63), 2**63 - 1) | st.just(values.Level.TWO)
_odd_positions = anything | values.each("position", 2**63, -(2**63) - 1, True, 1.0, "1", None)
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

    def made(given_: dict[str, Any]) -> Item:
        more = {name: given_.pop(name) for name in ("embedding", "embedding_model")}
        if "columns" in given_:
            more["columns"] = given_.pop("columns")
        return kind(given_, **more)

    return st.fixed_dictionaries(parts).map(made)


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
    """Good chunks, among which one may be odd, at any place; or no list of chunks at all."""
    one_odd = st.builds(
        lambda before, one, after: [*before, one, *after],
        *(st.lists(good, max_size=2), odd, st.lists(good, max_size=2)),
    )
    return st.one_of(one_odd, one_odd, one_odd, anything)


def each_odd() -> Iterator[tuple[str, list[Item]]]:
    """Every batch of two good chunks, with one between them of which one part is odd."""
    first, last = (
        Item({"id": name, "document_id": DOCUMENT, "content": ""}, [1.0] * 4) for name in ("8", "9")
    )
    for part, several in values.EACH.items():
        for one in several:
            odd = replace(first, fields={**first.fields, "id": "odd"})
            if part == "embedding":
                odd = replace(odd, embedding=one)
            else:
                odd = replace(odd, fields={**odd.fields, part: one})
            yield part, [first, odd, last]


def _items(kind: type[Item], names: Mapping[str, Strategy], **changes: Strategy) -> Strategy:
    return st.one_of(*(_item(kind, **changes, **{n: odd}) for n, odd in names.items())) | anything


_in_document: dict[str, Any] = {"document_id": st.just(DOCUMENT)}
_odd_in_document = {name: odd for name, odd in _odd_parts.items() if name != "document_id"}
_of_chunks = {
    name: odd
    for name, odd in _odd_parts.items()
    if name not in ("embedding", "embedding_model", "columns")
}
_kept = st.sampled_from(
    [
        Bare(_fields, None)
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
_of_document = _item(Item, **_in_document) | _kept
documents = Argument(
    st.lists(_of_document, max_size=4, unique_by=lambda item: item.fields["id"]),
    _with_one_odd(
        _of_document,
        _items(Item, _odd_in_document, **_in_document) | _item(Item) | _item(Bare, **_in_document),
    ),
)
bare_batches = Argument(
    st.lists(_item(Bare) | _kept, max_size=4),
    _with_one_odd(_item(Bare) | _kept, _items(Bare, _of_chunks)),
)


# -- arguments


_ids = Argument(st.lists(_names, max_size=3), anything | st.lists(values.odd_keys, max_size=2))
_filters = Argument(fuzz_filters.good_filters, fuzz_filters.odd_filters)
_vectors = Argument(values.good_vectors, values.odd_vectors)
_limits = Argument(values.good_limits, values.odd_limits)
_texts = Argument(st.just("cat") | values.secret_texts, values.odd_contents)
_weights = Argument(values.good_weights, anything)
_namespaces = Argument(st.just(Own()), values.good_keys | values.odd_keys)
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
_small = st.integers(0, 3) | st.sampled_from([2**31 - 1, values.Level.TWO])

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
        "before": Argument(_small, anything),
        "after": Argument(_small, anything),
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
            st.lists(st.just(Own()) | values.good_keys, max_size=2),
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
    """The arguments of an entry point."""
    arguments = _ARGUMENTS[entry]
    if entry not in ("search_namespaces", "delete_namespace"):
        arguments = {"namespace": _namespaces, **arguments}
    return some_odd(arguments)


ENTRY_POINTS = list(_ARGUMENTS)


async def call(store: Any, entry: str, arguments: dict[str, Any]) -> Any:
    """What an entry point returns."""
    arguments = given(arguments)
    if entry == "get_all_chunks":
        return await stored(store, **arguments)
    if entry == "retrieve":
        return await _retriever(store, arguments.pop("retriever")).retrieve(**arguments)
    answer = await getattr(store, entry.split()[0])(**arguments)
    # These are the caller's own objects, of which it looks at ids and hashes.
    return [chunk.id for chunk in answer] if entry == "missing" else answer


def _retriever(store: Any, kind: str) -> Any:
    by_vector = VectorRetriever(store, lambda text: [1.0, float(len(text)), 0.0, 0.0])
    if kind == "vector":
        return by_vector
    if kind == "text":
        return TextRetriever(store)
    by_words = BM25Retriever(store)
    return by_words if kind == "bm25" else HybridRetriever([by_vector, by_words])
