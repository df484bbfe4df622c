"""Synchronous access to an asynchronous store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from cenote.stores import PgVectorStore, VectorStore

Result = TypeVar("Result")


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
