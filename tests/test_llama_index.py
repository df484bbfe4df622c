"""LlamaIndex's interface: through its indexes, retrievers and pipelines, and by itself."""

from __future__ import annotations

import asyncio
import pickle
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import pytest
from commands import output_of, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn, node_to_metadata_dict
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote import (
    Chunk,
    DimensionMismatchError,
    EmbeddedChunk,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
)
from cenote.adapters.llama_index import CenoteVectorStore


class Words(BaseEmbedding):
    """How often a text has each of four words."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(text.count(word)) for word in ("cat", "dog", "sea", "sun")]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Lines(TransformComponent):
    """Cuts documents into lines; LlamaIndex's own splitters load tokenizers."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        return [
            TextNode(
                id_=f"{document.node_id}:{number}",
                text=line,
                metadata=document.metadata,
                relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
            )
            for document in nodes
            for number, line in enumerate(document.get_content().splitlines())
        ]


def for_any_loop(dsn: str) -> AsyncEngine:
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    return create_async_engine(url, poolclass=NullPool)


@pytest.fixture(params=["memory", "postgres"])
def adapted(request: pytest.FixtureRequest) -> Iterator[CenoteVectorStore]:
    """The adapter over either store."""
    store: Any = InMemoryVectorStore(4)
    if request.param == "postgres":
        store = PgVectorStore(for_any_loop(request.getfixturevalue("dsn")), 4)
    adapter = CenoteVectorStore(store, "acme")
    yield adapter
    adapter.close()


def node(id: str, text: str = "", document: str | None = None, **metadata: Any) -> TextNode:
    """A node with its embedding."""
    source = RelatedNodeInfo(node_id=document or "")
    return TextNode(
        id_=id,
        text=text,
        metadata=metadata,
        embedding=Words().get_text_embedding(text) if text else [1.0, 0, 0, 0],
        relationships={NodeRelationship.SOURCE: source} if document else {},
    )


def where(key: str, operator: str, value: Any = None) -> MetadataFilters:
    one = MetadataFilter(key=key, operator=FilterOperator(operator), value=value)
    return MetadataFilters(filters=[one])


def ids(nodes: Sequence[Any]) -> list[str]:
    return [one.node_id for one in nodes]


# -- through LlamaIndex ----------------------------------------------------------------------------

PETS = Document(id_="pets", text="cat cat\ncat dog", metadata={"year": 2020, "tags": ["a", "b"]})
COAST = Document(id_="coast", text="sea sea\nsea sun", metadata={"year": 2024, "tags": []})


def index_of(adapted: CenoteVectorStore, **options: Any) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(
        [PETS, COAST],
        storage_context=StorageContext.from_defaults(vector_store=adapted),
        embed_model=Words(),
        transformations=[Lines()],
        **options,
    )


def test_an_index_from_the_first_document_to_the_last(adapted: CenoteVectorStore) -> None:
    """Made, searched, added to, deleted from, and opened again."""
    index = index_of(adapted)
    found = index.as_retriever(similarity_top_k=2).retrieve("cat")
    assert ids(found) == ["pets:0", "pets:1"]
    assert [one.score for one in found] == pytest.approx([1, 0.5**0.5])
    assert found[0].text == "cat cat"
    assert found[0].node.ref_doc_id == "pets"
    assert found[0].metadata == PETS.metadata

    recent = index.as_retriever(similarity_top_k=9, filters=where("year", ">=", 2021))
    assert ids(recent.retrieve("cat")) == ["coast:0", "coast:1"]
    assert ids(index.as_retriever(doc_ids=["coast"]).retrieve("cat")) == ["coast:0", "coast:1"]

    index.insert(Document(id_="beach", text="dog sea"))
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("dog sea")) == ["beach:0"]
    index.update_ref_doc(Document(id_="beach", text="sun"))
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("sun")) == ["beach:0"]
    index.delete_ref_doc("beach")
    index.delete_nodes(["pets:0"])
    again = VectorStoreIndex.from_vector_store(adapted, embed_model=Words())
    assert ids(again.as_retriever(similarity_top_k=9).retrieve("cat")) == [
        "pets:1",
        "coast:0",
        "coast:1",
    ]
    adapted.clear()
    assert again.as_retriever().retrieve("cat") == []
    assert adapted.get_nodes() == []


async def test_the_same_to_be_awaited(adapted: CenoteVectorStore) -> None:
    """Beside synchronous calls of the same object."""
    index = VectorStoreIndex.from_vector_store(adapted, embed_model=Words())
    await index.ainsert_nodes(Lines()([PETS, COAST]))
    retriever = index.as_retriever(similarity_top_k=2, filters=where("tags", "contains", "a"))
    assert ids(await retriever.aretrieve("cat")) == ["pets:0", "pets:1"]
    assert ids(await asyncio.to_thread(retriever.retrieve, "cat")) == ["pets:0", "pets:1"]
    await index.adelete_ref_doc("coast")
    await index.adelete_nodes(["pets:1"])
    assert ids(await adapted.aget_nodes()) == ["pets:0"]
    await adapted.aclear()
    assert await adapted.aget_nodes() == []


def test_an_index_that_makes_loops(adapted: CenoteVectorStore) -> None:
    """Asynchronous calls of synchronous code, on an engine that keeps no connections."""
    index = index_of(adapted, use_async=True)
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("sea")) == ["coast:0"]


def test_any_embedding_does(adapted: CenoteVectorStore) -> None:
    """And what makes it is named in the store."""
    index = VectorStoreIndex.from_vector_store(adapted, embed_model=MockEmbedding(embed_dim=4))
    index.insert_nodes([TextNode(id_="a", text="text")])
    assert ids(index.as_retriever().retrieve("other")) == ["a"]
    other = VectorStoreIndex.from_vector_store(adapted, embed_model=MockEmbedding(embed_dim=5))
    with pytest.raises(DimensionMismatchError):
        other.as_retriever().retrieve("other")


@pytest.mark.parametrize("awaited", [False, True])
def test_a_pipeline_keeps_documents_up_to_date(adapted: CenoteVectorStore, awaited: bool) -> None:
    """Changed ones are replaced, those that are gone are removed."""
    pipeline = IngestionPipeline(
        transformations=[Lines(), Words()],
        vector_store=adapted,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )

    def ingest(*documents: Document) -> list[str]:
        if awaited:
            asyncio.run(pipeline.arun(documents=list(documents)))
        else:
            pipeline.run(documents=list(documents))
        return [one.get_content() for one in adapted.get_nodes()]

    assert ingest(PETS, COAST) == ["sea sea", "sea sun", "cat cat", "cat dog"]
    assert ingest(Document(id_="pets", text="dog"), COAST) == ["sea sea", "sea sun", "dog"]
    assert ingest(COAST) == ["sea sea", "sea sun"]


def test_images_and_index_nodes_beside_texts(adapted: CenoteVectorStore) -> None:
    """An index's own retriever asks for them alone; one that is made of the index does not."""
    image = ImageNode(id_="image", text="cat", image_url="https://example.org/cat.png")
    pointer = IndexNode(id_="pointer", text="cat sun", index_id="other")
    index = VectorStoreIndex(
        [node("text", "cat"), image, pointer],
        storage_context=StorageContext.from_defaults(vector_store=adapted),
        embed_model=Words(),
    )
    assert ids(index.as_retriever(similarity_top_k=9).retrieve("cat")) == ["image", "pointer"]
    found = VectorIndexRetriever(index, similarity_top_k=9).retrieve("cat")
    assert ids(found) == ["image", "text", "pointer"]
    assert isinstance(found[0].node, ImageNode)


# -- nodes -----------------------------------------------------------------------------------------


class Special(TextNode):
    """A class that LlamaIndex does not know."""

    @classmethod
    def class_name(cls) -> str:
        return "Special"


class SpecialMedia(Node):
    @classmethod
    def class_name(cls) -> str:
        return "SpecialMedia"


EVERYTHING: dict[str, Any] = {
    "metadata": {
        "zz": 1.0,
        "a": {"long": [1, {"x": None}], "b": True},
        "list": [],
        "none": None,
        "day": "2020-01-01",
        "doc_id": "mine",
    },
    "excluded_embed_metadata_keys": ["a"],
    "excluded_llm_metadata_keys": ["list"],
    "metadata_template": "{key}={value}",
    "metadata_separator": "; ",
    "text_template": "{content} ({metadata_str})",
    "relationships": {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book", metadata={"x": 1.5}, hash="abc"),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="next", node_type="4"),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
    },
}
URL: Any = "https://example.org/a.png"

NODES = [
    TextNode(text="Ñandú \\u0000 %", start_char_idx=7, end_char_idx=21, **EVERYTHING),
    TextNode(text="", mimetype="text/html"),
    ImageNode(text="seen", image="aGVsbG8=", image_path="a.png", **EVERYTHING),
    IndexNode(text="see there", index_id="other", obj=TextNode(id_="in", text="a"), **EVERYTHING),
    Node(
        text_resource=MediaResource(text="said", mimetype="text/x-rst"),
        image_resource=MediaResource(url=URL),
        **EVERYTHING,
    ),
    Node(audio_resource=MediaResource(url=URL)),
    Document(id_="whole", text="a document", metadata={"a": 1}),
    ImageDocument(text="seen", image_resource=MediaResource(url=URL)),
]


@pytest.mark.parametrize("kept", NODES, ids=lambda one: type(one).__name__)
async def test_nodes_come_back_whole(adapted: CenoteVectorStore, kept: BaseNode) -> None:
    """Equal, of their class, with the order of their metadata, which their hash is made of."""
    written = kept.model_copy(update={"embedding": [1.0, 0, 0, 0]})
    assert await adapted.async_add([written]) == [kept.node_id]
    (back,) = await adapted.aget_nodes([kept.node_id])
    assert type(back) is type(kept)
    assert back.model_dump() == kept.model_dump()
    assert (back.hash, list(back.metadata)) == (kept.hash, list(kept.metadata))


async def test_what_nodes_become(adapted: CenoteVectorStore) -> None:
    """Chunks that the application reads, with the metadata as they are."""
    written = NODES[0].model_copy(update={"embedding": [1.0, 0, 0, 0]})
    await adapted.async_add([written, node("alone", "cat", day=date(2020, 1, 1), pair=(1, 2))])
    chunk, alone = await adapted.client.get([written.node_id, "alone"], "acme")
    rest = chunk.metadata.pop("_node_content")
    assert chunk.metadata == EVERYTHING["metadata"]
    assert (chunk.document_id, chunk.content, chunk.position) == ("book", written.get_content(), 7)
    assert "Ñandú" not in rest
    assert (alone.document_id, alone.position) == ("alone", 0)
    assert (alone.metadata["day"], alone.metadata["pair"]) == ("2020-01-01", [1, 2])
    assert await adapted.client.count("acme", {"a": {"long": [1, {"x": None}], "b": True}}) == 1


async def test_what_others_wrote(adapted: CenoteVectorStore) -> None:
    """Chunks without a node are texts with their document; changed metadata show."""
    chunk = Chunk(id="guide:1", document_id="guide", content="cat", metadata={"n": 1})
    plain = Chunk(id="plain", document_id="plain", content="cat")
    await adapted.client.upsert(
        [
            EmbeddedChunk(chunk=one, embedding=[1, 0, 0, 0], embedding_model="m")
            for one in (chunk, plain)
        ],
        "acme",
    )
    await adapted.async_add([node("mine", "cat", z=1, a=2, gone=3)])
    changed = {"a": 3, "new": 4, "gone": None}
    await adapted.client.update_metadata({"mine": changed}, "acme", merge=True)
    guide, mine, alone = await adapted.aget_nodes()
    assert (guide.node_id, guide.get_content(), guide.metadata) == ("guide:1", "cat", {"n": 1})
    assert (guide.ref_doc_id, alone.ref_doc_id) == ("guide", None)
    assert list(mine.metadata.items()) == [("z", 1), ("a", 3), ("gone", None), ("new", 4)]
    (stored,) = await adapted.client.get(["mine"], "acme")
    del stored.metadata["gone"]
    await adapted.client.update_metadata({"mine": stored.metadata}, "acme")
    (mine,) = await adapted.aget_nodes(["mine"])
    assert mine.metadata == {"z": 1, "a": 3, "new": 4}


@pytest.mark.parametrize("special", [Special(text="cat"), SpecialMedia()])
async def test_classes_that_llama_index_does_not_know(
    adapted: CenoteVectorStore, special: BaseNode
) -> None:
    """Come back as what they are made of."""
    await adapted.async_add([special.model_copy(update={"embedding": [1.0, 0, 0, 0]})])
    (back,) = await adapted.aget_nodes()
    assert type(back) is type(special).__base__
    assert back.get_content() == special.get_content()


class Opaque:
    """Nothing that JSON could hold."""

    def __str__(self) -> str:
        return "SECRET"


NAN = float("nan")


@pytest.mark.parametrize(
    ("bad", "culprit", "says"),
    [
        (TextNode(id_="bad", text="SECRET"), "embedding", "embed it first"),
        (node("bad", "SECRET", _node_content="SECRET"), "metadata", "'_node_content'"),
        (node("bad", "SECRET", a=Opaque()), "metadata", "not JSON"),
        (node("bad", "SECRET", a={"SECRET": [NAN]}), "metadata", "not JSON"),
        (node("bad", "SECRET", a={(1, 2): 3}), "metadata", "not JSON"),
        (node("bad", "SECRET\x00"), "content", "NUL"),
        (node("bad", "SECRET", a="\ud800"), "metadata", "surrogate"),
        (
            IndexNode(id_="bad", index_id="i", obj=Opaque(), embedding=[1.0, 0, 0, 0]),
            "metadata",
            "not JSON",
        ),
    ],
)
async def test_nodes_that_are_refused(
    adapted: CenoteVectorStore, bad: BaseNode, culprit: str, says: str
) -> None:
    """With an error that names the node, quotes nothing of it, and leaves nothing of the batch."""
    with pytest.raises(InvalidInputError) as refused:
        await adapted.async_add([node("good", "cat"), bad])
    assert (refused.value.chunk_id, refused.value.field) == ("bad", culprit)
    assert "'bad'" in str(refused.value)
    assert says in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert await adapted.aget_nodes() == []


# -- queries and deletions -------------------------------------------------------------------------


@pytest.fixture
def four(adapted: CenoteVectorStore) -> CenoteVectorStore:
    """With four nodes of two documents."""
    adapted.add(
        [
            node("1", "cat", "pets", n=1),
            node("2", "cat cat dog", "pets", n=2),
            node("3", "cat dog", "pets", n=3),
            node("4", "cat sea", "coast", n=4),
        ]
    )
    return adapted


def asked(**options: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=[1.0, 0, 0, 0], similarity_top_k=9, **options)


def test_what_a_query_is_restricted_to(four: CenoteVectorStore) -> None:
    """By nodes, documents, filters, and what the store takes; before the limit is counted."""
    assert four.query(asked()).ids == ["1", "2", "3", "4"]
    assert four.query(asked(node_ids=[])).ids == ["1", "2", "3", "4"]
    assert four.query(asked(node_ids=["4", "2", "9"])).ids == ["2", "4"]
    assert four.query(asked(doc_ids=["coast"])).ids == ["4"]
    assert four.query(asked(doc_ids=[])).ids == []
    assert four.query(asked(doc_ids=["pets"], filters=where("n", ">", 1))).ids == ["2", "3"]
    assert four.query(asked(), per_document=1).ids == ["1", "4"]
    assert four.query(asked(), min_score=0.8).ids == ["1", "2"]
    result = four.query(asked(node_ids=["4"]))
    assert result.similarities == pytest.approx([0.5**0.5])
    assert ids(result.nodes or []) == ["4"]
    opposite = VectorStoreQuery(query_embedding=[-1.0, 0, 0, 0])
    assert four.query(opposite).similarities == pytest.approx([-(0.5**0.5)])


@pytest.mark.parametrize("threshold", [0.0, 0.3, None, 0.9, 1.0])
def test_unlike_one_another(four: CenoteVectorStore, threshold: float | None) -> None:
    """As LlamaIndex chooses two, by the query's threshold or the keyword; scored by similarity."""
    query = asked(mode=VectorStoreQueryMode.MMR, mmr_threshold=threshold)
    query.similarity_top_k = 2
    stored = [[1.0, 0, 0, 0], [2.0, 1, 0, 0], [1.0, 1, 0, 0], [1.0, 0, 1, 0]]
    _, expected = get_top_k_mmr_embeddings(
        query.query_embedding or [],
        stored,
        similarity_top_k=2,
        embedding_ids=list("1234"),
        mmr_threshold=threshold,
    )
    result = four.query(query)
    assert result.ids == expected
    assert (result.similarities or [])[0] == pytest.approx(1)
    query.mmr_threshold = None
    assert four.query(query, mmr_threshold=threshold).ids == expected
    assert four.query(query, mmr_threshold=threshold, candidates=2).ids == ["1", "2"]


@pytest.fixture(params=["memory", "postgres"])
def worded(request: pytest.FixtureRequest) -> CenoteVectorStore:
    """Over a store with full text."""
    store: Any = InMemoryVectorStore(4, text_search="english")
    if request.param == "postgres":
        engine = for_any_loop(request.getfixturevalue("dsn"))
        store = PgVectorStore(engine, 4, table_name="worded", text_search="english")
    return CenoteVectorStore(store, "acme")


async def test_words_and_both(worded: CenoteVectorStore) -> None:
    """By the query's text, with filters; alpha weighs vectors against words."""
    store: Any = worded.client
    await store.apply_migrations()
    await worded.async_add([node("1", "cat", n=1), node("2", "sea", n=2), node("3", "dog", n=3)])
    text = asked(query_str="Dogs at sea?", mode=VectorStoreQueryMode.TEXT_SEARCH)
    text.similarity_top_k = 9
    assert sorted((await worded.aquery(text)).ids or []) == ["2", "3"]
    text.sparse_top_k, text.mode = 1, VectorStoreQueryMode.SPARSE
    assert len((await worded.aquery(text)).ids or []) == 1
    both = asked(mode=VectorStoreQueryMode.HYBRID, query_str="dogs", alpha=0.1)
    both.similarity_top_k, both.query_embedding = 9, [1.0, 0.1, 0.05, 0.0]
    assert (await worded.aquery(both)).ids == ["3", "1", "2"]
    both.alpha = 1.0
    result = await worded.aquery(both)
    assert result.ids is not None
    assert result.ids[0] == "1"
    both.alpha, both.hybrid_top_k = None, 1
    assert (await worded.aquery(both)).ids == ["3"]
    both.filters = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    assert (await worded.aquery(both)).ids == ["2"]


@pytest.mark.parametrize(
    "mode",
    [
        VectorStoreQueryMode.SEMANTIC_HYBRID,
        VectorStoreQueryMode.SVM,
        VectorStoreQueryMode.LOGISTIC_REGRESSION,
        VectorStoreQueryMode.LINEAR_REGRESSION,
    ],
)
async def test_modes_that_are_not_there(mode: VectorStoreQueryMode) -> None:
    """Are named, beside those that are."""
    adapted = CenoteVectorStore(InMemoryVectorStore(4), "acme")
    with pytest.raises(NotImplementedError, match=f"{mode.value}.*'default', 'mmr', "):
        await adapted.aquery(VectorStoreQuery(query_str="cat", mode=mode))


@pytest.mark.parametrize(
    ("query", "culprit"),
    [
        (VectorStoreQuery(query_str="SECRET"), "query_embedding"),
        (asked(output_fields=["text"]), "output_fields"),
        (asked(embedding_field="other"), "embedding_field"),
        (asked(mode=VectorStoreQueryMode.MMR, mmr_threshold=1.5), "mmr_threshold"),
        (asked(mode=VectorStoreQueryMode.HYBRID, query_str="SECRET", alpha=7), "alpha"),
        (asked(mode=VectorStoreQueryMode.TEXT_SEARCH), "query_str"),
    ],
)
async def test_queries_that_are_refused(query: VectorStoreQuery, culprit: str) -> None:
    """By the name of what is wrong, quoting nothing."""
    adapted = CenoteVectorStore(InMemoryVectorStore(4), "acme")
    with pytest.raises(InvalidInputError, match=culprit) as refused:
        await adapted.aquery(query)
    assert refused.value.field == culprit
    assert "SECRET" not in str(refused.value)


def test_deletions_name_what(four: CenoteVectorStore) -> None:
    """Ids, filters, or both; not everything by an omission, and no other namespace."""
    other = CenoteVectorStore(four.client, "other")
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(InvalidInputError, match=r"clear\(\)"):
            four.delete_nodes(filters=nothing)
    with pytest.raises(InvalidInputError, match="every"):
        four.delete_nodes(filters=MetadataFilters(filters=[MetadataFilters(filters=[])]))
    four.delete_nodes([])
    four.delete_nodes([], where("n", ">", 0))
    four.delete_nodes(["1", "9"], where("n", ">", 1))
    four.delete("nowhere")
    assert len(four.get_nodes()) == 4
    four.delete_nodes(["1", "2"], where("n", ">", 1))
    assert ids(four.get_nodes()) == ["1", "3", "4"]
    four.delete_nodes(filters=where("n", "==", 3))
    four.delete_nodes(["1"])
    assert ids(four.get_nodes()) == ["4"]
    four.delete("coast")
    four.add([node("alone", "cat")])
    assert other.get_nodes() == []
    four.delete("alone")
    assert four.get_nodes() == []


def test_nodes_are_read_by_id(four: CenoteVectorStore) -> None:
    """And by filters; those that are not there are left out."""
    assert ids(four.get_nodes(["4", "1", "9"])) == ["1", "4"]
    assert four.get_nodes([]) == []
    assert ids(four.get_nodes(["4", "1"], where("n", ">", 1))) == ["4"]
    assert ids(four.get_nodes(filters=where("ref_doc_id", "==", "coast"))) == ["4"]


async def test_a_transaction_of_the_applications(dsn: str) -> None:
    """Its session is a keyword of the asynchronous methods."""
    engine = for_any_loop(dsn)
    adapted = CenoteVectorStore(PgVectorStore(engine, 4), "acme")
    async with engine.connect() as session:
        await adapted.async_add([node("1", "cat", "pets"), node("2", "dog")], session=session)
        await adapted.adelete("pets", session=session)
        assert (await adapted.aquery(asked(doc_ids=["2"]), session=session)).ids == ["2"]
        assert await adapted.aget_nodes() == []
        await session.rollback()
    assert await adapted.aget_nodes() == []


# -- as an object ----------------------------------------------------------------------------------


async def test_what_is_written_down_of_the_object() -> None:
    """Nothing of the store and its password; it can be made again, over a store."""
    engine = create_async_engine("postgresql+asyncpg://me:SECRET@localhost/database")
    adapted = CenoteVectorStore(PgVectorStore(engine, 4), "acme", embedding_model="words")
    data = adapted.to_dict()
    assert data == {
        "namespace": "acme",
        "embedding_model": "words",
        "class_name": "CenoteVectorStore",
    }
    assert "SECRET" not in repr(adapted) + str(adapted) + adapted.to_json()
    again = CenoteVectorStore.from_dict(data, store=adapted.client)
    assert (again.namespace, again.embedding_model) == ("acme", "words")
    assert (again.stores_text, again.is_embedding_query) == (True, True)
    assert again.model_copy().client is adapted.client
    with pytest.raises(TypeError, match="store"):
        CenoteVectorStore.from_dict(data)
    with pytest.raises(TypeError, match="from_dict"):
        pickle.dumps(adapted)
    pipeline = IngestionPipeline(transformations=[Lines()], vector_store=adapted)
    assert "SECRET" not in str(pipeline.model_dump(include={"vector_store"}))


async def test_the_model_is_stored_beside_each_chunk() -> None:
    """So that a store that insists on one refuses another."""
    store = InMemoryVectorStore(4, embedding_model="words")
    await CenoteVectorStore(store, "acme", embedding_model="words").async_add([node("a", "cat")])
    with pytest.raises(InvalidInputError, match="llama-index"):
        await CenoteVectorStore(store, "acme").async_add([node("a", "cat")])


def test_cenote_does_not_import_it() -> None:
    """Only the adapter does."""
    code = "import cenote, sys; print('llama_index' in sys.modules, 'pydantic' in sys.modules)"
    assert output_of(run(sys.executable, "-c", code)) == "False False\n"


# -- filters ---------------------------------------------------------------------------------------


def none_of(*filters: MetadataFilters) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.NOT)


def one_of(*filters: MetadataFilters) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.OR)


METADATA: dict[str, dict[str, Any]] = {
    "0": {},
    "1": {"v": None},
    "2": {"v": 1},
    "3": {"v": True},
    "4": {"v": "España \\o/ 100%"},
    "5": {"v": ["a", 1]},
    "6": {"v": []},
    "7": {"v": ""},
    "8": {"v": {"a": 1}},
}


@pytest.mark.parametrize(
    ("filters", "matching"),
    [
        (where("v", "==", 1), "23"),
        (where("v", "==", 1.0), "23"),
        (where("v", "==", 0), ""),
        (where("v", "!=", 1), "0145678"),
        (where("v", "in", [0, 1]), "23"),
        (where("v", "nin", [1]), "0145678"),
        (where("v", "==", ["a", "b"]), ""),
        (where("v", ">=", 1), "2"),
        (where("v", "<", "F"), "47"),
        (where("v", "contains", "a"), "5"),
        (where("v", "any", ["a", "b"]), "5"),
        (where("v", "any", []), ""),
        (where("v", "all", ["a", "b"]), ""),
        (where("v", "text_match", "100%"), "4"),
        (where("v", "text_match", "1_0"), ""),
        (where("v", "text_match", "\\o"), "4"),
        (where("v", "text_match", "\\a"), ""),
        (where("v", "text_match", ""), "47"),
        (where("v", "text_match_insensitive", "eSPAÑA"), "4"),
        (where("v", "text_match_insensitive", "ESPAÑA"), "4"),
        (where("v", "text_match_insensitive", "espana"), ""),
        (where("v", "is_empty"), "0167"),
        (none_of(where("v", "is_empty"), where("v", "==", 1)), "458"),
        (one_of(none_of(where("v", "!=", 1)), where("v", "contains", 1)), "235"),
        (one_of(), "012345678"),
        (none_of(), "012345678"),
        (where("doc_id", "==", "8"), "8"),
        (where("document_id", "in", ["even", "8"]), "02468"),
        (where("ref_doc_id", "text_match", "ev"), "0246"),
        (where("ref_doc_id", "!=", "even"), "13578"),
        (where("v.a", "==", 1), ""),
    ],
)
def test_what_filters_mean(module_adapted: Any, filters: MetadataFilters, matching: str) -> None:
    """Where LlamaIndex leaves it open, and beyond."""
    runner, both = module_adapted
    for adapted in both:
        assert "".join(ids(runner.run(adapted.aget_nodes(filters=filters)))) == matching


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        (where("key", "=="), "IS_EMPTY"),
        (where("key", "in", "SECRET"), "list"),
        (where("key", "any", "SECRET"), "list"),
        (where("key", "all", []), "one value or more"),
        (where("key", ">", ["SECRET"]), "number or a text"),
        (where("key", "text_match", 1), "text"),
        (where("key", "text_match_insensitive", ["SECRET"]), "text"),
        (where("doc_id", "is_empty"), "IS_EMPTY"),
        (where("doc_id", "contains", "SECRET"), "CONTAINS"),
        (where("doc_id", "==", 1), "str"),
    ],
)
async def test_filters_that_are_refused(filters: MetadataFilters, says: str) -> None:
    """By key and reason, without the value."""
    adapted = CenoteVectorStore(InMemoryVectorStore(4), "acme")
    with pytest.raises(InvalidInputError, match=says) as refused:
        await adapted.aget_nodes(filters=filters)
    assert "'key'" in str(refused.value) or "doc" in str(refused.value)
    assert "SECRET" not in str(refused.value)


@pytest.fixture(scope="module")
def module_adapted(
    module_dsn: str,
) -> Iterator[tuple[asyncio.Runner, list[CenoteVectorStore]]]:
    """A loop, and the adapter over a store of each kind, with what filters are tried on."""
    with asyncio.Runner() as runner:
        postgres = runner.run(PgVectorStore.connect(module_dsn, 4))
        both = [CenoteVectorStore(one, "acme") for one in (InMemoryVectorStore(4), postgres)]
        for adapted in both:
            nodes = [
                node(id, "", None if id == "8" else ("even", "odd")[int(id) % 2], **metadata)
                for id, metadata in METADATA.items()
            ]
            runner.run(adapted.async_add(nodes))
        yield runner, both
        runner.run(postgres.close())


numbers = st.sampled_from([0, 1, 2, -1, 0.5, 1.0, 2.0])
texts = st.text(st.sampled_from('aAbB%_\\"'), max_size=3)
scalars = numbers | texts
lists = st.lists(numbers, max_size=3) | st.lists(texts, max_size=3)
values = st.none() | st.booleans() | scalars | lists | st.dictionaries(texts, scalars, max_size=1)
keys = st.sampled_from(["a", "b", "ref_doc_id"])
same_kind = st.lists(texts, max_size=3) | st.lists(st.integers(-1, 2), max_size=3)

OPERANDS = {
    FilterOperator.IN: same_kind,
    FilterOperator.NIN: same_kind,
    FilterOperator.ANY: same_kind,
    FilterOperator.ALL: same_kind.filter(bool),
    FilterOperator.CONTAINS: scalars,
    FilterOperator.EQ: scalars | same_kind,
    FilterOperator.NE: scalars | same_kind,
    FilterOperator.TEXT_MATCH: texts,
    FilterOperator.TEXT_MATCH_INSENSITIVE: texts,
    FilterOperator.IS_EMPTY: st.none(),
}
OF_LISTS = {FilterOperator.CONTAINS, FilterOperator.ANY, FilterOperator.ALL}
OF_ORDER = {FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE}


@st.composite
def single(draw: Any) -> MetadataFilter:
    operator = draw(st.sampled_from(FilterOperator))
    key = draw(keys)
    if key == "ref_doc_id":  # a text
        operator = draw(st.sampled_from([FilterOperator.EQ, FilterOperator.NE, *OF_ORDER]))
        return MetadataFilter(key=key, value=draw(texts), operator=operator)
    value = draw(OPERANDS.get(operator, scalars))
    return MetadataFilter(key=key, value=value, operator=operator)


conditions = st.sampled_from([*FilterCondition, None])
filters = st.recursive(
    st.builds(lambda one: MetadataFilters(filters=[one]), single()),
    lambda inner: st.builds(
        lambda parts, condition: MetadataFilters(filters=parts, condition=condition),
        st.lists(inner | single(), max_size=3),
        conditions,
    ),
    max_leaves=4,
)


class UndefinedError(Exception):
    """LlamaIndex does not say."""


def meant(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    """What LlamaIndex's reference makes of filters; of nested ones, part by part."""
    if any(isinstance(one, MetadataFilters) for one in filters.filters):
        parts = [
            meant(
                one if isinstance(one, MetadataFilters) else MetadataFilters(filters=[one]),
                metadata,
            )
            for one in filters.filters
        ]
        if filters.condition == FilterCondition.OR:
            return any(parts)
        return not any(parts) if filters.condition == FilterCondition.NOT else all(parts)
    for one in filters.filters:
        assert isinstance(one, MetadataFilter)
        value = metadata.get(one.key)
        if one.operator in OF_LISTS and isinstance(value, str | dict):
            raise UndefinedError
        if one.operator in OF_ORDER and isinstance(value, bool):
            raise UndefinedError
    try:
        return build_metadata_filter_fn(lambda _: metadata, filters)("")
    except TypeError:
        raise UndefinedError from None


def known(filters: MetadataFilters, nodes: list[TextNode]) -> dict[str, bool]:
    """By id, what is meant of the nodes of which that is defined."""
    answers = {}
    for one in nodes:
        try:
            answers[one.node_id] = meant(filters, node_to_metadata_dict(one))
        except UndefinedError:
            continue
    return answers


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    metadata=st.lists(
        st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2), min_size=4, max_size=8
    ),
    documents=st.lists(texts.filter(bool), min_size=8, max_size=8),
    several=st.lists(filters, min_size=6, max_size=6),
)
def test_filters_mean_what_they_do_in_the_reference(
    module_adapted: Any,
    metadata: list[dict[str, Any]],
    documents: list[str],
    several: list[MetadataFilters],
) -> None:
    """Random filters on random nodes: the same are read, found and left by a deletion."""
    runner, both = module_adapted
    namespace = uuid.uuid4().hex
    nodes = [
        node(str(number), "", document, **one)
        for number, (one, document) in enumerate(zip(metadata, documents, strict=False))
    ]

    async def compare(adapted: CenoteVectorStore) -> None:
        await adapted.async_add(nodes)
        for filters in several:
            answers = known(filters, nodes)
            read = ids(await adapted.aget_nodes(filters=filters))
            assert {one: one in read for one in answers} == answers
            assert (await adapted.aquery(asked(filters=filters))).ids == read
        await adapted.aclear()

    for one in both:
        runner.run(compare(CenoteVectorStore(one.client, namespace)))
