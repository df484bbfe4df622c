"""Attributes and checks shared by the base classes of `PgVectorStore`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic

from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import TypeVar

from cenote.config import SchemaConfig
from cenote.errors import InvalidInputError, VectorStoreError
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions, conditions_of
from cenote.filters.language import Filter, FilterLike
from cenote.models import EmbeddedChunk
from cenote.orm.mixin import ChunkMixin, ChunkRow
from cenote.orm.user_columns import UserColumns
from cenote.stores.pgvector.executor import (
    CallerTransaction,
    Session,
    StatementExecutor,
    check_session,
)
from cenote.stores.pgvector.partition_searches import PartitionSearches
from cenote.stores.pgvector.sql.read_statements import ReadStatements
from cenote.stores.pgvector.sql.search_statements import SearchStatements
from cenote.stores.pgvector.sql.statement_cache import parameter
from cenote.stores.pgvector.sql.write_statements import WriteStatements
from cenote.stores.protocol import VectorStore
from cenote.telemetry import Telemetry
from cenote.validation.batches import Batch, check_batch

_ABOUT_VALUES = ("22", "42883")
"""SQLSTATEs of data exceptions, and of an operator that does not exist."""

Model = TypeVar("Model", bound=ChunkMixin, default=ChunkRow)
"""Mapped class of a store's rows."""


class PgVectorStoreBase(VectorStore, Generic[Model]):
    """Base class with the attributes that the constructor of `PgVectorStore` sets."""

    _config: SchemaConfig
    _model: type[Any]
    _engine: AsyncEngine
    _session: Session | None = None
    """Session that every call joins; None if each call has a connection of its own."""

    _translates_schemas: bool
    _embedding_model: str | None
    _deferrals: int
    _telemetry: Telemetry
    _user_columns: UserColumns
    _executor: StatementExecutor
    _reads: ReadStatements
    _searches: SearchStatements
    _partition_searches: PartitionSearches
    _writes: WriteStatements

    def _transaction(self, session: Session | None) -> CallerTransaction | None:
        """Return the transaction to join: of the argument ``session=``, or of the bound session.

        Raises:
            InvalidInputError: The argument is of another type.
        """
        return check_session(self._session if session is None else session)

    def _reject_if_bound(self, operation: str, remedy: str) -> None:
        """Reject an operation that has transactions of its own.

        Raises:
            InvalidInputError: The store is bound to a session.
        """
        if self._session is not None:
            raise InvalidInputError(
                f"{operation} cannot join the transaction that the store is bound to; {remedy}",
                field="session",
            )

    async def _check_table(self, operation: str) -> None:
        """Check that the store is open, and that the table has the expected columns."""
        async with self._executor.statement(operation, None, None):
            pass

    async def _read_index(self, operation: str, session: CallerTransaction | None) -> None:
        """Check the table before a search, if it was not checked for a while.

        The check reads the kind of the ANN index and its measured ``ef_search``, which may change
        while the store is in use. Without ``session=``, it borrows a connection once more.
        """
        if self._executor.must_check_table():
            async with self._executor.statement(operation, session, None):
                pass

    def _checked_filter(
        self, given: FilterLike, check: Callable[[Any], Filter | None] = as_filter
    ) -> Filter | None:
        """Check a filter, and the user columns that it names; see `UserColumns.resolved`."""
        return self._user_columns.resolved(check(given))

    async def _conditions_of(
        self, given: FilterLike, check: Callable[[Any], Filter | None] = as_filter
    ) -> Conditions:
        """Check and compile a filter; in a thread if its values are long."""
        return await conditions_of(given, partial(self._checked_filter, check=check))

    def _filter_error(
        self, given: FilterLike | Conditions, error: VectorStoreError
    ) -> InvalidInputError | None:
        """Return an error about a filter's value that the driver or the server rejects.

        Args:
            given: The filter.
            error: The error. The result is None if it has another cause.
        """
        if not (error.sqlstate or "").startswith(_ABOUT_VALUES):
            return None
        filter = given.filter if isinstance(given, Conditions) else as_filter(given)
        names = self._user_columns.fields_checked_by_server(filter)
        if not names:
            return None
        problem = "Postgres cannot compare the column with the filter's value"
        return InvalidInputError(f"{' or '.join(names)}: {problem}", field="filter")

    def _never_holds(self, conditions: Conditions) -> bool:
        """Return whether a filter matches no chunk, so that no statement is needed.

        Raises:
            InvalidInputError: The filter names a column that does not exist.
        """
        if not conditions.never_holds:
            return False
        conditions.sql(self._executor.table.c, parameter)
        return True

    def _check_batch(self, embedded_chunks: list[EmbeddedChunk]) -> Batch:
        return check_batch(
            embedded_chunks,
            self._config.dimensions,
            self._config.column_type,
            self._embedding_model,
            self._config.metric,
            half_index=self._searches.vectors.kind == "halfvec",
        )
