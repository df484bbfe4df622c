"""Writes and deletions of `PgVectorStore`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cenote.errors import InvalidInputError
from cenote.filters.checks import as_filter, narrowing_filter
from cenote.filters.compiler import Conditions
from cenote.filters.language import Filter, field
from cenote.models import Chunk, EmbeddedChunk, SyncResult
from cenote.stores.pgvector.base import Model, PgVectorStoreBase
from cenote.stores.pgvector.executor import CallerTransaction, Session, run_statement
from cenote.stores.pgvector.retry import Retry, operation
from cenote.stores.pgvector.session_sync import holds_any, refresh, remove
from cenote.stores.pgvector.sql import rows
from cenote.stores.pgvector.write_errors import naming_the_chunk
from cenote.telemetry import record
from cenote.validation.arguments import check_boolean, check_document_id, check_ids, check_namespace
from cenote.validation.batches import (
    Batch,
    ascending_steps,
    batch_without_embeddings,
    check_document,
    check_metadata_by_id,
    reject_unembedded,
    split_batch,
)

_logger = logging.getLogger(__name__)


class Writing(PgVectorStoreBase[Model]):
    """The methods of `PgVectorStore` that write and delete."""

    @operation("upsert", retry=Retry.ALWAYS, batch="embedded_chunks")
    async def upsert(
        self,
        embedded_chunks: list[EmbeddedChunk],
        namespace: str,
        *,
        session: Session | None = None,
    ) -> None:
        """Write chunks; see `VectorStore.upsert`.

        `EmbeddedChunk.columns` holds values for the columns of your model. All chunks of a call
        must have values for the same columns. Other columns get their defaults in new rows, and
        keep their values in existing rows unless they have an ``onupdate``.

        Args:
            session: Transaction to join; see `PgVectorStore`. It must not be in AUTOCOMMIT.
        """
        check_namespace(namespace)
        record(rows=await self._upsert(embedded_chunks, namespace, self._transaction(session)))

    async def _upsert(
        self,
        embedded_chunks: list[EmbeddedChunk],
        namespace: str,
        transaction: CallerTransaction | None = None,
    ) -> int:
        """Write chunks, and return their number."""
        batch = self._check_batch(embedded_chunks)
        if not batch.chunks:
            return 0
        names = self._user_columns.names_in(batch)
        parts = list(split_batch(batch))
        user_values = [self._user_columns.parameters(names, part) for part in parts]
        savepoint = transaction is not None and len(parts) > 1
        async with self._executor.transaction(
            "upsert", transaction, namespace, savepoint=savepoint
        ) as connection:
            statement = self._writes.upsert(names, has_citus=self._executor.has_citus)
            for part, user_parameters in zip(parts, user_values, strict=True):
                parameters = rows.parameters(part, self._config.column_type)
                parameters |= {"namespace": namespace, **user_parameters}
                with self._naming_the_chunk("upsert", part, names, parameters):
                    await connection.execute(statement, parameters)
            ids = [chunk.id for chunk in batch.chunks]
            await refresh(transaction, self._model, namespace, ids)
        return len(batch.chunks)

    def _naming_the_chunk(
        self, operation: str, batch: Batch, names: Sequence[str], parameters: dict[str, Any]
    ) -> AbstractContextManager[None]:
        return naming_the_chunk(
            operation,
            self._executor,
            parameters["namespace"],
            batch,
            list(self._user_columns.written(names)),
            parameters,
        )

    @operation("delete", retry=Retry.ALWAYS, batch="chunk_ids")
    async def delete(
        self, chunk_ids: list[str], namespace: str, *, session: Session | None = None
    ) -> None:
        """Delete chunks; see `VectorStore.delete`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        ids = check_ids(chunk_ids)
        if not ids:
            return
        async with self._executor.statement("delete", transaction, namespace) as connection:
            values = {"namespace": namespace, "ids": ids}
            if not holds_any(transaction, self._model, namespace, ids):
                await connection.execute(self._writes.delete, values)
                return
            found = (await connection.scalars(self._writes.ids, values)).all()
            await self._delete_locked(connection, transaction, namespace, found)

    @operation("delete_namespace", retry=Retry.ALWAYS)
    async def delete_namespace(self, namespace: str, *, session: Session | None = None) -> None:
        """Delete every chunk of a namespace; see `VectorStore.delete_namespace`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        async with self._executor.statement(
            "delete_namespace", transaction, namespace
        ) as connection:
            values = {"namespace": namespace}
            if not holds_any(transaction, self._model, namespace):
                await connection.execute(self._writes.delete_namespace, values)
                return
            found = (await connection.scalars(self._writes.ids_of_namespace, values)).all()
            await self._delete_locked(connection, transaction, namespace, found)

    @operation("delete_document", retry=Retry.IF_ROLLED_BACK)
    async def delete_document(
        self, document_id: str, namespace: str, *, session: Session | None = None
    ) -> int:
        """Delete a document's chunks; see `VectorStore.delete_document`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        check_document_id(document_id)
        matching = Conditions(as_filter(field("document_id") == document_id))
        return await self._delete_matching("delete_document", matching, namespace, session)

    @operation("delete_matching", retry=Retry.IF_ROLLED_BACK)
    async def delete_matching(
        self, filter: Filter | Mapping[str, Any], namespace: str, *, session: Session | None = None
    ) -> int:
        """Delete the chunks that match a filter; see `VectorStore.delete_matching`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        matching = await self._conditions_of(filter, narrowing_filter)
        return await self._delete_matching("delete_matching", matching, namespace, session)

    async def _delete_matching(
        self, operation: str, matching: Conditions, namespace: str, session: Session | None
    ) -> int:
        transaction = self._transaction(session)
        if self._never_holds(matching):
            return 0
        values = {"namespace": namespace, **matching.parameters}
        async with self._executor.statement(operation, transaction, namespace) as connection:
            if not holds_any(transaction, self._model, namespace):
                statement = self._writes.delete_matching(matching)
                deleted = await run_statement(connection, statement, values)
                return int(deleted.rowcount)
            locked = self._writes.ids_matching(matching)
            found = (await run_statement(connection, locked, values)).scalars().all()
            return await self._delete_locked(connection, transaction, namespace, found)

    async def _delete_locked(
        self,
        connection: AsyncConnection,
        transaction: CallerTransaction | None,
        namespace: str,
        ids: Sequence[str],
    ) -> int:
        """Delete rows that the transaction has locked in ascending order, and return their number.

        Rows for which the session holds objects are deleted through the session, in any order.
        """
        removed = await remove(transaction, self._model, namespace, ids)
        if removed == len(ids):
            return removed
        values = {"namespace": namespace, "ids": ids}
        return removed + (await connection.execute(self._writes.delete, values)).rowcount

    @operation("update_metadata", retry=Retry.IF_ROLLED_BACK)
    async def update_metadata(
        self,
        metadata: Mapping[str, Mapping[str, Any]],
        namespace: str,
        *,
        merge: bool = False,
        session: Session | None = None,
    ) -> int:
        """Change chunks' metadata; see `VectorStore.update_metadata`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        check_boolean(merge, field="merge")
        texts = {chunk_id: text for chunk_id, (_, text) in check_metadata_by_id(metadata).items()}
        if not texts:
            return 0
        values = {
            "cenote_namespace": namespace,
            "cenote_ids": list(texts),
            "cenote_metadata": list(texts.values()),
            "cenote_merge": merge,
            **self._user_columns.on_update_parameters(()),
        }
        async with self._executor.statement(
            "update_metadata", transaction, namespace
        ) as connection:
            changed = await connection.execute(self._writes.update_metadata, values)
            await refresh(transaction, self._model, namespace, list(texts))
            return changed.rowcount

    @operation("sync_document", retry=Retry.IF_ROLLED_BACK, batch="chunks")
    async def sync_document(
        self,
        document_id: str,
        chunks: Sequence[EmbeddedChunk | Chunk],
        namespace: str,
        *,
        session: Session | None = None,
    ) -> SyncResult:
        """Replace a document's stored chunks; see `VectorStore.sync_document`.

        Args:
            session: Transaction to join; see `PgVectorStore`. Its isolation level must be READ
                COMMITTED. AUTOCOMMIT has no transaction to join. At a higher level, the transaction
                would not see the rows that another synchronisation of the document has just
                committed.
        """
        check_namespace(namespace)
        transaction = self._transaction(session)
        embedded, kept_chunks = check_document(document_id, chunks)
        batch = self._check_batch(embedded)
        document = _Document(
            document_id,
            namespace,
            batch,
            batch_without_embeddings(kept_chunks, self._config.dimensions),
            self._user_columns.names_in(batch) if batch.chunks else (),
        )
        ids_to_lock: Sequence[str] = ()
        while True:
            try:
                return await self._sync_document(document, transaction, ids_to_lock)
            except _RowsInUseError as error:
                _logger.info("repeating sync_document: other transactions hold rows to be locked")
                ids_to_lock = error.ids

    async def _sync_document(
        self,
        document: _Document,
        transaction: CallerTransaction | None,
        ids_to_lock: Sequence[str],
    ) -> SyncResult:
        """Replace a document's stored chunks, or lock and write nothing.

        Two transactions cannot deadlock if each waits only for rows whose ids are greater than the
        ids of all rows that it holds. Therefore the chunks are written in ascending order of id,
        and the remaining rows are locked afterwards, without waiting. If another transaction holds
        some of them, everything is rolled back and repeated with `ids_to_lock`.

        Args:
            document: The new state.
            transaction: The caller's transaction.
            ids_to_lock: Ids of other rows, which are locked together with the writes, in ascending
                order of all ids. This takes a statement for each interval between them.

        Raises:
            _RowsInUseError: Other transactions hold rows that are not in `ids_to_lock`. If rows in
                `ids_to_lock` cannot be locked, a policy of the application forbids their update.
        """
        namespace, batch, unembedded = document.namespace, document.batch, document.unembedded
        values = {"namespace": namespace, "document_id": document.id}
        async with self._executor.transaction(
            "sync_document", transaction, namespace, savepoint=transaction is not None
        ) as connection:
            locked = (await connection.execute(self._writes.lock_document, values)).one()
            # At a higher level, the transaction would not see the rows that the transaction which
            # held the lock before has committed.
            if locked.isolation != "read committed":
                raise InvalidInputError(
                    f"sync_document requires READ COMMITTED, but session is at "
                    f"{locked.isolation.upper()}",
                    field="session",
                )
            written = 0
            upsert = self._writes.counting_upsert(
                document.names, has_citus=self._executor.has_citus
            )
            for step in ascending_steps(batch, ids_to_lock):
                if isinstance(step, Batch):
                    parameters = rows.parameters(step, self._config.column_type)
                    parameters |= {"namespace": namespace}
                    parameters |= self._user_columns.parameters(document.names, step)
                    with self._naming_the_chunk("sync_document", step, document.names, parameters):
                        written += len((await connection.execute(upsert, parameters)).all())
                else:
                    in_step = {"namespace": namespace, "ids": step}
                    await connection.execute(self._writes.ids, in_step)
            written_ids = [chunk.id for chunk in batch.chunks]
            kept_ids = [chunk.id for chunk in unembedded.chunks]
            others, in_use = await self._lock_other_rows(connection, values, written_ids, kept_ids)
            if not in_use <= set(ids_to_lock):
                raise _RowsInUseError([*in_use, *others])
            if unembedded.chunks:
                reject_unembedded(
                    unembedded.chunks,
                    {id: (row.content_hash, row.embedding_model) for id, row in others.items()},
                    self._embedding_model,
                )
                written += await self._update_without_embeddings(connection, unembedded, values)
            # Delete last: an error would roll back the rows, but not the session's objects.
            obsolete = sorted(others.keys() - set(kept_ids))
            await self._delete_locked(connection, transaction, namespace, obsolete)
            ids = written_ids + kept_ids
            await refresh(transaction, self._model, namespace, ids)
        return SyncResult(written=written, removed=len(obsolete), unchanged=len(ids) - written)

    async def _lock_other_rows(
        self,
        connection: AsyncConnection,
        values: dict[str, Any],
        written_ids: list[str],
        kept_ids: list[str],
    ) -> tuple[dict[str, Row[Any]], set[str]]:
        """Lock the rows of a document that are not written, without waiting.

        The simple statements of this method get generic plans. One statement for all rows, with
        both lists of ids, was planned at each call, which took 1.6 ms instead of 0.4 ms.

        Args:
            connection: Connection in the transaction that has written the chunks.
            values: Namespace and id of the document.
            written_ids: Ids of the chunks that were written.
            kept_ids: Ids of the chunks to keep. They may belong to another document.

        Returns:
            A pair: content hashes and embedding models of the locked rows by id, and the ids of
            rows that were not locked, because other transactions hold them or have just added them.
        """
        namespace = values["namespace"]
        of_document = {**values, "ids": written_ids}
        locked = {
            row.id: row
            for row in await connection.execute(self._writes.lock_rows_of_document, of_document)
        }
        skipped: set[str] = set()
        if elsewhere := [id for id in kept_ids if id not in locked]:
            by_id = {"namespace": namespace, "ids": elsewhere}
            for row in await connection.execute(self._writes.lock_rows, by_id):
                locked[row.id] = row
            stored = await connection.execute(self._reads.hashes, by_id)
            skipped = {row.id for row in stored} - locked.keys()
        # Only a statement after the locks sees all that their former holders have committed.
        stored_ids = await connection.scalars(self._writes.ids_of_document, of_document)
        skipped |= set(stored_ids) - locked.keys()
        return locked, skipped

    async def _update_without_embeddings(
        self, connection: AsyncConnection, batch: Batch, values: dict[str, Any]
    ) -> int:
        """Update the rows of chunks without an embedding, and return the number of changed rows."""
        parameters = {
            "cenote_namespace": values["namespace"],
            "cenote_document": values["document_id"],
            "cenote_ids": [chunk.id for chunk in batch.chunks],
            "cenote_content": [chunk.content for chunk in batch.chunks],
            "cenote_position": [chunk.position for chunk in batch.chunks],
            "cenote_metadata": batch.metadata_texts,
            **self._user_columns.on_update_parameters(()),
        }
        updated = await connection.execute(self._writes.update_without_embeddings, parameters)
        return updated.rowcount


@dataclass(frozen=True, slots=True)
class _Document:
    """The new state of a document.

    Attributes:
        id: Id of the document.
        namespace: Its tenant.
        batch: Chunks with an embedding.
        unembedded: Chunks whose embeddings are stored.
        names: User columns for which the chunks of `batch` have values.
    """

    id: str
    namespace: str
    batch: Batch
    unembedded: Batch
    names: tuple[str, ...]


class _RowsInUseError(Exception):
    """Other transactions hold rows that `sync_document` must lock.

    Attributes:
        ids: Ids of all rows to be locked that are not written.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
