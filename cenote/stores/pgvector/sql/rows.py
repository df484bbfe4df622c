"""Conversion between records and rows: parameters of an upsert, and chunks from rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cenote.models import Chunk, RetrievalResult
from cenote.postgres.vector import to_wire
from cenote.types import ColumnType
from cenote.validation.batches import Batch

_parse = json.JSONDecoder().raw_decode
"""Parse the JSON text that Postgres prints. It has no blanks at the ends, which `json.loads` would
look for."""

CHUNK_FIELDS = ("id", "document_id", "content", "position", "metadata", "content_hash")
"""Columns of a chunk, in the order in which queries return them."""

BY_ANN = -2
"""Index of the column of a search that is true if the ANN index found the rows."""


def parameters(batch: Batch, column_type: ColumnType) -> dict[str, Any]:
    """Return the parameters of the upsert statement: one list per column."""
    chunks = batch.chunks
    return {
        "id_list": [chunk.id for chunk in chunks],
        "document_id_list": [chunk.document_id for chunk in chunks],
        "content_list": [chunk.content for chunk in chunks],
        "position_list": [chunk.position for chunk in chunks],
        "metadata_list": batch.metadata_texts,
        "content_hash_list": [chunk.content_hash for chunk in chunks],
        "embedding_list": to_wire(batch.embeddings, column_type),
        "embedding_model_list": batch.models,
    }


def to_chunk(fields: Sequence[Any]) -> Chunk:
    """Return a chunk from the values of `CHUNK_FIELDS`, with the metadata as JSON text."""
    chunk_id, document_id, content, position, metadata, content_hash = fields
    return Chunk(
        id=chunk_id,
        document_id=document_id,
        content=content,
        position=position,
        metadata=_parse(metadata)[0],
        content_hash=content_hash,
    )


def to_result(fields: Sequence[Any], retriever: str = "vector") -> RetrievalResult:
    """Return a result from the row of a search: the chunk's fields first, the score last."""
    return RetrievalResult(
        chunk=to_chunk(fields[: len(CHUNK_FIELDS)]), score=fields[-1], retriever=retriever
    )
