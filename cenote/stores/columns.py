"""A host's own columns beside the chunk's: what an upsert writes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    Column,
    ColumnElement,
    Dialect,
    Text,
    bindparam,
    cast,
    inspect,
    literal,
    types,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from cenote.errors import InvalidInputError
from cenote.orm import CHUNK_COLUMNS
from cenote.validation import Batch, safe_repr

_COMPARABLE = (
    types.String,
    types.Integer,
    types.Numeric,
    types.Boolean,
    types.Date,
    types.DateTime,
    types.Time,
    types.Interval,
    types.Uuid,
    types.LargeBinary,
    JSONB,
    VECTOR,
    HALFVEC,
)
"""Types that are compared as they are; others, which may know no equality, by their text."""


class _ListOf(UserDefinedType[Any]):
    """Binds a list of values that the element's type has processed already.

    SQLAlchemy's ARRAY would process what is inside of a value that is a list.
    """

    cache_ok = True
    render_bind_cast = True

    def __init__(self, element: str) -> None:
        self.element = element

    def get_col_spec(self, **kw: Any) -> str:
        return self.element + "[]"


class _UnsuitableError(Exception):
    """Says what a column takes instead."""


@dataclass(frozen=True, slots=True, eq=False)
class UserColumn:
    """A column of the host's, as an upsert writes it.

    Attributes:
        name: of the attribute.
        column: the column.
        dialect: of the engine.
    """

    name: str
    column: Column[Any]
    dialect: Dialect

    # -- what the host says of it

    @property
    def required(self) -> bool:
        """Whether a row cannot do without a value from the caller."""
        column = self.column
        return not (column.nullable or column.default or column.server_default or column.identity)

    @property
    def makes_values(self) -> Callable[[Any], Any] | None:
        """The Python function that makes a new row's value, if the caller gives none."""
        default: Any = self.column.default
        return default.arg if default is not None and default.is_callable else None

    @property
    def called_on_update(self) -> Callable[[Any], Any] | None:
        """The Python function that makes an update's value, if the caller gives none."""
        onupdate: Any = self.column.onupdate
        return onupdate.arg if onupdate is not None and onupdate.is_callable else None

    @property
    def on_update(self) -> ColumnElement[Any]:
        """What an update sets the column to by itself."""
        onupdate: Any = self.column.onupdate
        if self.called_on_update is not None:
            return bindparam(self.name + "_on_update", type_=self.column.type)
        value = onupdate.arg
        return value if onupdate.is_clause_element else literal(value, self.column.type)

    # -- how its values travel

    @property
    def list_type(self) -> TypeEngine[Any]:
        """The type of a list of values, a value for each row."""
        if self._as_text or isinstance(self._kind, types.String):
            return _ListOf("TEXT")
        spec = str(self.column.type.compile(dialect=self.dialect))
        # A cast to a length would cut, or fill up, what an INSERT refuses; so texts above.
        return _ListOf("VARBIT" if spec.startswith("BIT") else spec)

    def value(self, new: ColumnElement[Any]) -> ColumnElement[Any]:
        """What is written, of a column of the unnested lists."""
        if not self._as_text:
            return cast(new, self.column.type) if isinstance(self._kind, types.Enum) else new
        bound: Any = self.column.type.bind_expression(new)  # type: ignore[arg-type]
        return cast(new, self.column.type) if bound is None else bound

    def processed(self, value: Any) -> Any:
        """A value as :attr:`list_type` takes it.

        Raises:
            Exception: whatever the type raises of a value that it cannot take.
        """
        if isinstance(value, ColumnElement):
            raise _UnsuitableError("takes values, no SQL expressions")
        process = self.column.type.dialect_impl(self.dialect).bind_processor(self.dialect)
        value = process(value) if process is not None else value
        if value is None:
            return None
        several = isinstance(value, list | tuple | np.ndarray)
        if self._as_text:
            return _array_text(value) if several else str(value)
        if several:  # unnest() would open it
            raise _UnsuitableError("takes single values, no lists")
        return value

    @property
    def _kind(self) -> TypeEngine[Any]:
        """The type that its decorators decorate."""
        kind = self.column.type
        while isinstance(kind, TypeDecorator):
            kind = kind.impl_instance
        return kind

    @property
    def _as_text(self) -> bool:
        """Whether values travel as text: unnest() opens arrays, and some types want a function."""
        bound = self.column.type.bind_expression(bindparam("value"))
        return bound is not None or isinstance(self._kind, types.ARRAY)

    def comparable(self, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        """The column for a comparison."""
        return expression if isinstance(self._kind, _COMPARABLE) else cast(expression, Text)


class UserColumns:
    """The columns of a chunk model that are the host's.

    Args:
        model: the chunk model.
        dialect: of the engine.
    """

    def __init__(self, model: type[Any], dialect: Dialect) -> None:
        mapper = inspect(model)
        table = mapper.local_table
        self._columns = {
            attribute.key: UserColumn(attribute.key, column, dialect)
            for attribute in mapper.column_attrs
            for column in attribute.columns
            if isinstance(column, Column)
            and column.table is table
            and column.name not in CHUNK_COLUMNS
            and column.computed is None
            and not (column.identity is not None and column.identity.always)
        }

    def given(self, batch: Batch) -> tuple[str, ...]:
        """The names that all chunks of a batch give values for.

        Raises:
            InvalidInputError: a name is unknown, or missing where a value is needed, or not all
                chunks give the same.
        """
        names = batch.columns[0].keys()
        for chunk, columns in zip(batch.chunks, batch.columns, strict=True):
            problem = self._problem(columns, names)
            if problem is not None:
                raise _refused(chunk.id, problem)
        return tuple(sorted(names))

    def _problem(self, columns: Mapping[str, Any], names: Any) -> str | None:
        for name in columns:
            if name not in self._columns:
                known = ", ".join(self._columns) or "none; a store for your model has them (model=)"
                return f"there is no column {safe_repr(name)} to set; there are: {known}"
        for name, own in self._columns.items():
            missing = columns.get(name) is None and not own.column.nullable
            if missing and (name in columns or own.required):
                return f"its columns must give {name} a value"
        if columns.keys() != names:
            return "its columns are others than those of the batch's first chunk; upsert them apart"
        return None

    def written(self, names: Sequence[str]) -> Iterator[UserColumn]:
        """The columns for which an upsert of these names binds lists."""
        for name, own in self._columns.items():
            if name in names or own.makes_values is not None:
                yield own

    def parameters(self, names: Sequence[str], batch: Batch) -> dict[str, Any]:
        """What an upsert of these names binds.

        Raises:
            InvalidInputError: a column cannot take a value.
        """
        parameters: dict[str, Any] = {
            own.name + "_list": [
                _processed(own, chunk.id, columns)
                for chunk, columns in zip(batch.chunks, batch.columns, strict=True)
            ]
            for own in self.written(names)
        }
        return parameters | self.on_update_parameters(names)

    def on_update_parameters(self, names: Sequence[str]) -> dict[str, Any]:
        """What :meth:`on_update` of these names binds."""
        return {
            own.name + "_on_update": own.called_on_update(None)
            for own in self._touched(names)
            if own.called_on_update is not None
        }

    def on_update(self, names: Sequence[str]) -> dict[str, ColumnElement[Any]]:
        """What an update sets by itself (``onupdate``), by key; functions are called once."""
        return {own.column.key: own.on_update for own in self._touched(names)}

    def _touched(self, names: Sequence[str]) -> list[UserColumn]:
        return [
            own
            for name, own in self._columns.items()
            if name not in names and own.column.onupdate is not None
        ]


def _processed(own: UserColumn, chunk_id: str, columns: Mapping[str, Any]) -> Any:
    try:
        if own.name in columns:
            return own.processed(columns[own.name])
        assert own.makes_values is not None
        return own.processed(own.makes_values(None))
    except _UnsuitableError as error:
        raise _refused(chunk_id, f"the column {own.name} {error}") from None
    except Exception as error:  # of the type, or of the host's own function
        problem = f"the column {own.name} cannot take its value ({type(error).__name__})"
        raise _refused(chunk_id, problem) from None  # whose words may quote the value


def _refused(chunk_id: str, problem: str) -> InvalidInputError:
    return InvalidInputError(
        f"chunk {safe_repr(chunk_id)}: {problem}", field="columns", chunk_id=chunk_id
    )


def _array_text(value: Any) -> str:
    """An array as Postgres reads it; every element quoted, so that none is taken for syntax."""
    parts = []
    for element in value:
        if element is None:
            parts.append("NULL")
        elif isinstance(element, list | tuple):
            parts.append(_array_text(element))
        else:
            text = "\\x" + element.hex() if isinstance(element, bytes) else str(element)
            parts.append('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(parts) + "}"
