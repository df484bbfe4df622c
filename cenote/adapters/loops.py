"""Synchronous calls of an asynchronous store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from cenote.stores import PgVectorStore, VectorStore

Result = TypeVar("Result")


class LoopThread:
    """An event loop in a thread of its own, which starts at the first call.

    asyncpg's connections belong to the loop in which they were made. So the store gets here an
    engine of its own, with a pool like that of the other one.

    Args:
        store: the store, whose own engine is not touched.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> VectorStore:
        """The store for coroutines that are given to :meth:`run`."""
        self._start()
        return self._store

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine, for which the calling thread waits."""
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
        """Close the connections that synchronous calls opened."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            if isinstance(self._store, PgVectorStore):
                dispose = self._store.engine.dispose()
                asyncio.run_coroutine_threadsafe(dispose, loop).result()
            loop.call_soon_threadsafe(loop.stop)
            assert self._thread is not None
            self._thread.join()
            loop.close()
