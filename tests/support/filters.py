"""Filters of random shapes and of a given length."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from cenote import field, meta
from cenote.filters import Filter

_PREDICATES: list[Callable[[Any, int], Filter]] = [
    lambda key, value: key == value,
    lambda key, value: key != str(value),
    lambda key, value: key == [value],
    lambda key, value: key > value,
    lambda key, value: key <= str(value),
    lambda key, value: key.like(f"%{value}"),
    lambda key, value: ~key.ilike(f"{value}%"),
    lambda key, value: key.startswith(str(value)),
    lambda key, value: key.contains(value),
    lambda key, value: ~key.contains({"a": value}),
    lambda key, value: key.exists(),
    lambda key, value: key.is_null(),
    lambda key, value: key.in_(range(value, value + 30)),
    lambda key, value: key.any_of(range(value, value + 30)),
    lambda key, value: key.all_of(range(value, value + 30)),
    lambda key, value: field("content") > str(value),
    lambda key, value: ~field("document_id").startswith(str(value)),
    lambda key, value: field("position").in_(range(value, value + 30)),
]
"""Predicates on a metadata key, or on a column, with a value."""


def random_filter(source: random.Random, predicates: int) -> Filter:
    """Return a filter of a random shape.

    Args:
        source: Source of randomness.
        predicates: Number of predicates, in which the keys of paths count, too.
    """
    parts: list[Filter] = []
    while predicates:
        keys = min(predicates, source.choice((1, 1, 1, 2, 3)))
        predicates -= keys
        path = [f"k{source.randrange(20)}" for _ in range(keys)]
        kinds = _PREDICATES if keys == 1 else _PREDICATES[:15]
        parts.append(source.choice(kinds)(meta(*path), source.randrange(1000)))
    while len(parts) > 1:
        number = source.randrange(len(parts) - 1)
        first, second = parts[number : number + 2]
        joined = first | second if source.random() < 0.7 else first & second
        parts[number : number + 2] = [~joined if source.random() < 0.1 else joined]
    return parts[0]
