"""The metadata filter: its meaning in Python and in SQL, side by side.

A chunk matches when its metadata holds every key of the filter with a JSON-equal value. Both
halves take filters that :func:`cenote.validation.check_filter` has made canonical.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from sqlalchemy import ColumnElement, Text, bindparam, cast
from sqlalchemy.dialects.postgresql import JSONB

from cenote.validation import json_text

# -- in Python -------------------------------------------------------------------------------------


def json_token(value: Any) -> Hashable:
    """A hashable stand-in for a JSON value: two tokens are equal where the values are JSON-equal.

    Numbers compare by value, as jsonb's do, and apart from booleans, which Python takes for
    numbers. Containers compare whole, objects regardless of the order of their keys.
    """
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


def filter_shape(filter: dict[str, Any]) -> tuple[bool, int]:
    """What the SQL of a filter depends on, its values aside: (is there one, containers in it)."""
    return bool(filter), len(_containers(filter))


def filter_conditions(
    metadata: ColumnElement[Any], shape: tuple[bool, int]
) -> list[ColumnElement[bool]]:
    """The conditions of all filters of one shape; :func:`filter_parameters` gives their values.

    ``@>`` alone means equality for scalars, and is what the GIN index serves. For lists and
    objects it only means containment, so each of those is compared as a whole, too.
    """
    present, containers = shape
    conditions: list[ColumnElement[bool]] = []
    if present:
        conditions.append(metadata.op("@>", is_comparison=True)(_jsonb("filter")))
    for index in range(containers):
        key = bindparam(f"filter_key_{index}", type_=Text)
        conditions.append(metadata.op("->")(key) == _jsonb(f"filter_value_{index}"))
    return conditions


def filter_parameters(filter: dict[str, Any]) -> dict[str, Any]:
    """The values to bind for :func:`filter_conditions`."""
    if not filter:
        return {}
    parameters = {"filter": json_text(filter)}
    for index, (key, value) in enumerate(_containers(filter)):
        parameters[f"filter_key_{index}"] = key
        parameters[f"filter_value_{index}"] = json_text(value)
    return parameters


def _containers(filter: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in filter.items() if isinstance(value, dict | list)]


def _jsonb(name: str) -> ColumnElement[Any]:
    """A parameter that takes JSON text, so that a host engine's own serializer has no say."""
    return cast(bindparam(name, type_=Text), JSONB)
