"""Values of every kind for every argument: kept faithfully, or refused clearly, nothing written.

Each call goes to a store of either kind, which must answer alike. How many inputs each entry point
took and refused is in the summary of the run. ``CENOTE_TORTURE`` is how many times as many inputs
there are as in CI, where they are always the same.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fuzz_calls import ENTRY_POINTS, SEEDS, Item, Own, arguments_of, call, each_odd
from fuzz_settings import CONSTRUCTIONS, connecting
from fuzzing import DIMENSIONS, anything, leaks, same_json
from fuzzing import given as made
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cenote import (
    CenoteError,
    Chunk,
    ConfigurationError,
    EmbeddedChunk,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    RetrievalResult,
    StoreConnectionError,
)
from cenote.jsonvalues import MAX_TEXT_BYTES
from cenote.testing import embedded, stored

TORTURE = int(os.environ.get("CENOTE_TORTURE", "1"))
INPUTS = 30
HANGS_AFTER = 60  # seconds; no call takes one

fuzzed = settings(
    max_examples=INPUTS * TORTURE,
    derandomize=TORTURE == 1,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# -- counting


class Tally:
    """How many inputs each entry point took, and how many it refused."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("inputs tried")
        for entry in dict.fromkeys([*self.accepted, *self.refused]):
            took, refused = self.accepted[entry], self.refused[entry]
            terminalreporter.write_line(f"{entry:20} {took:7,} accepted {refused:7,} refused")


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Tally:
    tally = Tally()
    request.config.pluginmanager.register(tally)
    return tally


# -- running

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text": {"text_search": "simple"},
    "halfvec": {"column_type": "halfvec"},
}
KINDS = list(OPTIONS)


@dataclass
class Stores:
    """A loop, and two stores of each kind that must answer alike."""

    runner: asyncio.Runner
    pairs: dict[str, list[Any]]


@pytest.fixture(scope="module")
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    dsn = request.getfixturevalue("module_dsn")
    with asyncio.Runner() as runner:
        pairs: dict[str, list[Any]] = {}
        for name, options in OPTIONS.items():
            table: dict[str, Any] = {"table_name": "fuzzed_" + name, "partitions": 2, **options}
            postgres = runner.run(PgVectorStore.connect(dsn, DIMENSIONS, **table))
            runner.run(postgres.apply_migrations())
            pairs[name] = [InMemoryVectorStore(DIMENSIONS, **options), postgres]
        yield Stores(runner, pairs)
        for _, store in pairs.values():
            runner.run(store.close())


@contextmanager
def no_hang() -> Iterator[None]:
    """Interrupt what does not end."""

    def interrupt(*_: Any) -> None:
        raise AssertionError(f"no end after {HANGS_AFTER} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Refused:
    """How a store refused a call."""

    error: CenoteError

    @property
    def facts(self) -> Any:
        return type(self.error), str(self.error), vars(self.error)


async def outcome(store: Any, entry: str, arguments: dict[str, Any]) -> Any:
    """What a call returns, or how it was refused: by an error of the caller's, never another."""
    try:
        return await call(store, entry, arguments)
    except CenoteError as error:
        return Refused(refusal(error))


def refusal(error: CenoteError) -> CenoteError:
    """An error of a setting or an argument, which tells no secrets."""
    clear = InvalidInputError | ConfigurationError | StoreConnectionError
    assert isinstance(error, clear), repr(error)
    assert leaks(error) == []
    return error


# -- comparing


async def state(store: Any, namespace: str) -> dict[str, tuple[Chunk, Any]]:
    """All that a namespace holds."""
    chunks = await stored(store, namespace)
    vectors = await store.get_embeddings([chunk.id for chunk in chunks], namespace)
    return {chunk.id: (chunk, vectors[chunk.id]) for chunk in chunks}


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert list(ours) == list(theirs)
    for name, (chunk, vector) in ours.items():
        assert theirs[name][0] == chunk
        assert same_json(chunk.metadata, theirs[name][0].metadata)
        np.testing.assert_allclose(theirs[name][1], vector, rtol=2e-6, atol=2e-6 * length(vector))


def length(vector: Any) -> float:
    return float(np.linalg.norm(np.asarray(vector, dtype=np.float64)))


def assert_same(ours: Any, theirs: Any) -> None:
    """The answers of both stores."""
    if isinstance(ours, Refused):
        assert isinstance(theirs, Refused), theirs
        assert theirs.facts == ours.facts
    elif isinstance(ours, dict):
        assert list(theirs) == list(ours)
        for name, vector in ours.items():
            np.testing.assert_allclose(theirs[name], vector, rtol=2e-6, atol=1e-6 * length(vector))
    elif isinstance(ours, list):
        assert isinstance(theirs, list)
        assert len(theirs) == len(ours)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, tuple):
        assert_same([*ours], [*theirs])
    elif isinstance(ours, RetrievalResult):
        assert (theirs.chunk, theirs.retriever) == (ours.chunk, ours.retriever)
        assert theirs.score == pytest.approx(ours.score, abs=1e-6)
    else:
        assert theirs == ours


def assert_kept(item: EmbeddedChunk, found: tuple[Chunk, Any], *, half: bool) -> None:
    """What was given is what is stored."""
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

APART = ("search_text", "search_hybrid", "retrieve")
"""What the stores answer by measures of their own."""


async def play(pair: list[Any], entry: str, arguments: dict[str, Any]) -> bool:
    """Call both stores, and compare; whether they took the input."""
    own = uuid.uuid4().hex
    arguments = {name: _with_own(value, own) for name, value in arguments.items()}
    namespaces = [own]
    if isinstance(named := arguments.get("namespace"), str):
        namespaces.append(named)
    for store in pair:
        await store.upsert(SEEDS, own)
    before = await state(pair[0], own)
    ours, theirs = [await outcome(store, entry, arguments) for store in pair]
    refused = isinstance(ours, Refused)
    assert isinstance(theirs, Refused) == refused, (ours, theirs)
    if refused or entry not in APART:
        assert_same(ours, theirs)
    for store in pair:
        if refused:
            assert_same_state(before, await state(store, own))
        elif entry in ("upsert", "bulk_load", "sync_document"):
            await assert_all_kept(store, arguments)
    if not refused:
        for namespace in dict.fromkeys(namespaces):
            first, second = [await state(store, namespace) for store in pair]
            assert_same_state(first, second)
    for store in pair:
        for namespace in namespaces if not refused else [own]:
            await store.delete_namespace(namespace)
    return not refused


def _with_own(value: Any, own: str) -> Any:
    if isinstance(value, list):
        return [_with_own(one, own) for one in value]
    return own if isinstance(value, Own) else value


async def assert_all_kept(store: Any, arguments: dict[str, Any]) -> None:
    chunks = arguments.get("embedded_chunks", arguments.get("chunks"))
    if not isinstance(chunks, list):
        return  # nothing that holds a chunk
    now = await state(store, arguments["namespace"])
    last = {item.fields["id"]: item for item in chunks}
    for name, item in last.items():
        if type(item) is Item:
            half = getattr(store, "_column_type", None) == "halfvec"
            half = half or "half" in repr(store)
            assert_kept(item.make(), now[name], half=half)


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_calls(stores: Stores, tally: Tally, entry: str) -> None:
    """Every argument of every method, on stores with and without full text, and for halfvec."""

    kinds = KINDS if entry not in APART else ["text"] * 9 + KINDS

    @fuzzed
    @given(kind=st.sampled_from(kinds), arguments=arguments_of(entry))
    def tried(kind: str, arguments: dict[str, Any]) -> None:
        with no_hang():
            took = stores.runner.run(play(stores.pairs[kind], entry, arguments))
        counts = tally.accepted if took else tally.refused
        counts[entry] += 1

    tried()
    assert tally.accepted[entry]
    assert tally.refused[entry]


@pytest.mark.parametrize("kind", KINDS)
def test_each_odd_part(stores: Stores, tally: Tally, kind: str) -> None:
    """The odd values of the other tests one by one, so that none is left to chance."""
    for part, batch in each_odd():
        arguments = {"namespace": Own(), "embedded_chunks": batch}
        with no_hang():
            took = stores.runner.run(play(stores.pairs[kind], "upsert", arguments))
        counts = tally.accepted if took else tally.refused
        counts["odd " + part] += 1


def test_transactions_and_conditions(stores: Stores, tally: Tally) -> None:
    """What only Postgres takes: a session to join, and a condition in SQL."""
    _, store = stores.pairs["plain"]

    @fuzzed
    @given(name=st.sampled_from(["session", "where"]), value=st.none() | anything)
    def tried(name: str, value: Any) -> None:
        async def search() -> None:
            await store.search([1, 0, 0, 0], "n", **{name: made(value)})

        counts = tally.accepted
        try:
            with no_hang():
                stores.runner.run(search())
        except CenoteError as error:
            refusal(error)
            counts = tally.refused
        counts["session, where"] += 1

    tried()


def test_large_metadata(stores: Stores) -> None:
    """As large as they may be, and larger."""
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
    """Records take everything, for the stores to refuse; settings are refused at once."""
    construction = CONSTRUCTIONS[entry]

    @fuzzed
    @given(arguments=construction.drawn())
    def tried(arguments: dict[str, Any]) -> None:
        try:
            with no_hang():
                construction.make(**made(arguments))
        except CenoteError as error:
            refusal(error)
            tally.refused[entry] += 1
        else:
            tally.accepted[entry] += 1

    tried()
    assert tally.accepted[entry]
    assert bool(tally.refused[entry]) == construction.refuses


async def connect(arguments: dict[str, Any]) -> None:
    await (await PgVectorStore.connect(**arguments)).close()


def test_connect(tally: Tally) -> None:
    """Strings and settings that are good get as far as a port where nobody listens."""

    @fuzzed
    @given(arguments=connecting())
    def tried(arguments: dict[str, Any]) -> None:
        counts = tally.accepted
        try:
            with no_hang():
                asyncio.run(connect(made(arguments)))
        except CenoteError as error:
            if not isinstance(refusal(error), StoreConnectionError):
                counts = tally.refused
        counts["connect"] += 1

    tried()
    assert tally.accepted["connect"]
    assert tally.refused["connect"]
