"""Shared parts of the fuzz tests: settings, stores, counts and comparisons."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from support.fuzzing.values import DIMENSIONS, leaks, same_json

from cenote import (
    CenoteError,
    Chunk,
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    StoreConnectionError,
)
from cenote.testing import stored

TORTURE = int(os.environ.get("CENOTE_TORTURE", "1"))
INPUTS = 30
TIMEOUT_SECONDS = 60
"""Time after which a call counts as hanging. Calls take less than a second."""

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
    """Number of inputs that each method accepted and rejected."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("inputs tried")
        for entry in dict.fromkeys([*self.accepted, *self.rejected]):
            accepted, rejected = self.accepted[entry], self.rejected[entry]
            terminalreporter.write_line(f"{entry:20} {accepted:7,} accepted {rejected:7,} rejected")


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
    """An event loop, and pairs of stores that must answer alike, by configuration."""

    runner: asyncio.Runner
    pairs: dict[str, list[Any]]


@pytest.fixture(scope="module")
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    dsn = request.getfixturevalue("module_dsn")
    with asyncio.Runner() as runner:
        pairs: dict[str, list[Any]] = {}
        for name, options in OPTIONS.items():
            settings_: dict[str, Any] = {"table_name": "fuzzed_" + name, "partitions": 2, **options}
            postgres = runner.run(PgVectorStore.connect(dsn, DIMENSIONS, **settings_))
            runner.run(postgres.apply_migrations())
            pairs[name] = [InMemoryVectorStore(DIMENSIONS, **options), postgres]
        yield Stores(runner, pairs)
        for _, store in pairs.values():
            runner.run(store.close())


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise an error in a block that does not end in time."""

    def interrupt(*_: Any) -> None:
        raise AssertionError(f"no end after {TIMEOUT_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def check_error(error: CenoteError) -> CenoteError:
    """Check that an error is about an argument or a setting and contains no secrets."""
    expected = InvalidInputError | ConfigurationError | StoreConnectionError
    assert isinstance(error, expected), repr(error)
    assert leaks(error) == []
    return error


# -- comparing


async def state(store: Any, namespace: str) -> dict[str, tuple[Chunk, Any]]:
    """Return the chunks and embeddings of a namespace by id."""
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
