"""A bulk load that tests interrupt, as a function and as a program."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from cenote import EmbeddedChunk, PgVectorStore
from cenote.testing import embedded

LOADED = 3500
"""Number of chunks of the whole load: three batches and a half."""


async def source(pause: Callable[[int], Awaitable[object]]) -> AsyncIterator[EmbeddedChunk]:
    """Generate chunks, and await `pause` with the number of stored ones after each batch.

    A document has 100 chunks, and the metadata is ``{"k": number % 10}``.
    """
    for number in range(LOADED):
        if number and number % 1000 == 0:
            await pause(number)
        yield embedded(
            f"{number:06}",
            [1.0, number % 7, number % 11, 0.5],
            document_id=f"d{number // 100}",
            metadata={"k": number % 10},
        )


async def _load(dsn: str, pause_at: int) -> None:
    async def pause(stored: int) -> None:
        if stored == pause_at:
            print("paused", flush=True)
            await asyncio.sleep(600)

    async with await PgVectorStore.connect(dsn, 4) as store:
        await store.bulk_load(source(pause), "n")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(
        _load(os.environ["CENOTE_DATABASE_URL"], int(arguments[0]) if arguments else LOADED)
    )
