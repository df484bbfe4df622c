"""The SQL of a filter, as one element of SQLAlchemy's expression language."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from sqlalchemy import Boolean, ColumnElement, FromClause, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

_MARKER = re.compile("\x01([0-9]+)\x01")


class PredicateTemplate:
    """The SQL of the predicates of one shape, with markers for the parameters.

    Attributes:
        sql: The SQL.
        types: Types of the parameters, in the order of the predicate's values.
    """

    __slots__ = ("sql", "types")

    def __init__(self) -> None:
        self.sql: ColumnElement[bool]
        self.types: list[TypeEngine[Any]] = []

    def next_parameter(self, type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """Return a marker for the next parameter."""
        marker: ColumnElement[Any] = literal_column(f"\x01{len(self.types)}\x01", type_)
        self.types.append(type_)
        return marker


Piece: TypeAlias = str | tuple[int, int]
"""A piece of a filter's SQL: text, or the number of a template and the number of its parameters."""


class FilterCondition(ColumnElement[bool]):
    """The SQL of a filter, composed of the SQL of its predicates.

    A tree of SQLAlchemy's expressions would have about ten elements per predicate. Building and
    compiling them took 1.2 s for a search with 1,000 predicates; this element takes 0.05 s.
    Predicates that differ only in keys and values have the same SQL, which is compiled once.

    Args:
        pieces: The SQL in pieces.
        templates: The SQL of the predicates, by number.
        parameters: The parameters, in the order of the pieces.
        shape: Cache key of the SQL.
    """

    __visit_name__ = "cenote_filter"
    inherit_cache = True
    type = Boolean()
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy reads it from the class
        ("shape", InternalTraversal.dp_plain_obj),
        ("templates", InternalTraversal.dp_clauseelement_list),
        ("parameters", InternalTraversal.dp_clauseelement_list),
    ]

    def __init__(
        self,
        pieces: Sequence[Piece],
        templates: list[ColumnElement[bool]],
        parameters: list[ColumnElement[Any]],
        shape: Hashable,
    ) -> None:
        self.pieces = pieces
        self.templates = templates
        self.parameters = parameters
        self.shape = shape

    @property
    def _from_objects(self) -> list[FromClause]:
        return [source for template in self.templates for source in template._from_objects]

    def self_group(self, against: Any = None) -> Any:
        """Return the element itself: its SQL is in parentheses."""
        return self


@compiles(FilterCondition)
def _compile(element: FilterCondition, compiler: Any, **kw: Any) -> str:
    # A search contains the condition up to three times, so its SQL is kept while it is compiled.
    compiled: dict[int, str] = compiler.__dict__.setdefault("_cenote_filters", {})
    if id(element) not in compiled:
        compiled[id(element)] = "".join(_texts(element, compiler, kw))
    return compiled[id(element)]


def _texts(element: FilterCondition, compiler: Any, kw: dict[str, Any]) -> Iterator[str]:
    templates = [_MARKER.split(compiler.process(sql, **kw)) for sql in element.templates]
    parameters = iter(element.parameters)
    for piece in element.pieces:
        if isinstance(piece, str):
            yield piece
            continue
        number, count = piece
        values = [compiler.process(value, **kw) for value in islice(parameters, count)]
        template = templates[number]  # text, number of a parameter, text, and so on
        yield template[0]
        for position in range(1, len(template), 2):
            yield values[int(template[position])]
            yield template[position + 1]
