"""Rebuild, move and reconfigure a chunk table while the application uses it."""

from cenote.maintenance.distribute import distribute
from cenote.maintenance.full_text import set_text_search
from cenote.maintenance.reindex import reindex, reindex_plan
from cenote.maintenance.repartition import repartition
from cenote.maintenance.row_security import set_row_security

__all__ = [
    "distribute",
    "reindex",
    "reindex_plan",
    "repartition",
    "set_row_security",
    "set_text_search",
]
