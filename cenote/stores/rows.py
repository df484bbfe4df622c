"""Between records and rows: what an upsert binds, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row

from cenote.models import Chunk
from cenote.sqltypes import to_wire
from cenote.types import ColumnType
from cenote.validation import Batch

UPSERT_ROWS = 1000
"""The most rows that one INSERT of an upsert writes."""

UPSERT_BYTES = 8 * 2**20
"""About the most that one such INSERT carries, unless a single chunk is larger."""


def parts(batch: Batch) -> Iterator[Batch]:
    """The batch in pieces of a size that neither server nor driver minds."""
    start = size = 0
    for index, chunk in enumerate(batch.chunks):
        row = len(chunk.content) + len(batch.metadata[index]) + batch.embeddings[index].nbytes
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
        "metadata_list": batch.metadata,
        "content_hash_list": [chunk.content_hash for chunk in chunks],
        "embedding_list": to_wire(batch.embeddings, column_type),
        "embedding_model_list": batch.models,
    }


def chunk(row: Row[Any]) -> Chunk:
    """A chunk of a row of its columns, the metadata as text."""
    return Chunk(
        id=row.id,
        document_id=row.document_id,
        content=row.content,
        position=row.position,
        metadata=json.loads(row.metadata),
        content_hash=row.content_hash,
    )
