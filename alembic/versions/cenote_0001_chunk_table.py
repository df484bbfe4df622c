"""The chunk table with its partitions and indexes, and the extension it needs.

Never edit a revision once it is released: databases out there have run it as it was.

Revision ID: cenote_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects.postgresql import JSONB

from cenote import operations
from cenote.adoption import adopt
from cenote.ddl import create_hash_partition, store_inline

revision = "cenote_0001"
down_revision = None
branch_labels = ("cenote",)
depends_on = None


def upgrade() -> None:
    config = operations.given_config()
    operations.require_distribution(config)
    operations.ensure_schema(config)
    operations.ensure_extension(config.extension_schema)
    if not op.get_context().as_sql and adopt(config):
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
    op.execute(store_inline(table, config.schema))
    for remainder in range(partitions):
        op.execute(create_hash_partition(table, config.schema, partitions, remainder))
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
    op.create_index(
        "ix_" + table + "_embedding",
        table,
        ["embedding"],
        schema=config.schema,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "halfvec_cosine_ops" if halfvec else "vector_cosine_ops"},
        postgresql_with={"m": config.hnsw_m, "ef_construction": config.hnsw_ef_construction},
    )


def downgrade() -> None:
    """Drops the table with all its rows. The extension stays: others may use it."""
    name, schema = operations.table_names()
    op.drop_table(name, schema=schema)
