"""Full text, if `text_search` is set: the generated column of a content's words, and its index.

On a table with rows, all of them are written anew and all indexes built again, under an exclusive
lock. Without the setting this does nothing, and ``cenote text-search`` adds full text later.

Never edit a revision once it is released: databases out there have run it as it was.

Revision ID: cenote_0002
Revises: cenote_0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from cenote import operations
from cenote.text_search import generated

revision = "cenote_0002"
down_revision = "cenote_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = operations.live_config()
    if not config.languages or operations.has_text_search():
        return
    table = config.table_name
    op.add_column(
        table,
        sa.Column("content_tsv", TSVECTOR, generated(config.languages), nullable=False),
        schema=config.schema,
    )
    op.create_index(
        "ix_" + table + "_content_tsv",
        table,
        ["content_tsv"],
        schema=config.schema,
        postgresql_using="gin",
    )


def downgrade() -> None:
    """Drops the column, which Postgres can generate again, with its index."""
    config = operations.live_config()
    offline = op.get_context().as_sql and config.languages
    if offline or operations.has_text_search():
        op.drop_column(config.table_name, "content_tsv", schema=config.schema)
