"""What the parts of `cenote.stores.pgvector.PgVectorStore` share."""

from __future__ import annotations

from typing import Any, Generic

from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import TypeVar

from cenote import validation
from cenote.config import SchemaConfig
from cenote.models import EmbeddedChunk
from cenote.orm import ChunkMixin, ChunkRow
from cenote.stores.base import VectorStore
from cenote.stores.columns import UserColumns
from cenote.stores.sessions import StatementExecutor
from cenote.stores.statements import ReadStatements, SearchStatements, WriteStatements
from cenote.telemetry import Telemetry

Model = TypeVar("Model", bound=ChunkMixin, default=ChunkRow)
"""The mapped class of a store."""


class PgVectorStoreBase(VectorStore, Generic[Model]):
    """The attributes of a store, which its constructor sets."""

    _config: SchemaConfig
    _model: type[Any]
    _engine: AsyncEngine
    _translated: bool
    _embedding_model: str | None
    _indexing_later: int
    _telemetry: Telemetry
    _user_columns: UserColumns
    _executor: StatementExecutor
    _reads: ReadStatements
    _searches: SearchStatements
    _writes: WriteStatements

    async def _look_at_table(self, operation: str) -> None:
        """Refuse a closed store, and a table of another shape."""
        async with self._executor.statement(operation, None, None):
            pass

    def _checked_batch(self, embedded_chunks: list[EmbeddedChunk]) -> validation.Batch:
        return validation.check_batch(
            embedded_chunks,
            self._config.dimensions,
            self._config.column_type,
            self._embedding_model,
        )
