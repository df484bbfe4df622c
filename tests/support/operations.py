"""Every operation of a store, for tests that interrupt, retry or observe each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from cenote import Chunk, EmbeddedChunk, PgVectorStore
from cenote.testing import embedded, stored

QUERY = [1.0, 0.5, 0.25, 0.0]


def batch(writer: int, count: int = 200, ids: str = "") -> list[EmbeddedChunk]:
    """Return chunks whose content names the writer."""
    return [
        embedded(f"{ids}{n:04}", [1, n % 7, n % 11, 1], content=f"by {writer}")
        for n in range(count)
    ]


OPERATIONS: dict[str, Callable[[PgVectorStore], Awaitable[Any]]] = {
    "upsert": lambda store: store.upsert(batch(2, 3), "n"),
    "update_metadata": lambda store: store.update_metadata({"0001": {"a": 1}}, "n"),
    "sync_document": lambda store: store.sync_document(
        "doc", [Chunk(id="0000", document_id="doc", content="by 1")], "m"
    ),
    "delete": lambda store: store.delete(["0002"], "n"),
    "delete_document": lambda store: store.delete_document("doc", "m"),
    "delete_matching": lambda store: store.delete_matching({"a": 1}, "n"),
    "delete_namespace": lambda store: store.delete_namespace("m"),
    "bulk_load": lambda store: store.bulk_load(batch(3, 3), "n"),
    "search": lambda store: store.search(QUERY, "n"),
    "search_many": lambda store: store.search_many([QUERY, QUERY], "n"),
    "search_diverse": lambda store: store.search_diverse(QUERY, "n"),
    "search_namespaces": lambda store: store.search_namespaces(QUERY, ["n", "m"]),
    "search_text": lambda store: store.search_text("by", "n"),
    "search_hybrid": lambda store: store.search_hybrid("by", QUERY, "n"),
    "get": lambda store: store.get(["0001"], "n"),
    "get_all_chunks": lambda store: stored(store, "n"),
    "get_embeddings": lambda store: store.get_embeddings(["0001"], "n"),
    "list_chunks": lambda store: store.list_chunks("n"),
    "list_namespaces": lambda store: store.list_namespaces(),
    "count": lambda store: store.count("n"),
    "missing": lambda store: store.missing([item.chunk for item in batch(1, 3)], "n"),
    "neighbours": lambda store: store.neighbours("0001", "n"),
}
