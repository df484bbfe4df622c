"""Translation of LlamaIndex filters to cenote filters.

`MetadataFilters`, which may be nested, mean the same as in LlamaIndex's `SimpleVectorStore`. These
rules apply where that store raises an error or contradicts LlamaIndex's documentation:

==========================  ==================================================================
LlamaIndex                  Meaning
==========================  ==================================================================
``EQ``, ``IN``              1 and 0 also match ``True`` and ``False``, because LlamaIndex filters
                            have no boolean values
``NE``, ``NIN``             The opposite. They also match if the key is missing or null.
``GT`` ... ``LTE``          Compare numbers with numbers and texts with texts. Other pairs and
                            booleans do not match.
``CONTAINS``, ``ANY``,      Match lists only. Use ``TEXT_MATCH`` to find a text in a text.
``ALL``
``TEXT_MATCH``              Matches a substring, without wildcards.
``TEXT_MATCH_INSENSITIVE``  Matches a substring and ignores the case of A to Z. Other letters match
                            as given, in lower case, in upper case, or in title case.
``IS_EMPTY``                Matches if the key is missing or null, or the value is ``""`` or ``[]``.
conditions                  ``NOT`` matches if none of its filters does. An empty list of filters
                            matches everything.
values                      LlamaIndex itself accepts numbers, texts and lists of them only. Convert
                            other values as `cenote.adapters.metadata` does: for a datetime with a
                            time zone, ``at.astimezone(timezone.utc).isoformat()``.
keys                        ``ref_doc_id``, ``doc_id`` and ``document_id`` are the document's id, or
                            the node's own id if it has no document. Keys are not paths.
errors                      A value of None (except for ``IS_EMPTY``), a value that is not a list
                            where a list is required, and ``ALL`` with an empty list are rejected.
==========================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from cenote.adapters._arguments import substring_pattern
from cenote.adapters.metadata import json_operand
from cenote.errors import InvalidInputError
from cenote.filters.language import MAX_DEPTH, MAX_PARTS, And, Filter, Not, Or, field, meta
from cenote.validation.arguments import safe_repr


def as_filter(filters: MetadataFilters) -> Filter:
    """Translate LlamaIndex filters to a cenote filter.

    Raises:
        InvalidInputError: A filter is invalid. The error names its key.
    """
    return _translate_group(filters, 0, count())


def check_filters(filters: Any) -> None:
    """Check that an object is a `MetadataFilters`.

    Raises:
        InvalidInputError: It is another object, such as a dict.
    """
    if not isinstance(filters, MetadataFilters) or not isinstance(filters.filters, list):
        raise _error(f"filters must be MetadataFilters, not {type(filters).__name__}")


def _translate_group(filters: MetadataFilters, depth: int, part_numbers: Iterator[int]) -> Filter:
    check_filters(filters)
    if depth > MAX_DEPTH:
        raise _error(f"the filters are nested more than {MAX_DEPTH} levels deep")
    if next(part_numbers) >= MAX_PARTS:  # a shared part counts each time
        raise _error(f"the filters have more than {MAX_PARTS:,} parts")
    parts = tuple(
        _translate(part)
        if isinstance(part, MetadataFilter)
        else _translate_group(part, depth + 1, part_numbers)
        for part in filters.filters
    )
    if filters.condition == FilterCondition.OR and parts:
        return Or(parts)
    if filters.condition == FilterCondition.NOT:
        return Not(Or(parts))
    return And(parts)


def _equal_values(value: Any) -> list[Any]:
    """Return the JSON values that equal a filter's value in Python: 1 equals True."""
    return [value, bool(value)] if value in (0, 1) else [value]


def _all_equal_values(values: Any) -> Any:
    if not isinstance(values, list):
        return values  # in_() rejects it
    return [equal for value in values for equal in _equal_values(value)]


def _text_match_insensitive(key: Any, value: Any) -> Filter:
    if not isinstance(value, str) or value.isascii():
        return key.ilike(substring_pattern(value))  # type: ignore[no-any-return]
    # ilike() ignores the case of A to Z only.
    spellings = {value, value.lower(), value.upper(), value.title()}
    reversible = sorted(text for text in spellings if text.lower() == value.lower())
    return Or(tuple(key.ilike(substring_pattern(text)) for text in reversible))


_PREDICATES: dict[FilterOperator, Callable[[Any, Any], Filter]] = {
    FilterOperator.EQ: lambda key, value: key.in_(_equal_values(value)),
    FilterOperator.NE: lambda key, value: key.not_in(_equal_values(value)),
    FilterOperator.GT: lambda key, value: key > value,
    FilterOperator.GTE: lambda key, value: key >= value,
    FilterOperator.LT: lambda key, value: key < value,
    FilterOperator.LTE: lambda key, value: key <= value,
    FilterOperator.IN: lambda key, value: key.in_(_all_equal_values(value)),
    FilterOperator.NIN: lambda key, value: key.not_in(_all_equal_values(value)),
    FilterOperator.TEXT_MATCH: lambda key, value: key.like(substring_pattern(value)),
    FilterOperator.TEXT_MATCH_INSENSITIVE: _text_match_insensitive,
}

_METADATA_PREDICATES: dict[FilterOperator, Callable[[Any, Any], Filter]] = {
    FilterOperator.CONTAINS: lambda key, value: key.contains(value),
    FilterOperator.ANY: lambda key, value: key.any_of(value),
    FilterOperator.ALL: lambda key, value: key.all_of(value),
    FilterOperator.IS_EMPTY: lambda key, _: ~key.exists() | key.in_([None, "", []]),
}


def _translate(part: MetadataFilter) -> Filter:
    if part.value is None and part.operator != FilterOperator.IS_EMPTY:
        raise _error(
            f"the filter by {safe_repr(part.key)} has no value: use IS_EMPTY to find missing values"
        )
    value: Any = None
    if part.operator != FilterOperator.IS_EMPTY:
        value = json_operand(part.value, f"filter key {safe_repr(part.key)}")
    if part.key not in ("ref_doc_id", "doc_id", "document_id"):
        return (_PREDICATES | _METADATA_PREDICATES)[part.operator](meta(part.key), value)
    if part.operator not in _PREDICATES:
        raise _error(
            f"{safe_repr(part.key)} is the document's id, a text, which does not support the "
            f"operator {part.operator.name}"
        )
    return _PREDICATES[part.operator](field("document_id"), value)


def _error(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="filters")
