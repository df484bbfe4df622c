"""Map the chunk table: `ChunkMixin` for user models, `ChunkRow` for the default table."""

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
