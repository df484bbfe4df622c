"""A SELECT that is compiled once, for statements that the application executes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Double,
    Select,
    Text,
    TextualSelect,
    bindparam,
    column,
    literal,
    literal_column,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

from cenote.errors import ConfigurationError
from cenote.stores.pgvector.sql.loader_criteria import loader_criteria

_MARKER = re.compile("\x01([a-z0-9_]+)\x01")

_dialect = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]
"""The parameter style that does not double ``%`` in the SQL: the final compilation does."""

_COLUMNS = (column("id", Text), column("distance", Double), column("score", Double))


class SelectTemplate:
    """The SQL of a select with the columns id, distance and score, compiled once.

    To compile it for every search would take as long as the search. Build the select with markers
    in place of parameters.
    """

    def __init__(self) -> None:
        self._types: dict[str, TypeEngine[Any]] = {}
        self._pieces: tuple[str, ...] = ()

    def marker(self, name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """Return the marker of a parameter."""
        self._types[name] = type_
        return literal_column(f"\x01{name}\x01", type_)

    def compile(self, statement: Select[Any]) -> None:
        """Compile the select."""
        compiled = statement.compile(dialect=_dialect, compile_kwargs={"literal_binds": True})
        self._pieces = tuple(_MARKER.split(str(compiled)))

    def with_values(
        self, values: Mapping[str, Any], model: type[Any], build: Callable[..., Select[Any]]
    ) -> CompiledSelect:
        """Return the select with values.

        The parameters have unique names, which cannot collide with the names of the caller's.

        Args:
            values: The values by name.
            model, build: See `CompiledSelect`.
        """
        parameters = {
            name: bindparam(name, values[name], type_, unique=True)
            for name, type_ in self._types.items()
        }
        sql: Any = _CompiledSQL(self._pieces, parameters)
        select = CompiledSelect(sql, list(_COLUMNS))
        select.model = model
        select.build = build
        return select


class _CompiledSQL(ClauseElement):
    """SQL in pieces: texts, alternating with the names of parameters.

    A TextClause would read ``:x`` in the name of a column as a parameter.
    """

    __visit_name__ = "cenote_compiled_sql"
    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy reads it from the class
        ("pieces", InternalTraversal.dp_plain_obj),
        ("parameters", InternalTraversal.dp_clauseelement_list),
    ]

    def __init__(
        self, pieces: tuple[str, ...], parameters: Mapping[str, BindParameter[Any]]
    ) -> None:
        self.pieces = pieces
        self.names = tuple(parameters)
        self.parameters = list(parameters.values())

    def parameters_by_name(self) -> dict[str, BindParameter[Any]]:
        return dict(zip(self.names, self.parameters, strict=True))


@compiles(_CompiledSQL)
def _compile_sql(element: _CompiledSQL, compiler: Any, **kw: Any) -> str:
    texts = [compiler.post_process_text(text) for text in element.pieces[::2]]
    parameters = {
        name: compiler.process(parameter, **kw)
        for name, parameter in element.parameters_by_name().items()
    }
    written = [texts[0]]
    for name, text in zip(element.pieces[1::2], texts[1:], strict=True):
        written += [parameters[name], text]
    return "".join(written)


class CompiledSelect(TextualSelect):
    """A select that was compiled in advance.

    To SQLAlchemy, it derives from no table, because a caller may join any table to it.

    Attributes:
        model: Chunk model.
        build: Function that builds the statement from parameters and additional conditions, to
            compile it anew if the caller's statement has loader criteria for the model.
    """

    inherit_cache = True
    model: type[Any]
    build: Callable[..., Select[Any]]

    def is_derived_from(self, fromclause: Any) -> bool:
        return False


@compiles(CompiledSelect)
def _compile_select(element: CompiledSelect, compiler: Any, **kw: Any) -> str:
    if getattr(compiler, "schema_translate_map", None):
        raise ConfigurationError(
            "a schema_translate_map of a session or a connection does not apply to a search "
            "statement; pass the store an engine with execution_options(schema_translate_map=...)",
            setting="schema",
        )
    criteria = loader_criteria(element.model, compiler)
    if criteria:
        compiled: Any = element.element
        parameters = compiled.parameters_by_name()
        # Without a condition, the compiled SQL has no parameter "custom", which is always true.
        always = literal(True)
        statement = element.build(lambda name, _: parameters.get(name, always), *criteria)
        sql: str = compiler.process(statement, **kw)
    else:
        sql = compiler.visit_textual_select(element, **kw)
    return sql


class _NotCached(ColumnElement[bool]):
    """A condition that is always true, and keeps a statement out of SQLAlchemy's cache."""

    __visit_name__ = "cenote_not_cached"
    inherit_cache = False


@compiles(_NotCached)
def _compile_not_cached(element: _NotCached, compiler: Any, **kw: Any) -> str:
    return "true"


def not_cached() -> ColumnElement[bool]:
    """Return a condition that is always true, and keeps a statement out of SQLAlchemy's cache."""
    return _NotCached()
