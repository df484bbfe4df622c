"""Vector column types that work on every connection, and the binary codec that a store installs.

The column types of the package ``pgvector`` bind text, which takes most of the time of an insert,
and raise errors on an asyncpg connection with pgvector's own codec. A column type cannot know its
connection. Therefore:

- `VectorType` and `HalfvecType` bind and read ``real[]``, which every connection transfers in
  binary and the server casts. These types do not depend on the codecs of the connection.
- :func:`install_codec` registers a codec for pgvector's binary format on the connections that a
  store uses, and the store's statements bind `WireVector`. The codec accepts and returns the same
  values as pgvector's column types and pgvector's own codec, so the application's other vector
  columns keep working on these connections.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pgvector
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import REAL, ColumnElement, Dialect, cast, type_coerce
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import UserDefinedType

from cenote.postgres.psycopg_codec import ARRAYS, WireBytes
from cenote.types import ColumnType, Float32Array

if TYPE_CHECKING:
    import asyncpg

_MAX_INLINE_BYTES = 8000
"""Maximum size of a vector that fits into a page of 8 kB with the rest of its row."""


def inline_bytes(dimensions: int, column_type: str | None) -> int:
    """Return the bytes of a vector in its row: 0 if it is stored in the TOAST table."""
    size = dimensions * (2 if column_type == "halfvec" else 4)
    return size if size < _MAX_INLINE_BYTES else 0


# -- column types ----------------------------------------------------------------------------------


class _TransferAsRealArray(UserDefinedType[Any]):
    """Mixin for pgvector types that are bound and read as ``real[]``; results are float32."""

    def bind_expression(self, bindvalue: Any) -> ColumnElement[Any]:
        return cast(cast(bindvalue, ARRAY(REAL)), self)

    def column_expression(self, colexpr: Any) -> ColumnElement[Any]:
        return type_coerce(cast(colexpr, ARRAY(REAL)), self)

    def bind_processor(self, dialect: Dialect) -> Any:
        def process(value: Any) -> list[float] | None:
            return None if value is None else _to_array(value).tolist()

        return process

    def literal_processor(self, dialect: Dialect) -> Any:  # for SQL with literal values
        def process(value: Any) -> str:
            return "'{" + ",".join(str(element) for element in _to_array(value).tolist()) + "}'"

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        def process(value: Any) -> Float32Array | None:
            return None if value is None else _to_array(value)

        return process


class VectorType(_TransferAsRealArray, VECTOR):
    """Column type ``vector``: accepts lists, tuples and arrays, returns float32 arrays.

    Unlike `pgvector.sqlalchemy.VECTOR`, it works on every connection, with and without pgvector's
    codec, and transfers values in binary. Columns have pgvector's comparison methods
    (`cosine_distance`, ...).

    Args:
        dim: Number of dimensions, or None for any number.
    """

    cache_ok = True


class HalfvecType(_TransferAsRealArray, HALFVEC):
    """Column type ``halfvec``, with the same values and methods as `VectorType`.

    Args:
        dim: Number of dimensions, or None for any number.
    """

    cache_ok = True


def embedding_type(
    column_type: ColumnType, dimensions: int | None = None
) -> VectorType | HalfvecType:
    """Return the SQLAlchemy type of the embedding column."""
    return HalfvecType(dimensions) if column_type == "halfvec" else VectorType(dimensions)


# -- binary codec ----------------------------------------------------------------------------------


class WireVector(UserDefinedType[bytes]):
    """Type of values encoded by :func:`to_wire`, for connections with :func:`install_codec`."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, column_type: ColumnType) -> None:
        self.column_type = column_type

    def get_col_spec(self, **kw: Any) -> str:
        return self.column_type.upper()

    def bind_processor(self, dialect: Dialect) -> Any:
        return WireBytes if dialect.driver == "psycopg" else None


class WireVectorArray(UserDefinedType[list[bytes]]):
    """Type of a list of values encoded by :func:`to_wire`."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, column_type: ColumnType) -> None:
        self.column_type: ColumnType = column_type

    def get_col_spec(self, **kw: Any) -> str:
        return self.column_type.upper() + "[]"

    def bind_processor(self, dialect: Dialect) -> Any:
        return ARRAYS[self.column_type] if dialect.driver == "psycopg" else None


_WIRE_DTYPE: dict[str, str] = {"vector": ">f4", "halfvec": ">f2"}


def to_wire(matrix: Float32Array, column_type: ColumnType) -> list[bytes]:
    """Encode the rows of a matrix in pgvector's binary format.

    A value consists of two 16-bit integers, the number of dimensions and 0, followed by the
    elements. All numbers are big-endian. Source: vector_send() in pgvector's src/vector.c.

    Args:
        matrix: Vectors of shape (rows, dimensions).
        column_type: Type of the column, which decides the width of the elements.

    Returns:
        One value per row, in the same order.
    """
    rows, dimensions = matrix.shape
    elements = np.ascontiguousarray(matrix.astype(_WIRE_DTYPE[column_type]))
    wire = np.empty((rows, 4 + elements.itemsize * dimensions), dtype=np.uint8)
    wire[:, :4] = np.frombuffer(struct.pack(">HH", dimensions, 0), dtype=np.uint8)
    wire[:, 4:] = elements.view(np.uint8).reshape(rows, elements.itemsize * dimensions)
    return [row.tobytes() for row in wire]


def to_wire_one(vector: Float32Array, column_type: ColumnType) -> bytes:
    """Encode one vector of shape (dimensions,); see :func:`to_wire`."""
    header = struct.pack(">HH", vector.shape[0], 0)
    return header + vector.astype(_WIRE_DTYPE[column_type]).tobytes()


async def install_codec(connection: asyncpg.Connection, schema: str) -> None:
    """Register the binary codec for ``vector`` and ``halfvec`` on an asyncpg connection.

    Args:
        connection: The driver's connection. Its present codecs for the two types are replaced.
        schema: Schema of the extension.
    """
    decoders: dict[ColumnType, Callable[[bytes], Any]] = {
        "vector": _decode_vector,
        "halfvec": _decode_halfvec,
    }
    for column_type, decoder in decoders.items():
        await connection.set_type_codec(
            column_type,
            schema=schema,
            encoder=_encoder(column_type),
            decoder=decoder,
            format="binary",
        )


def _encoder(column_type: ColumnType) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        if isinstance(value, bytes):  # from to_wire
            return value
        return to_wire(_to_array(value)[np.newaxis], column_type)[0]

    return encode


def _to_array(value: Any) -> Float32Array:
    """Convert a vector to a float32 array; accept pgvector's objects and text too."""
    if isinstance(value, str):
        value = value.strip("[]").split(",")
    elif hasattr(value, "to_list"):
        value = value.to_list()
    return np.asarray(value, dtype=np.float32)


# pgvector's column types read the values that its codec returns: `Vector` objects since version
# 0.5, arrays before.
if tuple(int(part) for part in version("pgvector").split(".")[:2]) >= (0, 5):

    def _decode_vector(wire: bytes) -> Any:
        return pgvector.Vector.from_binary(wire)

else:

    def _decode_vector(wire: bytes) -> Any:
        return pgvector.Vector.from_binary(wire).to_numpy().astype(np.float32)


def _decode_halfvec(wire: bytes) -> Any:
    return pgvector.HalfVector.from_binary(wire)
