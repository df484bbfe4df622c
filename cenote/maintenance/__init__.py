"""Rebuild, move and reconfigure a chunk table while the application uses it."""

from cenote.maintenance.distribution import distribute
from cenote.maintenance.full_text import set_text_search
from cenote.maintenance.reindexing import reindex, reindex_plan
from cenote.maintenance.repartitioning import repartition
from cenote.maintenance.row_security import set_row_security

__all__ = [
    "distribute",
    "reindex",
    "reindex_plan",
    "repartition",
    "set_row_security",
    "set_text_search",
]
