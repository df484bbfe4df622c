"""LlamaIndex filters match the same nodes as in LlamaIndex's own implementation."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import (
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn, node_to_metadata_dict
from support.llama_nodes import (
    ids,
    make_query,
    node,
    where,
)

from cenote import (
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
)
from cenote.adapters.llama_index import CenoteVectorStore


def none_of(*filters: MetadataFilters) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.NOT)


def one_of(*filters: MetadataFilters) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.OR)


METADATA: dict[str, dict[str, Any]] = {
    "0": {},
    "1": {"v": None},
    "2": {"v": 1},
    "3": {"v": True},
    "4": {"v": "España \\o/ 100%"},
    "5": {"v": ["a", 1]},
    "6": {"v": []},
    "7": {"v": ""},
    "8": {"v": {"a": 1}},
}


@pytest.mark.parametrize(
    ("filters", "matching"),
    [
        (where("v", "==", 1), "23"),
        (where("v", "==", 1.0), "23"),
        (where("v", "==", 0), ""),
        (where("v", "!=", 1), "0145678"),
        (where("v", "in", [0, 1]), "23"),
        (where("v", "nin", [1]), "0145678"),
        (where("v", "==", ["a", "b"]), ""),
        (where("v", ">=", 1), "2"),
        (where("v", "<", "F"), "47"),
        (where("v", "contains", "a"), "5"),
        (where("v", "any", ["a", "b"]), "5"),
        (where("v", "any", []), ""),
        (where("v", "all", ["a", "b"]), ""),
        (where("v", "text_match", "100%"), "4"),
        (where("v", "text_match", "1_0"), ""),
        (where("v", "text_match", "\\o"), "4"),
        (where("v", "text_match", "\\a"), ""),
        (where("v", "text_match", ""), "47"),
        (where("v", "text_match_insensitive", "eSPAÑA"), "4"),
        (where("v", "text_match_insensitive", "ESPAÑA"), "4"),
        (where("v", "text_match_insensitive", "espana"), ""),
        (where("v", "is_empty"), "0167"),
        (none_of(where("v", "is_empty"), where("v", "==", 1)), "458"),
        (one_of(none_of(where("v", "!=", 1)), where("v", "contains", 1)), "235"),
        (one_of(), "012345678"),
        (none_of(), "012345678"),
        (where("doc_id", "==", "8"), "8"),
        (where("document_id", "in", ["even", "8"]), "02468"),
        (where("ref_doc_id", "text_match", "ev"), "0246"),
        (where("ref_doc_id", "!=", "even"), "13578"),
        (where("v.a", "==", 1), ""),
    ],
)
def test_filters(module_adapters: Any, filters: MetadataFilters, matching: str) -> None:
    """Filters match as documented, also where LlamaIndex's documentation leaves it open."""
    runner, adapters = module_adapters
    for adapter in adapters:
        assert "".join(ids(runner.run(adapter.aget_nodes(filters=filters)))) == matching


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        (where("key", "=="), "IS_EMPTY"),
        (where("key", "in", "SECRET"), "list"),
        (where("key", "any", "SECRET"), "list"),
        (where("key", "all", []), "at least one value"),
        (where("key", ">", ["SECRET"]), "number or a string"),
        (where("key", "text_match", 1), "string"),
        (where("key", "text_match_insensitive", ["SECRET"]), "string"),
        (where("doc_id", "is_empty"), "IS_EMPTY"),
        (where("doc_id", "contains", "SECRET"), "CONTAINS"),
        (where("doc_id", "==", 1), "str"),
    ],
)
async def test_invalid_filters(filters: MetadataFilters, reason: str) -> None:
    """The error names the key and the reason, but not the value."""
    adapter = CenoteVectorStore(InMemoryVectorStore(4), "acme")
    with pytest.raises(InvalidInputError, match=reason) as error:
        await adapter.aget_nodes(filters=filters)
    assert "'key'" in str(error.value) or "doc" in str(error.value)
    assert "SECRET" not in str(error.value)


@pytest.fixture(scope="module")
def module_adapters(
    module_dsn: str,
) -> Iterator[tuple[asyncio.Runner, list[CenoteVectorStore]]]:
    """An event loop, and the adapter with a store of each kind that holds `METADATA`."""
    with asyncio.Runner() as runner:
        postgres = runner.run(PgVectorStore.connect(module_dsn, 4))
        adapters = [
            CenoteVectorStore(store, "acme") for store in (InMemoryVectorStore(4), postgres)
        ]
        for adapter in adapters:
            nodes = [
                node(id, "", None if id == "8" else ("even", "odd")[int(id) % 2], **metadata)
                for id, metadata in METADATA.items()
            ]
            runner.run(adapter.async_add(nodes))
        yield runner, adapters
        runner.run(postgres.close())


numbers = st.sampled_from([0, 1, 2, -1, 0.5, 1.0, 2.0])
texts = st.text(st.sampled_from('aAbB%_\\"'), max_size=3)
scalars = numbers | texts
lists = st.lists(numbers, max_size=3) | st.lists(texts, max_size=3)
values = st.none() | st.booleans() | scalars | lists | st.dictionaries(texts, scalars, max_size=1)
keys = st.sampled_from(["a", "b", "ref_doc_id"])
same_kind = st.lists(texts, max_size=3) | st.lists(st.integers(-1, 2), max_size=3)

OPERANDS = {
    FilterOperator.IN: same_kind,
    FilterOperator.NIN: same_kind,
    FilterOperator.ANY: same_kind,
    FilterOperator.ALL: same_kind.filter(bool),
    FilterOperator.CONTAINS: scalars,
    FilterOperator.EQ: scalars | same_kind,
    FilterOperator.NE: scalars | same_kind,
    FilterOperator.TEXT_MATCH: texts,
    FilterOperator.TEXT_MATCH_INSENSITIVE: texts,
    FilterOperator.IS_EMPTY: st.none(),
}
LIST_OPERATORS = {FilterOperator.CONTAINS, FilterOperator.ANY, FilterOperator.ALL}
ORDER_OPERATORS = {FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE}


@st.composite
def comparisons(draw: Any) -> MetadataFilter:
    operator = draw(st.sampled_from(FilterOperator))
    key = draw(keys)
    if key == "ref_doc_id":  # always a text
        operator = draw(st.sampled_from([FilterOperator.EQ, FilterOperator.NE, *ORDER_OPERATORS]))
        return MetadataFilter(key=key, value=draw(texts), operator=operator)
    value = draw(OPERANDS.get(operator, scalars))
    return MetadataFilter(key=key, value=value, operator=operator)


conditions = st.sampled_from([*FilterCondition, None])
filters = st.recursive(
    st.builds(lambda comparison: MetadataFilters(filters=[comparison]), comparisons()),
    lambda inner: st.builds(
        lambda parts, condition: MetadataFilters(filters=parts, condition=condition),
        st.lists(inner | comparisons(), max_size=3),
        conditions,
    ),
    max_leaves=4,
)


class UndefinedError(Exception):
    """LlamaIndex does not define the answer."""


def reference_matches(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    """Evaluate filters with LlamaIndex's reference, which needs help with nested filters."""
    if any(isinstance(part, MetadataFilters) for part in filters.filters):
        parts = [
            reference_matches(
                part if isinstance(part, MetadataFilters) else MetadataFilters(filters=[part]),
                metadata,
            )
            for part in filters.filters
        ]
        if filters.condition == FilterCondition.OR:
            return any(parts)
        return not any(parts) if filters.condition == FilterCondition.NOT else all(parts)
    for comparison in filters.filters:
        assert isinstance(comparison, MetadataFilter)
        value = metadata.get(comparison.key)
        if comparison.operator in LIST_OPERATORS and isinstance(value, str | dict):
            raise UndefinedError
        if comparison.operator in ORDER_OPERATORS and isinstance(value, bool):
            raise UndefinedError
    try:
        return build_metadata_filter_fn(lambda _: metadata, filters)("")
    except TypeError:
        raise UndefinedError from None


def reference_answers(filters: MetadataFilters, nodes: list[TextNode]) -> dict[str, bool]:
    """Return the reference's answer by node id, for the nodes with a defined answer."""
    answers = {}
    for text_node in nodes:
        try:
            metadata = node_to_metadata_dict(text_node)
            answers[text_node.node_id] = reference_matches(filters, metadata)
        except UndefinedError:
            continue
    return answers


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    metadata=st.lists(
        st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2), min_size=4, max_size=8
    ),
    documents=st.lists(texts.filter(bool), min_size=8, max_size=8),
    filter_list=st.lists(filters, min_size=6, max_size=6),
)
def test_random_filters_match_as_in_the_reference(
    module_adapters: Any,
    metadata: list[dict[str, Any]],
    documents: list[str],
    filter_list: list[MetadataFilters],
) -> None:
    """Random filters match random nodes as in the reference, in reads and in queries."""
    runner, adapters = module_adapters
    namespace = uuid.uuid4().hex
    nodes = [
        node(str(number), "", document, **node_metadata)
        for number, (node_metadata, document) in enumerate(zip(metadata, documents, strict=False))
    ]

    async def compare(adapter: CenoteVectorStore) -> None:
        await adapter.async_add(nodes)
        for filters in filter_list:
            answers = reference_answers(filters, nodes)
            read = ids(await adapter.aget_nodes(filters=filters))
            assert {node_id: node_id in read for node_id in answers} == answers
            assert (await adapter.aquery(make_query(filters=filters))).ids == read
        await adapter.aclear()

    for adapter in adapters:
        runner.run(compare(CenoteVectorStore(adapter.client, namespace)))
