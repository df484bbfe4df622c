"""The stores: two protocols, and two stores that obey them, with and without ``await``."""

from cenote.stores.memory.store import InMemoryVectorStore
from cenote.stores.memory.synchronous import SyncInMemoryVectorStore
from cenote.stores.pgvector.store import PgVectorStore
from cenote.stores.pgvector.synchronous import SyncPgVectorStore
from cenote.stores.protocol import VectorStore
from cenote.stores.synchronous import SyncVectorStore

__all__ = [
    "InMemoryVectorStore",
    "PgVectorStore",
    "SyncInMemoryVectorStore",
    "SyncPgVectorStore",
    "SyncVectorStore",
    "VectorStore",
]
