"""Open and check connection pools."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from numbers import Integral, Real
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)

from cenote.errors import ConfigurationError, StoreConnectionError
from cenote.postgres.driver_errors import describe, driver_error, is_transient, redact
from cenote.postgres.dsn import safe_dsn, unreadable_dsn
from cenote.postgres.event_loops import check_event_loop
from cenote.responsive import sleep

_logger = logging.getLogger(__name__)

_BACKOFF_CAP_SECONDS = 30.0


def async_engine(
    engine: AsyncEngine | AsyncConnection | async_sessionmaker[AsyncSession],
) -> AsyncEngine:
    """Return an engine, or the engine of a connection or of a sessionmaker.

    Raises:
        ConfigurationError: There is no `AsyncEngine`, or its driver is neither asyncpg nor psycopg.
    """
    bind: Any = engine.kw.get("bind") if isinstance(engine, async_sessionmaker) else engine
    if isinstance(bind, AsyncConnection):
        bind = bind.engine
    if isinstance(bind, AsyncSession | async_scoped_session):
        raise ConfigurationError(
            "engine must be an AsyncEngine; for a store whose calls join a session: "
            "PgVectorStore(engine, ...).in_session(session)",
            setting="engine",
        )
    if not isinstance(bind, AsyncEngine):
        remedy = "for a connection string: await PgVectorStore.connect(...)"
        if isinstance(bind, Engine | Connection):
            remedy = "SyncPgVectorStore takes an Engine"
        raise ConfigurationError(
            "engine must be an AsyncEngine, an AsyncConnection, or an async_sessionmaker, not "
            f"{type(bind).__name__}; {remedy}",
            setting="engine",
        )
    if bind.dialect.driver not in ("asyncpg", "psycopg"):
        raise ConfigurationError(
            "engine must use asyncpg (postgresql+asyncpg://...) or psycopg 3 "
            f"(postgresql+psycopg://...), not {bind.dialect.driver}",
            setting="engine",
        )
    return bind


# -- opening ---------------------------------------------------------------------------------------


def check_pool_arguments(
    min_size: int, max_size: int, retries: int, backoff: float, timeout: float
) -> None:
    """Check the sizes, retries and times of a pool. Numbers of numpy are accepted, too.

    Raises:
        ConfigurationError: A value is invalid; the error names the argument.
    """
    rules: list[tuple[str, Any, type, Callable[[Any], bool], str]] = [
        ("max_size", max_size, Integral, lambda n: n >= 1, "an integer of 1 or more"),
        (
            "min_size",
            min_size,
            Integral,
            lambda n: 0 <= n <= max_size,
            "an integer from 0 to max_size",
        ),
        ("startup_retries", retries, Integral, lambda n: n >= 0, "an integer of 0 or more"),
        (
            "startup_backoff_seconds",
            backoff,
            Real,
            lambda n: 0 <= n <= 1e9,
            "a number from 0 to 1e9",
        ),
        ("timeout", timeout, Real, lambda n: 0 < n <= 1e9, "a number above 0 and at most 1e9"),
    ]
    for setting, value, kind, is_in_range, rule in rules:
        if not isinstance(value, kind) or isinstance(value, bool) or not is_in_range(value):
            raise ConfigurationError(f"{setting} must be {rule}", setting=setting)


async def open_pool(
    engine: AsyncEngine, size: int, retries: int, backoff_seconds: float, *, dsn: str
) -> None:
    """Open connections and leave them in the engine's pool. Wait for a server that starts up.

    Args:
        engine: Engine whose pool to fill.
        dsn: Its connection string, for the error message.
        size: Number of connections to open.
        retries: Maximum number of retries after transient errors.
        backoff_seconds: First wait. It doubles each time, up to 30 s, minus a random part.

    Raises:
        ConfigurationError: The driver or the server rejects a parameter of the connection string.
        StoreConnectionError: An error is not transient, or the last retry failed too.
    """
    check_event_loop(engine)
    for attempt in range(retries + 1):
        try:
            async with AsyncExitStack() as stack:
                for _ in range(size):
                    await stack.enter_async_context(engine.connect())
            return
        except ConfigurationError:
            raise
        except Exception as error:
            cause = driver_error(error)
            if type(cause).__name__ == "ProgrammingError":  # libpq's, which names a parameter
                problem = str(cause).partition("\n")[0]
                raise ConfigurationError(
                    f"the driver rejects it: {problem}", setting="dsn"
                ) from None
            if isinstance(cause, ValueError):  # raised by the driver for an argument in the string
                raise unreadable_dsn() from None
            if not is_transient(cause) or attempt == retries:
                redact(error)  # the connection in psycopg's error contains the password
                raise _connection_error(cause, dsn, attempt + 1) from cause
            wait = min(backoff_seconds * 2**attempt, _BACKOFF_CAP_SECONDS)
            wait *= random.uniform(0.5, 1.0)
            _logger.warning(
                "cannot connect to %s: %s; retrying in %.1f s (%d of %d)",
                safe_dsn(dsn),
                describe(cause),
                wait,
                attempt + 1,
                retries,
            )
            await sleep(wait)


def _connection_error(error: BaseException, dsn: str, attempts: int) -> StoreConnectionError:
    times = "once" if attempts == 1 else f"{attempts} times"
    return StoreConnectionError(
        f"cannot connect to {safe_dsn(dsn)} (tried {times}): {describe(error)}",
        attempts=attempts,
        sqlstate=getattr(error, "sqlstate", None),
    )
