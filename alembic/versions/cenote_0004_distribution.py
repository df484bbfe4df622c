"""If `distribution` is set, distribute the table and its rows over a Citus cluster, by namespace.

If `distribution` is not set, or if the table is partitioned, this revision does nothing;
``cenote distribute`` distributes the table later.

Never edit a revision after its release: databases have already run it. A revision holds its own
DDL; CONTRIBUTING lists the functions of cenote that it may call.

Revision ID: cenote_0004
Revises: cenote_0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import REGCLASS

from cenote import SchemaConfig
from cenote.migrate.revision_context import is_distributed, live_config

revision = "cenote_0004"
down_revision = "cenote_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = live_config()
    if config.distribution is None or is_distributed():
        return
    has_rows = _has_rows(config)  # now: once the table is distributed, the query runs on its shards
    # Use one connection to each node for the rest of the transaction. Otherwise Citus would reject
    # later statements of the transaction, e.g. one that adds a foreign key.
    op.execute(sa.select(sa.func.set_config("citus.multi_shard_modify_mode", "sequential", True)))
    op.execute(
        sa.select(
            sa.func.create_distributed_table(
                _regclass(config),
                "namespace",
                sa.literal_column("'hash'"),
                sa.literal(config.colocate_with or "default", sa.Text),
                sa.literal(config.shard_count, sa.Integer),
            )
        )
    )
    if has_rows:  # remove the old rows that remain on the coordinator
        op.execute(
            sa.select(sa.func.truncate_local_data_after_distributing_table(_regclass(config)))
        )


def downgrade() -> None:
    """Bring all rows back to the coordinator."""
    config = live_config()
    if config.distribution is None:
        return
    if op.get_context().as_sql or is_distributed():
        comment = _comment(config)
        op.execute(sa.select(sa.func.undistribute_table(_regclass(config))))
        if comment:  # Citus has created the table anew, without its comment
            op.create_table_comment(config.table_name, comment, schema=config.schema)


def _has_rows(config: SchemaConfig) -> bool:
    if op.get_context().as_sql:
        return False
    table = sa.table(config.table_name, schema=config.schema)
    return bool(op.get_bind().scalar(sa.select(sa.exists(sa.select(1).select_from(table)))))


def _comment(config: SchemaConfig) -> str | None:
    """Return the table's comment: see `cenote.postgres.ann_index`."""
    if not op.get_context().as_sql:
        query = sa.select(sa.func.obj_description(_regclass(config), "pg_class"))
        return op.get_bind().scalar(query)
    marks = [] if config.metric == "cosine" else [f"metric={config.metric}"]
    marks += ["index=none"] if config.index_kind == "none" else []
    return "cenote: " + ", ".join(marks) if marks else None


def _regclass(config: SchemaConfig) -> sa.Cast[str]:
    name = _quoted(config.table_name, config.schema)
    return sa.cast(sa.literal(name, sa.Text), REGCLASS)


def _quoted(name: str, schema: str | None = None) -> str:
    quote = op.get_context().dialect.identifier_preparer.quote
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"
