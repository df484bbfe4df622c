"""Columns that a user model adds to a chunk, and the values that an upsert writes to them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

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
from sqlalchemy.types import TypeEngine, UserDefinedType

from cenote.errors import InvalidInputError
from cenote.filters.checks import map_predicates, predicates
from cenote.filters.language import MAX_PREDICATES, Filter, Leaf, Or
from cenote.filters.operands import ColumnOperand, parameter_type
from cenote.filters.predicates import Equals, IsOneOf, Like, Ordered, Predicate, StartsWith
from cenote.orm.column_values import UnsuitableValueError, ValueType
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


@dataclass(frozen=True, eq=False)
class UserColumn:
    """A column of the user model, as an upsert writes it.

    Attributes:
        name: Name of the mapped attribute.
        column: The column.
        dialect: Dialect of the engine.
        value_type: Type of the column.
    """

    name: str
    column: Column[Any]
    dialect: Dialect
    value_type: ValueType

    @property
    def is_writable(self) -> bool:
        """True if an INSERT may pass a value."""
        identity = self.column.identity
        return self.column.computed is None and not (identity is not None and identity.always)

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
        spec = self.value_type.name
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
        value = self._bound(value)
        if value is None:
            return None
        is_list = _is_list(value)
        if self._as_text:
            self.value_type.check_limits(value)
            return _array_text(value) if is_list else str(value)
        if is_list:  # unnest() would flatten the list
            raise UnsuitableValueError("accepts single values, not lists")
        self.value_type.check_limits(value)
        return value

    def _bound(self, value: Any) -> Any:
        """Return a value as SQLAlchemy passes it to the driver."""
        if isinstance(value, ColumnElement):
            raise UnsuitableValueError("accepts values, not SQL expressions")
        bound = value if self._bind_processor is None else self._bind_processor(value)
        if type(bound).__module__.startswith("psycopg."):
            # SQLAlchemy wraps JSON and bytes. psycopg would serialise JSON while it sends the
            # statement, and raise any error.
            if not isinstance(self._kind, types.JSON):
                return getattr(bound, "obj", bound)
            serialise = bound.dumps or getattr(self.dialect, "_json_serializer", None) or json.dumps
            return serialise(bound.obj)
        return bound

    @cached_property
    def _bind_processor(self) -> Callable[[Any], Any] | None:
        return self.column.type.dialect_impl(self.dialect).bind_processor(self.dialect)

    def stored(self, value: Any) -> Hashable:
        """Return a value to be written, as :meth:`wanted` returns the values of filters.

        Raises:
            Exception: The type does not accept the value; it may raise any error.
        """
        bound = self._bound(value)
        if bound is None:
            return None
        if not self.is_compared_in_python:
            unknown: Hashable = bound
            return unknown
        if _is_list(bound) and not self._as_text:
            raise UnsuitableValueError("accepts single values, not lists")
        return self.value_type.stored(bound)

    def wanted(self, operand: ColumnOperand, value: Any, *, convert: bool) -> Any:
        """Check a filter's value.

        Args:
            operand: The filter's operand, for messages.
            value: The value.
            convert: Return the value in a form that compares in Python as in Postgres.

        Raises:
            InvalidInputError: The column does not accept the value, or has no equality; or values
                of its type cannot be compared in Python.
        """
        if not self.value_type.has_equality:
            raise InvalidInputError(
                f"{operand}: values of type {self.value_type.name} do not compare; use JSONB, or "
                "filter by metadata",
                field="filter",
            )
        try:
            bound = self._bound(value)
            if self.is_compared_in_python:
                comparable = self.value_type.comparable(bound, check_length=self._cuts_parameters)
                return comparable if convert else value
            if not convert:
                return value
            problem = self.not_comparable
        except UnsuitableValueError as error:
            problem = f"the column {error}"
        except Exception:  # raised by the type; the message may quote the value
            problem = (
                f"the column of type {self.value_type.name} does not accept a value of type "
                f"{type(value).__name__}"
            )
        raise InvalidInputError(f"{operand}: {problem}", field="filter")

    @property
    def not_comparable(self) -> str:
        """Description of a column whose values Python cannot compare."""
        return (
            f"the in-memory store cannot compare values of type {self.value_type.name}; test this "
            "filter with Postgres"
        )

    @cached_property
    def _cuts_parameters(self) -> bool:
        """True if the cast of a parameter to the column's type cuts it to the type's length."""
        return not isinstance(parameter_type(self.column), Text)

    @property
    def binds_lists(self) -> bool:
        """True if a parameter can be a list of values to compare with.

        SQLAlchemy's ARRAY would process a value that is itself a list element by element.
        """
        return not (self._as_text or isinstance(self._kind, types.JSON | VECTOR | HALFVEC))

    @cached_property
    def is_compared_in_python(self) -> bool:
        """True if Python can compare values as Postgres does: without a SQL function of the type.

        A value that Python cannot compare is not checked before it is sent.
        """
        bound = self.column.type.bind_expression(bindparam("value"))
        in_python: bool = bound is None or isinstance(self._kind, VECTOR | HALFVEC)
        return in_python and self.value_type.is_known

    @property
    def is_checked_by_server(self) -> bool:
        """True if the server may reject a value that the driver has sent."""
        return self._as_text or not isinstance(self._kind, _CHECKED_BY_DRIVER)

    def first_of_other_type(self, values: Sequence[Any]) -> int | None:
        """Return the index of the first processed value that is not of the column's Python type.

        Returns:
            None if all values are of the type, or if the type cannot tell.
        """
        kind = self._kind
        try:
            expected: Any = kind.python_type
        except NotImplementedError:
            return None
        if isinstance(kind, types.Numeric):
            expected = (int, float, Decimal)
        elif isinstance(kind, types.Uuid):
            expected = (uuid.UUID, str)
        elif self._as_text or isinstance(kind, types.Enum | types.JSON):
            expected = str
        for index, value in enumerate(values):
            if value is not None and not isinstance(value, expected):
                return index
        return None

    @property
    def _kind(self) -> TypeEngine[Any]:
        """Type of the column in Postgres, without its type decorators and variants."""
        kind: TypeEngine[Any] = self.value_type.kind
        return kind

    @cached_property
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
        self._table = table = mapper.local_table
        names = {
            column: attribute.key
            for attribute in mapper.column_attrs
            for column in attribute.columns
            if isinstance(column, Column) and column.table is table
        }
        user_columns = [
            UserColumn(
                names.get(column, column.key), column, dialect, ValueType(column.type, dialect)
            )
            for column in table.columns
            if column.name not in CHUNK_COLUMNS
        ]
        self._columns = {
            user_column.name: user_column
            for user_column in user_columns
            if user_column.column in names and user_column.is_writable
        }
        self._by_field = {user_column.name: user_column for user_column in user_columns}
        self._by_field |= {user_column.column.key: user_column for user_column in user_columns}

    def __iter__(self) -> Iterator[UserColumn]:
        """Iterate over all columns, also those that an upsert cannot write."""
        return iter(dict.fromkeys(self._by_field.values()))

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

    def resolved(self, filter: Filter | None, *, convert: bool = False) -> Filter | None:
        """Check a filter's user columns and their values, and return it with the columns' keys.

        Args:
            filter: Filter, which may name a user column by its attribute or by its key.
            convert: Replace the values by values that compare in Python as in Postgres.

        Raises:
            InvalidInputError: The table lacks a column, or a column does not accept a value.
        """

        def resolve(predicate: Predicate) -> Filter:
            return self._resolved(predicate, convert=convert)

        return None if filter is None else map_predicates(filter, resolve)

    def fields_checked_by_server(self, filter: Filter | None) -> list[str]:
        """Return the operands of a filter whose values only the server can check."""
        operands = [predicate.operand for predicate in predicates(filter)]
        return [
            str(operand)
            for operand in dict.fromkeys(operands)
            if isinstance(operand, ColumnOperand)
            and (user_column := self._by_field.get(operand.name)) is not None
            and not user_column.is_compared_in_python
        ]

    def _resolved(self, predicate: Predicate, *, convert: bool) -> Filter:
        operand = predicate.operand
        if not isinstance(operand, ColumnOperand) or operand.is_of_chunk:
            return Leaf(predicate)
        user_column = self._by_field.get(operand.name)
        if user_column is None:
            operand.sql(self._table.columns)  # raises the error that lists the columns
            raise AssertionError(operand.name)
        column = ColumnOperand(user_column.column.key)
        match predicate:
            case Equals(wanted=None):
                return Leaf(Equals(column, None))
            case Equals(wanted=wanted):
                value = user_column.wanted(operand, wanted, convert=convert)
                return Leaf(Equals(column, value))
            case IsOneOf(wanted=wanted):
                values = [user_column.wanted(operand, item, convert=convert) for item in wanted]
                if user_column.binds_lists:
                    return Leaf(IsOneOf(column, values))
                if len(values) > MAX_PREDICATES:
                    raise InvalidInputError(
                        f"{operand} in_ accepts at most {MAX_PREDICATES} values of type "
                        f"{user_column.value_type.name}",
                        field="filter",
                    )
                return Or(tuple(Leaf(Equals(column, value)) for value in values))
            case Ordered(operator=operator, wanted=wanted):
                value = user_column.wanted(operand, wanted, convert=convert)
                if isinstance(user_column._kind, types.JSON):
                    raise InvalidInputError(
                        f"{operand} {operator}: JSON values have no order", field="filter"
                    )
                return Leaf(Ordered(column, operator, value))
            case Like() | StartsWith():
                operand.text(user_column.column)  # raises an error if the column holds no text
                if convert and not user_column.is_compared_in_python:
                    raise InvalidInputError(
                        f"{operand}: {user_column.not_comparable}", field="filter"
                    )
                return Leaf(replace(predicate, operand=column))
        raise TypeError(type(predicate).__name__)

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

    def stored(self, names: Sequence[str], batch: Batch) -> list[dict[str, Any]]:
        """Return the values of each chunk that :meth:`parameters` would bind, by column key.

        They compare in Python as in Postgres.

        Raises:
            InvalidInputError: A column does not accept a value.
        """
        written = list(self.written(names))
        return [
            {
                user_column.column.key: _stored_value(user_column, chunk.id, columns)
                for user_column in written
            }
            for chunk, columns in zip(batch.chunks, batch.columns, strict=True)
        ]

    def on_update_parameters(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the parameters of :meth:`on_update`."""
        return {
            user_column.name + "_on_update": user_column.python_onupdate(None)
            for user_column in self.updated(names)
            if user_column.python_onupdate is not None
        }

    def on_update(self, names: Sequence[str]) -> dict[str, ColumnElement[Any]]:
        """Return the values that an update sets by itself (``onupdate``), by column key.

        Python functions are called once per statement.

        Args:
            names: Columns to leave out, because the caller passes values for them.
        """
        return {
            user_column.column.key: user_column.on_update for user_column in self.updated(names)
        }

    def updated(self, names: Sequence[str]) -> list[UserColumn]:
        """Return the columns with an ``onupdate``, except `names`."""
        return [
            user_column
            for name, user_column in self._columns.items()
            if name not in names and user_column.column.onupdate is not None
        ]


def _list_value(user_column: UserColumn, chunk_id: str, columns: Mapping[str, Any]) -> Any:
    """Return a chunk's value for a column, in the form that :attr:`list_type` accepts."""
    with _naming_the_chunk(user_column, chunk_id):
        value = _value(user_column, columns)
        processed = user_column.processed(value)
    if user_column.dialect.driver == "psycopg" and not user_column.is_checked_by_server:
        # asyncpg rejects values of other Python types. psycopg sends them with their own types,
        # from which the server converts: the number 7 would become the text "7".
        _comparable_value(user_column, chunk_id, value)
    return processed


def _stored_value(user_column: UserColumn, chunk_id: str, columns: Mapping[str, Any]) -> Hashable:
    """Return a chunk's value for a column, in the form that filters compare."""
    with _naming_the_chunk(user_column, chunk_id):
        value = _value(user_column, columns)
        user_column.processed(value)  # raises the errors that it raises for Postgres
    return _comparable_value(user_column, chunk_id, value)


def _comparable_value(user_column: UserColumn, chunk_id: str, value: Any) -> Hashable:
    try:
        return user_column.stored(value)
    except Exception:  # where the driver or the server would raise an error
        raise value_error(user_column, chunk_id, value) from None


def _value(user_column: UserColumn, columns: Mapping[str, Any]) -> Any:
    """Return a value from the caller, or else from the column's default."""
    if user_column.name in columns:
        return columns[user_column.name]
    assert user_column.python_default is not None
    return user_column.python_default(None)


@contextmanager
def _naming_the_chunk(user_column: UserColumn, chunk_id: str) -> Iterator[None]:
    try:
        yield
    except UnsuitableValueError as error:
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


def value_error(user_column: UserColumn, chunk_id: str, value: Any) -> InvalidInputError:
    """Return an error about a value that the driver or the server does not accept."""
    return column_error(
        chunk_id,
        f"the column {user_column.name} of type {user_column.value_type.name} does not accept its "
        f"value of type {type(value).__name__}",
    )


def _is_list(value: Any) -> bool:
    """Return whether asyncpg sends a value as an array. A set is one, too."""
    return (
        isinstance(value, Sized)
        and isinstance(value, Iterable)
        and not isinstance(value, str | bytes | bytearray | memoryview | Mapping)
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
