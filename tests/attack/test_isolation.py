"""Attacks on the isolation of tenants: no call reaches another tenant's chunks.

``CENOTE_TORTURE`` multiplies the number of attempts (``make attack``).
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam, column, exists, literal_column, select, text, true
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.database import APP_ROLE, execute
from support.fuzzing.filters import good_filters, odd_filters
from support.fuzzing.harness import fuzzed
from support.fuzzing.values import resolve

from cenote import CenoteError, PgVectorStore
from cenote.testing import embedded, stored
from cenote.testing.helpers import SQL_LOOKALIKES

VICTIM = "acme"

LOOKALIKES = [
    *("acme ", " acme", "ACME", "Acme", "acme\t", "acme\n", "acme.", "acm", "acmee", "acme/acme"),
    *("acme%", "%", "_", "a_me", "*", "acme*", "acme\\", "acme'", 'acme"', "acme;", "acme--"),
    *("acme\u200b", "acme\u00ad", "acme\ufeff", "ac\u200dme", "\u202eemca", "acme\ufe0f"),
    *("\uff41\uff43\uff4d\uff45", "\u0430cme", "acm\u0435", "a\u0441me", "\u24d0cme"),
    *("acme\u0301", "acm\u00e9", unicodedata.normalize("NFD", "acm\u00e9"), "\U0001d41acme"),
    *("{acme}", "$acme$", "acme)", "acme OR 1=1", "acme' OR 'a'='a", "acme\\x00", "NULL", "null"),
    *("acme,other", "['acme']", "cenote.namespace", "acme::text", "true", "0", "acme\x7f"),
    *SQL_LOOKALIKES,
]
"""Names that a database, a collation or a person could take for `VICTIM`."""

WHERE_TEXTS = [
    *("true) OR (true", "1=1) OR (1=1", "true OR true", "false) OR NOT (false", "1=1 OR 1=1 --"),
    *("true) OR true --", "true)) OR ((true", "true) UNION SELECT 1 --", "1=1; SELECT 1"),
    *("namespace = namespace", "namespace <> 'x' OR true", "true) OR (namespace = 'acme'"),
    *("true /*", "true) /* ", "true) OR (true) /* */ -- ", "(true) OR (true)", "NOT false"),
    *(
        "EXISTS (SELECT 1) OR true",
        "true) LIMIT 100 --",
        "true) ORDER BY (1",
        "id = ANY(ARRAY[id])",
    ),
    *("set_config('cenote.namespace', 'acme', true) IS NOT NULL",),
    *("set_config('cenote.namespace', 'acme', false) IS NOT NULL OR true",),
    *("true) OR (set_config('cenote.namespace', 'acme', true) = 'acme'",),
]
"""SQL that an application must not build from its users' input, and that stays harmless."""


@pytest.fixture(params=["plain", "partitioned", "row security"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(kind: str, engine: AsyncEngine) -> AsyncIterator[PgVectorStore]:
    options: dict[str, Any] = {
        "table_name": "attacked",
        "partitions": 0 if kind == "plain" else 4,
        "row_security": kind == "row security",
        "text_search": "simple",
    }
    await PgVectorStore(engine, 4, **options).apply_migrations()
    # Row-level security does not apply to the superuser of the tests.
    await execute(engine, APP_ROLE, "GRANT ALL ON attacked TO cenote_app")
    app = create_async_engine(engine.url.set(username="cenote_app"))
    yield PgVectorStore(app, 4, **options)
    await app.dispose()


def chunks_of(namespace: str) -> list[Any]:
    """Return chunks whose document tells whose they are. The ids are those of every tenant."""
    return [
        embedded(
            f"{number}",
            [1.0, float(number), 0.5, 0.0],
            document_id=namespace.encode().hex()[:1000],
            content=f"cats of {number}",
            metadata={"a": number, "b": [number]},
        )
        for number in range(3)
    ]


async def reached(store: PgVectorStore, namespace: str, **options: Any) -> set[str]:
    """Return the owners of all chunks that calls for a namespace return."""
    vector = [1.0, 1.0, 0.5, 0.0]
    chunks = await stored(store, namespace, **options)
    for results in (
        await store.search(vector, namespace, 100, **options),
        *await store.search_many([vector, vector], namespace, 100, **options),
        await store.search_diverse(vector, namespace, 100, **options),
        await store.search_text("cats", namespace, 100, **options),
        await store.search_hybrid("cats", vector, namespace, 100, **options),
        await store.search(vector, namespace, 100, exact=True, **options),
        await store.search(vector, namespace, 100, per_document=1, **options),
    ):
        chunks += [result.chunk for result in results]
    return {bytes.fromhex(chunk.document_id).decode() for chunk in chunks}


async def test_lookalike_namespaces(store: PgVectorStore, kind: str, attacked: Any) -> None:
    """Tenants whose names look alike share ids and vectors, and nothing else."""
    names = [VICTIM, *dict.fromkeys(LOOKALIKES)]
    for name in names:
        await store.upsert(chunks_of(name), name)
    for name in names:
        assert await reached(store, name) == {name}
        assert await store.count(name) == 3
        assert len(await store.get(["0", "1", "2", "3"], name)) == 3
    for name in names[1:]:
        await store.update_metadata({"0": {"a": "changed"}}, name)
        await store.delete(["1"], name)
        await store.delete_document(VICTIM.encode().hex(), name)
        await store.delete_matching({"a": 2}, name)
        assert await store.count(name) == 1
        await store.delete_document(name.encode().hex(), name)
        assert await store.count(name) == 0
        await store.delete_namespace(name)
    chunks = await stored(store, VICTIM)
    assert [chunk.metadata["a"] for chunk in chunks] == [0, 1, 2]
    assert [name for name in names if await store.count(name)] == [VICTIM]
    attacked(f"lookalike namespaces ({kind})", 14 * len(names), "none reached another")


async def test_hostile_filters(store: PgVectorStore, kind: str, attacked: Any) -> None:
    """Filters of every shape match the tenant's own chunks, or are rejected."""
    await store.upsert(chunks_of(VICTIM), VICTIM)
    await store.upsert(chunks_of("mallory"), "mallory")
    accepted, rejected = [0], [0]

    async def attack(recipe: Any) -> None:
        try:
            filter = resolve(recipe)
            owners = await reached(store, "mallory", filter=filter)
            accepted[0] += 1
        except CenoteError:
            rejected[0] += 1
            return
        assert owners <= {"mallory"}, filter
        assert await store.count("mallory", filter) <= 3

    loop = asyncio.get_running_loop()

    @fuzzed
    @given(st.lists(good_filters | odd_filters, min_size=3, max_size=3))
    def run(drawn: list[Any]) -> None:
        for filter in drawn:
            asyncio.run_coroutine_threadsafe(attack(filter), loop).result(60)

    await asyncio.to_thread(run)
    assert accepted[0]
    assert rejected[0]
    attacked(
        f"hostile filters ({kind})",
        accepted[0] + rejected[0],
        f"{rejected[0]:,} rejected, none reached another",
    )


async def test_hostile_deletions(store: PgVectorStore, kind: str, attacked: Any) -> None:
    """Deletions and updates by any filter leave the other tenant as it was."""
    await store.upsert(chunks_of(VICTIM), VICTIM)
    before = await stored(store, VICTIM)
    attempts = [0]

    async def attack(recipe: Any) -> None:
        attempts[0] += 1
        await store.upsert(chunks_of("mallory"), "mallory")
        try:
            await store.delete_matching(resolve(recipe), "mallory")
        except CenoteError:
            return
        assert await store.count(VICTIM) == 3, recipe

    loop = asyncio.get_running_loop()

    @fuzzed
    @given(good_filters | odd_filters)
    def run(filter: Any) -> None:
        asyncio.run_coroutine_threadsafe(attack(filter), loop).result(60)

    await asyncio.to_thread(run)
    assert await stored(store, VICTIM) == before
    attacked(f"hostile deletions ({kind})", attempts[0], "the other tenant is intact")


async def test_hostile_text_in_where(store: PgVectorStore, kind: str, attacked: Any) -> None:
    """SQL in ``where=`` that closes brackets or names tenants finds the tenant's own chunks."""
    await store.upsert(chunks_of(VICTIM), VICTIM)
    await store.upsert(chunks_of("mallory"), "mallory")
    rejected = 0
    conditions: list[Any] = [
        *map(text, WHERE_TEXTS),
        literal_column("true) OR (true"),
        true(),
        column("namespace") == VICTIM,
        exists(select(literal_column("1"))),
        text("namespace = :other").bindparams(bindparam("other", VICTIM)),
    ]
    vector = [1.0, 1.0, 0.5, 0.0]
    for condition in conditions:
        for exact in (False, True, False):
            try:
                results = await store.search(vector, "mallory", 100, where=condition, exact=exact)
            except CenoteError:
                rejected += 1
                continue
            owners = {bytes.fromhex(result.chunk.document_id).decode() for result in results}
            assert owners <= {"mallory"}, condition
    assert {chunk.document_id for chunk in await stored(store, VICTIM)} == {VICTIM.encode().hex()}
    attacked(
        f"hostile SQL in where= ({kind})",
        3 * len(conditions),
        f"{rejected} rejected, none reached another",
    )
