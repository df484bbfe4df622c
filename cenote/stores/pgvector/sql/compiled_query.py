"""Statements compiled to the SQL and the arguments that the driver accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Dialect, Select
from sqlalchemy.types import TypeEngine

from cenote.stores.pgvector.sql.statement_cache import is_kept

_FLOAT8 = 701
"""Type of computed numbers: oid of ``float8`` in Postgres's pg_type.dat. SQLAlchemy's type for
numbers converts by it; other types ignore it."""


class CompiledQuery:
    """SQL with numbered parameters, compiled once from a statement.

    Args:
        statement: The statement.
        dialect: Dialect of the engine.
        numbering: Dialect that numbers the parameters; `dialect` by default.

    Attributes:
        sql: The SQL, for the driver.
        direct: True if the driver's values are the statement's results. False if SQLAlchemy has to
            convert results, for example because the application's model decrypts a column, or has
            to expand parameters at each execution.
        kept: True if the driver and the server may keep the statement prepared.
    """

    __slots__ = ("_arguments", "direct", "kept", "sql")

    def __init__(
        self, statement: Select[Any], dialect: Dialect, numbering: Dialect | None = None
    ) -> None:
        compiled: Any = statement.compile(dialect=numbering or dialect)
        self.sql: str = compiled.string
        defaults = compiled.params
        self._arguments: list[tuple[str, Any, Callable[[Any], Any] | None]] = [
            (name, defaults[name], _bind_processor(compiled.binds[name].type, dialect))
            for name in compiled.positiontup or ()
        ]
        expands = compiled.post_compile_params or compiled.literal_execute_params
        columns = statement.selected_columns
        self.kept = is_kept(statement)
        self.direct = not expands and not any(_converts(c.type, dialect) for c in columns)

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the arguments of the SQL, in order."""
        arguments = []
        for name, default, process in self._arguments:
            value = parameters.get(name, default)
            arguments.append(value if process is None else process(value))
        return arguments


def _bind_processor(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _converts(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    return type_.dialect_impl(dialect).result_processor(dialect, _FLOAT8) is not None
