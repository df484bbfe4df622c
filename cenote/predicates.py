"""What each test of a filter means, in Python and in SQL, side by side.

A test is of one value: of the metadata, found by keys, or of a column. It holds or it does not;
where there is no value, or one of another kind than the test is about, it does not:

=================  =======================================================================
``==``, ``in_``    JSON equality: ``1`` equals ``1.0``, ``True`` does not equal ``1``, ``None``
                   equals a null that is there, lists and objects are compared as a whole
``<`` and so on,   numbers with numbers by value, texts with texts in code-point order; other
``between``        values do not compare, booleans neither
``like``, ...      texts only; ``ilike`` folds A to Z alone, as the "C" collation does
``contains``, ...  lists only, whose elements are compared as by ``==``
``exists``         whether the key is there, be it with a null
=================  =======================================================================

All comparisons of text are made under the "C" collation, so that a database's locale changes no
answer. Keys and values are bound.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Protocol, TypeAlias

from sqlalchemy import (
    ARRAY,
    TEXT,
    VARCHAR,
    Column,
    ColumnElement,
    Numeric,
    String,
    Text,
    any_,
    case,
    cast,
    collate,
    exists,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from cenote.errors import InvalidInputError
from cenote.jsonvalues import json_text, unstorable

Columns: TypeAlias = Any
"""The columns of a chunk table, by name: ``table.c``."""

Next: TypeAlias = Callable[[TypeEngine[Any]], ColumnElement[Any]]
"""Gives a parameter of a type for the next one of a test's :attr:`Predicate.values`."""

MISSING = object()
"""Where there is no value."""


class Row(Protocol):
    """A chunk, as the meaning in Python takes it."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def fields(self) -> Mapping[str, Any]: ...


# -- equality --------------------------------------------------------------------------------------

_OWN_TOKENS = frozenset((str, int, float, type(None)))


def json_token(value: Any) -> Hashable:
    """A hashable substitute for a JSON value: two tokens are equal where the values are JSON-equal.

    Numbers compare by value, as jsonb's do, and apart from booleans, which Python takes for
    numbers. Containers compare whole, objects regardless of the order of their keys.
    """
    if type(value) in _OWN_TOKENS:  # most values are, and matching takes its time
        return value  # type: ignore[no-any-return]
    match value:
        case bool():
            return ("boolean", value)
        case list():
            return ("array", tuple(json_token(item) for item in value))
        case dict():
            return ("object", frozenset((key, json_token(item)) for key, item in value.items()))
        case _:  # None, a number or a text, which Python never takes for one another
            return value  # type: ignore[no-any-return]


# -- what is tested --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetadataOperand:
    """A value of the metadata.

    Attributes:
        path: its key, and the keys of the objects that it is in, from the outside.
    """

    path: tuple[str, ...]

    ordered_kinds = "a number or a text"

    def __str__(self) -> str:
        return "meta(" + ", ".join(map(repr, self.path)) + ")"

    @property
    def shape(self) -> Hashable:
        return len(self.path)

    def orders(self, value: Any) -> bool:
        return isinstance(value, str | int | float) and not isinstance(value, bool)

    def of(self, row: Row) -> Any:
        return self.within(row.metadata, self.path)

    @staticmethod
    def within(value: Any, path: tuple[str, ...]) -> Any:
        """The value that keys lead to, from another one."""
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                return MISSING
            value = value[key]
        return value

    def sql(self, columns: Columns, following: Next) -> ColumnElement[Any]:
        """The jsonb value, or NULL; takes as many parameters as there are keys."""
        value: ColumnElement[Any] = columns.metadata
        for _ in self.path:  # by "->" with a text, which enters objects and no lists
            value = value.op("->", return_type=JSONB())(following(Text()))
        return value

    def document(self, value: Any) -> str:
        """The least metadata that have this value, as JSON."""
        for key in reversed(self.path):
            value = {key: value}
        return json_text(value)


_KINDS: dict[str, type] = {
    "id": str,
    "document_id": str,
    "content": str,
    "position": int,
    "content_hash": str,
    "embedding_model": str,
    "created_at": datetime,
}
"""The chunk's columns that can be tested, and what they hold."""


@dataclass(frozen=True, slots=True)
class ColumnOperand:
    """A column of the chunk, or of the host's."""

    name: str

    def __str__(self) -> str:
        return f"field({self.name!r})"

    @property
    def shape(self) -> Hashable:
        return self.name

    @property
    def ordered_kinds(self) -> str:
        kind = _KINDS.get(self.name)
        return "a value" if kind is None else f"a value of type {kind.__name__}"

    def checked(self, value: Any) -> Any:
        """The value.

        Raises:
            InvalidInputError: the column cannot hold it.
        """
        kind = _KINDS.get(self.name, object)
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if value is not None and not right:
            raise InvalidInputError(
                f"{self} takes {self.ordered_kinds}, not {type(value).__name__}", field="filter"
            )
        if isinstance(value, str) and (reason := unstorable(value)):
            raise InvalidInputError(f"the value of {self} {reason}", field="filter")
        if kind is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidInputError(f"{self} takes a 64-bit integer", field="filter")
        if isinstance(value, datetime) and self.name in _KINDS and value.tzinfo is None:
            raise InvalidInputError(f"{self} takes a datetime with a time zone", field="filter")
        return value

    def orders(self, value: Any) -> bool:
        return value is not None

    def of(self, row: Row) -> Any:
        value = row.fields.get(self.name)
        return MISSING if value is None else value

    def sql(self, columns: Columns) -> Column[Any]:
        """The column.

        Raises:
            InvalidInputError: the table has none of this name.
        """
        hidden = ("namespace", "metadata", "embedding")
        names = [name for name in columns.keys() if name not in hidden]  # noqa: SIM118
        if self.name not in names:
            known = ", ".join(names)
            raise InvalidInputError(f"{self}: there is no such column; {known}", field="filter")
        column: Column[Any] = columns[self.name]
        return column

    def text(self, column: Column[Any]) -> ColumnElement[str]:
        """The column for a comparison of texts.

        Raises:
            InvalidInputError: it holds none.
        """
        if not isinstance(column.type, String):
            raise InvalidInputError(f"{self} is no column of texts", field="filter")
        return collate(column, "C")


Operand: TypeAlias = MetadataOperand | ColumnOperand


# -- tests -----------------------------------------------------------------------------------------


class Predicate(Protocol):
    """A test of one value."""

    @property
    def operand(self) -> Operand:
        """What is tested."""
        ...

    @property
    def shape(self) -> Hashable:
        """What the SQL depends on, the values aside."""
        ...

    @property
    def values(self) -> list[Any]:
        """The values to bind, in the order in which the SQL takes them."""
        ...

    def holds(self, row: Row) -> bool:
        """The meaning in Python."""
        ...

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        """The meaning in SQL, where NULL counts as false."""
        ...


@dataclass(frozen=True)
class Match:
    """The plain dict: every key is there, with an equal value.

    ``@>`` alone means equality for scalars, and is what the GIN index serves. For lists and
    objects it only means containment, so each of those is compared as a whole, too.
    """

    wanted: dict[str, Any] = field(repr=False)

    @property
    def operand(self) -> Operand:
        return MetadataOperand(())

    @cached_property
    def tokens(self) -> frozenset[tuple[str, Hashable]]:
        return frozenset((key, json_token(value)) for key, value in self.wanted.items())

    @cached_property
    def _containers(self) -> dict[str, Any]:
        return {key: value for key, value in self.wanted.items() if isinstance(value, dict | list)}

    @property
    def shape(self) -> Hashable:
        return ("match", bool(self._containers))

    @property
    def values(self) -> list[Any]:
        values = [json_text(self.wanted)]
        return [*values, json_text(self._containers)] if self._containers else values

    def holds(self, row: Row) -> bool:
        metadata = row.metadata
        return all(
            key in metadata and json_token(metadata[key]) == token for key, token in self.tokens
        )

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        holds = _has(columns.metadata, following)
        if not self._containers:
            return holds
        wanted = func.jsonb_each(_jsonb(following)).table_valued("key", "value")
        same = columns.metadata.op("->")(wanted.c.key) == wanted.c.value
        return holds & ~exists().select_from(wanted).where(same.is_not(true()))


@dataclass(frozen=True, slots=True)
class Equals:
    operand: Operand
    value: Any = field(repr=False)

    @property
    def shape(self) -> Hashable:
        kind = self._container if isinstance(self.operand, MetadataOperand) else self.value is None
        return ("equals", self.operand.shape, kind)

    @property
    def _container(self) -> bool:
        return isinstance(self.value, dict | list)

    @property
    def values(self) -> list[Any]:
        if isinstance(self.operand, ColumnOperand):
            return [] if self.value is None else [self.value]
        least = [self.operand.document(self.value)]
        return [*least, *self.operand.path, json_text(self.value)] if self._container else least

    def holds(self, row: Row) -> bool:
        value = self.operand.of(row)
        if isinstance(self.operand, ColumnOperand):
            return value is MISSING if self.value is None else bool(value == self.value)
        return value is not MISSING and json_token(value) == json_token(self.value)

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        if isinstance(self.operand, ColumnOperand):
            column = self.operand.sql(columns)
            return column.is_(None) if self.value is None else column == following(_bound(column))
        holds = _has(columns.metadata, following)
        if not self._container:
            return holds
        value = self.operand.sql(columns, following)
        return holds & value.is_not_distinct_from(_jsonb(following))


@dataclass(frozen=True, slots=True)
class IsOneOf:
    """Equality with any of many values. Few are compared one by one, by the index."""

    operand: Operand
    wanted: list[Any] = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("is one of", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        if isinstance(self.operand, ColumnOperand):
            return [self.wanted]
        return [*self.operand.path, json_text(self.wanted)]

    def holds(self, row: Row) -> bool:
        value = self.operand.of(row)
        if isinstance(self.operand, ColumnOperand):
            return value in self.wanted
        token = json_token(value)
        return value is not MISSING and any(json_token(one) == token for one in self.wanted)

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        if isinstance(self.operand, ColumnOperand):
            column = self.operand.sql(columns)
            return column == any_(following(ARRAY(_bound(column))))
        value = self.operand.sql(columns, following)
        wanted = select(func.jsonb_array_elements(_jsonb(following))).scalar_subquery()
        return value == any_(func.array(wanted))


_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Ordered:
    operand: Operand
    operator: str
    value: Any = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("ordered", self.operand.shape, self.operator, self._of_texts)

    @property
    def _of_texts(self) -> bool:
        return isinstance(self.value, str)

    @property
    def values(self) -> list[Any]:
        if isinstance(self.operand, ColumnOperand):
            return [self.value]
        return [*self.operand.path, self.value if self._of_texts else json_text(self.value)]

    def holds(self, row: Row) -> bool:
        value = self.operand.of(row)
        if isinstance(self.operand, ColumnOperand):
            try:
                return value is not MISSING and bool(_ORDERS[self.operator](value, self.value))
            except TypeError:  # a host's own values, of kinds that do not compare
                return False
        kind = str if self._of_texts else (int, float)
        comparable = isinstance(value, kind) and not isinstance(value, bool)
        return comparable and bool(_ORDERS[self.operator](value, self.value))

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        compare: Callable[[Any, Any], ColumnElement[bool]] = _ORDERS[self.operator]
        if isinstance(self.operand, ColumnOperand):
            column = self.operand.sql(columns)
            compared = self.operand.text(column) if self._of_texts else column
            return compare(compared, following(_bound(column)))
        value = self.operand.sql(columns, following)
        if self._of_texts:
            return compare(json_string(value), following(Text()))
        return compare(json_number(value), cast(following(Text()), Numeric))


class _OfText:
    """What tests of texts have in common."""

    __slots__ = ()
    operand: Operand

    def _of_text(
        self,
        columns: Columns,
        following: Next,
        test: Callable[[ColumnElement[str], ColumnElement[str]], ColumnElement[bool]],
    ) -> ColumnElement[bool]:
        if isinstance(self.operand, ColumnOperand):
            return test(self.operand.text(self.operand.sql(columns)), following(Text()))
        return test(json_string(self.operand.sql(columns, following)), following(Text()))

    def _values(self, text: str) -> list[Any]:
        return [text] if isinstance(self.operand, ColumnOperand) else [*self.operand.path, text]


@dataclass(frozen=True, slots=True)
class Like(_OfText):
    operand: Operand
    pattern: str = field(repr=False)
    ignore_case: bool

    @property
    def shape(self) -> Hashable:
        return ("like", self.operand.shape, self.ignore_case)

    @property
    def values(self) -> list[Any]:
        return self._values(self.pattern)

    def holds(self, row: Row) -> bool:
        value = self.operand.of(row)
        if not isinstance(value, str):
            return False
        if not self.ignore_case:
            return _expression(self.pattern).fullmatch(value) is not None
        return _expression(_folded(self.pattern)).fullmatch(_folded(value)) is not None

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        return self._of_text(
            columns,
            following,
            lambda text, pattern: text.ilike(pattern) if self.ignore_case else text.like(pattern),
        )


@dataclass(frozen=True, slots=True)
class StartsWith(_OfText):
    operand: Operand
    prefix: str = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("starts with", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        return self._values(self.prefix)

    def holds(self, row: Row) -> bool:
        value = self.operand.of(row)
        return isinstance(value, str) and value.startswith(self.prefix)

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        return self._of_text(columns, following, func.starts_with)


@dataclass(frozen=True, slots=True)
class Contains:
    """A list with an element equal to the value; ``@>`` is more than that for lists and objects."""

    operand: MetadataOperand
    value: Any = field(repr=False)

    @property
    def shape(self) -> Hashable:
        return ("contains", self.operand.shape, self._container)

    @property
    def _container(self) -> bool:
        return isinstance(self.value, dict | list)

    @property
    def values(self) -> list[Any]:
        least = [self.operand.document([self.value])]
        return [*least, *self.operand.path, json_text(self.value)] if self._container else least

    def holds(self, row: Row) -> bool:
        value = self.operand.of(row)
        token = json_token(self.value)
        return isinstance(value, list) and any(json_token(one) == token for one in value)

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        holds = _has(columns.metadata, following)
        if not self._container:
            return holds
        value = self.operand.sql(columns, following)
        empty = cast(literal_column("'[]'"), JSONB)
        values = case((_is(value, "array"), value), else_=empty)
        element = func.jsonb_array_elements(values).table_valued("value")
        same = element.c.value == _jsonb(following)
        return holds & exists().select_from(element).where(same)


@dataclass(frozen=True, slots=True)
class Exists:
    operand: MetadataOperand

    @property
    def shape(self) -> Hashable:
        return ("exists", self.operand.shape)

    @property
    def values(self) -> list[Any]:
        return [*self.operand.path]

    def holds(self, row: Row) -> bool:
        return self.operand.of(row) is not MISSING

    def sql(self, columns: Columns, following: Next) -> ColumnElement[bool]:
        return self.operand.sql(columns, following).is_not(None)


# -- pieces ----------------------------------------------------------------------------------------


def _jsonb(following: Next) -> ColumnElement[Any]:
    """A parameter that takes JSON text, so that a host engine's own serializer has no say."""
    return cast(following(Text()), JSONB)


def _has(metadata: ColumnElement[Any], following: Next) -> ColumnElement[bool]:
    """Whether the metadata have the next value in them, by the index of the metadata."""
    return metadata.op("@>", is_comparison=True)(_jsonb(following))


def json_string(value: ColumnElement[Any]) -> ColumnElement[str]:
    """The text of a jsonb string, in the "C" collation; NULL of other values."""
    text: ColumnElement[str] = value.op("#>>", return_type=Text())(literal_column("'{}'"))
    return collate(case((_is(value, "string"), text)), "C")


def json_number(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """The number of a jsonb number; NULL of other values."""
    return case((_is(value, "number"), cast(value, Numeric)))


def _is(value: ColumnElement[Any], kind: str) -> ColumnElement[bool]:
    return func.jsonb_typeof(value) == literal_column("'" + kind + "'")


def _bound(column: Column[Any]) -> TypeEngine[Any]:
    """The type of a parameter for a column, which takes its collation from the column."""
    type_: TypeEngine[Any] = column.type
    return Text() if type(type_) in (String, Text, VARCHAR, TEXT) else type_


_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _folded(text: str) -> str:
    return text.translate(_ASCII_LOWER)


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    """A LIKE pattern as a regular expression that takes time in proportion to the text.

    Between two ``%``, the leftmost match of a piece is as good as any, so that none is tried again.
    """
    pieces: list[list[str]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            pieces.append([])
        elif character == "_":
            pieces[-1].append(".")
        else:
            pieces[-1].append(re.escape(next(characters) if character == "\\" else character))
    first, *middle = ("".join(piece) for piece in pieces)
    last = ".*" + middle.pop() if middle else ""
    inner = "".join("(?>.*?" + piece + ")" for piece in middle if piece)
    return re.compile(first + inner + last, re.DOTALL)
