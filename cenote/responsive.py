"""Keep the event loop responsive, and do without one on synchronous drivers.

There is one implementation of each operation, a coroutine. On a synchronous driver it never waits
for an event loop: `drive` runs it to its end in the caller's thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

Result = TypeVar("Result")

LONG_SECONDS = 0.01
"""Estimated duration from which a computation runs in a thread. The way there and back takes about
0.2 ms."""

_SLICE_SECONDS = 0.005
"""Time after which a loop lets other tasks run. A pause takes about 0.03 ms."""

_MAX_THREADS = 8


class Pauses:
    """Pauses of a loop that runs in the event loop's thread.

    Call it after each step; the first slice begins when the object is created::

        pauses = Pauses()
        for block in blocks:
            convert(block)
            await pauses()
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def __call__(self) -> None:
        """Let other tasks run, if the loop has run for `_SLICE_SECONDS` since the last pause."""
        if time.perf_counter() - self._since > _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


def start_in_thread(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Start a function in a thread, with the caller's context variables.

    The threads are cenote's own. The application's threads, which `asyncio.to_thread` uses, may all
    be waiting for an operation of a store; a computation of that operation would then never start.
    """
    future: Future[Result] = _threads().submit(copy_context().run, function, *arguments)
    return future


async def run_in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a thread; see :func:`start_in_thread`.

    If the task is cancelled while the function runs, the function runs on; see
    :func:`stop_at_exit`.
    """
    if is_driving():
        return function(*arguments)
    return await asyncio.wrap_future(start_in_thread(function, *arguments))


async def run(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a thread if its estimated duration is long, otherwise right here."""
    if seconds < LONG_SECONDS:
        return function(*arguments)
    return await run_in_thread(function, *arguments)


@contextmanager
def stop_at_exit() -> Iterator[threading.Event]:
    """Return an event that is set when the block ends, also if its task is cancelled.

    A function that runs in a thread checks the event after each step.
    """
    stop = threading.Event()
    try:
        yield stop
    finally:
        stop.set()


_executor: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _threads() -> ThreadPoolExecutor:
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(
                min(_MAX_THREADS, (os.cpu_count() or 1) + 1), thread_name_prefix="cenote"
            )
        return _executor


def _forget_threads() -> None:
    """Forget the threads of the parent process: a fork does not copy them."""
    global _executor, _lock
    _executor, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


# -- without an event loop -------------------------------------------------------------------------

_NOT_DRIVING = object()

_driving: ContextVar[object] = ContextVar("cenote_driving", default=_NOT_DRIVING)
"""Event loop of the thread that drives a coroutine; None if it has none."""


def is_driving() -> bool:
    """Return whether the current coroutine runs without an event loop.

    The application's code that a driven coroutine calls, such as an iterator of chunks, may run an
    event loop of its own, whose coroutines are not driven.
    """
    loop = _driving.get()
    return loop is not _NOT_DRIVING and loop is asyncio._get_running_loop()


def drive(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine of cenote to its end, and return its result.

    Pauses for other tasks (``asyncio.sleep(0)``) are skipped.

    Raises:
        RuntimeError: The coroutine waits for an event loop.
    """
    token = _driving.set(asyncio._get_running_loop())
    try:
        while True:
            try:
                waiting_for = coroutine.send(None)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            if waiting_for is not None:
                coroutine.throw(RuntimeError("a synchronous operation waits for an event loop"))
    finally:
        coroutine.close()
        _driving.reset(token)


def drive_iterator(iterator: AsyncIterator[Result]) -> Iterator[Result]:
    """Iterate over an asynchronous iterator of cenote."""
    try:
        while True:
            try:
                yield drive(anext(iterator))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            drive(close())


async def sleep(seconds: float) -> None:
    """Sleep, in the event loop or in the thread."""
    if is_driving():
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop to block
    else:
        await asyncio.sleep(seconds)
