"""Bulk loads: chunks of a stream in batches, and the ANN index after them where nobody misses it.

Building the HNSW graph of many rows at once takes a fraction of the time of inserting each into it.
So where the table is empty, or the caller says so, the index is dropped first and built last. A
partition's part of a partitioned index cannot be dropped alone, so that for an empty partition
beside full ones the rows go into the live index.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from typing import Any, Literal, TypeAlias, get_args

from cenote.errors import InvalidInputError
from cenote.models import EmbeddedChunk
from cenote.progress import LoadProgress, Report, tell
from cenote.stores.rows import UPSERT_BYTES, UPSERT_ROWS

Stream: TypeAlias = Iterable[EmbeddedChunk] | AsyncIterable[EmbeddedChunk]

AnnIndexDuringLoad: TypeAlias = Literal["auto", "rebuild", "keep"]
"""What becomes of the ANN index in a bulk load."""


def check_stream(chunks: Any) -> None:
    """Refuse what gives no chunks."""
    if isinstance(chunks, str | EmbeddedChunk) or not isinstance(chunks, Iterable | AsyncIterable):
        raise InvalidInputError(
            "embedded_chunks must be an iterable or an async iterable of EmbeddedChunk, not "
            f"{type(chunks).__name__}",
            field="embedded_chunks",
        )


def check_ann_index(ann_index: Any) -> None:
    """Refuse what is none of the choices."""
    if ann_index not in get_args(AnnIndexDuringLoad):
        raise InvalidInputError("ann_index must be 'auto', 'rebuild' or 'keep'", field="ann_index")


async def load(
    write: Callable[[list[EmbeddedChunk]], Awaitable[None]],
    batches: AsyncIterator[list[EmbeddedChunk]],
    report: Report | None,
) -> int:
    """Write batch after batch; returns how many chunks there were."""
    loaded = 0
    async for batch in batches:
        await write(batch)
        loaded += len(batch)
        tell(report, LoadProgress(chunks=loaded))
    tell(report, LoadProgress(chunks=loaded, done=True))
    return loaded


@asynccontextmanager
async def batches(chunks: Stream) -> AsyncIterator[AsyncIterator[list[EmbeddedChunk]]]:
    """The chunks of a stream, as many at a time as one INSERT of an upsert takes.

    At the end of the block a generator of the caller's is closed, however far it was.
    """
    async with AsyncExitStack() as stack:
        if isinstance(chunks, AsyncGenerator):
            await stack.enter_async_context(aclosing(chunks))
        elif isinstance(chunks, Generator):
            stack.enter_context(closing(chunks))
        yield await stack.enter_async_context(aclosing(_batches(chunks)))


async def with_first(
    batches: AsyncIterator[list[EmbeddedChunk]], first: list[EmbeddedChunk]
) -> AsyncIterator[list[EmbeddedChunk]]:
    """Batches of which the first was taken already, empty if there was none."""
    if first:
        yield first
    async for batch in batches:
        yield batch


async def _batches(chunks: Stream) -> AsyncGenerator[list[EmbeddedChunk], None]:
    batch: list[EmbeddedChunk] = []
    size = 0
    async with aclosing(_each(chunks)) as items:
        async for item in items:
            batch.append(item)
            size += _size(item)
            if len(batch) == UPSERT_ROWS or size >= UPSERT_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


async def _each(chunks: Stream) -> AsyncGenerator[EmbeddedChunk, None]:
    if isinstance(chunks, AsyncIterable):
        async for item in chunks:
            yield item
    else:
        for item in chunks:
            yield item


def _size(item: Any) -> int:
    """About the bytes of a chunk, whatever it is: what it may be is checked with its batch."""
    try:
        return len(item.chunk.content) + 4 * len(item.embedding)
    except (AttributeError, TypeError):
        return 0
