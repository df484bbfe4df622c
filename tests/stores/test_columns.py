"""User columns, which an upsert writes together with the columns of the chunk."""

from __future__ import annotations

import re
import uuid
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asyncpg import BitString
from sqlalchemy import (
    BigInteger,
    Dialect,
    ForeignKey,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, undefer
from sqlalchemy.types import TypeEngine
from support.database import execute, scalar
from support.drivers import SYNCHRONOUS, on_both_stores, store_on
from support.library import Document, Mood, Passage, passage

from cenote import (
    ChunkMixin,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    VectorStoreError,
)
from cenote.testing import embedded, found, stored

V = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def store(library: AsyncEngine) -> PgVectorStore[Passage]:
    """A store for the user model, in a database with its tables."""
    store: PgVectorStore[Passage] = store_on(library, model=Passage)
    return store


async def row(store: PgVectorStore[Passage], id: str = "a") -> Passage:
    """Return a stored chunk with all its columns."""
    async with AsyncSession(store._engine) as session:
        options = [undefer(Passage.embedding)]
        return await session.get_one(Passage, ("t", id), options=options)


VALUES: list[dict[str, Any]] = [
    {"language": "español", "page": 3},
    {"page": None, "language": "en"},
    {"readers": ["ann", 'b"o\\b', "{,}", "", "NULL", "ß"]},
    {"readers": []},
    {"readers": None},
    {"extra": {"a": [1, {"b": None}]}},
    {"extra": None},
    {"summary": [0.5, -2.0]},
    {"summary": None},
    {"token": uuid.UUID(int=5), "revised": 9},
    {"extra": [1]},
    {"extra": [[1, 2], {"a": None}]},
    {"extra": []},
    {"labels": ["new", "s"]},
    {"facts": [1, "two", None]},
    {"facts": None},
    {"mood": Mood.good, "moods": [Mood.bad, Mood.good]},
    {"short": "five5", "price": Decimal("1.25"), "took": timedelta(days=-1, seconds=5)},
    {"raw": b"\x00\xff", "days": [date(2026, 1, 2)], "grid": [[1, 2], [3, 4]]},
    {"stock": [1.0, 2.0]},
    {"renamed": "x"},
]


@pytest.mark.parametrize("values", VALUES, ids=str)
async def test_values_of_all_types(store: PgVectorStore[Passage], values: dict[str, Any]) -> None:
    """Values of all types are read as they were written, by inserts and by updates."""
    await _check_values(store, values)


@pytest.mark.parametrize("driver", [SYNCHRONOUS], indirect=True)
async def test_values_of_all_types_on_psycopg(store: PgVectorStore[Passage]) -> None:
    """The synchronous store writes the same values."""
    for values in VALUES:
        await _check_values(store, values)
        await store.delete_namespace("t")


async def _check_values(store: PgVectorStore[Passage], values: dict[str, Any]) -> None:
    await store.upsert([embedded(id, columns=values) for id in "ab"], "t")
    await store.upsert([embedded("a", columns=dict.fromkeys(values, None) | values)], "t")
    for id in "ab":
        stored_row = await row(store, id)
        for name, value in values.items():
            actual = getattr(stored_row, name)
            if hasattr(actual, "tolist"):
                actual = actual.tolist()
            elif hasattr(actual, "to_list"):
                actual = actual.to_list()
            assert actual == value


@on_both_stores
async def test_columns_without_a_value_are_kept(store: PgVectorStore[Passage]) -> None:
    """New rows get defaults, changed rows keep values that are not passed, and onupdate applies."""
    await store.upsert([embedded(id, columns={"page": 1}) for id in "ab"], "t")
    first, second = await row(store, "a"), await row(store, "b")
    assert (first.language, first.revised, first.changed_at) == ("en", 0, None)
    assert first.token != second.token
    await store.upsert([embedded("a", content="new")], "t")
    after = await row(store)
    assert (after.content, after.page, after.token) == ("new", 1, first.token)
    assert after.revised == 1
    assert after.changed_at is not None


@on_both_stores
async def test_rows_with_equal_columns_are_not_rewritten(store: PgVectorStore[Passage]) -> None:
    """A row is rewritten only if a user column, of any type, gets another value."""
    columns = {"page": 1, "extra": {"a": 1}, "readers": ["x"], "summary": [1, 2]}
    version = "SELECT xmin::text FROM passages"
    await store.upsert([embedded("a", columns=columns)], "t")
    first = await scalar(store._engine, version)
    await store.upsert([embedded("a", columns=columns)], "t")
    assert await scalar(store._engine, version) == first
    for name, value in {"page": 2, "extra": {}, "readers": [], "summary": [2, 1]}.items():
        await store.upsert([embedded("a", columns={name: value})], "t")
        second = await scalar(store._engine, version)
        assert second != first
        first = second


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            [{"title": 1}],
            "chunk '0': there is no column 'title' to set; the columns are: doc_id, lang",
        ),
        ([{"content": "x"}], "there is no column 'content' to set"),
        ([{"extra_json": {}}], "there is no column 'extra_json' to set"),
        (
            [{"page": 1}, {"page": 1, "language": "x"}],
            "chunk '1': its columns differ from those of",
        ),
        ([{"page": 1}, {}], "chunk '1': its columns differ from those of"),
        (
            [{"short": func.now()}],
            "chunk '0': the column short accepts values, not SQL expressions",
        ),
        (
            [{"extra": {"a": {1}}}],
            "chunk '0': the column extra does not accept its value (TypeError)",
        ),
        ([{"token": None}], "its columns must include a value for token"),
        ([{"page": [1]}], "the column page accepts single values, not lists"),
        ([{1: 2}], "there is no column 1 to set"),
        (["page"], "chunk '0': columns must be a mapping of attribute names to values, not str"),
    ],
)
async def test_invalid_columns(
    store: PgVectorStore[Passage], columns: list[Any], message: str
) -> None:
    """The error names the unknown or unsuitable column, and nothing is written."""
    batch = [embedded(str(n), columns=values) for n, values in enumerate(columns)]
    with pytest.raises(InvalidInputError) as error:
        await store.upsert(batch, "t")
    assert message in str(error.value)
    assert error.value.field == "columns"
    assert await stored(store, "t") == []


@on_both_stores
async def test_values_of_the_wrong_length_are_rejected(library: AsyncEngine, driver: str) -> None:
    """Values are neither cut nor padded to the length of their column."""
    store = store_on(library, model=Passage)
    bits: Any = str if driver == SYNCHRONOUS else BitString
    await store.upsert([embedded("b", columns={"flags": bits("101")})], "t")
    assert await scalar(store._engine, "SELECT flags::text FROM passages") == "101"
    for columns, problem in (
        ({"short": "too long"}, "the column short accepts at most 5 characters"),
        ({"flags": bits("1")}, "Postgres does not accept its value for flags"),
    ):
        with pytest.raises(InvalidInputError, match="chunk 'a': " + problem):
            await store.upsert([embedded("a", columns=columns)], "t")


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        (
            "page",
            "no number",
            "the column page of type INTEGER does not accept its value of type str",
        ),
        ("page", 2**40, "the column page accepts integers of 32 bits"),
        ("token", 1.5, "the column token"),
        ("changed_at", "2020", "the column changed_at of type TIMESTAMP .* of type str"),
        ("page", -(2**31) - 1, "the column page accepts integers of 32 bits"),
        ("took", "1 hour", "the column took of type INTERVAL .* of type str"),
        ("raw", "text", "the column raw .*str"),
        ("language", 7, "the column language .* of type int"),
        ("language", "a\x00b", "the column language does not accept the character NUL"),
        ("mood", "sad", "the column mood"),
        ("short", "123456", "the column short accepts at most 5 characters"),
        ("renamed", b"", "the column renamed .* of type bytes"),
        ("price", Decimal("999999.995"), "the column price accepts at most 6 digits"),
        ("stock", [1, 2, 3], "the column stock|for stock"),
        ("days", ["no day"], "for days"),
        ("moods", ["no mood"], "the column moods|for moods"),
        ("grid", [[1], [2, 3]], "for grid"),
    ],
)
@pytest.mark.parametrize("in_session", [False, True])
async def test_values_that_a_column_does_not_accept(
    store: PgVectorStore[Passage], column: str, value: Any, problem: str, in_session: bool
) -> None:
    """The error names the chunk and the column; it never quotes the value; nothing is written."""
    chunk = embedded("bad", columns={column: value})
    async with AsyncSession(store._engine) as session:
        with pytest.raises(InvalidInputError, match=problem) as error:
            await store.upsert([chunk], "t", session=session if in_session else None)
    assert (error.value.field, error.value.chunk_id) == ("columns", "bad")
    assert "chunk 'bad'" in str(error.value)
    quoted = str(error.value) + repr(error.value.__cause__) + repr(error.value.__context__)
    assert repr(value) not in quoted
    assert await stored(store, "t") == []


async def test_a_wrong_value_in_a_batch(store: PgVectorStore[Passage]) -> None:
    """The error names the chunk with the wrong value, also in a synchronised document."""
    pages: list[Any] = [*range(700), "one", *range(700)]
    batch = [
        embedded(f"c{n}", document_id="d", columns={"page": page, "price": 1})
        for n, page in enumerate(pages)
    ]
    for call in (store.upsert(batch, "t"), store.sync_document("d", batch, "t")):
        with pytest.raises(InvalidInputError, match="chunk 'c700': the column page") as error:
            await call
        assert error.value.chunk_id == "c700"
    batch = [
        embedded(f"d{n}", columns={"days": days})
        for n, days in enumerate([[date(2020, 1, 1)], ["x"]])
    ]
    with pytest.raises(InvalidInputError, match="the value of a chunk for days; to find the chunk"):
        await store.upsert(batch, "t")
    assert await stored(store, "t") == []


class WireBase(DeclarativeBase):
    pass


class Packet(ChunkMixin, WireBase, dimensions=4, partitions=0):
    """A model with columns whose wrong values asyncpg rejects without telling the position."""

    __tablename__ = "packets"
    host: Mapped[Any] = mapped_column(postgresql.INET, nullable=True)
    card: Mapped[str | None] = mapped_column(postgresql.MACADDR)
    words: Mapped[str | None] = mapped_column(postgresql.TSVECTOR)
    price: Mapped[Decimal | None] = mapped_column(Numeric(8, 2))
    token: Mapped[uuid.UUID | None]
    tags: Mapped[list[str] | None] = mapped_column(postgresql.ARRAY(Text))
    facts: Mapped[Any] = mapped_column(postgresql.JSONB, nullable=True)
    title: Mapped[str | None] = mapped_column(Text)


@pytest.fixture
async def packets(empty_engine: AsyncEngine) -> PgVectorStore[Packet]:
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(WireBase.metadata.create_all)
    return PgVectorStore(empty_engine, model=Packet)


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("host", "127.0.0.1", 1.5),
        ("card", "08:00:2b:01:02:03", 1.5),
        ("words", "a b", 1.5),
        ("price", 1, "s3cret"),
        ("token", str(uuid.UUID(int=1)), 1.5),
        ("tags", ["x"], ["s3cret\x00"]),
        ("facts", {"a": 1}, {"a": "s3cret\x00"}),
        ("tags", ["x"], ["s3cret\ud800"]),
        ("title", "x", {"s3cret"}),
    ],
)
async def test_no_other_chunk_is_named(
    packets: PgVectorStore[Packet], column: str, good: Any, bad: Any
) -> None:
    """The chunk that an error names has the wrong value; if it is not known, the error says so."""
    for other in (None, good):
        batch = [embedded("other", columns={column: other}), embedded("bad", columns={column: bad})]
        with pytest.raises(InvalidInputError, match=rf"\b{column}\b") as error:
            await packets.upsert(batch, "t")
        named = error.value.chunk_id
        assert named == "bad" or (named is None and other is not None)
        assert (named or "to find the chunk, upsert smaller batches") in str(error.value)
        assert "s3cret" not in str(error.value) + repr(error.value.__cause__)
    assert await stored(packets, "t") == []


class StrictBase(DeclarativeBase):
    pass


class Folder(StrictBase):
    __tablename__ = "folders"
    id: Mapped[int] = mapped_column(primary_key=True)


class File(ChunkMixin, StrictBase, dimensions=4, partitions=2):
    __tablename__ = "files"
    folder_id: Mapped[int] = mapped_column(ForeignKey("folders.id"), index=True)
    path: Mapped[str] = mapped_column("file_path")
    place: Mapped[int | None]

    __table_args__ = (UniqueConstraint("namespace", "place", name="one_per_place"),)


async def test_required_columns(empty_engine: AsyncEngine) -> None:
    """A missing value raises an error that names the attribute."""
    store = PgVectorStore(empty_engine, model=File)
    for columns in ({"folder_id": 1}, {"folder_id": 1, "path": None}, {}):
        with pytest.raises(InvalidInputError, match=r"must include a value for (path|folder_id)"):
            await store.upsert([embedded("a", columns=columns)], "t")
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(StrictBase.metadata.create_all)
        await connection.execute(text("INSERT INTO folders VALUES (1)"))
    await store.upsert([embedded("a", columns={"folder_id": 1, "path": "x"})], "t")
    assert await found(store, V, "t", where=File.path == "x") == ["a"]
    batch = [embedded(i, columns={"folder_id": n, "path": "x"}) for i, n in (("b", 1), ("c", 2))]
    with pytest.raises(VectorStoreError, match="a foreign key rejects the change") as error:
        await store.upsert(batch, "t")
    assert "failed for chunk 'c': " in str(error.value)
    assert "constraint 'files_folder_id_fkey' on column folder_id" in str(error.value)
    values = {"folder_id": 1, "path": "x", "place": 1}
    with pytest.raises(VectorStoreError, match="'one_per_place' of the model") as error:
        await store.upsert([embedded(id, columns=values) for id in "de"], "t")
    assert "on columns namespace, place" in str(error.value)


class PortableBase(DeclarativeBase):
    pass


class Guid(TypeDecorator[uuid.UUID]):
    """A UUID in Postgres and 16 bytes elsewhere, like Advanced Alchemy's GUID."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        uuids = dialect.name == "postgresql"
        return dialect.type_descriptor(postgresql.UUID() if uuids else LargeBinary(16))

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else str(value)


class Sheet(ChunkMixin, PortableBase, dimensions=4, partitions=2):
    """A model whose columns have other types in Postgres than in other databases."""

    __tablename__ = "sheets"
    guid: Mapped[uuid.UUID | None] = mapped_column(Guid)
    code: Mapped[str | None] = mapped_column(String(3).with_variant(String(30), "postgresql"))
    size: Mapped[int | None] = mapped_column(Integer().with_variant(BigInteger(), "postgresql"))
    took: Mapped[timedelta | None] = mapped_column(Interval().with_variant(Text(), "sqlite"))


async def test_columns_with_another_type_in_postgres(empty_engine: AsyncEngine) -> None:
    """The limits of a value are those of the type in Postgres, for decorators and variants."""
    store = PgVectorStore(empty_engine, model=Sheet)
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(PortableBase.metadata.create_all)
    values = {"guid": uuid.uuid4(), "code": "x" * 30, "size": 2**40, "took": timedelta(hours=1)}
    await store.upsert([embedded(id, columns=values) for id in "ab"], "t")
    version = "SELECT xmin::text FROM sheets WHERE id = 'a'"
    first = await scalar(store._engine, version)
    await store.upsert([embedded("a", columns=values)], "t")
    assert await scalar(store._engine, version) == first
    async with AsyncSession(empty_engine) as session:
        row = await session.get_one(Sheet, ("t", "b"))
        assert {name: getattr(row, name) for name in values} == values
    for name, value in {"code": "x" * 31, "size": 2**63, "guid": "none"}.items():
        batch = [embedded("a", columns=values), embedded("b", columns=values | {name: value})]
        with pytest.raises(InvalidInputError, match=f"chunk 'b': the column {name}"):
            await store.upsert(batch, "t")


async def test_violated_constraints(
    store: PgVectorStore[Passage], caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the constraint, its columns and the chunk, never a value."""
    await execute(
        store._engine,
        "ALTER TABLE passages ADD CONSTRAINT positive CHECK (page > 0)",
        "ALTER TABLE passages ADD CONSTRAINT once UNIQUE (namespace, language, page)",
    )
    secret, other = "s3cret", uuid.uuid4()
    good: dict[str, Any] = {"page": 1, "language": "de", "doc_id": None}
    for bad, state, named in (
        ({"page": -5}, "23514", "constraint 'positive'"),
        ({"language": secret}, "23505", "_key' on columns namespace, language, page"),
        ({"doc_id": other}, "23503", "constraint 'passages_doc_id_fkey' on column doc_id"),
    ):
        first = {**good, "language": bad.get("language", "de")}
        batch = [
            embedded("good", columns=first),
            embedded("bad", columns=first | {"page": 2} | bad),
        ]
        if state == "23505":
            batch = [embedded("good", columns=first), embedded("bad", columns=first)]
        with pytest.raises(VectorStoreError) as error:
            await store.upsert(batch, "t")
        assert named in str(error.value)
        assert error.value.sqlstate == state
        chunk = "'good'|'bad'" if state == "23505" else "'bad'"
        assert re.search(f"failed for chunk ({chunk}): ", str(error.value))
        assert not {secret, str(other), "-5"} & set(re.split(r"[^\w-]+", str(error.value)))
    assert secret not in caplog.text


async def test_columns_without_a_user_model(engine: AsyncEngine) -> None:
    """The default store rejects columns with a hint; the in-memory store ignores them."""
    chunk = embedded("a", columns={"page": 1})
    with pytest.raises(InvalidInputError, match="pass your model to the store with model="):
        await PgVectorStore(engine, 4).upsert([chunk], "t")
    memory = InMemoryVectorStore(4)
    await memory.upsert([chunk], "t")
    assert await found(memory, V, "t") == ["a"]


@on_both_stores
async def test_conditions_on_columns(store: PgVectorStore[Passage]) -> None:
    """where= filters searches and iterations by user columns, before the limit applies."""
    documents = [Document(title="a"), Document(title="b")]
    async with AsyncSession(store._engine, expire_on_commit=False) as session, session.begin():
        session.add_all(documents)
        await session.flush()
        for document in documents:
            batch = [passage(document, n, page=n) for n in range(20)]
            await store.upsert(batch, "t", session=session)
    of_b = Passage.doc_id == documents[1].id
    assert await found(store, V, "t", 3, where=of_b) == ["b:0", "b:1", "b:2"]
    last_of_b = of_b & (Passage.page > 16)
    assert await found(store, V, "t", 10, where=last_of_b) == ["b:17", "b:18", "b:19"]
    titled = Passage.document.has(Document.title == "a")
    assert await found(store, V, "t", 2, where=titled, exact=True) == ["a:0", "a:1"]
    assert len(await stored(store, "t", where=titled)) == 20
    assert await found(store, V, "t", filter={"x": 1}, where=titled) == []
