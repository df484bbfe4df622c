"""Measure how long an operation keeps the event loop from running other tasks."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable
from typing import Any


async def longest_stall(operation: Awaitable[Any]) -> float:
    """Return the most CPU seconds that the loop's thread needs between two turns of a ticker.

    CPU time, unlike elapsed time, does not depend on what else the machine does. Garbage collection
    is off meanwhile: its duration depends on all objects of the process.
    """
    stalls: list[float] = []
    last = time.thread_time()

    async def tick() -> None:
        nonlocal last
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            stalls.append(now - last)
            last = now
            await asyncio.sleep(0.001)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    gc.collect()
    gc.disable()
    try:
        stalls.clear()
        last = time.thread_time()
        result = await operation
        stalls.append(time.thread_time() - last)
        del result  # after the measurement: to free many objects takes long, too
    finally:
        gc.enable()
        ticker.cancel()
    return max(stalls)
