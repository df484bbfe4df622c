"""Connections to Postgres: connection strings, engines, errors, and preparation for vectors."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cache
from numbers import Integral, Real
from typing import Any
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from sqlalchemy import NullPool, Pool, QueuePool, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from cenote.errors import ConfigurationError, StoreConnectionError, VectorStoreError
from cenote.pg_catalog import pg_extension, pg_namespace
from cenote.sqltypes import install_codec

OLDEST_PGVECTOR = (0, 8)
"""Minimum version of pgvector. 0.8 added iterative index scans, without which a filtered search
loses results."""


@cache
def database_errors() -> tuple[type[Exception], ...]:
    """Return the errors of SQLAlchemy, and the driver's errors that SQLAlchemy does not wrap.

    Importing the driver takes time, so it is imported only when there is an error.
    """
    import asyncpg

    driver_errors = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    return SQLAlchemyError, OSError, *driver_errors


_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")

_DRIVER_ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "ssl": ("ssl", lambda value: {"true": True, "false": False}.get(value, value)),
    "connect_timeout": ("timeout", float),
    "command_timeout": ("command_timeout", float),
    "statement_cache_size": ("statement_cache_size", int),
    "max_cached_statement_lifetime": ("max_cached_statement_lifetime", int),
    "max_cacheable_statement_size": ("max_cacheable_statement_size", int),
    "prepared_statement_cache_size": ("prepared_statement_cache_size", int),
}
"""Query arguments of a connection string that asyncpg and the dialect accept as keywords, with
their keywords and converters."""

_BACKOFF_CAP_SECONDS = 30.0

_logger = logging.getLogger(__name__)

_PREPARED = "cenote_prepared"

EXTENSION_QUERY = (
    select(pg_extension.c.extversion, pg_namespace.c.nspname)
    .join(pg_namespace, pg_namespace.c.oid == pg_extension.c.extnamespace)
    .where(pg_extension.c.extname == "vector")
)


def create_engine(dsn: str, *, pool_size: int = 5, timeout: float = 10.0) -> AsyncEngine:
    """Create an engine for a connection string.

    SQLAlchemy parses the string. Its query may contain arguments of libpq (``sslmode``,
    ``sslrootcert``, ``connect_timeout``, ``target_session_attrs``, ...), of asyncpg (``ssl``,
    ``command_timeout``, ``statement_cache_size``, ...), the dialect's
    ``prepared_statement_cache_size``, and server settings such as ``application_name``. For several
    hosts, write ``?host=a:5432&host=b:5432``.

    Each connection starts with ``jit=off``, because JIT costs more than it saves on short queries
    over many partitions. With PgBouncer, add it to ``ignore_startup_parameters``.

    Args:
        dsn: Connection string that starts with ``postgresql://``, ``postgres://`` or
            ``postgresql+asyncpg://``.
        pool_size: Maximum number of connections; there is no overflow.
        timeout: Maximum seconds for one attempt to connect.

    Raises:
        ConfigurationError: The connection string is invalid.
    """
    url = _read_dsn(dsn)
    address = {name: value for name, value in url.query.items() if name in ("host", "port")}
    arguments, rest = _driver_arguments(url)
    try:
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg", query=address),
            connect_args={
                "timeout": timeout,
                "server_settings": {"jit": "off"},
                # asyncpg accepts libpq's arguments only as a string.
                "dsn": "postgresql://?" + urlencode(rest) if rest else None,
                **arguments,
            },
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
        )
    except (ArgumentError, ValueError):  # several hosts, or text that cannot be encoded
        raise _unreadable_dsn() from None


def asyncpg_engine(engine: AsyncEngine | async_sessionmaker[AsyncSession]) -> AsyncEngine:
    """Return an engine, or the engine that a sessionmaker is bound to.

    Raises:
        ConfigurationError: It is not an `AsyncEngine`, or its driver is not asyncpg.
    """
    bind = engine.kw.get("bind") if isinstance(engine, async_sessionmaker) else engine
    if not isinstance(bind, AsyncEngine):
        raise ConfigurationError(
            "engine must be an AsyncEngine, or an async_sessionmaker bound to one, not "
            f"{type(bind).__name__}; for a connection string: await PgVectorStore.connect(...)",
            setting="engine",
        )
    if bind.dialect.driver != "asyncpg":
        raise ConfigurationError(
            f"engine must use asyncpg (postgresql+asyncpg://...), not {bind.dialect.driver}",
            setting="engine",
        )
    return bind


_loops: WeakKeyDictionary[Pool, asyncio.AbstractEventLoop] = WeakKeyDictionary()
"""Event loop in which each pool was first used."""


def belongs_to_other_loop(engine: AsyncEngine) -> bool:
    """Return whether the engine's pool holds connections of an event loop that is not running."""
    pool, loop = engine.pool, asyncio.get_running_loop()
    if isinstance(pool, NullPool) or _loops.setdefault(pool, loop) is loop:
        return False
    if isinstance(pool, QueuePool) and pool.checkedin() + pool.checkedout() == 0:
        _loops[pool] = loop
        return False
    return True


def check_event_loop(engine: AsyncEngine) -> None:
    """Check that an engine has no connections of another event loop.

    In the running loop they would fail with an error of asyncio, and after that in any loop.

    Raises:
        ConfigurationError: It has.
    """
    if belongs_to_other_loop(engine):
        raise event_loop_error()


async def check_event_loop_of(connection: AsyncConnection) -> None:
    """Check that a connection does not belong to another event loop.

    The pool may have opened it before cenote first used the pool; then only asyncpg knows its loop.
    Two threads at once in asyncpg's protocol can end the process.

    Raises:
        ConfigurationError: It does.
    """
    driver = (await connection.get_raw_connection()).driver_connection
    running = asyncio.get_running_loop()
    if getattr(driver, "_loop", running) is not running:
        forget_loop(connection.engine)
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


def safe_dsn(dsn: str) -> str:
    """Return the connection string without password and query, for messages."""
    return safe_url(_read_dsn(dsn))


def safe_url(url: URL) -> str:
    """Return a URL without password and query, for messages."""
    return url.set(query={}).render_as_string(hide_password=True)


def _read_dsn(dsn: str) -> URL:
    if not isinstance(dsn, str):
        raise ConfigurationError(
            f"the connection string must be text, not {type(dsn).__name__}; is the variable set?",
            setting="dsn",
        )
    if dsn.partition("://")[0] not in _SCHEMES:
        raise ConfigurationError(
            "the connection string must start with postgresql://, postgres:// or "
            "postgresql+asyncpg://",
            setting="dsn",
        )
    try:
        url = make_url(dsn)
    except (ArgumentError, ValueError):
        raise _unreadable_dsn() from None
    if url.host is not None and not set(url.host).isdisjoint("@#?/ "):
        raise _unreadable_dsn()  # part of a password, which must not appear in a message
    return url


def _driver_arguments(url: URL) -> tuple[dict[str, Any], dict[str, str]]:
    """Split a URL's query into keyword arguments of the driver and dialect, and all others."""
    arguments: dict[str, Any] = {}
    rest: dict[str, str] = {}
    for name, value in url.query.items():
        if name in _DRIVER_ARGUMENTS:
            driver_name, kind = _DRIVER_ARGUMENTS[name]
            try:
                arguments[driver_name] = kind(value)
            except (TypeError, ValueError):
                raise ConfigurationError(
                    f"the connection string's {name} must be a number", setting="dsn"
                ) from None
        elif name not in ("host", "port"):
            rest[name] = value if isinstance(value, str) else value[-1]
    return arguments, rest


def _unreadable_dsn() -> ConfigurationError:
    return ConfigurationError(
        "the connection string cannot be read; percent-encode everything in user and password "
        "except letters and digits",
        setting="dsn",
    )


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
        ConfigurationError: The driver cannot read the connection string.
        StoreConnectionError: The error is not transient, or the retries are used up.
    """
    check_event_loop(engine)
    for attempt in range(retries + 1):
        try:
            async with AsyncExitStack() as stack:
                for _ in range(size):
                    await stack.enter_async_context(engine.connect())
            return
        except Exception as error:
            cause = driver_error(error)
            if isinstance(cause, ValueError):  # raised by the driver for an argument in the string
                raise _unreadable_dsn() from None
            if not is_transient(cause) or attempt == retries:
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
            await asyncio.sleep(wait)


def is_transient(error: BaseException) -> bool:
    """Return whether an error while connecting may go away by itself.

    It may if the server is not there yet, starts up, is full or does not answer in time, or if a
    name cannot be resolved for now. A wrong password, database or certificate stays wrong.
    """
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, PermissionError | ssl.SSLError):
        return False
    import asyncpg

    return isinstance(
        error,
        OSError  # refused, reset, timed out, no socket file yet
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
        | asyncpg.ConnectionDoesNotExistError,
    )


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that a connection was refused, broke or was ended.

    SQLAlchemy marks errors of connections that break during use. Other errors are recognised by
    their SQLSTATE class: 08 connection exception, 28 authorization, 3D no such database, 57P
    operator intervention; 53300 too many connections. Source: PostgreSQL manual, appendix A.
    """
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        error = driver_error(error)
    state = getattr(error, "sqlstate", None) or ""
    return isinstance(error, OSError) or state.startswith(("08", "28", "3D", "57P", "53300"))


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error that SQLAlchemy's error wraps."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
        return error.__cause__ or error
    return error


def describe(error: BaseException) -> str:
    """Return an error's type and SQLSTATE, and its text if it is about connecting or resources.

    The text of other errors may quote stored values. Errors about resources (SQLSTATE class 53)
    say, for example, for which file the disk is full.
    """
    state = getattr(error, "sqlstate", None) or ""
    name = type(error).__name__ + (f" ({state})" if state else "")
    text = str(error) if is_lost(error) else ""
    if not text and state.startswith("53"):
        text = str(error.args[0]) if error.args else ""  # without the server's hints
    return f"{name}: {text}" if text else name


_SAFE_CLASSES = ("0A", "2B", "40", "42", "53", "55", "57", "58")
"""SQLSTATE classes whose messages quote no rows: unsupported features, dependent objects, rolled
back transactions, names and syntax, resources, states of objects, operator intervention, system
errors. Source: PostgreSQL manual, appendix A.
"""


def is_safe_to_quote(error: BaseException) -> bool:
    """Return whether an error's message is about connecting, or quotes no rows."""
    state = getattr(driver_error(error), "sqlstate", None) or ""
    return is_lost(error) or state.startswith(_SAFE_CLASSES)


def redact(error: BaseException) -> None:
    """Remove text that may quote rows or parameters from an error and from its causes.

    Postgres puts the whole row into the DETAIL of a violated check, and a value that it cannot read
    into the message. asyncpg quotes values that it cannot send. SQLAlchemy lists the parameters.
    """
    if not type(error).__module__.startswith(("asyncpg.", "sqlalchemy.")):
        return  # an error that the caller was handling
    if not is_safe_to_quote(error):
        name = describe(driver_error(error))
        error.args = (name + "; its message is left out because it may quote rows",)
    if isinstance(error, StatementError):
        error.statement = error.params = None
    else:
        for attribute in ("message", "detail", "hint", "context", "query", "internal_query"):
            if hasattr(error, attribute):
                setattr(error, attribute, None)
    if type(error).__module__.startswith(
        "asyncpg."
    ):  # they quote values that it could not send or decode
        error.__cause__ = error.__context__ = None
    origins = {getattr(error, "orig", None), error.__cause__, error.__context__}
    for origin in origins - {None, error}:
        assert origin is not None
        redact(origin)


def _connection_error(error: BaseException, dsn: str, attempts: int) -> StoreConnectionError:
    times = "once" if attempts == 1 else f"{attempts} times"
    return StoreConnectionError(
        f"cannot connect to {safe_dsn(dsn)} (tried {times}): {describe(error)}",
        attempts=attempts,
        sqlstate=getattr(error, "sqlstate", None),
    )


# -- preparing -------------------------------------------------------------------------------------


async def prepare(connection: AsyncConnection, *, migrations: str) -> None:
    """Prepare a connection for vectors. A pooled connection is prepared once.

    Args:
        connection: The connection.
        migrations: Command that creates the schema, for an error message.

    Raises:
        ConfigurationError: The connection belongs to another event loop.
        VectorStoreError: The vector extension is missing or too old.
    """
    assert connection.sync_connection is not None
    info = connection.sync_connection.info
    if _PREPARED in info:
        return
    await check_event_loop_of(connection)
    installed = (await connection.execute(EXTENSION_QUERY)).one_or_none()
    if installed is None:
        raise VectorStoreError(
            f"the database has no vector extension; run {migrations}, or as a superuser "
            "CREATE EXTENSION vector"
        )
    if parse_version(installed.extversion) < OLDEST_PGVECTOR:
        raise VectorStoreError(outdated_message(installed.extversion))
    raw = await connection.get_raw_connection()
    assert raw.driver_connection is not None
    await install_codec(raw.driver_connection, installed.nspname)
    info[_PREPARED] = True


def parse_version(text: str) -> tuple[int, ...]:
    """Return a version as numbers: ``"0.8.5"`` as ``(0, 8, 5)``."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def outdated_message(version: str) -> str:
    """Return the error message for an outdated pgvector."""
    oldest = ".".join(str(part) for part in OLDEST_PGVECTOR)
    return (
        f"the server has pgvector {version}; cenote requires {oldest} or newer: install it on the "
        "server, then run ALTER EXTENSION vector UPDATE"
    )
