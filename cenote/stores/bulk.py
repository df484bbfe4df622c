"""Bulk loads: chunks of a stream in batches, and the ANN index after them where nobody misses it.

Building the HNSW graph of many rows at once takes a fraction of the time of inserting each into it.
So where the table is empty, or the caller says so, the index is dropped first and built last. An
empty partition beside full ones is set aside meanwhile (`cenote.set_aside`).
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
    Iterator,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import InvalidInputError
from cenote.models import EmbeddedChunk
from cenote.progress import LoadProgress, Report, tell
from cenote.stores.rows import UPSERT_BYTES, UPSERT_ROWS
from cenote.validation import is_iterable

Stream: TypeAlias = Iterable[EmbeddedChunk] | AsyncIterable[EmbeddedChunk]

AnnIndexDuringLoad: TypeAlias = Literal["auto", "rebuild", "keep"]
"""What becomes of the ANN index in a bulk load."""


def check_stream(chunks: Any) -> None:
    """Refuse what gives no chunks."""
    iterable = isinstance(chunks, AsyncIterable) or is_iterable(chunks)
    if isinstance(chunks, str | EmbeddedChunk) or not iterable:
        raise InvalidInputError(
            "embedded_chunks must be an iterable or an async iterable of EmbeddedChunk, not "
            f"{type(chunks).__name__}",
            field="embedded_chunks",
        )


def check_ann_index(ann_index: Any) -> None:
    """Refuse what is none of the choices."""
    if not isinstance(ann_index, str) or ann_index not in get_args(AnnIndexDuringLoad):
        raise InvalidInputError("ann_index must be 'auto', 'rebuild' or 'keep'", field="ann_index")


@dataclass(frozen=True, slots=True)
class Build:
    """The build of the ANN index that is to follow a load. Imports alembic, once it is used.

    Attributes:
        engine, config: the database, and the table.
        memory, workers, progress: as for `cenote.indexes.reindex`.
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
        """Drop the index, whoever may be using it."""
        from cenote import indexes

        await indexes.drop_ann_index(self.engine, self.config, **self._resources)

    async def now(self) -> None:
        """Build the index, unless it is there."""
        from cenote import indexes

        await indexes.build_after_load(
            self.engine, self.config, progress=self.progress, **self._resources
        )

    @asynccontextmanager
    async def after_load(
        self, namespace: str, ann_index: AnnIndexDuringLoad
    ) -> AsyncIterator[str | None]:
        """Make way for the rows of a namespace, and build what is to be built after them.

        Yields:
            The partition to write into, if it is set aside.
        """
        if ann_index == "keep":
            yield None
        elif ann_index == "rebuild" or await self._dropped_for_nobody():
            if ann_index == "rebuild":
                await self.drop()
            with self.telling_what_is_left(None):
                yield None
                await self.now()
        else:
            async with self._partition_set_aside(namespace) as partition:
                yield partition

    async def _dropped_for_nobody(self) -> bool:
        from cenote import indexes

        return await indexes.drop_ann_index_of_empty_table(
            self.engine, self.config, **self._resources
        )

    @asynccontextmanager
    async def _partition_set_aside(self, namespace: str) -> AsyncIterator[str | None]:
        from cenote import set_aside

        put_back = partial(
            set_aside.put_back, self.engine, self.config, progress=self.progress, **self._resources
        )
        partition = await set_aside.set_aside(
            self.engine, self.config, namespace, **self._resources
        )
        if partition is None:
            yield None
            return
        with self.telling_what_is_left(partition):
            try:
                yield partition
            except Exception:
                await put_back()  # with the batches before the error
                raise
            await put_back()

    @contextmanager
    def telling_what_is_left(self, partition: str | None) -> Iterator[None]:
        """Add to an error what may be undone now, and what mends it."""
        try:
            yield
        except BaseException as error:
            left = (
                f"the ANN index of table {self.config.table_name!r} may be missing now"
                if partition is None
                else f"partition {partition!r} may be set aside now, with rows that nobody finds"
            )
            error.add_note(
                f"{left}; the next bulk load of the namespace mends it, or cenote reindex"
            )
            raise


async def load(
    write: Callable[[list[EmbeddedChunk]], Awaitable[object]],
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
