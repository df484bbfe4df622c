"""Parameters of statements, and keeping what was built."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, bindparam, literal
from sqlalchemy.types import TypeEngine

from cenote.filters import Conditions

_SHAPES = 256
"""Shapes of filters of which statements are kept."""


def parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A parameter to be bound at each call."""
    return bindparam(name, type_=type_)


def value(values: Mapping[str, Any], name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A parameter with its value."""
    return literal(values[name], type_)


def cached_by_shape(build: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a filter that keeps what it made of the last shapes, and none of the values."""
    kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(filter: Conditions, *arguments: Any, **options: Any) -> Any:
        key = (filter.shape, arguments, *options.items())
        if key not in kept:
            kept[key] = build(filter, *arguments, **options)
            if len(kept) > _SHAPES:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return get
