"""Checks that both stores apply to their input, with the same errors, before they change anything.

An error message names the chunk or the argument and says what to do. It never quotes content,
metadata or vectors.
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
"""Maximum UTF-8 bytes of a namespace, id or document id: a btree entry (2,704 bytes) holds two."""

MAX_DIMENSIONS = 16_000
"""Maximum number of dimensions that pgvector stores. It can index fewer: see `cenote.config`."""

MAX_EF_SEARCH = 1000
"""Maximum of pgvector's setting ``hnsw.ef_search``."""

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1

_FLOAT32 = np.finfo(np.float32)
_OUT_OF_RANGE = "is too small or too large: its squared norm leaves the range of a 32-bit float"
_HALF_MAX = float(np.finfo(np.float16).max)

_shortened = reprlib.Repr()
_shortened.maxstring = 120


def safe_repr(value: Any) -> str:
    """Return a short `repr` of any value for a message, without failing.

    Only texts, numbers, booleans and None are quoted; of other values, the type is named.
    """
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
    return f"must be an integer {accepted}, not {safe_repr(value)}"


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
    """Check that a namespace is a storable text, not empty and not too long."""
    _check_key(namespace, field="namespace")
    if not namespace:
        raise InvalidInputError("namespace is empty; name the tenant", field="namespace")


def check_limit(limit: int) -> None:
    """Check that a limit is an integer of 1 or more."""
    check_integer_argument(limit, field="limit", least=1)


def check_ef_search(ef_search: int | None) -> None:
    """Check that the ``ef_search`` of a call is None or in pgvector's range."""
    if ef_search is not None:
        check_integer_argument(ef_search, field="ef_search", least=1, most=MAX_EF_SEARCH)


def as_list(values: Any, rule: str, *, field: str, but_not: tuple[type, ...] = (str,)) -> list[Any]:
    """Return the elements of an iterable as a list.

    Args:
        values: List or other iterable.
        rule: What the argument must be, for the message.
        field: Name of the argument.
        but_not: Iterable types that are surely a mistake.

    Raises:
        InvalidInputError: `values` is not iterable, or its type is in `but_not`.
    """
    if not isinstance(values, but_not) and is_iterable(values):
        return list(values)
    raise InvalidInputError(f"{rule}, not {type(values).__name__}", field=field)


def is_iterable(value: Any) -> bool:
    """Return whether a value can be iterated over. A numpy array without dimensions cannot."""
    if not isinstance(value, Iterable):
        return False
    try:
        iter(value)
    except TypeError:
        return False
    return True


def check_ids(chunk_ids: Sequence[str]) -> list[str]:
    """Check ids, and return them sorted and without duplicates."""
    return sorted(check_ids_in_order(chunk_ids))


def check_ids_in_order(chunk_ids: Sequence[str]) -> list[str]:
    """Return the ids like `check_ids`, but in the given order."""
    ids = as_list(chunk_ids, "chunk_ids must be a list of ids", field="chunk_ids")
    for chunk_id in ids:
        _check_key(chunk_id, field="chunk_ids")
    return list(dict.fromkeys(ids))


def check_min_score(min_score: float | None) -> None:
    """Check that a minimum score is None or a number from -1 to 1."""
    if min_score is not None and not is_number(min_score, -1, 1):
        raise InvalidInputError(
            f"min_score must be a number from -1 to 1, not {safe_repr(min_score)}",
            field="min_score",
        )


def check_per_document(per_document: int | None) -> None:
    """Check that a maximum number of chunks per document is None or an integer of 1 or more."""
    if per_document is not None:
        check_integer_argument(per_document, field="per_document", least=1, most=_MAX_INT32)


def check_diversity(diversity: float, candidates: int | None, limit: int) -> int:
    """Check the arguments of a diverse search.

    Returns:
        The number of candidates, by default four times the limit.
    """
    check_limit(limit)
    if not is_number(diversity, 0, 1):
        raise InvalidInputError(
            f"diversity must be a number from 0 to 1, not {safe_repr(diversity)}", field="diversity"
        )
    if candidates is None:
        return 4 * limit
    if not is_integer(candidates, limit):
        raise InvalidInputError(
            f"candidates must be an integer of at least the limit, not {safe_repr(candidates)}",
            field="candidates",
        )
    return candidates


def check_fusion(vector_weight: float, text_weight: float, depth: int) -> None:
    """Check the arguments of a hybrid search.

    Weights are 0 or from 1e-9 to 1e9, and not both 0. The depth is an integer of 1 or more.
    """
    weights = {"vector_weight": vector_weight, "text_weight": text_weight}
    for name, weight in weights.items():
        if not (is_number(weight, 0, 0) or is_number(weight, 1e-9, 1e9)):
            raise InvalidInputError(
                f"{name} must be 0, or a number from 1e-9 to 1e9, not {safe_repr(weight)}",
                field=name,
            )
    if not vector_weight and not text_weight:
        raise InvalidInputError(
            "vector_weight and text_weight are both 0; set at least one of them above 0",
            field="text_weight",
        )
    check_integer_argument(depth, field="depth", least=1)


def check_boolean(value: bool, *, field: str) -> None:
    """Check that an argument is True or False. An array, for example, has no truth value."""
    if not isinstance(value, bool):
        raise InvalidInputError(
            f"{field} must be True or False, not {safe_repr(value)}", field=field
        )


def check_embedding_model(embedding_model: str | None) -> None:
    """Check that the name of a store's embedding model is None or a storable text."""
    if embedding_model is None:
        return
    if not isinstance(embedding_model, str) or unstorable(embedding_model):
        raise ConfigurationError(
            "embedding_model must be the name of a model, as text that Postgres can store, not "
            f"{safe_repr(embedding_model)}",
            setting="embedding_model",
        )


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    """Check that weights of rankings are None, or `count` numbers from 0 to 1e9 and not all 0."""
    if weights is None:
        return
    if not isinstance(weights, Sequence) or len(weights) != count:
        raise ConfigurationError(
            f"weights must be a list of {count}, one for each retriever", setting="weights"
        )
    if not all(is_number(weight, 0, 1e9) for weight in weights) or not any(weights):
        raise ConfigurationError(
            "weights must be numbers from 0 to 1e9, at least one of them above 0",
            setting="weights",
        )


_LONGEST_TIMEOUT = 1e9
"""Maximum of a timeout in seconds; beyond it, the clock of an event loop is too coarse."""


def check_operation_timeout(seconds: float | None) -> None:
    """Check that a time limit is None or a number of seconds above 0."""
    if seconds is not None and not (is_number(seconds, 0, _LONGEST_TIMEOUT) and seconds):
        raise ConfigurationError(
            "operation_timeout must be a number of seconds above 0 and at most 1e9, not "
            f"{safe_repr(seconds)}",
            setting="operation_timeout",
        )


def check_full_text(languages: Sequence[str]) -> None:
    """Check that a store has full text, before a search by words."""
    if not languages:
        raise ConfigurationError(
            "this store has no full text; create it with the text_search of its table, such as "
            "text_search='english'",
            setting="text_search",
        )


def check_chunk_id(chunk_id: str) -> None:
    """Check that a chunk id can be stored."""
    _check_key(chunk_id, field="chunk_id")


def check_document_id(document_id: str) -> None:
    """Check that a document id can be stored."""
    _check_key(document_id, field="document_id")


def check_neighbours(before: int, after: int) -> None:
    """Check that numbers of neighbours are integers of 0 or more."""
    check_integer_argument(before, field="before", least=0, most=_MAX_INT32)
    check_integer_argument(after, field="after", least=0, most=_MAX_INT32)


def check_dimensions(dimensions: int) -> None:
    """Check that a number of dimensions is an integer that pgvector can store."""
    check_integer_setting(dimensions, setting="dimensions", least=1, most=MAX_DIMENSIONS)


def check_column_type(column_type: ColumnType) -> None:
    """Check that a column type is ``"vector"`` or ``"halfvec"``."""
    if not isinstance(column_type, str) or column_type not in get_args(ColumnType):
        raise ConfigurationError(
            f"column_type must be 'vector' or 'halfvec', not {safe_repr(column_type)}",
            setting="column_type",
        )


def check_query_vector(vector: Vector, dimensions: int, column_type: ColumnType) -> Float32Array:
    """Return a query vector as float32, shape (dimensions,)."""
    query: Float32Array = _checked_vectors([vector], [None], dimensions, column_type)[0]
    return query


def check_query_vectors(
    vectors: Sequence[Vector], dimensions: int, column_type: ColumnType
) -> Float32Array:
    """Return query vectors as float32, shape (n, dimensions)."""
    queries = as_list(
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
        chunks: The chunks.
        metadata: Canonical metadata of each chunk.
        metadata_texts: Canonical metadata of each chunk as JSON text.
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
) -> Batch:
    """Validate a whole batch. If an id appears twice, keep the last of its chunks."""
    items = as_list(
        embedded_chunks,
        "embedded_chunks must be a list of EmbeddedChunk",
        field="embedded_chunks",
        but_not=(str, EmbeddedChunk),
    )
    # Every chunk is checked, even if a later chunk with the same id replaces it.
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
    """Check everything in a chunk except its vector.

    Returns:
        Its metadata, canonical and as JSON text.
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
    if not isinstance(item.columns, Mapping):
        raise InvalidInputError(
            f"chunk {safe_repr(chunk.id)}: columns must be a mapping of attribute names to values, "
            f"not {type(item.columns).__name__}",
            field="columns",
            chunk_id=chunk.id,
        )
    if not is_integer(chunk.position, -_MAX_INT64 - 1, _MAX_INT64):
        raise InvalidInputError(
            f"chunk {safe_repr(chunk.id)}: position must be a 64-bit integer",
            field="position",
            chunk_id=chunk.id,
        )
    return _checked_metadata(chunk.id, chunk.metadata)


def _surely_storable(item: EmbeddedChunk) -> bool:
    """Return whether all texts of a chunk are surely storable.

    This tests all of them at once, which is fast and suffices for most chunks.
    """
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
            f"chunk {safe_repr(chunk_id)}: metadata {error}", field="metadata", chunk_id=chunk_id
        ) from None


def _plain(chunk: Chunk) -> Chunk:
    """Return a chunk with plain values in place of subclasses, such as enumeration members."""
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
    """Return chunks as a list, with their ids and content hashes checked."""
    checked = as_list(chunks, "chunks must be a list of Chunk", field="chunks")
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
    """Check the chunks of a document, in which each id may appear once.

    Returns:
        The chunks with an embedding, and the chunks without.
    """
    check_document_id(document_id)
    items = as_list(chunks, "chunks must be a list of EmbeddedChunk or Chunk", field="chunks")
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
            kept.append(chunk)
    return embedded, kept


def check_kept(chunks: Sequence[Chunk], dimensions: int) -> Batch:
    """Return chunks whose embeddings are stored already as a batch with zero vectors."""
    zero = np.zeros(dimensions, dtype=np.float32)
    items = [EmbeddedChunk(chunk=chunk, embedding=zero, embedding_model="") for chunk in chunks]
    return check_batch(items, dimensions, "vector", None)


def is_embedded(
    chunk: Chunk, stored: Mapping[str, tuple[str, str]], embedding_model: str | None
) -> bool:
    """Return whether a chunk is stored with the same content, embedded by the store's model.

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
    """Reject chunks without an embedding that are not stored with the same content."""
    for chunk in chunks:
        if not is_embedded(chunk, stored, embedding_model):
            raise InvalidInputError(
                f"chunk {safe_repr(chunk.id)} is new or its content has changed: pass it as an "
                "EmbeddedChunk",
                field="embedding",
                chunk_id=chunk.id,
            )


def check_metadata_by_id(metadata: Any) -> dict[str, tuple[dict[str, Any], str]]:
    """Return metadata by chunk id, canonical and as JSON text, in ascending order of id."""
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
    """Return vectors as one float32 matrix, shape (len(vectors), dimensions).

    A vector whose chunk id is None is a query vector.
    """
    matrix = np.empty((len(vectors), dimensions), dtype=np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for row, vector in enumerate(vectors):
            matrix[row] = _as_row(vector, chunk_ids[row], dimensions)
        for row in np.flatnonzero(~matrix.any(axis=1)).tolist():
            if np.asarray(vectors[row]).any():  # it was not zero before rounding
                raise _vector_error(chunk_ids[row], _OUT_OF_RANGE)
        for bad, rule in _broken_rules(matrix, column_type):
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
        raise _vector_error(chunk_id, "has masked elements; fill them first")
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


def _broken_rules(
    matrix: Float32Array, column_type: ColumnType
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Yield, for each rule, the rows that break it and the message."""
    infinite = np.logical_not(np.isfinite(matrix).all(axis=1))
    yield infinite, "contains NaN, an infinity or a number beyond 32 bits"
    yield _out_of_range(matrix), _OUT_OF_RANGE
    if column_type == "halfvec":
        half = matrix.astype(np.float16)
        too_large = f"contains an element above {_HALF_MAX:.0f}, the maximum of halfvec"
        yield np.logical_not(np.isfinite(half).all(axis=1)), too_large
        vanished = np.logical_and(matrix.any(axis=1), ~half.any(axis=1))
        yield vanished, "is so small that halfvec would make it zero"


def _out_of_range(matrix: Float32Array) -> NDArray[np.bool_]:
    """Return the non-zero rows whose squared norm a 32-bit float cannot hold, or only coarsely.

    pgvector computes in 32 bits: the similarity of these rows is 0, 1 or NaN for any query.
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
    return f"the embedding of chunk {safe_repr(chunk_id)}", "embedding"


# -- text ------------------------------------------------------------------------------------------


def _check_key(value: str, *, field: str, chunk_id: str | None = None) -> None:
    check_text(value, field=field, chunk_id=chunk_id)
    if longer_than(value, MAX_KEY_BYTES):
        raise _text_error(f"is longer than {MAX_KEY_BYTES:,} bytes of UTF-8", field, chunk_id)


def check_text(value: str, *, field: str, chunk_id: str | None = None) -> None:
    """Check that a value is text that Postgres can store."""
    if not isinstance(value, str):
        raise _text_error(f"must be text, not {type(value).__name__}", field, chunk_id)
    if reason := unstorable(value):
        if field == "id":
            chunk_id = value
        raise _text_error(reason, field, chunk_id)


def _text_error(reason: str, field: str, chunk_id: str | None) -> InvalidInputError:
    subject = field if chunk_id is None else f"chunk {safe_repr(chunk_id)}: {field}"
    return InvalidInputError(f"{subject} {reason}", field=field, chunk_id=chunk_id)
