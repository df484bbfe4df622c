"""Reads of `PgVectorStore` without a query vector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement

from cenote.filters.checks import is_long
from cenote.filters.compiler import Conditions
from cenote.filters.language import FilterLike
from cenote.models import Chunk
from cenote.responsive import Pauses
from cenote.stores.pgvector.base import Model, PgVectorStoreBase
from cenote.stores.pgvector.executor import (
    CallerTransaction,
    Session,
    fetch_all,
)
from cenote.stores.pgvector.retry import Retry, operation
from cenote.stores.pgvector.sql import rows
from cenote.stores.pgvector.sql.where import check_condition
from cenote.types import Float32Array
from cenote.validation.arguments import (
    check_chunk_id,
    check_ids,
    check_ids_in_order,
    check_limit,
    check_namespace,
    check_neighbours,
    check_text,
)
from cenote.validation.batches import check_chunks, is_embedded

FIRST_PAGE_ROWS = 250
"""Number of rows in the first page of `get_all_chunks`, before the size of the rows is known."""

PAGE_BYTES = 2 * 2**20
"""Approximate size in memory of each further page of `get_all_chunks`.

Reading 20,000 chunks of 500 characters takes equally long with pages of 1 to 8 MiB. The process
grows by 3 MB with this size, and by 5 MB with twice the size.
"""

MAX_PAGE_ROWS = 2000
"""Maximum number of rows in a page, because later rows may be much larger than the rows before."""

_BLOCK_ROWS = 50
"""Number of chunks that `get_all_chunks` creates at a time. Larger blocks are hardly faster."""


class Reading(PgVectorStoreBase[Model]):
    """The methods of `PgVectorStore` that read."""

    @operation("get", retry=Retry.ALWAYS, batch="chunk_ids")
    async def get(
        self, chunk_ids: Sequence[str], namespace: str, *, session: Session | None = None
    ) -> list[Chunk]:
        """Read chunks by their ids; see `VectorStore.get`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        ids = check_ids_in_order(chunk_ids)
        if not ids:
            return []
        values = {"namespace": namespace, "ids": ids}
        found = await self._executor.fetch("get", transaction, namespace, self._reads.get, values)
        by_id = {chunk.id: chunk for chunk in await rows.chunks_from(found)}
        return [by_id[chunk_id] for chunk_id in ids if chunk_id in by_id]

    @operation("get_embeddings", retry=Retry.ALWAYS, batch="chunk_ids")
    async def get_embeddings(
        self, chunk_ids: Sequence[str], namespace: str, *, session: Session | None = None
    ) -> dict[str, Float32Array]:
        """Read embeddings; see `VectorStore.get_embeddings`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        values = {"namespace": namespace, "ids": check_ids(chunk_ids)}
        async with self._executor.statement("get_embeddings", transaction, namespace) as connection:
            found = await fetch_all(await connection.execute(self._reads.embeddings, values))
        embeddings: dict[str, Float32Array] = {}
        pauses = Pauses()
        for chunk_id, vector in found:
            embeddings[chunk_id] = np.asarray(vector, dtype=np.float32)
            await pauses()
        return embeddings

    @operation("count", retry=Retry.ALWAYS)
    async def count(
        self, namespace: str, filter: FilterLike = None, *, session: Session | None = None
    ) -> int:
        """Count chunks; see `VectorStore.count`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        conditions = await self._conditions_of(filter)
        if self._never_holds(conditions):
            return 0
        statement = self._reads.count(conditions)
        values = {"namespace": namespace, **conditions.parameters}
        [[count]] = await self._executor.fetch("count", transaction, namespace, statement, values)
        return int(count)

    @operation("list_namespaces", retry=Retry.ALWAYS)
    async def list_namespaces(self, *, session: Session | None = None) -> dict[str, int]:
        """Count the chunks of every namespace; see `VectorStore.list_namespaces`.

        This reads a whole index of every partition. On a table with row-level security, it requires
        a role with BYPASSRLS.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        transaction = self._transaction(session)
        async with self._executor.statement("list_namespaces", transaction, None) as connection:
            await self._executor.check_sees_all_rows(connection)
            found = await connection.execute(self._reads.namespaces)
            return {row.namespace: row.chunks for row in found}

    @operation("missing", retry=Retry.ALWAYS, batch="chunks")
    async def missing(
        self, chunks: Sequence[Chunk], namespace: str, *, session: Session | None = None
    ) -> list[Chunk]:
        """Return the chunks that need an embedding; see `VectorStore.missing`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        asked = check_chunks(chunks)
        if not asked:
            return []
        values = {"namespace": namespace, "ids": sorted({chunk.id for chunk in asked})}
        async with self._executor.statement("missing", transaction, namespace) as connection:
            found = (await connection.execute(self._reads.hashes, values)).all()
        stored = {row.id: (row.content_hash, row.embedding_model) for row in found}
        return [chunk for chunk in asked if not is_embedded(chunk, stored, self._embedding_model)]

    @operation("list_chunks", retry=Retry.ALWAYS)
    async def list_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        after: str | None = None,
        limit: int = 100,
        session: Session | None = None,
    ) -> list[Chunk]:
        """Read one page of a namespace's chunks; see `VectorStore.list_chunks`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        check_limit(limit)
        transaction = self._transaction(session)
        conditions = await self._conditions_of(filter)
        values = {"namespace": namespace, "page_size": limit}
        if after is not None:
            check_text(after, field="after")
            values["after"] = after
        if self._never_holds(conditions):
            return []
        statement = self._reads.page(conditions, first=after is None)
        values |= conditions.parameters
        found = await self._executor.fetch("list_chunks", transaction, namespace, statement, values)
        return await rows.chunks_from(found)

    @operation("neighbours", retry=Retry.ALWAYS)
    async def neighbours(
        self,
        chunk_id: str,
        namespace: str,
        *,
        before: int = 1,
        after: int = 1,
        session: Session | None = None,
    ) -> list[Chunk]:
        """Read a chunk and its neighbours in the document; see `VectorStore.neighbours`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        check_chunk_id(chunk_id)
        check_neighbours(before, after)
        transaction = self._transaction(session)
        values = {"namespace": namespace, "id": chunk_id, "before": before, "after": after}
        async with self._executor.statement("neighbours", transaction, namespace) as connection:
            found = await fetch_all(await connection.execute(self._reads.neighbours, values))
        return await rows.chunks_from(found)

    def get_all_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        where: ColumnElement[bool] | None = None,
        session: Session | None = None,
    ) -> AsyncIterator[Chunk]:
        """Iterate over a namespace's chunks; see `VectorStore.get_all_chunks`.

        Args:
            where: Additional SQL condition; see :meth:`search_statement`.
            session: Transaction to join; see `PgVectorStore`. You may use it while the iteration is
                suspended.
        """
        check_namespace(namespace)
        conditions = None
        if not is_long(filter):
            conditions = Conditions(self._checked_filter(filter))
            self._reads.page(conditions, first=True)  # raises an error if a column does not exist
        condition = check_condition(where, self._executor.table)
        transaction = self._transaction(session)
        given = filter if conditions is None else conditions
        return self._chunks(namespace, given, condition, transaction)

    async def _chunks(
        self,
        namespace: str,
        given: FilterLike | Conditions,
        where: ColumnElement[bool] | None,
        session: CallerTransaction | None,
    ) -> AsyncIterator[Chunk]:
        filter = given if isinstance(given, Conditions) else await self._conditions_of(given)
        page_size = FIRST_PAGE_ROWS
        values = {"namespace": namespace, **filter.parameters}
        while True:
            values["page_size"] = page_size
            page = await self._page(namespace, filter, where, values, session=session)
            for start in range(0, len(page), _BLOCK_ROWS):
                for chunk in rows.to_chunks(page[start : start + _BLOCK_ROWS]):
                    yield chunk
            if len(page) < page_size:
                return
            values["after"] = page[-1][0]
            page_size = PAGE_BYTES * len(page) // rows.approximate_bytes(page)
            page_size = min(max(page_size, 1), MAX_PAGE_ROWS)
            del page  # otherwise it would stay in memory until the next one is complete

    @operation("get_all_chunks", retry=Retry.ALWAYS)  # page by page
    async def _page(
        self,
        namespace: str,
        filter: Conditions,
        where: ColumnElement[bool] | None,
        values: dict[str, Any],
        *,
        session: CallerTransaction | None,
    ) -> Sequence[Sequence[Any]]:
        if filter.never_holds:
            return []
        first = "after" not in values
        name = "get_all_chunks"
        if where is None:
            statement = self._reads.page(filter, first=first)
            return await self._executor.fetch(name, session, namespace, statement, values)
        statement = self._reads.page_where(where, filter, values, first=first)
        return await self._executor.execute(name, session, namespace, statement, {})
