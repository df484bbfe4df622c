"""Columns that a user model adds to a chunk, and the values that an upsert writes to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
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
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from cenote.errors import InvalidInputError
from cenote.orm.mixin import CHUNK_COLUMNS
from cenote.validation.arguments import safe_repr
from cenote.validation.batches import Batch

_COMPARABLE = (
    types.String,
    types.Integer,
    types.Numeric,
    types.Boolean,
    types.Date,
    types.DateTime,
    types.Time,
    INTERVAL,
    types.Uuid,
    types.LargeBinary,
    JSONB,
    VECTOR,
    HALFVEC,
)
"""Types whose values are compared directly. Values of other types are compared as text, because the
types may have no equality."""


_CHECKED_BY_DRIVER = (
    types.String,
    types.Integer,
    types.Numeric,
    types.Float,
    types.Boolean,
    types.Date,
    types.DateTime,
    types.Time,
    INTERVAL,
    types.Uuid,
    types.LargeBinary,
)
"""Types whose values the server does not reject, because they are checked before they are sent."""


class _ListOf(UserDefinedType[Any]):
    """A list of values that the element's type has processed already.

    SQLAlchemy's ARRAY would process a value that is itself a list element by element.
    """

    cache_ok = True
    render_bind_cast = True

    def __init__(self, element: str) -> None:
        self.element = element

    def get_col_spec(self, **kw: Any) -> str:
        return self.element + "[]"


class _UnsuitableError(Exception):
    """A column does not accept a value. The message says which values the column accepts."""


@dataclass(frozen=True, slots=True, eq=False)
class UserColumn:
    """A column of the user model, as an upsert writes it.

    Attributes:
        name: Name of the mapped attribute.
        column: The column.
        dialect: Dialect of the engine.
    """

    name: str
    column: Column[Any]
    dialect: Dialect

    # -- defaults

    @property
    def required(self) -> bool:
        """True if a new row requires a value from the caller."""
        column = self.column
        return not (column.nullable or column.default or column.server_default or column.identity)

    @property
    def python_default(self) -> Callable[[Any], Any] | None:
        """Python function that returns a new row's value if the caller passes none."""
        default: Any = self.column.default
        return default.arg if default is not None and default.is_callable else None

    @property
    def python_onupdate(self) -> Callable[[Any], Any] | None:
        """Python function that returns an update's value if the caller passes none."""
        onupdate: Any = self.column.onupdate
        return onupdate.arg if onupdate is not None and onupdate.is_callable else None

    @property
    def on_update(self) -> ColumnElement[Any]:
        """Expression to which an update sets the column if the caller passes no value."""
        onupdate: Any = self.column.onupdate
        if self.python_onupdate is not None:
            return bindparam(self.name + "_on_update", type_=self.column.type)
        value = onupdate.arg
        return value if onupdate.is_clause_element else literal(value, self.column.type)

    # -- values

    @property
    def list_type(self) -> TypeEngine[Any]:
        """Type of the list of values that an upsert binds, one per row."""
        if self._as_text or isinstance(self._kind, types.String):
            return _ListOf("TEXT")
        spec = self.type_name
        # A cast to a type with a length would cut or pad values that an INSERT rejects.
        return _ListOf("VARBIT" if spec.startswith("BIT") else spec)

    def value(self, new: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the value to write, from a column of the unnested lists."""
        if not self._as_text:
            return cast(new, self.column.type) if isinstance(self._kind, types.Enum) else new
        bound: Any = self.column.type.bind_expression(new)  # type: ignore[arg-type]
        return cast(new, self.column.type) if bound is None else bound

    def processed(self, value: Any) -> Any:
        """Return a value in the form that :attr:`list_type` accepts.

        Raises:
            Exception: The type does not accept the value; it may raise any error.
        """
        if isinstance(value, ColumnElement):
            raise _UnsuitableError("accepts values, not SQL expressions")
        process = self.column.type.dialect_impl(self.dialect).bind_processor(self.dialect)
        value = process(value) if process is not None else value
        if value is None:
            return None
        is_list = isinstance(value, list | tuple | np.ndarray)
        if self._as_text:
            return _array_text(value) if is_list else str(value)
        if is_list:  # unnest() would flatten the list
            raise _UnsuitableError("accepts single values, not lists")
        self._check_limits(value)
        return value

    def _check_limits(self, value: Any) -> None:
        """Check the limits of types that the server checks without naming the column or the row."""
        kind = self._kind
        if isinstance(value, str):
            length = getattr(kind, "length", None)
            if "\x00" in value:
                raise _UnsuitableError("does not accept the character NUL")
            if isinstance(kind, types.Enum) and kind.native_enum:
                if value not in kind.enums:
                    raise _UnsuitableError("accepts only the values of its enum")
            elif length is not None and len(value.rstrip(" ")) > length:  # Postgres cuts off spaces
                raise _UnsuitableError(f"accepts at most {length} characters")
            elif isinstance(kind, types.Uuid):
                uuid.UUID(value)
        elif isinstance(value, int) and isinstance(kind, types.Integer):
            bits = 15 if isinstance(kind, types.SmallInteger) else 31
            bits = 63 if isinstance(kind, types.BigInteger) else bits
            if not -(2**bits) <= value < 2**bits:
                raise _UnsuitableError(f"accepts integers of {bits + 1} bits")
        elif isinstance(kind, types.Numeric) and kind.precision is not None:
            if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
                return
            number, scale = Decimal(value), kind.scale or 0
            largest = Decimal(10) ** (kind.precision - scale) - Decimal(5) / 10 ** (scale + 1)
            if not number.is_nan() and abs(number) >= largest and not isinstance(kind, types.Float):
                raise _UnsuitableError(
                    f"accepts at most {kind.precision - scale} digits before the decimal point"
                )

    @property
    def is_checked_by_server(self) -> bool:
        """True if the server may reject a value that the driver has sent."""
        return self._as_text or not isinstance(self._kind, _CHECKED_BY_DRIVER)

    def first_of_other_type(self, values: Sequence[Any]) -> int:
        """Return the index of the first value that is not of the Python type, or else 0."""
        try:
            expected = self._kind.python_type
        except NotImplementedError:  # the type does not tell
            expected = type(None)
        for index, value in enumerate(values):
            if value is not None and not isinstance(value, expected):
                return index
        return 0

    @property
    def type_name(self) -> str:
        """SQL name of the column's type, for messages."""
        return str(self.column.type.compile(dialect=self.dialect))

    @property
    def _kind(self) -> TypeEngine[Any]:
        """Type of the column in Postgres, without its type decorators.

        A decorator or a variant may have another type elsewhere: Advanced Alchemy's GUID is a
        BINARY(16) that becomes a UUID in Postgres.
        """
        kind = self.column.type.dialect_impl(self.dialect)
        while isinstance(kind, TypeDecorator):
            kind = kind.impl_instance
        return kind

    @property
    def _as_text(self) -> bool:
        """True if values are sent as text.

        Arrays are, because unnest() would flatten them, and so are types that convert values by a
        SQL function.
        """
        bound = self.column.type.bind_expression(bindparam("value"))
        return bound is not None or isinstance(self._kind, types.ARRAY)

    def comparable(self, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return an expression of the column that can be compared."""
        return expression if isinstance(self._kind, _COMPARABLE) else cast(expression, Text)


class UserColumns:
    """The columns that a user model adds to the columns of a chunk.

    Args:
        model: Chunk model.
        dialect: Dialect of the engine.
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

    def names_in(self, batch: Batch) -> tuple[str, ...]:
        """Return the names of the columns for which a batch passes values.

        Raises:
            InvalidInputError: A name is unknown, a required value is missing, or the chunks pass
                values for different columns.
        """
        names = batch.columns[0].keys()
        for chunk, columns in zip(batch.chunks, batch.columns, strict=True):
            problem = self._problem(columns, names)
            if problem is not None:
                raise column_error(chunk.id, problem)
        return tuple(sorted(names))

    def _problem(self, columns: Mapping[str, Any], names: Any) -> str | None:
        for name in columns:
            if name not in self._columns:
                known = (
                    ", ".join(self._columns) or "none (pass your model to the store with model=)"
                )
                return f"there is no column {safe_repr(name)} to set; the columns are: {known}"
        for name, user_column in self._columns.items():
            missing = columns.get(name) is None and not user_column.column.nullable
            if missing and (name in columns or user_column.required):
                return f"its columns must include a value for {name}"
        if columns.keys() != names:
            return (
                "its columns differ from those of the batch's first chunk; upsert these chunks "
                "separately"
            )
        return None

    def written(self, names: Sequence[str]) -> Iterator[UserColumn]:
        """Yield the columns for which an upsert with values for `names` binds lists."""
        for name, user_column in self._columns.items():
            if name in names or user_column.python_default is not None:
                yield user_column

    def parameters(self, names: Sequence[str], batch: Batch) -> dict[str, Any]:
        """Return the parameters of an upsert with values for `names`.

        Raises:
            InvalidInputError: A column does not accept a value.
        """
        parameters: dict[str, Any] = {
            user_column.name + "_list": [
                _list_value(user_column, chunk.id, columns)
                for chunk, columns in zip(batch.chunks, batch.columns, strict=True)
            ]
            for user_column in self.written(names)
        }
        return parameters | self.on_update_parameters(names)

    def on_update_parameters(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the parameters of :meth:`on_update`."""
        return {
            user_column.name + "_on_update": user_column.python_onupdate(None)
            for user_column in self._updated_columns(names)
            if user_column.python_onupdate is not None
        }

    def on_update(self, names: Sequence[str]) -> dict[str, ColumnElement[Any]]:
        """Return the values that an update sets by itself (``onupdate``), by column key.

        Python functions are called once per statement.

        Args:
            names: Columns to leave out, because the caller passes values for them.
        """
        return {
            user_column.column.key: user_column.on_update
            for user_column in self._updated_columns(names)
        }

    def _updated_columns(self, names: Sequence[str]) -> list[UserColumn]:
        return [
            user_column
            for name, user_column in self._columns.items()
            if name not in names and user_column.column.onupdate is not None
        ]


def _list_value(user_column: UserColumn, chunk_id: str, columns: Mapping[str, Any]) -> Any:
    """Return a chunk's value for a column: from the caller, or else from the column's default."""
    try:
        if user_column.name in columns:
            return user_column.processed(columns[user_column.name])
        assert user_column.python_default is not None
        return user_column.processed(user_column.python_default(None))
    except _UnsuitableError as error:
        raise column_error(chunk_id, f"the column {user_column.name} {error}") from None
    except Exception as error:  # raised by the type, or by the application's default function
        problem = (
            f"the column {user_column.name} does not accept its value ({type(error).__name__})"
        )
        raise column_error(
            chunk_id, problem
        ) from None  # the message of `error` may quote the value


def column_error(chunk_id: str, problem: str) -> InvalidInputError:
    """Return an error about the value of a chunk's column."""
    return InvalidInputError(
        f"chunk {safe_repr(chunk_id)}: {problem}", field="columns", chunk_id=chunk_id
    )


def _array_text(value: Any) -> str:
    """Return an array literal. Every element is quoted, so Postgres reads no element as syntax."""
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
