"""Stores whose every call joins a session or a connection of the application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import scoped_session, sessionmaker
from support.database import scalar
from support.drivers import SYNCHRONOUS, another_engine, on_both_stores, store_on
from support.library import Document, Passage, passage

from cenote import (
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    VectorStore,
    VectorStoreError,
    field,
)
from cenote.models import RecallReport
from cenote.postgres.sync_engine import SyncConnection
from cenote.testing import embedded, found, stored

V = [1.0, 0.0, 0.0, 0.0]

Call = Callable[[Any], Coroutine[Any, Any, Any]]

JOINING: dict[str, Call] = {
    "upsert": lambda store: store.upsert([embedded("b")], "n"),
    "get": lambda store: store.get(["a"], "n"),
    "get_embeddings": lambda store: store.get_embeddings(["a"], "n"),
    "get_all_chunks": lambda store: stored(store, "n"),
    "list_chunks": lambda store: store.list_chunks("n"),
    "list_namespaces": lambda store: store.list_namespaces(),
    "count": lambda store: store.count("n"),
    "missing": lambda store: store.missing([embedded("a").chunk], "n"),
    "neighbours": lambda store: store.neighbours("a", "n"),
    "search": lambda store: store.search(V, "n"),
    "search where": lambda store: store.search(V, "n", filter=field("position") >= 0),
    "search_many": lambda store: store.search_many([V, V], "n"),
    "search_diverse": lambda store: store.search_diverse(V, "n"),
    "search_text": lambda store: store.search_text("content", "n"),
    "search_hybrid": lambda store: store.search_hybrid("content", V, "n"),
    "search_namespaces": lambda store: store.search_namespaces(V, ["n", "m"]),
    "update_metadata": lambda store: store.update_metadata({"a": {"k": 1}}, "n"),
    "sync_document": lambda store: store.sync_document("d", [embedded("a", document_id="d")], "n"),
    "delete": lambda store: store.delete(["a"], "n"),
    "delete_document": lambda store: store.delete_document("d", "n"),
    "delete_matching": lambda store: store.delete_matching(field("id") == "a", "n"),
    "delete_namespace": lambda store: store.delete_namespace("n"),
}


async def _deferred(store: PgVectorStore) -> None:
    async with store.deferred_ann_index():
        pass


async def _own_pool(store: PgVectorStore) -> None:
    store.with_own_pool()


REPORT = RecallReport(
    table="t",
    kind="vector",
    limit=10,
    sampled=True,
    namespaces=(),
    exact=(),
    left_out=(),
    exact_p50_ms=None,
    points=(),
)

REJECTED: dict[str, Call] = {
    "bulk_load": lambda store: store.bulk_load([embedded("b")], "n"),
    "deferred_ann_index": _deferred,
    "measure_recall": lambda store: store.measure_recall(),
    "apply_recall": lambda store: store.apply_recall(REPORT),
    "apply_migrations": lambda store: store.apply_migrations(),
    "check_schema": lambda store: store.check_schema(),
    "with_own_pool": _own_pool,
}


@pytest.fixture
async def engine(empty_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection: a second one would raise an error at once."""
    engine = another_engine(empty_engine, pool_size=1, max_overflow=0, pool_timeout=0.01)
    yield engine
    await engine.dispose()


@pytest.fixture
async def unbound(engine: AsyncEngine) -> PgVectorStore:
    store: PgVectorStore = store_on(engine, 4, text_search="simple")
    await store.apply_migrations()
    await store.upsert([embedded("a", document_id="d")], "n")
    return store


@pytest.fixture(params=["session", "scoped session", "connection", "store on a connection"])
async def bound(
    request: pytest.FixtureRequest, engine: AsyncEngine, unbound: PgVectorStore
) -> AsyncIterator[PgVectorStore]:
    """A store that is bound to a transaction which is rolled back at the end."""
    async with engine.connect() as connection:
        match request.param:
            case "session":
                async with AsyncSession(connection) as session:
                    yield unbound.in_session(session)
            case "scoped session" if isinstance(connection, SyncConnection):
                sync_scoped = scoped_session(sessionmaker(connection.sync_connection), lambda: None)
                yield unbound.in_session(sync_scoped)  # type: ignore[arg-type]
                sync_scoped.remove()
            case "scoped session":
                scoped = async_scoped_session(async_sessionmaker(connection), lambda: None)
                yield unbound.in_session(scoped)
                await scoped.remove()
            case "connection":
                yield unbound.in_session(connection)
            case _:
                yield store_on(connection, 4, text_search="simple")
        await connection.rollback()


@on_both_stores
async def test_calls_join(bound: PgVectorStore, driver: str) -> None:
    """Every method runs on the connection of the session, which is the only one of the engine.

    Methods with transactions of their own raise an error that names the method.
    """
    for call in JOINING.values():
        await call(bound)
    missing = {"with_own_pool"} if driver == SYNCHRONOUS else set()
    for name in REJECTED.keys() - missing:
        with pytest.raises(InvalidInputError, match=f"^{name} cannot join") as caught:
            await REJECTED[name](bound)
        assert caught.value.field == "session"


def test_every_method_is_tried() -> None:
    """The tables above name every public coroutine method of `VectorStore`."""
    methods = {name for name in vars(VectorStore) if not name.startswith("_")}
    assert methods - {"dimensions", "metric", "in_session"} <= JOINING.keys()


async def test_a_rollback_undoes_the_calls(unbound: PgVectorStore, engine: AsyncEngine) -> None:
    """Writes of a bound store are seen by its session, and are gone after its rollback."""
    async with AsyncSession(engine) as session:
        store = unbound.in_session(session)
        await store.upsert([embedded("b")], "n")
        await store.delete(["a"], "n")
        assert await found(store, V, "n") == ["b"]
        await session.rollback()
        assert await found(store, V, "n") == ["a"]
    assert await found(unbound, V, "n") == ["a"]


async def test_an_explicit_session_takes_precedence(
    unbound: PgVectorStore, empty_engine: AsyncEngine, engine: AsyncEngine
) -> None:
    """With ``session=``, a call of a bound store joins that session."""
    async with engine.connect() as connection, AsyncSession(empty_engine) as session:
        store = unbound.in_session(connection)
        await store.upsert([embedded("b")], "n", session=session)
        assert await found(store, V, "n") == ["a"]
        await session.commit()
        assert await found(store, V, "n") == ["a", "b"]


async def test_failed_calls_are_not_repeated(
    unbound: PgVectorStore, empty_engine: AsyncEngine
) -> None:
    """A bound store does not retry: the session's earlier work would be missing."""
    async with AsyncSession(empty_engine) as session:
        store = unbound.in_session(session)
        assert await store.count("n") == 1
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await scalar(unbound.engine, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(VectorStoreError):
            await store.count("n")


async def test_objects_of_a_bound_session_are_refreshed(library: AsyncEngine) -> None:
    """Objects in the session show what a bound store has written."""
    async with AsyncSession(library) as session, session.begin():
        document = Document(title="A")
        session.add(document)
        await session.flush()
        store = PgVectorStore(library, model=Passage).in_session(session)
        await store.upsert([passage(document, 1, language="en")], "n")
        row = await session.get_one(Passage, ("n", "A:1"))
        await store.upsert([passage(document, 1, language="es")], "n")
        assert row.language == "es"


async def test_closing_a_bound_store(empty_dsn: str) -> None:
    """`close` of a bound store does not close the store that it comes from."""
    async with await PgVectorStore.connect(empty_dsn, 4) as store:
        await store.apply_migrations()
        async with store.engine.connect() as connection:
            await store.in_session(connection).close()
        assert await store.count("n") == 0


async def test_invalid_sessions(unbound: PgVectorStore) -> None:
    """Other objects are rejected, and a session in place of an engine names `in_session`."""
    for session in (None, unbound.engine, "session"):
        with pytest.raises(InvalidInputError) as caught:
            unbound.in_session(session)  # type: ignore[arg-type]
        assert caught.value.field == "session"
    session_as_engine: Any = AsyncSession(unbound.engine)
    with pytest.raises(ConfigurationError, match="in_session"):
        PgVectorStore(session_as_engine, 4)


async def test_a_service_and_its_unit_test_share_a_type(bound: PgVectorStore) -> None:
    """A service binds a `VectorStore` to a session, which the in-memory store ignores."""

    async def index(store: VectorStore, session: AsyncConnection | AsyncSession | None) -> int:
        joined = store.in_session(session) if session is not None else store
        await joined.upsert([embedded("b")], "n")
        return await joined.count("n")

    assert await index(bound, None) == 2
    memory = InMemoryVectorStore(4)
    assert memory.in_session(object()) is memory
    assert await index(memory, None) == 1
