"""Parse connection strings, and mask their passwords."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlencode

import sqlalchemy
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote.errors import ConfigurationError
from cenote.postgres.connection_parameters import ConnectionParameters, reject_foreign_parameters

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
_DEFAULT_PORT = "5432"

_DSN = re.compile(
    r"(?P<start>[^:]+://(?>(?:[^:/]*(?::[^@]*)?@)?))(?P<hosts>[^/?]*[,%][^/?]*)(?P<rest>.*)",
    re.DOTALL,
)
"""Connection string with several hosts, or with a percent-encoded host, such as the folder
``%2Fvar%2Frun``. User and password are those that SQLAlchemy finds."""

_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>\d+))?")

_PARTS = {"user": "username", "password": "password", "dbname": "database", "database": "database"}
"""Parameters that replace a part of the URL, with the part's name."""


CITUS_SETTINGS = {"citus.override_table_visibility": "off"}
"""Settings of connections to a distributed table.

The first statement with a vector makes asyncpg query the server's types. Citus hides shards by a
filter on each scan of pg_class, which made the query take 0.9 s instead of 0.05 s.
"""


def create_engine(
    dsn: str, *, pool_size: int = 5, timeout: float = 10.0, distributed: bool = False
) -> AsyncEngine:
    """Create an engine for a connection string.

    Its query may contain parameters of libpq (``sslmode``, ``connect_timeout``,
    ``target_session_attrs``, ``keepalives_idle``, ...), of asyncpg (``command_timeout``,
    ``statement_cache_size``, ...), the dialect's ``prepared_statement_cache_size``, and server
    settings such as ``search_path``. Several hosts are tried in their order:
    ``postgresql://a:5432,b:5432/database``.

    Each connection starts with ``jit=off``, because JIT costs more than it saves on short queries
    over many partitions. If a pooler rejects it, as PgBouncer does by default, connections start
    without it.

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
    query = {
        name: value if isinstance(value, str) else value[-1]
        for name, value in url.query.items()
        if name not in address
    }
    parameters = ConnectionParameters.read(query)
    in_string = parameters.in_string
    settings = {"jit": "off", **(CITUS_SETTINGS if distributed else {})}
    try:
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg", query=address),
            connect_args={
                "timeout": timeout,
                "server_settings": settings | parameters.settings,
                # asyncpg reads some parameters of libpq only from a string.
                "dsn": "postgresql://?" + urlencode(in_string) if in_string else None,
                "async_creator_fn": parameters.connect,
                **parameters.driver,
            },
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
        )
    except (ArgumentError, ValueError):  # a port that is no number, text that cannot be encoded
        raise unreadable_dsn() from None


def create_psycopg_engine(dsn: str, *, pool_size: int, timeout: float) -> Engine:
    """Create an engine on psycopg for a connection string, whose parameters libpq reads.

    Each connection starts with ``jit=off``, as those of :func:`create_engine`.

    Args:
        dsn: Connection string that starts with ``postgresql://``, ``postgres://`` or
            ``postgresql+psycopg://``.
        pool_size: Maximum number of connections; there is no overflow.
        timeout: Maximum seconds for one attempt to connect; libpq rounds up to whole seconds.

    Raises:
        ConfigurationError: The connection string is invalid, or has a foreign parameter.
    """
    url = _read_dsn(re.sub(r"^postgresql\+psycopg://", "postgresql://", dsn))
    reject_foreign_parameters(url.query)
    # asyncpg, too, always exchanges UTF-8, which every text of Python has.
    arguments = {"connect_timeout": math.ceil(timeout), "client_encoding": "utf8"}
    connector: _PsycopgConnector
    try:
        engine = sqlalchemy.create_engine(
            url.set(drivername="postgresql+psycopg"),
            creator=lambda: connector.connect(),
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
        )
        connector = _PsycopgConnector(engine, arguments)
    except (ArgumentError, ValueError):
        raise unreadable_dsn() from None
    return engine


class _PsycopgConnector:
    """Opens connections of psycopg with ``jit=off``, unless a pooler rejects it.

    Args:
        engine: Engine with the URL.
        arguments: Further arguments of psycopg.
    """

    def __init__(self, engine: Engine, arguments: dict[str, Any]) -> None:
        self._dialect: Any = engine.dialect
        self._positional, from_url = self._dialect.create_connect_args(engine.url)
        self._arguments: dict[str, Any] = {**from_url, **arguments}
        # libpq reads its options from here only if the arguments have none.
        has_service = "service" in from_url or "PGSERVICE" in os.environ
        self._sets_jit = "options" in from_url or not has_service

    def connect(self) -> Any:
        """Open a connection of the driver, as SQLAlchemy's ``creator``."""
        if self._sets_jit:
            given = self._arguments.get("options", os.environ.get("PGOPTIONS", ""))
            try:
                return self._connect(options=f"-c jit=off {given}".rstrip())
            except self._dialect.loaded_dbapi.OperationalError as error:
                if not _REJECTED_OPTIONS.search(str(error)):
                    raise
            self._sets_jit = False
        return self._connect()

    def _connect(self, **options: str) -> Any:
        return self._dialect.connect(*self._positional, **self._arguments | options)


_REJECTED_OPTIONS = re.compile(r"\b(jit|options?|startup parameters?)\b", re.IGNORECASE)
"""Words in the errors of poolers that reject settings at the start of a connection: PgBouncer,
Neon, Amazon RDS Proxy. libpq gives these errors no SQLSTATE."""


def safe_dsn(dsn: str) -> str:
    """Return the connection string without password and query, for messages."""
    return safe_url(_read_dsn(dsn))


def safe_url(url: URL) -> str:
    """Return a URL without password and query, except several hosts, for messages."""
    safe = url.set(query={}).render_as_string(hide_password=True)
    hosts, ports = url.query.get("host", ""), url.query.get("port", "")
    if isinstance(hosts, str) and isinstance(ports, str) and "," in hosts:
        addresses = zip(hosts.split(","), ports.split(","), strict=False)
        safe += "?host=" + ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses
        )
    return safe


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
    start, hosts = _without_hosts(dsn)
    try:
        url = make_url(start)
    except (ArgumentError, ValueError):
        raise unreadable_dsn() from None
    if url.host is not None and not set(url.host).isdisjoint("@#?/ "):
        # The host contains a part of the password, which must not appear in a message.
        raise unreadable_dsn()
    parts: dict[str, Any] = {}
    for name, part in _PARTS.items():
        if name in url.query:
            value = url.query[name]
            parts[part] = value if isinstance(value, str) else value[-1]
    url = _with_hosts(url.set(**parts).difference_update_query(_PARTS), hosts)
    for port in (
        *_items(url.query.get("port", ())),
        *([] if url.port is None else [str(url.port)]),
    ):
        if port and not (port.isdecimal() and 0 < int(port) < 2**16):
            raise _hosts_error("has a port that is not a number from 1 to 65535")
    return url


def _without_hosts(dsn: str) -> tuple[str, list[str] | None]:
    """Return a connection string without its hosts, and the hosts as they are written.

    Returns None for the hosts if SQLAlchemy can read them: it does not know several hosts, and does
    not decode a percent-encoded host.
    """
    match = _DSN.fullmatch(dsn)
    if match is None:
        return dsn, None
    if not set(match["hosts"]).isdisjoint("@# "):  # a part of the password
        raise unreadable_dsn()
    return match["start"] + match["rest"], match["hosts"].split(",")


def _with_hosts(url: URL, hosts: list[str] | None) -> URL:
    """Return a URL whose query contains several hosts and as many ports, separated by commas.

    Args:
        url: URL without `hosts`.
        hosts: Hosts of the connection string, percent-encoded, if SQLAlchemy cannot read them.
    """
    query = dict(url.query)
    given_hosts = _items(query.pop("host", ()))
    given_ports = _items(query.pop("port", ()))
    if not (given_hosts or hosts or url.host):
        given_hosts = _items(query.get("hostaddr", ()))
    addresses = [_address(host) for host in given_hosts] or [
        (unquote(name), port) for name, port in map(_address, hosts or ())
    ]
    ports = [port for _, port in addresses]
    if given_ports and any(ports):
        raise _hosts_error("gives the port of a host twice")
    if given_ports and not addresses:
        if len(given_ports) > 1:
            raise _hosts_error("has several ports, but not several hosts")
        query["port"] = given_ports[0]
    elif given_ports:
        ports = given_ports * len(addresses) if len(given_ports) == 1 else given_ports
    if len(ports) != len(addresses):
        raise _hosts_error(f"has {len(addresses)} hosts, but {len(ports)} ports")
    if len(addresses) > 1:
        query["host"] = ",".join(name for name, _ in addresses)
        query["port"] = ",".join(port or _DEFAULT_PORT for port in ports)
    elif addresses:
        query["host"] = addresses[0][0]
        if ports[0]:
            query["port"] = ports[0]
    return url.set(query=query)


def _items(value: str | Sequence[str]) -> list[str]:
    """Return the values of a parameter that is repeated, or contains commas."""
    return value.split(",") if isinstance(value, str) else list(value)


def _address(host: str) -> tuple[str, str]:
    """Return the name and the port of a host; an empty port if it has none."""
    if host.startswith("/") or (host.count(":") > 1 and not host.startswith("[")):
        return host, ""  # a folder, or an IPv6 address
    match = _HOST.fullmatch(host)
    if match is None:
        raise _hosts_error("has a host that cannot be read: write a:5432,b:5432 or [::1]:5432")
    return match["ipv6"] or match["name"], match["port"] or ""


def _hosts_error(problem: str) -> ConfigurationError:
    return ConfigurationError(f"the connection string {problem}", setting="dsn")


def unreadable_dsn() -> ConfigurationError:
    return ConfigurationError(
        "the connection string cannot be read; percent-encode everything in user and password "
        "except letters and digits, and write the port as a number",
        setting="dsn",
    )
