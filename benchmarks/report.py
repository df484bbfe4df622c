"""Format the numbers of a comparison as tables of ratios, for a terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.targets import Target, targets

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a title. Its first column contains text, the others numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def as_text(self) -> str:
        """Return the table with columns aligned by spaces."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        body = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *("  " + line for line in body)])

    def as_markdown(self) -> str:
        """Return a Markdown table under its title."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = ["| " + " | ".join(line) + " |" for line in (self.head, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])


def as_text(result: Result) -> str:
    """Return all tables for a terminal."""
    return "\n\n".join(table.as_text() for table in _tables(result))


def as_markdown(result: Result) -> str:
    """Return all tables for benchmarks/README.md."""
    about = result["about"]
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    head = (
        f"{about['rows']:,} {about['data']} rows of {about['dimensions']} dimensions, "
        f"{about['queries']} queries, {about['rounds']} rounds. Server: {settings}."
    )
    for name, ef_search in result.get("chosen_ef_search", {}).items():
        head += f" {name} searches with ef_search {ef_search}."
    return "\n\n".join([head, *(table.as_markdown() for table in _tables(result))]) + "\n"


def _tables(result: Result) -> Iterator[Table]:
    rows = [_row(target) for target in targets(result)]
    yield Table("Targets", ["target", "wanted", "measured", ""], rows)
    if result["cells"]:
        yield _by_share(result, "completeness")
        yield _by_share(result, "recall")
        yield _by_filter(result)
        yield from _large_limits(result)
        yield _latency(result)
    if any(key in result for key in ("upsert", "clients")):
        yield _rates(result)
    if "clients" in result:
        yield _client_cpu(result)
    if "bulk" in result:
        yield _bulk(result)
    if "memory" in result:
        yield _memory(result)


def _row(target: Target) -> list[str]:
    return [target.name, target.wanted, target.measured, "met" if target.met else "missed"]


def _by_share(result: Result, measure: str) -> Table:
    cells = _cells(result, filter="none", limit=10)
    cells.sort(key=lambda cell: -cell["share"])
    title = {
        "completeness": "Completeness by the tenant's share of the rows (no filter, limit 10)",
        "recall": "Recall@10 by the tenant's share of the rows (no filter)",
    }[measure]
    rows = [
        [name, *(f"{cell['contenders'][name][measure]:.2f}" for cell in cells)]
        for name in result["about"]["contenders"]
    ]
    return Table(title, ["", *(f"{cell['share']:g} %" for cell in cells)], rows)


def _by_filter(result: Result) -> Table:
    kinds = list(dict.fromkeys(cell["filter"] for cell in result["cells"]))
    rows = []
    for name in result["about"]["contenders"]:
        row = [name]
        for kind in kinds:
            cells = [cell["contenders"][name] for cell in _cells(result, filter=kind, limit=10)]
            worst = [min(cell[key] for cell in cells) for key in ("completeness", "recall")]
            row.append(" / ".join(f"{value:.2f}" for value in worst))
        rows.append(row)
    return Table("Worst tenant by filter: completeness / recall@10", ["", *kinds], rows)


def _large_limits(result: Result) -> Iterator[Table]:
    cells = [cell for cell in result["cells"] if cell["limit"] > 10 and cell["contenders"]]
    if not cells:
        return
    head = ["", *(f"{cell['share']:g} %, {cell['limit']:,}" for cell in cells)]
    rows = []
    for name in result["about"]["contenders"]:
        row = [name]
        for cell in cells:
            measured = cell["contenders"][name]
            ratio = measured["p50"] / cell["contenders"]["floor"]["p50"]
            row.append(f"{measured['completeness']:.2f} / {measured['recall']:.2f} / {ratio:.1f}")
        rows.append(row)
    yield Table("Large limits: completeness / recall / p50 relative to floor", head, rows)


def _latency(result: Result) -> Table:
    cells = [cell["contenders"] for cell in result["cells"] if cell["contenders"]]
    references = [
        name
        for name in ("floor", "complete", "floor-exact")
        if name in result["about"]["contenders"]
    ]
    rows = []
    for name in result["about"]["contenders"]:
        row = [name]
        for reference in references:
            ratios = [cell[name]["p50"] / cell[reference]["p50"] for cell in cells]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(row)
    title = "p50 relative to other contenders, cell by cell: median (lowest to highest)"
    return Table(title, ["", *references], rows)


def _rates(result: Result) -> Table:
    measurements = {
        "upsert": result.get("upsert"),
        "unchanged upsert": result.get("rewrite"),
        "upsert, live index": result.get("live"),
        "clients": result.get("clients", {}).get("per_second"),
        "scan": result.get("scan", {}).get("per_second"),
    }
    measurements = {name: rates for name, rates in measurements.items() if rates}
    rows = []
    for name in result["about"]["contenders"]:
        row = [name]
        for rates in measurements.values():
            known = name in rates and "floor" in rates
            row.append(f"{rates[name] / rates['floor']:.2f}" if known else "-")
        row.append(_megabytes(result.get("peak", {}).get(name)))
        row.append(_megabytes(result.get("scan", {}).get("growth", {}).get(name)))
        rows.append(row)
    head = ["", *measurements, "peak MB", "growth in scan, MB"]
    return Table("Rates relative to floor; memory of the client process", head, rows)


def _client_cpu(result: Result) -> Table:
    """Return the CPU time of the client's process per search."""
    cells = [cell["contenders"] for cell in _cells(result, limit=10)]
    clients = result["clients"]
    head = ["", "relative to floor", f"{clients['clients']} clients", "relative to the same SQL"]
    head.append(f"{clients['clients']} clients, same SQL")
    rows = []
    for name in result["about"]["contenders"]:
        ratios = [cell[name]["cpu"] / cell["floor"]["cpu"] for cell in cells]
        row = [name, f"{statistics.median(ratios):.2f}" if ratios else "-"]
        row.append(f"{clients['cpu'][name] / clients['cpu']['floor']:.2f}")
        same = result.get("client_cpu") if name == "cenote" else None
        if same:
            of_same = [cell["ratio"] for cell in same["cells"]]
            median = statistics.median(of_same)
            row.append(f"{median:.2f} ({min(of_same):.2f} to {max(of_same):.2f})")
            row.append(f"{same['clients']['ratio']:.2f}")
        else:
            row += ["-", "-"]
        rows.append(row)
    title = "Client CPU per search; the same SQL: run by bare asyncpg"
    return Table(title, head, rows)


def _bulk(result: Result) -> Table:
    bulk = result["bulk"]
    floor_upsert = bulk["seconds"].get("floor, upsert into a live index")
    rows = [
        [name, f"{seconds / floor_upsert:.2f}" if floor_upsert else "-"]
        for name, seconds in bulk["seconds"].items()
    ]
    title = f"Time to load {bulk['rows']:,} rows into an empty table, including the index"
    return Table(title, ["", "relative to floor's upsert"], rows)


def _memory(result: Result) -> Table:
    rows = [
        [f"{search['rows']:,}, filter {search['filter']}", f"{search['ratio']:.2f}"]
        for search in result["memory"]
    ]
    return Table("Search in memory", ["rows", "relative to plain product"], rows)


def _cells(result: Result, **values: Any) -> list[Any]:
    return [
        cell
        for cell in result["cells"]
        if cell["contenders"] and all(cell[key] == value for key, value in values.items())
    ]


def _megabytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"
