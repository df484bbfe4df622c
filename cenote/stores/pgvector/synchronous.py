"""`PgVectorStore` for synchronous applications, on psycopg 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from copy import copy
from typing import Any, Generic, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError, InvalidInputError
from cenote.filters.language import Filter, FilterLike
from cenote.inspection.checks.findings import Finding
from cenote.models import (
    Chunk,
    EmbeddedChunk,
    RecallReport,
    RetrievalResult,
    SyncResult,
)
from cenote.postgres.dsn import create_psycopg_engine
from cenote.postgres.pools import check_pool_arguments, open_pool
from cenote.postgres.sync_engine import SyncEngine, SyncScopedSession, SyncSession, wrap_connection
from cenote.progress import Report
from cenote.ranking.fusion import DEPTH
from cenote.responsive import drive, drive_iterator
from cenote.stores.bulk_load import AnnIndexDuringLoad, check_is_synchronous
from cenote.stores.pgvector.base import Model
from cenote.stores.pgvector.measuring import DEFAULT_TARGET
from cenote.stores.pgvector.store import PgVectorStore
from cenote.stores.synchronous import SyncVectorStore
from cenote.types import Float32Array, Vector

SynchronousSession: TypeAlias = "Session | scoped_session[Session] | Connection"
"""Type of ``session=``: a session or connection in the caller's transaction."""


class SyncPgVectorStore(SyncVectorStore[PgVectorStore[Model]], Generic[Model]):
    """`PgVectorStore` without ``await``, for Flask, Celery, scripts and synchronous sessions.

    It has the methods of `PgVectorStore` with the same arguments, results and errors.
    ``session=`` takes a `Session`, a `scoped_session` or a `Connection`. Requires psycopg 3 (extra
    ``cenote[psycopg]``). Several threads can use one store at the same time.

    Args:
        engine: `Engine` on psycopg (``postgresql+psycopg://...``), or a `sessionmaker` bound to
            one. Calls without ``session=`` borrow connections from its pool. The store does not
            dispose of it. With a `Connection`, every call joins its transaction.
        dimensions: Number of dimensions of every vector.
        model: Chunk model of your application, which replaces `dimensions`.
        **settings: The other arguments of `PgVectorStore`.

    Raises:
        ConfigurationError: A setting is invalid, or the engine has another driver.
    """

    def __init__(
        self,
        engine: Engine | Connection | sessionmaker[Session],
        dimensions: int | None = None,
        *,
        model: type[Model] | None = None,
        **settings: Any,
    ) -> None:
        self._engine = psycopg_engine(engine)
        store: Any = PgVectorStore
        self._store = store(SyncEngine(self._engine), dimensions, model=model, **settings)
        if isinstance(engine, Connection):
            self._store = self._store.in_session(wrap_connection(engine))

    @classmethod
    def connect(
        cls,
        dsn: str,
        dimensions: int | None = None,
        *,
        min_size: int = 1,
        max_size: int = 10,
        startup_retries: int = 5,
        startup_backoff_seconds: float = 1.0,
        timeout: float = 10.0,
        **store_kwargs: Any,
    ) -> Self:
        """See `PgVectorStore.connect`. libpq reads the parameters of the connection string."""
        check_pool_arguments(min_size, max_size, startup_retries, startup_backoff_seconds, timeout)
        engine = create_psycopg_engine(dsn, pool_size=max_size, timeout=timeout)
        try:
            store = cls(engine, dimensions, **store_kwargs)
            store._store._owns_engine = True
            drive(
                open_pool(
                    SyncEngine(engine), min_size, startup_retries, startup_backoff_seconds, dsn=dsn
                )
            )
        except BaseException:
            engine.dispose()
            raise
        return store

    def close(self) -> None:
        """See `PgVectorStore.close`."""
        drive(self._store.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """Engine of the store, for your own queries."""
        return self._engine

    @property
    def model(self) -> type[Model]:
        """Mapped class of the table: your model, or `ChunkRow` for the default table name."""
        return self._store.model

    @property
    def config(self) -> SchemaConfig:
        """Expected configuration of the table."""
        return self._store.config

    def in_session(self, session: SynchronousSession) -> Self:
        """See `PgVectorStore.in_session`."""
        bound = copy(self)
        bound._store = self._store.in_session(adapted(session))
        return bound

    @contextmanager
    def tenant(self, session: SynchronousSession, namespace: str) -> Iterator[None]:
        """See `PgVectorStore.tenant`."""
        with driven(self._store.tenant(adapted(session), namespace)):
            yield

    def upsert(
        self,
        embedded_chunks: list[EmbeddedChunk],
        namespace: str,
        *,
        session: SynchronousSession | None = None,
    ) -> None:
        """See `PgVectorStore.upsert`."""
        drive(self._store.upsert(embedded_chunks, namespace, session=adapted(session)))

    def sync_document(
        self,
        document_id: str,
        chunks: Sequence[EmbeddedChunk | Chunk],
        namespace: str,
        *,
        session: SynchronousSession | None = None,
    ) -> SyncResult:
        """See `PgVectorStore.sync_document`."""
        return drive(
            self._store.sync_document(document_id, chunks, namespace, session=adapted(session))
        )

    def update_metadata(
        self,
        metadata: Mapping[str, Mapping[str, Any]],
        namespace: str,
        *,
        merge: bool = False,
        session: SynchronousSession | None = None,
    ) -> int:
        """See `PgVectorStore.update_metadata`."""
        return drive(
            self._store.update_metadata(metadata, namespace, merge=merge, session=adapted(session))
        )

    def delete(
        self, chunk_ids: list[str], namespace: str, *, session: SynchronousSession | None = None
    ) -> None:
        """See `PgVectorStore.delete`."""
        drive(self._store.delete(chunk_ids, namespace, session=adapted(session)))

    def delete_document(
        self, document_id: str, namespace: str, *, session: SynchronousSession | None = None
    ) -> int:
        """See `PgVectorStore.delete_document`."""
        return drive(self._store.delete_document(document_id, namespace, session=adapted(session)))

    def delete_matching(
        self,
        filter: Filter | Mapping[str, Any],
        namespace: str,
        *,
        session: SynchronousSession | None = None,
    ) -> int:
        """See `PgVectorStore.delete_matching`."""
        return drive(self._store.delete_matching(filter, namespace, session=adapted(session)))

    def delete_namespace(
        self, namespace: str, *, session: SynchronousSession | None = None
    ) -> None:
        """See `PgVectorStore.delete_namespace`."""
        drive(self._store.delete_namespace(namespace, session=adapted(session)))

    def get(
        self, chunk_ids: Sequence[str], namespace: str, *, session: SynchronousSession | None = None
    ) -> list[Chunk]:
        """See `PgVectorStore.get`."""
        return drive(self._store.get(chunk_ids, namespace, session=adapted(session)))

    def get_embeddings(
        self, chunk_ids: Sequence[str], namespace: str, *, session: SynchronousSession | None = None
    ) -> dict[str, Float32Array]:
        """See `PgVectorStore.get_embeddings`."""
        return drive(self._store.get_embeddings(chunk_ids, namespace, session=adapted(session)))

    def get_all_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        where: ColumnElement[bool] | None = None,
        session: SynchronousSession | None = None,
    ) -> Iterator[Chunk]:
        """See `PgVectorStore.get_all_chunks`."""
        return drive_iterator(
            self._store.get_all_chunks(namespace, filter, where=where, session=adapted(session))
        )

    def list_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        after: str | None = None,
        limit: int = 100,
        session: SynchronousSession | None = None,
    ) -> list[Chunk]:
        """See `PgVectorStore.list_chunks`."""
        return drive(
            self._store.list_chunks(
                namespace, filter, after=after, limit=limit, session=adapted(session)
            )
        )

    def count(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        session: SynchronousSession | None = None,
    ) -> int:
        """See `PgVectorStore.count`."""
        return drive(self._store.count(namespace, filter, session=adapted(session)))

    def list_namespaces(self, *, session: SynchronousSession | None = None) -> dict[str, int]:
        """See `PgVectorStore.list_namespaces`."""
        return drive(self._store.list_namespaces(session=adapted(session)))

    def missing(
        self, chunks: Sequence[Chunk], namespace: str, *, session: SynchronousSession | None = None
    ) -> list[Chunk]:
        """See `PgVectorStore.missing`."""
        return drive(self._store.missing(chunks, namespace, session=adapted(session)))

    def neighbours(
        self,
        chunk_id: str,
        namespace: str,
        *,
        before: int = 1,
        after: int = 1,
        session: SynchronousSession | None = None,
    ) -> list[Chunk]:
        """See `PgVectorStore.neighbours`."""
        return drive(
            self._store.neighbours(
                chunk_id, namespace, before=before, after=after, session=adapted(session)
            )
        )

    def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        per_document: int | None = None,
        where: ColumnElement[bool] | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        rerank: int | None = None,
        session: SynchronousSession | None = None,
    ) -> list[RetrievalResult]:
        """See `PgVectorStore.search`."""
        return drive(
            self._store.search(
                query_vector,
                namespace,
                limit,
                filter,
                min_score=min_score,
                per_document=per_document,
                where=where,
                exact=exact,
                ef_search=ef_search,
                rerank=rerank,
                session=adapted(session),
            )
        )

    def search_many(
        self,
        query_vectors: Sequence[Vector],
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        rerank: int | None = None,
        session: SynchronousSession | None = None,
    ) -> list[list[RetrievalResult]]:
        """See `PgVectorStore.search_many`."""
        return drive(
            self._store.search_many(
                query_vectors,
                namespace,
                limit,
                filter,
                min_score=min_score,
                exact=exact,
                ef_search=ef_search,
                rerank=rerank,
                session=adapted(session),
            )
        )

    def search_diverse(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        diversity: float = 0.5,
        candidates: int | None = None,
        session: SynchronousSession | None = None,
    ) -> list[RetrievalResult]:
        """See `PgVectorStore.search_diverse`."""
        return drive(
            self._store.search_diverse(
                query_vector,
                namespace,
                limit,
                filter,
                diversity=diversity,
                candidates=candidates,
                session=adapted(session),
            )
        )

    def search_text(
        self,
        text: str,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        where: ColumnElement[bool] | None = None,
        session: SynchronousSession | None = None,
    ) -> list[RetrievalResult]:
        """See `PgVectorStore.search_text`."""
        return drive(
            self._store.search_text(
                text, namespace, limit, filter, where=where, session=adapted(session)
            )
        )

    def search_hybrid(
        self,
        text: str,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        vector_weight: float = 1.0,
        text_weight: float = 1.0,
        depth: int = DEPTH,
        where: ColumnElement[bool] | None = None,
        ef_search: int | None = None,
        rerank: int | None = None,
        session: SynchronousSession | None = None,
    ) -> list[RetrievalResult]:
        """See `PgVectorStore.search_hybrid`."""
        return drive(
            self._store.search_hybrid(
                text,
                query_vector,
                namespace,
                limit,
                filter,
                vector_weight=vector_weight,
                text_weight=text_weight,
                depth=depth,
                where=where,
                ef_search=ef_search,
                rerank=rerank,
                session=adapted(session),
            )
        )

    def search_namespaces(
        self,
        query_vector: Vector,
        namespaces: Sequence[str],
        limit: int = 10,
        filter: FilterLike = None,
        **options: Any,
    ) -> list[tuple[str, RetrievalResult]]:
        """See `PgVectorStore.search_namespaces`."""
        return drive(
            self._store.search_namespaces(
                query_vector, namespaces, limit, filter, **adapted_options(options)
            )
        )

    def search_statement(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        where: ColumnElement[bool] | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        rerank: int | None = None,
    ) -> Select[Model, float]:
        """See `PgVectorStore.search_statement`."""
        return self._store.search_statement(
            query_vector,
            namespace,
            limit,
            filter,
            where=where,
            exact=exact,
            ef_search=ef_search,
            rerank=rerank,
        )

    def bulk_load(
        self,
        embedded_chunks: Iterable[EmbeddedChunk],
        namespace: str,
        *,
        ann_index: AnnIndexDuringLoad = "auto",
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """See `PgVectorStore.bulk_load`. The chunks come from an iterable."""
        check_is_synchronous(embedded_chunks)
        return drive(
            self._store.bulk_load(
                embedded_chunks,
                namespace,
                ann_index=ann_index,
                memory=memory,
                workers=workers,
                progress=progress,
            )
        )

    @contextmanager
    def deferred_ann_index(
        self,
        *,
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> Iterator[None]:
        """See `PgVectorStore.deferred_ann_index`."""
        with driven(
            self._store.deferred_ann_index(memory=memory, workers=workers, progress=progress)
        ):
            yield

    def measure_recall(
        self,
        namespaces: Sequence[str] | None = None,
        queries: Sequence[Vector] | NDArray[np.floating[Any]] | None = None,
        limit: int = 10,
        ef_search: Sequence[int] | None = None,
        *,
        rerank: Sequence[int] | None = None,
        progress: Report | None = None,
    ) -> RecallReport:
        """See `PgVectorStore.measure_recall`."""
        return drive(
            self._store.measure_recall(
                namespaces, queries, limit, ef_search, rerank=rerank, progress=progress
            )
        )

    def apply_recall(self, report: RecallReport, target: float = DEFAULT_TARGET) -> int:
        """See `PgVectorStore.apply_recall`."""
        return drive(self._store.apply_recall(report, target))

    def apply_migrations(self) -> None:
        """See `PgVectorStore.apply_migrations`."""
        drive(self._store.apply_migrations())

    def check_schema(self) -> list[Finding]:
        """See `PgVectorStore.check_schema`."""
        return drive(self._store.check_schema())


# -- arguments -------------------------------------------------------------------------------------


def psycopg_engine(engine: Any) -> Engine:
    """Return an engine, or the engine of a connection or of a sessionmaker.

    Raises:
        ConfigurationError: There is no `Engine`, or its driver is not psycopg.
    """
    bind = engine.kw.get("bind") if isinstance(engine, sessionmaker) else engine
    if isinstance(bind, Connection):
        bind = bind.engine
    if isinstance(bind, Session | scoped_session):
        raise ConfigurationError(
            "engine must be an Engine; for a store whose calls join a session: "
            "SyncPgVectorStore(engine, ...).in_session(session)",
            setting="engine",
        )
    if not isinstance(bind, Engine):
        remedy = "for a connection string: SyncPgVectorStore.connect(...)"
        if "async" in type(bind).__name__.lower():
            remedy = "PgVectorStore takes an AsyncEngine"
        raise ConfigurationError(
            "engine must be an Engine, a Connection, or a sessionmaker, not "
            f"{type(bind).__name__}; {remedy}",
            setting="engine",
        )
    if bind.dialect.driver != "psycopg":
        raise ConfigurationError(
            "engine must use psycopg 3 (postgresql+psycopg://...), not "
            f"{bind.dialect.driver}; such an engine can execute the statements of search_statement",
            setting="engine",
        )
    return bind


def adapted(session: Any) -> Any:
    """Return the session or connection with the methods that `PgVectorStore` calls.

    Raises:
        InvalidInputError: The argument is of another type.
    """
    if session is None:
        return None
    if isinstance(session, scoped_session):
        return SyncScopedSession(session)
    if isinstance(session, Session):
        return SyncSession(session)
    if isinstance(session, Connection):
        return wrap_connection(session)
    remedy = ""
    if isinstance(session, AsyncSession | AsyncConnection):
        remedy = "; PgVectorStore takes it"
    raise InvalidInputError(
        f"session must be a Session or a Connection, not {type(session).__name__}{remedy}",
        field="session",
    )


def adapted_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return further arguments of `search`, with the session adapted."""
    return {name: adapted(value) if name == "session" else value for name, value in options.items()}


@contextmanager
def driven(manager: AbstractAsyncContextManager[None]) -> Iterator[None]:
    """Enter an asynchronous context manager of cenote."""
    drive(manager.__aenter__())
    try:
        yield
    except BaseException as error:
        if not drive(manager.__aexit__(type(error), error, error.__traceback__)):
            raise
    else:
        drive(manager.__aexit__(None, None, None))
