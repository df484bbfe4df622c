"""Query plans, as the server chooses them for prepared statements."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection


async def explain(
    connection: AsyncConnection,
    statement: Executable,
    mode: str,
    parameters: Any = None,
    *,
    after: int = 0,
) -> str:
    """Execute a prepared statement and return its plan.

    EXPLAIN of a statement with bound values would always show a custom plan.

    Args:
        connection: Connection to use.
        statement: Statement to execute.
        mode: ``force_custom_plan``, ``force_generic_plan`` or ``auto``.
        parameters: Values of the statement's parameters that have none yet.
        after: Number of executions before the explained one. In ``auto`` mode, the server
            considers a generic plan after five.
    """
    dialect: Any = connection.dialect
    if dialect.driver == "psycopg":  # PREPARE needs numbered parameters
        dialect = type(dialect)(paramstyle="numeric_dollar")
    compiled: Any = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    bound = compiled.construct_params(parameters)
    literals = ", ".join(_literal(bound[name]) for name in compiled.positiontup)
    driver: Any = (await connection.get_raw_connection()).driver_connection

    async def execute(sql: str) -> Any:
        result = driver.execute(sql)
        return await result if inspect.isawaitable(result) else result

    await execute("SET plan_cache_mode = " + mode)
    await execute("PREPARE search AS " + str(compiled))
    for _ in range(after):
        await execute("EXECUTE search(" + literals + ")")
    explanation = "EXPLAIN (ANALYZE) EXECUTE search(" + literals + ")"
    if dialect.driver == "psycopg":
        rows = (await execute(explanation)).fetchall()
        rows = await rows if inspect.isawaitable(rows) else rows
    else:
        rows = await driver.fetch(explanation)
    await execute("DEALLOCATE search")
    await execute("RESET plan_cache_mode")
    return "\n".join(row[0] for row in rows)


def _literal(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        value = "{" + ",".join(map(str, value)) + "}"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
