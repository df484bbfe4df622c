"""Hints of a store about its namespaces and filters, for short search statements.

These are hints only: a statement that uses them also proves that its result is complete, and a
search without that proof runs the statement that needs no hints. See
`cenote.stores.pgvector.sql.partition_search`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cenote.stores.pgvector.sql.partition_search import Strategy
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO

_MAX_HINTS = 10_000
"""Maximum number of namespaces, and of filters, that a store remembers: about 5 MB."""

_MAX_USES = 100
_MAX_SECONDS = 600.0
"""Number of searches and seconds after which a hint about a large namespace or a filter ends.

A small namespace that grows is noticed at once, because the statement ``"small"`` counts. A large
one that shrinks, and one of more than `_COMPARED_BY_KEY` rows that is only searched with filters,
is noticed by the next search without a hint.
"""

_COMPARED_BY_KEY = 300
"""Maximum number of rows of a namespace for which a filtered search reads all of its rows.

Reading them is then as fast as planning for the filter's values. Measured on 250 and 500 rows.
"""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a namespace is.

    Attributes:
        partition: Name of the partition, or of a chunk table without partitions.
        rows: Number of rows, counted up to `EXACT_UP_TO` + 1; None if unknown.
        falls_short_at: Smallest number of rows to fetch that the ANN scan alone did not find; None
            if it always found them.
    """

    partition: str
    rows: int | None
    falls_short_at: int | None = None


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value
    uses: int
    ends: float


class _Memory(Generic[Value]):
    """A bounded mapping whose entries end after some uses or seconds, for several threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, _Entry[Value]] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry.uses == 0 or time.monotonic() > entry.ends:
                del self._entries[key]
                return None
            entry.uses -= 1
            self._entries.move_to_end(key)
            return entry.value

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._entries[key] = _Entry(value, _MAX_USES, time.monotonic() + _MAX_SECONDS)
            self._entries.move_to_end(key)
            if len(self._entries) > _MAX_HINTS:
                self._entries.popitem(last=False)

    def refresh(self, key: Hashable, value: Value) -> None:
        """Replace a value that a search has confirmed. Its entry still ends after some seconds."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.put(key, value)
            else:
                entry.value, entry.uses = value, _MAX_USES

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._entries.pop(key, None)


class SearchHints:
    """Hints of one store."""

    def __init__(self) -> None:
        self.places: _Memory[Place] = _Memory()
        self.filters: _Memory[Strategy] = _Memory()

    def strategy(
        self,
        place: Place,
        filter_key: Hashable | None,
        *,
        fetch: int | None,
        per_document: bool,
    ) -> Strategy:
        """Return how to search a namespace.

        Args:
            place: Where the namespace is.
            filter_key: Key of the filter in :attr:`filters`; None without a filter.
            fetch: Number of rows for the ANN scan to find; None for an exact search.
            per_document: True if the number of results per document is limited.
        """
        small = place.rows is not None and place.rows <= EXACT_UP_TO
        if filter_key is None:
            if small or fetch is None:
                return "small"
            falls_short = place.falls_short_at is not None and fetch >= place.falls_short_at
            unknown = place.rows is None or falls_short
            return "either" if per_document or unknown else "ann"
        if small or fetch is None:
            few = place.rows is not None and place.rows <= _COMPARED_BY_KEY
            return "small" if few else "exact"
        if per_document:
            return "either"
        return self.filters.get(filter_key) or "either"
