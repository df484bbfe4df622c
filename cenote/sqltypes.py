"""Vector columns: types that are right on every connection, and the binary codec a store installs.

pgvector's stock types bind text, which costs most of the insert rate, and fail on an asyncpg
connection that has pgvector's codec registered. A column type cannot know its connection, so:

- `Vector` and `HalfVector` bind and read ``real[]``, which every connection carries in binary, and
  let the server cast. They need nothing of the connection.
- On the connections that a store uses, :func:`install_codec` registers a codec that speaks
  pgvector's binary format, and the store's statements bind `WireVector`. The codec also takes and
  gives what the stock types and pgvector's own codec would, so that a host's other vector columns
  keep working on those connections.
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

from cenote.types import ColumnType, Float32Array

if TYPE_CHECKING:
    import asyncpg

# -- column types ----------------------------------------------------------------------------------


class _ThroughRealArray(UserDefinedType[Any]):
    """Binds and reads a pgvector type as ``real[]``; values come back as float32 arrays."""

    def bind_expression(self, bindvalue: Any) -> ColumnElement[Any]:
        return cast(cast(bindvalue, ARRAY(REAL)), self)

    def column_expression(self, colexpr: Any) -> ColumnElement[Any]:
        return type_coerce(cast(colexpr, ARRAY(REAL)), self)

    def bind_processor(self, dialect: Dialect) -> Any:
        def process(value: Any) -> list[float] | None:
            return None if value is None else _to_array(value).tolist()

        return process

    def literal_processor(self, dialect: Dialect) -> Any:  # for statements printed with literals
        def process(value: Any) -> str:
            return "'{" + ",".join(str(element) for element in _to_array(value).tolist()) + "}'"

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        def process(value: Any) -> Float32Array | None:
            return None if value is None else _to_array(value)

        return process


class Vector(_ThroughRealArray, VECTOR):
    """A column of type ``vector``; takes lists, tuples and arrays, gives float32 arrays.

    It has pgvector's comparison methods (`cosine_distance`, ...).
    """

    cache_ok = True


class HalfVector(_ThroughRealArray, HALFVEC):
    """A column of type ``halfvec``, as `Vector` otherwise."""

    cache_ok = True


def embedding_type(column_type: ColumnType, dimensions: int | None = None) -> Vector | HalfVector:
    """The type of the embedding column."""
    return HalfVector(dimensions) if column_type == "halfvec" else Vector(dimensions)


# -- the wire --------------------------------------------------------------------------------------


class WireVector(UserDefinedType[bytes]):
    """Binds what :func:`to_wire` gives, on connections that have the codec."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, column_type: ColumnType) -> None:
        self.column_type = column_type

    def get_col_spec(self, **kw: Any) -> str:
        return self.column_type.upper()


_WIRE_DTYPE: dict[str, str] = {"vector": ">f4", "halfvec": ">f2"}


def to_wire(matrix: Float32Array, column_type: ColumnType) -> list[bytes]:
    """The rows in pgvector's binary format: two 16-bit integers (the length and 0), the elements.

    Source: vector_send() in pgvector's src/vector.c; everything is big-endian.
    """
    rows, dimensions = matrix.shape
    elements = np.ascontiguousarray(matrix.astype(_WIRE_DTYPE[column_type]))
    wire = np.empty((rows, 4 + elements.itemsize * dimensions), dtype=np.uint8)
    wire[:, :4] = np.frombuffer(struct.pack(">HH", dimensions, 0), dtype=np.uint8)
    wire[:, 4:] = elements.view(np.uint8).reshape(rows, elements.itemsize * dimensions)
    return [row.tobytes() for row in wire]


async def install_codec(connection: asyncpg.Connection, schema: str) -> None:
    """Make an asyncpg connection speak binary for ``vector`` and ``halfvec``.

    Args:
        connection: the driver's connection; any codec it has for the two types is replaced.
        schema: where the extension lives.
    """
    for column_type, decode in (("vector", _decode_vector), ("halfvec", _decode_halfvec)):
        await connection.set_type_codec(
            column_type,
            schema=schema,
            encoder=_encoder(column_type),
            decoder=decode,
            format="binary",
        )


def _encoder(column_type: Any) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        if isinstance(value, bytes):  # from to_wire
            return value
        return to_wire(_to_array(value)[np.newaxis], column_type)[0]

    return encode


def _to_array(value: Any) -> Float32Array:
    """A float32 array of whatever stands for a vector: pgvector's objects and text included."""
    if isinstance(value, str):
        value = value.strip("[]").split(",")
    elif hasattr(value, "to_list"):
        value = value.to_list()
    return np.asarray(value, dtype=np.float32)


# What pgvector's own codec decodes to, and its stock column types read, differs between versions.
if tuple(int(part) for part in version("pgvector").split(".")[:2]) >= (0, 5):

    def _decode_vector(wire: bytes) -> Any:
        return pgvector.Vector.from_binary(wire)

else:

    def _decode_vector(wire: bytes) -> Any:
        return pgvector.Vector.from_binary(wire).to_numpy().astype(np.float32)


def _decode_halfvec(wire: bytes) -> Any:
    return pgvector.HalfVector.from_binary(wire)
