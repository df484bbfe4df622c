"""The targets that cenote should reach, and a comparison of a run's results with them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import CONTENDERS

COMPLETENESS = 1.0
RECALL = 0.98
P50_OF_LOSSLESS_FLOOR = 1.3
"""Maximum p50 relative to floor, for a tenant to which floor returns everything.

Like the tables, this calls a completeness of .995 or more everything.
"""
_EVERYTHING = 0.995
SHORT, SHORT_EXTRA = 0.3, 0.1
"""Milliseconds. Where floor takes less than the first number, cenote may take the second more."""
P50_OF_LOSSY_FLOOR = 2.6
P50_OF_LOSSY_FLOOR_MEASURED = 2.2
"""Maximum p50 with a measured ``ef_search``."""
FILTERED_OF_COMPLETE_MEDIAN, FILTERED_OF_COMPLETE_WORST = 1.0, 1.3
EXACT_FROM = 2.0
"""Milliseconds of `floor-exact` from which cenote must be faster."""
CLIENTS_OF_FLOOR = 0.5
CLIENTS_OF_FLOOR_MEASURED = 0.6
CLIENTS_OF_LIBRARIES = 2.3
CPU_OF_SAME_SQL = 2.0
UPSERT_OF_FLOOR = 0.85
LIVE_UPSERT_OF_FLOOR = 1.0
UNCHANGED_OF_FLOOR = 2.3
BULK_OF_LIVE_UPSERT = 1 / 3
SCAN_OF_FLOOR = 0.45
MEMORY_OF_PRODUCT = 1.3
MEMORY_FROM = 50_000
"""Number of rows from which a search in memory has a target.

With fewer rows, the cost of function calls outweighs the cost of the arithmetic.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A target and the measured result.

    Attributes:
        name: Quantity that is measured.
        wanted: Value to reach, for display.
        measured: Measured value, for display.
        met: True if the run reached the target.
    """

    name: str
    wanted: str
    measured: str
    met: bool


def targets(result: dict[str, Any]) -> list[Target]:
    """Return all targets for which the run has measurements."""
    return [
        *_quality_targets(result),
        *_client_targets(result),
        *_cpu_targets(result),
        *_latency_targets(result),
        *_rate_targets(result),
        *_bulk_load_targets(result),
        *_memory_targets(result),
    ]


def _quality_targets(result: dict[str, Any]) -> Iterator[Target]:
    cells = _cells(result)
    if cells:
        low = min((cell["contenders"]["cenote"]["completeness"], _name(cell)) for cell in cells)
        yield Target("completeness, every cell", "1.00", f"{low[0]:.4f}", low[0] >= COMPLETENESS)
    for name in ("cenote", "cenote-measured"):
        if cells and name in cells[0]["contenders"]:
            low = min((cell["contenders"][name]["recall"], _name(cell)) for cell in cells)
            label = "recall, every cell" + _measured(name)
            yield Target(label, f">= {RECALL}", f"{low[0]:.3f} ({low[1]})", low[0] >= RECALL)


def _client_targets(result: dict[str, Any]) -> Iterator[Target]:
    clients = result.get("clients", {})
    rates = clients.get("per_second", {})
    if "cenote" not in rates:
        return
    prefix = f"{clients['clients']} clients, "
    yield _at_least(prefix + "relative to floor", rates["cenote"], rates["floor"], CLIENTS_OF_FLOOR)
    if "cenote-measured" in rates:
        label = prefix + "relative to floor" + _measured("cenote-measured")
        yield _at_least(label, rates["cenote-measured"], rates["floor"], CLIENTS_OF_FLOOR_MEASURED)
    if "original" in rates:
        ratio = rates["cenote"] / rates["original"]
        yield Target(prefix + "relative to original", "> 1", f"{ratio:.2f}", ratio > 1)
    libraries = [name for name in rates if CONTENDERS[name].environment is not None]
    if libraries:
        best = max(libraries, key=lambda name: rates[name])
        label = f"{prefix}relative to the fastest library ({best})"
        yield _at_least(label, rates["cenote"], rates[best], CLIENTS_OF_LIBRARIES)


def _cpu_targets(result: dict[str, Any]) -> Iterator[Target]:
    """Return the targets for the client's CPU, which the median cell has to meet."""
    measured = result.get("client_cpu")
    if not measured:
        return
    ratios = [cell["ratio"] for cell in measured["cells"]]
    median = statistics.median(ratios)
    wanted = f"<= {CPU_OF_SAME_SQL:g}"
    text = f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    name = "client CPU, relative to bare asyncpg running the same SQL"
    yield Target(name, wanted, text, median <= CPU_OF_SAME_SQL)
    ratio = measured["clients"]["ratio"]
    yield Target(f"{name}, several clients", wanted, f"{ratio:.2f}", ratio <= CPU_OF_SAME_SQL)


def _latency_targets(result: dict[str, Any]) -> Iterator[Target]:
    cells = _cells(result)
    if not cells:
        return
    unfiltered = [cell for cell in cells if cell["filter"] == "none" and cell["limit"] == 10]
    lossless = [c for c in unfiltered if c["contenders"]["floor"]["completeness"] >= _EVERYTHING]
    lossy = [c for c in unfiltered if c["contenders"]["floor"]["completeness"] < _EVERYTHING]
    if lossless:
        name = "p50 without a filter, relative to floor, where floor returns everything"
        wanted = f"<= {P50_OF_LOSSLESS_FLOOR}, or +{SHORT_EXTRA} ms below {SHORT} ms"
        yield _in_every_cell(name, wanted, lossless, "cenote", "floor", _is_near_lossless_floor)
    for contender, most in (
        ("cenote", P50_OF_LOSSY_FLOOR),
        ("cenote-measured", P50_OF_LOSSY_FLOOR_MEASURED),
    ):
        if lossy and contender in lossy[0]["contenders"]:
            name = "p50 without a filter, relative to floor, where floor loses results"
            name += _measured(contender)
            yield _in_every_cell(name, f"<= {most}", lossy, contender, "floor", _at_most(most))
    filtered = [c for c in cells if c["filter"] != "none"]
    if filtered and "complete" in filtered[0]["contenders"]:
        median = statistics.median(_ratio(cell, "complete") for cell in filtered)
        name = "p50 with a filter, relative to complete"
        wanted = f"<= {FILTERED_OF_COMPLETE_MEDIAN:g}"
        met = median <= FILTERED_OF_COMPLETE_MEDIAN
        yield Target(f"{name}, median cell", wanted, f"{median:.2f}", met)
        yield _in_every_cell(
            f"{name}, every cell",
            f"<= {FILTERED_OF_COMPLETE_WORST}",
            filtered,
            "cenote",
            "complete",
            _at_most(FILTERED_OF_COMPLETE_WORST),
        )
    long = [c for c in cells if c["contenders"].get("floor-exact", {}).get("p50", 0) >= EXACT_FROM]
    if long:
        name = f"p50 relative to floor-exact, where that takes {EXACT_FROM:g} ms or more"
        yield _in_every_cell(
            name, "< 1", long, "cenote", "floor-exact", lambda own, other: own < other
        )


def _at_most(ratio: float) -> Callable[[float, float], bool]:
    return lambda own, other: own / other <= ratio


def _is_near_lossless_floor(own: float, floor: float) -> bool:
    if own / floor <= P50_OF_LOSSLESS_FLOOR:
        return True
    return floor < SHORT and own <= floor + SHORT_EXTRA


def _in_every_cell(
    name: str,
    wanted: str,
    cells: list[Any],
    contender: str,
    reference: str,
    is_met: Callable[[float, float], bool],
) -> Target:
    """Return a target for p50 that every cell has to meet. The measured value is the worst cell's.

    The worst cell is the one with the highest ratio, among the missed cells if there are any.
    """
    times = [
        (cell["contenders"][contender]["p50"], cell["contenders"][reference]["p50"])
        for cell in cells
    ]
    missed = [number for number, pair in enumerate(times) if not is_met(*pair)]
    ratios = {number: own / other for number, (own, other) in enumerate(times)}
    worst = max(missed or ratios, key=ratios.__getitem__)
    milliseconds = f"{times[worst][0] - times[worst][1]:+.2f} ms"
    measured = (
        f"{ratios[worst]:.2f}, {milliseconds} ({_name(cells[worst])}); "
        f"met in {len(cells) - len(missed)} of {len(cells)} cells"
    )
    return Target(name, wanted, measured, not missed)


def _rate_targets(result: dict[str, Any]) -> Iterator[Target]:
    upsert, live, rewrite = (result.get(key, {}) for key in ("upsert", "live", "rewrite"))
    scan = result.get("scan", {}).get("per_second", {})
    for label, rates, least in (
        ("scan, relative to a bare cursor", scan, SCAN_OF_FLOOR),
        ("upsert without an ANN index, relative to floor", upsert, UPSERT_OF_FLOOR),
        ("upsert into a live ANN index, relative to floor", live, LIVE_UPSERT_OF_FLOOR),
        ("unchanged upsert, relative to floor's rewriting", rewrite, UNCHANGED_OF_FLOOR),
    ):
        if "cenote" in rates:
            yield _at_least(label, rates["cenote"], rates["floor"], least)


def _bulk_load_targets(result: dict[str, Any]) -> Iterator[Target]:
    seconds = result.get("bulk", {}).get("seconds", {})
    if "cenote" in seconds:
        ratio = seconds["cenote"] / seconds["cenote, upsert into a live index"]
        met = ratio <= BULK_OF_LIVE_UPSERT
        rows = result["bulk"]["rows"]
        name = f"bulk load of {rows:,} rows, relative to upserts"
        yield Target(name, "<= 1/3", f"{ratio:.2f}", met)


def _memory_targets(result: dict[str, Any]) -> Iterator[Target]:
    ratios_by_rows: dict[int, list[float]] = {}
    for search in result.get("memory", ()):
        ratios_by_rows.setdefault(search["rows"], []).append(search["ratio"])
    for rows, ratios in ratios_by_rows.items():
        if rows < MEMORY_FROM:
            continue
        ratio = max(ratios)
        name = f"memory, {rows:,} rows, relative to plain product"
        yield Target(name, f"<= {MEMORY_OF_PRODUCT}", f"{ratio:.2f}", ratio <= MEMORY_OF_PRODUCT)


def _at_least(name: str, own: float, other: float, least: float) -> Target:
    return Target(name, f">= {least:g}", f"{own / other:.2f}", own / other >= least)


def _cells(result: dict[str, Any]) -> list[Any]:
    return [cell for cell in result["cells"] if "cenote" in cell["contenders"]]


def _measured(name: str) -> str:
    return ", measured ef_search" if name == "cenote-measured" else ""


def _ratio(cell: dict[str, Any], other: str) -> float:
    ratio: float = cell["contenders"]["cenote"]["p50"] / cell["contenders"][other]["p50"]
    return ratio


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['share']:g} %, filter {cell['filter']}, limit {cell['limit']}"
