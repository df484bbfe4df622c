"""Reaching Postgres: connection strings, engines, what may be tried again, and each connection's
preparation for vectors."""

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
"""Iterative index scans, without which a filtered search loses results, came with pgvector 0.8."""


@cache
def database_errors() -> tuple[type[Exception], ...]:
    """What SQLAlchemy raises, and the driver where it does not wrap that.

    The driver's import takes time, and waits until there is an error.
    """
    import asyncpg

    own = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    return SQLAlchemyError, OSError, *own


"""What the driver raises, where SQLAlchemy does not wrap it."""

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
"""Arguments of a connection string that asyncpg and the dialect take by name, and their types."""

_BACKOFF_CAP_SECONDS = 30.0

_logger = logging.getLogger(__name__)

_PREPARED = "cenote_prepared"

EXTENSION_QUERY = (
    select(pg_extension.c.extversion, pg_namespace.c.nspname)
    .join(pg_namespace, pg_namespace.c.oid == pg_extension.c.extnamespace)
    .where(pg_extension.c.extname == "vector")
)


def create_engine(dsn: str, *, pool_size: int = 5, timeout: float = 10.0) -> AsyncEngine:
    """An engine for a connection string.

    SQLAlchemy reads the string. Its query takes libpq's arguments (``sslmode``, ``sslrootcert``,
    ``connect_timeout``, ``target_session_attrs``, ...), asyncpg's (``ssl``, ``command_timeout``,
    ``statement_cache_size``, ...), the dialect's ``prepared_statement_cache_size``, and server
    settings such as ``application_name``; for several hosts ``?host=a:5432&host=b:5432``.

    Each connection starts with ``jit=off``, since JIT costs more than it saves on short queries
    over many partitions; PgBouncer wants that in its ``ignore_startup_parameters``.

    Args:
        dsn: ``postgresql://``, ``postgres://`` or ``postgresql+asyncpg://``.
        pool_size: the most connections; no overflow.
        timeout: seconds that one attempt to connect may take.

    Raises:
        ConfigurationError: this is no such string.
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
                # libpq's own arguments, which asyncpg takes from a string only.
                "dsn": "postgresql://?" + urlencode(rest) if rest else None,
                **arguments,
            },
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
        )
    except (ArgumentError, ValueError):  # of several hosts, or of text that cannot be encoded
        raise _unreadable_dsn() from None


def asyncpg_engine(engine: AsyncEngine | async_sessionmaker[AsyncSession]) -> AsyncEngine:
    """The engine of a caller's, or the one that its sessionmaker is bound to.

    Raises:
        ConfigurationError: it is none, or another driver's.
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
"""The event loop in which each pool was first seen."""


def is_of_other_loop(engine: AsyncEngine) -> bool:
    """Whether the engine's pool holds connections of another event loop than the running one."""
    pool, loop = engine.pool, asyncio.get_running_loop()
    if isinstance(pool, NullPool) or _loops.setdefault(pool, loop) is loop:
        return False
    if isinstance(pool, QueuePool) and pool.checkedin() + pool.checkedout() == 0:
        _loops[pool] = loop
        return False
    return True


def refuse_other_loop(engine: AsyncEngine) -> None:
    """Refuse an engine with connections of another event loop.

    In this one they would fail in asyncio's words, and from then on in any.

    Raises:
        ConfigurationError: it has such.
    """
    if is_of_other_loop(engine):
        raise other_loop()


async def refuse_of_other_loop(connection: AsyncConnection) -> None:
    """Refuse a connection of another event loop, which the pool had before cenote saw either.

    Two threads at once in asyncpg's protocol can end the process. Of a new connection only asyncpg
    knows the loop.

    Raises:
        ConfigurationError: it is such a one.
    """
    driver = (await connection.get_raw_connection()).driver_connection
    running = asyncio.get_running_loop()
    if getattr(driver, "_loop", running) is not running:
        forget_loop(connection.engine)
        raise other_loop()


def forget_loop(engine: AsyncEngine) -> None:
    """Ask again whose the engine's connections are: it is not the loop that was seen first."""
    _loops.pop(engine.pool, None)


def other_loop() -> ConfigurationError:
    """What to say of connections of another event loop."""
    return ConfigurationError(
        "the engine has connections of another event loop: have an engine for each loop, and await "
        "engine.dispose() before it ends; where it has ended, await engine.dispose(close=False) "
        "in the next one",
        setting="engine",
    )


_OF_LOOPS = ("different loop", "different event loop", "Event loop is closed")


def is_about_loops(error: RuntimeError) -> bool:
    """Whether asyncio says that something belongs to another event loop, or to one that is over."""
    return any(words in str(error) for words in _OF_LOOPS)


def safe_dsn(dsn: str) -> str:
    """The connection string without password and query, for people to read."""
    return safe_url(_read_dsn(dsn))


def safe_url(url: URL) -> str:
    """A URL without password and query, for people to read."""
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
        raise _unreadable_dsn()  # part of a password, which no message may show
    return url


def _driver_arguments(url: URL) -> tuple[dict[str, Any], dict[str, str]]:
    """The query's arguments: those of driver and dialect with their types, and all others."""
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
        "the connection string cannot be read; is everything but letters and digits in user and "
        "password percent-encoded?",
        setting="dsn",
    )


# -- opening ---------------------------------------------------------------------------------------


def check_pool_arguments(
    min_size: int, max_size: int, retries: int, backoff: float, timeout: float
) -> None:
    """Refuse sizes, retries and times that no pool can have; the error names the argument."""
    rules: list[tuple[str, Any, type, Callable[[Any], bool], str]] = [
        ("max_size", max_size, Integral, lambda n: n >= 1, "an integer of 1 or more"),
        ("min_size", min_size, Integral, lambda n: 0 <= n <= max_size, "from 0 to max_size"),
        ("startup_retries", retries, Integral, lambda n: n >= 0, "an integer of 0 or more"),
        ("startup_backoff_seconds", backoff, Real, lambda n: 0 <= n <= 1e9, "from 0 to 1e9"),
        ("timeout", timeout, Real, lambda n: 0 < n <= 1e9, "more than 0, and at most 1e9"),
    ]
    for setting, value, kind, obeys, rule in rules:
        if not isinstance(value, kind) or isinstance(value, bool) or not obeys(value):
            raise ConfigurationError(f"{setting} must be {rule}", setting=setting)


async def open_pool(
    engine: AsyncEngine, size: int, retries: int, backoff_seconds: float, *, dsn: str
) -> None:
    """Open connections and leave them in the engine's pool, waiting for a server that comes up.

    Args:
        engine: whose pool to fill.
        dsn: where it connects to, for the error message.
        size: how many connections to open.
        retries: how often to try again what can heal.
        backoff_seconds: the first wait; it doubles each time, up to 30 s, less a random part.

    Raises:
        ConfigurationError: the driver cannot read the connection string.
        StoreConnectionError: the server refused for good, or kept refusing.
    """
    refuse_other_loop(engine)
    for attempt in range(retries + 1):
        try:
            async with AsyncExitStack() as stack:
                for _ in range(size):
                    await stack.enter_async_context(engine.connect())
            return
        except Exception as error:
            cause = driver_error(error)
            if isinstance(cause, ValueError):  # the driver's, about an argument in the string
                raise _unreadable_dsn() from None
            if not can_heal(cause) or attempt == retries:
                raise _connection_error(cause, dsn, attempt + 1) from cause
            wait = min(backoff_seconds * 2**attempt, _BACKOFF_CAP_SECONDS)
            wait *= random.uniform(0.5, 1.0)
            _logger.warning(
                "cannot connect to %s: %s; trying again in %.1f s (%d of %d)",
                safe_dsn(dsn),
                describe(cause),
                wait,
                attempt + 1,
                retries,
            )
            await asyncio.sleep(wait)


def can_heal(error: BaseException) -> bool:
    """Whether a failure to connect may pass by itself.

    So do a server that is not there yet, starts up, is full or does not answer in time, and a name
    that cannot be resolved for now; not so a wrong password, database or certificate.
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
    """Whether an error means that there is no connection: refused, broken or ended by the server.

    SQLAlchemy knows of a connection that broke under it. Otherwise by SQLSTATE class: 08 connection
    exception, 28 authorization, 3D no such database, 57P operator intervention; 53300 too many
    connections. Source: PostgreSQL manual, appendix A.
    """
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        error = driver_error(error)
    state = getattr(error, "sqlstate", None) or ""
    return isinstance(error, OSError) or state.startswith(("08", "28", "3D", "57P", "53300"))


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error inside SQLAlchemy's wrappings."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
        return error.__cause__ or error
    return error


def describe(error: BaseException) -> str:
    """An error's type and SQLSTATE, and its text only if it is about connecting, or resources.

    The text of others may quote what people store. Resources are SQLSTATE class 53: which file the
    disk has no room for, and the like.
    """
    state = getattr(error, "sqlstate", None) or ""
    name = type(error).__name__ + (f" ({state})" if state else "")
    said = str(error) if is_lost(error) else ""
    if not said and state.startswith("53"):
        said = str(error.args[0]) if error.args else ""  # without the server's hints
    return f"{name}: {said}" if said else name


_HARMLESS = ("0A", "2B", "40", "42", "53", "55", "57", "58")
"""Classes of errors of which the server speaks without quoting rows: what is not supported,
dependent objects, undone transactions, names and syntax, resources, states of objects, operators,
the system. Source: PostgreSQL manual, appendix A.
"""


def is_harmless(error: BaseException) -> bool:
    """Whether the words of an error are about connecting, or quote no rows."""
    state = getattr(driver_error(error), "sqlstate", None) or ""
    return is_lost(error) or state.startswith(_HARMLESS)


def silence(error: BaseException) -> None:
    """Take the words that may quote rows or parameters from an error, and from those it came of.

    Postgres puts the whole row into the DETAIL of a violated check, and a value that it cannot read
    into the message; asyncpg quotes what it cannot send; SQLAlchemy lists the parameters.
    """
    if not type(error).__module__.startswith(("asyncpg.", "sqlalchemy.")):
        return  # the caller's, who was handling it
    if not is_harmless(error):
        name = describe(driver_error(error))
        error.args = (name + "; its words are left out, since they may quote rows",)
    if isinstance(error, StatementError):
        error.statement = error.params = None
    else:
        for attribute in ("message", "detail", "hint", "context", "query", "internal_query"):
            if hasattr(error, attribute):
                setattr(error, attribute, None)
    if type(error).__module__.startswith("asyncpg."):  # of what it could not send, or decode
        error.__cause__ = error.__context__ = None
    origins = {getattr(error, "orig", None), error.__cause__, error.__context__}
    for origin in origins - {None, error}:
        assert origin is not None
        silence(origin)


def _connection_error(error: BaseException, dsn: str, attempts: int) -> StoreConnectionError:
    times = "once" if attempts == 1 else f"{attempts} times"
    return StoreConnectionError(
        f"cannot connect to {safe_dsn(dsn)} (tried {times}): {describe(error)}",
        attempts=attempts,
        sqlstate=getattr(error, "sqlstate", None),
    )


# -- preparing -------------------------------------------------------------------------------------


async def prepare(connection: AsyncConnection, *, migrations: str) -> None:
    """Make a connection ready for vectors, unless it is; a pooled one is prepared once.

    Args:
        connection: whose driver's connection it is.
        migrations: what makes the schema, for a message to name.

    Raises:
        ConfigurationError: it belongs to another event loop.
        VectorStoreError: the extension is missing or too old.
    """
    assert connection.sync_connection is not None
    info = connection.sync_connection.info
    if _PREPARED in info:
        return
    await refuse_of_other_loop(connection)
    installed = (await connection.execute(EXTENSION_QUERY)).one_or_none()
    if installed is None:
        raise VectorStoreError(
            f"the database has no vector extension; run {migrations}, or, as a superuser, "
            "CREATE EXTENSION vector"
        )
    if parse_version(installed.extversion) < OLDEST_PGVECTOR:
        raise VectorStoreError(too_old(installed.extversion))
    raw = await connection.get_raw_connection()
    assert raw.driver_connection is not None
    await install_codec(raw.driver_connection, installed.nspname)
    info[_PREPARED] = True


def parse_version(text: str) -> tuple[int, ...]:
    """``"0.8.5"`` as ``(0, 8, 5)``."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def too_old(version: str) -> str:
    """What to say of a pgvector that is too old."""
    oldest = ".".join(str(part) for part in OLDEST_PGVECTOR)
    return (
        f"the server has pgvector {version}; cenote needs {oldest} or newer: install it on the "
        "server, then run ALTER EXTENSION vector UPDATE"
    )
