"""Distribution over a Citus cluster, if `distribution` is set: by namespace, with all rows.

Without the setting, or on a partitioned table, this does nothing, and ``cenote distribute`` does it
later.

Never edit a revision once it is released: databases out there have run it as it was.

Revision ID: cenote_0004
Revises: cenote_0003
"""

from cenote import operations

revision = "cenote_0004"
down_revision = "cenote_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = operations.live_config()
    if config.distribution is not None:
        operations.distribute(config)


def downgrade() -> None:
    """Brings all rows back to the coordinator."""
    config = operations.live_config()
    if config.distribution is not None:
        operations.undistribute(config)
