"""Fuzz tests of the adapters: both kinds of store give the same answers."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzzing import harness as fuzz_harness
from support.fuzzing.adapters import (
    ADAPTERS,
    CONSTRUCTIONS,
    REGRESSIONS,
    SEEDS,
    STORE_SPECIFIC,
    numbered_ids,
    plain,
)
from support.fuzzing.calls import some_odd
from support.fuzzing.harness import (
    KINDS,
    TORTURE,
    Stores,
    Tally,
    assert_same_state,
    check_error,
    no_hang,
    state,
)
from support.fuzzing.objects import Adapter, NotBuiltError
from support.fuzzing.values import leaks, resolve, same_json

from cenote import CenoteError
from cenote.adapters.metadata import json_form
from cenote.testing import embedded

stores = fuzz_harness.stores
tally = fuzz_harness.tally

fuzzed = settings(fuzz_harness.fuzzed, max_examples=15 * TORTURE)

ENTRY_POINTS = [(name, entry) for name, adapter in ADAPTERS.items() for entry in adapter.entries]


class Rejection(tuple[Any, ...]):
    """Type and message of an error."""

    __slots__ = ()


async def outcome(
    adapter: Adapter,
    store: Any,
    own_namespace: str,
    entry: str,
    arguments: dict[str, Any],
    *,
    awaited: bool,
) -> Any:
    """Return the answer of a call, or its rejection by cenote or with the framework's own error."""
    adapted = None
    try:
        arguments = resolve(arguments)
        adapted = adapter.make(store, own_namespace, arguments)
        with numbered_ids():
            answer = adapter.call(adapted, entry, arguments, awaited=awaited)
            return plain(await answer if inspect.isawaitable(answer) else answer)
    except CenoteError as error:
        rejected = check_error(error)
        return Rejection((type(rejected), str(rejected), vars(rejected)))
    except adapter.errors as error:
        return Rejection((type(error), str(check_framework_error(error))))
    finally:
        if adapted is not None:
            adapted.close()


OWN_WORDS = ("documents must be", "top_k must be", "filter_policy must be")
"""Beginnings of the `ValueError` messages that Haystack's interface requires."""


def check_framework_error(error: Exception) -> Exception:
    """Check that an error is one that the framework requires and contains no secrets."""
    assert type(error).__module__.split(".")[0] in ("builtins", "haystack"), repr(error)
    assert type(error) is not ValueError or str(error).startswith(OWN_WORDS)
    assert leaks(error) == []
    return error


async def compare_stores(
    name: str,
    kind: str,
    pair: list[Any],
    entry: str,
    arguments: dict[str, Any],
    *,
    awaited: bool,
) -> bool | None:
    """Call an adapter with both stores of a kind and compare the results.

    Returns:
        True if the stores accepted the input, None if the framework itself rejected it.
    """
    adapter, own_namespace = ADAPTERS[name], uuid.uuid4().hex
    for store in pair:
        await store.upsert(SEEDS, own_namespace)
    before = await state(pair[0], own_namespace)
    try:
        ours, theirs = [
            await outcome(adapter, store, own_namespace, entry, arguments, awaited=awaited)
            for store in pair
        ]
    except NotBuiltError:
        return None
    rejected = isinstance(ours, Rejection)
    assert isinstance(theirs, Rejection) == rejected, (ours, theirs)
    if rejected:
        assert ours == theirs
    elif entry not in STORE_SPECIFIC:
        assert_alike(ours, theirs)
    states = [await state(store, own_namespace) for store in pair]
    assert_same_state(*states)
    if rejected:
        assert_same_state(before, states[0])
    elif entry in RESTORED:
        for store in pair:
            adapted = adapter.make(store, own_namespace, {})
            await RESTORED[entry](adapted, arguments, ours, half=kind == "halfvec")
    for store in pair:
        await store.delete_namespace(own_namespace)
    return not rejected


def assert_alike(ours: Any, theirs: Any) -> None:
    """Check that the answers of both stores are equal, except for the last digits of floats."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = [*ours.values()], [*theirs.values()]
    if isinstance(ours, list):
        for our_item, their_item in zip(ours, theirs, strict=True):
            assert_alike(our_item, their_item)
    elif type(ours) is float:
        assert theirs == pytest.approx(ours, rel=2e-6, abs=1e-6)
    else:
        assert theirs == ours
        assert type(theirs) is type(ours)


# -- written objects are restored


async def langchain_restored(adapted: Any, arguments: dict[str, Any], ids: Any, **_: Any) -> None:
    arguments = resolve(arguments)
    if "texts" in arguments:
        contents, metadatas = arguments["texts"], arguments["metadatas"]
        if not isinstance(contents, list) or not isinstance(metadatas, list | None):
            return
        metadatas = metadatas or [{} for _ in contents]
    else:
        documents = list(arguments["documents"])
        contents = [document.page_content for document in documents]
        metadatas = [document.metadata for document in documents]
    assert len(ids) == len(contents)
    wanted = dict(zip(ids, zip(contents, metadatas, strict=True), strict=True))
    found = {document.id: document for document in await adapted.aget_by_ids(list(wanted))}
    for document_id, (content, metadata) in wanted.items():
        assert found[document_id].page_content == (
            content.decode() if isinstance(content, bytes | bytearray) else content
        )
        assert same_json(json_form(metadata), found[document_id].metadata)


async def haystack_restored(
    adapted: Any, arguments: dict[str, Any], written: int, *, half: bool
) -> None:
    documents, policy = list(resolve(arguments["documents"])), arguments["policy"]
    found = {document.id: document for document in await adapted.filter_documents_async()}
    expected = {document.id: document for document in documents}
    if policy.name == "SKIP":
        for seed in SEEDS:
            expected.pop(seed.chunk.id, None)
        first = {document.id: document for document in reversed(documents)}
        expected = {document_id: first[document_id] for document_id in expected}
        assert written == len(expected)
    for document_id, document in expected.items():
        kept = found[document_id]
        assert kept.content == document.content
        assert same_json(json_form(document.meta), kept.meta)
        for part in ("blob", "sparse_embedding"):
            wanted, restored = plain(getattr(document, part)), plain(getattr(kept, part))
            assert (wanted is None) == (restored is None)
            for key in wanted or ():
                assert wanted[key] == restored[key] or same_json(
                    json_form(wanted[key]), restored[key]
                )
        assert (kept.embedding is None) == (document.embedding is None)
        if document.embedding is not None:
            vector = np.asarray(list(document.embedding), dtype=np.float64)
            if half:
                vector = vector.astype(np.float32).astype(np.float16).astype(np.float64)
            slack = 2e-6 * float(np.linalg.norm(vector))
            np.testing.assert_allclose(kept.embedding, vector, rtol=2e-6, atol=slack)


async def llama_restored(adapted: Any, arguments: dict[str, Any], ids: Any, **_: Any) -> None:
    nodes = list(resolve(arguments["nodes"]))
    assert ids == [node.node_id for node in nodes]
    found = {node.node_id: node for node in await adapted.aget_nodes(ids)}
    for node_id, node in {node.node_id: node for node in nodes}.items():
        written = node.model_copy(update={"metadata": json_form(node.metadata)})
        assert plain(found[node_id]) == plain(written)
        assert "nan" not in repr(node.metadata)  # plain() converts NaN to null


RESTORED: dict[str, Any] = {
    "add_documents": langchain_restored,
    "add_texts": langchain_restored,
    "write_documents": haystack_restored,
    "add": llama_restored,
}

# -- the adapters


@pytest.mark.parametrize(("name", "entry"), ENTRY_POINTS)
def test_calls(stores: Stores, tally: Tally, name: str, entry: str) -> None:
    """Every method of the adapters, asynchronous or not, accepts or rejects odd arguments."""
    kinds = ["text"] if entry in STORE_SPECIFIC else KINDS
    arguments_of = some_odd(ADAPTERS[name].entries[entry])

    @fuzzed
    @given(
        kind=st.sampled_from(kinds),
        arguments=arguments_of,
        awaited=st.sampled_from([True, True, True, True, False]),
    )
    def try_input(kind: str, arguments: dict[str, Any], awaited: bool) -> None:
        with no_hang():
            calls = compare_stores(
                name, kind, stores.pairs[kind], entry, arguments, awaited=awaited
            )
            accepted = stores.runner.run(calls)
        if accepted is not None:
            counts = tally.accepted if accepted else tally.rejected
            counts[f"{name}: {entry}"] += 1

    try_input()
    assert tally.accepted[f"{name}: {entry}"]
    assert tally.rejected[f"{name}: {entry}"]


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(stores: Stores, name: str) -> None:
    """Inputs that once caused errors are accepted or rejected as expected."""
    for entry, arguments, accepted in REGRESSIONS[name]:
        with no_hang():
            calls = compare_stores(
                name, "text", stores.pairs["text"], entry, arguments, awaited=True
            )
            assert stores.runner.run(calls) is accepted, (entry, arguments)


@pytest.mark.parametrize("entry", CONSTRUCTIONS)
def test_constructors(tally: Tally, entry: str) -> None:
    """Constructors accept odd arguments, or reject them at once or at the first use."""
    make, arguments_of, errors = CONSTRUCTIONS[entry]

    @fuzzed
    @given(arguments=some_odd(arguments_of))
    def try_input(arguments: dict[str, Any]) -> None:
        counts = tally.accepted
        try:
            with no_hang():
                asyncio.run(make(**resolve(arguments)))
        except NotBuiltError:
            counts = tally.rejected
        except CenoteError as error:
            check_error(error)
            counts = tally.rejected
        except errors as error:
            check_framework_error(error)
            counts = tally.rejected
        counts[f"{entry}: made"] += 1

    try_input()
    assert tally.accepted[f"{entry}: made"]
    assert tally.rejected[f"{entry}: made"]


def test_long_texts_are_not_dates(stores: Stores) -> None:
    """Long texts are not parsed as dates, which would take Haystack minutes."""
    content = "x" * 2**22
    for store in stores.pairs["plain"]:
        stores.runner.run(store.upsert([embedded("1", content=content)], "long"))
        adapted = ADAPTERS["haystack"].make(store, "long", {})
        for operator in ("AND", "NOT"):
            newer = {"field": "content", "operator": ">", "value": "2024-02-29"}
            filters = {"operator": operator, "conditions": [newer]}
            with no_hang():
                found = stores.runner.run(adapted.count_documents_by_filter_async(filters))
            assert found == (operator == "NOT")
        stores.runner.run(store.delete_namespace("long"))
