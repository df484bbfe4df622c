"""What both stores check before they touch anything, so that both refuse the same input alike.

Messages name the chunk or the argument and the cure; they never quote content, metadata or vectors.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from cenote.errors import ConfigurationError, DimensionMismatchError, InvalidInputError
from cenote.jsonvalues import (
    MAX_TEXT_BYTES,
    NotJSONError,
    canonical_object,
    longer_than,
    unstorable,
)
from cenote.models import Chunk, EmbeddedChunk
from cenote.types import ColumnType, Float32Array, Vector

MAX_KEY_BYTES = 1024
"""UTF-8 bytes in a namespace, id or document id: a btree entry (2,704 bytes) must hold two."""

MAX_DIMENSIONS = 16_000
"""The most that pgvector can store; what it can index is less."""

MAX_EF_SEARCH = 1000
"""The most that pgvector takes for ``hnsw.ef_search``."""

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1

_FLOAT32 = np.finfo(np.float32)
_OUT_OF_RANGE = "is too small or too large: its squared norm leaves the range of a 32-bit float"
_HALF_MAX = float(np.finfo(np.float16).max)

_shortened = reprlib.Repr()
_shortened.maxstring = 120


def shown(value: Any) -> str:
    """A value of the caller's for a message: short, and never failing."""
    if isinstance(value, str) or value is None or isinstance(value, bool | float):
        return _shortened.repr(value)
    if isinstance(value, int) and -(10**20) < value < 10**20:
        return _shortened.repr(value)
    return f"one of type {type(value).__name__}"


# -- numbers ---------------------------------------------------------------------------------------


def is_integer(value: Any, least: int | None = None, most: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an `int` in a range. Booleans and numpy's integers are not."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def is_number(
    value: Any, least: float | None = None, most: float | None = None
) -> TypeGuard[int | float]:
    """Return whether a value is an `int` or a `float` in a range. Booleans are not."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def _integer_error(value: Any, least: int, most: int | None, hint: str | None) -> str | None:
    """Return what is wrong with a value that is not an integer in a range; None if it is one."""
    if is_integer(value, least, most):
        return None
    accepted = f"of {least:,} or more" if most is None else f"from {least:,} to {most:,}"
    if hint is not None:
        accepted += f" ({hint})"
    return f"must be an integer {accepted}, not {shown(value)}"


def check_integer_argument(value: Any, *, field: str, least: int, most: int | None = None) -> None:
    """Check that an argument of a call is an integer in a range.

    Raises:
        InvalidInputError: It is not.
    """
    if error := _integer_error(value, least, most, None):
        raise InvalidInputError(f"{field} {error}", field=field)


def check_integer_setting(
    value: Any, *, setting: str, least: int, most: int | None = None, hint: str | None = None
) -> None:
    """Check that a setting is an integer in a range.

    Args:
        value: The setting's value.
        setting: Name of the setting.
        least: Smallest accepted value.
        most: Largest accepted value; unlimited if None.
        hint: Advice for the error message.

    Raises:
        ConfigurationError: It is not.
    """
    if error := _integer_error(value, least, most, hint):
        raise ConfigurationError(f"{setting} {error}", setting=setting)


# -- arguments -------------------------------------------------------------------------------------


def check_namespace(namespace: str) -> None:
    """Refuse a namespace that is empty, too long or no storable text."""
    _check_key(namespace, field="namespace")
    if not namespace:
        raise InvalidInputError("namespace is empty; name the tenant", field="namespace")


def check_limit(limit: int) -> None:
    """Refuse a limit that is no integer of 1 or more."""
    check_integer_argument(limit, field="limit", least=1)


def check_ef_search(ef_search: int | None) -> None:
    """Refuse the ``ef_search`` of a call that pgvector would refuse."""
    if ef_search is not None:
        check_integer_argument(ef_search, field="ef_search", least=1, most=MAX_EF_SEARCH)


def listed(values: Any, rule: str, *, field: str, but_not: tuple[type, ...] = (str,)) -> list[Any]:
    """The elements of a list, or of another iterable.

    Args:
        values: the list.
        rule: what it must be, for the message.
        field: the argument.
        but_not: what can be iterated over and is surely a mistake.
    """
    if not isinstance(values, but_not) and is_iterable(values):
        return list(values)
    raise InvalidInputError(f"{rule}, not {type(values).__name__}", field=field)


def is_iterable(value: Any) -> bool:
    """Whether a value can be iterated over; an array without dimensions only looks so."""
    if not isinstance(value, Iterable):
        return False
    try:
        iter(value)
    except TypeError:
        return False
    return True


def check_ids(chunk_ids: Sequence[str]) -> list[str]:
    """The ids, sorted and once each; refuses a bare string and ids that cannot be stored."""
    return sorted(check_ids_in_order(chunk_ids))


def check_ids_in_order(chunk_ids: Sequence[str]) -> list[str]:
    """The same, in the order in which they were given."""
    ids = listed(chunk_ids, "chunk_ids must be a list of ids", field="chunk_ids")
    for chunk_id in ids:
        _check_key(chunk_id, field="chunk_ids")
    return list(dict.fromkeys(ids))


def check_min_score(min_score: float | None) -> None:
    """Refuse a least score that is no number from -1 to 1."""
    if min_score is not None and not is_number(min_score, -1, 1):
        raise InvalidInputError(
            f"min_score must be a number from -1 to 1, not {shown(min_score)}", field="min_score"
        )


def check_per_document(per_document: int | None) -> None:
    """Refuse a number of chunks of a document that is no integer of 1 or more."""
    if per_document is not None:
        check_integer_argument(per_document, field="per_document", least=1, most=_MAX_INT32)


def check_diversity(diversity: float, candidates: int | None, limit: int) -> int:
    """The number of candidates, by default four times the limit; refuses what cannot work."""
    check_limit(limit)
    if not is_number(diversity, 0, 1):
        raise InvalidInputError(
            f"diversity must be a number from 0 to 1, not {shown(diversity)}", field="diversity"
        )
    if candidates is None:
        return 4 * limit
    if not is_integer(candidates, limit):
        raise InvalidInputError(
            f"candidates must be an integer of at least the limit, not {shown(candidates)}",
            field="candidates",
        )
    return candidates


def check_fusion(vector_weight: float, text_weight: float, depth: int) -> None:
    """Refuse weights that are no numbers from 0 to 1e9, or both 0, and a depth below 1."""
    weights = {"vector_weight": vector_weight, "text_weight": text_weight}
    for name, weight in weights.items():
        if not (is_number(weight, 0, 0) or is_number(weight, 1e-9, 1e9)):
            raise InvalidInputError(
                f"{name} must be 0, or a number from 1e-9 to 1e9, not {shown(weight)}", field=name
            )
    if not vector_weight and not text_weight:
        raise InvalidInputError(
            "vector_weight and text_weight are both 0: one must count", field="text_weight"
        )
    check_integer_argument(depth, field="depth", least=1)


def check_switch(value: bool, *, field: str) -> None:
    """Refuse what is neither True nor False: of an array, say, neither can be told."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{field} must be True or False, not {shown(value)}", field=field)


def check_embedding_model(embedding_model: str | None) -> None:
    """Refuse to insist on a model of which no chunk can be."""
    if embedding_model is None:
        return
    if not isinstance(embedding_model, str) or unstorable(embedding_model):
        raise ConfigurationError(
            "embedding_model must be the name of a model, which can be stored, not "
            f"{shown(embedding_model)}",
            setting="embedding_model",
        )


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    """Refuse weights of rankings that are no numbers of 0 or more, or not as many, or all 0."""
    if weights is None:
        return
    if not isinstance(weights, Sequence) or len(weights) != count:
        raise ConfigurationError(
            f"weights must be a list of {count}, one for each retriever", setting="weights"
        )
    if not all(is_number(weight, 0, 1e9) for weight in weights) or not any(weights):
        raise ConfigurationError(
            "weights must be numbers from 0 to 1e9, of which one is more than 0", setting="weights"
        )


_LONGEST_TIMEOUT = 1e9
"""Seconds, above which the clock of an event loop has nothing more to say."""


def check_operation_timeout(seconds: float | None) -> None:
    """Refuse a time limit that is no number of seconds above 0."""
    if seconds is not None and not (is_number(seconds, 0, _LONGEST_TIMEOUT) and seconds):
        raise ConfigurationError(
            "operation_timeout must be a number of seconds above 0, and at most 1e9, not "
            f"{shown(seconds)}",
            setting="operation_timeout",
        )


def check_full_text(languages: Sequence[str]) -> None:
    """Refuse to search by words in a store without full text."""
    if not languages:
        raise ConfigurationError(
            "this store was made without full text; make it with the text_search that its table "
            "has, or is to have, such as 'english'",
            setting="text_search",
        )


def check_chunk_id(chunk_id: str) -> None:
    """Refuse an id that cannot be stored."""
    _check_key(chunk_id, field="chunk_id")


def check_document_id(document_id: str) -> None:
    """Refuse a document id that cannot be stored."""
    _check_key(document_id, field="document_id")


def check_neighbours(before: int, after: int) -> None:
    """Refuse numbers of neighbours that are no integers of 0 or more."""
    check_integer_argument(before, field="before", least=0, most=_MAX_INT32)
    check_integer_argument(after, field="after", least=0, most=_MAX_INT32)


def check_dimensions(dimensions: int) -> None:
    """Refuse a number of dimensions that no vector can have."""
    check_integer_setting(dimensions, setting="dimensions", least=1, most=MAX_DIMENSIONS)


def check_column_type(column_type: ColumnType) -> None:
    """Refuse what is no column type."""
    if not isinstance(column_type, str) or column_type not in get_args(ColumnType):
        raise ConfigurationError(
            f"column_type must be 'vector' or 'halfvec', not {shown(column_type)}",
            setting="column_type",
        )


def check_query_vector(vector: Vector, dimensions: int, column_type: ColumnType) -> Float32Array:
    """The query as float32, shape (dimensions,)."""
    query: Float32Array = _checked_vectors([vector], [None], dimensions, column_type)[0]
    return query


def check_query_vectors(
    vectors: Sequence[Vector], dimensions: int, column_type: ColumnType
) -> Float32Array:
    """The queries as float32, shape (n, dimensions)."""
    queries = listed(
        vectors,
        "query_vectors must be a list of vectors",
        field="query_vector",
        but_not=(str, bytes, Mapping),
    )
    return _checked_vectors(queries, [None] * len(queries), dimensions, column_type)


# -- batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """A validated batch: one entry per id, in ascending order of id.

    Attributes:
        chunks: the chunks.
        metadata: each chunk's metadata, canonical.
        metadata_texts: the same as JSON.
        embeddings: float32, shape (len(chunks), dimensions).
        models: each chunk's embedding model.
        columns: each chunk's values for a host's own columns.
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
) -> Batch:
    """Validate a whole batch; of an id that appears twice the last one stays."""
    items = listed(
        embedded_chunks,
        "embedded_chunks must be a list of EmbeddedChunk",
        field="embedded_chunks",
        but_not=(str, EmbeddedChunk),
    )
    # Every chunk is checked, also one that a later one of the same id replaces.
    metadata = [_check_chunk(item, embedding_model) for item in items]
    embeddings = _checked_vectors(
        [item.embedding for item in items],
        [item.chunk.id for item in items],
        dimensions,
        column_type,
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
    """Check all of a chunk but its vector; returns its metadata, canonical and as JSON text."""
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
            f"chunk {shown(chunk.id)} was embedded by {shown(item.embedding_model)}; this store "
            f"takes {shown(embedding_model)} only",
            field="embedding_model",
            chunk_id=chunk.id,
        )
    if not isinstance(item.columns, Mapping):
        raise InvalidInputError(
            f"chunk {shown(chunk.id)}: columns must be a mapping of attribute names to values, "
            f"not {type(item.columns).__name__}",
            field="columns",
            chunk_id=chunk.id,
        )
    if not is_integer(chunk.position, -_MAX_INT64 - 1, _MAX_INT64):
        raise InvalidInputError(
            f"chunk {shown(chunk.id)}: position must be a 64-bit integer",
            field="position",
            chunk_id=chunk.id,
        )
    return _checked_metadata(chunk.id, chunk.metadata)


def _surely_storable(item: EmbeddedChunk) -> bool:
    """Whether all texts can be stored, as a glance at them together tells of most chunks."""
    chunk = item.chunk
    try:
        texts = "".join(
            (chunk.id, chunk.document_id, chunk.content, chunk.content_hash, item.embedding_model)
        )
    except TypeError:
        return False
    keys = len(chunk.id) + len(chunk.document_id)
    return (
        keys <= MAX_KEY_BYTES // 4 and len(texts) <= MAX_TEXT_BYTES // 4 and not unstorable(texts)
    )


def _check_texts(item: EmbeddedChunk) -> None:
    chunk = item.chunk
    _check_key(chunk.id, field="id")
    _check_key(chunk.document_id, field="document_id", chunk_id=chunk.id)
    check_text(chunk.content, field="content", chunk_id=chunk.id)
    if longer_than(chunk.content, MAX_TEXT_BYTES):
        raise _text_error(f"is longer than {MAX_TEXT_BYTES:,} bytes", "content", chunk.id)
    check_text(chunk.content_hash, field="content_hash", chunk_id=chunk.id)
    check_text(item.embedding_model, field="embedding_model", chunk_id=chunk.id)


def _checked_metadata(chunk_id: str, metadata: Any) -> tuple[dict[str, Any], str]:
    try:
        if not isinstance(metadata, dict):
            raise NotJSONError(f"is of type {type(metadata).__name__}, not dict")
        return canonical_object(metadata)
    except NotJSONError as error:
        raise InvalidInputError(
            f"chunk {shown(chunk_id)}: metadata {error}", field="metadata", chunk_id=chunk_id
        ) from None


def _plain(chunk: Chunk) -> Chunk:
    """The chunk with plain values where it has members of enumerations and the like."""
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


# -- documents -------------------------------------------------------------------------------------


def check_chunks(chunks: Any) -> list[Chunk]:
    """A list of chunks, checked by their ids and content hashes."""
    checked = listed(chunks, "chunks must be a list of Chunk", field="chunks")
    for chunk in checked:
        if not isinstance(chunk, Chunk):
            raise InvalidInputError(
                f"chunks holds an object of type {type(chunk).__name__}, not a Chunk",
                field="chunks",
            )
        _check_key(chunk.id, field="id")
        check_text(chunk.content_hash, field="content_hash", chunk_id=chunk.id)
    return checked


def check_document(document_id: str, chunks: Any) -> tuple[list[EmbeddedChunk], list[Chunk]]:
    """A document's chunks, those with an embedding and those without; each id once."""
    check_document_id(document_id)
    items = listed(chunks, "chunks must be a list of EmbeddedChunk or Chunk", field="chunks")
    embedded: list[EmbeddedChunk] = []
    kept: list[Chunk] = []
    seen: set[str] = set()
    for item in items:
        chunk = item.chunk if isinstance(item, EmbeddedChunk) else item
        if not isinstance(chunk, Chunk):
            raise InvalidInputError(
                f"chunks holds an object of type {type(chunk).__name__}, not an EmbeddedChunk or "
                "a Chunk",
                field="chunks",
            )
        _check_key(chunk.id, field="id")
        check_text(chunk.document_id, field="document_id", chunk_id=chunk.id)
        if chunk.document_id != document_id:
            raise InvalidInputError(
                f"chunk {shown(chunk.id)} belongs to document {shown(chunk.document_id)}, not "
                f"{shown(document_id)}",
                field="document_id",
                chunk_id=chunk.id,
            )
        if chunk.id in seen:
            raise InvalidInputError(
                f"chunk {shown(chunk.id)} appears twice in the document",
                field="chunks",
                chunk_id=chunk.id,
            )
        seen.add(chunk.id)
        if isinstance(item, EmbeddedChunk):
            embedded.append(item)
        else:
            kept.append(chunk)
    return embedded, kept


def check_kept(chunks: Sequence[Chunk], dimensions: int) -> Batch:
    """Chunks whose embeddings are stored already, as a batch without any."""
    zero = np.zeros(dimensions, dtype=np.float32)
    items = [EmbeddedChunk(chunk=chunk, embedding=zero, embedding_model="") for chunk in chunks]
    return check_batch(items, dimensions, "vector", None)


def is_embedded(
    chunk: Chunk, stored: Mapping[str, tuple[str, str]], embedding_model: str | None
) -> bool:
    """Whether a chunk is stored with this content, embedded by the store's model.

    Args:
        chunk: the chunk.
        stored: content hash and embedding model by id.
        embedding_model: the store's; any when None.
    """
    content_hash, model = stored.get(chunk.id, (None, None))
    return content_hash == chunk.content_hash and embedding_model in (None, model)


def refuse_unembedded(
    chunks: Sequence[Chunk],
    stored: Mapping[str, tuple[str, str]],
    embedding_model: str | None,
) -> None:
    """Refuse chunks without an embedding that are not stored with this content."""
    for chunk in chunks:
        if not is_embedded(chunk, stored, embedding_model):
            raise InvalidInputError(
                f"chunk {shown(chunk.id)} is new or has another content than what is stored: give "
                "it as an EmbeddedChunk",
                field="embedding",
                chunk_id=chunk.id,
            )


def check_metadata_by_id(metadata: Any) -> dict[str, tuple[dict[str, Any], str]]:
    """Metadata by chunk id, canonical and as JSON text, in ascending order of id."""
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"metadata must be a mapping of chunk ids to metadata, not {type(metadata).__name__}",
            field="metadata",
        )
    for chunk_id in metadata:
        _check_key(chunk_id, field="chunk_id")
    return {
        chunk_id: _checked_metadata(chunk_id, metadata[chunk_id]) for chunk_id in sorted(metadata)
    }


# -- vectors ---------------------------------------------------------------------------------------


def _checked_vectors(
    vectors: Sequence[Vector],
    chunk_ids: Sequence[str | None],
    dimensions: int,
    column_type: ColumnType,
) -> Float32Array:
    """The vectors as one float32 matrix, shape (len(vectors), dimensions).

    A vector without a chunk id is the query vector.
    """
    matrix = np.empty((len(vectors), dimensions), dtype=np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for row, vector in enumerate(vectors):
            matrix[row] = _as_row(vector, chunk_ids[row], dimensions)
        for row in np.flatnonzero(~matrix.any(axis=1)).tolist():
            if np.asarray(vectors[row]).any():  # and so no zero vector before it was rounded
                raise _vector_error(chunk_ids[row], _OUT_OF_RANGE)
        for bad, rule in _rules(matrix, column_type):
            if bad.any():
                raise _vector_error(chunk_ids[int(np.argmax(bad))], rule)
        if column_type == "halfvec":
            matrix = matrix.astype(np.float16).astype(np.float32)
    return matrix


def _as_row(vector: Vector, chunk_id: str | None, dimensions: int) -> NDArray[Any]:
    try:
        row = np.asarray(vector)
    except Exception:  # whatever an object's own conversion raises
        raise _vector_error(chunk_id, "must be a flat sequence of numbers") from None
    if np.ma.is_masked(vector):
        raise _vector_error(chunk_id, "has masked elements, for which there is no number")
    if row.ndim == 1 and row.shape[0] != dimensions:
        subject, field = _vector_subject(chunk_id)
        raise DimensionMismatchError(
            f"{subject} has {row.shape[0]} dimensions; this store has {dimensions}",
            expected=dimensions,
            actual=row.shape[0],
            field=field,
            chunk_id=chunk_id,
        )
    if row.ndim != 1 or row.dtype.kind not in "fiu":
        what = type(vector).__name__
        if row.ndim > 1:
            what = f"of shape {row.shape}"
        raise _vector_error(chunk_id, f"must be a flat sequence of numbers, not {what}")
    return row


def _rules(
    matrix: Float32Array, column_type: ColumnType
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """The rules for vectors: which rows break one, and what to say of them."""
    infinite = np.logical_not(np.isfinite(matrix).all(axis=1))
    yield infinite, "holds NaN, an infinity or a number beyond 32 bits"
    yield _out_of_range(matrix), _OUT_OF_RANGE
    if column_type == "halfvec":
        half = matrix.astype(np.float16)
        too_large = f"holds an element above {_HALF_MAX:.0f}, the largest of halfvec"
        yield np.logical_not(np.isfinite(half).all(axis=1)), too_large
        vanished = np.logical_and(matrix.any(axis=1), ~half.any(axis=1))
        yield vanished, "is so small that halfvec would make it zero"


def _out_of_range(matrix: Float32Array) -> NDArray[np.bool_]:
    """Non-zero rows whose squares a 32-bit float cannot hold, or only coarsely.

    pgvector computes in 32 bits; the similarity of such rows is 0, 1 or NaN, whatever the query.
    """
    squared = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    smallest = matrix.shape[1] * float(_FLOAT32.tiny)
    in_range = (squared >= smallest) & (squared <= float(_FLOAT32.max))
    bad: NDArray[np.bool_] = matrix.any(axis=1) & ~in_range
    return bad


def _vector_error(chunk_id: str | None, rule: str) -> InvalidInputError:
    subject, field = _vector_subject(chunk_id)
    return InvalidInputError(f"{subject} {rule}", field=field, chunk_id=chunk_id)


def _vector_subject(chunk_id: str | None) -> tuple[str, str]:
    if chunk_id is None:
        return "the query vector", "query_vector"
    return f"the embedding of chunk {shown(chunk_id)}", "embedding"


# -- text ------------------------------------------------------------------------------------------


def _check_key(value: str, *, field: str, chunk_id: str | None = None) -> None:
    check_text(value, field=field, chunk_id=chunk_id)
    if longer_than(value, MAX_KEY_BYTES):
        raise _text_error(f"is longer than {MAX_KEY_BYTES:,} bytes of UTF-8", field, chunk_id)


def check_text(value: str, *, field: str, chunk_id: str | None = None) -> None:
    """Refuse what is no text, or cannot be stored."""
    if not isinstance(value, str):
        raise _text_error(f"must be text, not {type(value).__name__}", field, chunk_id)
    if reason := unstorable(value):
        if field == "id":
            chunk_id = value
        raise _text_error(reason, field, chunk_id)


def _text_error(reason: str, field: str, chunk_id: str | None) -> InvalidInputError:
    subject = field if chunk_id is None else f"chunk {shown(chunk_id)}: {field}"
    return InvalidInputError(f"{subject} {reason}", field=field, chunk_id=chunk_id)
