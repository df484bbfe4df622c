"""Bulk loads: write a stream of chunks in batches, and build the ANN index afterwards.

Building the HNSW graph of many rows at once takes a fraction of the time of inserting each row into
it. If the table is empty, or if the caller asks for it, a bulk load drops the index first and
builds it last. Otherwise it inserts into the live index.
"""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import InvalidInputError
from cenote.models import EmbeddedChunk
from cenote.progress import LoadProgress, Report, send_report
from cenote.validation.arguments import is_iterable
from cenote.validation.batches import UPSERT_BYTES, UPSERT_ROWS

_logger = logging.getLogger(__name__)

Stream: TypeAlias = Iterable[EmbeddedChunk] | AsyncIterable[EmbeddedChunk]

AnnIndexDuringLoad: TypeAlias = Literal["auto", "rebuild", "keep"]
"""How a bulk load treats the ANN index; see `PgVectorStore.bulk_load`."""


def check_stream(chunks: Any) -> None:
    """Check the stream of a bulk load.

    Raises:
        InvalidInputError: `chunks` is not an iterable or an async iterable, or is a string or a
            single chunk.
    """
    iterable = isinstance(chunks, AsyncIterable) or is_iterable(chunks)
    if isinstance(chunks, str | EmbeddedChunk) or not iterable:
        raise InvalidInputError(
            "embedded_chunks must be an iterable or an async iterable of EmbeddedChunk, not "
            f"{type(chunks).__name__}",
            field="embedded_chunks",
        )


def check_ann_index(ann_index: Any) -> None:
    """Check the argument `ann_index` of a bulk load.

    Raises:
        InvalidInputError: `ann_index` is not one of `AnnIndexDuringLoad`.
    """
    if not isinstance(ann_index, str) or ann_index not in get_args(AnnIndexDuringLoad):
        raise InvalidInputError("ann_index must be 'auto', 'rebuild' or 'keep'", field="ann_index")


def check_is_synchronous(chunks: Any) -> None:
    """Reject an asynchronous iterable before anything is written.

    Raises:
        InvalidInputError: `chunks` is an asynchronous iterable.
    """
    if hasattr(chunks, "__aiter__"):
        raise InvalidInputError(
            "embedded_chunks must be an iterable; an asynchronous one is for "
            "PgVectorStore.bulk_load",
            field="embedded_chunks",
        )


@dataclass(frozen=True, slots=True)
class Build:
    """The build of the ANN index that follows a bulk load.

    Its methods import `cenote.maintenance`, and with it alembic, only when they are called.

    Attributes:
        engine: Engine of the database.
        config: Configuration of the table.
        memory, workers, progress: Settings of the build, as for `cenote.maintenance.reindex`.
    """

    engine: AsyncEngine
    config: SchemaConfig
    memory: str | None
    workers: int | None
    progress: Report | None

    @property
    def _resources(self) -> dict[str, Any]:
        return {"memory": self.memory, "workers": self.workers}

    async def drop(self) -> None:
        """Drop the index, even if others are using it."""
        from cenote.maintenance.reindexing import drop_ann_index

        await drop_ann_index(self.engine, self.config, **self._resources)

    async def now(self) -> None:
        """Build the index if it is missing or invalid."""
        from cenote.maintenance.reindexing import build_after_load

        await build_after_load(self.engine, self.config, progress=self.progress, **self._resources)

    @asynccontextmanager
    async def after_load(self, ann_index: AnnIndexDuringLoad) -> AsyncIterator[None]:
        """Drop the index before the block if `ann_index` asks for it, and build it afterwards."""
        if ann_index == "rebuild":
            await self.drop()
        elif ann_index == "keep" or not await self._drop_if_table_is_empty():
            yield
            return
        with self.noting_missing_index():
            yield
            await self.now()

    async def _drop_if_table_is_empty(self) -> bool:
        """Return whether there is no index now, and the load has to build it."""
        from cenote.maintenance.reindexing import drop_ann_index_of_empty_table

        return await drop_ann_index_of_empty_table(self.engine, self.config, **self._resources)

    @contextmanager
    def noting_missing_index(self) -> Iterator[None]:
        """Note and log that an error of the block may leave the index missing, and how to build it.

        Nobody reads the notes of a cancelled task's error, so there is a log record, too.
        """
        try:
            yield
        except BaseException as error:
            note = (
                f"the ANN index of table {self.config.table_name!r} may be missing now; the next "
                "bulk load into the table builds it, or cenote reindex"
            )
            error.add_note(note)
            _logger.warning("a bulk load was interrupted: %s", note)
            raise


async def load(
    write: Callable[[list[EmbeddedChunk]], Awaitable[object]],
    batches: AsyncIterator[list[EmbeddedChunk]],
    report: Report | None,
) -> int:
    """Write all batches, and return the number of chunks."""
    loaded = 0
    async for batch in batches:
        await write(batch)
        loaded += len(batch)
        send_report(report, LoadProgress(chunks=loaded))
    send_report(report, LoadProgress(chunks=loaded, done=True))
    return loaded


@asynccontextmanager
async def batches(chunks: Stream) -> AsyncIterator[AsyncIterator[list[EmbeddedChunk]]]:
    """Yield the chunks of a stream in batches, each as large as one INSERT of an upsert.

    If the stream is a generator, it is closed at the end of the block, even if it is not exhausted.
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
    """Yield `first`, unless it is empty, and then the remaining batches."""
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
    """Return the approximate size of a chunk in bytes, and 0 for other objects.

    Items are validated later, together with their batch.
    """
    try:
        return len(item.chunk.content) + 4 * len(item.embedding)
    except (AttributeError, TypeError):
        return 0
