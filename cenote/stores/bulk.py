"""Bulk loads: chunks of a stream in batches, and the ANN index after them where nobody misses it.

Building the HNSW graph of many rows at once takes a fraction of the time of inserting each into it.
So where the table is empty, or the caller says so, the index is dropped first and built last. A
partition's part of a partitioned index cannot be dropped alone, so that for an empty partition
beside full ones the rows go into the live index.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Literal, TypeAlias, get_args

from cenote.errors import InvalidInputError
from cenote.models import EmbeddedChunk
from cenote.progress import LoadProgress, Report, tell
from cenote.stores.rows import UPSERT_BYTES, UPSERT_ROWS

Stream: TypeAlias = Iterable[EmbeddedChunk] | AsyncIterable[EmbeddedChunk]

AnnIndexDuringLoad: TypeAlias = Literal["auto", "rebuild", "keep"]
"""What becomes of the ANN index in a bulk load."""


def check_stream(chunks: Any) -> Stream:
    """Refuse what gives no chunks."""
    if isinstance(chunks, str | EmbeddedChunk) or not isinstance(chunks, Iterable | AsyncIterable):
        raise InvalidInputError(
            "embedded_chunks must be an iterable or an async iterable of EmbeddedChunk, not "
            f"{type(chunks).__name__}",
            field="embedded_chunks",
        )
    return chunks


def check_ann_index(ann_index: Any) -> None:
    """Refuse what is none of the choices."""
    if ann_index not in get_args(AnnIndexDuringLoad):
        raise InvalidInputError("ann_index must be 'auto', 'rebuild' or 'keep'", field="ann_index")


async def load(
    upsert: Callable[[list[EmbeddedChunk]], Awaitable[None]], chunks: Stream, report: Report | None
) -> int:
    """Write a stream batch by batch; returns how many chunks there were."""
    loaded = 0
    async with aclosing(batches(chunks)) as several:
        async for batch in several:
            await upsert(batch)
            loaded += len(batch)
            tell(report, LoadProgress(chunks=loaded))
    return loaded


async def batches(chunks: Stream) -> AsyncGenerator[list[EmbeddedChunk], None]:
    """The chunks of a stream, as many at a time as one INSERT of an upsert takes."""
    batch: list[EmbeddedChunk] = []
    size = 0
    async for item in _aiter(chunks):
        batch.append(item)
        size += _size(item)
        if len(batch) == UPSERT_ROWS or size >= UPSERT_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _aiter(chunks: Stream) -> AsyncGenerator[EmbeddedChunk, None]:
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
