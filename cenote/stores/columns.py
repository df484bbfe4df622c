"""A host's own columns beside the chunk's: what an upsert writes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, ColumnElement, Text, bindparam, cast, inspect, literal, types
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.types import JSON, TypeDecorator, TypeEngine

from cenote.errors import InvalidInputError
from cenote.orm import CHUNK_COLUMNS
from cenote.sqltypes import vector_text
from cenote.validation import Batch, shown

_dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class OwnColumn:
    """A column of the host's, as an upsert writes it.

    Attributes:
        name: of the attribute.
        column: the column.
    """

    name: str
    column: Column[Any]

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
    def list_type(self) -> TypeEngine[Any]:
        """The type of a list of values, a value for each row."""
        return ARRAY(Text()) if self._as_text else ARRAY(self.column.type)

    @property
    def _as_text(self) -> Callable[[Any], str | None] | None:
        """How a value is spelled, if it must travel as text: unnest() opens arrays in arrays."""
        kind = self.column.type
        while isinstance(kind, TypeDecorator):
            kind = kind.impl_instance
        if isinstance(kind, types.ARRAY):
            return _array_text
        return vector_text if isinstance(kind, VECTOR | HALFVEC) else None

    def takes(self, value: Any) -> bool:
        """Whether a value is no list for a column of single values, which unnest() would open."""
        several = isinstance(value, list | tuple | np.ndarray)
        takes_several = isinstance(self.column.type, JSON | TypeDecorator)
        return not several or takes_several or self._as_text is not None

    def value(self, new: ColumnElement[Any]) -> ColumnElement[Any]:
        """What is written, of a column of the unnested lists."""
        return cast(new, self.column.type) if self._as_text else new

    def listed(self, values: Sequence[Any]) -> list[Any]:
        """The values as :attr:`list_type` takes them."""
        as_text = self._as_text
        if as_text is None:
            return list(values)
        process: Any = None
        if as_text is _array_text:
            process = self.column.type.dialect_impl(_dialect).bind_processor(_dialect)
        return [
            None if value is None else as_text(process(value) if process else value)
            for value in values
        ]

    @property
    def called_on_update(self) -> Callable[[Any], Any] | None:
        """The Python function that makes an updated row's value, if the caller gives none."""
        onupdate: Any = self.column.onupdate
        return onupdate.arg if onupdate is not None and onupdate.is_callable else None

    @property
    def on_update(self) -> ColumnElement[Any]:
        """What an update sets the column to by itself."""
        onupdate: Any = self.column.onupdate
        if self.called_on_update is not None:
            return bindparam(self.name + "_on_update", type_=self.column.type)
        return (
            onupdate.arg if onupdate.is_clause_element else literal(onupdate.arg, self.column.type)
        )

    def comparable(self, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        """The column for a comparison: type json has none."""
        kind = self.column.type
        plain_json = isinstance(kind, JSON) and kind.compile(dialect=_dialect) == "JSON"
        return cast(expression, Text) if plain_json else expression


class OwnColumns:
    """The columns of a chunk model that are the host's.

    Args:
        model: the chunk model.
    """

    def __init__(self, model: type[Any]) -> None:
        mapper = inspect(model)
        table = mapper.local_table
        self._columns = {
            attribute.key: OwnColumn(attribute.key, column)
            for attribute in mapper.column_attrs
            for column in attribute.columns
            if isinstance(column, Column)
            and column.table is table
            and column.name not in CHUNK_COLUMNS
            and column.computed is None
        }
        self._required = [name for name, own in self._columns.items() if own.required]

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
                raise InvalidInputError(
                    f"chunk {shown(chunk.id)}: {problem}", field="columns", chunk_id=chunk.id
                )
        return tuple(sorted(names))

    def _problem(self, columns: Mapping[str, Any], names: Any) -> str | None:
        for name, value in columns.items():
            if name not in self._columns:
                known = ", ".join(self._columns) or "none; a store for your model has them (model=)"
                return f"there is no column {shown(name)} to set; there are: {known}"
            if not self._columns[name].takes(value):
                return f"the column {name} takes single values, no lists"
        for name in self._required:
            if columns.get(name) is None:
                return f"its columns must give {name} a value"
        if columns.keys() != names:
            return "its columns are others than those of the batch's first chunk; upsert them apart"
        return None

    def written(self, names: Sequence[str]) -> Iterator[OwnColumn]:
        """The columns for which an upsert of these names binds lists."""
        for name, own in self._columns.items():
            if name in names or own.makes_values is not None:
                yield own

    def parameters(self, names: Sequence[str], batch: Batch) -> dict[str, Any]:
        """What an upsert of these names binds."""
        lists = {
            own.name + "_list": own.listed(
                [columns[own.name] for columns in batch.columns]
                if own.name in names
                else [own.makes_values(None) for _ in batch.chunks]  # type: ignore[misc]
            )
            for own in self.written(names)
        }
        called = {
            own.name + "_on_update": own.called_on_update(None)
            for own in self._touched(names)
            if own.called_on_update is not None
        }
        return lists | called

    def on_update(self, names: Sequence[str]) -> dict[str, ColumnElement[Any]]:
        """What an update sets by itself (``onupdate``), by column."""
        return {own.column.name: own.on_update for own in self._touched(names)}

    def _touched(self, names: Sequence[str]) -> list[OwnColumn]:
        return [
            own
            for name, own in self._columns.items()
            if name not in names and own.column.onupdate is not None
        ]


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
