"""Synchronous stores on psycopg, also for tests that await."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from cenote import SyncPgVectorStore


class Awaited:
    """A synchronous store with the methods of the asynchronous one.

    Args:
        store: The synchronous store.
        in_threads: Run each call in a thread, so that tasks of a test call the store at the same
            time. Otherwise, calls block the event loop.
    """

    def __init__(self, store: Any, *, in_threads: bool = False) -> None:
        self.sync = store
        self._in_threads = in_threads

    def __repr__(self) -> str:
        return repr(self.sync)

    async def __aenter__(self) -> Awaited:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._call(self.sync.close)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return getattr(self.sync._store, name)
        value = getattr(self.sync, name)
        if name == "get_all_chunks":
            return lambda *args, **options: self._iterate(value(*args, **_synchronous(options)))
        if name in ("tenant", "deferred_ann_index"):
            return lambda *args, **options: self._enter(value, *args, **options)
        if name == "in_session":
            return lambda session: Awaited(value(_bound_to(session)), in_threads=self._in_threads)
        if not inspect.ismethod(value) or name == "search_statement":
            return value
        return lambda *args, **options: self._call(value, *args, **_synchronous(options))

    async def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self._in_threads:
            return await asyncio.to_thread(function, *args, **options)
        return function(*args, **options)

    async def _iterate(self, chunks: Iterator[Any]) -> AsyncIterator[Any]:
        end = object()
        while (chunk := await self._call(next, chunks, end)) is not end:
            yield chunk

    @asynccontextmanager
    async def _enter(
        self, method: Callable[..., AbstractContextManager[None]], *args: Any, **options: Any
    ) -> AsyncIterator[None]:
        with method(*map(_bound_to, args), **options):
            yield


def _synchronous(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _bound_to(value) if name == "session" else value for name, value in options.items()
    }


def _bound_to(session: Any) -> Any:
    """Return the synchronous session or connection of an asynchronous one."""
    if isinstance(session, AsyncSession):
        return session.sync_session
    if isinstance(session, AsyncConnection):
        return session.sync_connection
    return session


@contextmanager
def sync_store(dsn: str, dimensions: int, **settings: Any) -> Iterator[SyncPgVectorStore[Any]]:
    """Yield a store with a migrated table. At the end all connections must be in the pool."""
    engine = create_engine(make_url(dsn).set(drivername="postgresql+psycopg"))
    store: SyncPgVectorStore = SyncPgVectorStore(engine, dimensions, **settings)
    store.apply_migrations()
    yield store
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()
