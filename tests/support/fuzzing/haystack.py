"""Input for the Haystack adapter."""

from __future__ import annotations

from typing import Any

from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.dataclasses import Document as HaystackDocument
from haystack.document_stores.errors import DocumentStoreError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from hypothesis import strategies as st
from support.fuzzing import objects, values
from support.fuzzing.calls import Argument
from support.fuzzing.values import MARKER, Lazy, Strategy, anything

from cenote.adapters.haystack import CenoteDocumentStore, CenoteEmbeddingRetriever

_fields_of_haystack = st.sampled_from(["a", "b", "meta.a", "meta.a.b", "id", "content"])
_odd_fields = anything | st.sampled_from(
    [
        *("", ".", "meta", "meta.", "embedding", "blob", "_haystack", "meta._haystack", "\x00"),
        *("meta." + "a." * 60, "\ud800"),
    ]
)
_dates = st.sampled_from(
    [
        *("2024-02-29", "2024-02-29T12:00:00+02:00", "0001-01-01", "9999-12-31T24:00:00", "9" * 30),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T00:00:00-23:59", "2024-02-30", "20240229"),
    ]
)
_operators = st.sampled_from(
    [
        *("==", "!=", "<", ">=", "in", "not in", "like", "not ilike", "contains", "not contains"),
        *("array_contains", "array_overlaps"),
    ]
)
_operands = values.good_values | _dates | st.lists(values.good_values | _dates, max_size=3)
_odd_operands = anything | values.odd_contents | values.odd_metadata


def _comparison(fields: Strategy, operators: Strategy, operands: Strategy) -> Strategy:
    return st.fixed_dictionaries({"field": fields, "operator": operators, "value": operands})


def _joined(inner: Strategy) -> Strategy:
    return st.fixed_dictionaries(
        {
            "operator": st.sampled_from(["AND", "OR", "NOT"]),
            "conditions": st.lists(inner, min_size=1, max_size=3),
        }
    )


_good_comparisons = st.one_of(
    _comparison(_fields_of_haystack, st.sampled_from(["==", "!="]), _operands),
    _comparison(_fields_of_haystack, st.sampled_from(["<", ">="]), _dates | values.numbers),
    _comparison(_fields_of_haystack, st.just("in"), st.lists(_operands, max_size=3)),
    _comparison(
        _fields_of_haystack,
        st.sampled_from(["like", "not like", "ilike", "contains"]),
        st.sampled_from(["", "%a_", "cat", "1"]),
    ),
    _comparison(
        st.sampled_from(["a", "meta.b"]),
        st.sampled_from(["array_contains", "array_overlaps"]),
        st.lists(_operands, min_size=1, max_size=3),
    ),
)
_odd_comparisons = st.one_of(
    _comparison(_odd_fields, _operators, _operands),
    _comparison(_fields_of_haystack, anything, _operands),
    _comparison(_fields_of_haystack, _operators, _odd_operands),
    _comparison(_fields_of_haystack, _operators, _odd_operands),
    _comparison(_fields_of_haystack, st.sampled_from(["in", "=="]), st.lists(_odd_operands)),
    st.dictionaries(st.sampled_from(["field", "operator", "value", "conditions", 1]), anything),
    st.fixed_dictionaries({"operator": anything, "conditions": anything}),
)


def _haystack_deep(depth: int, times: int) -> dict[str, Any]:
    """Return nested filters: few objects, which are shared and count as up to a billion parts."""
    filters: dict[str, Any] = {"field": "meta.a", "operator": "==", "value": 1}
    for _ in range(depth):
        filters = {"operator": "AND", "conditions": [filters] * times}
    return filters


def _haystack_of_itself() -> dict[str, Any]:
    filters: dict[str, Any] = {"operator": "NOT"}
    filters["conditions"] = [filters, filters]
    return filters


_haystack_filters = Argument(
    st.none() | st.recursive(_good_comparisons, _joined, max_leaves=3),
    st.one_of(
        anything,
        st.recursive(_odd_comparisons, _joined, max_leaves=2),
        st.recursive(_odd_comparisons, _joined, max_leaves=2),
        values.lazy(
            deep=lambda: _haystack_deep(10_000, 1),
            shared=lambda: _haystack_deep(45, 2),
            of_itself=_haystack_of_itself,
        ),
    ),
)
_blobs = objects.built(
    ByteStream,
    {
        "data": Argument(st.binary(max_size=5), anything),
        "meta": objects.metadata,
        "mime_type": Argument(st.none() | values.good_texts, values.odd_contents),
    },
)
_sparse = objects.built(
    SparseEmbedding,
    {
        "indices": Argument(st.just([1, 2]), st.lists(anything, min_size=2, max_size=2)),
        "values": Argument(st.just([1, 0.5]), anything | st.lists(anything, min_size=2)),
    },
)
_haystack_documents = objects.list_of(
    objects.built(
        HaystackDocument,
        {
            "id": objects.ids,
            "content": Argument(st.none() | objects.contents.good, objects.contents.odd),
            "meta": objects.metadata_naming("source_id"),
            "embedding": Argument(st.none() | objects.vectors.good, objects.vectors.odd),
            "blob": Argument(st.none() | _blobs.good, _blobs.odd | anything),
            "sparse_embedding": Argument(st.none() | _sparse.good, _sparse.odd | anything),
        },
    )
)
_policies = Argument(st.sampled_from([*DuplicatePolicy]), st.sampled_from([*DuplicatePolicy]))
_keys = Argument(st.sampled_from(["a", "meta.b", "é"]), values.odd_keys)
_pages = Argument(st.integers(0, 5), anything)
_filtered = {"filters": _haystack_filters}
_HAYSTACK: dict[str, dict[str, Argument]] = {
    "write_documents": {"documents": _haystack_documents, "policy": _policies},
    "delete_documents": {"document_ids": objects.id_lists},
    "filter_documents": _filtered,
    "delete_by_filter": _filtered,
    "update_by_filter": {**_filtered, "meta": objects.metadata},
    "count_documents_by_filter": _filtered,
    "count_unique_metadata_by_filter": {
        **_filtered,
        "metadata_fields": Argument(st.lists(_keys.good), anything | st.lists(_keys.odd)),
    },
    "get_metadata_field_min_max": {"metadata_field": _keys},
    "get_metadata_field_unique_values": {
        "metadata_field": _keys,
        "search_term": Argument(st.none() | values.good_texts, values.odd_contents),
        "from_": _pages,
        "size": _pages,
        **_filtered,
    },
    "embedding_retrieval": {
        "query_embedding": objects.vectors,
        **_filtered,
        "top_k": objects.limits,
    },
    "retriever": {
        "query_embedding": objects.vectors,
        **_filtered,
        "top_k": objects.limits,
        "init_filters": _haystack_filters,
        "filter_policy": Argument(st.sampled_from([*FilterPolicy]), st.just("merge")),
    },
}


def _haystack(store: Any, namespace: str, arguments: dict[str, Any]) -> Any:
    return CenoteDocumentStore(store, namespace)


def _call_haystack(adapter: Any, entry: str, arguments: dict[str, Any], *, awaited: bool) -> Any:
    if entry != "retriever":
        return objects.method(adapter, entry + "_async" * awaited)(**arguments)
    policy = arguments.pop("filter_policy")
    retriever = CenoteEmbeddingRetriever(
        adapter, filters=arguments.pop("init_filters"), filter_policy=policy
    )
    return objects.method(retriever, "run" + "_async" * awaited)(**arguments)


ADAPTER = objects.Adapter(
    _haystack, _call_haystack, _HAYSTACK, (FilterError, DocumentStoreError, ValueError)
)

# -- regressions

_AFTER_DATE = {"field": "meta.b", "operator": ">", "value": "2024-02-29"}


def _document(**parts: Any) -> dict[str, Any]:
    return {"documents": [objects.Built(HaystackDocument, {"id": "8", **parts})]}


REGRESSIONS: list[tuple[str, dict[str, Any], bool]] = [
    ("write_documents", _document(id=[MARKER]), False),
    ("write_documents", _document(meta=None), False),
    ("write_documents", _document(meta={"source_id": 10**5000}), False),
    ("write_documents", _document(embedding=5), False),
    ("write_documents", _document(blob="text"), False),
    ("write_documents", _document(blob=ByteStream("text")), False),  # type: ignore[arg-type]
    ("write_documents", _document(sparse_embedding="text"), False),
    ("filter_documents", {"filters": _AFTER_DATE}, True),  # compares with a text that overflows
    ("filter_documents", {"filters": {**_AFTER_DATE, "operator": objects.ARRAY}}, False),
    ("filter_documents", {"filters": Lazy("shared", lambda: _haystack_deep(45, 2))}, False),
    ("delete_by_filter", {"filters": objects.ARRAY}, False),
    ("delete_by_filter", {"filters": {**_AFTER_DATE, "value": MARKER}}, False),
    ("update_by_filter", {"filters": _AFTER_DATE, "meta": None}, False),
    ("count_unique_metadata_by_filter", {"filters": None, "metadata_fields": "ab"}, False),
    ("get_metadata_field_min_max", {"metadata_field": 5}, False),
    ("get_metadata_field_unique_values", {"metadata_field": "a", "search_term": 5}, False),
    ("get_metadata_field_unique_values", {"metadata_field": "a", "from_": -1}, False),
    ("get_metadata_field_unique_values", {"metadata_field": "a", "size": None}, False),
    ("embedding_retrieval", {"query_embedding": [1, 0, 0, 0], "top_k": "3"}, False),
    (
        "retriever",
        {
            "query_embedding": [1, 0, 0, 0],
            "init_filters": {"operator": "AND", "conditions": 5},
            "filters": _AFTER_DATE,
            "filter_policy": FilterPolicy.MERGE,
        },
        False,
    ),
]
"""Inputs that once caused errors: method, arguments, and True if the adapter accepts them."""
