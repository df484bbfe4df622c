"""${message}

Never edit a revision after its release: databases have already run it. A revision holds its own
DDL; CONTRIBUTING lists the functions of cenote that it may call.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, VECTOR

from cenote.migrate.revision_context import live_config
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
