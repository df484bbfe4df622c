"""Plans of statements, as a server that prepared them chooses them."""

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
    """The executed plan of a statement.

    EXPLAIN of a statement with bound values would always show a custom one.

    Args:
        connection: where to run it.
        statement: what to run.
        mode: ``force_custom_plan``, ``force_generic_plan`` or ``auto``.
        parameters: for what the statement leaves open.
        after: how many executions went before; in ``auto`` mode, the server thinks about a generic
            plan after five.
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
