"""Bulk loads of `PgVectorStore`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from cenote.config import SchemaConfig
from cenote.models import EmbeddedChunk
from cenote.progress import Report
from cenote.stores import bulk_load
from cenote.stores.pgvector.base import Model
from cenote.stores.pgvector.retry import Retry, operation
from cenote.stores.pgvector.writing import Writing
from cenote.validation.arguments import check_namespace


class Loading(Writing[Model]):
    """The methods of `PgVectorStore` that load in bulk."""

    @operation("bulk_load", retry=Retry.NEVER)
    async def bulk_load(
        self,
        embedded_chunks: bulk_load.Stream,
        namespace: str,
        *,
        ann_index: bulk_load.AnnIndexDuringLoad = "auto",
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """Write any number of chunks, and build the ANN index afterwards if the table was empty.

        Chunks are read as they are needed and written in batches of up to 1,000. Each batch is
        committed, so memory stays flat and a crash leaves whole batches. To continue after a crash
        or an error, load the same chunks again: chunks that are stored already are not rewritten.
        If an id appears twice, the last of its chunks is stored. If a crash leaves the index
        missing, the next bulk load with ``ann_index="auto"`` or `cenote reindex` builds it.

        Others can search and write meanwhile. Searches stay complete, but are slow in large
        namespaces while there is no ANN index. A bulk load uses connections and transactions of its
        own (there is no ``session=``). It waits for rows that your transaction has locked.

        The build of the index waits for transactions that hold a snapshot; see
        `cenote.maintenance.reindex`. If `embedded_chunks` reads from an open cursor of the same
        database, the load waits forever: pass ``ann_index="keep"``, and end the transaction before
        you build the index, for example with :meth:`deferred_ann_index`. While the index is built,
        migrations of the database wait.

        Args:
            embedded_chunks: Iterable or async iterable of any length.
            namespace: Tenant to write to.
            ann_index: ``"rebuild"`` drops the index, even if others are using it, and builds it
                after the rows. ``"keep"`` does neither. ``"auto"`` does the same as ``"rebuild"``
                if the whole table is empty, the role owns it, and no other transaction locks it for
                more than a second. If the index is missing, for example after a crash, ``"auto"``
                builds it after the rows. In all other cases, inside the block of
                :meth:`deferred_ann_index`, and with a ``schema_translate_map``, ``"auto"`` does the
                same as ``"keep"``.
            memory, workers: Resources for the build; see `cenote.maintenance.reindex`.
            progress: Called with a `LoadProgress` after each batch, and with an `IndexProgress`
                twice a second while the index is built. Errors that it raises are logged.
                `cenote.progress.progress_bar()` returns one that draws a bar.

        Returns:
            The number of chunks.

        Raises:
            DimensionMismatchError, InvalidInputError: A chunk is invalid, as for
                `VectorStore.upsert`. Its batch is not written; earlier batches are stored.
            VectorStoreError: A batch was not written. Earlier batches are stored.
            MigrationError: The index was not dropped or not built.
        """
        self._reject_if_bound("bulk_load", "call upsert")
        check_namespace(namespace)
        bulk_load.check_stream(embedded_chunks)
        bulk_load.check_ann_index(ann_index)
        if ann_index == "auto" and (self._deferrals or self._translates_schemas):
            ann_index = "keep"
        async with bulk_load.batches(embedded_chunks) as batches:
            first: list[EmbeddedChunk] = await anext(batches, [])
            self._check_batch(first)  # before the index is dropped
            await self._check_table("bulk_load")
            build = bulk_load.Build(self._engine, self._build_config(), memory, workers, progress)
            async with build.after_load(ann_index):
                loaded = await bulk_load.load(
                    partial(self._upsert, namespace=namespace),
                    bulk_load.with_first(batches, first),
                    progress,
                )
            self._executor.forget_table()  # there may be an index now
            return loaded

    def _build_config(self) -> SchemaConfig:
        """Return the settings of an ANN index that replaces the present one, which is dropped."""
        kind = self._searches.vectors.kind
        return self._config if kind == "none" else replace(self._config, index=kind)

    @asynccontextmanager
    async def deferred_ann_index(
        self,
        *,
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> AsyncIterator[None]:
        """Drop the ANN index, even if others are using it, and build it at the end of the block.

        Use it to load many namespaces::

            async with store.deferred_ann_index():
                for tenant, chunks in collections:
                    await store.bulk_load(chunks, tenant)

        Meanwhile, searches are complete, but slow in large namespaces. If the block raises an
        error, the index stays missing: enter another block to continue, or run `cenote reindex`.
        Have no open transaction when the block begins and ends; transactions inside it do no harm.
        Only one store should do this; others that load into the table at the same time pass
        ``ann_index="keep"``.

        Args:
            memory, workers, progress: Options of the build; see `cenote.maintenance.reindex`.

        Raises:
            MigrationError: The index was not dropped or not built.
        """
        self._reject_if_bound("deferred_ann_index", "call it on the store that is not bound")
        await self._check_table("deferred_ann_index")
        build = bulk_load.Build(self._engine, self._build_config(), memory, workers, progress)
        await build.drop()
        self._executor.forget_table()
        with build.noting_missing_index():
            self._deferrals += 1
            try:
                yield
            finally:
                self._deferrals -= 1
            if not self._deferrals:  # the last of several concurrent blocks builds
                await build.now()
                self._executor.forget_table()
