"""Upgrade, inspect and check the schema of a chunk table from code.

The functions take an engine or a connection. The command line offers the same:
``cenote migrate upgrade head``, ``cenote migrate current`` and ``cenote check``.
"""

from cenote.inspection.checks.findings import Finding
from cenote.migrate.api import check, current, upgrade

__all__ = ["Finding", "check", "current", "upgrade"]
