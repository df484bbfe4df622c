"""Detect connections that belong to another event loop, and cancellations that get lost."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from sqlalchemy import NullPool, Pool, PoolProxiedConnection, QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.errors import ConfigurationError
from cenote.responsive import is_driving

_loops: WeakKeyDictionary[Pool, asyncio.AbstractEventLoop] = WeakKeyDictionary()
"""Event loop in which each pool was first used."""


def belongs_to_other_loop(engine: AsyncEngine) -> bool:
    """Return whether the engine's pool has connections of another event loop."""
    if is_driving():
        return False
    pool, loop = engine.pool, asyncio.get_running_loop()
    if isinstance(pool, NullPool) or _loops.setdefault(pool, loop) is loop:
        return False
    if isinstance(pool, QueuePool) and pool.checkedin() + pool.checkedout() == 0:
        _loops[pool] = loop
        return False
    return True


def check_event_loop(engine: AsyncEngine) -> None:
    """Check that an engine has no connections of another event loop.

    In the running loop, such connections would raise an error of asyncio, and after that they would
    fail in every loop.

    Raises:
        ConfigurationError: The engine has connections of another event loop.
    """
    if belongs_to_other_loop(engine):
        raise event_loop_error()


def check_event_loop_of(engine: AsyncEngine, connection: PoolProxiedConnection) -> None:
    """Check that a connection of an engine's pool does not belong to another event loop.

    If the pool opened the connection before cenote first used the pool, only asyncpg knows the
    connection's loop. If two threads run asyncpg's protocol at the same time, the process can
    crash.

    Raises:
        ConfigurationError: The connection belongs to another event loop.
    """
    if is_driving():
        return
    running = asyncio.get_running_loop()
    if getattr(connection.driver_connection, "_loop", running) is not running:
        forget_loop(engine)
        raise event_loop_error()


def forget_loop(engine: AsyncEngine) -> None:
    """Forget the event loop of an engine's pool, so that the next check determines it again."""
    _loops.pop(engine.pool, None)


def event_loop_error() -> ConfigurationError:
    """Return the error for connections of another event loop."""
    return ConfigurationError(
        "the engine has connections of another event loop: use one engine per loop, and await "
        "engine.dispose() before the loop ends; if it has ended, await "
        "engine.dispose(close=False) in the next one",
        setting="engine",
    )


_LOOP_ERRORS = ("different loop", "different event loop", "Event loop is closed")


def is_event_loop_error(error: RuntimeError) -> bool:
    """Return whether asyncio's error is about another event loop, or about a closed one."""
    return any(words in str(error) for words in _LOOP_ERRORS)


def cancellations() -> int:
    """Return the number of cancellations that the current task has been asked for."""
    task = None if is_driving() else asyncio.current_task()
    return 0 if task is None else task.cancelling()


def raise_lost_cancellation(before: int) -> None:
    """Raise a cancellation that has been lost while a connection was borrowed from the pool.

    On Python 3.11, SQLAlchemy's pool loses a cancellation that arrives together with a connection:
    its `asyncio.wait_for` returns the connection instead (Python's issue 86296). SQLAlchemy 2.0.56
    and newer avoid it.

    Args:
        before: Result of `cancellations` before the connection was borrowed. A task that cleans up
            after its own cancellation starts with 1.

    Raises:
        CancelledError: The task has been cancelled since.
    """
    if cancellations() > before:
        raise asyncio.CancelledError
