"""The metadata index of the in-memory store: for each key and value, the rows that have it.

The cost of a filter depends on the index entries of the keys that it names, not on the number of
stored chunks. Only predicates on columns check every row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cenote.filters.language import And, Filter, Leaf, Not, Or
from cenote.filters.operands import ColumnOperand, MetadataOperand, Row, json_token
from cenote.filters.predicates import Equals, IsOneOf, Match, Predicate

Rows: TypeAlias = NDArray[np.intp]
Mask: TypeAlias = NDArray[np.bool_]
Posting: TypeAlias = tuple[str, Hashable]
"""A metadata key and the token of its value; see `cenote.filters.operands.json_token`."""

_NO_FIELDS: Mapping[str, Any] = {}


def postings(metadata: Mapping[str, Any]) -> frozenset[Posting]:
    """Return the index entries of a row."""
    return frozenset((key, json_token(value)) for key, value in metadata.items())


@dataclass(slots=True)
class _Entry:
    """The rows that have one value under a key.

    An entry can be used as a `Row` whose metadata is just that key and value, so a predicate is
    evaluated once per distinct value.
    """

    metadata: Mapping[str, Any]
    rows: set[int] = field(default_factory=set)
    array: Rows | None = None

    fields = _NO_FIELDS

    def as_array(self) -> Rows:
        """Return the row numbers as an array, in no particular order."""
        if self.array is None:
            self.array = np.fromiter(self.rows, dtype=np.intp, count=len(self.rows))
        return self.array


class PostingIndex:
    """An index that finds row numbers by filter."""

    def __init__(self) -> None:
        self._keys: defaultdict[str, dict[Hashable, _Entry]] = defaultdict(dict)

    def add(self, number: int, metadata: Mapping[str, Any]) -> frozenset[Posting]:
        """Add a row and return its index entries, which :meth:`remove` requires."""
        entries_added = postings(metadata)
        for key, token in entries_added:
            entries = self._keys[key]
            entry = entries.get(token)
            if entry is None:
                entry = entries[token] = _Entry({key: metadata[key]})
            entry.rows.add(number)
            entry.array = None
        return entries_added

    def remove(self, number: int, entries_added: frozenset[Posting]) -> None:
        """Remove a row, given the index entries that :meth:`add` returned for it."""
        for key, token in entries_added:
            entry = self._keys[key][token]
            entry.rows.discard(number)
            entry.array = None
            if not entry.rows:
                del self._keys[key][token]
                if not self._keys[key]:
                    del self._keys[key]

    def find(self, filter: Filter, present: Mask, rows: Sequence[Row | None]) -> Rows:
        """Return the numbers of the rows that match a filter, in no particular order.

        Args:
            filter: Filter to apply.
            present: Mask of the row numbers that are in use.
            rows: Rows by number.
        """
        if isinstance(filter, Leaf) and isinstance(filter.predicate, Match):
            return self._matching(filter.predicate, len(present))
        return np.flatnonzero(self._mask(filter, present, rows) & present)

    def _mask(self, filter: Filter, present: Mask, rows: Sequence[Row | None]) -> Mask:
        match filter:
            case Leaf(predicate):
                mask = np.zeros(len(present), dtype=np.bool_)
                for numbers in self._rows_where(predicate, present, rows):
                    mask[numbers] = True
                return mask
            case And(parts):
                mask = np.ones(len(present), dtype=np.bool_)
                for part in parts:
                    mask &= self._mask(part, present, rows)
                return mask
            case Or(parts):
                mask = np.zeros(len(present), dtype=np.bool_)
                for part in parts:
                    mask |= self._mask(part, present, rows)
                return mask
            case Not(part):
                return ~self._mask(part, present, rows)
        raise TypeError(type(filter).__name__)

    def _rows_where(
        self, predicate: Predicate, present: Mask, rows: Sequence[Row | None]
    ) -> Iterator[Rows | list[int]]:
        """Return an iterator over groups of rows for which a predicate is true."""
        if isinstance(predicate, Match):
            yield self._matching(predicate, len(present))
        elif isinstance(predicate.operand, ColumnOperand):
            yield [number for number, row in enumerate(rows) if row and predicate.holds(row)]
        elif (tokens := _wanted_tokens(predicate)) is not None:
            entries = self._keys.get(predicate.operand.path[0], {})
            for token in _in_both(tokens, entries):
                yield entries[token].as_array()
        else:
            for entry in self._keys.get(predicate.operand.path[0], {}).values():
                if predicate.holds(entry):
                    yield entry.as_array()

    def _matching(self, predicate: Match, count: int) -> Rows:
        """Intersect the rows of all entries, starting with the shortest list."""
        found = [self._keys.get(key, {}).get(token) for key, token in predicate.tokens]
        if any(entry is None for entry in found):
            return np.empty(0, dtype=np.intp)
        arrays = sorted((entry.as_array() for entry in found if entry is not None), key=len)
        if not arrays:
            return np.arange(count, dtype=np.intp)
        rows = arrays[0]
        for other in arrays[1:]:
            mask = np.zeros(count, dtype=np.bool_)
            mask[other] = True
            rows = rows[mask[rows]]
        return rows


def _in_both(tokens: frozenset[Hashable], entries: Mapping[Hashable, _Entry]) -> Iterator[Hashable]:
    """Iterate over the tokens that have an entry."""
    if len(tokens) < len(entries):
        return (token for token in tokens if token in entries)
    return (token for token in entries if token in tokens)


def _wanted_tokens(predicate: Predicate) -> frozenset[Hashable] | None:
    """Return the tokens of a key's wanted values; None if every value must be checked."""
    operand = predicate.operand
    if not isinstance(operand, MetadataOperand) or len(operand.path) != 1:
        return None
    match predicate:
        case Equals():
            return frozenset((json_token(predicate.wanted),))
        case IsOneOf():
            return predicate.tokens
    return None
