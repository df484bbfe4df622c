"""Synchronous and asynchronous calls of an adapter, on either kind of store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeAlias, TypeVar

from cenote.models import Chunk
from cenote.responsive import drive
from cenote.stores import PgVectorStore, SyncVectorStore, VectorStore

Result = TypeVar("Result")
Operation: TypeAlias = Callable[[VectorStore], Coroutine[Any, Any, Result]]
"""Function that returns a coroutine, which awaits nothing but methods of the given store."""


class StoreRunner:
    """Run the operations of an adapter from synchronous and from asynchronous methods.

    =================  ===============================  ==========================
    kind of store      `run`                            `run_async`
    =================  ===============================  ==========================
    `VectorStore`      in the event loop of a           in the caller's event loop
                       background thread
    `SyncVectorStore`  in the caller's thread, without  in another thread, without
                       an event loop                    an event loop
    =================  ===============================  ==========================

    Args:
        store: Store that the operations call.
    """

    def __init__(self, store: VectorStore | SyncVectorStore) -> None:
        # isinstance(store, VectorStore) is also true for a SyncVectorStore: it has the methods.
        self._is_synchronous = isinstance(store, SyncVectorStore)
        awaitable: Any = _AwaitableStore(store) if isinstance(store, SyncVectorStore) else store
        self._store: VectorStore = awaitable
        self._thread = LoopThread(self._store)

    def run(self, operation: Operation[Result]) -> Result:
        """Run an operation and return its result."""
        if self._is_synchronous:
            return drive(operation(self._store))
        return self._thread.run(operation(self._thread.store))

    async def run_async(self, operation: Operation[Result]) -> Result:
        """Run an operation and return its result.

        If the task is cancelled, an operation of a `SyncVectorStore` runs on in its thread.
        """
        if self._is_synchronous:
            return await asyncio.to_thread(self.run, operation)
        return await operation(self._store)

    def close(self) -> None:
        """Stop the background thread, if there is one, and close its connections."""
        self._thread.close()


class _AwaitableStore:
    """A `SyncVectorStore` whose methods are coroutine functions that never suspend.

    Args:
        store: The synchronous store.
    """

    def __init__(self, store: SyncVectorStore) -> None:
        self._sync = store

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._sync, name)
        if not callable(value):
            return value
        return partial(_iterate if name == "get_all_chunks" else _call, value)


async def _call(method: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    return method(*arguments, **options)


def _iterate(
    method: Callable[..., Iterator[Chunk]], *arguments: Any, **options: Any
) -> AsyncIterator[Chunk]:
    chunks = method(*arguments, **options)  # raises errors of the arguments at once

    async def iterate() -> AsyncIterator[Chunk]:
        for chunk in chunks:
            yield chunk

    return iterate()


class LoopThread:
    """Event loop in a background thread that starts at the first call.

    An asyncpg connection works only in the event loop that opened it. The thread therefore uses a
    copy of the store with its own engine and a pool of the same kind.

    Args:
        store: Store to copy. Its engine is not used.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> VectorStore:
        """Copy of the store, for coroutines passed to :meth:`run`."""
        self._start()
        return self._store

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the background thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._start()).result()

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                if isinstance(self._store, PgVectorStore):
                    self._store = self._store.with_own_pool()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Stop the thread and close the connections that synchronous calls opened."""
        with self._lock:
            if self._loop is None or self._thread is None:
                return
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    async def _shut_down(self) -> None:
        """Cancel the calls that other threads still wait for and close the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if isinstance(self._store, PgVectorStore):
            await self._store.engine.dispose()
