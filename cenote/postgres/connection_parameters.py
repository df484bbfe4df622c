"""Parameters in a connection string: libpq's, asyncpg's, server settings, and foreign ones.

Connection strings that providers offer for copying carry parameters of libpq, and of other clients.
asyncpg knows some of libpq's parameters and sends all others to the server as settings, which
rejects them. This module gives each parameter of libpq its meaning, and rejects foreign parameters
by name. Source: PostgreSQL 18 manual, section 34.1.2, "Parameter Key Words".
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cenote.errors import ConfigurationError

_logger = logging.getLogger(__name__)

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_OFF = ("0", "off", "false", "no")

_CHOICES: dict[str, tuple[str, ...]] = {
    "sslmode": _SSL_MODES,
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
    "gsslib": ("gssapi", "sspi"),
    "load_balance_hosts": ("disable", "random"),
}
"""Parameters with few values."""

_READ_BY_DRIVER = frozenset(
    {
        *("passfile", "service", "krbsrvname", "gsslib", "target_session_attrs"),
        *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    }
)
"""Parameters of libpq that asyncpg reads, but only from a connection string."""

_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")

_WITHOUT_EFFECT: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "channel_binding": (
        ("disable", "prefer", "require"),
        "asyncpg has no channel binding; sslmode=verify-full protects against the same attack",
    ),
    "client_encoding": (None, "asyncpg always exchanges UTF-8, and the server converts"),
    "gssdelegation": (_OFF, "asyncpg does not delegate GSS credentials"),
    "gssencmode": (("disable", "prefer"), "asyncpg has no GSS encryption; use sslmode"),
    "hostaddr": (None, "asyncpg looks up the host"),
    "max_protocol_version": (("3.0", "3.2", "latest"), "asyncpg speaks version 3.0"),
    "min_protocol_version": (("3.0",), "asyncpg speaks version 3.0"),
    "replication": (_OFF, "a store cannot use a replication connection"),
    "sslcertmode": (("allow",), "asyncpg sends the certificate if the server asks for it"),
    "sslcompression": (None, "TLS compression is obsolete, and libpq ignores it too"),
    "sslkeylogfile": (None, "set the environment variable SSLKEYLOGFILE instead"),
    "sslsni": (None, "asyncpg always sends the host's name with TLS"),
}
"""Parameters of libpq that have no effect, with the values that are accepted (None for all) and the
reason. Other values demand what asyncpg cannot do."""

_UNSUPPORTED = {
    "require_auth": "asyncpg cannot restrict the authentication method; remove it",
    "requirepeer": "asyncpg does not check the server's user; remove it",
    "sslcrldir": "pass one file of revoked certificates in sslcrl",
    "scram_client_key": "asyncpg needs the password",
    "scram_server_key": "asyncpg needs the password",
    "oauth_issuer": "asyncpg cannot authenticate with OAuth",
    "oauth_client_id": "asyncpg cannot authenticate with OAuth",
    "oauth_client_secret": "asyncpg cannot authenticate with OAuth",
    "oauth_scope": "asyncpg cannot authenticate with OAuth",
    "oauth_ca_file": "asyncpg cannot authenticate with OAuth",
}
"""Parameters of libpq that demand what asyncpg cannot do, with the remedy."""

_KEEPALIVES = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
"""Parameters of libpq that set an option of the socket, with the option's name."""

_POOL = "pass max_size= and min_size= to PgVectorStore.connect"
_NOT_PREPARED = "replace it with statement_cache_size=0&prepared_statement_cache_size=0"
_SCHEMA = "pass schema= to the store (CENOTE_SCHEMA to the command)"
_CONNECT_TIMEOUT = "replace it with connect_timeout, in seconds"
_COMMAND_TIMEOUT = "replace it with command_timeout, in seconds"
_TLS = "replace it with sslmode, and sslrootcert for an own authority"
_UTF8 = "remove it; text is always exchanged as UTF-8"

_FOREIGN: dict[str, str] = {
    # Prisma, and the platforms that write strings for it
    "pgbouncer": _NOT_PREPARED,
    "connection_limit": _POOL,
    "pool_timeout": _POOL,
    "schema": _SCHEMA,
    "socket_timeout": _COMMAND_TIMEOUT,
    "sslaccept": _TLS,
    "sslidentity": "replace it with sslcert and sslkey",
    "single_use_connections": _POOL,
    "supa": "remove it",
    "workaround": "remove it",
    # JDBC
    "currentschema": _SCHEMA,
    "applicationname": "replace it with application_name",
    "targetservertype": "replace it with target_session_attrs",
    "loadbalancehosts": "replace it with load_balance_hosts",
    "tcpkeepalive": "replace it with keepalives=1",
    "logintimeout": _CONNECT_TIMEOUT,
    "connecttimeout": _CONNECT_TIMEOUT,
    "sockettimeout": _COMMAND_TIMEOUT,
    "preparethreshold": _NOT_PREPARED,
    "preferquerymode": _NOT_PREPARED,
    "sslfactory": _TLS,
    "rewritebatchedinserts": "remove it",
    "stringtype": "remove it",
    # node-postgres
    "uselibpqcompat": "remove it; sslmode has libpq's meaning here",
    "connectiontimeoutmillis": _CONNECT_TIMEOUT,
    "idletimeoutmillis": _POOL,
    "query_timeout": _COMMAND_TIMEOUT,
    # Go
    "pool_max_conns": _POOL,
    "pool_min_conns": _POOL,
    "pool_max_conn_lifetime": _POOL,
    "pool_max_conn_idle_time": _POOL,
    "pool_health_check_period": _POOL,
    "default_query_exec_mode": _NOT_PREPARED,
    "statement_cache_mode": _NOT_PREPARED,
    "statement_cache_capacity": _NOT_PREPARED,
    "description_cache_capacity": _NOT_PREPARED,
    "binary_parameters": _NOT_PREPARED,
    # Rails, Django, Ecto, PHP
    "pool": _POOL,
    "prepared_statements": _NOT_PREPARED,
    "prepare": _NOT_PREPARED,
    "checkout_timeout": _POOL,
    "reaping_frequency": _POOL,
    "encoding": _UTF8,
    "charset": _UTF8,
    "conn_max_age": _POOL,
    "conn_health_checks": _POOL,
    "ssl_require": "replace it with sslmode=require",
    "serverversion": "remove it",
    # psycopg and SQLAlchemy
    "prepare_threshold": _NOT_PREPARED,
    "async_fallback": "remove it",
    "pool_size": _POOL,
    "max_overflow": _POOL,
    "pool_recycle": _POOL,
    "pool_pre_ping": _POOL,
    "min_size": _POOL,
    "max_size": _POOL,
    "max_connections": _POOL,
}
"""Parameters of other clients in lower case, with the remedy. None of them is a server setting,
except `max_connections`, which no connection can set."""


@dataclass(slots=True)
class ConnectionParameters:
    """Parameters of a connection string, sorted by who reads them.

    Attributes:
        driver: Keyword arguments of asyncpg and of SQLAlchemy's dialect.
        in_string: Parameters that asyncpg reads only from a connection string.
        settings: Settings that each connection sends to the server.
        socket_options: Options of the socket, as (level, option, value).
        shuffles_hosts: True if each connection tries the hosts in random order.
    """

    driver: dict[str, Any] = field(default_factory=dict)
    in_string: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    socket_options: list[tuple[int, int, int]] = field(default_factory=list)
    shuffles_hosts: bool = False

    @classmethod
    def read(cls, query: Mapping[str, str]) -> ConnectionParameters:
        """Sort the parameters of a connection string, without those that name the database.

        Raises:
            ConfigurationError: A parameter is foreign, cannot be honoured, or has an invalid value.
        """
        parameters = cls()
        for name, value in query.items():
            parameters._add(name, value)
        parameters._set_keepalives(query)
        if "fallback_application_name" in query:
            parameters.settings.setdefault("application_name", query["fallback_application_name"])
        if query.get("requiressl") == "1":
            parameters.in_string.setdefault("sslmode", "require")
        if parameters.in_string.get("sslrootcert") == "system":
            parameters._trust_system_authorities()
        for name in _FILES:
            parameters._check_file(name)
        if query.get("channel_binding") == "require" and not parameters._verifies_host:
            _logger.warning(
                "the connection string's channel_binding=require has no effect: %s",
                _WITHOUT_EFFECT["channel_binding"][1],
            )
        return parameters

    @property
    def _verifies_host(self) -> bool:
        """True if the server must have a certificate for the host's name."""
        mode = self.driver.get("ssl", self.in_string.get("sslmode"))
        return mode in (True, "verify-full") or isinstance(mode, ssl.SSLContext)

    def _check_file(self, name: str) -> None:
        try:
            readable = os.access(self.in_string.get(name, "."), os.R_OK)
        except ValueError:  # a null byte
            readable = False
        if not readable:
            raise _parameter_error(name, "names a file that cannot be read")

    def _add(self, name: str, value: str) -> None:
        if "\0" in name + value:
            raise _parameter_error(name, "must not contain the character NUL")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise _parameter_error(name, "must be one of " + ", ".join(_CHOICES[name]))
        if name in _DRIVER_ARGUMENTS:
            driver_name, convert = _DRIVER_ARGUMENTS[name]
            self.driver[driver_name] = convert(name, value)
        elif name in _READ_BY_DRIVER:
            self.in_string[name] = value
        elif name == "load_balance_hosts":
            self.shuffles_hosts = value == "random"
        elif name in _WITHOUT_EFFECT:
            accepted, reason = _WITHOUT_EFFECT[name]
            if accepted is not None and value not in accepted:
                raise _parameter_error(name, f"must be {' or '.join(accepted)}: {reason}")
        elif name in _UNSUPPORTED:
            raise _parameter_error(name, f"is not supported: {_UNSUPPORTED[name]}")
        elif name != name.lower() and name.lower() in _KNOWN:
            raise _parameter_error(name, f"must be written {name.lower()}")
        elif name.lower() in _FOREIGN:
            raise _foreign_error(name)
        elif name not in _KEEPALIVES and name not in _READ_ELSEWHERE:
            self.settings[name] = value

    def _set_keepalives(self, query: Mapping[str, str]) -> None:
        timing = {name: _count(name, query[name]) for name in _KEEPALIVES if name in query}
        keeps_alive = _count("keepalives", query.get("keepalives", "1")) != 0
        if "keepalives" in query or any(name.startswith("keepalives_") for name in timing):
            self.socket_options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keeps_alive)))
        for name, seconds in timing.items():
            option = getattr(socket, _KEEPALIVES[name], None)  # some systems have not all of them
            if option is not None and seconds and (keeps_alive or name == "tcp_user_timeout"):
                self.socket_options.append((socket.IPPROTO_TCP, option, seconds))

    def _trust_system_authorities(self) -> None:
        """Verify the server's certificate and name with the system's certificate authorities.

        asyncpg would take ``sslrootcert=system`` for the name of a file. As in libpq, it implies
        ``sslmode=verify-full``.
        """
        if self.in_string.pop("sslmode", "verify-full") != "verify-full":
            raise _parameter_error("sslmode", "must be verify-full with sslrootcert=system")
        del self.in_string["sslrootcert"]
        for name in ("sslcert", "sslkey"):
            self._check_file(name)
        context = ssl.create_default_context()
        certificate, key, password = (
            self.in_string.pop(name, None) for name in ("sslcert", "sslkey", "sslpassword")
        )
        try:
            if certificate is not None:
                context.load_cert_chain(certificate, key, lambda: password or "")
        except ssl.SSLError:
            raise _parameter_error("sslcert", "or its sslkey is not valid") from None
        for name in ("minimum", "maximum"):
            version = self.in_string.pop(f"ssl_{name[:3]}_protocol_version", None)
            if version is not None:
                setattr(context, name + "_version", ssl.TLSVersion[version.replace(".", "_")])
        self.driver["ssl"] = context

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        """Open a connection of the driver, as SQLAlchemy's ``async_creator_fn``.

        Raises:
            ConfigurationError: The driver or the server rejects a parameter.
        """
        import asyncpg

        if self.shuffles_hosts and isinstance(options.get("host"), list):
            addresses = list(zip(options["host"], options["port"], strict=True))
            random.shuffle(addresses)
            options["host"], options["port"] = map(list, zip(*addresses, strict=True))
        try:
            connection = await self._connect(*arguments, **options)
        except asyncpg.ClientConfigurationError as error:
            # Its message names certificate files, and never the password or the address.
            problem = f"the driver rejects the connection string: {error}"
        except asyncpg.PostgresError as error:
            rejected = self._rejected_setting(error)
            if rejected is None:
                raise
            problem = rejected
        else:
            self._set_socket_options(connection)
            return connection
        # Raised here: otherwise its context would be the server's message, which may quote values.
        raise ConfigurationError(problem, setting="dsn")

    async def _connect(self, *arguments: Any, **options: Any) -> Any:
        """Open a connection, without the default settings that a pooler rejects."""
        import asyncpg

        # All connections of an engine share this dict, so only the first ones fail.
        settings: dict[str, str] = options["server_settings"]
        while True:
            sent = dict(settings)
            try:
                return await asyncpg.connect(*arguments, **options | {"server_settings": sent})
            except asyncpg.ProtocolViolationError as error:
                defaults = sent.keys() - self.settings.keys()
                rejected = [name for name in defaults if _names(str(error), name)]
                if not rejected:
                    raise
            settings.pop(rejected[0], None)

    def _set_socket_options(self, connection: Any) -> None:
        if not self.socket_options:
            return
        connected = connection._transport.get_extra_info("socket")
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            for level, option, value in self.socket_options:
                connected.setsockopt(level, option, value)

    def _rejected_setting(self, error: Any) -> str | None:
        """Return a message about the setting that a server or pooler rejects; None for others."""
        state, text = error.sqlstate or "", str(error.args[0]) if error.args else ""
        if not state.startswith(("08P01", "22", "42", "55")):
            return None
        in_options = re.findall(r"(?:-c\s*|--)([\w.-]+)\s*=", self.settings.get("options", ""))
        names = [name for name in (*self.settings, *in_options) if _names(text, name)]
        if not names and state == "42601" and "options" in self.settings:
            names = ["options"]  # an argument of the server that is not in the form -c name=value
        if not names:
            return None
        if state == "42704":
            reason = (
                "it is no parameter of libpq or asyncpg and no setting of the server: remove it"
            )
        elif state == "08P01":
            reason = "remove it, or add it to ignore_startup_parameters of PgBouncer"
        elif state.startswith("22") or state == "42601":
            reason = "its value is invalid"
        else:
            reason = "this role cannot set it for a connection"
        return f"the server rejects the connection string's parameter {names[0]!r}: {reason}"


def _names(message: str, parameter: str) -> bool:
    """Return whether a message of the server names a parameter."""
    return re.search(rf"(?<!\w){re.escape(parameter)}(?!\w)", message, re.IGNORECASE) is not None


def reject_foreign_parameters(names: Iterable[str]) -> None:
    """Reject parameters of other clients by name. psycopg's error names unknown ones.

    Raises:
        ConfigurationError: A parameter belongs to another client.
    """
    for name in names:
        if name.lower() in _FOREIGN:
            raise _foreign_error(name)


def _foreign_error(name: str) -> ConfigurationError:
    return _parameter_error(name, f"belongs to another client: {_FOREIGN[name.lower()]}")


_READ_ELSEWHERE = ("keepalives", "fallback_application_name", "requiressl")
"""Parameters of libpq that `ConnectionParameters.read` honours together with others."""


def unsupported_argument(error: TypeError) -> ConfigurationError | None:
    """Return an error about a parameter in an application's URL that the driver does not know.

    SQLAlchemy passes the query of an engine's URL to asyncpg as keyword arguments.

    Returns:
        The error; None if `error` is about something else.
    """
    match = re.fullmatch(
        r"(?:\w+\.)*connect\(\) got an unexpected keyword argument '(\w+)'.*", str(error)
    )
    if match is None:
        return None
    name = match[1]
    remedy = "write ssl= instead" if name == "sslmode" else _FOREIGN.get(name.lower(), "remove it")
    return ConfigurationError(
        f"SQLAlchemy's asyncpg dialect does not accept the parameter {name!r} in the engine's URL: "
        f"{remedy}, or create the engine with PgVectorStore.connect, which accepts libpq's "
        "parameters",
        setting="engine",
    )


# -- values ----------------------------------------------------------------------------------------


def _parameter_error(name: str, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"the connection string's parameter {name!r} {problem}", setting="dsn"
    )


def _number_error(name: str) -> NoReturn:
    raise _parameter_error(name, "must be a number of 0 or more") from None


def _count(name: str, value: str) -> int:
    try:
        count = int(value)
    except ValueError:
        _number_error(name)
    if not 0 <= count < 2**31:
        _number_error(name)
    return count


def _seconds(name: str, value: str) -> float | None:
    """Return a time limit; None for no limit, which 0 means in libpq."""
    try:
        seconds = float(value)
    except ValueError:
        _number_error(name)
    if math.isnan(seconds):
        _number_error(name)
    return seconds if 0 < seconds < 1e9 else None


def _ssl(name: str, value: str) -> bool | str:
    switch = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
    if value not in switch and value not in _SSL_MODES:
        raise _parameter_error(name, "must be true, false, or one of " + ", ".join(_SSL_MODES))
    return switch.get(value, value)


_DRIVER_ARGUMENTS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "ssl": ("ssl", _ssl),
    "connect_timeout": ("timeout", _seconds),
    "timeout": ("timeout", _seconds),
    "command_timeout": ("command_timeout", _seconds),
    "statement_cache_size": ("statement_cache_size", _count),
    "max_cached_statement_lifetime": ("max_cached_statement_lifetime", _count),
    "max_cacheable_statement_size": ("max_cacheable_statement_size", _count),
    "prepared_statement_cache_size": ("prepared_statement_cache_size", _count),
    "servicefile": ("servicefile", lambda _, value: value),
}
"""Parameters that asyncpg and the dialect accept as keywords, with their keywords and converters.
"""

_KNOWN = frozenset(
    {
        *(*_CHOICES, *_READ_BY_DRIVER, *_WITHOUT_EFFECT, *_UNSUPPORTED, *_KEEPALIVES),
        *(*_DRIVER_ARGUMENTS, *_READ_ELSEWHERE),
    }
)
"""All parameters of libpq and asyncpg, except those that name the database."""
