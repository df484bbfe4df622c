"""How far a long operation is, and a bar that shows it to people."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["IndexProgress", "LoadProgress", "Report", "progress_bar"]

_BAR_WIDTH = 30
_SECONDS_BETWEEN = 0.1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexProgress:
    """How far the build of an ANN index is.

    Attributes:
        index: the part that is being built.
        number: which one it is, from 1.
        of: how many there are.
        phase: Postgres' own words.
        fraction: of the loading, which takes most of the time; 0 before and 1 after it.
    """

    index: str
    number: int
    of: int
    phase: str
    fraction: float

    @property
    def done(self) -> bool:
        """Whether all parts are built."""
        return self.number == self.of and self.phase == "built"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far a bulk load is.

    Attributes:
        chunks: how many were stored so far, those included that were stored already.
        done: whether there are no more.
    """

    chunks: int
    done: bool = False


Progress = IndexProgress | LoadProgress
Report = Callable[[Any], None]
"""Takes what a long operation has to tell."""


def tell(report: Report | None, progress: Progress) -> None:
    """Call a callback; what it raises is logged, and no reason to give up hours of work."""
    if report is None:
        return
    try:
        report(progress)
    except Exception:
        _logger.exception("the progress callback failed")


def progress_bar(total: int | None = None, *, stream: TextIO | None = None) -> Report:
    """A ``progress=`` callback that keeps a line up to date where somebody looks at a terminal.

    Args:
        total: how many chunks are to come, if that is known; otherwise they are only counted.
        stream: where to draw; standard error when None. Nothing is drawn where that is no terminal.
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
