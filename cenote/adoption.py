"""Taking over a table that the first, asyncpg-only cenote made with its own migration runner.

Part of revision cenote_0001, and as frozen: databases out there have run it as it was.

That runner knew one table name, recorded the files it had run in ``cenote_schema_migrations``, and
gave the table default collations, a primary key on ``(id)`` (001) and later ``(namespace, id)``
(002). No row is rewritten and the HNSW index stays: keys get the "C" collation, which rebuilds
their indexes only, and the index on metadata is made anew with the other operator class. What stays
different: ``position`` is a 32-bit integer, and the table is plain (``cenote repartition`` changes
both).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, column, func, select, table
from sqlalchemy.dialects.postgresql import JSONB

from cenote import drift
from cenote.catalog import LiveTable, read_table
from cenote.config import SchemaConfig
from cenote.ddl import lock_table, qualified, rename_index, store_inline
from cenote.operations import RefusedRevisionError

_TABLE = "cenote_chunks"
_MARKER = "cenote_schema_migrations"
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


def adopt(config: SchemaConfig) -> bool:
    """Bring such a table to revision cenote_0001; False where there is no table of that name.

    Raises:
        MigrationError: the table is another one, or of an unknown version, dimension or shape.
    """
    connection = op.get_bind()
    live = read_table(connection, config.table_name, config.schema)
    if live is None:
        return False
    op.execute(lock_table(live.name, live.schema))
    live = read_table(connection, config.table_name, config.schema)
    assert live is not None
    version = _version(connection, live)
    _refuse_other_columns(connection, live)
    _refuse_other_shape(live, config, version)
    _bring_up(live, version)
    return True


def _version(connection: Connection, live: LiveTable) -> int:
    """How many of the runner's files were run, of which each needs the ones before."""
    marker = table(_MARKER, column("version"), schema=live.schema)
    there = connection.scalar(select(func.to_regclass(qualified(_MARKER, live.schema))))
    if live.name != _TABLE or there is None:
        raise RefusedRevisionError(
            f"table {live.name!r} exists already and was not made by these revisions; "
            "choose another table_name, move it away, or, if cenote check finds nothing but a "
            "missing revision, run cenote migrate stamp head"
        )
    run = set(connection.scalars(select(marker.c.version)))
    for version in range(1, len(_FILES) + 1):
        if run == set(_FILES[:version]):
            return version
    unknown = ", ".join(sorted(run - set(_FILES))) or "a version out of order"
    raise RefusedRevisionError(
        f"table {live.name!r} was made by another migration runner, whose {_MARKER} lists "
        f"{unknown}; only {', '.join(_FILES)}, in this order, can be adopted"
    )


def _refuse_other_columns(connection: Connection, live: LiveTable) -> None:
    columns = {
        found["name"]: found["type"].compile(connection.dialect).lower().partition("(")[0]
        for found in sa.inspect(connection).get_columns(live.name, schema=live.schema)
    }
    if columns != _COLUMNS:
        names = sorted({name for name, _ in columns.items() ^ _COLUMNS.items()})
        raise RefusedRevisionError(
            f"table {live.name!r} cannot be adopted: its columns {', '.join(names)} are not those "
            "of the version recorded"
        )


def _refuse_other_shape(live: LiveTable, config: SchemaConfig, version: int) -> None:
    subject = f"table {live.name!r} cannot be adopted"
    finding = drift.embedding_finding(subject, live.column_type, live.dimensions, config)
    if finding is not None:
        raise RefusedRevisionError(str(finding))
    key = ("id",) if version == 1 else ("namespace", "id")
    if live.key != key:
        raise RefusedRevisionError(f"{subject}: its primary key is not ({', '.join(key)})")
    if live.partitions or config.partitions:
        raise RefusedRevisionError(
            f"{subject} with partitions; leave the setting out, or say partitions=0, and run "
            "cenote repartition afterwards"
        )


def _bring_up(live: LiveTable, version: int) -> None:
    schema = live.schema
    pkey = next(index.name for index in live.indexes if index.primary)
    if version == 1:  # before the columns change, so that it is built once
        op.drop_constraint(pkey, live.name, schema=schema)
    for name in ("namespace", "id", "document_id"):
        op.alter_column(live.name, name, type_=sa.Text(collation="C"), schema=schema)
    if version == 1:
        op.create_primary_key("pk_cenote_chunks", live.name, ["namespace", "id"], schema=schema)
    else:
        op.execute(rename_index(pkey, "pk_cenote_chunks", schema))
    op.execute(store_inline(live.name, schema))  # for rows that are written from now on
    op.alter_column(
        live.name, "metadata", server_default=None, existing_type=JSONB(), schema=schema
    )
    for old, new in (
        ("cenote_chunks_namespace_doc_idx", "ix_cenote_chunks_namespace_document_id"),
        ("cenote_chunks_embedding_hnsw_idx", "ix_cenote_chunks_embedding"),
    ):
        op.execute(rename_index(old, new, schema, if_exists=True))
    op.drop_index("cenote_chunks_metadata_gin_idx", live.name, schema=schema, if_exists=True)
    op.create_index(
        "ix_cenote_chunks_metadata",
        live.name,
        ["metadata"],
        schema=schema,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
