"""Row-level security of a chunk table: a transaction sees the rows of one tenant only.

Stores write the tenant into `SETTING`, a setting of the transaction. Without the setting, no rows
are visible. The table and each of its partitions have two policies. The permissive policy permits
all rows, because restrictive policies alone permit no rows. The restrictive policy restricts the
rows to the tenant, even if the application adds other permissive policies. Row-level security is
forced, so the policies apply to the table's owner too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, literal_column

from cenote.postgres.ddl import DDLTemplate, table_of

SETTING = "cenote.namespace"
"""Setting that holds the tenant."""

PERMITS = "cenote_permits"
"""Name of the permissive policy, which permits all rows."""

RESTRICTS = "cenote_restricts"
"""Name of the restrictive policy, which restricts the rows to the tenant."""

NAME: ColumnElement[str] = literal_column("'" + SETTING + "'")
"""Name of the setting, as a SQL literal."""

# After a transaction that set cenote.namespace, the session sees '' instead of NULL.
_POLICIES = {
    PERMITS: "AS PERMISSIVE USING (true)",
    RESTRICTS: "AS RESTRICTIVE"
    " USING (namespace = nullif(current_setting('" + SETTING + "', true), ''))",
}

RESTRICTION = "(namespace = NULLIF(current_setting('cenote.namespace'::text, true), ''::text))"
"""Condition of the restrictive policy, as Postgres prints it."""


def enable_row_security_statements(
    tables: Sequence[str], schema: str | None
) -> Iterator[DDLTemplate]:
    """Yield the statements that create the policies of tables, and enable row-level security.

    Existing policies of the same names are replaced.
    """
    for table_name in tables:
        for policy in _POLICIES:
            yield _drop_policy(table_name, schema, policy)
            yield _create_policy(table_name, schema, policy)
        yield alter_row_security(table_name, schema, enabled=True, forced=True)


def disable_row_security_statements(
    tables: Sequence[str], schema: str | None
) -> Iterator[DDLTemplate]:
    """Yield the statements that disable row-level security and drop the policies."""
    for table_name in tables:
        yield alter_row_security(table_name, schema, enabled=False, forced=False)
        for policy in _POLICIES:
            yield _drop_policy(table_name, schema, policy)


def alter_row_security(
    table_name: str, schema: str | None, *, enabled: bool, forced: bool
) -> DDLTemplate:
    """Return ``ALTER TABLE ... ENABLE`` or ``DISABLE`` and ``FORCE`` or ``NO FORCE``.

    Args:
        table_name: Table or partition.
        schema: Schema of the table.
        enabled: True to enable row-level security.
        forced: True to apply row-level security to the table's owner too.
    """
    enable = "ENABLE" if enabled else "DISABLE"
    force = "FORCE" if forced else "NO FORCE"
    return DDLTemplate(
        f"ALTER TABLE {{table}} {enable} ROW LEVEL SECURITY, {force} ROW LEVEL SECURITY",
        table=table_of(table_name, schema),
    )


def _create_policy(table_name: str, schema: str | None, policy: str) -> DDLTemplate:
    return DDLTemplate(
        "CREATE POLICY {policy} ON {table} " + _POLICIES[policy],
        policy=policy,
        table=table_of(table_name, schema),
    )


def _drop_policy(table_name: str, schema: str | None, policy: str) -> DDLTemplate:
    return DDLTemplate(
        "DROP POLICY IF EXISTS {policy} ON {table}",
        policy=policy,
        table=table_of(table_name, schema),
    )
