"""Row-level security of a chunk table: a transaction sees the rows of one tenant only.

Stores put the tenant into `SETTING`, a setting of the transaction. Without it no rows are visible.
The table and each of its partitions have two policies. One permits everything, since restrictive
policies alone permit nothing; the other restricts the rows to the tenant. Because the second one is
restrictive, a permissive policy that the application adds cannot let anybody in. Row-level security
is forced, so that the policies apply to the table's owner too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, literal_column

from cenote.postgres.ddl import DDLTemplate, table_of

SETTING = "cenote.namespace"
"""Setting that holds the tenant."""

PERMITS = "cenote_permits"
"""Name of the policy that permits everything."""

RESTRICTS = "cenote_restricts"
"""Name of the policy that restricts the rows to the tenant."""

NAME: ColumnElement[str] = literal_column("'" + SETTING + "'")
"""Name of the setting, as a SQL literal."""

# Once a session has set the setting, it is '' in transactions that do not set it.
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
