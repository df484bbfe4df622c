"""Create the vector extension and the chunk table with its partitions and indexes.

If the table was made by the first cenote (asyncpg only), it is upgraded in place, not created.

Never edit a revision after its release: databases have already run it. A revision holds its own
DDL; CONTRIBUTING lists the functions of cenote that it may call.

Revision ID: cenote_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects.postgresql import JSONB

from cenote import SchemaConfig
from cenote.migrate.legacy import upgrade_legacy_table
from cenote.migrate.revision_context import (
    check_extension,
    given_config,
    has_extension,
    table_names,
)

revision = "cenote_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = given_config()
    if not has_extension():
        _create_extension(config.extension_schema)
    check_extension()
    if not op.get_context().as_sql and upgrade_legacy_table(config):
        return
    halfvec = config.column_type == "halfvec"
    table = config.table_name
    partitions = config.new_partitions
    op.create_table(
        table,
        sa.Column("namespace", sa.Text(collation="C"), nullable=False),
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("document_id", sa.Text(collation="C"), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("metadata", JSONB, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column(
            "embedding",
            HALFVEC(config.dimensions) if halfvec else VECTOR(config.dimensions),
            nullable=False,
        ),
        sa.Column("embedding_model", sa.Text, nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("namespace", "id", name="pk_" + table),
        schema=config.schema,
        postgresql_partition_by="HASH (namespace)" if partitions else None,
    )
    quoted_table = _quoted(table, config.schema)
    # Keep embeddings, ids and metadata out of the TOAST table: cenote.operations.store_inline says
    # why.
    op.execute(
        f"ALTER TABLE {quoted_table} "
        "ALTER COLUMN namespace SET STORAGE MAIN, "
        "ALTER COLUMN id SET STORAGE MAIN, "
        "ALTER COLUMN document_id SET STORAGE MAIN, "
        "ALTER COLUMN metadata SET STORAGE MAIN, "
        "ALTER COLUMN content_hash SET STORAGE MAIN, "
        "ALTER COLUMN embedding SET STORAGE MAIN, "
        "ALTER COLUMN embedding_model SET STORAGE MAIN"
    )
    for remainder in range(partitions):
        quoted_partition = _quoted(f"{table}_p{remainder:02d}", config.schema)
        op.execute(
            f"CREATE TABLE {quoted_partition} PARTITION OF {quoted_table} "
            f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {remainder})"
        )
    op.create_index(
        "ix_" + table + "_namespace_document_id",
        table,
        ["namespace", "document_id"],
        schema=config.schema,
    )
    op.create_index(
        "ix_" + table + "_metadata",
        table,
        ["metadata"],
        schema=config.schema,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    if config.index_kind != "none":
        _create_ann_index(config)
    comment = _comment(config)
    if comment:
        op.create_table_comment(table, comment, schema=config.schema)


def downgrade() -> None:
    """Drop the table with all its rows. The extension stays, because other tables may use it."""
    name, schema = table_names()
    op.drop_table(name, schema=schema)


def _create_ann_index(config: SchemaConfig) -> None:
    kind = config.index_kind
    suffix = {"cosine": "cosine", "inner_product": "ip", "l2": "l2"}[config.metric]
    operators = "bit_hamming_ops" if kind == "bit" else f"{kind}_{suffix}_ops"
    if kind == config.column_type:
        indexed, options = "embedding", {"postgresql_ops": {"embedding": operators}}
    elif kind == "bit":
        indexed = sa.text(f"(binary_quantize(embedding)::bit({config.dimensions})) {operators}")
        options = {}
    else:
        indexed = sa.text(f"(embedding::{kind}({config.dimensions})) {operators}")
        options = {}
    op.create_index(
        "ix_" + config.table_name + "_embedding",
        config.table_name,
        [indexed],
        schema=config.schema,
        postgresql_using="hnsw",
        postgresql_with={"m": config.hnsw_m, "ef_construction": config.hnsw_ef_construction},
        **options,
    )


def _comment(config: SchemaConfig) -> str | None:
    """Return the comment that records what no index tells: see `cenote.postgres.ann_index`."""
    marks = [] if config.metric == "cosine" else [f"metric={config.metric}"]
    marks += ["index=none"] if config.index_kind == "none" else []
    return "cenote: " + ", ".join(marks) if marks else None


def _create_extension(schema: str | None) -> None:
    if schema is None:
        op.execute("CREATE EXTENSION IF NOT EXISTS vector")
        return
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}")
    op.execute(f"CREATE EXTENSION IF NOT EXISTS vector SCHEMA {_quoted(schema)}")


def _quoted(name: str, schema: str | None = None) -> str:
    quote = op.get_context().dialect.identifier_preparer.quote
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"
