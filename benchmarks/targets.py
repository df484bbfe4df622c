"""The targets that cenote should reach, and a comparison of a run's results with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPLETENESS = 1.0
RECALL = 0.98
P50_OF_FLOOR = 1.5
P50_OF_COMPLETE = 1.2
CLIENTS_OF_FLOOR = 0.8
UPSERT_OF_FLOOR = 0.7
UPSERT_OF_ORIGINAL = 8.0
LIVE_UPSERT_OF_FLOOR = 1.0
REWRITE_OF_ORIGINAL = 10.0
BULK_OF_LIVE_UPSERT = 1 / 3
SCAN_OF_FLOOR = 0.7
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
        *_search_targets(result),
        *_rate_targets(result),
        *_bulk_load_targets(result),
        *_memory_targets(result),
    ]


def _search_targets(result: dict[str, Any]) -> Iterator[Target]:
    cells = [cell for cell in result["cells"] if "cenote" in cell["contenders"]]
    if not cells:
        return
    worst = min(cell["contenders"]["cenote"]["completeness"] for cell in cells)
    yield Target("completeness, every cell", "1.00", f"{worst:.4f}", worst >= COMPLETENESS)
    low = min((cell["contenders"]["cenote"]["recall"], _name(cell)) for cell in cells)
    measured = f"{low[0]:.3f} ({low[1]})"
    yield Target("recall, every cell", f">= {RECALL}", measured, low[0] >= RECALL)
    if "complete" in cells[0]["contenders"]:
        yield _latency_target(cells)
    if "floor-exact" in cells[0]["contenders"]:
        high = max((_ratio(cell, "floor-exact"), _name(cell)) for cell in cells)
        measured = f"{high[0]:.2f} ({high[1]})"
        yield Target("p50 relative to floor-exact, every cell", "<= 1", measured, high[0] <= 1)


def _latency_target(cells: list[Any]) -> Target:
    """Return the target for p50, which a cell meets by either of two ratios.

    The measured values come from the worst cell.
    """
    worst_excess = max(
        (min(_ratio(cell, "floor") / P50_OF_FLOOR, _ratio(cell, "complete") / P50_OF_COMPLETE), n)
        for n, cell in enumerate(cells)
    )
    missed = sum(
        _ratio(cell, "floor") > P50_OF_FLOOR and _ratio(cell, "complete") > P50_OF_COMPLETE
        for cell in cells
    )
    worst = cells[worst_excess[1]]
    return Target(
        "p50, every cell",
        f"<= {P50_OF_FLOOR} x floor or <= {P50_OF_COMPLETE} x complete",
        f"{_ratio(worst, 'floor'):.2f} or {_ratio(worst, 'complete'):.2f} ({_name(worst)}); met in "
        f"{len(cells) - missed} of {len(cells)} cells",
        missed == 0,
    )


def _rate_targets(result: dict[str, Any]) -> Iterator[Target]:
    clients = result.get("clients", {})
    scan = result.get("scan", {}).get("per_second")
    minimums = (
        (f"{clients.get('clients')} clients", clients.get("per_second"), "floor", CLIENTS_OF_FLOOR),
        ("upsert without an ANN index", result.get("upsert"), "floor", UPSERT_OF_FLOOR),
        ("upsert without an ANN index", result.get("upsert"), "original", UPSERT_OF_ORIGINAL),
        ("upsert into a live ANN index", result.get("live"), "floor", LIVE_UPSERT_OF_FLOOR),
        ("unchanged upsert", result.get("rewrite"), "original", REWRITE_OF_ORIGINAL),
        ("scan", scan, "floor", SCAN_OF_FLOOR),
    )
    for name, rates, reference, minimum in minimums:
        if rates and "cenote" in rates and reference in rates:
            ratio = rates["cenote"] / rates[reference]
            label = f"{name}, relative to {reference}"
            yield Target(label, f">= {minimum:g}", f"{ratio:.2f}", ratio >= minimum)


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


def _ratio(cell: dict[str, Any], other: str) -> float:
    ratio: float = cell["contenders"]["cenote"]["p50"] / cell["contenders"][other]["p50"]
    return ratio


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['share']:g} %, filter {cell['filter']}, limit {cell['limit']}"
