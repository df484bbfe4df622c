"""Find the vector extension, and prepare a connection for its types."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cenote.errors import VectorStoreError
from cenote.postgres.event_loops import check_event_loop_of
from cenote.postgres.pg_catalog import pg_extension, pg_namespace
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
