"""Values of every kind for the adapters, as test_fuzz.py has them for the stores."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from typing import Any

import numpy as np
import pytest
import test_fuzz
from fuzz_adapters import (
    ADAPTERS,
    APART,
    CONSTRUCTIONS,
    FOUND,
    SEEDS,
    numbered_ids,
    plain,
)
from fuzz_calls import some_odd
from fuzz_objects import Adapter, NotBuiltError
from fuzzing import given as made
from fuzzing import leaks, same_json
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import KINDS, TORTURE, Stores, Tally, assert_same_state, no_hang, refusal, state

from cenote import CenoteError
from cenote.testing import embedded

stores = test_fuzz.stores
tally = test_fuzz.tally

fuzzed = settings(test_fuzz.fuzzed, max_examples=15 * TORTURE)

ENTRY_POINTS = [(name, entry) for name, adapter in ADAPTERS.items() for entry in adapter.entries]


class Refused(tuple[Any, ...]):
    """The type and the words of an error."""

    __slots__ = ()


async def outcome(
    adapter: Adapter, store: Any, own: str, entry: str, arguments: dict[str, Any], *, awaited: bool
) -> Any:
    """What a call returns, or how it was refused: by cenote, or as the framework has it."""
    adapted = None
    try:
        arguments = made(arguments)
        adapted = adapter.make(store, own, arguments)
        with numbered_ids():
            answer = adapter.call(adapted, entry, arguments, awaited=awaited)
            return plain(await answer if inspect.isawaitable(answer) else answer)
    except CenoteError as error:
        refused = refusal(error)
        return Refused((type(refused), str(refused), vars(refused)))
    except adapter.errors as error:
        return Refused((type(error), str(own_refusal(error))))
    finally:
        if adapted is not None:
            adapted.close()


OWN_WORDS = ("documents must be", "top_k must be", "filter_policy must be")
"""How a `ValueError` begins that Haystack's interface asks for."""


def own_refusal(error: Exception) -> Exception:
    """An error that a framework's interface asks for, which tells no secrets either."""
    assert type(error).__module__.split(".")[0] in ("builtins", "haystack"), repr(error)
    assert type(error) is not ValueError or str(error).startswith(OWN_WORDS)
    assert leaks(error) == []
    return error


async def play(
    name: str,
    kind: str,
    pair: list[Any],
    entry: str,
    arguments: dict[str, Any],
    *,
    awaited: bool,
) -> bool | None:
    """Call an adapter over both stores of a kind, and compare.

    Returns: whether they took the input; None where the framework lets nobody make it.
    """
    adapter, own = ADAPTERS[name], uuid.uuid4().hex
    for store in pair:
        await store.upsert(SEEDS, own)
    before = await state(pair[0], own)
    try:
        ours, theirs = [
            await outcome(adapter, store, own, entry, arguments, awaited=awaited) for store in pair
        ]
    except NotBuiltError:
        return None
    refused = isinstance(ours, Refused)
    assert isinstance(theirs, Refused) == refused, (ours, theirs)
    if refused:
        assert ours == theirs
    elif entry not in APART:
        assert_alike(ours, theirs)
    states = [await state(store, own) for store in pair]
    assert_same_state(*states)
    if refused:
        assert_same_state(before, states[0])
    elif entry in KEPT:
        for store in pair:
            adapted = adapter.make(store, own, {})
            await KEPT[entry](adapted, arguments, ours, half=kind == "halfvec")
    for store in pair:
        await store.delete_namespace(own)
    return not refused


def assert_alike(ours: Any, theirs: Any) -> None:
    """The answers of both stores, but for the last digits of their floats."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = [*ours.values()], [*theirs.values()]
    if isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)
    elif type(ours) is float:
        assert theirs == pytest.approx(ours, rel=2e-6, abs=1e-6)
    else:
        assert theirs == ours
        assert type(theirs) is type(ours)


# -- what was written comes back


async def langchain_kept(adapted: Any, arguments: dict[str, Any], ids: Any, **_: Any) -> None:
    arguments = made(arguments)
    if "texts" in arguments:
        contents, metadatas = arguments["texts"], arguments["metadatas"]
        if not isinstance(contents, list) or not isinstance(metadatas, list | None):
            return
        metadatas = metadatas or [{} for _ in contents]
    else:
        documents = list(arguments["documents"])
        contents = [one.page_content for one in documents]
        metadatas = [one.metadata for one in documents]
    assert len(ids) == len(contents)
    wanted = dict(zip(ids, zip(contents, metadatas, strict=True), strict=True))
    found = {one.id: one for one in await adapted.aget_by_ids(list(wanted))}
    for name, (content, metadata) in wanted.items():
        assert found[name].page_content == (
            content.decode() if isinstance(content, bytes | bytearray) else content
        )
        assert same_json(metadata, found[name].metadata)


async def haystack_kept(
    adapted: Any, arguments: dict[str, Any], written: int, *, half: bool
) -> None:
    documents, policy = list(made(arguments["documents"])), arguments["policy"]
    found = {one.id: one for one in await adapted.filter_documents_async()}
    last = {one.id: one for one in documents}
    if policy.name == "SKIP":
        last = {one.id: one for one in reversed(documents)}
        last = {name: one for name, one in last.items() if name not in {s.chunk.id for s in SEEDS}}
        assert written == len(last)
    for name, one in last.items():
        kept = found[name]
        assert kept.content == one.content
        assert same_json(one.meta, kept.meta)
        for part in ("blob", "sparse_embedding"):
            wanted, back = plain(getattr(one, part)), plain(getattr(kept, part))
            assert (wanted is None) == (back is None)
            for key in wanted or ():
                assert wanted[key] == back[key] or same_json(wanted[key], back[key])
        assert (kept.embedding is None) == (one.embedding is None)
        if one.embedding is not None:
            vector = np.asarray(list(one.embedding), dtype=np.float64)
            if half:
                vector = vector.astype(np.float32).astype(np.float16).astype(np.float64)
            slack = 2e-6 * float(np.linalg.norm(vector))
            np.testing.assert_allclose(kept.embedding, vector, rtol=2e-6, atol=slack)


async def llama_kept(adapted: Any, arguments: dict[str, Any], ids: Any, **_: Any) -> None:
    nodes = list(made(arguments["nodes"]))
    assert ids == [one.node_id for one in nodes]
    found = {one.node_id: one for one in await adapted.aget_nodes(ids)}
    for name, one in {one.node_id: one for one in nodes}.items():
        assert plain(found[name]) == plain(one)
        assert "nan" not in repr(one.metadata)  # which plain() takes for null


KEPT: dict[str, Any] = {
    "add_documents": langchain_kept,
    "add_texts": langchain_kept,
    "write_documents": haystack_kept,
    "add": llama_kept,
}

# -- the adapters


@pytest.mark.parametrize(("name", "entry"), ENTRY_POINTS)
def test_calls(stores: Stores, tally: Tally, name: str, entry: str) -> None:
    """Every argument of what the adapters do, awaited or not."""
    kinds = ["text"] if entry in APART else KINDS
    arguments_of = some_odd(ADAPTERS[name].entries[entry])

    @fuzzed
    @given(
        kind=st.sampled_from(kinds),
        arguments=arguments_of,
        awaited=st.sampled_from([True, True, True, True, False]),
    )
    def tried(kind: str, arguments: dict[str, Any], awaited: bool) -> None:
        with no_hang():
            calls = play(name, kind, stores.pairs[kind], entry, arguments, awaited=awaited)
            took = stores.runner.run(calls)
        if took is not None:
            counts = tally.accepted if took else tally.refused
            counts[f"{name}: {entry}"] += 1

    tried()
    assert tally.accepted[f"{name}: {entry}"]
    assert tally.refused[f"{name}: {entry}"]


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(stores: Stores, name: str) -> None:
    """The inputs by which faults of the adapters were found, one by one."""
    for entry, arguments, taken in FOUND[name]:
        with no_hang():
            calls = play(name, "text", stores.pairs["text"], entry, arguments, awaited=True)
            assert stores.runner.run(calls) is taken, (entry, arguments)


@pytest.mark.parametrize("entry", CONSTRUCTIONS)
def test_constructors(tally: Tally, entry: str) -> None:
    """An argument works, or is refused when the adapter is made or used first."""
    make, arguments_of, errors = CONSTRUCTIONS[entry]

    @fuzzed
    @given(arguments=some_odd(arguments_of))
    def tried(arguments: dict[str, Any]) -> None:
        counts = tally.accepted
        try:
            with no_hang():
                asyncio.run(make(**made(arguments)))
        except NotBuiltError:
            counts = tally.refused
        except CenoteError as error:
            refusal(error)
            counts = tally.refused
        except errors as error:
            own_refusal(error)
            counts = tally.refused
        counts[f"{entry}: made"] += 1

    tried()
    assert tally.accepted[f"{entry}: made"]
    assert tally.refused[f"{entry}: made"]


def test_a_long_text_is_no_date(stores: Stores) -> None:
    """Haystack parses each text that is compared with a date, which may take minutes."""
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
