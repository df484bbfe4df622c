"""The predicates that filters are built from, each defined in Python and in SQL, side by side.

A predicate compares one value: a value of the metadata, found by a path of keys, or a column. It is
either true or false. If there is no value, or its type is one that the predicate does not handle,
the predicate is false:

=================  =======================================================================
Predicate          Meaning
=================  =======================================================================
``==``, ``in_``    JSON equality: ``1`` equals ``1.0``; ``True`` does not equal ``1``; ``None``
                   equals an explicit null; lists and objects compare as a whole
``<`` and so on,   numbers compare with numbers by value, strings with strings in code-point
``between``        order; other types, including booleans, do not compare
``like``, ...      strings only; ``ilike`` ignores the case of A to Z alone, as the "C" collation
                   does
``contains``, ...  lists only; their elements compare as with ``==``
``exists``         true if the key is present, even if its value is null
=================  =======================================================================

Strings always compare under the "C" collation, so the database's locale cannot change an answer.
Keys and values are bound as parameters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from sqlalchemy import (
    CHAR,
    REAL,
    TEXT,
    VARCHAR,
    Column,
    ColumnElement,
    Enum,
    Numeric,
    String,
    Text,
    Unicode,
    UnicodeText,
    case,
    cast,
    collate,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import TypeEngine, UserDefinedType

from cenote.errors import InvalidInputError
from cenote.validation.arguments import is_integer, is_number
from cenote.validation.json import (
    DateInJSONError,
    NotJSONError,
    approximate_bytes,
    canonical_json,
    json_text,
    unstorable,
)

Columns: TypeAlias = Any
"""The columns of a chunk table, by name: ``table.c``."""

NextParameter: TypeAlias = Callable[[TypeEngine[Any]], ColumnElement[Any]]
"""Function that creates the parameter for the next of a predicate's `values`, given its type."""

_DIALECT: Any = PGDialect()  # type: ignore[no-untyped-call]

MISSING = object()
"""Marker for a value that does not exist."""

UNKNOWN = object()
"""Marker for a value that only the database can compute."""


class Row(Protocol):
    """A chunk as predicates read it in Python."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The chunk's metadata."""
        ...

    @property
    def fields(self) -> Mapping[str, Any]:
        """The values of the chunk's columns, by name."""
        ...


# -- JSON values -----------------------------------------------------------------------------------

_PLAIN_TYPES = frozenset((str, int, float, type(None)))


def json_token(value: Any) -> Hashable:
    """Return a hashable token for a JSON value. Tokens are equal if the values are JSON-equal.

    Numbers compare by value, as in jsonb. They never equal booleans, which Python treats as
    numbers. Lists and objects compare as a whole, objects regardless of the order of their keys.
    """
    if type(value) in _PLAIN_TYPES:  # a shortcut for most values: `match` is slow
        return value  # type: ignore[no-any-return]
    match value:
        case bool():
            return ("boolean", value)
        case list():
            return ("array", tuple(json_token(item) for item in value))
        case dict():
            return ("object", frozenset((key, json_token(item)) for key, item in value.items()))
        case _:  # None, a number or a string: Python never considers them equal to each other
            return value  # type: ignore[no-any-return]


def json_string(value: ColumnElement[Any]) -> ColumnElement[str]:
    """Return a jsonb string as text under the "C" collation; NULL for other values."""
    text: ColumnElement[str] = value.op("#>>", return_type=Text())(literal_column("'{}'"))
    return collate(case((has_json_type(value, "string"), text)), "C")


def json_number(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a jsonb number as NUMERIC; NULL for other values."""
    return case((has_json_type(value, "number"), cast(value, Numeric)))


def has_json_type(value: ColumnElement[Any], kind: str) -> ColumnElement[bool]:
    """Return the condition that a jsonb value is of a type, such as ``"string"``."""
    return func.jsonb_typeof(value) == literal_column("'" + kind + "'")


# -- operands --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetadataOperand:
    """A value of the metadata.

    Attributes:
        path: Keys that lead to the value, outermost first.
    """

    path: tuple[str, ...]

    ordered_kinds = "a number or a string"
    """The types that order comparisons accept, for error messages."""

    def __str__(self) -> str:
        return "meta(" + ", ".join(map(repr, self.path)) + ")"

    @property
    def shape(self) -> Hashable:
        """Cache key of the SQL."""
        return len(self.path)

    @property
    def size(self) -> int:
        """Number of bytes of the keys."""
        return sum(map(approximate_bytes, self.path))

    def checked(self, value: Any) -> Any:
        """Return a value to compare with, in canonical form.

        Raises:
            InvalidInputError: the value is not JSON.
        """
        try:
            canonical = canonical_json(value)
            json_text(canonical)
        except NotJSONError as error:
            raise InvalidInputError(
                f"the value of {self} {filter_reason(error)}", field="filter"
            ) from None
        return canonical

    def checked_list(self, values: list[Any]) -> list[Any]:
        """Return values to compare with, in canonical form; see :meth:`checked`."""
        wanted: list[Any] = self.checked(values)
        return wanted

    def orders(self, value: Any) -> bool:
        """Return whether values can be ordered relative to `value`."""
        return isinstance(value, str) or is_number(value)

    def value_in(self, row: Row) -> Any:
        """Return the row's value, or `MISSING`."""
        return self.within(row.metadata, self.path)

    @staticmethod
    def within(value: Any, path: tuple[str, ...]) -> Any:
        """Return the value at a path of keys inside another value, or `MISSING`."""
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                return MISSING
            value = value[key]
        return value

    def sql(self, columns: Columns, next_parameter: NextParameter) -> ColumnElement[Any]:
        """Return the jsonb value, or NULL. Consumes one parameter for each key."""
        value: ColumnElement[Any] = columns.metadata
        for _ in self.path:  # "->" with text enters objects but not lists
            value = value.op("->", return_type=JSONB())(next_parameter(Text()))
        return value

    def smallest_metadata(self, value: Any) -> str:
        """Return the smallest metadata with `value` at this path, as JSON text."""
        for key in reversed(self.path):
            value = {key: value}
        return json_text(value)


def filter_reason(error: NotJSONError) -> str:
    """Return the reason why a value of a filter is not JSON."""
    if isinstance(error, DateInJSONError):
        return (
            f"{error}, and store that text in the metadata; or map a timestamp column in your "
            'model, and compare it as field("at")'
        )
    return str(error)


_KINDS: dict[str, type] = {
    "id": str,
    "document_id": str,
    "content": str,
    "position": int,
    "content_hash": str,
    "embedding_model": str,
    "created_at": datetime,
}
"""The chunk's columns that filters may use, and the types of their values."""


@dataclass(frozen=True, slots=True)
class ColumnOperand:
    """A column of the chunk, or of the user model."""

    name: str

    def __str__(self) -> str:
        return f"field({self.name!r})"

    @property
    def shape(self) -> Hashable:
        """Cache key of the SQL."""
        return self.name

    @property
    def size(self) -> int:
        """Number of bytes of the keys: a name of a column is part of the SQL."""
        return 0

    @property
    def is_of_chunk(self) -> bool:
        """True for a column that every chunk has, and not only the user model."""
        return self.name in _KINDS

    @property
    def ordered_kinds(self) -> str:
        """The types that order comparisons accept, for error messages."""
        kind = _KINDS.get(self.name)
        return "a value" if kind is None else f"a value of type {kind.__name__}"

    def checked(self, value: Any) -> Any:
        """Return a value to compare with.

        Raises:
            InvalidInputError: the column cannot hold the value.
        """
        kind = _KINDS.get(self.name, object)
        fits = is_integer(value) if kind is int else isinstance(value, kind)
        if value is not None and not fits:
            raise InvalidInputError(
                f"{self} requires {self.ordered_kinds}, not {type(value).__name__}", field="filter"
            )
        if isinstance(value, str) and (reason := unstorable(value)):
            raise InvalidInputError(f"the value of {self} {reason}", field="filter")
        if kind is int and is_integer(value) and not -(2**63) <= value < 2**63:
            raise InvalidInputError(f"{self} requires a 64-bit integer", field="filter")
        if isinstance(value, datetime) and self.name in _KINDS and value.tzinfo is None:
            raise InvalidInputError(f"{self} requires a datetime with a time zone", field="filter")
        return value

    def checked_list(self, values: list[Any]) -> list[Any]:
        """Return values to compare with; see :meth:`checked`."""
        return [self.checked(value) for value in values]

    def orders(self, value: Any) -> bool:
        """Return whether values can be ordered relative to `value`."""
        return value is not None

    def value_in(self, row: Row) -> Any:
        """Return the row's value, or `MISSING` for NULL.

        Raises:
            InvalidInputError: Only the database can compute the value.
        """
        value = row.fields.get(self.name)
        if value is UNKNOWN:
            raise InvalidInputError(
                f"{self}: the in-memory store cannot compute the value that the database gives "
                "this column; pass a value in `columns`, or test this filter with Postgres",
                field="filter",
            )
        return MISSING if value is None else value

    def sql(self, columns: Columns) -> Column[Any]:
        """Return the column.

        Raises:
            InvalidInputError: filters cannot use a column of this name.
        """
        hidden = ("namespace", "metadata", "embedding")
        names = [name for name in columns.keys() if name not in hidden]  # noqa: SIM118
        if self.name not in names:
            known = ", ".join(names)
            raise InvalidInputError(
                f"{self}: no such column; filters can use {known}", field="filter"
            )
        column: Column[Any] = columns[self.name]
        return column

    def text(self, column: Column[Any]) -> ColumnElement[str]:
        """Return the column under the "C" collation, for comparing strings.

        Raises:
            InvalidInputError: the column does not hold text.
        """
        if not _is_text(column.type):
            raise InvalidInputError(f"{self} is not a text column", field="filter")
        # The text of a CHAR column has no spaces at the end; LIKE would compare them.
        text = cast(column, Text) if isinstance(_kind(column.type), CHAR) else column
        return collate(text, "C")

    def ordered(self, column: Column[Any]) -> ColumnElement[Any]:
        """Return the column as order comparisons use it: text under the "C" collation."""
        return collate(column, "C") if _is_text(column.type) else column


Operand: TypeAlias = MetadataOperand | ColumnOperand


# -- SQL expressions -------------------------------------------------------------------------------


def jsonb(next_parameter: NextParameter) -> ColumnElement[Any]:
    """Return a jsonb parameter that is bound as text.

    The application's engine may have its own JSON serializer, which does not apply to text.
    """
    return cast(next_parameter(Text()), JSONB)


_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def lower_ascii(text: str) -> str:
    return text.translate(_ASCII_LOWER)


def metadata_contains(
    metadata: ColumnElement[Any], next_parameter: NextParameter
) -> ColumnElement[bool]:
    """Return the condition that the metadata contains (`@>`) the next parameter.

    The GIN index serves this condition.
    """
    return metadata.op("@>", is_comparison=True)(jsonb(next_parameter))


def _kind(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type without its type decorators and variants."""
    return type_._unwrapped_dialect_impl(_DIALECT)


def _is_text(type_: TypeEngine[Any]) -> bool:
    """Return whether a column holds text. The type may be decorated; native enums are no text."""
    kind = _kind(type_)
    return isinstance(kind, String) and not (isinstance(kind, Enum) and kind.native_enum)


class _Real(UserDefinedType[float]):
    """Parameter of 32 bits. SQLAlchemy casts a parameter of type REAL to 64 bits."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **kw: Any) -> str:
        return "REAL"


def parameter_type(column: Column[Any]) -> TypeEngine[Any]:
    """Return the type of a parameter that is compared with a column.

    A type for text has no collation, so that the column's collation applies.
    """
    type_: TypeEngine[Any] = column.type
    if isinstance(type_, REAL):
        return _Real()
    return Text() if type(type_) in (String, Text, Unicode, UnicodeText, VARCHAR, TEXT) else type_
