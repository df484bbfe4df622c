"""Draw the ratios of a comparison in five pictures. Requires matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator

Result = dict[str, Any]

# Okabe and Ito's palette, which people with any kind of colour vision can distinguish.
COLOURS = {
    "cenote": "#0072B2",
    "cenote-measured": "#0072B2",
    "complete": "#56B4E9",
    "floor": "#000000",
    "floor-exact": "#7F7F7F",
    "original": "#E69F00",
    "langchain": "#D55E00",
    "langchain-tuned": "#D55E00",
    "llama-index": "#009E73",
    "llama-index-tuned": "#009E73",
    "vecs": "#CC79A7",
    "vecs-tuned": "#CC79A7",
}
LABELS = {
    "cenote": "cenote",
    "cenote-measured": "cenote, measured ef_search",
    "complete": "the SQL of cenote alone",
    "floor": "hand-written SQL, HNSW index",
    "floor-exact": "hand-written SQL, no index",
    "original": "first version of cenote",
    "langchain": "langchain-postgres",
    "langchain-tuned": "langchain-postgres, tuned",
    "llama-index": "LlamaIndex",
    "llama-index-tuned": "LlamaIndex, tuned",
    "vecs": "vecs",
    "vecs-tuned": "vecs, tuned",
}
"""Names for readers who do not know the names of the contenders."""
_SIZE = (9.0, 4.8)  # 900 pixels wide
_UNDATED: Any = {"Date": None}  # the same numbers always produce the same file
_GAP = 0.045
"""Minimum distance between two labels, relative to the height of the picture."""


_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "svg.hashsalt": "cenote",
    "svg.fonttype": "none",
}


def draw(result: Result, folder: Path) -> None:
    """Draw the pictures for which the run has numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(_STYLE):
        if any(cell["contenders"] for cell in result["cells"]):
            for measure in ("completeness", "recall"):
                _save(folder / f"{measure}.svg", _by_share, result, measure)
            _save(folder / "recall_and_latency.svg", _recall_and_latency, result)
        if "upsert" in result and "clients" in result:
            _save(folder / "throughput.svg", _throughput, result)
        if "clients" in result:
            _save(folder / "client_cpu.svg", _client_cpu, result)


@contextmanager
def pair_of_axes(file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield two axes side by side, and write the picture at the end."""
    with plt.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=_SIZE)
        yield left, right
        figure.tight_layout(w_pad=6)
        figure.savefig(file, bbox_inches="tight", metadata=_UNDATED)
        plt.close(figure)


def _save(file: Path, paint: Callable[..., None], *arguments: Any) -> None:
    figure, axes = plt.subplots(figsize=_SIZE)
    paint(axes, *arguments)
    figure.savefig(file, bbox_inches="tight", metadata=_UNDATED)
    plt.close(figure)


def _by_share(axes: Any, result: Result, measure: str) -> None:
    """Draw a line over the tenants' shares for each contender, labelled at the smallest tenant."""
    cells = [c for c in result["cells"] if c["filter"] == "none" and c["limit"] == 10]
    cells = sorted((c for c in cells if c["contenders"]), key=lambda cell: -cell["share"])
    shares = [cell["share"] for cell in cells]
    ends: dict[str, float] = {}
    for name in result["about"]["contenders"]:
        values = [cell["contenders"][name][measure] for cell in cells]
        axes.plot(shares, values, **_line(name))
        ends[name] = values[-1]
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(shares, [f"{share:g}" for share in shares], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("size of the tenant, in % of all rows (large tenants left, small ones right)")
    axes.set_ylim(-0.03, 1.05)
    title = {
        "completeness": "Share of the existing results that a search returns (10 requested)",
        "recall": "Share of the 10 nearest rows that a search returns (recall@10)",
    }
    axes.set_title(title[measure], loc="left")
    label_ends(axes, ends, LABELS)


def _recall_and_latency(axes: Any, result: Result) -> None:
    """Draw a point for each contender over all cells, and a line for each sweep of ef_search."""
    cells = [cell["contenders"] for cell in result["cells"] if cell["contenders"]]
    points = []
    for name in result["about"]["contenders"]:
        recall = statistics.fmean(cell[name]["recall"] for cell in cells)
        ratio = statistics.median(cell[name]["p50"] / cell["floor"]["p50"] for cell in cells)
        points.append((ratio, recall, name))
    for position, (ratio, recall, name) in enumerate(sorted(points)):
        # Stagger the labels, since many points have a similar recall.
        offset = (5, -12 - 12 * (position % 4))
        filled = "white" if _is_tuned(name) else COLOURS[name]
        axes.plot(ratio, recall, "o", color=COLOURS[name], markerfacecolor=filled)
        axes.annotate(
            name,
            (ratio, recall),
            offset,
            textcoords="offset points",
            fontsize=9,
            color=COLOURS[name],
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.6},
        )
    for name in ("floor", "cenote"):
        swept = [cell for cell in result.get("sweep", []) if name in cell["contenders"]]
        if not swept:
            continue
        at_default = next(cell for cell in swept if cell["ef_search"] == 40)["contenders"]
        unit = at_default["floor"]["p50"]
        line = [
            (cell["contenders"][name]["p50"] / unit, cell["contenders"][name]["recall"])
            for cell in swept
        ]
        axes.plot(*zip(*line, strict=True), "-", color=COLOURS[name], linewidth=1, alpha=0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.minorticks_off()
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom - 0.2 * (top - bottom), top)  # room for the labels of the lowest points
    axes.set_xlabel("p50, relative to floor (median of all cells)")
    axes.set_ylabel("recall@limit, mean of all cells")
    axes.set_title(
        "Recall and latency; lines: hnsw.ef_search from 20 to 640, one tenant", loc="left"
    )


def _throughput(axes: Any, result: Result) -> None:
    """Draw bars of the throughput relative to floor."""
    groups = {
        "upsert, no index": result["upsert"],
        "upsert, live index": result["live"],
        f"{result['clients']['clients']} clients": result["clients"]["per_second"],
    }
    shown = [name for name in result["about"]["contenders"] if name != "floor-exact"]
    left, centres, width = 0.0, [], 0.8
    for rates in groups.values():
        names = [name for name in shown if name in rates]
        centres.append(left + width * (len(names) - 1) / 2)
        for name in names:
            ratio = rates[name] / rates["floor"]
            axes.bar(left, ratio, width * 0.9, **_filling(name))
            label = f"{name} {ratio:.2f}"
            axes.text(left, ratio + 0.02, label, rotation=90, ha="center", va="bottom", fontsize=8)
            left += width
        left += width
    axes.set_xticks(centres, list(groups))
    axes.set_yticks([0, 0.5, 1.0])
    axes.set_ylim(0, max(1.7, axes.get_ylim()[1] + 0.4))
    axes.set_title("Throughput, relative to floor", loc="left")


def _client_cpu(axes: Any, result: Result) -> None:
    """Draw bars of the client's CPU per search, and where bare asyncpg with the same SQL would be.

    A mark divides a bar by the measured ratio of the contender to bare asyncpg.
    """
    clients = result["clients"]
    names = [name for name in reversed(result["about"]["contenders"]) if name in clients["cpu"]]
    for place, name in enumerate(names):
        ratio = clients["cpu"][name] / clients["cpu"]["floor"]
        axes.barh(place, ratio, 0.7, **_filling(name))
        axes.text(ratio, place, f" {ratio:.1f}", va="center", fontsize=9)
        if name == "cenote" and "client_cpu" in result:
            of_same_sql = ratio / result["client_cpu"]["clients"]["ratio"]
            axes.plot([of_same_sql] * 2, [place - 0.35, place + 0.35], color="#D55E00", linewidth=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("relative to floor; red: bare asyncpg running the same SQL")
    axes.set_title(f"Client CPU per search, {clients['clients']} clients", loc="left")


def _filling(name: str) -> dict[str, Any]:
    return {"color": "white" if _is_tuned(name) else COLOURS[name], "edgecolor": COLOURS[name]}


def _is_tuned(name: str) -> bool:
    return name.endswith(("-tuned", "-measured"))


def _line(name: str) -> dict[str, Any]:
    style = "--" if _is_tuned(name) else "-"
    width = 3.0 if name == "cenote" else 1.4
    return {"color": COLOURS[name], "linestyle": style, "linewidth": width}


def label_ends(axes: Any, ends: dict[str, float], labels: dict[str, str] | None = None) -> None:
    """Write a label beside the end of each line, and move labels apart that would overlap.

    Args:
        axes: Axes with the lines.
        ends: Last value of each line, by name. Names begin with the name of a contender.
        labels: Labels by name; the name itself where there is no label.
    """
    bottom, top = axes.get_ylim()
    lowest = top
    for name, value in sorted(ends.items(), key=lambda end: end[1], reverse=True):
        lowest = min(value, lowest - _GAP * (top - bottom))
        axes.annotate(
            (labels or {}).get(name, name),
            (1.01, lowest),
            xycoords=("axes fraction", "data"),
            color=COLOURS[name.partition(",")[0]],
            va="center",
            fontsize=10,
            annotation_clip=False,
        )
