"""${message}

Never edit a revision once it is released: databases out there have run it as it was. Literal DDL
only; names, dimensions and type come from operations.live_config(), which reads the live table.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, VECTOR

from cenote import operations
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
