"""Filter chunks by metadata and columns, with expressions or dicts."""

from cenote.filters.language import (
    MAX_DEPTH,
    MAX_PREDICATES,
    Field,
    Filter,
    FilterLike,
    Meta,
    field,
    meta,
)

__all__ = ["MAX_DEPTH", "MAX_PREDICATES", "Field", "Filter", "FilterLike", "Meta", "field", "meta"]
