"""`InMemoryVectorStore(model=...)` treats the columns of a user model as Postgres does."""

from __future__ import annotations

import enum
import ipaddress
import operator
import re
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    CHAR,
    JSON,
    REAL,
    BigInteger,
    Computed,
    DateTime,
    Double,
    Enum,
    Identity,
    LargeBinary,
    Numeric,
    Sequence,
    SmallInteger,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET, INT4RANGE, JSONB, MACADDR, UUID, Range
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cenote import (
    CenoteError,
    Chunk,
    ChunkMixin,
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    VectorStore,
    field,
    meta,
)
from cenote.filters.language import Leaf
from cenote.orm import ChunkRow, VectorType
from cenote.testing import embedded, stored


class Base(DeclarativeBase):
    pass


class Level(enum.Enum):
    """Members whose names sort otherwise than their order."""

    LOW = "low"
    HIGH = "high"
    EXTREME = "extreme"


class Tone(enum.StrEnum):
    CALM = "calm"
    LOUD = "loud"


class Upper(TypeDecorator[str]):
    """Text that is stored in capital letters."""

    impl = String(8)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.upper()


class Guid(TypeDecorator[uuid.UUID]):
    """The type of SQLAlchemy's documentation: another type in each database."""

    impl = CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(UUID() if dialect.name == "postgresql" else CHAR(32))

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else str(value)


class Celsius(TypeDecorator[float]):
    """Degrees, stored as integer tenths."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Any) -> int | None:
        return None if value is None else round(value * 10)


class Item(ChunkMixin, Base, dimensions=2, partitions=2):
    """A chunk model with a column of each type."""

    __tablename__ = "items"

    doc: Mapped[uuid.UUID | None]
    doc_text: Mapped[str | None] = mapped_column(Uuid(as_uuid=False))
    guid: Mapped[uuid.UUID | None] = mapped_column(Guid)
    level: Mapped[Level | None]
    by_value: Mapped[Level | None] = mapped_column(
        Enum(Level, name="by_value", values_callable=lambda kind: [item.value for item in kind])
    )
    plain: Mapped[str | None] = mapped_column(Enum("b", "a", name="plain_enum"))
    loose: Mapped[Level | None] = mapped_column(Enum(Level, native_enum=False, name="loose"))
    title: Mapped[str | None]
    short: Mapped[str | None] = mapped_column(String(5))
    code: Mapped[str | None] = mapped_column(CHAR(3))
    upper: Mapped[str | None] = mapped_column(Upper)
    small: Mapped[int | None] = mapped_column(SmallInteger)
    page: Mapped[int | None]
    big: Mapped[int | None] = mapped_column(BigInteger)
    degrees: Mapped[float | None] = mapped_column(Celsius)
    price: Mapped[Decimal | None] = mapped_column(Numeric(6, 2))
    exact: Mapped[Decimal | None] = mapped_column(Numeric)
    ratio: Mapped[float | None] = mapped_column(Double)
    rough: Mapped[float | None] = mapped_column(REAL)
    done: Mapped[bool | None]
    day: Mapped[date | None]
    at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    local: Mapped[datetime | None]
    clock: Mapped[time | None]
    zoned: Mapped[time | None] = mapped_column(Time(timezone=True))
    took: Mapped[timedelta | None]
    raw: Mapped[bytes | None] = mapped_column(LargeBinary)
    extra: Mapped[Any] = mapped_column(JSONB, nullable=True)
    varied: Mapped[Any] = mapped_column(JSON().with_variant(JSONB(), "postgresql"), nullable=True)
    plain_json: Mapped[Any] = mapped_column(JSON, nullable=True)
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    numbers: Mapped[list[int] | None] = mapped_column(ARRAY(SmallInteger))
    levels: Mapped[list[Level] | None] = mapped_column(ARRAY(Enum(Level)))
    docs: Mapped[list[uuid.UUID] | None] = mapped_column(ARRAY(Uuid))
    vector: Mapped[Any] = mapped_column(VectorType(2), nullable=True)
    address: Mapped[Any] = mapped_column(INET, nullable=True)
    lang: Mapped[str | None] = mapped_column("language")
    keyed: Mapped[str | None] = mapped_column("keyed_column", key="key_of_column")


def _from_context(context: Any) -> str:
    return "from a function"


class Defaulted(ChunkMixin, Base, dimensions=2, partitions=2):
    """A chunk model with a column for each kind of default."""

    __tablename__ = "defaulted"

    lang: Mapped[str] = mapped_column(server_default="en")
    quoted: Mapped[str] = mapped_column(server_default=text("'it''s'"))
    cast_text: Mapped[str] = mapped_column(server_default=text("'en'::character varying(5)"))
    number: Mapped[int] = mapped_column(server_default="7")
    negative: Mapped[int] = mapped_column(server_default=text("(-7)"))
    price: Mapped[Decimal] = mapped_column(Numeric(6, 2), server_default=text("1.255"))
    active: Mapped[bool] = mapped_column(server_default=true())
    hidden: Mapped[bool] = mapped_column(server_default=text("'f'"))
    level: Mapped[Level] = mapped_column(Enum(Level, name="level"), server_default="HIGH")
    day: Mapped[date] = mapped_column(server_default="2026-05-01")
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    moment: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))
    stamp: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=text("CURRENT_TIMESTAMP")
    )
    utc: Mapped[datetime] = mapped_column(server_default=text("timezone('utc', now())"))
    utc_too: Mapped[datetime] = mapped_column(server_default=text("(now() at time zone 'utc')"))
    token: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid())
    extra: Mapped[Any] = mapped_column(JSONB, server_default="{}")
    facts: Mapped[Any] = mapped_column(JSONB, server_default=text("""'{"a": 1}'::jsonb"""))
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    words: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("ARRAY[]::text[]"))
    nothing: Mapped[str | None] = mapped_column(server_default=text("NULL"))
    concatenated: Mapped[str] = mapped_column(server_default=text("'a' || 'b'"))
    doubled: Mapped[int] = mapped_column(Computed("number * 2"))
    serial: Mapped[int] = mapped_column(Identity(start=10, increment=5))
    always: Mapped[int] = mapped_column(Identity(always=True))
    scalar: Mapped[int] = mapped_column(default=3)
    member: Mapped[Level] = mapped_column(Enum(Level, name="level"), default=Level.LOW)
    called: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    context: Mapped[str] = mapped_column(default=_from_context)
    sql: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=func.now())
    sequence: Mapped[int] = mapped_column(Sequence("numbers", start=100, metadata=Base.metadata))
    upper: Mapped[str] = mapped_column(Upper, default="abc")
    optional: Mapped[str | None]
    required: Mapped[str]
    version: Mapped[int] = mapped_column(default=1, onupdate=2)
    touched: Mapped[str | None] = mapped_column(onupdate=_from_context)
    changed_at: Mapped[datetime | None] = mapped_column(
        DateTime(timezone=True), onupdate=func.now()
    )


ID, OTHER = uuid.UUID(int=5), uuid.UUID(int=2**100)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
EAST = timezone(timedelta(hours=2))
NAN = float("nan")

# Values to write, some of which the column does not accept, and values to compare with.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "doc": ([ID, str(OTHER), "no uuid", 5], [ID, str(ID), str(OTHER).upper(), OTHER.hex, "x", 5]),
    "doc_text": ([str(ID), OTHER.hex, "no uuid"], [str(ID), ID.hex, str(OTHER), "x"]),
    "guid": ([ID, str(OTHER), "no uuid"], [ID, str(ID), str(OTHER), OTHER.hex, "x"]),
    "level": (
        [Level.LOW, "HIGH", Level.EXTREME, "low", "EXTREM", 1],
        [Level.LOW, "LOW", Level.HIGH, "HIGH", "EXTREME", "high", "none", 1],
    ),
    "by_value": ([Level.LOW, "high", "HIGH"], [Level.LOW, "low", Level.HIGH, "HIGH"]),
    "plain": (["a", "b", "c"], ["a", "b", "c", "", 1]),
    "loose": ([Level.LOW, "HIGH"], [Level.LOW, "LOW", "HIGH", "none", "a long text", 1]),
    "title": (
        ["a", "B", "ä", "", "a ", Tone.CALM, 7, b"x", "a\x00"],
        ["a", "B", "b", "", "a ", Tone.CALM, "calm", 7, b"x", True, "\ud800"],
    ),
    "short": (["abcde", "abcde  ", "abcdef", "a"], ["abcde", "abcdef", "abcde ", "a", "abcd", 1]),
    "code": (["abc", "a", "a ", "abcd"], ["abc", "a", "a ", "a  ", "abcd", "b", 1]),
    "upper": (["abc", "ABD", "abcdefghi", 1], ["abc", "ABC", "Abd", "abcdefghi", 1]),
    "small": ([1, -(2**15), 2**15, 1.0, 1.5], [1, 1.0, True, 0, 2**15, -(2**15), "1"]),
    "page": (
        [1, 2.0, True, 2**31, 1.5, Decimal(7), "1", NAN],
        [1, 1.0, 2, 1.5, True, False, Decimal("7"), Decimal("7.5"), 2**31, "1", NAN, b"1"],
    ),
    "big": ([2**62, 2**63, -1], [2**62, 2.0**62, 2**63, -1, "x"]),
    "degrees": ([36.6, -1, "x"], [36.6, 36.61, -1.0, 0, "x"]),
    "price": (
        [Decimal("1.25"), 2, 0.1, "3.10", 9999.994, 9999.995, NAN, "x", float("inf")],
        [Decimal("1.250"), 1.25, 2, 2.0, 0.1, "3.1", 1.254, 9999.99, 99999, NAN, "x", True, -1],
    ),
    "exact": (
        [Decimal("0.1"), 0.1, 10**30, Decimal("NaN"), float("inf"), "1e3"],
        [Decimal("0.10"), 0.1, 10**30, NAN, float("-inf"), 1000, "x"],
    ),
    "ratio": (
        [0.1, 1, Decimal("0.5"), NAN, float("inf"), "1", True],
        [0.1, 1, True, Decimal("0.5"), NAN, float("inf"), -0.0, "1"],
    ),
    "rough": ([0.1, 1, 1e39, NAN], [0.1, 1.0, Decimal("0.1"), 0.10000000149, 1e39, NAN]),
    "done": ([True, False, 1, 2, "true"], [True, False, 1, 0, 2, "true", 1.0]),
    "day": ([date(2026, 5, 1), NOON, "2026-05-01"], [date(2026, 5, 1), NOON, "2026-05-01", 1]),
    "at": (
        [NOON, NOON.astimezone(EAST), NOON.replace(tzinfo=None), date(2026, 5, 1), "2026-05-01"],
        [NOON, NOON.astimezone(EAST), NOON.replace(tzinfo=None), date(2026, 5, 1), "x", 1],
    ),
    "local": (
        [datetime(2026, 5, 1, 12), date(2026, 5, 1), NOON],
        [datetime(2026, 5, 1, 12), date(2026, 5, 1), NOON, "2026-05-01"],
    ),
    "clock": ([time(12, 30), time(1, tzinfo=EAST), "12:30"], [time(12, 30), time(1), "12:30", 1]),
    "zoned": (
        [time(12, tzinfo=UTC), time(14, tzinfo=EAST), time(1)],
        [time(12, tzinfo=UTC), time(14, tzinfo=EAST), time(13, tzinfo=UTC), time(12)],
    ),
    "took": ([timedelta(days=1), timedelta(seconds=-1), 5], [timedelta(hours=24), timedelta(), 5]),
    "raw": ([b"a\x00", bytearray(b"b"), b"", "b"], [b"a\x00", b"b", memoryview(b"b"), "b", 1]),
    "extra": (
        [{"a": 1}, {"a": 1.0, "b": [None]}, [1], 1, True, "1", {1}],
        [{"a": 1}, {"a": 1.0}, {"b": [None], "a": 1}, [1], [1.0], 1, 1.0, True, "1", {}, {1}],
    ),
    "varied": ([{"a": 1}, [1]], [{"a": 1.0}, [1], 1]),
    "plain_json": ([{"a": 1}], [{"a": 1}, 1]),
    "tags": ([["a", "b"], [], ["a", None], "ab", [1]], [["a", "b"], ("a", "b"), [], ["a", None]]),
    "numbers": ([[1, 2], [1], [2**15], [1, None], ["x"]], [[1, 2], [1.0], [2**15], ["1"], [3], 1]),
    "levels": ([[Level.HIGH], ["LOW"], ["x"]], [[Level.HIGH], ["HIGH"], ["LOW"], ["x"], []]),
    "docs": ([[ID], [str(OTHER)], ["x"]], [[ID], [str(ID)], [OTHER], ["x"], []]),
    "vector": ([[0.5, 2], [0.1, 0], [1]], [[0.5, 2.0], (0.1, 0.0), [1]]),
    "address": (["10.0.0.1", ipaddress.ip_address("::1"), "x"], ["10.0.0.1", "10.0.0.1/32", "x"]),
    "lang": (["en", "de", 1], ["en", "de", 1]),
    "keyed": (["x", 1], ["x", 1]),
}

_Compare = Callable[[Any, Any], Any]

OPERATORS: dict[str, _Compare] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda column, value: column.in_([value]),
    "not in": lambda column, value: column.not_in([value, None]),
    "in many": lambda column, value: column.in_([value] * 30),
    "between": lambda column, value: column.between(value, value),
    "like": lambda column, value: column.like(value),
    "ilike": lambda column, value: column.ilike(value),
    "startswith": lambda column, value: column.startswith(value),
    "null": lambda column, value: column.is_null(),
}


async def outcome(call: Any) -> Any:
    """Return the result of a call, or the name of its error and the fields of the error."""
    try:
        return await call
    except CenoteError as error:
        return type(error).__name__, getattr(error, "field", None), getattr(error, "chunk_id", None)


@pytest.fixture
async def tables(empty_engine: AsyncEngine) -> AsyncEngine:
    """An engine on a database with the tables of the models."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    return empty_engine


def _both(engine: AsyncEngine, model: type[Any]) -> dict[str, VectorStore]:
    return {
        "postgres": PgVectorStore(engine, model=model),
        "memory": InMemoryVectorStore(model=model),
    }


@pytest.fixture
def stores(tables: AsyncEngine) -> dict[str, VectorStore]:
    """Both stores with the model `Item`."""
    return _both(tables, Item)


def test_every_column_is_tried() -> None:
    """The table of values has an entry for each column of the model."""
    names = {attribute.key for attribute in Item.__mapper__.column_attrs}
    assert names - set(VALUES) == {attribute.key for attribute in ChunkRow.__mapper__.column_attrs}


async def test_both_stores_compare_alike(stores: dict[str, VectorStore]) -> None:
    """Both stores accept the same values and filters, and find the same chunks."""
    differences = []
    for name, (written, wanted) in VALUES.items():
        for number, value in enumerate([*written, None]):
            chunk = embedded(f"{number}", [1, 0], columns={name: value})
            results = {
                kind: await outcome(store.upsert([chunk], name)) for kind, store in stores.items()
            }
            if results["postgres"] != results["memory"]:
                differences.append((name, "write", value, results))
        for value in wanted:
            for symbol, compare in OPERATORS.items():
                try:
                    filter = compare(field(name), value)
                except InvalidInputError:
                    continue
                results = {
                    kind: await outcome(_ids(store, name, filter)) for kind, store in stores.items()
                }
                invalid = "VectorStoreError" in str(results)
                if results["postgres"] != results["memory"] or invalid:
                    differences.append((name, symbol, value, results))
    assert not differences, "\n".join(map(repr, differences))


async def _ids(store: VectorStore, namespace: str, filter: Any) -> list[str]:
    return [chunk.id for chunk in await stored(store, namespace, filter)]


MATCHES: list[tuple[str, Any, Any, bool]] = [
    # column, value to write, filter, whether it matches
    ("doc", ID, field("doc") == str(ID), True),
    ("doc", str(ID), field("doc") == ID, True),
    ("doc", ID, field("doc") < OTHER, True),
    ("doc", ID, field("doc").in_([str(OTHER), str(ID).upper()]), True),
    ("guid", str(ID), field("guid") == ID, True),
    ("level", Level.HIGH, field("level") == "HIGH", True),
    ("level", "HIGH", field("level") == Level.HIGH, True),
    ("level", Level.EXTREME, field("level") > Level.HIGH, True),
    ("by_value", Level.HIGH, field("by_value") == "high", True),
    ("loose", Level.HIGH, field("loose").startswith("HI"), True),
    ("title", Tone.CALM, field("title") == "calm", True),
    ("upper", "abc", field("upper") == "Abc", True),
    ("upper", "abc", field("upper").like("AB%"), True),
    ("upper", "abc", field("upper") < "abd", True),
    ("short", "abcde", field("short") == "abcdef", False),
    ("code", "a", field("code") == "a", True),
    ("code", "a", field("code").like("a"), True),
    ("page", 2, field("page") == Decimal(2), True),
    ("price", Decimal("1.25"), field("price") == 1.25, True),
    ("price", 2, field("price") >= Decimal("1.999"), True),
    ("exact", "0.10", field("exact") == Decimal("0.1"), True),
    ("rough", 0.1, field("rough") == 0.1, True),
    ("at", NOON, field("at") == NOON.astimezone(EAST), True),
    ("at", NOON.astimezone(EAST), field("at").between(NOON, NOON), True),
    ("day", date(2026, 5, 1), field("day") < date(2026, 5, 2), True),
    ("took", timedelta(days=1), field("took") == timedelta(hours=24), True),
    ("extra", {"a": 1}, field("extra") == {"a": 1.0}, True),
    ("extra", [1], field("extra").in_([[1]] * 30), True),
    ("extra", [1], field("extra").in_([1] * 30), False),
    ("extra", None, field("extra").is_null(), False),  # JSON null
    ("tags", ["a", "b"], field("tags") == ("a", "b"), True),
    ("tags", ["a", "b"], field("tags").in_([["a", "b"]] * 30), True),
    ("docs", [ID], field("docs") == [str(ID)], True),
    ("vector", [0.1, 2], field("vector") == [0.1, 2.0], True),
    ("lang", "en", field("lang") == "en", True),  # the attribute
    ("lang", "en", field("language") == "en", True),  # the column
    ("keyed", "x", field("keyed") == "x", True),
    ("keyed", "x", field("key_of_column") == "x", True),
]

INVALID: list[tuple[Any, str]] = [
    (
        field("doc") == "no uuid",
        r"field\('doc'\): the column of type UUID does not accept a value ",
    ),
    (field("doc").in_([ID] * 30 + ["no uuid"]), r"field\('doc'\)"),
    (field("level") == "no level", r"field\('level'\): the column accepts only the values of its"),
    (field("level").like("H%"), r"field\('level'\) is not a text column"),
    (field("page") == "1", r"field\('page'\): the column of type INTEGER .* of type str"),
    (field("page") > 1.5, r"field\('page'\): the column accepts integers"),
    (field("page") < 2**31, r"field\('page'\): the column accepts integers of 32 bits"),
    (field("price") < 123456, r"field\('price'\): the column accepts at most 4 digits before"),
    (field("title") == 7, r"field\('title'\): the column of type VARCHAR .* of type int"),
    (field("day") == "2026-05-01", r"field\('day'\): the column of type DATE .* of type str"),
    (field("local") == NOON, r"field\('local'\): the column of type TIMESTAMP"),
    (field("plain_json") == {}, r"field\('plain_json'\): values of type JSON do not compare"),
    (field("extra") > 1, r"field\('extra'\) >: JSON values have no order"),
    (
        field("tags").in_([["a"]] * 101),
        r"field\('tags'\) in_ accepts at most 100 values of type TEXT",
    ),
    (field("titel") == "x", r"field\('titel'\): no such column; filters can use id, .* title, "),
    (field("keyed_column") == "x", r"field\('keyed_column'\): no such column"),
    (field("namespace") == "x", r"field\('namespace'\): no such column"),
]


async def test_filters_on_user_columns(stores: dict[str, VectorStore]) -> None:
    """Filters find values as Postgres compares them, and errors name the column, not the value."""
    for number, (name, value, filter, matches) in enumerate(MATCHES):
        for kind, store in stores.items():
            await store.upsert([embedded("a", [1, 0], columns={name: value})], f"{number}")
            assert await store.count(f"{number}", filter) == matches, (kind, name, filter)
            assert await store.count(f"{number}", ~filter) != matches, (kind, name, filter)
            assert await store.delete_matching(filter, f"{number}") == matches
    for filter, message in INVALID:
        for store in stores.values():
            for call in (
                store.search([1, 0], "t", filter=filter),
                store.count("t", meta("a").exists() | ~filter),
                store.delete_matching(filter, "t"),
                store.list_chunks("t", filter),
            ):
                with pytest.raises(InvalidInputError, match=message) as error:
                    await call
                assert error.value.field == "filter"
                assert "no uuid" not in str(error.value) + repr(error.value.__context__)
            with pytest.raises(InvalidInputError, match=message):
                store.get_all_chunks("t", filter)


START = datetime.now(UTC) - timedelta(hours=1)
NAIVE_START = START.replace(tzinfo=None)

NEW_ROW = [
    field("lang") == "en",
    field("quoted") == "it's",
    field("cast_text") == "en",
    field("number") == 7,
    field("negative") == -7,
    field("price") == Decimal("1.26"),
    field("active") == True,  # noqa: E712
    field("hidden") == False,  # noqa: E712
    field("level") == Level.HIGH,
    field("day") == date(2026, 5, 1),
    field("at") > START,
    field("moment") > START,
    field("stamp") > START,
    field("utc") > NAIVE_START,
    field("utc_too") > NAIVE_START,
    field("token") != ID,
    ~field("token").is_null(),
    field("extra") == {},
    field("facts") == {"a": 1},
    field("tags") == [],
    field("words") == [],
    field("nothing").is_null(),
    field("serial") == 10,
    field("always") == 1,
    field("scalar") == 3,
    field("member") == Level.LOW,
    ~field("called").is_null(),
    field("context") == "from a function",
    field("sql") > START,
    field("sequence") == 100,
    field("upper") == "ABC",
    field("optional").is_null(),
    field("required") == "x",
    field("version") == 1,
    field("touched").is_null(),
    field("changed_at").is_null(),
]

CHANGED_ROW = [
    field("lang") == "de",
    field("number") == 7,
    field("scalar") == 3,
    field("version") == 2,
    field("touched") == "from a function",
    field("changed_at") > START,
]


async def _matches(store: VectorStore, filters: list[Any]) -> list[bool]:
    return [await store.count("t", filter) == 1 for filter in filters]


async def test_defaults(tables: AsyncEngine) -> None:
    """New chunks get the defaults of the columns, and changed chunks the values of onupdate."""
    given = {"required": "x"}
    chunk = embedded("a", [1, 0], columns=given)
    for store in _both(tables, Defaulted).values():
        await store.upsert([chunk], "t")
        assert await _matches(store, NEW_ROW) == [True] * len(NEW_ROW)
        await store.upsert([chunk], "t")  # changes nothing
        assert await store.count("t", field("version") == 1) == 1
        await store.upsert([embedded("a", [1, 0], columns=given | {"lang": "de"})], "t")
        assert await _matches(store, CHANGED_ROW) == [True] * len(CHANGED_ROW)
        await store.upsert([embedded("a", [1, 0], columns=given | {"version": 9})], "t")
        assert await store.count("t", field("version") == 9) == 1
        await store.update_metadata({"a": {}}, "t")  # changes nothing
        assert await store.count("t", field("version") == 9) == 1
        await store.update_metadata({"a": {"b": 1}}, "t")
        assert await _matches(store, CHANGED_ROW) == [True] * len(CHANGED_ROW)
        await store.upsert([embedded("a", [1, 0], columns=given | {"version": 9})], "t")
        kept = Chunk(id="a", document_id="doc", content="some text", position=1)
        assert (await store.sync_document("doc", [kept], "t")).written == 1
        assert await _matches(store, CHANGED_ROW) == [True] * len(CHANGED_ROW)
        new = embedded("b", [1, 0], columns=given)
        assert (await store.sync_document("doc", [kept, new], "t")).unchanged == 1
        assert await store.count("t", field("version") == 1) == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "chunk 'a': its columns must include a value for required"),
        ({"required": None}, "chunk 'a': its columns must include a value for required"),
        ({"required": "x", "lang": None}, "chunk 'a': its columns must include a value for lang"),
        ({"required": "x", "lnag": "de"}, "chunk 'a': there is no column 'lnag' to set; the col"),
        ({"required": "x", "doubled": 1}, "chunk 'a': there is no column 'doubled' to set"),
        ({"required": "x", "always": 1}, "chunk 'a': there is no column 'always' to set"),
        ({"required": "x", "number": "7"}, "the column number of type INTEGER does not accept its"),
        ({"required": "x", "number": 1.5}, "chunk 'a': the column number accepts integers"),
        ({"required": "x", "lang": func.now()}, "the column lang accepts values, not SQL expr"),
    ],
)
async def test_invalid_values(tables: AsyncEngine, columns: dict[str, Any], message: str) -> None:
    """Both stores reject the same values, with the same errors, and write nothing of the batch."""
    chunks = [embedded("a", [1, 0], columns=columns)]
    for store in _both(tables, Defaulted).values():
        for call in (store.upsert(chunks, "t"), store.sync_document("doc", chunks, "t")):
            with pytest.raises(InvalidInputError, match=message) as error:
                await call
            assert (error.value.field, error.value.chunk_id) == ("columns", "a")
        batch = [embedded("b", [1, 0], columns={"required": "x"}), *chunks]
        with pytest.raises(InvalidInputError, match=r"chunk '[ab]'"):
            await store.upsert(batch, "t")
        assert await store.count("t") == 0


async def test_values_that_only_the_database_knows() -> None:
    """A filter on a value that the in-memory store cannot compute raises an error."""
    store = InMemoryVectorStore(model=Defaulted)
    await store.upsert([embedded("a", [1, 0], columns={"required": "x"})], "t")
    for name in ("concatenated", "doubled"):
        with pytest.raises(InvalidInputError, match=rf"field\('{name}'\): the in-memory store can"):
            await store.count("t", field(name) == ("ab" if name == "concatenated" else 14))
    given = {"required": "x", "concatenated": "ab"}
    await store.upsert([embedded("a", [1, 0], columns=given)], "t")
    assert await store.count("t", field("concatenated") == "ab") == 1


class Lowered(TypeDecorator[str]):
    """Text that Postgres converts."""

    impl = Text
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return func.lower(bindvalue)


class Unusual(ChunkMixin, Base, dimensions=2, partitions=2):
    """A chunk model with types whose values Python cannot compare."""

    __tablename__ = "unusual"

    span: Mapped[Any] = mapped_column(INT4RANGE, nullable=True)
    mac: Mapped[Any] = mapped_column(MACADDR, nullable=True)
    lowered: Mapped[str | None] = mapped_column(Lowered)


async def test_types_that_python_cannot_compare(tables: AsyncEngine) -> None:
    """The in-memory store raises an error instead of a wrong answer; NULL is known, though."""
    values = {"span": Range(1, 4, bounds="[]"), "mac": "08:00:2b:01:02:03", "lowered": "AB"}
    chunks = [embedded("a", [1, 0], columns=values)]
    chunks.append(embedded("b", [1, 0], columns=dict.fromkeys(values)))
    filters = {
        "span": field("span") == Range(1, 5),
        "mac": field("mac").in_(["08002b010203"]),
        "lowered": field("lowered") == "Ab",
    }
    for kind, store in _both(tables, Unusual).items():
        await store.upsert(chunks, "t")
        for name, filter in {**filters, "lowered ": field("lowered").like("ab")}.items():
            assert await store.count("t", field(name.strip()).is_null()) == 1
            if kind == "postgres":
                assert await store.count("t", filter) == 1
            else:
                message = (
                    rf"field\('{name.strip()}'\): the in-memory store cannot compare values of "
                )
                with pytest.raises(InvalidInputError, match=message):
                    await store.count("t", filter)


@pytest.mark.parametrize("in_session", [False, True])
async def test_values_that_only_postgres_checks(tables: AsyncEngine, in_session: bool) -> None:
    """If Postgres or the driver rejects a value of a filter, the error names the column."""
    store = PgVectorStore(tables, model=Unusual)
    await store.upsert([embedded("a", [1, 0])], "t")
    await store.search([1, 0], "t")  # the next searches run on a connection of the driver
    for filter in (field("mac") == "s3cret", ~(field("span") == "s3cret"), field("span") > 1):
        name = filter.predicate.operand if isinstance(filter, Leaf) else "field('span')"
        for call in (
            lambda **options: store.search([1, 0], "t", filter=filter, **options),  # noqa: B023
            lambda **options: store.count("t", filter, **options),  # noqa: B023
            lambda **options: store.search_many([[1, 0]], "t", 1, filter, **options),  # noqa: B023
            lambda **options: store.delete_matching(filter, "t", **options),  # noqa: B023
            lambda **options: stored(store, "t", filter, **options),  # noqa: B023
        ):
            async with AsyncSession(tables) as session:
                with pytest.raises(InvalidInputError, match=re.escape(str(name))) as error:
                    await call(**({"session": session} if in_session else {}))
            assert "Postgres cannot compare the column with the filter's value" in str(error.value)
            assert error.value.field == "filter"
            cause, context = error.value.__cause__, error.value.__context__
            assert "s3cret" not in f"{error.value} {cause!r} {context!r}"
    assert await store.count("t") == 1


class OtherBase(DeclarativeBase):
    pass


class Halves(ChunkMixin, OtherBase, dimensions=3, column_type="halfvec", text_search="german"):
    __tablename__ = "halves"


class Undecided(ChunkMixin, OtherBase):
    __tablename__ = "undecided"


async def test_settings_come_from_the_model() -> None:
    """The model has the dimensions, the column type and the languages of the store."""
    store = InMemoryVectorStore(model=Halves)
    assert store.dimensions == 3
    await store.upsert([embedded("a", [0.1, 0, 1], content="zwei Häuser")], "t")
    assert (await store.get_embeddings(["a"], "t"))["a"][0] == np.float32(np.float16(0.1))
    assert [result.chunk.id for result in await store.search_text("Haus", "t")] == ["a"]
    assert InMemoryVectorStore(2, model=Undecided).dimensions == 2
    assert InMemoryVectorStore(3, model=Halves, column_type="halfvec").dimensions == 3


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ({"dimensions": 4, "model": Halves}, "dimensions"),
        ({"model": Item, "column_type": "halfvec"}, "column_type"),
        ({"model": Item, "text_search": "english"}, "text_search"),
        ({"model": Undecided}, "dimensions"),
        ({"model": Base}, "model"),
        ({"model": "Item"}, "model"),
        ({}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_invalid_settings(arguments: dict[str, Any], setting: str) -> None:
    """A setting that contradicts the model raises an error that names it."""
    with pytest.raises(ConfigurationError) as error:
        InMemoryVectorStore(**arguments)
    assert error.value.setting == setting
