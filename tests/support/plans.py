"""Query plans, as the server chooses them for prepared statements."""

from __future__ import annotations

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
    compiled: Any = statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]
    bound = compiled.construct_params(parameters)
    literals = ", ".join(_literal(bound[name]) for name in compiled.positiontup)
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.execute("SET plan_cache_mode = " + mode)
    await driver.execute("PREPARE search AS " + str(compiled))
    for _ in range(after):
        await driver.execute("EXECUTE search(" + literals + ")")
    rows = await driver.fetch("EXPLAIN (ANALYZE) EXECUTE search(" + literals + ")")
    await driver.execute("DEALLOCATE search")
    await driver.execute("RESET plan_cache_mode")
    return "\n".join(row[0] for row in rows)


def _literal(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        value = "{" + ",".join(map(str, value)) + "}"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
