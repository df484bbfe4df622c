"""Values of the columns that a user model adds, for the in-memory store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

from sqlalchemy import Dialect

from cenote.filters.language import Filter
from cenote.filters.operands import UNKNOWN
from cenote.orm.user_columns import UserColumn, UserColumns
from cenote.stores.memory.sql_defaults import evaluate
from cenote.validation.batches import Batch

Values = Mapping[str, Any]
"""Values by column."""


@dataclass(frozen=True, slots=True)
class WrittenValues:
    """Values of user columns that a write sets.

    Attributes:
        given: Values for each chunk.
        defaults: Values of the other columns for each chunk that is new.
        on_update: Values of the other columns for each chunk that changes.
    """

    given: Sequence[Values]
    defaults: Sequence[Values]
    on_update: Values = field(default_factory=dict)


class UserValues:
    """Without a model: the values of a batch as they are.

    `ModelValues` does the same with a model.
    """

    def check(self, batch: Batch) -> WrittenValues:
        """Check the values of a batch before it is written.

        Raises:
            InvalidInputError: A column does not exist or does not accept its value, or a required
                value is missing.
        """
        return WrittenValues([dict(values) for values in batch.columns], [{}] * len(batch.chunks))

    def on_update(self) -> Values:
        """Return the values that a change of a chunk sets if the caller passes none."""
        return {}

    def resolved(self, filter: Filter | None) -> Filter | None:
        """Return a filter whose values compare with the stored ones.

        Raises:
            InvalidInputError: A column does not exist, or does not accept a value.
        """
        return filter


class ModelValues(UserValues):
    """With a model: values that compare in Python as the columns compare in Postgres.

    Args:
        model: Chunk model.
    """

    def __init__(self, model: type[Any]) -> None:
        # The driver takes time to import, and only stores with a model need it.
        from sqlalchemy.dialects.postgresql.asyncpg import dialect

        asyncpg_dialect: Any = dialect
        self._dialect: Dialect = asyncpg_dialect(dbapi=asyncpg_dialect.import_dbapi())
        self._columns = UserColumns(model, self._dialect)
        self._sequences: defaultdict[UserColumn, Iterator[int]] = defaultdict(count)

    def check(self, batch: Batch) -> WrittenValues:
        names = self._columns.names_in(batch)
        stored = self._columns.stored(names, batch)
        given_keys = {
            user_column.column.key
            for user_column in self._columns.written(names)
            if user_column.name in names
        }
        now = datetime.now(UTC)
        return WrittenValues(
            [{key: values[key] for key in given_keys} for values in stored],
            [
                {
                    user_column.column.key: values[user_column.column.key]
                    if user_column.column.key in values
                    else self._default(user_column, now)
                    for user_column in self._columns
                }
                for values in stored
            ],
            self.on_update(names),
        )

    def on_update(self, names: Sequence[str] = ()) -> Values:
        now = datetime.now(UTC)
        parameters = self._columns.on_update_parameters(names)
        return {
            user_column.column.key: self._updated(user_column, parameters, now)
            for user_column in self._columns.updated(names)
        }

    def resolved(self, filter: Filter | None) -> Filter | None:
        return self._columns.resolved(filter, convert=True)

    def _default(self, user_column: UserColumn, now: datetime) -> Hashable:
        """Return a new row's value of a column for which the caller passes none."""
        column: Any = user_column.column
        if column.identity is not None:
            return self._next_value(user_column)()
        if column.computed is not None:
            return UNKNOWN
        if column.default is not None:
            if column.default.is_sequence:
                return self._next_value(user_column)()
            return self._evaluated(user_column, column.default, now)
        if column.server_default is not None:
            if not column.server_default.has_argument:
                return UNKNOWN  # the server sets it, for example by a trigger
            return self._sql_value(user_column, column.server_default.arg, now)
        return None

    def _updated(
        self, user_column: UserColumn, parameters: Mapping[str, Any], now: datetime
    ) -> Hashable:
        name = user_column.name + "_on_update"
        if name in parameters:
            return user_column.stored(parameters[name])
        return self._evaluated(user_column, user_column.column.onupdate, now)

    def _evaluated(self, user_column: UserColumn, default: Any, now: datetime) -> Hashable:
        """Return the value of a default that is not a Python function."""
        if default.is_clause_element:
            return self._sql_value(user_column, default.arg, now)
        return user_column.stored(default.arg)

    def _sql_value(self, user_column: UserColumn, default: Any, now: datetime) -> Hashable:
        next_value = self._next_value(user_column)
        return evaluate(default, user_column.value_type, self._dialect, now, next_value)

    def _next_value(self, user_column: UserColumn) -> Callable[[], int]:
        """Return a function that returns the next value of a column's sequence."""
        column: Any = user_column.column
        sequence = column.identity or (
            column.default if column.default is not None and column.default.is_sequence else None
        )
        start = getattr(sequence, "start", None)
        step = getattr(sequence, "increment", None) or 1
        numbers = self._sequences[user_column]
        return lambda: (1 if start is None else start) + next(numbers) * step
