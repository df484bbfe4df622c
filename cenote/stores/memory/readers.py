"""Threads that read a namespace, and the writes that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

from cenote.responsive import LONG_SECONDS, Result, is_driving, start_in_thread


class Readers:
    """The threads that read one namespace.

    The namespace must not change while a thread reads it. A copy of its vectors would take 20 ms of
    the event loop for 50,000 vectors of 384 dimensions, so writes wait for the threads instead.
    Threads that are asked for while a write waits start after the write.

    Everything runs in the event loop, except that a thread removes itself when it ends.
    """

    def __init__(self) -> None:
        # Each future is done when the thread, or the write, has ended.
        self._running: set[Future[None]] = set()
        self._writes: set[Future[None]] = set()

    @property
    def any_running(self) -> bool:
        """True if a thread reads the namespace."""
        return bool(self._running)

    async def run(self, seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function that reads the namespace; see `cenote.responsive.run`."""
        if seconds < LONG_SECONDS or is_driving():
            return function(*arguments)
        while self._writes:
            await _wait(self._writes)
        ended: Future[None] = Future()

        def end(_: Future[Result]) -> None:
            self._running.discard(ended)
            ended.set_result(None)

        future = start_in_thread(function, *arguments)
        self._running.add(ended)
        future.add_done_callback(end)  # even if the task is cancelled, the thread reads on
        return await asyncio.wrap_future(future)

    async def finish(self) -> None:
        """Wait until no thread reads the namespace."""
        write: Future[None] = Future()
        self._writes.add(write)
        try:
            while self._running:
                await _wait(self._running)
        finally:
            self._writes.discard(write)
            write.set_result(None)


async def _wait(futures: Collection[Future[None]]) -> None:
    # A thread that ends meanwhile removes its future from the set.
    if current := [*futures]:
        await asyncio.wait([asyncio.wrap_future(future) for future in current])
