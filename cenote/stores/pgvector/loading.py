"""Bulk loads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from cenote import validation
from cenote.models import EmbeddedChunk
from cenote.progress import Report
from cenote.stores import bulk
from cenote.stores.pgvector.base import Model
from cenote.stores.pgvector.writing import Writing
from cenote.stores.retrying import Retry, operation


class Loading(Writing[Model]):
    """The methods of `PgVectorStore` that load in bulk."""

    @operation("bulk_load", retry=Retry.NEVER)
    async def bulk_load(
        self,
        embedded_chunks: bulk.Stream,
        namespace: str,
        *,
        ann_index: bulk.AnnIndexDuringLoad = "auto",
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """Write any number of chunks, and build the ANN index after them where that may be.

        The chunks are taken as they are needed, and written in batches of up to 1,000 of which each
        is committed: memory stays flat, and what a crash leaves is whole batches. Load the same
        chunks again to go on: those that are stored already are not rewritten. Of an id that
        appears twice the last one wins.

        Batches before an error are stored, too. If a crash leaves the index missing, the next bulk
        load builds it, or `cenote reindex`.

        Others may search and write meanwhile. Searches are complete throughout, and slow in large
        namespaces while there is no ANN index. It has connections and transactions of its own
        (there is no ``session=``), and waits for yours: call it with none open. While the index is
        built, migrations of the database wait.

        Args:
            embedded_chunks: an iterable or an async iterable, of any length.
            namespace: where to write.
            ann_index: ``"auto"``: if the whole table is empty and belongs to the role, drop the
                index, and build it after the rows; if it is missing, as after a crash, build it
                then. Otherwise, or if others hold the table, insert into the live index, also into
                an empty partition of a table that has rows. ``"rebuild"``: drop and build the
                index, whoever may be using it. ``"keep"``: leave it as it is, there or not. For
                many namespaces, see :meth:`deferred_ann_index`.
            memory, workers: of the build, see `cenote.indexes.reindex`.
            progress: takes a `LoadProgress` after each batch, and an `IndexProgress` twice a second
                while the index is built; what it raises is logged. `cenote.progress.progress_bar()`
                makes one that draws a bar.

        Returns:
            How many chunks there were.

        Raises:
            DimensionMismatchError, InvalidInputError: as `VectorStore.upsert` does, of a chunk
                whose batch was not written.
            VectorStoreError: a batch could not be written.
            MigrationError: the index was not dropped or not built.
        """
        validation.check_namespace(namespace)
        bulk.check_stream(embedded_chunks)
        bulk.check_ann_index(ann_index)
        if ann_index == "auto" and (self._indexing_later or self._translated):
            ann_index = "keep"
        async with bulk.batches(embedded_chunks) as batches:
            first: list[EmbeddedChunk] = await anext(batches, [])
            self._checked_batch(first)  # before an index is dropped for nothing
            await self._look_at_table("bulk_load")
            build = bulk.Build(self._engine, self._config, memory, workers, progress)
            async with build.after_load(ann_index):
                return await bulk.load(
                    partial(self._upsert, namespace=namespace),
                    bulk.with_first(batches, first),
                    progress,
                )

    @asynccontextmanager
    async def deferred_ann_index(
        self,
        *,
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> AsyncIterator[None]:
        """Drop the ANN index, whoever may be using it, and build it at the end of the block.

        For loading many namespaces::

            async with store.deferred_ann_index():
                for tenant, chunks in collections:
                    await store.bulk_load(chunks, tenant)

        Searches are complete meanwhile, and slow in large namespaces. If the block raises, the
        index stays missing: enter it again to go on, or build it by `cenote reindex`. As for
        `bulk_load`, have no transaction of your own open at its begin and end. One store does this;
        others that load into the table at the same time pass ``ann_index="keep"``.

        Args:
            memory, workers, progress: of the build, see `cenote.indexes.reindex`.

        Raises:
            MigrationError: the index was not dropped or not built.
        """
        await self._look_at_table("deferred_ann_index")
        build = bulk.Build(self._engine, self._config, memory, workers, progress)
        await build.drop()
        with build.noting_missing_index():
            self._indexing_later += 1
            try:
                yield
            finally:
                self._indexing_later -= 1
            if not self._indexing_later:  # of several blocks at once the last one builds
                await build.now()
