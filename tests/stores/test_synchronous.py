"""`SyncPgVectorStore` on psycopg: the contract suite, and what concerns sessions and threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.contract import ContractStores
from support.database import APP_ROLE
from support.library import Document, Passage, passage
from support.synchronous import Awaited

from cenote import (
    ConfigurationError,
    EmbeddedChunk,
    InvalidInputError,
    PgVectorStore,
    StoreConnectionError,
    StoreTimeoutError,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
    SyncVectorStore,
    VectorStore,
    VectorStoreError,
)
from cenote.postgres.watchdog import TimeLimit
from cenote.responsive import is_driving
from cenote.testing import MakeStore, VectorStoreContract, embedded

V = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="class")
def class_sync_engine(class_dsn: str) -> Iterator[Engine]:
    """An engine on psycopg on the class's database."""
    engine = psycopg_engine(class_dsn)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture(scope="class")
def stores(class_sync_engine: Engine) -> ContractStores:
    return ContractStores(class_sync_engine)


def psycopg_engine(dsn: str, **options: Any) -> Engine:
    return create_engine(make_url(dsn).set(drivername="postgresql+psycopg"), **options)


class TestSyncPgVector(VectorStoreContract):
    """A table of 16-bit vectors without partitions, with a timeout."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "column_type": "halfvec",
        "partitions": 0,
        "operation_timeout": 60,
    }

    @pytest.fixture
    async def make_store(
        self, class_sync_engine: Engine, stores: ContractStores
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> Any:
            store: SyncPgVectorStore = SyncPgVectorStore(
                class_sync_engine, dimensions, **(self.SETTINGS | options)
            )
            store.apply_migrations()
            return Awaited(store)

        async with stores.maker(create, "sync") as make:
            yield make


class TestSyncPgVectorPartitioned(TestSyncPgVector):
    """A table of 32-bit vectors with few partitions."""

    SETTINGS: ClassVar[dict[str, Any]] = {"partitions": 2}


@pytest.fixture(scope="class")
def app_engine(class_dsn: str, class_sync_engine: Engine) -> Iterator[Engine]:
    with class_sync_engine.begin() as connection:
        connection.execute(text(APP_ROLE))
    url = make_url(class_dsn).set(username="cenote_app")
    engine = psycopg_engine(url.render_as_string(hide_password=False))
    yield engine
    engine.dispose()


class TestSyncPgVectorRowSecurity(VectorStoreContract):
    """A table with row security, used by a role that its policies apply to."""

    @pytest.fixture
    async def make_store(
        self, class_sync_engine: Engine, app_engine: Engine, stores: ContractStores
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> Any:
            options |= {"row_security": True}
            SyncPgVectorStore(class_sync_engine, dimensions, **options).apply_migrations()
            with class_sync_engine.begin() as connection:
                connection.execute(text(f"GRANT ALL ON {options['table_name']} TO cenote_app"))
            return Awaited(SyncPgVectorStore(app_engine, dimensions, **options))

        async with stores.maker(create, "guarded") as make:
            yield make

    async def test_namespaces_are_listed(self, store: VectorStore) -> None:
        """Listing requires a role that can read every namespace; the error says so."""
        with pytest.raises(VectorStoreError, match="BYPASSRLS"):
            await store.list_namespaces()


class TestSyncInMemory(VectorStoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> Any:
            return Awaited(SyncInMemoryVectorStore(dimensions, **options))

        return make


# -- signatures


def parameters_of(method: Any) -> dict[str, Any]:
    """Return the parameters of a method with their annotations, without ``session``."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: (p.kind, p.default, p.annotation) for p in parameters if p.name != "session"}


def methods_of(store: type[SyncVectorStore]) -> list[str]:
    """Return the names of the methods whose signatures must not differ."""
    names = {name for name, method in vars(store).items() if inspect.isfunction(method)}
    other = {"bulk_load", "deferred_ann_index", "tenant", "in_session", "apply_migrations"}
    return sorted(name for name in names - other if not name.startswith("_"))


@pytest.mark.parametrize(
    ("store", "twin", "name"),
    [
        (store, twin, name)
        for store, twin in ((SyncPgVectorStore, PgVectorStore), (SyncVectorStore, VectorStore))
        for name in methods_of(store)
    ],
)
def test_signatures_are_the_same(store: Any, twin: Any, name: str) -> None:
    """Each method has the parameters of the asynchronous one, and returns what it returns."""
    synchronous = inspect.signature(getattr(store, name))
    asynchronous = inspect.signature(getattr(twin, name))
    assert parameters_of(getattr(store, name)) == parameters_of(getattr(twin, name))
    assert ("session" in synchronous.parameters) == ("session" in asynchronous.parameters)
    returned = synchronous.return_annotation.replace("Iterator", "AsyncIterator")
    assert returned == asynchronous.return_annotation


def test_every_method_is_there() -> None:
    """The synchronous store lacks only what makes no sense without an event loop."""
    missing = {name for name in dir(PgVectorStore) if not name.startswith("_")}
    missing -= set(dir(SyncPgVectorStore))
    assert missing == {"with_own_pool"}
    assert {name for name in vars(VectorStore) if name[0] != "_"} <= set(vars(SyncVectorStore))


# -- sessions


@pytest.fixture
def engine(library: Any, empty_dsn: str) -> Iterator[Engine]:
    """An engine on psycopg on the database of the library."""
    engine = psycopg_engine(empty_dsn)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> SyncPgVectorStore[Passage]:
    return SyncPgVectorStore(engine, model=Passage)


def counts(engine: Engine) -> tuple[int, ...]:
    """Return the numbers of documents and passages that other transactions see."""
    with engine.connect() as connection:
        return tuple(
            connection.scalar(text(f"SELECT count(*) FROM {table}"))
            for table in ("documents", "passages")
        )


def add(store: SyncPgVectorStore[Passage], session: Session, title: str) -> Document:
    """Add a document and its passage to a session."""
    document = Document(title=title)
    session.add(document)
    session.flush()
    store.upsert([passage(document, 1)], "n", session=session)
    return document


def test_documents_and_chunks_commit_together(
    engine: Engine, store: SyncPgVectorStore[Passage]
) -> None:
    """Rows of session and store commit together, and a rollback undoes both."""
    with Session(engine) as session:
        add(store, session, "A")
        assert counts(engine) == (0, 0)
        session.rollback()
        add(store, session, "B")
        session.commit()
    assert counts(engine) == (1, 1)


def test_sessions_of_every_kind(engine: Engine, store: SyncPgVectorStore[Passage]) -> None:
    """A scoped session, a connection, a bound store and a store on a connection join."""
    scoped = scoped_session(sessionmaker(engine))
    in_scope = store.in_session(scoped)
    for title in ("A", "B"):  # two sessions, one after the other
        add(store, scoped(), title)
        assert store.count("n", session=scoped) == in_scope.count("n") == 1
        scoped.remove()
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            add(store, session, "B")
            session.commit()
        on_connection = SyncPgVectorStore(connection, model=Passage)
        for bound in (store.in_session(connection), on_connection):
            assert bound.count("n") == 1
            assert [result.chunk.id for result in bound.search(V, "n")] == ["B:1"]
        with pytest.raises(InvalidInputError, match="bulk_load cannot join"):
            on_connection.bulk_load([], "n")
        transaction.rollback()
    assert counts(engine) == (0, 0)


def test_objects_are_refreshed_and_deleted(
    engine: Engine, store: SyncPgVectorStore[Passage]
) -> None:
    """Objects in the session show what the store has written, and are deleted with their rows."""
    with Session(engine) as session, session.begin():
        document = add(store, session, "A")
        row = session.get_one(Passage, ("n", "A:1"))
        store.upsert([passage(document, 1, language="es")], "n", session=session)
        assert row.language == "es"
        store.delete(["A:1"], "n", session=session)
        assert row not in session
        assert session.get(Passage, ("n", "A:1")) is None


def test_a_search_statement_joins(engine: Engine, store: SyncPgVectorStore[Passage]) -> None:
    """The statement runs in a synchronous session, and joins the application's tables."""
    with Session(engine) as session:
        add(store, session, "A")
        statement = store.search_statement(V, "n").join(Passage.document)
        query = statement.with_only_columns(Document.title)
        assert session.scalars(query).all() == ["A"]


def test_the_callers_autocommit_is_rejected(
    engine: Engine, store: SyncPgVectorStore[Passage]
) -> None:
    """A batch in an AUTOCOMMIT connection would not be atomic."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection, pytest.raises(InvalidInputError, match="AUTOCOMMIT"):
        store.upsert([embedded("a")], "n", session=connection)


def test_an_error_leaves_the_savepoint(engine: Engine, store: SyncPgVectorStore[Passage]) -> None:
    """After a violated foreign key, a rollback to the savepoint keeps the rest; no value leaks."""
    unknown = Document(id=uuid.uuid4(), title="SECRET")
    with Session(engine) as session, session.begin():
        add(store, session, "A")
        with pytest.raises(VectorStoreError, match="23503") as caught, session.begin_nested():
            store.upsert([passage(unknown, 1)], "n", session=session)
        assert "doc_id" in str(caught.value)
        error: BaseException | None = caught.value
        while error is not None:
            shown = repr(error) + repr(vars(error)) + str(getattr(error, "diag", None))
            assert "SECRET" not in shown.replace("'SECRET:1'", "")
            assert str(unknown.id) not in shown
            error = error.__cause__ or error.__context__
        assert store.count("n", session=session) == 1
    assert counts(engine) == (1, 1)


# -- errors, timeouts and threads


def test_a_lost_connection_is_replaced(engine: Engine, store: SyncPgVectorStore[Passage]) -> None:
    """A read on a connection that the server has ended is repeated."""
    assert store.count("n") == 0
    url = engine.url.render_as_string(hide_password=False)
    with psycopg_engine(url, poolclass=NullPool).connect() as other:
        other.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert store.count("n") == 0


def test_stale_plans_are_prepared_again(engine: Engine, store: SyncPgVectorStore[Passage]) -> None:
    """A column's type changes under statements that psycopg has prepared on several connections."""
    with Session(engine) as session, session.begin():
        add(store, session, "A")
    for _ in range(8):  # psycopg prepares a statement that it has executed five times
        assert len(store.search(V, "n")) == 1
        assert len(store.get(["A:1"], "n")) == 1
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE passages ALTER document_id TYPE varchar"))
    for _ in range(8):
        assert len(store.search(V, "n")) == 1
        assert len(store.get(["A:1"], "n")) == 1


def test_stale_plans_on_several_connections(
    engine: Engine, store: SyncPgVectorStore[Passage]
) -> None:
    """A read succeeds although every connection of the pool has a stale plan."""
    barrier = threading.Barrier(4)

    def read(_: int) -> None:
        with engine.connect():
            barrier.wait()
        for _ in range(40):
            store.get(["a"], "n")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))
    for _ in range(40):  # the pool hands its connections out in turn
        store.get(["a"], "n")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE passages ALTER document_id TYPE varchar"))
    assert store.get(["a"], "n") == []


WRONG_VALUES: dict[str, Any] = {
    "page": "SECRET",
    "took": "1 hour",
    "language": 7,
    "renamed": b"SECRET",
    "labels": ["SECRET\ud800"],
    "readers": ["SECRET\ud800"],
    "extra": {"a": {"SECRET"}},
    "days": ["SECRET"],
    "flags": 1.5,
}


@pytest.mark.parametrize("column", WRONG_VALUES)
def test_wrong_values(store: SyncPgVectorStore[Passage], column: str) -> None:
    """The error names the chunk and the column, and nothing quotes the value."""
    chunk = embedded("bad", columns={column: WRONG_VALUES[column]})
    with pytest.raises(InvalidInputError, match=f"chunk 'bad': .*{column}") as caught:
        store.upsert([chunk], "n")
    error: BaseException | None = caught.value
    while error is not None:
        assert "SECRET" not in str(error) + repr(error) + repr(error.args)
        error = error.__cause__ or error.__context__
    assert store.count("n") == 0


def test_event_loops_of_the_application(store: SyncPgVectorStore[Passage]) -> None:
    """An iterator that runs an event loop for each chunk is not driven itself."""
    seen: list[bool] = []

    async def look() -> None:
        seen.append(is_driving())

    def chunks() -> Iterator[EmbeddedChunk]:
        asyncio.run(look())
        yield passage(None, 1)

    assert store.bulk_load(chunks(), "n") == 1
    assert seen == [False]


def test_a_timeout(engine: Engine) -> None:
    """A call that waits for a lock ends in time. The connection's next user is not cancelled."""
    store = SyncPgVectorStore(engine, model=Passage, operation_timeout=0.2)
    with engine.connect() as connection:
        connection.execute(text("LOCK passages IN ACCESS EXCLUSIVE MODE"))
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError, match="no answer within"):
            store.count("n")
        assert time.monotonic() - start < 5
        connection.rollback()
        for _ in range(50):
            assert store.count("n") == 0


def test_a_time_limit_between_statements(engine: Engine) -> None:
    """The server ignores a cancellation between statements, so the next one is cancelled, too."""
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        start = time.monotonic()
        with TimeLimit(0.1, driver) as limit:
            time.sleep(0.3)
            with pytest.raises(OperationalError, match="statement"):
                connection.execute(text("SELECT pg_sleep(60)"))
        assert limit.expired
        assert time.monotonic() - start < 20


@pytest.mark.parametrize("kind", ["Postgres", "memory"])
def test_eight_threads(store: SyncPgVectorStore[Passage], kind: str) -> None:
    """Threads share a store, with filters of many shapes, and each gets its own results."""
    shared = store if kind == "Postgres" else SyncInMemoryVectorStore(model=Passage)

    def work(number: int) -> None:
        namespace = f"n{number}"
        for step in range(10):
            chunks = [passage(None, position) for position in range(step + 1)]
            shared.upsert(chunks, namespace)
            filter = {"$or": [{f"k{key}": 1} for key in range(step)] + [{"k": {"$exists": False}}]}
            assert shared.count(namespace, filter) == step + 1
            assert len(shared.search(V, namespace, 20)) == step + 1
            assert len(list(shared.get_all_chunks(namespace))) == step + 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


def test_abandoned_iterations(engine: Engine, store: SyncPgVectorStore[Passage]) -> None:
    """An iteration that ends early leaves no connection behind."""
    store.upsert([passage(None, position) for position in range(5)], "n")
    for _ in store.get_all_chunks("n"):
        break
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_in_a_running_event_loop_of_another_thread(store: SyncPgVectorStore[Passage]) -> None:
    """The store works in a thread of an application that is asynchronous elsewhere."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(store.count("n")))
    thread.start()
    thread.join()
    assert found == [0]


async def test_in_a_running_event_loop(store: SyncPgVectorStore[Passage]) -> None:
    """The store works, and blocks, in the thread of an event loop."""
    assert store.count("n") == 0


# -- invalid arguments


def other_engines(dsn: str) -> dict[str, tuple[Any, str]]:
    """Return engines that are rejected, with the message, by kind."""
    return {
        "asyncpg": (
            create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg")),
            "PgVectorStore takes an AsyncEngine",
        ),
        "another driver": (
            create_engine("sqlite://"),
            "psycopg 3 .*, not pysqlite; .* search_statement",
        ),
        "text": (dsn, "engine must be an Engine"),
        "session": (Session(), "engine must be an Engine"),
    }


@pytest.mark.parametrize("kind", ["asyncpg", "another driver", "text", "session"])
def test_other_engines_are_rejected(dsn: str, kind: str) -> None:
    """The error names the driver or the class, and what takes it."""
    engine, message = other_engines(dsn)[kind]
    with pytest.raises(ConfigurationError, match=message) as caught:
        SyncPgVectorStore(engine, 4)
    assert caught.value.setting == "engine"


def test_other_sessions_are_rejected(store: SyncPgVectorStore[Passage]) -> None:
    """The error names the class, and what takes it."""
    for session, message in ((AsyncSession(), "PgVectorStore takes it"), ("x", "not str")):
        invalid: Any = session
        with pytest.raises(InvalidInputError, match=message):
            store.count("n", session=invalid)
        with pytest.raises(InvalidInputError, match=message):
            store.search_namespaces(V, ["n"], session=invalid)


def test_invalid_conditions_are_rejected_at_once(store: SyncPgVectorStore[Passage]) -> None:
    """An iterator of chunks rejects its arguments when it is created."""
    for where in (Document.title == "a", 7):
        with pytest.raises(InvalidInputError) as caught:
            store.get_all_chunks("n", where=where)  # type: ignore[arg-type]
        assert caught.value.field == "where"


def test_an_asynchronous_iterable_is_rejected(
    engine: Engine, store: SyncPgVectorStore[Passage]
) -> None:
    """Nothing is written, and the index stays."""

    async def chunks() -> AsyncIterator[EmbeddedChunk]:
        yield embedded("a")

    stream: Any = chunks()
    with pytest.raises(InvalidInputError, match="must be an iterable") as caught:
        store.bulk_load(stream, "n")
    assert caught.value.field == "embedded_chunks"
    assert store.bulk_load((passage(None, n) for n in range(3)), "n", progress=lambda _: None) == 3
    assert store.count("n") == 3


# -- connecting


def test_progress_without_a_spare_connection(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reports starts only if there is a second connection for it."""
    started: list[int] = []

    class Recorded(threading.Thread):
        def start(self) -> None:
            started.append(size)
            super().start()

    monkeypatch.setattr(threading, "Thread", Recorded)
    for size in (1, 2):
        with SyncPgVectorStore.connect(empty_dsn, 4, max_size=size, partitions=0) as store:
            store.apply_migrations()
            assert store.bulk_load([embedded("a")], "n", progress=lambda _: None) == 1
            store.delete_namespace("n")
    assert started == [2]


def test_connect(dsn: str) -> None:
    """`connect` opens a pool of its own, which `close` disposes of."""
    with SyncPgVectorStore.connect(dsn, 4, max_size=2, operation_timeout=10) as store:
        store.upsert([embedded("a")], "n")
        assert [chunk.id for chunk in store.get_all_chunks("n")] == ["a"]
        assert store.engine.pool.size() == 2  # type: ignore[attr-defined]
    with pytest.raises(VectorStoreError, match="closed"):
        store.count("n")


OPTIONS: dict[str, tuple[dict[str, str], dict[str, str], tuple[str, str]]] = {
    "none": ({}, {}, ("off", "0")),
    "in the string": ({"options": "-c statement_timeout=5s"}, {}, ("off", "5s")),
    "jit in the string": ({"options": "-c jit=on"}, {}, ("on", "0")),
    "in the environment": ({}, {"PGOPTIONS": "-c statement_timeout=5s"}, ("off", "5s")),
    "in a service": ({"service": "cenote"}, {"PGSERVICEFILE": "{file}"}, ("on", "5s")),
    "in a service of the environment": (
        {},
        {"PGSERVICEFILE": "{file}", "PGSERVICE": "cenote"},
        ("on", "5s"),
    ),
}
"""Options of a connection string and of the environment, with ``jit`` and ``statement_timeout``."""


@pytest.mark.parametrize("kind", OPTIONS)
def test_connect_turns_jit_off(
    empty_dsn: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections start with ``jit=off``. Options of the application stay, and take precedence."""
    parameters, environment, expected = OPTIONS[kind]
    file = tmp_path / "services"
    file.write_text("[cenote]\noptions=-c jit=on -c statement_timeout=5s\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(file=file))
    url = make_url(empty_dsn).update_query_dict(parameters)
    dsn = url.render_as_string(hide_password=False)
    with SyncPgVectorStore.connect(dsn, 4) as store, store.engine.connect() as connection:
        settings = (
            connection.scalar(text(f"SHOW {name}")) for name in ("jit", "statement_timeout")
        )
        assert tuple(settings) == expected


CONNECTION_ERRORS: dict[str, tuple[str, type[Exception], str]] = {
    "a foreign parameter": ("{dsn}{and_}pgbouncer=true", ConfigurationError, "'pgbouncer'"),
    "an unknown parameter": ("{dsn}{and_}bogus=SECRET", ConfigurationError, "bogus"),
    "no server": (
        "postgresql://u:SECRET@127.0.0.1:1/d",
        StoreConnectionError,
        r"tried 2 times.*OperationalError",
    ),
    "no database": ("{other}", StoreConnectionError, "tried once.*nowhere"),
    "an invalid setting": ("postgresql://u@h/d?port=x", ConfigurationError, "port"),
}


@pytest.mark.parametrize("kind", CONNECTION_ERRORS)
def test_connection_errors(dsn: str, kind: str) -> None:
    """Errors name the parameter or the address, and no password. Hopeless ones come at once."""
    pattern, error, message = CONNECTION_ERRORS[kind]
    other = make_url(dsn).set(database="nowhere").render_as_string(hide_password=False)
    given = pattern.format(dsn=dsn, and_="&" if "?" in dsn else "?", other=other)
    with pytest.raises(error, match=message) as caught:
        SyncPgVectorStore.connect(given, 4, startup_retries=1, startup_backoff_seconds=0.01)
    assert "SECRET" not in str(caught.value)
