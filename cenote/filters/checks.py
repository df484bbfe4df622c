"""Check the filters that callers pass to stores: `as_filter` and `narrowing_filter`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from operator import length_hint
from typing import Any

from cenote.filters.language import (
    MAX_DEPTH,
    MAX_PARTS,
    MAX_PREDICATES,
    MAX_VALUE_BYTES,
    And,
    Filter,
    Leaf,
    Not,
    Or,
    invalid_filter,
    parse_filter,
    too_many_parts,
)
from cenote.filters.operands import MetadataOperand
from cenote.filters.predicates import ContainsAll, ContainsAny, IsOneOf, Match, Predicate
from cenote.responsive import run_in_thread

_LONG = 2000
"""Number of values, or of 64 characters, above which a filter is checked and converted in a thread.

2,000 values take 5 to 10 ms.
"""

_WITH_TOKENS = (IsOneOf, ContainsAny, ContainsAll, Match)

# -- checks ----------------------------------------------------------------------------------------


def as_filter(given: Any) -> Filter | None:
    """Check a filter and return it as an expression, or None if it matches every chunk.

    A dict matches chunks whose metadata has all keys of the dict, with equal values. A value may
    also be an object of operators (``{"$gte": 2020}``). ``$and`` and ``$or`` take lists of filters,
    ``$not`` takes one filter. To compare with an object that has a key beginning with ``$``, use
    ``{"$eq": ...}``. For a metadata key that begins with ``$``, use :func:`meta`.

    Raises:
        InvalidInputError: `given` is not a valid filter. The message names the key.
    """
    if given is None:
        return None
    filter = parse_filter(given)
    if _depth(filter) > MAX_DEPTH:  # must come first: the functions below are recursive
        raise invalid_filter(f"the filter is nested more than {MAX_DEPTH} levels deep")
    if sum(map(_count_keys, predicates(filter))) > MAX_PREDICATES:
        raise invalid_filter(
            f"the filter has more than {MAX_PREDICATES:,} predicates; each key of a path after the "
            "first counts as one more"
        )
    if sum(predicate.size for predicate in predicates(filter)) > MAX_VALUE_BYTES:
        raise invalid_filter(f"the values of the filter have more than {MAX_VALUE_BYTES:,} bytes")
    return None if constant_value(filter) else filter


def narrowing_filter(given: Any) -> Filter:
    """Check a filter that selects chunks to delete: it must not match every chunk.

    Raises:
        InvalidInputError: `given` is not a valid filter, or it matches every chunk.
    """
    filter = as_filter(given)
    if filter is None:
        raise invalid_filter(
            "the filter matches every chunk; to delete all chunks, call delete_namespace()"
        )
    return filter


async def checked_filter(
    given: Any, check: Callable[[Any], Filter | None] = as_filter
) -> Filter | None:
    """Check a filter; in a thread if its values are long.

    Args:
        given: The filter.
        check: `as_filter` or `narrowing_filter`.

    Raises:
        InvalidInputError: `given` is not a valid filter.
    """
    return await run_in_thread(_check_long, given, check) if is_long(given) else check(given)


def _check_long(given: Any, check: Callable[[Any], Filter | None]) -> Filter | None:
    filter = check(given)
    for predicate in predicates(filter):
        if isinstance(predicate.operand, MetadataOperand) and isinstance(predicate, _WITH_TOKENS):
            _ = predicate.tokens  # kept, so computed here and not on the event loop
    return filter


def is_long(given: Any) -> bool:
    """Return whether the values of a filter, which need not be valid, are long.

    The event loop would wait for their conversion.
    """
    length, items = 0, [given]
    while items and length <= _LONG:
        item = items.pop()
        match item:
            case str():
                length += 1 + len(item) // 64
            case Mapping():
                length += len(item)
                items += item.values() if length <= _LONG else ()
            case list() | tuple() | set() | frozenset():
                length += len(item)
                items += item if length <= _LONG else ()
            case Leaf(predicate):
                length += 1 + predicate.size // 64
            case Filter():
                items += _parts_of(item)
                length += 1
            case Sized():
                length += length_hint(item)  # an array without dimensions has no length
    return length > _LONG


def predicates(filter: Filter | None) -> Iterator[Predicate]:
    """Iterate over the predicates of a filter, in order."""
    if isinstance(filter, Leaf):
        yield filter.predicate
    elif filter is not None:
        for part in _parts_of(filter):
            yield from predicates(part)


def map_predicates(filter: Filter, convert: Callable[[Predicate], Filter]) -> Filter:
    """Return a filter in which every predicate is replaced by a filter."""
    match filter:
        case Leaf(predicate):
            return convert(predicate)
        case And(parts) | Or(parts):
            return type(filter)(tuple(map_predicates(part, convert) for part in parts))
        case Not(part):
            return Not(map_predicates(part, convert))
    raise TypeError(type(filter).__name__)


def constant_value(filter: Filter) -> bool | None:
    """Return True if a filter matches every chunk whatever the chunks contain, False if it matches
    none, and None if it depends on the chunk."""
    match filter:
        case And(parts):
            known = {constant_value(part) for part in parts}
            return False if False in known else None if None in known else True
        case Or(parts):
            known = {constant_value(part) for part in parts}
            return True if True in known else None if None in known else False
        case Not(part):
            inner = constant_value(part)
            return None if inner is None else not inner
    return None


def _depth(filter: Filter) -> int:
    """Return the depth of a filter; above the limit, any number above the limit."""
    depth, parts, level = 0, 0, [filter]
    while level and depth <= MAX_DEPTH:
        depth += 1
        parts += len(level)
        if parts > MAX_PARTS:
            raise too_many_parts()
        longest_path = max((_path_length(part) for part in level), default=0)
        if depth + longest_path > MAX_DEPTH + 1:  # a path of one key is always allowed
            return depth + longest_path
        level = [part for outer in level for part in _parts_of(outer)]
    return depth


def _count_keys(predicate: Predicate) -> int:
    operand = predicate.operand
    return max(1, len(operand.path)) if isinstance(operand, MetadataOperand) else 1


def _path_length(filter: Filter) -> int:
    if isinstance(filter, Leaf) and isinstance(filter.predicate.operand, MetadataOperand):
        return len(filter.predicate.operand.path)
    return 0


def _parts_of(filter: Filter) -> tuple[Filter, ...]:
    match filter:
        case And(parts) | Or(parts):
            return parts
        case Not(part):
            return (part,)
    return ()
