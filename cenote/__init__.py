"""Multi-tenant vector search in your Postgres database, with SQLAlchemy."""

from cenote.config import SchemaConfig
from cenote.errors import (
    CenoteError,
    ConfigurationError,
    DimensionMismatchError,
    InvalidInputError,
    MigrationError,
    StoreConnectionError,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.filters.language import Filter, field, meta
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.orm.mixin import ChunkMixin, ChunkRow
from cenote.stores import (
    InMemoryVectorStore,
    PgVectorStore,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
    SyncVectorStore,
    VectorStore,
)

__all__ = [
    "CenoteError",
    "Chunk",
    "ChunkMixin",
    "ChunkRow",
    "ConfigurationError",
    "DimensionMismatchError",
    "EmbeddedChunk",
    "Filter",
    "InMemoryVectorStore",
    "InvalidInputError",
    "MigrationError",
    "PgVectorStore",
    "RetrievalResult",
    "SchemaConfig",
    "StoreConnectionError",
    "StoreTimeoutError",
    "SyncInMemoryVectorStore",
    "SyncPgVectorStore",
    "SyncVectorStore",
    "VectorStore",
    "VectorStoreError",
    "field",
    "meta",
]
