"""Show a recall report as a table or as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from cenote.errors import ConfigurationError
from cenote.models import RecallPoint, RecallReport

_PICTURE_FORMATS = (".pdf", ".png", ".svg")

_LONGEST_NAME = 32
"""Number of characters of a namespace that are shown."""

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c564b",
    "#7f7f7f",
    "#9467bd",
    "#bcbd22",
)
"""Colours of the namespaces. The first six can be told apart by colour-blind people."""


def table_of_report(report: RecallReport, requested: Sequence[int]) -> str:
    """Return a report as text for a terminal: a table of recalls and one of durations.

    Args:
        report: The report.
        requested: Values that the user asked for. Searches may have raised them.
    """
    lines = []
    if report.namespaces:
        queries = "stored rows as queries" if report.sampled else "your own queries"
        lines.append(
            f"recall@{report.limit} by {report.setting}, with {queries} "
            f"(index of kind {report.kind})"
        )
        lines += _aligned(_rows(report, lambda point: f"{point.recall:.4f}", exact=False))
        lines += ["", f"p50 in milliseconds by {report.setting}"]
        lines += _aligned(_rows(report, lambda point: f"{point.p50_ms:.2f}", exact=True))
        lines.append("")
        least = report.value(report.points[0])
        if report.kind == "bit":
            if not {*requested} <= {*map(report.value, report.points)}:
                lines.append(
                    f"a search for {report.limit} results raises rerank to at least {least}, and "
                    "to the next 1, 2 or 5 times a power of ten"
                )
        elif min(requested) < least:
            lines.append(
                f"a search for {report.limit} results uses an ef_search of at least {least}: "
                "smaller values were raised to it"
            )
    else:
        lines.append("nothing was measured: every search in these namespaces is exact")
    for number, reason in (
        (len(report.exact), "with up to 1,000 chunks, where every search is exact"),
        (len(report.left_out), "that are smaller than the measured ones"),
    ):
        if number:
            lines.append(f"not measured: {number:,} namespace{'s'[: number > 1]} {reason}")
    return "\n".join(lines).rstrip()


def _rows(
    report: RecallReport, cell: Callable[[RecallPoint], str], *, exact: bool
) -> Iterator[list[str]]:
    """Yield the rows of a table: a header, one row for each namespace, and the whole."""
    values = map(str, map(report.value, report.points))
    header = ["namespace", "chunks", "queries", *values]
    yield header + ["exact"] * exact
    for measured in report.namespaces:
        row = [_label(measured.namespace), f"{measured.rows:,}", f"{measured.queries:,}"]
        row += map(cell, measured.points)
        yield row + [f"{measured.exact_p50_ms:.2f}"] * exact
    rows = sum(measured.rows for measured in report.namespaces)
    queries = sum(measured.queries for measured in report.namespaces)
    yield ["all", f"{rows:,}", f"{queries:,}", *map(cell, report.points)] + [
        f"{report.exact_p50_ms:.2f}"
    ] * exact


def _aligned(rows: Iterator[list[str]]) -> list[str]:
    """Return the rows as lines: the first column to the left, all others to the right."""
    cells = list(rows)
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [row[0] + " " * (widths[0] - _width(row[0]))]
            + [value.rjust(width) for value, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in cells
    ]


def _width(text: str) -> int:
    """Return the number of columns that a text takes in a terminal."""
    return sum(2 if east_asian_width(letter) in "FW" else 1 for letter in text)


def _label(namespace: str) -> str:
    """Return a namespace without control characters, and shortened."""
    label = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in namespace
    )
    return label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 3] + "..."


# -- picture ---------------------------------------------------------------------------------------


def check_picture(file: Path) -> None:
    """Check that a picture can be written, before minutes of measuring.

    Raises:
        ConfigurationError: matplotlib is missing, the folder does not exist, or the file's ending
            is no supported format.
    """
    if file.suffix.lower() not in _PICTURE_FORMATS:
        raise ConfigurationError(
            f"a picture must end in one of {', '.join(_PICTURE_FORMATS)}", setting="picture"
        )
    if not file.parent.is_dir():
        raise ConfigurationError(f"there is no folder {file.parent}", setting="picture")
    if find_spec("matplotlib") is None:
        raise ConfigurationError(
            "a picture requires matplotlib: pip install 'cenote[plot]'", setting="picture"
        )


def draw(report: RecallReport, file: Path, target: float | None = None) -> None:
    """Draw recall and duration by measured value into a file.

    Args:
        report: Report with at least one measured namespace.
        file: Picture to write; its ending determines the format.
        target: Recall to mark with a line.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A namespace may contain "$", which would start a formula.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 10}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        recall, duration = figure.subplots(1, 2)
        ticks = range(len(report.points))
        for number, measured in enumerate(report.namespaces):
            # A label that began with "_" would be left out of the legend.
            label = f"{measured.rows:,} chunks: {_label(measured.namespace)}"
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": "o", "markersize": 4}
            _plot(recall, duration, measured.points, label=label, **style)
        if len(report.namespaces) > 1:
            _plot(
                recall,
                duration,
                report.points,
                label="all namespaces",
                color="black",
                linewidth=2.5,
            )
        if target is not None:
            recall.axhline(target, color="black", linestyle="--", linewidth=1)
            recall.annotate(
                f"target {target:g}",
                (1, target),
                (-4, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
            )
        assert report.exact_p50_ms is not None
        # As a line, it would flatten all others: an exact search may take 50 times as long.
        exact = f"exact search: {report.exact_p50_ms:.1f}"
        duration.set_ylim(bottom=0)
        for axes, title in (
            (recall, f"recall@{report.limit}"),
            (duration, f"p50 in milliseconds ({exact})"),
        ):
            axes.set_title(title, loc="left")
            axes.set_xlabel(report.setting)
            axes.set_xticks(ticks, [str(report.value(point)) for point in report.points])
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*recall.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        queries = "stored rows as queries" if report.sampled else "own queries"
        figure.suptitle(f"{report.table}: recall of the ANN index, {queries}")
        try:
            with warnings.catch_warnings():
                # A font may lack letters of a namespace.
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                figure.savefig(file, dpi=150)
        except OSError as error:
            raise ConfigurationError(
                f"the picture cannot be written: {error.strerror}", setting="picture"
            ) from error


def _plot(recall: Any, duration: Any, points: Sequence[RecallPoint], **style: Any) -> None:
    ticks = range(len(points))
    recall.plot(ticks, [point.recall for point in points], **style)
    duration.plot(ticks, [point.p50_ms for point in points], **style)
