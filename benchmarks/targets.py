"""What cenote has to reach, and whether a run did."""

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
"""Rows from which a search in memory has a target; below, calls weigh more than numbers."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target, and what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool


def targets(result: dict[str, Any]) -> list[Target]:
    """All targets of which the run says anything."""
    return [*_of_cells(result), *_of_rates(result), *_of_bulk(result), *_of_memory(result)]


def _of_cells(result: dict[str, Any]) -> Iterator[Target]:
    cells = [cell for cell in result["cells"] if "cenote" in cell["contenders"]]
    if not cells:
        return
    ours = [cell["contenders"]["cenote"] for cell in cells]
    worst = min(cell["completeness"] for cell in ours)
    yield Target("completeness, every cell", "1.00", f"{worst:.4f}", worst >= COMPLETENESS)
    low = min((cell["contenders"]["cenote"]["recall"], _name(cell)) for cell in cells)
    measured = f"{low[0]:.3f} ({low[1]})"
    yield Target("recall, every cell", f">= {RECALL}", measured, low[0] >= RECALL)
    if "complete" in cells[0]["contenders"]:
        yield _latency(cells)
    if "floor-exact" in cells[0]["contenders"]:
        high = max((_ratio(cell, "floor-exact"), _name(cell)) for cell in cells)
        measured = f"{high[0]:.2f} ({high[1]})"
        yield Target("p50 of floor-exact's, every cell", "<= 1", measured, high[0] <= 1)


def _latency(cells: list[Any]) -> Target:
    """The better of two ratios, each to its own limit, in the worst cell."""
    excess = max(
        (min(_ratio(cell, "floor") / P50_OF_FLOOR, _ratio(cell, "complete") / P50_OF_COMPLETE), n)
        for n, cell in enumerate(cells)
    )
    missed = sum(
        _ratio(cell, "floor") > P50_OF_FLOOR and _ratio(cell, "complete") > P50_OF_COMPLETE
        for cell in cells
    )
    worst = cells[excess[1]]
    return Target(
        "p50, every cell",
        f"<= {P50_OF_FLOOR} x floor or <= {P50_OF_COMPLETE} x complete",
        f"{_ratio(worst, 'floor'):.2f} or {_ratio(worst, 'complete'):.2f} ({_name(worst)}); met in "
        f"{len(cells) - missed} of {len(cells)} cells",
        missed == 0,
    )


def _of_rates(result: dict[str, Any]) -> Iterator[Target]:
    clients = result.get("clients", {})
    scan = result.get("scan", {}).get("per_second")
    wanted = (
        (f"{clients.get('clients')} clients", clients.get("per_second"), "floor", CLIENTS_OF_FLOOR),
        ("upsert without an ANN index", result.get("upsert"), "floor", UPSERT_OF_FLOOR),
        ("upsert without an ANN index", result.get("upsert"), "original", UPSERT_OF_ORIGINAL),
        ("upsert into a live ANN index", result.get("live"), "floor", LIVE_UPSERT_OF_FLOOR),
        ("unchanged upsert", result.get("rewrite"), "original", REWRITE_OF_ORIGINAL),
        ("scan", scan, "floor", SCAN_OF_FLOOR),
    )
    for name, rates, other, least in wanted:
        if rates and "cenote" in rates and other in rates:
            ratio = rates["cenote"] / rates[other]
            yield Target(f"{name}, of {other}'s", f">= {least:g}", f"{ratio:.2f}", ratio >= least)


def _of_bulk(result: dict[str, Any]) -> Iterator[Target]:
    seconds = result.get("bulk", {}).get("seconds", {})
    if "cenote" in seconds:
        ratio = seconds["cenote"] / seconds["cenote, upsert into a live index"]
        met = ratio <= BULK_OF_LIVE_UPSERT
        rows = result["bulk"]["rows"]
        yield Target(
            f"bulk load of {rows:,} rows, of upserting them", "<= 1/3", f"{ratio:.2f}", met
        )


def _of_memory(result: dict[str, Any]) -> Iterator[Target]:
    by_rows: dict[int, list[dict[str, Any]]] = {}
    for one in result.get("memory", ()):
        by_rows.setdefault(one["rows"], []).append(one)
    for rows, measured in by_rows.items():
        if rows < MEMORY_FROM:
            continue
        ratio = max(one["ratio"] for one in measured)
        name = f"memory, {rows:,} rows, of the bare product"
        yield Target(name, f"<= {MEMORY_OF_PRODUCT}", f"{ratio:.2f}", ratio <= MEMORY_OF_PRODUCT)


def _ratio(cell: dict[str, Any], other: str) -> float:
    ratio: float = cell["contenders"]["cenote"]["p50"] / cell["contenders"][other]["p50"]
    return ratio


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['share']:g} %, filter {cell['filter']}, limit {cell['limit']}"
