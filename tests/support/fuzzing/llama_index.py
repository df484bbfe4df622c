"""Input for the LlamaIndex adapter."""

from __future__ import annotations

import math
from collections import deque
from datetime import date
from typing import Any

from hypothesis import strategies as st
from llama_index.core.schema import (
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from support.fuzzing import calls as fuzz_calls
from support.fuzzing import objects, values
from support.fuzzing.calls import Argument
from support.fuzzing.values import MARKER, Lazy, Strategy, anything

from cenote.adapters import llama_index

_llama_metadata = Argument(
    values.good_metadata,
    st.one_of(
        values.odd_metadata,
        objects.dict_with("_node_content", anything),
        objects.dict_with(
            "a", st.sampled_from([{math.nan}, deque([math.nan]), date(2020, 1, 1), {1.5: 1}])
        ),
    ),
)
_source = st.none() | st.builds(
    lambda name: {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
    st.sampled_from(["d", "é", "x" * 1024]),
)
_odd_source = (
    anything
    | st.builds(
        lambda name: {NodeRelationship.SOURCE: objects.Built(RelatedNodeInfo, {"node_id": name})},
        values.odd_keys,
    )
    | st.just({NodeRelationship.SOURCE: [RelatedNodeInfo(node_id=MARKER)]})
)
_node = {
    "id_": objects.ids,
    "metadata": _llama_metadata,
    "embedding": Argument(st.lists(values.numbers, min_size=4, max_size=4), values.odd_vectors),
    "relationships": Argument(_source.map(lambda relationships: relationships or {}), _odd_source),
}
_texts_of_nodes = {
    "text": objects.contents,
    "start_char_idx": Argument(st.none() | st.integers(0, 2**62), anything),
}
_settable = ("metadata", "embedding", "start_char_idx")
_kinds_of_nodes = [
    objects.built(TextNode, {**_node, **_texts_of_nodes}, settable=_settable),
    objects.built(
        ImageNode, {**_node, "image_url": objects.contents}, settable=("metadata", "image_url")
    ),
    objects.built(
        Node,
        {
            **_node,
            "text_resource": objects.built(MediaResource, {"text": objects.contents}),
        },
        settable=("metadata",),
    ),
]
_nodes = objects.list_of(
    Argument(
        st.one_of(*(kind.good for kind in _kinds_of_nodes)),
        st.one_of(*(kind.odd for kind in _kinds_of_nodes)),
    )
)


def _llama_filter(keys: Strategy, operands: Strategy) -> Strategy:
    return objects.fields(
        MetadataFilter,
        {"key": keys, "operator": st.sampled_from([*FilterOperator]), "value": operands},
    )


def _llama_joined(inner: Strategy) -> Strategy:
    return objects.fields(
        MetadataFilters,
        {
            "filters": st.lists(inner, max_size=3),
            "condition": st.sampled_from([*FilterCondition, None]),
        },
    )


def _llama_deep(depth: int, times: int) -> MetadataFilters:
    filters = MetadataFilters(filters=[MetadataFilter(key="a", value=1)])
    for _ in range(depth):
        filters = MetadataFilters(filters=[filters] * times)
    return filters


def _llama_of_itself() -> MetadataFilters:
    filters = MetadataFilters(filters=[])
    filters.filters.append(filters)
    return filters


_good_llama_filters = _llama_filter(
    st.sampled_from(["a", "b", "document_id", "é"]),
    st.integers() | values.good_texts | st.lists(st.integers(), max_size=2),
)
_odd_llama_filters = _llama_filter(
    values.odd_keys | st.sampled_from(["a", "doc_id"]),
    anything | values.odd_contents | st.lists(anything, max_size=2),
)
_llama_filters = Argument(
    st.none() | _llama_joined(_good_llama_filters | _llama_joined(_good_llama_filters)),
    st.one_of(
        anything,
        _llama_joined(_odd_llama_filters),
        _llama_joined(_odd_llama_filters),
        st.builds(
            objects.Built,
            st.just(MetadataFilters),
            st.just({"filters": []}),
            objects.dict_with(
                "filters", anything | st.lists(anything | _odd_llama_filters, max_size=2)
            ),
        ),
        values.lazy(
            deep=lambda: _llama_deep(5000, 1),
            shared=lambda: _llama_deep(45, 2),
            of_itself=_llama_of_itself,
        ),
    ),
)
_shares = Argument(st.none() | st.floats(0, 1), anything)
_id_lists = Argument(
    st.none() | st.lists(objects.ids.good, max_size=2),
    anything | st.lists(objects.ids.odd, max_size=2),
)
_top_k = Argument(st.none() | values.good_limits, values.odd_limits)
_query = {
    "query_embedding": objects.vectors,
    "similarity_top_k": objects.limits,
    "doc_ids": _id_lists,
    "node_ids": _id_lists,
    "query_str": objects.search_by,
    "output_fields": Argument(st.none(), anything),
    "alpha": _shares,
    "mmr_threshold": _shares,
    "sparse_top_k": _top_k,
    "hybrid_top_k": _top_k,
    "filters": _llama_filters,
}
_modes = Argument(
    st.sampled_from([VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR]),
    st.sampled_from([VectorStoreQueryMode.SVM, "semantic_hybrid"]) | anything,
)
_word_modes = Argument(st.sampled_from(["text_search", "sparse", "hybrid"]), st.just("hybrid"))
_LLAMA_INDEX: dict[str, dict[str, Argument]] = {
    "add": {"nodes": _nodes},
    "delete": {"ref_doc_id": Argument(st.just(fuzz_calls.DOCUMENT), values.odd_keys)},
    "delete_nodes": {"node_ids": _id_lists, "filters": _llama_filters},
    "get_nodes": {"node_ids": _id_lists, "filters": _llama_filters},
    "query": {**_query, "mode": _modes},
    "query by words": {**_query, "mode": _word_modes},
    "query of none": {"query": Argument(st.just(VectorStoreQuery([1, 0, 0, 0])), anything)},
}


def _llama(store: Any, namespace: str, arguments: dict[str, Any]) -> Any:
    return llama_index.CenoteVectorStore(store, namespace)


def _call_llama(adapter: Any, entry: str, arguments: dict[str, Any], *, awaited: bool) -> Any:
    name = entry.split()[0]
    if name == "query" and "query" not in arguments:
        arguments = {"query": VectorStoreQuery(**arguments)}
    return objects.method(adapter, ("async_" if name == "add" else "a") * awaited + name)(
        **arguments
    )


ADAPTER = objects.Adapter(_llama, _call_llama, _LLAMA_INDEX, (NotImplementedError,))

# -- regressions

_NODE = TextNode(id_="8", text="", embedding=[1, 0, 0, 0])
_HYBRID = {"mode": "hybrid", "query_str": "cat", "query_embedding": [1, 0, 0, 0]}
_TWO_SOURCES = {NodeRelationship.SOURCE: [RelatedNodeInfo(node_id="d")]}


def _node_with(**parts: Any) -> dict[str, Any]:
    return {"nodes": [objects.Built(TextNode, {"id_": "8", "embedding": [1, 0, 0, 0], **parts})]}


REGRESSIONS: list[tuple[str, dict[str, Any], bool]] = [
    (
        "add",
        {"nodes": objects.generator_of(TextNode(id_="8", text="", embedding=[1, 0, 0, 0]))},
        True,
    ),
    ("add", _node_with(metadata={"a": 3.602879701896397e16}), True),
    ("add", {"nodes": ["text"]}, False),
    ("add", _node_with(relationships=_TWO_SOURCES), False),
    ("add", _node_with(metadata={"a": {math.nan}}), False),
    ("delete_nodes", {"filters": {"a": 1}}, False),
    ("get_nodes", {"filters": {"a": 1}}, False),
    ("get_nodes", {"filters": Lazy("shared", lambda: _llama_deep(45, 2))}, False),
    ("get_nodes", {"filters": Lazy("of itself", _llama_of_itself)}, False),
    ("query", {"mode": 5}, False),
    ("query", {"query_embedding": [1, 0, 0, 0], "node_ids": objects.ARRAY}, False),
    ("query by words", {**_HYBRID, "alpha": "1"}, False),
    ("query by words", {**_HYBRID, "hybrid_top_k": 0}, False),
    ("query of none", {"query": "text"}, False),
]
"""Inputs that once caused errors: method, arguments, and True if the adapter accepts them."""
