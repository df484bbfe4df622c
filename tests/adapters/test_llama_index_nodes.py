"""Conversion of LlamaIndex nodes to chunks and back."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
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
)
from support.llama_nodes import (
    llama_adapter,
    node,
)

from cenote import (
    Chunk,
    EmbeddedChunk,
    InvalidInputError,
)
from cenote.adapters.llama_index import CenoteVectorStore

adapter = llama_adapter


class Special(TextNode):
    """A class that LlamaIndex does not define."""

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


@pytest.mark.parametrize("original", NODES, ids=lambda node: type(node).__name__)
async def test_nodes_are_restored(adapter: CenoteVectorStore, original: BaseNode) -> None:
    """Nodes keep their class, their content and the order of their metadata, as in their hash."""
    written = original.model_copy(update={"embedding": [1.0, 0, 0, 0]})
    assert await adapter.async_add([written]) == [original.node_id]
    (restored,) = await adapter.aget_nodes([original.node_id])
    assert type(restored) is type(original)
    assert restored.model_dump() == original.model_dump()
    assert (restored.hash, list(restored.metadata)) == (original.hash, list(original.metadata))


async def test_chunks_of_nodes(adapter: CenoteVectorStore) -> None:
    """A chunk contains the node's content, and its metadata unchanged."""
    written = NODES[0].model_copy(update={"embedding": [1.0, 0, 0, 0]})
    await adapter.async_add([written, node("alone", "cat", day=date(2020, 1, 1), pair=(1, 2))])
    chunk, alone = await adapter.client.get([written.node_id, "alone"], "acme")
    rest = chunk.metadata.pop("_node_content")
    assert chunk.metadata == EVERYTHING["metadata"]
    assert (chunk.document_id, chunk.content, chunk.position) == ("book", written.get_content(), 7)
    assert "Ñandú" not in rest
    assert (alone.document_id, alone.position) == ("alone", 0)
    assert (alone.metadata["day"], alone.metadata["pair"]) == ("2020-01-01", [1, 2])
    assert await adapter.client.count("acme", {"a": {"long": [1, {"x": None}], "b": True}}) == 1


async def test_chunks_written_by_other_means(adapter: CenoteVectorStore) -> None:
    """Chunks written without the adapter become text nodes, with their current metadata."""
    chunk = Chunk(id="guide:1", document_id="guide", content="cat", metadata={"n": 1})
    plain = Chunk(id="plain", document_id="plain", content="cat")
    await adapter.client.upsert(
        [
            EmbeddedChunk(chunk=written, embedding=[1, 0, 0, 0], embedding_model="m")
            for written in (chunk, plain)
        ],
        "acme",
    )
    await adapter.async_add([node("mine", "cat", z=1, a=2, gone=3)])
    changed = {"a": 3, "new": 4, "gone": None}
    await adapter.client.update_metadata({"mine": changed}, "acme", merge=True)
    guide, mine, alone = await adapter.aget_nodes()
    assert (guide.node_id, guide.get_content(), guide.metadata) == ("guide:1", "cat", {"n": 1})
    assert (guide.ref_doc_id, alone.ref_doc_id) == ("guide", None)
    assert list(mine.metadata.items()) == [("z", 1), ("a", 3), ("gone", None), ("new", 4)]
    (stored,) = await adapter.client.get(["mine"], "acme")
    del stored.metadata["gone"]
    await adapter.client.update_metadata({"mine": stored.metadata}, "acme")
    (mine,) = await adapter.aget_nodes(["mine"])
    assert mine.metadata == {"z": 1, "a": 3, "new": 4}


@pytest.mark.parametrize("special", [Special(text="cat"), SpecialMedia()])
async def test_unknown_node_classes(adapter: CenoteVectorStore, special: BaseNode) -> None:
    """Nodes of an unknown class are restored as their base class."""
    await adapter.async_add([special.model_copy(update={"embedding": [1.0, 0, 0, 0]})])
    (restored,) = await adapter.aget_nodes()
    assert type(restored) is type(special).__base__
    assert restored.get_content() == special.get_content()


class Opaque:
    """An object that JSON cannot represent."""

    def __str__(self) -> str:
        return "SECRET"


NAN = float("nan")


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        (TextNode(id_="bad", text="SECRET"), "embedding", "embed it first"),
        (node("bad", "SECRET", _node_content="SECRET"), "metadata", "'_node_content'"),
        (node("bad", "SECRET", a=Opaque()), "metadata", "not JSON"),
        (node("bad", "SECRET", a={"b": ["SECRET", NAN]}), "metadata", "key 'a.b[1]' is NaN"),
        (node("bad", "SECRET", a={(1, 2): 3}), "metadata", "key 'a' has a key of type tuple"),
        (node("bad", "SECRET\x00"), "content", "NUL"),
        (node("bad", "SECRET", a="\ud800"), "metadata", "surrogate"),
        (
            IndexNode(id_="bad", index_id="i", obj=Opaque(), embedding=[1.0, 0, 0, 0]),
            "metadata",
            "not JSON",
        ),
    ],
)
async def test_invalid_nodes(
    adapter: CenoteVectorStore, bad: BaseNode, field: str, reason: str
) -> None:
    """The error names the node and quotes no content, and the batch is not written."""
    with pytest.raises(InvalidInputError) as error:
        await adapter.async_add([node("good", "cat"), bad])
    assert (error.value.chunk_id, error.value.field) == ("bad", field)
    assert "'bad'" in str(error.value)
    assert reason in str(error.value)
    assert "SECRET" not in str(error.value)
    assert await adapter.aget_nodes() == []
