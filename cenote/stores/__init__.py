"""The stores: one protocol, `VectorStore`, and two that obey it."""

from cenote.stores.base import VectorStore
from cenote.stores.memory import InMemoryVectorStore
from cenote.stores.pgvector import PgVectorStore

__all__ = ["InMemoryVectorStore", "PgVectorStore", "VectorStore"]
