"""Find out whose migrations create and change a chunk table."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, and_, exists, func, not_, select

from cenote.inspection.live_table import LiveTable
from cenote.migrate import legacy
from cenote.migrate.versions import recorded_revision, version_table
from cenote.postgres.ddl import qualified
from cenote.postgres.pg_catalog import pg_attribute, pg_class

Owner = Literal["cenote", "legacy", "unrecorded", "application"]
"""Owner of a chunk table; see `read_owner`."""


def read_owner(
    connection: Connection, name: str, schema: str | None, live: LiveTable | None
) -> Owner:
    """Return whose migrations create and change a chunk table.

    ``"cenote"``: cenote's version table records a revision, which cenote's own command or a
    revision of ``cenote host-revision`` has run. ``"legacy"``: the first, asyncpg-only cenote
    created the table, and it was not upgraded yet. ``"unrecorded"``: cenote's version table is
    empty. ``"application"``: cenote has no version table, so a model of the application created the
    table, in the application's Alembic history or by ``create_all``.

    Args:
        connection: Connection to the database.
        name: Name of the chunk table.
        schema: Schema of the chunk table.
        live: The table, None if it is missing.
    """
    if recorded_revision(connection, name, schema) is not None:
        return "cenote"
    if (
        live is not None
        and live.name == legacy.TABLE
        and _has_table(connection, legacy.VERSION_TABLE, live.schema)
    ):
        return "legacy"
    if _has_table(connection, version_table(name), schema):
        return "unrecorded"
    return "application"


def has_application_history(connection: Connection, name: str) -> bool:
    """Return whether the database has an Alembic version table that is not cenote's.

    Every version table has the one column ``version_num``. Version tables of cenote are named after
    their chunk tables.

    Args:
        connection: Connection to the database.
        name: Name of a chunk table, which may be missing.
    """
    version_num, other_column = pg_attribute.alias("version_num"), pg_attribute.alias("other")
    chunk_table = pg_class.alias("chunk_table")
    query = (
        select(pg_class.c.oid)
        .join(
            version_num,
            and_(version_num.c.attrelid == pg_class.c.oid, version_num.c.attname == "version_num"),
        )
        .where(
            pg_class.c.relkind == "r",
            pg_class.c.relname != version_table(name),
            not_(
                exists().where(
                    other_column.c.attrelid == pg_class.c.oid,
                    other_column.c.attnum > 0,
                    other_column.c.attname != "version_num",
                )
            ),
            not_(
                exists().where(
                    chunk_table.c.relnamespace == pg_class.c.relnamespace,
                    func.concat(chunk_table.c.relname, version_table("")) == pg_class.c.relname,
                )
            ),
        )
    )
    return connection.execute(query).first() is not None


def _has_table(connection: Connection, name: str, schema: str | None) -> bool:
    return connection.scalar(select(func.to_regclass(qualified(name, schema)))) is not None
