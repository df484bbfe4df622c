"""Open the connection for schema changes, and translate its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import CenoteError, ConfigurationError, MigrationError
from cenote.postgres.connection_parameters import unsupported_argument
from cenote.postgres.driver_errors import (
    database_errors,
    describe,
    driver_error,
    is_lost,
    is_safe_to_quote,
    redact,
)
from cenote.postgres.dsn import safe_url
from cenote.postgres.event_loops import check_event_loop, check_event_loop_of
from cenote.postgres.psycopg_engine import adapted_engine


def translated(database: AsyncEngine | AsyncConnection, config: SchemaConfig) -> SchemaConfig:
    """Return the configuration with the schema that a ``schema_translate_map`` translates it to.

    Args:
        database: Engine or connection whose options may have a map.
        config: Settings of the table.
    """
    schema_map = _schema_map(database)
    return replace(config, schema=schema_map.get(config.schema, config.schema))


def _schema_map(database: AsyncEngine | AsyncConnection) -> Mapping[str | None, str | None]:
    options: Mapping[str, Any] = {}
    if isinstance(database, AsyncEngine):
        options = database.get_execution_options()
    elif isinstance(database, AsyncConnection) and database.sync_connection is not None:
        options = database.sync_connection.get_execution_options()
    schema_map: Mapping[str | None, str | None] = options.get("schema_translate_map") or {}
    return schema_map


@asynccontextmanager
async def own_connection(
    database: AsyncEngine | AsyncConnection,
    action: str = "the migration failed",
    *,
    reads_only: bool = False,
) -> AsyncIterator[AsyncConnection]:
    """Provide a READ COMMITTED connection for schema changes, without a ``schema_translate_map``.

    Args:
        database: Engine, or connection without an open transaction, whose isolation level and map
            are restored at the end.
        action: Start of the message if the database raises an error.
        reads_only: True if the schema is only read. The caller then has to translate the names;
            see `translated`. To change the schema, no map is accepted.

    Raises:
        ConfigurationError: `database` cannot be used for schema changes.
        MigrationError: The connection has an open transaction, or the database raised an error.
    """
    if not isinstance(database, AsyncEngine | AsyncConnection):
        raise ConfigurationError(
            f"the database must be an AsyncEngine or an AsyncConnection, not "
            f"{type(database).__name__}",
            setting="engine",
        )
    engine = database if isinstance(database, AsyncEngine) else database.engine
    schema_map = _schema_map(database)
    if schema_map and not reads_only:
        raise ConfigurationError(
            "the schema cannot be changed through a schema_translate_map: pass an engine without "
            "it, and set `schema` in SchemaConfig",
            setting="schema",
        )
    with own_errors(action, engine.url):
        if isinstance(database, AsyncEngine):
            check_event_loop(database)
            async with AsyncExitStack() as stack:
                try:
                    connection = await stack.enter_async_context(adapted_engine(database).connect())
                except ConfigurationError:
                    raise
                except ValueError as error:
                    raise ConfigurationError(
                        "the driver rejects the connection string's arguments", setting="dsn"
                    ) from error
                except TypeError as error:
                    raise unsupported_argument(error) or error from None
                check_event_loop_of(connection.engine, await connection.get_raw_connection())
                yield await connection.execution_options(
                    isolation_level="READ COMMITTED", schema_translate_map={}
                )
            return
        if database.in_transaction():
            raise MigrationError(
                "the connection has an open transaction; commit or roll back first, or pass the "
                "engine"
            )
        level = _isolation_level(database)
        await database.execution_options(isolation_level="READ COMMITTED", schema_translate_map={})
        try:
            yield database
        finally:
            if not database.closed and not database.invalidated:
                await database.rollback()
                await database.execution_options(
                    isolation_level=level, schema_translate_map=schema_map
                )


def _isolation_level(connection: AsyncConnection) -> Any:
    """Return the isolation level that is set on a connection, on its engine, or on the server."""
    assert connection.sync_connection is not None
    options = connection.sync_connection.get_execution_options()
    engine_level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    return options.get("isolation_level") or engine_level or connection.default_isolation_level


@contextmanager
def own_errors(action: str, url: URL) -> Iterator[None]:
    """Turn errors of Alembic, SQLAlchemy and the driver into cenote's.

    The server's message is kept if it cannot quote data.
    """
    try:
        yield
    except CenoteError:
        raise
    except CommandError as error:
        raise MigrationError(str(error)) from error
    except database_errors() as error:
        cause = driver_error(error)
        if isinstance(cause, TimeoutError):
            action = f"{action}: no answer in time"
        elif is_lost(cause):
            action = f"cannot connect to {safe_url(url)}"
        reason = f"{type(cause).__name__}: {cause}" if is_safe_to_quote(error) else describe(cause)
        redact(error)
        raise MigrationError(f"{action}: {reason}") from cause
