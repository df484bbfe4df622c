"""Writes and deletions of `PgVectorStore`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from cenote.errors import InvalidInputError
from cenote.filters.checks import as_filter, narrowing_filter
from cenote.filters.compiler import Conditions
from cenote.filters.language import Filter, field
from cenote.models import Chunk, EmbeddedChunk, SyncResult
from cenote.stores.pgvector.base import Model, PgVectorStoreBase
from cenote.stores.pgvector.executor import CallerTransaction, Session, check_session
from cenote.stores.pgvector.retry import Retry, operation
from cenote.stores.pgvector.session_sync import holds_any, refresh, remove
from cenote.stores.pgvector.sql import rows
from cenote.telemetry import record
from cenote.validation.arguments import check_boolean, check_document_id, check_ids, check_namespace
from cenote.validation.batches import (
    Batch,
    batch_without_embeddings,
    check_document,
    check_metadata_by_id,
    reject_unembedded,
    split_batch,
)


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
        record(rows=await self._upsert(embedded_chunks, namespace, check_session(session)))

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
                await connection.execute(statement, parameters)
            ids = [chunk.id for chunk in batch.chunks]
            await refresh(transaction, self._model, namespace, ids)
        return len(batch.chunks)

    @operation("delete", retry=Retry.ALWAYS, batch="chunk_ids")
    async def delete(
        self, chunk_ids: list[str], namespace: str, *, session: Session | None = None
    ) -> None:
        """Delete chunks; see `VectorStore.delete`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = check_session(session)
        ids = check_ids(chunk_ids)
        if not ids:
            return
        async with self._executor.statement("delete", transaction, namespace) as connection:
            await remove(transaction, self._model, namespace, ids)
            await connection.execute(self._writes.delete, {"namespace": namespace, "ids": ids})

    @operation("delete_namespace", retry=Retry.ALWAYS)
    async def delete_namespace(self, namespace: str, *, session: Session | None = None) -> None:
        """Delete every chunk of a namespace; see `VectorStore.delete_namespace`.

        Args:
            session: Transaction to join; see `PgVectorStore`.
        """
        check_namespace(namespace)
        transaction = check_session(session)
        async with self._executor.statement(
            "delete_namespace", transaction, namespace
        ) as connection:
            await remove(transaction, self._model, namespace, None)
            await connection.execute(self._writes.delete_namespace, {"namespace": namespace})

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
        matching = Conditions(narrowing_filter(filter))
        return await self._delete_matching("delete_matching", matching, namespace, session)

    async def _delete_matching(
        self, operation: str, matching: Conditions, namespace: str, session: Session | None
    ) -> int:
        transaction = check_session(session)
        if self._never_holds(matching):
            return 0
        statement = self._writes.delete_matching(matching)
        values = {"namespace": namespace, **matching.parameters}
        async with self._executor.statement(operation, transaction, namespace) as connection:
            removed = 0
            if holds_any(transaction, self._model, namespace):
                found = await connection.scalars(self._writes.ids_matching(matching), values)
                removed = await remove(transaction, self._model, namespace, found.all())
            return removed + (await connection.execute(statement, values)).rowcount

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
        transaction = check_session(session)
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
        transaction = check_session(session)
        embedded, kept_chunks = check_document(document_id, chunks)
        batch = self._check_batch(embedded)
        unembedded = batch_without_embeddings(kept_chunks, self._config.dimensions)
        names = self._user_columns.names_in(batch) if batch.chunks else ()
        values = {"namespace": namespace, "document_id": document_id}
        ids = sorted(chunk.id for chunk in (*batch.chunks, *unembedded.chunks))
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
            # Below, some rows are written and others are deleted afterwards. Lock all of them now
            # in the order of their ids; otherwise two writers could deadlock.
            await connection.execute(self._writes.lock_rows, {**values, "ids": ids})
            written = await self._update_without_embeddings(connection, unembedded, values)
            upsert = self._writes.counting_upsert(names, has_citus=self._executor.has_citus)
            for part in split_batch(batch) if batch.chunks else ():
                parameters = rows.parameters(part, self._config.column_type)
                parameters |= {"namespace": namespace}
                parameters |= self._user_columns.parameters(names, part)
                written += len((await connection.execute(upsert, parameters)).all())
            obsolete = (
                await connection.scalars(self._writes.ids_of_document, {**values, "ids": ids})
            ).all()
            # Delete last: an error would roll back the rows, but not the session's objects.
            await remove(transaction, self._model, namespace, obsolete)
            await connection.execute(self._writes.delete, {"namespace": namespace, "ids": obsolete})
            await refresh(transaction, self._model, namespace, ids)
        return SyncResult(written=written, removed=len(obsolete), unchanged=len(ids) - written)

    async def _update_without_embeddings(
        self, connection: AsyncConnection, batch: Batch, values: dict[str, Any]
    ) -> int:
        """Update the rows of chunks without an embedding, and return the number of changed rows."""
        if not batch.chunks:
            return 0
        ids = {"namespace": values["namespace"], "ids": [chunk.id for chunk in batch.chunks]}
        stored = (await connection.execute(self._reads.hashes_locked, ids)).all()
        reject_unembedded(
            batch.chunks,
            {row.id: (row.content_hash, row.embedding_model) for row in stored},
            self._embedding_model,
        )
        parameters = {
            "cenote_namespace": values["namespace"],
            "cenote_document": values["document_id"],
            "cenote_ids": ids["ids"],
            "cenote_content": [chunk.content for chunk in batch.chunks],
            "cenote_position": [chunk.position for chunk in batch.chunks],
            "cenote_metadata": batch.metadata_texts,
            **self._user_columns.on_update_parameters(()),
        }
        updated = await connection.execute(self._writes.update_without_embeddings, parameters)
        return updated.rowcount
