"""Translate and redact the errors of the driver and SQLAlchemy."""

from __future__ import annotations

import re
import socket
import ssl
import sys

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError


def database_errors() -> tuple[type[Exception], ...]:
    """Return the errors of SQLAlchemy, and the driver's errors that SQLAlchemy does not wrap.

    Importing the driver takes time, so it is imported only when there is an error.
    """
    import asyncpg

    driver_errors = [asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError]
    if "psycopg" in sys.modules:
        driver_errors.append(sys.modules["psycopg"].Error)
    return SQLAlchemyError, OSError, *driver_errors


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed after an error while connecting.

    A retry may succeed if the server did not run yet, was starting up, had no free connections or
    did not answer in time, if its name could not be resolved temporarily, or if no host had the
    role in ``target_session_attrs``, as during a failover. A retry cannot help if
    the password, the database or the certificate is wrong.
    """
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, PermissionError | ssl.SSLError):
        return False
    if _is_psycopgs(error):
        return _psycopg_may_connect_later(error)
    import asyncpg

    return isinstance(
        error,
        OSError  # connection refused, reset or timed out; no socket file yet
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
        | asyncpg.ConnectionDoesNotExistError
        | asyncpg.TargetServerAttributeNotMatched,
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
    if isinstance(error, OSError) or state.startswith(("08", "28", "3D", "57P", "53300")):
        return True
    # Without an SQLSTATE, asyncpg found no host with the right role, or psycopg no server.
    return type(error).__name__ == "TargetServerAttributeNotMatched" or (
        _is_psycopgs(error) and not state and type(error).__name__ in _CONNECTION_ERRORS
    )


def is_stale_plan(error: BaseException) -> bool:
    """Return whether an error means that a prepared statement's table has changed.

    asyncpg then prepares a new statement. psycopg keeps the old one on the connection. Its error
    has the general SQLSTATE 0A000, and a message in the server's language, so it is recognised by
    the function in the server's source that raises it.
    """
    cause = driver_error(error)
    if type(cause).__name__ == "InvalidCachedStatementError":
        return True
    return diagnostic(cause, "source_function") == "RevalidateCachedQuery"


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error that SQLAlchemy's error wraps."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
        return error.__cause__ or error
    return error


def describe(error: BaseException) -> str:
    """Return an error's type and SQLSTATE, and its text if the text cannot quote stored values.

    The text of an error about connecting or about resources (SQLSTATE class 53) is included. It
    says, for example, for which file the disk is full. For a violated constraint, its name and its
    columns are included.
    """
    state = getattr(error, "sqlstate", None) or ""
    name = type(error).__name__ + (f" ({state})" if state else "")
    text = str(error) if is_lost(error) else ""
    if not text and state.startswith("53"):
        text = str(error.args[0]) if error.args else ""  # without the server's hints
    if not text and state.startswith("23"):
        text = _constraint(error)
    return f"{name}: {text}" if text else name


def _constraint(error: BaseException) -> str:
    """Return the name and the columns of a violated constraint, without values."""
    constraint = diagnostic(error, "constraint_name")
    columns, _ = violated_key(error)
    column = diagnostic(error, "column_name")
    names = ", ".join(columns) or column
    text = f"constraint {constraint!r}" if constraint else ""
    if names:
        text += f"{' on ' if text else ''}column{'s' if ', ' in names else ''} {names}"
    return text


def violated_key(error: BaseException) -> tuple[list[str], str]:
    """Return the columns in the detail of a violated constraint, and the text of their values.

    The detail is, in the server's language: ``Key (a, b)=(1, 2) is not present in table "t".``
    """
    match = re.search(r"\((.+?)\)=\((.*)\)", diagnostic(error, "detail") or "", re.DOTALL)
    return (match[1].split(", "), match[2]) if match else ([], "")


_CONNECTION_ERRORS = ("OperationalError", "ConnectionTimeout")


def _is_psycopgs(error: BaseException) -> bool:
    return type(error).__module__.startswith("psycopg")


def diagnostic(error: BaseException, name: str) -> str | None:
    """Return a field of the server's error: ``detail``, ``constraint_name``, ``column_name``."""
    if _is_psycopgs(error):
        error = getattr(error, "diag", error)
        name = {"detail": "message_detail"}.get(name, name)
    value = getattr(error, name, None)
    return None if value is None else str(value)


_STARTING = ("starting up", "shutting down", "too many", "recovery", "remaining connection slots")


def _psycopg_may_connect_later(error: BaseException) -> bool:
    """Return whether an error of libpq while connecting is transient.

    It has no SQLSTATE. The server's refusals contain "FATAL"; which of them are transient can be
    told only by their English texts.
    """
    text = str(error)
    if "FATAL" in text:
        return any(words in text for words in _STARTING)
    return "certificate" not in text


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
    if not type(error).__module__.startswith(("asyncpg.", "sqlalchemy.", "psycopg")):
        return  # an error of the application, which the call of the store has as its context
    if not is_safe_to_quote(error):
        name = describe(driver_error(error))
        error.args = (name + "; its message is left out because it may quote rows",)
    if isinstance(error, StatementError):
        error.statement = error.params = None
    elif _is_psycopgs(error):
        # `diag` reads the server's fields from `_info`. `_pgconn` contains the password.
        for attribute in ("_info", "_pgconn"):
            setattr(error, attribute, None)
    else:
        for attribute in ("message", "detail", "hint", "context", "query", "internal_query"):
            if hasattr(error, attribute):
                setattr(error, attribute, None)
    if type(error).__module__.startswith("asyncpg."):
        # The causes of asyncpg's errors quote values that asyncpg could not send or decode.
        error.__cause__ = error.__context__ = None
    origins = {getattr(error, "orig", None), error.__cause__, error.__context__}
    for origin in origins - {None, error}:
        assert origin is not None
        redact(origin)
