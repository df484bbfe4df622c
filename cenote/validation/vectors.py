"""Check vectors, and convert them to numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cenote.errors import DimensionMismatchError, InvalidInputError
from cenote.responsive import Pauses
from cenote.types import ColumnType, Float32Array, Metric, Vector
from cenote.validation.arguments import MAX_QUERY_VECTORS, as_list, safe_repr

_FLOAT32 = np.finfo(np.float32)
_OUT_OF_RANGE = "is too small or too large: its squared norm leaves the range of a 32-bit float"
_OUT_OF_RANGE_FOR_L2 = (
    "is too small or too large for metric='l2': squared distances leave the range of a 32-bit float"
)
_BEYOND_32_BITS = "contains NaN, an infinity or a number beyond 32 bits"
_HALF_MAX = float(np.finfo(np.float16).max)
_CLEARLY_VALID = (1e-29, 1e30)
"""Squared norms, computed in 32 bits, of vectors that are finite, not zero and surely in range."""

_CLEARLY_HALF = (1e-6, 4e9)
"""Squared norms, computed in 32 bits, of vectors whose largest element surely fits 16 bits."""


def check_query_vector(
    vector: Vector, dimensions: int, column_type: ColumnType, metric: Metric = "cosine"
) -> Float32Array:
    """Return a query vector as float32, shape (dimensions,)."""
    if column_type == "vector" and type(vector) in (list, np.ndarray):
        row = _as_row(vector, None, dimensions)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            query: Float32Array = row.astype(np.float32, copy=False)
            if _CLEARLY_VALID[0] < float(query.dot(query)) < _CLEARLY_VALID[1]:
                return query
    checked: Float32Array = checked_vectors([vector], [None], dimensions, column_type, metric)[0]
    return checked


_BLOCK_VECTORS = 50
"""Number of query vectors that are checked at a time: 3 ms for lists of 1,536 numbers."""


async def check_query_vectors(
    vectors: Sequence[Vector],
    dimensions: int,
    column_type: ColumnType,
    metric: Metric = "cosine",
) -> Float32Array:
    """Return query vectors as float32, shape (n, dimensions), n at most `MAX_QUERY_VECTORS`.

    Lets other tasks run in between.
    """
    queries = as_list(
        vectors,
        "query_vectors must be a list of vectors",
        field="query_vector",
        but_not=(str, bytes, Mapping),
    )
    if len(queries) > MAX_QUERY_VECTORS:
        raise InvalidInputError(
            f"query_vectors has {len(queries):,} vectors, but may have at most "
            f"{MAX_QUERY_VECTORS:,}: call search_many several times",
            field="query_vectors",
        )
    checked = np.empty((len(queries), dimensions), dtype=np.float32)
    pauses = Pauses()
    for start in range(0, len(queries), _BLOCK_VECTORS):
        block = queries[start : start + _BLOCK_VECTORS]
        checked[start : start + len(block)] = checked_vectors(
            block, [None] * len(block), dimensions, column_type, metric
        )
        await pauses()
    return checked


# -- vectors ---------------------------------------------------------------------------------------


def checked_vectors(
    vectors: Sequence[Vector],
    chunk_ids: Sequence[str | None],
    dimensions: int,
    column_type: ColumnType,
    metric: Metric = "cosine",
    *,
    half_index: bool = False,
) -> Float32Array:
    """Return vectors as one float32 matrix, shape (len(vectors), dimensions).

    A vector whose chunk id is None is a query vector.

    Args:
        vectors: The vectors.
        chunk_ids: Id of each vector's chunk.
        dimensions: Number of dimensions.
        column_type: ``"halfvec"`` rounds the vectors to 16 bits.
        metric: Metric whose distances must not leave the range of a 32-bit float.
        half_index: True if an index of 16-bit floats has to store the vectors.
    """
    clearly_valid = _CLEARLY_HALF if half_index else _CLEARLY_VALID
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        matrix = _stacked(vectors, chunk_ids, dimensions)
        if column_type == "vector" and _all_between(matrix, *clearly_valid):
            return matrix
        out_of_range = _OUT_OF_RANGE_FOR_L2 if metric == "l2" else _OUT_OF_RANGE
        for row in np.flatnonzero(~matrix.any(axis=1)).tolist():
            if np.asarray(vectors[row]).any():  # it was not zero before rounding
                raise _vector_error(chunk_ids[row], out_of_range)
        for bad, rule in (
            *_broken_rules(matrix, metric, out_of_range),
            *_broken_half_rules(matrix, column_type, half_index=half_index),
        ):
            if bad.any():
                raise _vector_error(chunk_ids[int(np.argmax(bad))], rule)
        if column_type == "halfvec":
            matrix = matrix.astype(np.float16).astype(np.float32)
    return matrix


def _stacked(
    vectors: Sequence[Vector], chunk_ids: Sequence[str | None], dimensions: int
) -> Float32Array:
    """Return vectors as one float32 matrix of their own, with types and shapes checked."""
    shape = (dimensions,)
    if vectors and all(
        type(vector) is np.ndarray and vector.dtype == np.float32 and vector.shape == shape
        for vector in vectors
    ):
        stacked: Float32Array = np.concatenate(vectors).reshape(len(vectors), dimensions)
        return stacked
    matrix = np.empty((len(vectors), dimensions), dtype=np.float32)
    for row, vector in enumerate(vectors):
        matrix[row] = _as_row(vector, chunk_ids[row], dimensions)
    return matrix


def _all_between(matrix: Float32Array, least: float, most: float) -> bool:
    """Test the squared norms of all rows at once; NaN fails both comparisons."""
    squared = np.einsum("ij,ij->i", matrix, matrix)
    return bool(np.all((squared > least) & (squared < most)))


def _as_row(vector: Vector, chunk_id: str | None, dimensions: int) -> NDArray[Any]:
    try:
        row = np.asarray(vector)
    except Exception:  # lists of different lengths; an object's conversion may raise anything
        _check_elements(vector, chunk_id)
        raise _vector_error(chunk_id, "must be a flat sequence of numbers") from None
    if type(row) is not type(vector) and np.ma.is_masked(vector):
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
    if row.ndim == 1 and row.dtype.kind in "fiu":
        if isinstance(vector, list | tuple) and ((row == 0) | (row == 1)).any():
            # numpy converts a bool among numbers to 0 or 1.
            _check_elements(vector, chunk_id, is_valid=lambda element: not _is_bool(element))
        return row
    if row.ndim == 1:
        _check_elements(vector if row.dtype.kind in "USbcM" else row, chunk_id)
        if row.dtype.kind == "O":
            return _from_objects(row, chunk_id)
    found = f"of shape {row.shape}" if row.ndim > 1 else type(vector).__name__
    raise _vector_error(chunk_id, f"must be a flat sequence of numbers, not {found}")


def _is_bool(element: Any) -> bool:
    return isinstance(element, bool | np.bool_)


def _is_number(element: Any) -> bool:
    return isinstance(element, Real | Decimal) and not _is_bool(element)


def _check_elements(
    vector: Any, chunk_id: str | None, *, is_valid: Callable[[Any], bool] = _is_number
) -> None:
    """Check the elements of a list, a tuple or an array with one dimension.

    Raises:
        InvalidInputError: An element is not valid. The error contains its position and type.
    """
    is_array = isinstance(vector, np.ndarray) and vector.ndim == 1
    if not is_array and not isinstance(vector, list | tuple):
        return
    for position, element in enumerate(vector):
        if not is_valid(element):
            raise _vector_error(
                chunk_id,
                f"must consist of numbers, but the element at position {position} is of type "
                f"{type(element).__name__}",
            )


def _from_objects(row: NDArray[Any], chunk_id: str | None) -> NDArray[Any]:
    """Convert numbers that numpy holds as objects, such as Decimals and large integers."""
    try:
        return row.astype(np.float64)
    except (OverflowError, ValueError):  # a large integer; a signalling NaN of Decimal
        raise _vector_error(chunk_id, _BEYOND_32_BITS) from None


def _broken_rules(
    matrix: Float32Array, metric: Metric, out_of_range: str
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Yield, for each rule, the rows that break it and the message."""
    infinite = np.logical_not(np.isfinite(matrix).all(axis=1))
    yield infinite, _BEYOND_32_BITS
    yield _out_of_range(matrix, metric), out_of_range


def _broken_half_rules(
    matrix: Float32Array, column_type: ColumnType, *, half_index: bool
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Yield, for each rule about 16-bit floats, the rows that break it and the message."""
    if column_type != "halfvec" and not half_index:
        return
    of_what, remedy = "halfvec", ""
    if column_type != "halfvec":
        of_what = "an index of kind halfvec"
        remedy = "; scale the vectors, or run cenote reindex --index with another kind"
    half = matrix.astype(np.float16)
    too_large = f"contains an element above {_HALF_MAX:.0f}, the maximum of {of_what}{remedy}"
    yield np.logical_not(np.isfinite(half).all(axis=1)), too_large
    vanished = np.logical_and(matrix.any(axis=1), ~half.any(axis=1))
    yield vanished, f"is so small that {of_what} would make it zero{remedy}"


def reject_beyond_half(matrix: Float32Array, chunk_ids: Sequence[str]) -> None:
    """Check that an index of 16-bit floats can store vectors.

    Raises:
        InvalidInputError: It cannot; the error names the first chunk.
    """
    with np.errstate(over="ignore", under="ignore"):
        for bad, rule in _broken_half_rules(matrix, "vector", half_index=True):
            if bad.any():
                raise _vector_error(chunk_ids[int(np.argmax(bad))], rule)


def _out_of_range(matrix: Float32Array, metric: Metric) -> NDArray[np.bool_]:
    """Return the non-zero rows whose squared norm a 32-bit float cannot hold, or only coarsely.

    pgvector computes in 32 bits: the similarity of these rows is 0, 1 or NaN for any query. With
    l2, it squares differences. A difference may be twice as long as a vector. The square of a short
    one loses up to 2**-150 per dimension, and a distance shall be accurate to 1e-6 times the length
    of a vector.
    """
    squared = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    smallest, largest = matrix.shape[1] * float(_FLOAT32.tiny), float(_FLOAT32.max)
    if metric == "l2":
        smallest, largest = smallest * 2**14, largest / 4
    in_range = (squared >= smallest) & (squared <= largest)
    bad: NDArray[np.bool_] = matrix.any(axis=1) & ~in_range
    return bad


def _vector_error(chunk_id: str | None, rule: str) -> InvalidInputError:
    subject, field = _vector_subject(chunk_id)
    return InvalidInputError(f"{subject} {rule}", field=field, chunk_id=chunk_id)


def _vector_subject(chunk_id: str | None) -> tuple[str, str]:
    if chunk_id is None:
        return "the query vector", "query_vector"
    return f"the embedding of chunk {safe_repr(chunk_id)}", "embedding"
