"""Find the vector extension, and prepare a connection for its types."""

from __future__ import annotations

from typing import Any

from sqlalchemy import PoolProxiedConnection, select
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cenote.errors import VectorStoreError
from cenote.postgres.event_loops import check_event_loop_of
from cenote.postgres.pg_catalog import pg_extension, pg_namespace, pg_type
from cenote.postgres.psycopg_codec import install_dumpers
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
_TYPES_QUERY = (
    select(pg_type.c.typname, pg_type.c.oid)
    .join(pg_extension, pg_extension.c.extnamespace == pg_type.c.typnamespace)
    .where(pg_extension.c.extname == "vector", pg_type.c.typname.in_(["vector", "halfvec"]))
)
_EXTENSION_SQL = str(
    EXTENSION_QUERY.compile(
        dialect=PGDialect(),  # type: ignore[no-untyped-call]
        compile_kwargs={"literal_binds": True},
    )
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
    if _PREPARED in connection.sync_connection.info:
        return
    raw = await connection.get_raw_connection()
    check_event_loop_of(connection.engine, raw)
    installed = (await connection.execute(EXTENSION_QUERY)).one_or_none()
    if connection.dialect.driver == "psycopg":
        _check(installed, migrations)
        oids = {row.typname: row.oid for row in await connection.execute(_TYPES_QUERY)}
        install_dumpers(raw.driver_connection, oids)
        raw.info[_PREPARED] = True
    else:
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
