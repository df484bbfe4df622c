"""Turn on row-level security for the table and every partition if `row_security` is set.

If `row_security` is not set, this revision does nothing; ``cenote row-security on`` turns it on
later.

Never edit a revision after its release: databases have already run it. A revision holds its own
DDL; CONTRIBUTING lists the functions of cenote that it may call.

Revision ID: cenote_0003
Revises: cenote_0002
"""

from alembic import op

from cenote import SchemaConfig
from cenote.migrate.revision_context import check_row_security_allowed, live_config, live_partitions

revision = "cenote_0003"
down_revision = "cenote_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = live_config()
    if not config.row_security:
        return
    check_row_security_allowed()
    for table in _quoted_tables(config):
        op.execute(f"DROP POLICY IF EXISTS cenote_permits ON {table}")
        op.execute(f"CREATE POLICY cenote_permits ON {table} AS PERMISSIVE USING (true)")
        op.execute(f"DROP POLICY IF EXISTS cenote_restricts ON {table}")
        # After a transaction that set cenote.namespace, the session sees '' instead of NULL.
        op.execute(
            f"CREATE POLICY cenote_restricts ON {table} AS RESTRICTIVE "
            "USING (namespace = nullif(current_setting('cenote.namespace', true), ''))"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")


def downgrade() -> None:
    config = live_config()
    if not config.row_security:
        return
    for table in _quoted_tables(config):
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY")
        op.execute(f"DROP POLICY IF EXISTS cenote_permits ON {table}")
        op.execute(f"DROP POLICY IF EXISTS cenote_restricts ON {table}")


def _quoted_tables(config: SchemaConfig) -> list[str]:
    """Return the table and its partitions, quoted.

    Offline, the partitions that revision cenote_0001 creates are assumed.
    """
    table = config.table_name
    if op.get_context().as_sql:
        partitions = [f"{table}_p{remainder:02d}" for remainder in range(config.new_partitions)]
    else:
        partitions = live_partitions()
    return [_quoted(name, config.schema) for name in (table, *partitions)]


def _quoted(name: str, schema: str | None = None) -> str:
    quote = op.get_context().dialect.identifier_preparer.quote
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"
