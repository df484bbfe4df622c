"""The stores: one protocol, `VectorStore`, and two that obey it."""

from cenote.stores.memory.store import InMemoryVectorStore
from cenote.stores.pgvector.store import PgVectorStore
from cenote.stores.protocol import VectorStore

__all__ = ["InMemoryVectorStore", "PgVectorStore", "VectorStore"]
