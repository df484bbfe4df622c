"""Haystack filters match the same documents as in Haystack's own code."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cenote import InMemoryVectorStore, PgVectorStore
from cenote.adapters.haystack.documents import Documents
from cenote.adapters.haystack.filters import RESERVED, translate

ZONES = [None, UTC, *(timezone(timedelta(hours=hours)) for hours in (2, -23.5, 23.5))]
TIMES = [
    datetime(2024, 2, 29, tzinfo=zone) + timedelta(hours=hours)
    for zone in ZONES
    for hours in (-48, -23.5, 0, 0.5, 47)
]
SPELLINGS: list[Callable[[datetime], str]] = [
    datetime.isoformat,
    lambda time: time.isoformat(" ", "milliseconds"),
    lambda time: time.isoformat("t").replace("+00:00", "Z"),
    lambda time: time.date().isoformat(),
    lambda time: f"{time:%Y%m%d}",
    lambda time: f"{time:%G-W%V-%u}",
]
DATES = sorted({spelling(time) for time in TIMES for spelling in SPELLINGS})
UNUSUAL_DATES = [
    "2024-02-28T24:00",
    "28 February 2024",
    "2024-02-29 10 PM",
    "2024-29-02",
    "0001-01-01",
]
TEXTS = ["", "1", "a", "2024", "2024-02-30", "ä%"]
NUMBERS = [True, False, 0, 1, -1, 2, 0.0, 1.0, 0.5, 2**60, 2.0**53, 2**53 + 1, 1e-7]
CONTAINERS: list[Any] = [[], [1], [True], [[2]], ["a"], {}, {"a": 0}, {"a": False}, {"b": 0.5}]
VALUES: list[Any] = [None, *UNUSUAL_DATES, *TEXTS, *NUMBERS, *CONTAINERS]

operands = st.sampled_from(VALUES) | st.sampled_from(DATES)
comparisons = st.builds(
    lambda name, rest: {"field": name, "operator": rest[0], "value": rest[1]},
    st.sampled_from(["meta.a", "meta.a", "meta.b", "b", "meta.b.a", "content", "id", "no.a"]),
    st.tuples(st.sampled_from(["==", "!="]), operands)
    | st.tuples(st.sampled_from(["<", ">="]), st.sampled_from(NUMBERS + TIMES + DATES))
    | st.tuples(st.sampled_from(["in", "not in"]), st.lists(operands, min_size=1, max_size=3)),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.builds(
        lambda operator, conditions: {"operator": operator, "conditions": conditions},
        st.sampled_from(["AND", "OR", "NOT"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def stores(module_dsn: str) -> Iterator[tuple[asyncio.Runner, list[Any]]]:
    """An event loop, and one store of each kind."""
    with asyncio.Runner() as runner:
        postgres = runner.run(PgVectorStore.connect(module_dsn, 4))
        yield runner, [InMemoryVectorStore(4), postgres]
        runner.run(postgres.close())


def _matches(filters: dict[str, Any], document: Document) -> bool | None:
    """Return Haystack's answer, or None if Haystack cannot compare the document's value."""
    try:
        return document_matches_filter(filters, document)
    except (FilterError, TypeError):
        return None


def _documents() -> list[Document]:
    """Return a document for each value, with texts also as content, and one without a value."""
    without_value = Document(id="999", embedding=[1.0, 999.0, 0.0, 0.0])
    return [
        Document(
            id=f"{number:03}",
            content=value if isinstance(value, str) else None,
            meta={"a": value, "b": {"a": value}},
            embedding=[1.0, number, 0.0, 0.0],
        )
        for number, value in enumerate([*VALUES, *DATES])
    ] + [without_value]


async def _assert_same_matches(
    stored: Documents, documents: list[Document], filters: dict[str, Any]
) -> None:
    """Check that a filter matches the same documents as in Haystack.

    Documents whose values Haystack cannot compare are left out.
    """
    answers = {document.id: _matches(filters, document) for document in documents}
    nearest = await stored.nearest([1.0, 0, 0, 0], filters, len(documents))
    found = [document.id for document in nearest if answers[document.id] is not None]
    assert found == [document_id for document_id, answer in answers.items() if answer], filters


NAMES = ["meta.b.a", "a", "id", "b.a", f"meta.{RESERVED}", RESERVED]

COMPARISONS: list[tuple[str, Any]] = [
    *((operator, value) for operator in ("==", "!=") for value in [*VALUES, *DATES[::3], *TIMES]),
    *(
        (operator, value)
        for operator in ("<", "<=", ">", ">=")
        for value in [None, *NUMBERS, *DATES[::3], *TIMES]
    ),
    *((operator, VALUES[n::5]) for operator in ("in", "not in") for n in range(5)),
    ("in", [*range(3000), "a", None]),
    *((operator, [*DATES, *TIMES[::4]]) for operator in ("in", "not in")),
    *((operator, [*DATES[::7], *VALUES, *VALUES]) for operator in ("in", "not in")),
    ("in", [f"{1900 + n}-02-28" for n in range(200)]),
    ("not in", [*([n, "a"] for n in range(2, 200)), [[2]], ["a"], {"b": 0.5}]),
    ("in", []),
]


def test_comparisons_match_as_in_haystack(stores: Any) -> None:
    """Every comparison of each value with each other, and its negation, match as in Haystack."""
    runner, stores = stores
    documents = _documents()

    async def compare(store: Any) -> None:
        stored = Documents(store, uuid.uuid4().hex, "model")
        await stored.write(documents, DuplicatePolicy.FAIL)
        for number, (operator, value) in enumerate(COMPARISONS):
            for name in ["meta.a", [*NAMES, "content"][number % 7]]:
                comparison = {"field": name, "operator": operator, "value": value}
                negation = {"operator": "NOT", "conditions": [comparison]}
                await _assert_same_matches(stored, documents, comparison)
                await _assert_same_matches(stored, documents, negation)
        await stored.delete_all()

    for store in stores:
        runner.run(compare(store))


EXAMPLES = int(os.environ.get("CENOTE_TEST_FILTER_EXAMPLES", "250"))
TREES_PER_EXAMPLE = 10


@settings(
    max_examples=max(EXAMPLES // TREES_PER_EXAMPLE, 1),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    filter_trees=st.lists(trees, min_size=TREES_PER_EXAMPLE, max_size=TREES_PER_EXAMPLE),
    top_k=st.integers(1, 5),
)
def test_random_filters_match_as_in_haystack(stores: Any, filter_trees: Any, top_k: int) -> None:
    """Random filter trees (CENOTE_TEST_FILTER_EXAMPLES in all) match alike in every method."""
    runner, stores = stores
    documents = _documents()

    async def compare(store: Any) -> None:
        stored = Documents(store, "trees", "model")
        await stored.write(documents, DuplicatePolicy.OVERWRITE)
        for filters in filter_trees:
            await _assert_same_matches(stored, documents, filters)
            found = await stored.read(filters)
            assert await stored.count(filters) == len(found)
            nearest = await stored.nearest([1.0, 0, 0, 0], filters, top_k)
            assert [document.id for document in nearest] == [
                document.id for document in found[:top_k]
            ]
        assert await stored.delete_matching(filter_trees[-1]) == len(found)
        assert await stored.count() == len(documents) - len(found)

    for store in stores:
        runner.run(compare(store))


LISTED: dict[str, tuple[Any, str | None]] = {
    "1": (["red", "blue"], "Cats purr."),
    "2": (["blue"], "Dogs bark 100%."),
    "3": ([], "dogs_and_cats"),
    "4": ("reddish", ""),
    "5": ("RED", None),
    "6": ([1, True, None, ["red"], {"a": 1}], "a\\b"),
    "7": (None, "ÄRGER"),
    "8": ({"red": 1}, "red"),
}
"""Values of ``meta.a`` and contents of documents, by id. One more document has neither."""

EXTENSIONS: list[tuple[str, str, Any, str]] = [
    ("meta.a", "like", "red%", "4"),
    ("meta.a", "like", "r_dd%h", "4"),
    ("meta.a", "like", "red", ""),
    ("meta.a", "ilike", "r%D%", "45"),
    ("content", "like", "%cats%", "3"),
    ("content", "ilike", "%cats%", "13"),
    ("content", "ilike", "ärger", ""),
    ("content", "like", "%100\\%%", "2"),
    ("content", "like", "a\\\\b", "6"),
    ("content", "like", "", "4"),
    ("content", "like", "%", "1234678"),
    ("content", "contains", "", "1234678"),
    ("content", "contains", "cats", "3"),
    ("content", "contains", "%", "2"),
    ("content", "contains", "_", "3"),
    ("content", "contains", "\\", "6"),
    ("id", "like", "_", "12345678"),
    ("id", "contains", "one", "none"),
    ("meta.a", "contains", "red", "14"),
    ("meta.a", "contains", "blue", "12"),
    ("meta.a", "contains", 1, "6"),
    ("meta.a", "contains", 1.0, "6"),
    ("meta.a", "contains", True, "6"),
    ("meta.a", "contains", False, ""),
    ("meta.a", "contains", None, "6"),
    ("meta.a", "contains", ["red"], "6"),
    ("meta.a", "contains", ("red",), "6"),
    ("meta.a", "contains", {"a": 1}, "6"),
    ("meta.a", "array_contains", ["blue"], "12"),
    ("meta.a", "array_contains", ["blue", "red"], "1"),
    ("meta.a", "array_contains", ("blue", "red"), "1"),
    ("meta.a", "array_contains", ["blue", "green"], ""),
    ("meta.a", "array_overlaps", ["red", "green"], "1"),
    ("meta.a", "array_overlaps", ["red", "blue", 1], "126"),
    ("meta.a", "array_overlaps", ["red", *map(str, range(2000))], "1"),
    ("meta.a", "array_overlaps", [], ""),
    ("meta.b", "array_overlaps", ["red"], ""),
    ("meta.none", "contains", "red", ""),
    ("a", "like", "red%", "4"),
    (f"meta.{RESERVED}", "contains", "no_content", ""),
    (f"meta.{RESERVED}", "like", "%", ""),
]
"""Comparisons that Haystack itself does not have, and the ids of the documents that match."""


def test_operators_of_other_integrations(stores: Any) -> None:
    """``like``, ``contains`` and the array operators match alike in every method.

    Their negations match all other documents, also those without the key. In a filter with dates,
    which Python decides, they have the same meaning.
    """
    runner, stores = stores
    documents = [
        Document(id=id, content=content, meta={"a": value, "day": "2024-02-29"})
        for id, (value, content) in LISTED.items()
    ]
    documents.append(Document(id="none", content=None, meta={"day": "2024-02-29"}))
    everything = {document.id for document in documents}
    same_day = {"field": "meta.day", "operator": "<", "value": "2024-03-01T00:00:00+01:00"}

    async def find(stored: Documents, filters: dict[str, Any]) -> set[str]:
        found = {document.id for document in await stored.read(filters)}
        assert await stored.count(filters) == len(found)
        return found

    async def compare(store: Any) -> None:
        stored = Documents(store, uuid.uuid4().hex, "model")
        await stored.write(documents, DuplicatePolicy.FAIL)
        for name, operator, value, ids in EXTENSIONS:
            comparison = {"field": name, "operator": operator, "value": value}
            expected = {"none"} if ids == "none" else set(ids)
            negations = [{"operator": "NOT", "conditions": [comparison]}]
            if not operator.startswith("array"):
                negations.append({**comparison, "operator": f"not {operator}"})
            for filters, matching in [
                (comparison, expected),
                *((negation, everything - expected) for negation in negations),
            ]:
                assert await find(stored, filters) == matching, filters
                dated = {"operator": "AND", "conditions": [same_day, filters]}
                assert not translate(dated).exact
                assert await find(stored, dated) == matching, dated
        deleted = await stored.delete_matching(
            {"field": "meta.a", "operator": "not contains", "value": "blue"}
        )
        assert deleted == len(documents) - 2

    for store in stores:
        runner.run(compare(store))


def test_filters_with_dates_find_documents_beyond_the_largest_limit(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If few of the nearest documents match, a search compares all matching ones."""
    monkeypatch.setattr("cenote.adapters.haystack.documents.MAX_LIMIT", 20)
    monkeypatch.setattr("cenote.adapters.haystack.documents.PAGE_SIZE", 7)
    runner, stores = stores
    late, early = "2024-02-29T10:00:00+05:00", "2024-02-29T09:00:00+00:00"
    documents = [
        Document(
            id=f"{number:03}",
            meta={"at": early if number >= 40 else late},
            embedding=[1.0, number / 50, 0.0, 0.0],
        )
        for number in range(60)
    ]
    filters = {"field": "meta.at", "operator": ">", "value": datetime(2024, 2, 29, 8, tzinfo=UTC)}

    async def compare(store: Any) -> None:
        stored = Documents(store, "beyond", "model")
        await stored.write(documents, DuplicatePolicy.OVERWRITE)
        for top_k in (1, 9, 20):
            nearest = await stored.nearest([1.0, 0, 0, 0], filters, top_k)
            expected = [f"{number:03}" for number in range(40, 60)][:top_k]
            assert [document.id for document in nearest] == expected
        await stored.delete_all()

    for store in stores:
        runner.run(compare(store))


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"field": "embedding", "operator": "==", "value": None}, "embedding"),
        ({"field": "meta", "operator": "==", "value": {}}, "meta"),
        ({"field": "blob.mime_type", "operator": "==", "value": "text/plain"}, "blob.mime_type"),
        ({"field": "meta.a", "operator": ">", "value": "soon"}, "ISO 8601"),
        ({"field": "meta.a", "operator": ">", "value": {"a": 1}}, "number or a date"),
        ({"field": "meta.a", "operator": "==", "value": {1, 2}}, "set"),
        ({"field": "meta.a", "operator": "==", "value": "secret\x00"}, "NUL"),
        ({"field": "meta.a", "operator": "<", "value": float("nan")}, "NaN"),
        ({"field": "meta.a", "operator": "in", "value": "ab"}, "list"),
        ({"field": "meta.a", "operator": "matches", "value": "ab"}, "not in, like"),
        ({"field": "meta.a", "operator": "not like", "value": 5}, "not like requires a text"),
        ({"field": "meta.a", "operator": "like", "value": "secret\\"}, "single backslash"),
        ({"field": "meta._haystack", "operator": "ilike", "value": None}, "text, not NoneType"),
        ({"field": "content", "operator": "contains", "value": 5}, "requires a text, not int"),
        ({"field": "content", "operator": "array_contains", "value": ["a"]}, "meta.<key>"),
        ({"field": "meta.a", "operator": "array_overlaps", "value": "secret"}, "list, not str"),
        ({"field": "meta.a", "operator": "array_contains", "value": []}, "at least one"),
        (
            {"field": "meta.a", "operator": "array_contains", "value": [1, {2}]},
            r"'\[1\]' is of type",
        ),
        ({"field": "meta.a", "operator": "in", "value": ["a", b"secret"]}, r"'\[1\]' is of type b"),
        ({"field": 7, "operator": "==", "value": "ab"}, "int"),
        ({"operator": "XOR", "conditions": []}, "AND, OR, NOT"),
        ({"operator": "AND", "conditions": {}}, "list"),
        ({"operator": "AND", "conditions": ["meta.a"]}, "str"),
        (
            {
                "operator": "OR",
                "conditions": [{"field": "meta.a", "operator": "==", "value": 2}] * 1001,
            },
            "parts",
        ),
        (["meta.a"], "list"),
    ],
)
def test_invalid_filters(filters: Any, reason: str) -> None:
    """The error names the reason and does not quote the value."""
    with pytest.raises(FilterError, match=reason) as error:
        translate(filters)
    assert "secret" not in str(error.value)
