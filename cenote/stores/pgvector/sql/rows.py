"""Conversion between records and rows: parameters of an upsert, and chunks from rows."""

from __future__ import annotations

import json
import json.scanner
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from cenote.models import Chunk, RetrievalResult
from cenote.postgres.vector import to_wire
from cenote.responsive import Pauses
from cenote.types import ColumnType
from cenote.validation.batches import Batch

_parse: Any = json.scanner.make_scanner(json.JSONDecoder())  # type: ignore[arg-type]
"""Parse the JSON text that Postgres prints. It has no blanks at the ends, which `json.loads` would
look for."""

CHUNK_FIELDS = ("id", "document_id", "content", "position", "metadata", "content_hash")
"""Columns of a chunk, in the order in which queries return them."""

PARTITION = len(CHUNK_FIELDS)
"""Index of the partition's oid in the rows of `SearchStatements.search` with ``locate=True``."""

BY_ANN = -2
"""Index of the column of a search that is true if the ANN index found the rows."""

_BLOCK_ROWS = 50
"""Number of chunks or results that are created at a time. Larger blocks are hardly faster."""

_ROW_BYTES = 500
"""Approximate size in memory of a row without its content and metadata."""

ATTACHED, PRESENT, FOUND = -5, -4, -3
"""Indexes of the proof in the rows of a `PartitionSearch`."""


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


def to_chunks(rows: Sequence[Sequence[Any]]) -> list[Chunk]:
    """Return chunks from rows with the values of `CHUNK_FIELDS`, with the metadata as JSON text.

    The metadata of all rows is parsed at once, and each field is set in all chunks at once. For
    50 rows, this takes 0.7 of the time of a loop over the rows.
    """
    if not rows:
        return []
    ids, document_ids, contents, positions, texts, content_hashes = zip(*rows, strict=True)
    metadata = _parse("[" + ",".join(texts) + "]", 0)[0]
    chunks: list[Chunk] = [_new(Chunk) for _ in rows]
    for set_field, values in (
        (_set_id, ids),
        (_set_document_id, document_ids),
        (_set_content, contents),
        (_set_position, positions),
        (_set_metadata, metadata),
        (_set_content_hash, content_hashes),
    ):
        deque(map(set_field, chunks, values), maxlen=0)  # runs the map without a loop in Python
    if not all(content_hashes):  # written by other programs
        for chunk in chunks:
            if not chunk.content_hash:
                chunk.__post_init__()
    return chunks


async def chunks_from(rows: Sequence[Sequence[Any]]) -> list[Chunk]:
    """Return chunks as :func:`to_chunks` does, and let other tasks run in between."""
    chunks: list[Chunk] = []
    pauses = Pauses()
    for start in range(0, len(rows), _BLOCK_ROWS):
        chunks += to_chunks(rows[start : start + _BLOCK_ROWS])
        await pauses()
    return chunks


async def results_from(
    rows: Sequence[Sequence[Any]], retriever: str = "vector"
) -> list[RetrievalResult]:
    """Return results as :func:`to_results` does, and let other tasks run in between."""
    if len(rows) <= _BLOCK_ROWS:
        return to_results(rows, retriever)
    results: list[RetrievalResult] = []
    pauses = Pauses()
    for start in range(0, len(rows), _BLOCK_ROWS):
        results += to_results(rows[start : start + _BLOCK_ROWS], retriever)
        await pauses()
    return results


def approximate_bytes(rows: Sequence[Sequence[Any]]) -> int:
    """Return the approximate size in memory of rows with the values of `CHUNK_FIELDS`."""
    return sum([len(row[2]) + len(row[4]) for row in rows]) + _ROW_BYTES * len(rows)


def to_results(rows: Iterable[Sequence[Any]], retriever: str = "vector") -> list[RetrievalResult]:
    """Return results from the rows of a search: the chunk's fields first, the score last."""
    results = []
    for chunk_id, document_id, content, position, metadata, content_hash, *others in rows:
        result = _new(RetrievalResult)
        chunk = _chunk(chunk_id, document_id, content, position, metadata, content_hash)
        _set_result_chunk(result, chunk)
        _set_score(result, others[-1])
        _set_retriever(result, retriever)
        results.append(result)
    return results


# The constructor of a frozen dataclass takes twice as long as setting its slots, and a search
# creates 20 objects.
_new: Any = object.__new__
_set_id, _set_document_id, _set_content, _set_position, _set_metadata, _set_content_hash = (
    getattr(Chunk, name).__set__ for name in CHUNK_FIELDS
)
_set_result_chunk, _set_score, _set_retriever = (
    getattr(RetrievalResult, name).__set__ for name in ("chunk", "score", "retriever")
)


def _chunk(
    chunk_id: str,
    document_id: str,
    content: str,
    position: int,
    metadata: str,
    content_hash: str,
) -> Chunk:
    chunk: Chunk = _new(Chunk)
    _set_id(chunk, chunk_id)
    _set_document_id(chunk, document_id)
    _set_content(chunk, content)
    _set_position(chunk, position)
    _set_metadata(chunk, _parse(metadata, 0)[0])
    _set_content_hash(chunk, content_hash)
    if not content_hash:  # written by other programs
        chunk.__post_init__()
    return chunk
