"""Check batches of chunks before any of them is written."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from cenote.errors import InvalidInputError
from cenote.models import Chunk, EmbeddedChunk
from cenote.types import ColumnType, Float32Array, Metric
from cenote.validation.arguments import (
    MAX_INT64,
    MAX_KEY_BYTES,
    as_list,
    check_document_id,
    check_key,
    check_text,
    is_integer,
    safe_repr,
    text_error,
)
from cenote.validation.json import (
    MAX_TEXT_BYTES,
    NotJSONError,
    canonical_object,
    longer_than,
    unstorable,
)
from cenote.validation.vectors import checked_vectors

UPSERT_ROWS = 1000
"""Maximum number of rows in one INSERT of an upsert."""

UPSERT_BYTES = 8 * 2**20
"""Approximate maximum size of one INSERT of an upsert, unless a single chunk is larger."""

# -- batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """A validated batch: one entry per id, in ascending order of id.

    Attributes:
        chunks: The chunks.
        metadata: Metadata of each chunk, as it comes back from jsonb.
        metadata_texts: The same metadata as JSON text.
        embeddings: The embeddings as float32, shape (len(chunks), dimensions).
        models: Embedding model of each chunk.
        columns: Values of each chunk for the user model's own columns.
    """

    chunks: list[Chunk]
    metadata: list[dict[str, Any]]
    metadata_texts: list[str]
    embeddings: Float32Array
    models: list[str]
    columns: list[Mapping[str, Any]]

    def __getitem__(self, part: slice) -> Batch:
        return Batch(
            self.chunks[part],
            self.metadata[part],
            self.metadata_texts[part],
            self.embeddings[part],
            self.models[part],
            self.columns[part],
        )


def check_batch(
    embedded_chunks: Sequence[EmbeddedChunk],
    dimensions: int,
    column_type: ColumnType,
    embedding_model: str | None,
    metric: Metric = "cosine",
    *,
    half_index: bool = False,
) -> Batch:
    """Check a whole batch. If several chunks have the same id, keep the last of them.

    `metric` and `half_index` are described at `checked_vectors`.
    """
    items = as_list(
        embedded_chunks,
        "embedded_chunks must be a list of EmbeddedChunk",
        field="embedded_chunks",
        but_not=(str, EmbeddedChunk),
    )
    # Every chunk is checked, even if a later chunk with the same id replaces it.
    metadata = [_check_chunk(item, embedding_model) for item in items]
    embeddings = checked_vectors(
        [item.embedding for item in items],
        [item.chunk.id for item in items],
        dimensions,
        column_type,
        metric,
        half_index=half_index,
    )
    last = {item.chunk.id: index for index, item in enumerate(items)}
    order = [last[chunk_id] for chunk_id in sorted(last)]
    return Batch(
        chunks=[_plain(items[index].chunk) for index in order],
        metadata=[metadata[index][0] for index in order],
        metadata_texts=[metadata[index][1] for index in order],
        embeddings=embeddings[order],
        models=[items[index].embedding_model for index in order],
        columns=[items[index].columns for index in order],
    )


def _check_chunk(item: EmbeddedChunk, embedding_model: str | None) -> tuple[dict[str, Any], str]:
    """Check everything in a chunk except its vector.

    Returns:
        A pair: the metadata as it comes back from jsonb, and its JSON text.
    """
    if not isinstance(item, EmbeddedChunk) or not isinstance(item.chunk, Chunk):
        raise InvalidInputError(
            f"embedded_chunks holds an object of type {type(item).__name__}, not an EmbeddedChunk",
            field="embedded_chunks",
        )
    chunk = item.chunk
    if not _surely_storable(item):
        _check_texts(item)
    if embedding_model is not None and item.embedding_model != embedding_model:
        raise InvalidInputError(
            f"chunk {safe_repr(chunk.id)} was embedded by {safe_repr(item.embedding_model)}; this "
            f"store accepts only {safe_repr(embedding_model)}",
            field="embedding_model",
            chunk_id=chunk.id,
        )
    # The tests by exact type are fast, and suffice for most chunks.
    if type(item.columns) is not dict and not isinstance(item.columns, Mapping):
        raise InvalidInputError(
            f"chunk {safe_repr(chunk.id)}: columns must be a mapping of attribute names to values, "
            f"not {type(item.columns).__name__}",
            field="columns",
            chunk_id=chunk.id,
        )
    position = chunk.position
    if not (type(position) is int and 0 <= position <= MAX_INT64) and not is_integer(
        position, -MAX_INT64 - 1, MAX_INT64
    ):
        raise InvalidInputError(
            f"chunk {safe_repr(chunk.id)}: position must be a 64-bit integer",
            field="position",
            chunk_id=chunk.id,
        )
    return _checked_metadata(chunk.id, chunk.metadata)


def _surely_storable(item: EmbeddedChunk) -> bool:
    """Test all texts of a chunk at once, which is fast and suffices for most chunks.

    True means that all texts are storable. False means that each text must be checked.
    """
    chunk = item.chunk
    try:
        texts = "".join(
            (chunk.id, chunk.document_id, chunk.content, chunk.content_hash, item.embedding_model)
        )
    except TypeError:
        return False
    key_characters = len(chunk.id) + len(chunk.document_id)
    return (  # a character has at most 4 bytes
        key_characters <= MAX_KEY_BYTES // 4
        and len(texts) <= MAX_TEXT_BYTES // 4
        and not unstorable(texts)
    )


def _check_texts(item: EmbeddedChunk) -> None:
    chunk = item.chunk
    check_key(chunk.id, field="id")
    check_key(chunk.document_id, field="document_id", chunk_id=chunk.id)
    check_text(chunk.content, field="content", chunk_id=chunk.id)
    if longer_than(chunk.content, MAX_TEXT_BYTES):
        raise text_error(f"is longer than {MAX_TEXT_BYTES:,} bytes", "content", chunk.id)
    check_text(chunk.content_hash, field="content_hash", chunk_id=chunk.id)
    check_text(item.embedding_model, field="embedding_model", chunk_id=chunk.id)


def _checked_metadata(chunk_id: str, metadata: Any) -> tuple[dict[str, Any], str]:
    try:
        if not isinstance(metadata, dict):
            raise NotJSONError(f"is of type {type(metadata).__name__}, not dict")
        return canonical_object(metadata)
    except NotJSONError as error:
        raise InvalidInputError(
            f"chunk {safe_repr(chunk_id)}: metadata {error}", field="metadata", chunk_id=chunk_id
        ) from None


def _plain(chunk: Chunk) -> Chunk:
    """Return a chunk whose texts are plain `str` and whose position is a plain `int`.

    The caller's values may be of subclasses, for example members of enumerations.
    """
    texts = (chunk.id, chunk.document_id, chunk.content, chunk.content_hash)
    if all(type(text) is str for text in texts) and type(chunk.position) is int:
        return chunk
    chunk_id, document_id, content, content_hash = (str.__str__(text) for text in texts)
    return replace(
        chunk,
        id=chunk_id,
        document_id=document_id,
        content=content,
        position=int(chunk.position),
        content_hash=content_hash,
    )


def split_batch(batch: Batch) -> Iterator[Batch]:
    """Split a batch into parts of at most `UPSERT_ROWS` rows and about `UPSERT_BYTES`."""
    start = size = 0
    for index, chunk in enumerate(batch.chunks):
        row = len(chunk.content) + len(batch.metadata_texts[index]) + batch.embeddings[index].nbytes
        if index > start and (size + row > UPSERT_BYTES or index - start == UPSERT_ROWS):
            yield batch[start:index]
            start, size = index, 0
        size += row
    yield batch[start:]


def ascending_steps(batch: Batch, other_ids: Iterable[str]) -> Iterator[Batch | list[str]]:
    """Split a batch at other ids, in ascending order of id.

    Args:
        batch: Chunks to write.
        other_ids: Ids of other rows, in any order; none of them is an id of the batch.

    Yields:
        Parts of the batch (see :func:`split_batch`), and between them lists of the other ids.
    """
    ids = [chunk.id for chunk in batch.chunks]
    start = 0
    for end, group in groupby(sorted(other_ids), key=partial(bisect_left, ids)):
        if end > start:
            yield from split_batch(batch[start:end])
        yield list(group)
        start = end
    if start < len(ids):
        yield from split_batch(batch[start:])


# -- documents -------------------------------------------------------------------------------------


def check_chunks(chunks: Any) -> list[Chunk]:
    """Return chunks as a list, with their ids and content hashes checked."""
    checked = as_list(chunks, "chunks must be a list of Chunk", field="chunks")
    for chunk in checked:
        if not isinstance(chunk, Chunk):
            raise InvalidInputError(
                f"chunks holds an object of type {type(chunk).__name__}, not a Chunk",
                field="chunks",
            )
        check_key(chunk.id, field="id")
        check_text(chunk.content_hash, field="content_hash", chunk_id=chunk.id)
    return checked


def check_document(document_id: str, chunks: Any) -> tuple[list[EmbeddedChunk], list[Chunk]]:
    """Check the chunks of a document, in which each id may appear once.

    Returns:
        The chunks with an embedding, and the chunks without.
    """
    check_document_id(document_id)
    items = as_list(chunks, "chunks must be a list of EmbeddedChunk or Chunk", field="chunks")
    embedded: list[EmbeddedChunk] = []
    unembedded: list[Chunk] = []
    seen: set[str] = set()
    for item in items:
        chunk = item.chunk if isinstance(item, EmbeddedChunk) else item
        if not isinstance(chunk, Chunk):
            raise InvalidInputError(
                f"chunks holds an object of type {type(chunk).__name__}, not an EmbeddedChunk or "
                "a Chunk",
                field="chunks",
            )
        check_key(chunk.id, field="id")
        check_text(chunk.document_id, field="document_id", chunk_id=chunk.id)
        if chunk.document_id != document_id:
            raise InvalidInputError(
                f"chunk {safe_repr(chunk.id)} belongs to document "
                f"{safe_repr(chunk.document_id)}, not {safe_repr(document_id)}",
                field="document_id",
                chunk_id=chunk.id,
            )
        if chunk.id in seen:
            raise InvalidInputError(
                f"chunk {safe_repr(chunk.id)} appears twice in the document",
                field="chunks",
                chunk_id=chunk.id,
            )
        seen.add(chunk.id)
        if isinstance(item, EmbeddedChunk):
            embedded.append(item)
        else:
            unembedded.append(chunk)
    return embedded, unembedded


def batch_without_embeddings(chunks: Sequence[Chunk], dimensions: int) -> Batch:
    """Check chunks whose embeddings are already stored, and return them as a batch.

    The batch has zero vectors and no embedding model.
    """
    zero = np.zeros(dimensions, dtype=np.float32)
    items = [EmbeddedChunk(chunk=chunk, embedding=zero, embedding_model="") for chunk in chunks]
    return check_batch(items, dimensions, "vector", None)


def is_embedded(
    chunk: Chunk, stored: Mapping[str, tuple[str, str]], embedding_model: str | None
) -> bool:
    """Return True if a chunk is stored with the same content, embedded by the store's model.

    Args:
        chunk: The chunk.
        stored: Stored content hashes and embedding models by id.
        embedding_model: Embedding model of the store; if None, any model is accepted.
    """
    content_hash, model = stored.get(chunk.id, (None, None))
    return content_hash == chunk.content_hash and embedding_model in (None, model)


def reject_unembedded(
    chunks: Sequence[Chunk],
    stored: Mapping[str, tuple[str, str]],
    embedding_model: str | None,
) -> None:
    """Raise an error for the first chunk that is not stored with the same content and model.

    Args:
        chunks: Chunks without embeddings.
        stored, embedding_model: As for :func:`is_embedded`.

    Raises:
        InvalidInputError: A chunk has to be embedded.
    """
    for chunk in chunks:
        if not is_embedded(chunk, stored, embedding_model):
            raise InvalidInputError(
                f"chunk {safe_repr(chunk.id)} is not stored with this content and embedding model: "
                "pass it as an EmbeddedChunk",
                field="embedding",
                chunk_id=chunk.id,
            )


def check_metadata_by_id(metadata: Any) -> dict[str, tuple[dict[str, Any], str]]:
    """Check metadata by chunk id, and return it in ascending order of id.

    Returns:
        A pair for each id: the metadata as it comes back from jsonb, and its JSON text.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"metadata must be a mapping of chunk ids to metadata, not {type(metadata).__name__}",
            field="metadata",
        )
    for chunk_id in metadata:
        check_key(chunk_id, field="chunk_id")
    return {
        chunk_id: _checked_metadata(chunk_id, metadata[chunk_id]) for chunk_id in sorted(metadata)
    }
