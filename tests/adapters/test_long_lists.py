"""Long lists in the filters of LlamaIndex and Haystack; LangChain's filters are cenote's own."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import InMemoryVectorStore, PgVectorStore
from cenote.adapters.haystack.filters import translate
from cenote.adapters.llama_index.filters import as_filter
from cenote.testing import embedded, stored

NAMES = [f"doc {number}" for number in range(2, 2002)]


def _llama(operator: FilterOperator, key: str, value: Any) -> Any:
    return as_filter(
        MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])
    )


def _haystack(operator: str, field: str, value: Any) -> Any:
    translated = translate({"field": field, "operator": operator, "value": value})
    assert translated.exact
    return translated.filter


FILTERS: dict[str, tuple[Any, list[int]]] = {
    "llama in": (_llama(FilterOperator.IN, "doc", NAMES), [2, 3, 4]),
    "llama in numbers": (_llama(FilterOperator.IN, "n", [*range(3, 2000)]), [3, 4]),
    "llama not in": (_llama(FilterOperator.NIN, "doc", NAMES), [0, 1]),
    "llama any": (_llama(FilterOperator.ANY, "docs", NAMES), [2, 3, 4]),
    "llama all": (_llama(FilterOperator.ALL, "docs", ["x"] * 2000 + ["doc 3"]), [3]),
    "haystack in": (_haystack("in", "meta.doc", NAMES), [2, 3, 4]),
    "haystack in numbers": (_haystack("in", "meta.n", [*range(3, 2000), None]), [3, 4]),
    "haystack in lists": (_haystack("in", "meta.docs", [["x", name] for name in NAMES]), [2, 3, 4]),
    "haystack not in": (_haystack("not in", "meta.doc", NAMES), [0, 1]),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_long_lists(engine: AsyncEngine, name: str) -> None:
    """Lists of 2,000 values match the same chunks in both stores."""
    filter, expected = FILTERS[name]
    chunks = [
        embedded(str(n), metadata={"doc": f"doc {n}", "n": n, "docs": ["x", f"doc {n}"]})
        for n in range(5)
    ]
    for store in (InMemoryVectorStore(4), PgVectorStore(engine, 4)):
        await store.upsert(chunks, "n")
        assert [int(chunk.id) for chunk in await stored(store, "n", filter)] == expected
