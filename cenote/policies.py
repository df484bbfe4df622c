"""Row-level security of a chunk table: what lets a transaction see one tenant's rows and no others.

The tenant is a setting of the transaction, `SETTING`, that stores make; without it there are no
rows. There are two policies, on the table and on each partition: one permits everything, since
restrictive ones alone permit nothing, and the other restricts that to the tenant. So no permissive
policy that a host adds can let anybody in. Both are forced on the owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, column, func, literal_column, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from cenote.ddl import table_of

SETTING = "cenote.namespace"
"""The setting that holds the tenant."""

PERMITS = "cenote_permits"
RESTRICTS = "cenote_restricts"
"""The names of the policies."""

NAME: ColumnElement[str] = literal_column("'" + SETTING + "'")
"""The setting's name, in SQL."""

_CONDITIONS: dict[str, ColumnElement[bool]] = {
    PERMITS: true(),
    # Where it was once set in a session, the setting is '' outside of transactions that set it.
    RESTRICTS: column("namespace")
    == func.nullif(func.current_setting(NAME, true()), literal_column("''")),
}

RESTRICTION = "(namespace = NULLIF(current_setting('cenote.namespace'::text, true), ''::text))"
"""The condition as Postgres prints it."""


class CreatePolicy(ExecutableDDLElement):
    """``CREATE POLICY ...``, by its name."""

    def __init__(self, table: str, schema: str | None, name: str) -> None:
        self.table = table_of(table, schema)
        self.name = name


class DropPolicy(ExecutableDDLElement):
    """``DROP POLICY IF EXISTS ...``."""

    def __init__(self, table: str, schema: str | None, name: str) -> None:
        self.table = table_of(table, schema)
        self.name = name


class AlterRowSecurity(ExecutableDDLElement):
    """``ALTER TABLE ... ENABLE`` or ``DISABLE``, and ``FORCE`` or ``NO FORCE``.

    Args:
        table: the table.
        schema: its schema.
        enabled: whether there is row-level security.
        forced: whether it holds for the owner, too.
    """

    def __init__(self, table: str, schema: str | None, *, enabled: bool, forced: bool) -> None:
        self.table = table_of(table, schema)
        self.enabled = enabled
        self.forced = forced


def securing(tables: Sequence[str], schema: str | None) -> Iterator[ExecutableDDLElement]:
    """The statements that give tables the policies, again if need be, and turn them on."""
    for name in tables:
        for policy in _CONDITIONS:
            yield DropPolicy(name, schema, policy)
            yield CreatePolicy(name, schema, policy)
        yield AlterRowSecurity(name, schema, enabled=True, forced=True)


def opening(tables: Sequence[str], schema: str | None) -> Iterator[ExecutableDDLElement]:
    """The statements that turn row-level security off and drop the policies."""
    for name in tables:
        yield AlterRowSecurity(name, schema, enabled=False, forced=False)
        for policy in _CONDITIONS:
            yield DropPolicy(name, schema, policy)


@compiles(CreatePolicy, "postgresql")
def _create_policy(element: CreatePolicy, compiler: Any, **kw: Any) -> str:
    condition = compiler.sql_compiler.process(_CONDITIONS[element.name], literal_binds=True)
    return " ".join(
        [
            "CREATE POLICY",
            compiler.preparer.quote(element.name),
            "ON",
            compiler.preparer.format_table(element.table),
            "AS RESTRICTIVE" if element.name == RESTRICTS else "AS PERMISSIVE",
            "USING (" + condition + ")",
        ]
    )


@compiles(DropPolicy, "postgresql")
def _drop_policy(element: DropPolicy, compiler: Any, **kw: Any) -> str:
    table = compiler.preparer.format_table(element.table)
    return " ".join(["DROP POLICY IF EXISTS", compiler.preparer.quote(element.name), "ON", table])


@compiles(AlterRowSecurity, "postgresql")
def _alter_row_security(element: AlterRowSecurity, compiler: Any, **kw: Any) -> str:
    return " ".join(
        [
            "ALTER TABLE",
            compiler.preparer.format_table(element.table),
            "ENABLE" if element.enabled else "DISABLE",
            "ROW LEVEL SECURITY,",
            "FORCE" if element.forced else "NO FORCE",
            "ROW LEVEL SECURITY",
        ]
    )
