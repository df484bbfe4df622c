"""Upgrade of legacy tables, which the first, asyncpg-only cenote created with its own migrations.

This module is a part of revision cenote_0001, and frozen with the revision: databases have already
run it. tests/schema/test_legacy.py pins its statements.

The legacy migrations knew one table name, and recorded the files that they had run in
``cenote_schema_migrations``. They created the table with default collations, and with a primary key
on ``(id)`` (001), which they later changed to ``(namespace, id)`` (002).

The upgrade rewrites no row, and keeps the HNSW index. The key columns get the "C" collation, for
which Postgres rebuilds only the indexes on these columns. The index on metadata is created again
with the operator class ``jsonb_path_ops``. Two differences to a new table remain: ``position`` is a
32-bit integer, and the table is not partitioned. ``cenote repartition`` changes both.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, column, func, select, table
from sqlalchemy.dialects.postgresql import JSONB

from cenote.config import SchemaConfig
from cenote.inspection.checks.table import embedding_finding
from cenote.inspection.hints import arguments_for
from cenote.inspection.live_table import LiveTable, read_table
from cenote.migrate.versions import RefusedRevisionError
from cenote.postgres.ddl import qualified

TABLE = "cenote_chunks"
VERSION_TABLE = "cenote_schema_migrations"
_FILES = ("001_init.sql", "002_namespace_id_pk.sql", "003_chunk_iteration_index.sql")

_COLUMNS = {
    "id": "text",
    "namespace": "text",
    "document_id": "text",
    "content": "text",
    "position": "integer",
    "metadata": "jsonb",
    "content_hash": "text",
    "embedding": "vector",
    "embedding_model": "text",
    "created_at": "timestamp with time zone",
}


def upgrade_legacy_table(config: SchemaConfig) -> bool:
    """Upgrade a legacy table to revision cenote_0001.

    Returns:
        True if the table was upgraded, False if there is no table of the configured name.

    Raises:
        MigrationError: The table is not a legacy table, or its version is unknown, or its
            dimensions or its shape differ from the configuration.
    """
    connection = op.get_bind()
    live = read_table(connection, config.table_name, config.schema)
    if live is None:
        return False
    op.execute(f"LOCK TABLE {qualified(live.name, live.schema)} IN ACCESS EXCLUSIVE MODE")
    live = read_table(connection, config.table_name, config.schema)
    assert live is not None
    version = _version(connection, live, config)
    _check_columns(connection, live)
    _check_shape(live, config, version)
    _upgrade(live, version)
    return True


def _version(connection: Connection, live: LiveTable, config: SchemaConfig) -> int:
    """Return the number of legacy migration files that were run. They run in one order only."""
    recorded = table(VERSION_TABLE, column("version"), schema=live.schema)
    exists = connection.scalar(select(func.to_regclass(qualified(VERSION_TABLE, live.schema))))
    if live.name != TABLE or exists is None:
        names = arguments_for({"table_name": live.name, "schema": config.schema})
        raise RefusedRevisionError(
            f"table {live.name!r} exists already and was not created by these revisions; "
            "choose another table_name, or rename the table. If your application's migrations "
            "created it, leave it to them. If cenote's revisions created it and only their record "
            f"is lost, run cenote migrate {names}stamp head"
        )
    run = set(connection.scalars(select(recorded.c.version)))
    for version in range(1, len(_FILES) + 1):
        if run == set(_FILES[:version]):
            return version
    unknown = ", ".join(sorted(run - set(_FILES))) or "a version out of order"
    raise RefusedRevisionError(
        f"table {live.name!r} cannot be upgraded: its {VERSION_TABLE} lists {unknown}; only "
        f"{', '.join(_FILES)}, in this order, can be upgraded"
    )


def _check_columns(connection: Connection, live: LiveTable) -> None:
    columns = {
        info["name"]: info["type"].compile(connection.dialect).lower().partition("(")[0]
        for info in sa.inspect(connection).get_columns(live.name, schema=live.schema)
    }
    if columns != _COLUMNS:
        names = sorted({name for name, _ in columns.items() ^ _COLUMNS.items()})
        raise RefusedRevisionError(
            f"table {live.name!r} cannot be upgraded: its columns {', '.join(names)} differ from "
            "the recorded version"
        )


def _check_shape(live: LiveTable, config: SchemaConfig, version: int) -> None:
    subject = f"table {live.name!r} cannot be upgraded"
    finding = embedding_finding(subject, live.column_type, live.dimensions, config)
    if finding is not None:
        raise RefusedRevisionError(str(finding))
    key = ("id",) if version == 1 else ("namespace", "id")
    if live.key != key:
        raise RefusedRevisionError(f"{subject}: its primary key is not ({', '.join(key)})")
    if live.partitions or config.partitions:
        raise RefusedRevisionError(
            f"{subject} with partitions; leave the setting out, or set partitions=0, and run "
            "cenote repartition afterwards"
        )


def _upgrade(live: LiveTable, version: int) -> None:
    schema = live.schema
    primary_key = next(index.name for index in live.indexes if index.primary)
    if version == 1:  # before the columns change, so that the index is built once
        op.drop_constraint(primary_key, live.name, schema=schema)
    for name in ("namespace", "id", "document_id"):
        op.alter_column(live.name, name, type_=sa.Text(collation="C"), schema=schema)
    if version == 1:
        op.create_primary_key("pk_cenote_chunks", live.name, ["namespace", "id"], schema=schema)
    else:
        index = qualified(primary_key, schema)
        op.execute(f"ALTER INDEX {index} RENAME TO pk_cenote_chunks")
    op.execute(  # for rows that are written from now on
        f"ALTER TABLE {qualified(live.name, schema)} "
        "ALTER COLUMN namespace SET STORAGE MAIN, "
        "ALTER COLUMN id SET STORAGE MAIN, "
        "ALTER COLUMN document_id SET STORAGE MAIN, "
        "ALTER COLUMN metadata SET STORAGE MAIN, "
        "ALTER COLUMN content_hash SET STORAGE MAIN, "
        "ALTER COLUMN embedding SET STORAGE MAIN, "
        "ALTER COLUMN embedding_model SET STORAGE MAIN"
    )
    op.alter_column(
        live.name, "metadata", server_default=None, existing_type=JSONB(), schema=schema
    )
    for old, new in (
        ("cenote_chunks_namespace_doc_idx", "ix_cenote_chunks_namespace_document_id"),
        ("cenote_chunks_embedding_hnsw_idx", "ix_cenote_chunks_embedding"),
    ):
        op.execute(f"ALTER INDEX IF EXISTS {qualified(old, schema)} RENAME TO {new}")
    op.drop_index("cenote_chunks_metadata_gin_idx", live.name, schema=schema, if_exists=True)
    op.create_index(
        "ix_cenote_chunks_metadata",
        live.name,
        ["metadata"],
        schema=schema,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
