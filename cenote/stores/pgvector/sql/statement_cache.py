"""Parameters of statements, and a cache for built statements."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, bindparam, literal
from sqlalchemy.types import TypeEngine

from cenote.filters.compiler import Conditions

_CACHED_STATEMENTS = 256
"""Maximum number of statements in each cache."""


def parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a parameter that is bound at each call."""
    return bindparam(name, type_=type_)


def value(values: Mapping[str, Any], name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a parameter with its value."""
    return literal(values[name], type_)


def cached_by_shape(build: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the statements that a function builds from filters, by the shape of the filter.

    The cache holds the most recently used statements, without the values of the filters.

    Args:
        build: Function of a filter and other hashable arguments.
    """
    cache: OrderedDict[Hashable, Any] = OrderedDict()

    def get(filter: Conditions, *arguments: Any, **options: Any) -> Any:
        key = (filter.shape, arguments, *options.items())
        if key not in cache:
            cache[key] = build(filter, *arguments, **options)
            if len(cache) > _CACHED_STATEMENTS:
                cache.popitem(last=False)
        cache.move_to_end(key)
        return cache[key]

    return get
