"""Map chunk tables: a mixin for an application's own models, and the default model."""

from cenote.orm.mixin import (
    NAMING_CONVENTION,
    ChunkMixin,
    ChunkRow,
    HalfvecType,
    VectorType,
    metadata_index,
)

__all__ = [
    "NAMING_CONVENTION",
    "ChunkMixin",
    "ChunkRow",
    "HalfvecType",
    "VectorType",
    "metadata_index",
]
