"""The filter language: conditions that select chunks to search, iterate over or delete.

A filter is a dict, or an expression built from :func:`meta` (a value of the metadata) and
:func:`field` (a column of the chunk) with ``&``, ``|`` and ``~``::

    {"lang": "es"}
    {"year": {"$gte": 2020}, "$or": [{"lang": "es"}, {"lang": {"$exists": False}}]}
    (meta("year") >= 2020) & ~meta("tags").contains("draft") & (field("position") == 0)

A filter either matches a chunk or does not; there is no third value as in SQL. ``~`` and ``!=``
match all other chunks, including those that lack the key. `cenote.filters.predicates` defines what
each predicate means, in Python and in SQL.
"""

from cenote.filters.language import (
    MAX_DEPTH,
    MAX_PREDICATES,
    MAX_VALUE_BYTES,
    Field,
    Filter,
    FilterLike,
    Meta,
    field,
    meta,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_PREDICATES",
    "MAX_VALUE_BYTES",
    "Field",
    "Filter",
    "FilterLike",
    "Meta",
    "field",
    "meta",
]
