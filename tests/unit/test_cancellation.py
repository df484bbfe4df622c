"""Cancellations that a pool loses."""

from __future__ import annotations

import asyncio

import pytest

from cenote.postgres.event_loops import cancellations, raise_lost_cancellation


async def borrow() -> None:
    """Behave as the pool of SQLAlchemy before 2.0.56 on Python 3.11: lose a cancellation."""
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        return


async def test_a_lost_cancellation_is_raised() -> None:
    """A task ends although the pool has lost its cancellation, and so does `asyncio.timeout`."""
    reached = []

    async def work() -> None:
        before = cancellations()
        await borrow()
        raise_lost_cancellation(before)
        reached.append(True)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work()
    assert not reached


async def test_operations_after_a_cancellation() -> None:
    """A task that cleans up after its own cancellation can borrow connections."""
    cleaned_up = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            before = cancellations()
            await asyncio.sleep(0)
            raise_lost_cancellation(before)
            cleaned_up.append(before)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert cleaned_up == [1]
