"""The stores: one protocol, `VectorStore`, and two that obey it."""

from cenote.stores.base import VectorStore
from cenote.stores.memory import InMemoryVectorStore

__all__ = ["InMemoryVectorStore", "VectorStore"]
