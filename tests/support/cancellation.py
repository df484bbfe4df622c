"""Cancel a call at a chosen place, whatever the load of the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Literal

When = Literal["before", "during", "after"]


class CancelledAt:
    """Awaits a coroutine, and cancels the task when the coroutine waits for the n-th time.

    Args:
        coroutine: The coroutine.
        number: Number of the wait, from 1.
        when: "before" cancels what the coroutine waits for at once, and "during" after half a
            millisecond. "after" cancels the task when that is done, but before the coroutine goes
            on: its result is lost.

    Attributes:
        waits: Number of times that the coroutine has waited.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], number: int, when: When = "before"
    ) -> None:
        self._coroutine = coroutine
        self._number = number
        self._when = when
        self.waits = 0

    def __await__(self) -> Generator[Any, None, Any]:
        error: BaseException | None = None
        while True:
            try:
                wait = self._coroutine.throw(error) if error else self._coroutine.send(None)
            except StopIteration as stop:
                return stop.value
            self.waits += 1
            if self.waits == self._number:
                self._cancel(wait)
            error = None
            try:
                yield wait
            except BaseException as thrown:
                error = thrown

    def _cancel(self, wait: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._when == "during":
            asyncio.get_running_loop().call_later(0.0005, task.cancel)
        elif self._when == "before" or wait is None:  # None lets other tasks run
            task.cancel()
        else:
            wait.add_done_callback(lambda _: task.cancel())
