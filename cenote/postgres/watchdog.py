"""Cancel the statements of synchronous connections that take too long.

One thread watches the statements of all stores. To start a `threading.Timer` for each statement
took 0.3 ms, a third of a short search.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

_PAUSE_SECONDS = 0.5
"""Time between two cancellations of a block that does not end."""

CANCEL_SECONDS = 5.0
"""Time that the server has to end a statement. Then the connection is given up."""


class TimeLimit:
    """Limits the time of the block that it is entered for.

    Args:
        seconds: Time after which the connection is cancelled.
        driver: Connection of psycopg.

    If the block has not ended `CANCEL_SECONDS` later, the connection's socket is shut down. What
    waits for the server then raises an error, also if the network drops all packets.

    Attributes:
        expired: True if the time is up. The statement may have ended before it was cancelled.
        disconnected: True if the connection was given up. It is closed when the block ends.
        may_cancel: False after `stop_cancelling`.
    """

    __slots__ = (
        "_driver",
        "_is_over",
        "_lock",
        "deadline",
        "disconnected",
        "expired",
        "may_cancel",
    )

    def __init__(self, seconds: float, driver: Any) -> None:
        self.deadline = time.monotonic() + seconds
        self.expired = False
        self.disconnected = False
        self._driver = driver
        self._lock = threading.Lock()
        self.may_cancel = True
        self._is_over = False

    def __enter__(self) -> TimeLimit:
        _watchdog.watch(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._is_over = True
        _watchdog.forget(self)
        if self.disconnected:
            with suppress(Exception):
                self._driver.close()  # the pool must not keep it

    def stop_cancelling(self) -> None:
        """Cancel no later statement of the block, which only loses its connection.

        A COMMIT that waits for synchronous replication reports success if it is cancelled.
        """
        with self._lock:
            self.may_cancel = False

    def expire(self) -> None:
        """Cancel the connection until the block has ended, and then give the connection up.

        The server ignores a cancellation that arrives before or between two statements. A proxy may
        answer it although the server is gone.
        """
        ends = time.monotonic() + CANCEL_SECONDS
        while (remaining := ends - time.monotonic()) > 0:
            with self._lock:  # the block's end waits: the next user must not be cancelled
                if self._is_over:
                    return
                self.expired = True
                if self.may_cancel:
                    cancel(self._driver, remaining)
            time.sleep(min(_PAUSE_SECONDS, max(0.0, ends - time.monotonic())))
        with self._lock:
            if not self._is_over:
                self.expired = self.disconnected = True
                _shut_down(self._driver)


def cancel(driver: Any, seconds: float = CANCEL_SECONDS) -> None:
    """Ask the server to cancel the statement of a connection of psycopg.

    The request is a connection of its own. psycopg limits its time with libpq 17 or newer, which
    psycopg's binary package contains.
    """
    with suppress(Exception):  # the server or the connection may be gone
        driver.cancel_safe(timeout=seconds)


def _shut_down(driver: Any) -> None:
    """Shut down the socket of a connection of psycopg, so that no thread waits for it."""
    # Nothing prevents that libpq closes the descriptor after fileno(), within microseconds.
    with suppress(Exception):  # the connection may be closed
        connected = socket.socket(fileno=driver.fileno())
        try:
            connected.shutdown(socket.SHUT_RDWR)
        finally:
            connected.detach()  # libpq closes the socket


class _Watchdog:
    """A thread that waits for the next deadline."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: set[TimeLimit] = set()
        self._wakes_at = 0.0
        self._runs = False

    def watch(self, limit: TimeLimit) -> None:
        with self._changed:
            if not self._runs:
                threading.Thread(target=self._run, name="cenote-timeouts", daemon=True).start()
                self._runs = True
                self._wakes_at = limit.deadline
            elif limit.deadline < self._wakes_at:
                self._wakes_at = limit.deadline
                self._changed.notify()
            self._limits.add(limit)

    def forget(self, limit: TimeLimit) -> None:
        with self._changed:
            self._limits.discard(limit)

    def _run(self) -> None:
        while expired := self._wait():
            for limit in expired:
                self._expire(limit)

    def _expire(self, limit: TimeLimit) -> None:
        """Expire a limit in a thread: others must not wait for a server that does not answer."""
        try:
            threading.Thread(target=limit.expire, name="cenote-cancel", daemon=True).start()
        except RuntimeError:  # the process has too many threads
            limit.deadline = time.monotonic() + _PAUSE_SECONDS
            self.watch(limit)

    def _wait(self) -> list[TimeLimit]:
        """Wait until a limit expires. Return no limit if there is nothing left to watch."""
        with self._changed:
            while True:
                now = time.monotonic()
                expired = [limit for limit in self._limits if limit.deadline <= now]
                if expired:
                    self._limits.difference_update(expired)
                    return expired
                if not self._limits and self._wakes_at <= now:
                    self._runs = False
                    return []
                deadlines = [limit.deadline for limit in self._limits]
                self._wakes_at = min(deadlines, default=self._wakes_at)
                self._changed.wait(self._wakes_at - now)


_watchdog = _Watchdog()


def _forget_thread() -> None:
    """Forget the thread of the parent process: a fork does not copy it."""
    global _watchdog
    _watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread)
