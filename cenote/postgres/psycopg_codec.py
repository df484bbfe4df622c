"""Send vectors in pgvector's binary format on connections of psycopg.

psycopg sends bytes as ``bytea`` and lists as text. Private classes of values have dumpers of their
own, which leaves the application's adapters alone. The statement's casts tell the server the type.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from cenote.types import ColumnType


class WireBytes(bytes):
    """A vector encoded by `cenote.postgres.vector.to_wire`."""

    __slots__ = ()


class VectorArray(list[bytes]):
    """Encoded vectors of the type ``vector``."""


class HalfvecArray(list[bytes]):
    """Encoded vectors of the type ``halfvec``."""


ARRAYS: dict[ColumnType, type[list[bytes]]] = {"vector": VectorArray, "halfvec": HalfvecArray}


def install_dumpers(connection: Any, oids: Mapping[str, int]) -> None:
    """Register the dumpers on a psycopg connection.

    Args:
        connection: The driver's connection.
        oids: Oids of the types ``vector`` and ``halfvec``.
    """
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class BytesDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: Any) -> bytes:
            return bytes(obj)

    connection.adapters.register_dumper(WireBytes, BytesDumper)
    for name, array in ARRAYS.items():
        # One dimension without NULLs, and the oid of the elements. Source: array_send() in
        # PostgreSQL's src/backend/utils/adt/arrayfuncs.c.
        header = struct.pack(">iiI", 1, 0, oids[name])

        class ArrayDumper(Dumper):
            format = Format.BINARY
            _header = header

            def dump(self, obj: Any) -> bytes:
                if not obj:
                    return struct.pack(">ii", 0, 0) + self._header[8:]
                parts = [self._header, struct.pack(">ii", len(obj), 1)]
                for item in obj:
                    parts += [struct.pack(">i", len(item)), item]
                return b"".join(parts)

        connection.adapters.register_dumper(array, ArrayDumper)
