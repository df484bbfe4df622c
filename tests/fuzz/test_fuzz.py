"""Fuzz tests of the stores: every input is stored unchanged, or rejected with a clear error.

Each call goes to a store of each kind, and both must give the same answer. The summary of the run
shows how many inputs each method accepted and rejected. ``CENOTE_TORTURE`` multiplies the number of
inputs; without it, the inputs are the same in each run.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import harness as fuzz_harness
from support.fuzzing.calls import (
    ENTRY_POINTS,
    SEEDS,
    Item,
    OwnNamespace,
    arguments_of,
    batches_with_an_odd_part,
    call,
)
from support.fuzzing.harness import (
    KINDS,
    Stores,
    Tally,
    assert_same_state,
    check_error,
    fuzzed,
    length,
    no_hang,
    state,
)
from support.fuzzing.settings import CONSTRUCTIONS, connecting
from support.fuzzing.values import anything, resolve, same_json

from cenote import (
    CenoteError,
    Chunk,
    EmbeddedChunk,
    InvalidInputError,
    PgVectorStore,
    RetrievalResult,
    StoreConnectionError,
)
from cenote.testing import embedded
from cenote.validation.json import MAX_TEXT_BYTES

stores = fuzz_harness.stores
tally = fuzz_harness.tally


@dataclass(frozen=True)
class Rejection:
    """Error with which a store rejected a call."""

    error: CenoteError

    @property
    def facts(self) -> Any:
        return type(self.error), str(self.error), vars(self.error)


async def outcome(store: Any, entry: str, arguments: dict[str, Any]) -> Any:
    """Return the answer of a call, or its rejection. Errors of other kinds fail the test."""
    try:
        return await call(store, entry, arguments)
    except CenoteError as error:
        return Rejection(check_error(error))


def assert_same(ours: Any, theirs: Any) -> None:
    """Check that both stores gave the same answer."""
    if isinstance(ours, Rejection):
        assert isinstance(theirs, Rejection), theirs
        assert theirs.facts == ours.facts
    elif isinstance(ours, dict):
        assert list(theirs) == list(ours)
        for name, vector in ours.items():
            np.testing.assert_allclose(theirs[name], vector, rtol=2e-6, atol=1e-6 * length(vector))
    elif isinstance(ours, list):
        assert isinstance(theirs, list)
        assert len(theirs) == len(ours)
        for our_item, their_item in zip(ours, theirs, strict=True):
            assert_same(our_item, their_item)
    elif isinstance(ours, tuple):
        assert_same([*ours], [*theirs])
    elif isinstance(ours, RetrievalResult):
        assert (theirs.chunk, theirs.retriever) == (ours.chunk, ours.retriever)
        assert theirs.score == pytest.approx(ours.score, abs=1e-6)
    else:
        assert theirs == ours


def assert_kept(item: EmbeddedChunk, found: tuple[Chunk, Any], *, half: bool) -> None:
    """Check that a chunk is stored as it was given."""
    chunk, vector = found
    for name in ("id", "document_id", "content", "position", "content_hash"):
        assert getattr(chunk, name) == getattr(item.chunk, name)
        assert type(getattr(chunk, name)) in (str, int)
    assert same_json(item.chunk.metadata, chunk.metadata)
    assert not np.ma.is_masked(item.embedding)
    wanted = np.asarray(item.embedding, dtype=np.float64)
    if half:
        wanted = wanted.astype(np.float32).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(vector, wanted, rtol=2e-6, atol=2e-6 * length(wanted))


# -- the stores

STORE_SPECIFIC = ("search_text", "search_hybrid", "retrieve")
"""Methods whose results are specific to the kind of store."""


async def compare_stores(pair: list[Any], entry: str, arguments: dict[str, Any]) -> bool:
    """Call both stores and compare them. Return True if they accepted the input."""
    own_namespace = uuid.uuid4().hex
    arguments = {name: _with_namespace(value, own_namespace) for name, value in arguments.items()}
    namespaces = [own_namespace]
    if isinstance(named := arguments.get("namespace"), str):
        namespaces.append(named)
    for store in pair:
        await store.upsert(SEEDS, own_namespace)
    before = await state(pair[0], own_namespace)
    ours, theirs = [await outcome(store, entry, arguments) for store in pair]
    rejected = isinstance(ours, Rejection)
    assert isinstance(theirs, Rejection) == rejected, (ours, theirs)
    if rejected or entry not in STORE_SPECIFIC:
        assert_same(ours, theirs)
    for store in pair:
        if rejected:
            assert_same_state(before, await state(store, own_namespace))
        elif entry in ("upsert", "bulk_load", "sync_document"):
            await assert_all_kept(store, arguments)
    if not rejected:
        for namespace in dict.fromkeys(namespaces):
            first, second = [await state(store, namespace) for store in pair]
            assert_same_state(first, second)
    for store in pair:
        for namespace in namespaces if not rejected else [own_namespace]:
            await store.delete_namespace(namespace)
    return not rejected


def _with_namespace(value: Any, own_namespace: str) -> Any:
    """Replace the placeholder for the namespace of the example."""
    if isinstance(value, list):
        return [_with_namespace(item, own_namespace) for item in value]
    return own_namespace if isinstance(value, OwnNamespace) else value


async def assert_all_kept(store: Any, arguments: dict[str, Any]) -> None:
    chunks = arguments.get("embedded_chunks", arguments.get("chunks"))
    if not isinstance(chunks, list):
        return  # contains no chunk
    now = await state(store, arguments["namespace"])
    last = {item.fields["id"]: item for item in chunks}
    for name, item in last.items():
        if type(item) is Item:
            half = getattr(store, "_column_type", None) == "halfvec"
            half = half or "half" in repr(store)
            assert_kept(item.make(), now[name], half=half)


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_calls(stores: Stores, tally: Tally, entry: str) -> None:
    """Every method accepts or rejects odd arguments, with full text or without, and for halfvec."""

    kinds = KINDS if entry not in STORE_SPECIFIC else ["text"] * 9 + KINDS

    @fuzzed
    @given(kind=st.sampled_from(kinds), arguments=arguments_of(entry))
    def try_input(kind: str, arguments: dict[str, Any]) -> None:
        with no_hang():
            accepted = stores.runner.run(compare_stores(stores.pairs[kind], entry, arguments))
        counts = tally.accepted if accepted else tally.rejected
        counts[entry] += 1

    try_input()
    assert tally.accepted[entry]
    assert tally.rejected[entry]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_chunk_parts(stores: Stores, tally: Tally, kind: str) -> None:
    """Every odd value for a part of a chunk is accepted or rejected."""
    for part, batch in batches_with_an_odd_part():
        arguments = {"namespace": OwnNamespace(), "embedded_chunks": batch}
        with no_hang():
            accepted = stores.runner.run(compare_stores(stores.pairs[kind], "upsert", arguments))
        counts = tally.accepted if accepted else tally.rejected
        counts["odd " + part] += 1


def test_transactions_and_conditions(stores: Stores, tally: Tally) -> None:
    """Odd values of `session` and `where`, which only Postgres stores have, are rejected."""
    _, store = stores.pairs["plain"]

    @fuzzed
    @given(name=st.sampled_from(["session", "where"]), value=st.none() | anything)
    def try_input(name: str, value: Any) -> None:
        async def search() -> None:
            await store.search([1, 0, 0, 0], "n", **{name: resolve(value)})

        counts = tally.accepted
        try:
            with no_hang():
                stores.runner.run(search())
        except CenoteError as error:
            check_error(error)
            counts = tally.rejected
        counts["session, where"] += 1

    try_input()


def test_large_metadata(stores: Stores) -> None:
    """Metadata of the maximum size are stored, and larger metadata are rejected."""
    one_text = {"a": "x" * 50_000_000}
    many_keys = {f"{n:06}": "x" * 900 for n in range(50_000)}

    async def write() -> None:
        for store in stores.pairs["plain"]:
            for metadata in (one_text, many_keys):
                await store.upsert([embedded("1", metadata=metadata)], "large")
                (chunk,) = await store.get(["1"], "large")
                assert chunk.metadata == metadata
            too_large = embedded("2", metadata={"a": "é" * (MAX_TEXT_BYTES // 2)})
            with pytest.raises(InvalidInputError) as error:
                await store.upsert([embedded("1"), too_large], "large")
            assert (error.value.field, error.value.chunk_id) == ("metadata", "2")
            (chunk,) = await store.get(["1", "2"], "large")
            assert chunk.metadata == metadata
            await store.delete_namespace("large")

    with no_hang():
        stores.runner.run(write())


# -- settings


@pytest.mark.parametrize("entry", CONSTRUCTIONS)
def test_constructors(tally: Tally, entry: str) -> None:
    """Records accept every value, because stores check them; settings are checked at once."""
    construction = CONSTRUCTIONS[entry]

    @fuzzed
    @given(arguments=construction.drawn())
    def try_input(arguments: dict[str, Any]) -> None:
        try:
            with no_hang():
                construction.make(**resolve(arguments))
        except CenoteError as error:
            check_error(error)
            tally.rejected[entry] += 1
        else:
            tally.accepted[entry] += 1

    try_input()
    assert tally.accepted[entry]
    assert bool(tally.rejected[entry]) == construction.rejects


async def connect(arguments: dict[str, Any]) -> None:
    await (await PgVectorStore.connect(**arguments)).close()


def test_connect(tally: Tally) -> None:
    """Valid connection strings lead to a connection error, and invalid ones are rejected."""

    @fuzzed
    @given(arguments=connecting())
    def try_input(arguments: dict[str, Any]) -> None:
        counts = tally.accepted
        try:
            with no_hang():
                asyncio.run(connect(resolve(arguments)))
        except CenoteError as error:
            if not isinstance(check_error(error), StoreConnectionError):
                counts = tally.rejected
        counts["connect"] += 1

    try_input()
    assert tally.accepted["connect"]
    assert tally.rejected["connect"]
