"""Row-level security, if `row_security` is set: the policies of table and partitions, and forced.

Without the setting this does nothing, and ``cenote row-security on`` does it later.

Never edit a revision once it is released: databases out there have run it as it was.

Revision ID: cenote_0003
Revises: cenote_0002
"""

from cenote import operations

revision = "cenote_0003"
down_revision = "cenote_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = operations.live_config()
    if config.row_security:
        operations.secure_rows(config.table_name, config.new_partitions, schema=config.schema)


def downgrade() -> None:
    config = operations.live_config()
    if config.row_security:
        operations.open_rows(config.table_name, config.new_partitions, schema=config.schema)
