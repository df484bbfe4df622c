"""Find the vector extension, and prepare a connection for its types."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ClauseElement, PoolProxiedConnection, Text, literal_column, select
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cenote.errors import VectorStoreError
from cenote.postgres.event_loops import check_event_loop_of
from cenote.postgres.pg_catalog import pg_extension, pg_namespace, pg_type
from cenote.postgres.psycopg_codec import ARRAYS, install_dumpers
from cenote.postgres.vector import install_codec

OLDEST_PGVECTOR = (0, 8)
"""Minimum version of pgvector. Version 0.8 added iterative index scans, without which a filtered
search loses results."""

_PREPARED = "cenote_prepared"

EXTENSION_QUERY = (
    select(pg_extension.c.extversion, pg_namespace.c.nspname)
    .join(pg_namespace, pg_namespace.c.oid == pg_extension.c.extnamespace)
    .where(pg_extension.c.extname == "vector")
)
_WITH_TYPES_QUERY = EXTENSION_QUERY.add_columns(
    *(
        select(pg_type.c.oid)
        .where(
            pg_type.c.typname == literal_column(f"'{name}'", Text),
            pg_type.c.typnamespace == pg_extension.c.extnamespace,
        )
        .scalar_subquery()
        .label(name)
        for name in ARRAYS
    )
)
"""`EXTENSION_QUERY` with the oids of pgvector's types, which psycopg needs."""


def _to_text(query: ClauseElement) -> str:
    dialect: Any = PGDialect
    return str(query.compile(dialect=dialect(), compile_kwargs={"literal_binds": True}))


_EXTENSION_SQL = _to_text(EXTENSION_QUERY)
_WITH_TYPES_SQL = _to_text(_WITH_TYPES_QUERY)


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
    if _PREPARED in connection.sync_connection.info:
        return
    raw = await connection.get_raw_connection()
    check_event_loop_of(connection.engine, raw)
    if connection.dialect.driver == "psycopg":
        found = await connection.execute(_WITH_TYPES_QUERY)
        _install_on_psycopg(raw, found.one_or_none(), migrations)
    else:
        installed = (await connection.execute(EXTENSION_QUERY)).one_or_none()
        await _install(raw, installed, migrations)


def is_prepared(connection: PoolProxiedConnection) -> bool:
    """Return whether a connection of a pool is prepared."""
    return _PREPARED in connection.info


async def prepare_driver(
    connection: PoolProxiedConnection, engine: AsyncEngine, *, migrations: str
) -> None:
    """Prepare a connection of a pool for vectors, without SQLAlchemy's execution; see `prepare`."""
    check_event_loop_of(engine, connection)
    driver: Any = connection.driver_connection
    await _install(connection, await driver.fetchrow(_EXTENSION_SQL), migrations)


def prepare_psycopg(connection: PoolProxiedConnection, *, migrations: str) -> None:
    """Prepare a synchronous connection of a pool, without SQLAlchemy's execution; see `prepare`."""
    from psycopg.rows import tuple_row

    driver: Any = connection.driver_connection
    with driver.cursor(row_factory=tuple_row) as cursor:
        _install_on_psycopg(connection, cursor.execute(_WITH_TYPES_SQL).fetchone(), migrations)


def _install_on_psycopg(connection: Any, found: Any, migrations: str) -> None:
    """Check the extension's version, and install the dumpers.

    Args:
        connection: Connection of a pool.
        found: Row of `_WITH_TYPES_QUERY`.
        migrations: Command that creates the schema, for an error message.
    """
    _check(found and found[:2], migrations)
    install_dumpers(connection.driver_connection, dict(zip(ARRAYS, found[2:], strict=True)))
    connection.info[_PREPARED] = True


async def _install(connection: PoolProxiedConnection, installed: Any, migrations: str) -> None:
    """Check the extension's version, and install the codec.

    Args:
        connection: Connection of a pool.
        installed: Row of `EXTENSION_QUERY`.
        migrations: Command that creates the schema, for an error message.
    """
    schema = _check(installed, migrations)
    assert connection.driver_connection is not None
    await install_codec(connection.driver_connection, schema)
    connection.info[_PREPARED] = True


def _check(installed: Any, migrations: str) -> str:
    """Check the extension's version, and return its schema."""
    if installed is None:
        raise VectorStoreError(
            f"the database has no vector extension; run {migrations}, or as a superuser "
            "CREATE EXTENSION vector"
        )
    version, schema = installed
    if parse_version(version) < OLDEST_PGVECTOR:
        raise VectorStoreError(outdated_message(version))
    return str(schema)


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
