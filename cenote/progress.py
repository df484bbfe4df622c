"""Progress reports of long operations, and a progress bar for terminals."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["IndexProgress", "LoadProgress", "RecallProgress", "Report", "progress_bar"]

_BAR_WIDTH = 30
_SECONDS_BETWEEN = 0.1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexProgress:
    """Progress of an ANN index build.

    Attributes:
        index: Name of the index that is being built.
        number: Position of this index among those to build, counted from 1.
        of: Number of indexes to build.
        phase: Build phase, as Postgres names it.
        fraction: Completed share of the loading phase, which takes most of the time: 0 before it
            and 1 after it.
    """

    index: str
    number: int
    of: int
    phase: str
    fraction: float

    @property
    def done(self) -> bool:
        """True once every index is built."""
        return self.number == self.of and self.phase == "built"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Progress of a bulk load.

    Attributes:
        chunks: Number of chunks stored so far, including chunks that were stored already.
        done: True in the last report.
    """

    chunks: int
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallProgress:
    """Progress of a recall measurement.

    Attributes:
        queries: Number of query vectors that were searched for in all ways.
        of: Number of query vectors in all namespaces.
    """

    queries: int
    of: int

    @property
    def done(self) -> bool:
        """True in the last report."""
        return self.queries == self.of


Progress = IndexProgress | LoadProgress | RecallProgress
Report = Callable[[Any], None]
"""Callback for progress reports."""


def send_report(report: Report | None, progress: Progress) -> None:
    """Call a progress callback.

    An error in the callback is logged, because it is no reason to abort hours of work.
    """
    if report is None:
        return
    try:
        report(progress)
    except Exception:
        _logger.exception("the progress callback raised an error; the operation continues")


def progress_bar(total: int | None = None, *, stream: TextIO | None = None) -> Report:
    """Return a ``progress=`` callback that draws a progress bar in a terminal.

    Args:
        total: Expected number of chunks. Without it, the bar only shows a count.
        stream: Output stream; standard error if None. Nothing is drawn if it is not a terminal.
    """
    out = sys.stderr if stream is None else stream
    if out is None or not out.isatty():  # a process may have no standard error
        return lambda progress: None
    begin = last = time.monotonic()

    def draw(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN and not progress.done:
            return
        last = now
        if isinstance(progress, IndexProgress):
            text = f"index {progress.number}/{progress.of} {_bar(progress.fraction)} "
            text += progress.phase
        elif isinstance(progress, RecallProgress):
            text = f"query {progress.queries:,} of {progress.of:,} "
            text += _bar(progress.queries / progress.of)
        else:
            text = f"{progress.chunks:,} chunks"
            if total is not None:
                text += f" of {total:,} {_bar(progress.chunks / max(total, 1))}"
            text += f" {progress.chunks / max(now - begin, 1e-9):,.0f}/s"
        print(f"\r\x1b[K{text}", end="\n" if progress.done else "", file=out, flush=True)

    return draw


def _bar(fraction: float) -> str:
    filled = round(min(fraction, 1.0) * _BAR_WIDTH)
    return "[" + "#" * filled + "-" * (_BAR_WIDTH - filled) + "]"
