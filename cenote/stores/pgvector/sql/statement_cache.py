"""Parameters of statements, and a cache for built statements."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Executable, bindparam, literal
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import LRUCache

from cenote.filters.compiler import Conditions

_MAX_PLAIN = 256
"""Maximum number of statements without a filter. They differ only in the options of methods."""

_MAX_FILTERED = 128
"""Maximum number of statements with filters: 64 that name a partition, and others."""

_MAX_COMPILED = 64
"""Number of statements with filters whose forms that SQLAlchemy compiled are kept."""

_COMPILED_CACHE = "cenote_compiled_cache"

CompiledCache = MutableMapping[Any, Any]
"""Cache for SQLAlchemy's compiled statements."""

ExecutableT = TypeVar("ExecutableT", bound=Executable)


def parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a parameter that is bound at each call."""
    return bindparam(name, type_=type_)


def value(values: Mapping[str, Any], name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a parameter with its value."""
    return literal(values[name], type_)


def is_kept(statement: Executable) -> bool:
    """Return whether the driver and the server may keep a statement prepared."""
    options: Mapping[str, Any] = statement.get_execution_options()
    return options.get(_COMPILED_CACHE, True) is not None


def compile_options(statement: Executable) -> dict[str, CompiledCache | None]:
    """Return the options for executing a statement: the cache for its compiled form.

    SQLAlchemy does not accept this option as an option of a statement.
    """
    options: Mapping[str, Any] = statement.get_execution_options()
    if _COMPILED_CACHE not in options:
        return {}
    return {"compiled_cache": options[_COMPILED_CACHE]}


class StatementCache:
    """The statements of a store with filters, by the shape of the filter.

    The cache holds the most recently used statements, without the values of the filters. Clients of
    the application may choose the shapes. Long filters (see `Conditions.is_kept`) are therefore
    kept nowhere: neither here, nor compiled, nor prepared by the driver and the server. The other
    statements take 0.05 to 0.3 MB each.
    """

    def __init__(self) -> None:
        self._plain: OrderedDict[Hashable, Any] = OrderedDict()
        self._filtered: OrderedDict[Hashable, Any] = OrderedDict()
        self._compiled: CompiledCache = LRUCache(_MAX_COMPILED)
        self._lock = threading.RLock()  # threads share a synchronous store

    def by_shape(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """Cache the statements that a function builds.

        Args:
            build: Function of a filter and other hashable arguments.
        """

        def get(filter: Conditions, *arguments: Any, **options: Any) -> Any:
            if not filter.is_kept:
                return self.marked(build(filter, *arguments, **options), kept=False)
            entries, most = self._plain, _MAX_PLAIN
            if filter:
                entries, most = self._filtered, _MAX_FILTERED
            key = (build, filter.shape, arguments, *options.items())
            with self._lock:
                if key not in entries:
                    built = build(filter, *arguments, **options)
                    entries[key] = self.marked(built, kept=True) if filter else built
                    if len(entries) > most:
                        entries.popitem(last=False)
                entries.move_to_end(key)
                return entries[key]

        return get

    def with_values(self, statement: ExecutableT, filter: Conditions) -> ExecutableT:
        """Mark a statement that contains its values."""
        return self.marked(statement, kept=filter.is_kept)

    def marked(self, statement: ExecutableT, *, kept: bool) -> ExecutableT:
        """Mark a statement for :func:`is_kept` and :func:`compile_options`."""
        if not isinstance(statement, Executable):
            return statement
        return statement.execution_options(**{_COMPILED_CACHE: self._compiled if kept else None})
