"""One rule for what document loaders put into metadata, in all adapters and with both stores."""

from __future__ import annotations

import collections
import enum
import json
import math
import types
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import pytest
from haystack import Document as HaystackDocument
from haystack.dataclasses import ByteStream
from haystack.errors import FilterError
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from pydantic import BaseModel
from support.llama_nodes import engine_for_any_loop

from cenote import InMemoryVectorStore, InvalidInputError, PgVectorStore, VectorStore, meta
from cenote.adapters.haystack import CenoteDocumentStore
from cenote.adapters.langchain import CenoteVectorStore as LangChainStore
from cenote.adapters.llama_index import CenoteVectorStore as LlamaIndexStore
from cenote.testing import embedded

# -- the adapters, behind one interface --------------------------------------------------------


class Adapter(Protocol):
    """An adapter, for tests of all three.

    Attributes:
        store: The store behind the adapter.
        namespace: Namespace of the adapter.
        item: Word for a document in errors.
        filter_error: Type of the errors about filters.
    """

    store: VectorStore
    namespace: str
    item: str
    filter_error: type[Exception]

    async def write(self, documents: dict[str, Any]) -> Any:
        """Write documents with these metadata, by id."""

    async def read(self) -> dict[str, Any]:
        """Return the metadata of all documents, by id."""

    async def find(self, operator: str, value: Any, key: str = "a") -> list[str]:
        """Return the ids of the documents that match a comparison, in order."""


VECTOR = [1.0, 0.0, 0.0, 0.0]


@dataclass
class LangChain:
    store: VectorStore
    namespace: str
    item = "document"
    filter_error = InvalidInputError

    @property
    def adapter(self) -> LangChainStore:
        return LangChainStore(self.store, DeterministicFakeEmbedding(size=4), self.namespace)

    async def write(self, documents: dict[str, Any]) -> Any:
        written = [
            LangChainDocument(id=id, page_content="text", metadata=metadata)
            for id, metadata in documents.items()
        ]
        return await self.adapter.aadd_documents(written)

    async def read(self) -> dict[str, Any]:
        found = await self.adapter.asimilarity_search_by_vector(VECTOR, 100)
        return {str(document.id): document.metadata for document in found}

    async def find(self, operator: str, value: Any, key: str = "a") -> list[str]:
        names = {"==": "$eq", "!=": "$ne", "<": "$lt", ">=": "$gte", "in": "$in", "not in": "$nin"}
        filter = {key: {names[operator]: value}}
        found = await self.adapter.asimilarity_search_by_vector(VECTOR, 100, filter)
        return sorted(str(document.id) for document in found)


@dataclass
class LlamaIndex:
    store: VectorStore
    namespace: str
    item = "node"
    filter_error = InvalidInputError

    @property
    def adapter(self) -> LlamaIndexStore:
        return LlamaIndexStore(self.store, self.namespace)

    async def write(self, documents: dict[str, Any]) -> Any:
        nodes = [
            TextNode(id_=id, text="text", metadata=metadata, embedding=VECTOR)
            for id, metadata in documents.items()
        ]
        return await self.adapter.async_add(nodes)

    async def read(self) -> dict[str, Any]:
        return {node.node_id: node.metadata for node in await self.adapter.aget_nodes()}

    async def find(self, operator: str, value: Any, key: str = "a") -> list[str]:
        name = FilterOperator({"not in": "nin"}.get(operator, operator))
        # LlamaIndex itself accepts numbers, texts and lists only.
        comparison = MetadataFilter.model_construct(key=key, operator=name, value=value)
        found = await self.adapter.aget_nodes(filters=MetadataFilters(filters=[comparison]))
        return [node.node_id for node in found]


@dataclass
class Haystack:
    store: VectorStore
    namespace: str
    item = "document"
    filter_error = FilterError

    @property
    def adapter(self) -> CenoteDocumentStore:
        return CenoteDocumentStore(self.store, self.namespace)

    async def write(self, documents: dict[str, Any]) -> Any:
        written = [
            HaystackDocument(id=id, content="text", meta=metadata, embedding=VECTOR)
            for id, metadata in documents.items()
        ]
        return await self.adapter.write_documents_async(written)

    async def read(self) -> dict[str, Any]:
        found = await self.adapter.filter_documents_async()
        return {document.id: document.meta for document in found}

    async def find(self, operator: str, value: Any, key: str = "a") -> list[str]:
        filters = {"field": f"meta.{key}", "operator": operator, "value": value}
        found = await self.adapter.filter_documents_async(filters)
        return [document.id for document in found]


@pytest.fixture(scope="module")
def postgres(module_dsn: str) -> PgVectorStore:
    return PgVectorStore(engine_for_any_loop(module_dsn), 4)


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return InMemoryVectorStore(4)
    return request.getfixturevalue("postgres")


@pytest.fixture(params=[LangChain, LlamaIndex, Haystack], ids=lambda kind: kind.__name__)
def adapter(request: pytest.FixtureRequest, store: VectorStore) -> Adapter:
    """Each adapter, once with each kind of store, in a namespace of its own."""
    made: Adapter = request.param(store, uuid.uuid4().hex)
    return made


# -- values that are converted -----------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    BORN = date(2020, 1, 1)


class Level(enum.IntEnum):
    TWO = 2


class Language(enum.StrEnum):
    SPANISH = "es"


class Point(tuple[int, int]):
    __slots__ = ()


BERLIN = timezone(timedelta(hours=2))
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
THIRD = Decimal(1) / 3

CONVERTED: list[tuple[Any, Any]] = [
    (datetime(2024, 2, 29, 12, 0, tzinfo=BERLIN), "2024-02-29T10:00:00+00:00"),
    (datetime(2024, 2, 29, 12, 0, tzinfo=UTC), "2024-02-29T12:00:00+00:00"),
    (datetime(2024, 2, 29, 12, 0, 0, 500), "2024-02-29T12:00:00.000500"),
    (date(2024, 2, 29), "2024-02-29"),
    (time(12, 30), "12:30:00"),
    (time(12, 30, tzinfo=BERLIN), "12:30:00+02:00"),
    (ID, str(ID)),
    (PurePosixPath("docs/guide.pdf"), "docs/guide.pdf"),
    (PureWindowsPath("docs\\guide.pdf"), "docs\\guide.pdf"),
    (Decimal("19.90"), 19.9),
    (Decimal("3.00"), 3),
    (Decimal("1E+3"), 1000),
    (Decimal("12345678901234567890123"), 12345678901234567890123),
    (THIRD, 0.3333333333333333),
    (Color.RED, "red"),
    (Color.BORN, "2020-01-01"),
    (Level.TWO, 2),
    (Language.SPANISH, "es"),
    (np.int64(5), 5),
    (np.uint8(200), 200),
    (np.float64(0.5), 0.5),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float16(0.5), 0.5),
    (np.longdouble(0.25), 0.25),
    (np.str_("text"), "text"),
    (np.datetime64("2024-02-29"), "2024-02-29"),
    (np.datetime64("2024-02-29T12:00", "ns"), "2024-02-29T12:00:00"),
    (np.datetime64("2024-02-29T12:00:00.5"), "2024-02-29T12:00:00.500000"),
    (np.array(2.5), 2.5),
]
"""Values and the JSON they are converted to, which filters find too."""

CONTAINERS: list[tuple[Any, Any]] = [
    (np.bool_(True), True),
    ((1, "a", None), [1, "a", None]),
    (Point((1, 2)), [1, 2]),
    ((), []),
    (np.array([1, 2]), [1, 2]),
    (np.array([[1.5], [2.5]], dtype=np.float32), [[1.5], [2.5]]),
    (np.array(["a", "b"]), ["a", "b"]),
    (np.array(["2024-02-29"], dtype="datetime64[ns]"), ["2024-02-29T00:00:00"]),
    (np.array([date(2024, 2, 29), None], dtype=object), ["2024-02-29", None]),
    ([(1, 2), [ID]], [[1, 2], [str(ID)]]),
    ({"b": (date(2024, 2, 29),)}, {"b": ["2024-02-29"]}),
    (types.MappingProxyType({"b": {"c": Decimal("0.5")}}), {"b": {"c": 0.5}}),
    (collections.ChainMap({"b": ID}), {"b": str(ID)}),
    ({Language.SPANISH: np.bool_(False)}, {"es": False}),
]
"""More values and their JSON, which the filters of some frameworks do not accept or compare."""


async def test_values_come_back_as_json(adapter: Adapter) -> None:
    """Each value comes back as the JSON of the table; plain JSON comes back unchanged."""
    cases = [*CONVERTED, *CONTAINERS]
    plain = {"text": "é", "n": 1, "x": 0.5, "none": None, "no": False, "list": [{"b": []}]}
    documents = {f"{number:02}": {"a": value} for number, (value, _) in enumerate(cases)}
    await adapter.write(documents | {"plain": plain})
    read = await adapter.read()
    assert read.pop("plain") == plain
    for number, (value, expected) in enumerate(cases):
        found = read[f"{number:02}"]
        assert json.dumps(found) == json.dumps({"a": expected}), repr(value)
    stored = {
        chunk.id: chunk.metadata["a"]
        async for chunk in adapter.store.get_all_chunks(adapter.namespace, meta("a").exists())
    }
    assert stored == {f"{number:02}": expected for number, (_, expected) in enumerate(cases)}


async def test_the_metadata_of_the_caller_stay_as_they_are(adapter: Adapter) -> None:
    """Conversion makes a copy."""
    metadata = {"a": {"b": [ID]}, "at": datetime(2024, 2, 29)}
    await adapter.write({"1": metadata})
    assert metadata == {"a": {"b": [ID]}, "at": datetime(2024, 2, 29)}


async def test_filters_find_values_as_written(adapter: Adapter) -> None:
    """A filter with the value that was written finds the document, alone and in a list."""
    documents = {f"{number:02}": {"a": value} for number, (value, _) in enumerate(CONVERTED)}
    await adapter.write({**documents, "other": {"a": "other"}, "none": {}})
    for number, (value, expected) in enumerate(CONVERTED):
        id = f"{number:02}"
        for equal in (value, expected):
            assert id in await adapter.find("==", equal), repr(value)
            assert id in await adapter.find("in", ["nothing", equal]), repr(value)
            assert id not in await adapter.find("!=", equal), repr(value)
            assert id not in await adapter.find("not in", ["nothing", equal]), repr(value)
            assert "other" not in await adapter.find("==", equal), repr(value)
            assert "none" in await adapter.find("!=", equal), repr(value)


async def test_datetimes_compare_by_instant(adapter: Adapter) -> None:
    """Datetimes of different time zones are equal, less or greater by instant."""
    at = datetime(2024, 3, 1, 1, 30, tzinfo=BERLIN)
    times = {
        "1": datetime(2024, 2, 29, 23, 29, 59, 999999, tzinfo=UTC),
        "2": datetime(2024, 2, 29, 19, 30, tzinfo=timezone(timedelta(hours=-4))),
        "3": datetime(2024, 3, 1, 1, 30, 0, 1, tzinfo=BERLIN),
        "4": datetime(2024, 3, 1, 0, 0, tzinfo=UTC),
    }
    await adapter.write({id: {"a": value} for id, value in times.items()})
    assert await adapter.find("==", at) == ["2"]
    assert await adapter.find("in", [at, times["4"]]) == ["2", "4"]
    assert await adapter.find("<", at) == ["1"]
    assert await adapter.find(">=", at) == ["2", "3", "4"]


async def test_numbers_compare_by_value(adapter: Adapter) -> None:
    """Decimals and numpy's numbers are numbers in comparisons."""
    await adapter.write({"1": {"a": Decimal("9.5")}, "2": {"a": np.int64(10)}, "3": {"a": "10"}})
    assert await adapter.find("<", Decimal("10.0")) == ["1"]
    assert await adapter.find(">=", np.float32(9.5)) == ["1", "2"]
    assert await adapter.find(">=", np.int16(10)) == ["2"]
    assert await adapter.find("==", Decimal(10)) == ["2"]


# -- values that are rejected ------------------------------------------------------------------


class Person(BaseModel):
    name: str = "SECRET"


@dataclass
class Place:
    name: str = "SECRET"


class NotATime(datetime):
    """A datetime that is not equal to itself, as NaT of pandas."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.__hash__


def _nested(depth: int) -> Any:
    value: Any = "SECRET"
    for _ in range(depth):
        value = [value]
    return value


def _of_itself() -> dict[str, Any]:
    value: dict[str, Any] = {"b": "SECRET"}
    value["c"] = value
    return value


NOT_JSON = "which is not JSON"
REJECTED: list[tuple[Any, str, str]] = [
    (b"SECRET", "'a'", f"is of type bytes, {NOT_JSON}"),
    (bytearray(b"SECRET"), "'a'", f"is of type bytearray, {NOT_JSON}"),
    ({"SECRET"}, "'a'", f"is of type set, {NOT_JSON}"),
    (frozenset({"SECRET"}), "'a'", f"is of type frozenset, {NOT_JSON}"),
    (timedelta(days=1), "'a'", f"is of type timedelta, {NOT_JSON}"),
    (np.timedelta64(1, "s"), "'a'", f"is of type timedelta64, {NOT_JSON}"),
    (1j, "'a'", f"is of type complex, {NOT_JSON}"),
    (np.complex64(1), "'a'", f"is of type complex64, {NOT_JSON}"),
    (Fraction(1, 3), "'a'", f"is of type Fraction, {NOT_JSON}"),
    (Person(), "'a'", f"is of type Person, {NOT_JSON}"),
    (Place(), "'a'", f"is of type Place, {NOT_JSON}"),
    (range(3), "'a'", f"is of type range, {NOT_JSON}"),
    (collections.deque(["SECRET"]), "'a'", f"is of type deque, {NOT_JSON}"),
    (np.ma.array([1], mask=[True]), "'a'", f"is of type MaskedArray, {NOT_JSON}"),
    (np.ma.masked, "'a'", f"is of type MaskedConstant, {NOT_JSON}"),
    (np.zeros(1, dtype=[("x", "i4")]), "'a[0]'", f"is of type void, {NOT_JSON}"),
    (math.nan, "'a'", "is NaN or infinite"),
    (-math.inf, "'a'", "is NaN or infinite"),
    (np.float32("nan"), "'a'", "is NaN or infinite"),
    (np.longdouble("1e400"), "'a'", "is NaN or infinite"),
    (Decimal("NaN"), "'a'", "is NaN or infinite"),
    (Decimal("sNaN"), "'a'", "is NaN or infinite"),
    (Decimal("Infinity"), "'a'", "is NaN or infinite"),
    (Decimal("1E+999999999"), "'a'", "is a number of more than 4,300 digits"),
    (10**4300, "'a'", "is an integer of more than 4,300 digits"),
    (np.datetime64("NaT"), "'a'", "is not a time (NaT)"),
    (NotATime(2024, 2, 29), "'a'", "is not a time (NaT)"),
    (np.datetime64(1, "ns"), "'a'", "finer than microseconds"),
    (np.datetime64("12024-01-01"), "'a'", "outside the years 1 to 9999"),
    (datetime(1, 1, 1, tzinfo=BERLIN), "'a'", "outside the years 1 to 9999"),
    ("SECRET\x00", "'a'", "NUL"),
    ("SECRET\ud800", "'a'", "lone surrogate"),
    (PurePosixPath("SECRET\udc80"), "'a'", "lone surrogate"),
    ({"b": {"c": [1, b"SECRET"]}}, "'a.b.c[1]'", f"is of type bytes, {NOT_JSON}"),
    ([("SECRET", {"b": math.nan})], "'a[0][1].b'", "is NaN or infinite"),
    (np.array(["SECRET", object()], dtype=object), "'a[1]'", f"is of type object, {NOT_JSON}"),
    ({1: "SECRET"}, "'a'", "has a key of type int, not str"),
    ({"b": {("SECRET",): 1}}, "'a.b'", "has a key of type tuple, not str"),
    ({"b": {None: 1}}, "'a.b'", "has a key of type NoneType, not str"),
    ({"b\x00": 1}, "'a'", "has a key that contains a NUL"),
    (_nested(250), "'a[0][0]", "is nested more than 200 levels deep"),
    (_nested(5_000), "'a[0][0]", "is nested more than 200 levels deep"),
    (_of_itself(), "'a.c.c.c", "is nested more than 200 levels deep"),
]
"""Values, the path that the error names, and its reason."""


async def test_other_values_are_rejected_by_key(adapter: Adapter) -> None:
    """The error names document, path, type and reason but no value; nothing is written."""
    for value, path, reason in REJECTED:
        with pytest.raises(InvalidInputError) as raised:
            await adapter.write({"good": {"a": 1}, "bad": {"before": 1, "a": value}, "end": {}})
        error = raised.value
        message = str(error)
        assert message.startswith(f"{adapter.item} 'bad': metadata key {path}"), message
        assert reason in message
        assert "SECRET" not in repr((message, vars(error), error.__context__, error.__cause__))
        assert (error.chunk_id, error.field) == ("bad", "metadata")
    assert await adapter.read() == {}


async def test_keys_of_the_metadata_are_strings(adapter: Adapter) -> None:
    """A key of another type at the top is rejected, by cenote or by the framework."""
    with pytest.raises(Exception, match=r"the metadata has a key of type int|valid string"):
        await adapter.write({"good": {"a": 1}, "bad": {7: "SECRET"}})
    assert await adapter.read() == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"SECRET", "is of type bytes"),
        (timedelta(days=1), "is of type timedelta"),
        (math.nan, "is NaN or infinite"),
        (Decimal("NaN"), "is NaN or infinite"),
        (np.datetime64("NaT"), "is not a time"),
        ("SECRET\x00", "NUL"),
        (["SECRET", {1, 2}], r"the value at '\[1\]' is of type set"),
    ],
)
async def test_filters_reject_other_values_by_key(
    adapter: Adapter, value: Any, reason: str
) -> None:
    """Filters reject the same values, and name the key."""
    for operator in ("==", "!="):
        with pytest.raises(adapter.filter_error, match=reason) as raised:
            await adapter.find(operator, value, "born")
        assert "born" in str(raised.value)
        assert "SECRET" not in str(raised.value)
    with pytest.raises(adapter.filter_error, match=r"'\[1\].*is of type Place") as raised:
        await adapter.find("in", ["SECRET", Place()], "born")
    assert "born" in str(raised.value)
    assert "SECRET" not in str(raised.value)


# -- each framework ----------------------------------------------------------------------------


class NoEmbeddings(Embeddings):
    """Embeddings that must not be called."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError


async def test_langchain_rejects_metadata_before_it_embeds(store: VectorStore) -> None:
    """Rejected documents cost no embeddings. Those without an id are named by position."""
    adapter = LangChainStore(store, NoEmbeddings(), uuid.uuid4().hex)
    with pytest.raises(InvalidInputError, match=r"^documents\[1\]: metadata key 'a'") as error:
        await adapter.aadd_texts(["a", "b"], [{}, {"a": b""}])
    assert error.value.chunk_id is None
    with pytest.raises(InvalidInputError, match=r"^document 'y': metadata key 'a'"):
        adapter.add_texts(["a", "b"], [{}, {"a": b""}], ids=["x", "y"])
    adapter.close()


async def test_langchain_filters_are_converted_everywhere(store: VectorStore) -> None:
    """Nested dicts, lists of any kind, and each method convert values; expressions may be mixed."""
    adapter = LangChainStore(store, DeterministicFakeEmbedding(size=4), uuid.uuid4().hex)
    days = {id: date(2024, 1, int(id)) for id in "123"}
    metadatas = [{"day": day, "days": (day,), "n": int(id)} for id, day in days.items()]
    await adapter.aadd_texts(list("123"), metadatas, ids=list("123"))

    async def found(filter: Any) -> list[str]:
        documents = await adapter.asimilarity_search_by_vector(VECTOR, 9, filter)
        assert adapter.similarity_search_by_vector(VECTOR, 9, filter) == documents
        diverse = await adapter.amax_marginal_relevance_search_by_vector(VECTOR, 9, 9, 0.5, filter)
        assert {document.id for document in diverse} == {document.id for document in documents}
        return sorted(str(document.id) for document in documents)

    assert await found({"day": days["1"]}) == ["1"]
    assert await found({"day": {"$between": (days["1"], days["2"])}}) == ["1", "2"]
    assert await found({"day": {"$in": {days["1"], days["3"]}}}) == ["1", "3"]
    assert await found({"day": {"$nin": [days["1"]]}}) == ["2", "3"]
    assert await found({"day": {"$not": {"$gt": days["1"]}}}) == ["1"]
    assert await found({"days": {"$contains": days["2"]}}) == ["2"]
    assert await found({"days": {"$any": (days["2"], days["3"])}}) == ["2", "3"]
    assert await found({"days": {"$all": np.array([days["2"]])}}) == ["2"]
    assert await found({"days": (days["3"],)}) == ["3"]
    either = {"$or": [{"day": days["1"]}, meta("n") == 2, {"$not": {"day": {"$lt": days["3"]}}}]}
    assert await found(either) == ["1", "2", "3"]
    assert await found({"$and": ({"day": days["1"]}, {"n": Decimal(1)})}) == ["1"]
    await adapter.adelete(filter={"day": {"$lt": days["2"]}})
    assert await found(None) == ["2", "3"]
    adapter.delete(filter={"day": days["2"]})
    assert await found(None) == ["3"]
    adapter.close()


async def test_document_ids_are_converted(store: VectorStore) -> None:
    """A UUID, a number of numpy or a path names the document of a chunk."""
    namespace = uuid.uuid4().hex
    langchain = LangChainStore(store, DeterministicFakeEmbedding(size=4), namespace)
    names = [ID, np.int64(7), PurePosixPath("a.pdf")]
    metadatas = [{"document_id": name} for name in names]
    await langchain.aadd_texts(["a", "b", "c"], metadatas, ids=["1", "2", "3"])
    document = HaystackDocument(id="4", content="d", meta={"source_id": ID}, embedding=VECTOR)
    await CenoteDocumentStore(store, namespace).write_documents_async([document])
    chunks = await store.get(["1", "2", "3", "4"], namespace)
    assert [chunk.document_id for chunk in chunks] == [str(ID), "7", "a.pdf", str(ID)]


async def test_other_metadata_of_llama_index(store: VectorStore) -> None:
    """Metadata in relationships, which splitters copy, and in an index node are converted."""
    adapter = LlamaIndexStore(store, uuid.uuid4().hex)
    metadata = {"at": datetime(2024, 2, 29, tzinfo=BERLIN), "n": np.int64(1)}
    expected = {"at": "2024-02-28T22:00:00+00:00", "n": 1}

    def node(metadata: dict[str, Any]) -> IndexNode:
        info = RelatedNodeInfo(node_id="d", metadata=metadata)
        relationships: Any = {NodeRelationship.SOURCE: info, NodeRelationship.CHILD: [info]}
        inner = TextNode(id_="in", text="in", metadata=metadata, relationships=relationships)
        return IndexNode(
            id_="1",
            text="t",
            index_id="i",
            obj=inner,
            embedding=VECTOR,
            relationships=relationships,
        )

    written: Any = node(metadata)
    await adapter.async_add([written])
    assert written.relationships[NodeRelationship.SOURCE].metadata == metadata
    found: Any
    (found,) = await adapter.aget_nodes()
    for restored in (found, found.obj):
        assert restored.relationships[NodeRelationship.SOURCE].metadata == expected
        assert restored.relationships[NodeRelationship.CHILD][0].metadata == expected
    assert found.obj.metadata == expected
    with pytest.raises(InvalidInputError, match=r"^node '1', in a relationship: metadata key 'a'"):
        await adapter.async_add([node({"a": b"SECRET"})])


async def test_other_metadata_of_haystack(store: VectorStore) -> None:
    """The meta of a blob, which converters fill, and changed meta are converted."""
    adapter = CenoteDocumentStore(store, uuid.uuid4().hex)
    blob = ByteStream(b"\x00", {"file_path": PurePosixPath("a.png"), "at": date(2024, 2, 29)})
    await adapter.write_documents_async([HaystackDocument(id="1", blob=blob, meta={"n": 1})])
    filters = {"field": "meta.n", "operator": "==", "value": np.int64(1)}
    assert await adapter.update_by_filter_async(filters, {"day": date(2024, 3, 1)}) == 1
    (found,) = await adapter.filter_documents_async()
    assert found.blob is not None
    assert found.blob.meta == {"file_path": "a.png", "at": "2024-02-29"}
    assert found.meta == {"n": 1, "day": "2024-03-01"}
    blob.meta["bad"] = {"b": b"SECRET"}
    with pytest.raises(
        InvalidInputError, match=r"^document '2': metadata key 'blob\.meta\.bad\.b'"
    ):
        await adapter.write_documents_async([HaystackDocument(id="2", blob=blob)])
    with pytest.raises(
        InvalidInputError, match=r"^the new meta: metadata key 'a' is of type bytes"
    ):
        await adapter.update_by_filter_async(filters, {"a": b"SECRET"})


async def test_stores_convert_nothing(store: VectorStore) -> None:
    """The stores themselves accept JSON only."""
    with pytest.raises(InvalidInputError, match="contains a date, which is not JSON"):
        await store.upsert([embedded("1", VECTOR, metadata={"a": date(2024, 2, 29)})], "acme")
