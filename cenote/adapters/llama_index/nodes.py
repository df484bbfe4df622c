"""Conversion of LlamaIndex nodes to chunks and back."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)

from cenote.adapters.metadata import json_metadata
from cenote.errors import InvalidInputError
from cenote.filters.operands import json_token
from cenote.models import Chunk, EmbeddedChunk
from cenote.validation.arguments import safe_repr
from cenote.validation.json import canonical_json

_NODE_CONTENT = "_node_content"
"""Metadata key for the rest of the node. LlamaIndex's own stores use the same key."""

_CLASSES: dict[str, type[BaseNode]] = {
    node_class.class_name(): node_class
    for node_class in (TextNode, ImageNode, IndexNode, Node, Document, ImageDocument)
}


def embedded_chunk(node: BaseNode, embedding_model: str) -> EmbeddedChunk:
    """Convert a node to the chunk that is stored.

    Raises:
        InvalidInputError: The node has no embedding, several sources, the reserved metadata key, or
            a value that is not JSON.
    """
    if node.embedding is None:
        raise InvalidInputError(
            f"node {safe_repr(node.node_id)} has no embedding: embed it first, as a "
            "VectorStoreIndex does",
            field="embedding",
            chunk_id=node.node_id,
        )
    try:
        source = node.ref_doc_id
    except ValueError:
        raise InvalidInputError(
            f"node {safe_repr(node.node_id)} has several sources: a node must belong to one "
            "document",
            field="document_id",
            chunk_id=node.node_id,
        ) from None
    chunk = Chunk(
        id=node.node_id,
        document_id=source or node.node_id,
        content=node.get_content(),
        position=getattr(node, "start_char_idx", None) or 0,
        metadata=_metadata(node),
    )
    return EmbeddedChunk(chunk=chunk, embedding=node.embedding, embedding_model=embedding_model)


def _metadata(node: BaseNode) -> dict[str, Any]:
    """Return the chunk's metadata: the node's metadata, and the rest of the node as JSON.

    The JSON repeats the metadata because jsonb keeps neither the order of keys nor the notation of
    numbers. The node's hash and the text that a model reads depend on both.
    """
    if _NODE_CONTENT in node.metadata:
        raise InvalidInputError(
            f"node {safe_repr(node.node_id)}: the metadata key {_NODE_CONTENT!r} is reserved for "
            "LlamaIndex: rename it",
            field="metadata",
            chunk_id=node.node_id,
        )
    try:
        converted = _with_json_metadata(node, f"node {safe_repr(node.node_id)}", node.node_id)
        dumped = converted.model_dump(mode="json", exclude={"embedding", "metadata"})
    except InvalidInputError:
        raise
    except (TypeError, ValueError, RecursionError):  # their messages quote the object
        raise InvalidInputError(
            f"node {safe_repr(node.node_id)} contains a value that is not JSON: convert it first",
            field="metadata",
            chunk_id=node.node_id,
        ) from None
    if isinstance(node, TextNode):  # other classes hold more than a text
        del dumped["text"]
    dumped["metadata"] = converted.metadata
    return {**converted.metadata, _NODE_CONTENT: json.dumps(dumped, ensure_ascii=False)}


def _with_json_metadata(node: BaseNode, item: str, item_id: str) -> BaseNode:
    """Return a copy of a node with JSON for its metadata.

    Converts the metadata in relationships, too, because splitters copy them from the document, and
    the metadata of a node that an `IndexNode` refers to.

    Raises:
        InvalidInputError: A value has no JSON form. The error names `item` and the metadata key.
    """

    def convert(related: RelatedNodeInfo) -> RelatedNodeInfo:
        metadata = json_metadata(related.metadata, f"{item}, in a relationship", item_id)
        return related.model_copy(update={"metadata": metadata})

    update: dict[str, Any] = {
        "metadata": json_metadata(node.metadata, item, item_id),
        "relationships": {
            kind: [convert(info) for info in related]
            if isinstance(related, list)
            else convert(related)
            for kind, related in node.relationships.items()
        },
    }
    if isinstance(node, IndexNode) and isinstance(node.obj, BaseNode):
        update["obj"] = _with_json_metadata(node.obj, f"{item}, in obj", item_id)
    return node.model_copy(update=update)


def node_of(chunk: Chunk) -> BaseNode:
    """Convert a chunk back to the node that was written, without its embedding."""
    metadata = dict(chunk.metadata)
    node_content = metadata.pop(_NODE_CONTENT, None)
    if node_content is None:
        return _text_node(chunk)
    node = json.loads(node_content)
    node.setdefault("text", chunk.content)
    node["metadata"] = _current_metadata(node["metadata"], metadata)
    default = Node if "text_resource" in node else TextNode
    return _CLASSES.get(node["class_name"], default).from_dict(node)


def _text_node(chunk: Chunk) -> TextNode:
    """Convert a chunk that was not written by this adapter."""
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=chunk.document_id)}
    return TextNode(
        id_=chunk.id,
        text=chunk.content,
        metadata=chunk.metadata,
        relationships={} if chunk.document_id == chunk.id else source,
    )


def _current_metadata(written: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata as written, updated with later changes."""
    kept = {
        key: value if json_token(canonical_json(value)) == json_token(stored[key]) else stored[key]
        for key, value in written.items()
        if key in stored
    }
    return kept | {key: value for key, value in stored.items() if key not in kept}
