"""Between records and rows: what an upsert binds, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cenote.models import Chunk, RetrievalResult
from cenote.sqltypes import to_wire
from cenote.types import ColumnType
from cenote.validation import Batch

_parsed = json.JSONDecoder().raw_decode
"""Takes what jsonb prints, which has no blanks around it for `json.loads` to look for."""

CHUNK_FIELDS = ("id", "document_id", "content", "position", "metadata", "content_hash")
"""The columns of a chunk, as a query gives them."""

UPSERT_ROWS = 1000
"""The most rows that one INSERT of an upsert writes."""

UPSERT_BYTES = 8 * 2**20
"""About the most that one such INSERT carries, unless a single chunk is larger."""


def parts(batch: Batch) -> Iterator[Batch]:
    """The batch in pieces of a size that neither server nor driver minds."""
    start = size = 0
    for index, chunk in enumerate(batch.chunks):
        row = len(chunk.content) + len(batch.metadata_texts[index]) + batch.embeddings[index].nbytes
        if index > start and (size + row > UPSERT_BYTES or index - start == UPSERT_ROWS):
            yield batch[start:index]
            start, size = index, 0
        size += row
    yield batch[start:]


def parameters(batch: Batch, column_type: ColumnType) -> dict[str, Any]:
    """What the upsert statement binds: a list for each column."""
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


def chunk(fields: Sequence[Any]) -> Chunk:
    """A chunk of what `CHUNK_FIELDS` names, the metadata as text."""
    chunk_id, document_id, content, position, metadata, content_hash = fields
    return Chunk(
        id=chunk_id,
        document_id=document_id,
        content=content,
        position=position,
        metadata=_parsed(metadata)[0],
        content_hash=content_hash,
    )


def result(fields: Sequence[Any], retriever: str = "vector") -> RetrievalResult:
    """What a search found: a chunk's fields, and at last the score."""
    own = fields[: len(CHUNK_FIELDS)]
    return RetrievalResult(chunk=chunk(own), score=fields[-1], retriever=retriever)
