"""The metadata filter: its meaning in Python and in SQL, side by side.

A chunk matches when its metadata holds every key of the filter with a JSON-equal value. Both
halves take filters that :func:`cenote.validation.check_filter` has made canonical.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Text, cast, exists, func, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from cenote.jsonvalues import json_text

# -- in Python -------------------------------------------------------------------------------------


_OWN_TOKENS = frozenset((str, int, float, type(None)))


def json_token(value: Any) -> Hashable:
    """A hashable stand-in for a JSON value: two tokens are equal where the values are JSON-equal.

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


# -- in SQL ----------------------------------------------------------------------------------------


class FilterShape(Enum):
    """What the SQL of a filter depends on, its values aside."""

    NONE = auto()
    SCALARS = auto()
    CONTAINERS = auto()


def filter_shape(filter: dict[str, Any]) -> FilterShape:
    """Whether a filter has keys at all, and lists or objects among its values."""
    if not filter:
        return FilterShape.NONE
    return FilterShape.CONTAINERS if _containers(filter) else FilterShape.SCALARS


Bind: TypeAlias = Callable[[str, TypeEngine[Any]], ColumnElement[Any]]
"""Makes a parameter of a name and type: one to be bound at each call, or one with its value."""


def filter_conditions(
    metadata: ColumnElement[Any], shape: FilterShape, bind: Bind
) -> list[ColumnElement[bool]]:
    """The conditions of all filters of one shape; :func:`filter_parameters` gives their values.

    ``@>`` alone means equality for scalars, and is what the GIN index serves. For lists and
    objects it only means containment, so each of those is compared as a whole, too.
    """
    if shape is FilterShape.NONE:
        return []
    conditions: list[ColumnElement[bool]] = [
        metadata.op("@>", is_comparison=True)(_jsonb("filter", bind))
    ]
    if shape is FilterShape.CONTAINERS:
        wanted = func.jsonb_each(_jsonb("filter_containers", bind)).table_valued("key", "value")
        same = metadata.op("->")(wanted.c.key) == wanted.c.value
        conditions.append(~exists().select_from(wanted).where(same.is_not(true())))
    return conditions


def filter_parameters(filter: dict[str, Any]) -> dict[str, Any]:
    """The values to bind for :func:`filter_conditions`."""
    if not filter:
        return {}
    parameters = {"filter": json_text(filter)}
    if containers := _containers(filter):
        parameters["filter_containers"] = json_text(containers)
    return parameters


def _containers(filter: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in filter.items() if isinstance(value, dict | list)}


def _jsonb(name: str, bind: Bind) -> ColumnElement[Any]:
    """A parameter that takes JSON text, so that a host engine's own serializer has no say."""
    return cast(bind(name, Text()), JSONB)
