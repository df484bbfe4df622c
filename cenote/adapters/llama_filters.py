"""LlamaIndex's filters as cenote's.

`MetadataFilters`, which may be nested, mean what LlamaIndex's `SimpleVectorStore` makes of them.
Where that raises, or is not what LlamaIndex says of them, this holds:

==========================  ==================================================================
``EQ``, ``IN``              also of ``True`` and ``False``, by 1 and 0: LlamaIndex has no other
                            way to ask for them
``NE``, ``NIN``             the opposite: also where the key is missing or null
``GT`` ... ``LTE``          numbers with numbers, texts with texts; what does not compare (also
                            booleans) does not match
``CONTAINS``, ``ANY``,      of lists only: a text in a text is what ``TEXT_MATCH`` is for
``ALL``
``TEXT_MATCH``              a piece of a text; nothing in it has a special meaning
``TEXT_MATCH_INSENSITIVE``  the same; letters beyond A to Z match as they are given, all small, all
                            capital, or capital where words begin
``IS_EMPTY``                the key is missing or null, or the value is ``""`` or ``[]``
conditions                  ``NOT`` holds if none of its filters does; no filters filter nothing
keys                        ``ref_doc_id``, ``doc_id`` and ``document_id`` are the document's id
                            (a node's own where it has no document); no key is a path
refused                     a value that is None (but of ``IS_EMPTY``), no list where one is
                            needed, ``ALL`` of none
==========================  ==================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from cenote.errors import InvalidInputError
from cenote.filters import MAX_DEPTH, MAX_PARTS, And, Filter, Not, Or, field, meta
from cenote.validation import shown


def as_filter(filters: MetadataFilters) -> Filter:
    """What they mean.

    Raises:
        InvalidInputError: a filter cannot work; names its key.
    """
    return _joined(filters, 0, count())


def check_filters(filters: Any) -> None:
    """Refuse what is none of LlamaIndex's, such as a dict."""
    if not isinstance(filters, MetadataFilters) or not isinstance(filters.filters, list):
        raise _bad(f"filters must be MetadataFilters, not {type(filters).__name__}")


def _joined(filters: MetadataFilters, depth: int, number: Iterator[int]) -> Filter:
    check_filters(filters)
    if depth > MAX_DEPTH:
        raise _bad(f"the filters are nested more than {MAX_DEPTH} deep")
    if next(number) >= MAX_PARTS:  # one may be in several places
        raise _bad(f"the filters have more than {MAX_PARTS:,} parts")
    parts = tuple(
        _test(one) if isinstance(one, MetadataFilter) else _joined(one, depth + 1, number)
        for one in filters.filters
    )
    if filters.condition == FilterCondition.OR and parts:
        return Or(parts)
    if filters.condition == FilterCondition.NOT:
        return Not(Or(parts))
    return And(parts)


def _alike(value: Any) -> list[Any]:
    """What Python takes for equal to a value of a filter."""
    return [value, bool(value)] if value in (0, 1) else [value]


def _all_alike(values: Any) -> Any:
    if not isinstance(values, list):
        return values  # which is refused where it is used
    return [one for value in values for one in _alike(value)]


def _piece(value: Any) -> Any:
    """A pattern for texts that have a text in them."""
    return "%" + re.sub(r"[\\%_]", r"\\\g<0>", value) + "%" if isinstance(value, str) else value


def _in_any_case(key: Any, value: Any) -> Filter:
    if not isinstance(value, str) or value.isascii():
        return key.ilike(_piece(value))  # type: ignore[no-any-return]
    cases = {value, value.lower(), value.upper(), value.title()}
    same = sorted(one for one in cases if one.lower() == value.lower())
    return Or(tuple(key.ilike(_piece(one)) for one in same))


_TESTS: dict[FilterOperator, Callable[[Any, Any], Filter]] = {
    FilterOperator.EQ: lambda key, value: key.in_(_alike(value)),
    FilterOperator.NE: lambda key, value: key.not_in(_alike(value)),
    FilterOperator.GT: lambda key, value: key > value,
    FilterOperator.GTE: lambda key, value: key >= value,
    FilterOperator.LT: lambda key, value: key < value,
    FilterOperator.LTE: lambda key, value: key <= value,
    FilterOperator.IN: lambda key, value: key.in_(_all_alike(value)),
    FilterOperator.NIN: lambda key, value: key.not_in(_all_alike(value)),
    FilterOperator.TEXT_MATCH: lambda key, value: key.like(_piece(value)),
    FilterOperator.TEXT_MATCH_INSENSITIVE: _in_any_case,
}

_TESTS_OF_METADATA: dict[FilterOperator, Callable[[Any, Any], Filter]] = {
    FilterOperator.CONTAINS: lambda key, value: key.contains(value),
    FilterOperator.ANY: lambda key, value: key.any_of(value),
    FilterOperator.ALL: lambda key, value: key.all_of(value),
    FilterOperator.IS_EMPTY: lambda key, _: ~key.exists() | key.in_([None, "", []]),
}


def _test(asked: MetadataFilter) -> Filter:
    if asked.value is None and asked.operator != FilterOperator.IS_EMPTY:
        raise _bad(
            f"the filter of {shown(asked.key)} has no value; IS_EMPTY asks whether there is none"
        )
    if asked.key not in ("ref_doc_id", "doc_id", "document_id"):
        return (_TESTS | _TESTS_OF_METADATA)[asked.operator](meta(asked.key), asked.value)
    if asked.operator not in _TESTS:
        raise _bad(
            f"{shown(asked.key)} is the document's id, a text, of which "
            f"{asked.operator.name} cannot be asked"
        )
    return _TESTS[asked.operator](field("document_id"), asked.value)


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="filters")
