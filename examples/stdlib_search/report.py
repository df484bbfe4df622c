"""Terminal output: steps with their timings, a progress bar and search results."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rich.bar import Bar
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cenote import Chunk, RetrievalResult

_CODE_STYLE = "cyan"
_QUIET = "bright_black"
_TITLE_WIDTH = 8
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


@dataclass(slots=True)
class Step:
    """A step of the demo. The code that performs it sets `outcome`."""

    outcome: str = ""


class Report:
    """Prints the steps and results of the demo.

    Args:
        console: Console to print to. If it is not a terminal, spinners and bars do not move.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.perf_counter()

    def title(self, text: str) -> None:
        self._console.print()
        self._console.rule(Text(text, "bold"), align="left", style=_QUIET)
        self._console.print()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a spinner while a step runs, then print its outcome and duration."""
        step = Step()
        started = time.perf_counter()
        with self._console.status(title, spinner_style=_CODE_STYLE):
            yield step
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(width=_TITLE_WIDTH)
        line.add_column(ratio=1)
        line.add_column(justify="right")
        line.add_row(Text(title, "bold"), step.outcome, _seconds(time.perf_counter() - started))
        self._console.print(Padding(line, (0, 0, 0, 2)))

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar and yield a function that advances it by a number of chunks."""
        columns = (
            TextColumn(f"  [bold]{title:<{_TITLE_WIDTH + 1}}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("chunks"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, expand=True) as progress:
            task = progress.add_task(title, total=total)
            yield partial(progress.advance, task)

    def question(self, question: str, remark: str, call: str, seconds: float) -> None:
        """Print a question, the call that answers it and the duration of the call."""
        head = Text.assemble("\n", ("? ", "bold green"), (question, "bold"))
        if remark:
            head.append(f"  {remark}", _QUIET)
        self._console.print(head)
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(ratio=1)
        line.add_column(justify="right")
        line.add_row(Text(call, _CODE_STYLE), Text(f"{1000 * seconds:.1f} ms", _QUIET))
        self._console.print(Padding(line, (0, 0, 0, 2)))

    def answers(self, results: Sequence[RetrievalResult], *, lines: int = 1) -> None:
        """Print the results, each with the first lines of its text."""
        if not results:
            self._console.print(
                "  No results: these docstrings contain none of the question's words."
            )
        for result in results:
            metadata, position = result.chunk.metadata, result.chunk.position
            kind = metadata["kind"] + (f", part {position + 1}" if position else "")
            self._console.print(
                Text.assemble(
                    (f"  {result.score:.2f}  ", "yellow"),
                    (metadata["name"], "bold"),
                    (f"  {kind}", _QUIET),
                )
            )
            for text in _beginning(result.chunk, lines):
                line = Text(text, overflow="ellipsis", no_wrap=True)
                self._console.print(Padding(line, (0, 0, 0, 8), expand=False))

    def code(self, code: str) -> None:
        self._console.print(Padding(Text(code, _CODE_STYLE), (0, 0, 0, 2), expand=False))

    def counts(self, rows: Sequence[tuple[str, int]]) -> None:
        """Print each name with its count and a bar."""
        highest = max((count for _, count in rows), default=1)
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right", style="yellow")
        table.add_column(width=24)
        for name, count in rows:
            table.add_row(Text(name, "bold"), str(count), Bar(highest, 0, count, color=_CODE_STYLE))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def text(self, text: str) -> None:
        self._console.print()
        self._console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))

    def end(self, text: str) -> None:
        elapsed = time.perf_counter() - self._started
        self._console.print()
        for line in (*text.splitlines(), f"Total time: {elapsed:.1f} seconds."):
            self._console.print(Padding(Text(line, _QUIET), (0, 0, 0, 2), expand=False))


def _seconds(seconds: float) -> Text:
    return Text(f"{seconds:.1f} s", _QUIET)


def _beginning(chunk: Chunk, lines: int) -> list[str]:
    """Return the first sentence if `lines` is 1, otherwise up to this many lines of the text."""
    text = chunk.content.strip()
    if lines == 1:
        return [_SENTENCE_END.split(" ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]]
    nonblank = [line for line in text.splitlines() if line.strip()]
    return nonblank if len(nonblank) <= lines else [*nonblank[: lines - 1], "..."]
