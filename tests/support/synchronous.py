"""Synchronous stores on psycopg, also for the contract suite, which awaits."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, make_url

from cenote import SyncPgVectorStore


class Awaited:
    """A synchronous store with the asynchronous methods that the contract suite calls.

    Args:
        store: The synchronous store.
    """

    def __init__(self, store: Any) -> None:
        self.sync = store

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.sync, name)
        if name == "get_all_chunks":
            return lambda *arguments, **options: _iterate(value(*arguments, **options))
        if not inspect.ismethod(value) or name in ("search_statement", "in_session"):
            return value

        async def call(*arguments: Any, **options: Any) -> Any:
            return value(*arguments, **options)

        return call


async def _iterate(chunks: Iterator[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


@contextmanager
def sync_store(dsn: str, dimensions: int, **settings: Any) -> Iterator[SyncPgVectorStore[Any]]:
    """Yield a store with a migrated table. At the end all connections must be in the pool."""
    engine = create_engine(make_url(dsn).set(drivername="postgresql+psycopg"))
    store: SyncPgVectorStore = SyncPgVectorStore(engine, dimensions, **settings)
    store.apply_migrations()
    yield store
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()
