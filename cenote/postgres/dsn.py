"""Parse connection strings, and mask their passwords."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote.errors import ConfigurationError

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


CITUS_SETTINGS = {"citus.override_table_visibility": "off"}
"""Settings of connections to a distributed table.

The first statement with a vector makes asyncpg query the server's types. Citus hides shards by a
filter on each scan of pg_class, which made the query take 0.9 s instead of 0.05 s.
"""


def create_engine(
    dsn: str, *, pool_size: int = 5, timeout: float = 10.0, distributed: bool = False
) -> AsyncEngine:
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
        distributed: Whether the table is distributed by Citus. Connections then start with
            `CITUS_SETTINGS`, too.

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
                "server_settings": {"jit": "off", **(CITUS_SETTINGS if distributed else {})},
                # asyncpg accepts libpq's arguments only as a string.
                "dsn": "postgresql://?" + urlencode(rest) if rest else None,
                **arguments,
            },
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
        )
    except (ArgumentError, ValueError):  # several hosts, or text that cannot be encoded
        raise unreadable_dsn() from None


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
        raise unreadable_dsn() from None
    if url.host is not None and not set(url.host).isdisjoint("@#?/ "):
        # The host contains a part of the password, which must not appear in a message.
        raise unreadable_dsn()
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


def unreadable_dsn() -> ConfigurationError:
    return ConfigurationError(
        "the connection string cannot be read; percent-encode everything in user and password "
        "except letters and digits",
        setting="dsn",
    )
