"""The comment on an ANN index that records a measured ``ef_search`` or `rerank`.

The comment belongs to the index: pg_dump copies it, and it disappears when the index is dropped. An
example::

    cenote recall: {"ef_search": 100, "recall": 0.9853, "rows": 50000, "date": "2026-11-28"}

The comment on an index of kind ``"bit"`` also has the number of candidates, ``"rerank"``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from cenote.validation.arguments import MAX_EF_SEARCH, MAX_RERANK, is_integer, is_number

PREFIX = "cenote recall: "
"""Start of the comment. Every other comment belongs to the user."""

_KEYS = {"ef_search", "recall", "rows", "date"}

_MAX_LENGTH = 500
"""Maximum length of the comment, many times longer than one that cenote writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRecall:
    """A measured ``ef_search``, or a measured `rerank`.

    Attributes:
        ef_search: Smallest measured value that reached the target. For kind ``"bit"``, the value
            that searches used with this `rerank`.
        recall: Recall of the worst namespace with this value.
        rows: Number of rows of the table at that time.
        date: Day of the measurement, in UTC.
        rerank: Smallest measured number of candidates of an index of kind ``"bit"`` that reached
            the target; None for other kinds.
    """

    ef_search: int
    recall: float
    rows: int
    date: date
    rerank: int | None = None

    @property
    def setting(self) -> str:
        """Name of the setting whose values were measured."""
        return "ef_search" if self.rerank is None else "rerank"

    def comment(self) -> str:
        """Return the comment that records the measurement."""
        recall = int(self.recall * 10_000) / 10_000  # rounded down
        values = asdict(self) | {"recall": recall, "date": self.date.isoformat()}
        if self.rerank is None:
            del values["rerank"]
        return PREFIX + json.dumps(values)


def parse_comment(comment: str | None) -> MeasuredRecall | None:
    """Return the measurement that a comment records; None for every other comment."""
    if comment is None or not comment.startswith(PREFIX) or len(comment) > _MAX_LENGTH:
        return None
    try:
        values: Any = json.loads(comment.removeprefix(PREFIX))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.keys() - {"rerank"} != _KEYS:
        return None
    rerank = values.get("rerank")
    day = _parse_date(values["date"])
    if (
        day is None
        or not is_integer(values["ef_search"], 1, MAX_EF_SEARCH)
        or not is_number(values["recall"], 0, 1)
        or not is_integer(values["rows"], 0, 2**63 - 1)
        or not (rerank is None or is_integer(rerank, 1, MAX_RERANK))
    ):
        return None
    return MeasuredRecall(
        ef_search=values["ef_search"],
        recall=values["recall"],
        rows=values["rows"],
        date=day,
        rerank=rerank,
    )


def _parse_date(text: Any) -> date | None:
    try:
        day = date.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return day if day.isoformat() == text else None
