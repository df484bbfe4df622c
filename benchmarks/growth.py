"""Measure how search time, recall, index size and build time grow with the number of rows.

    python -m benchmarks.growth --json growth.json --picture growth.svg

Compares cenote with the floor of `benchmarks.compare`, with ten times as many rows at each step.
All numbers except recall and completeness are relative to the same contender's at the smallest
number of rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import collection, measurements
from benchmarks.collection import Truth, name_of
from benchmarks.measurements import Comparison
from benchmarks.report import Table
from benchmarks.server import Server, benchmark_server

CONTENDERS = ["floor", "cenote"]
LARGE, SMALL = 47.0, 0.5
WORDS = 20
"""Number of words in a row's content. Short contents keep a million rows small."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the measurements, print the tables and write the requested files."""
    options = _options(argv)
    with benchmark_server(options.dsn) as server:
        about = {"dimensions": options.dimensions, "settings": server.settings()}
        sizes = [_measure(server, rows, options) for rows in options.rows]
    result = {"about": about, "sizes": sizes}
    print("\n\n".join(table.as_text() for table in _tables(result)))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        text = "\n\n".join(table.as_markdown() for table in _tables(result))
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.picture:
        _draw(result, options.picture)
    return result


def _measure(server: Server, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Load and index this number of rows, and measure sizes and searches."""
    data = collection.generate(
        rows, dimensions=options.dimensions, queries=options.queries, extra=0, words=WORDS
    )
    with tempfile.TemporaryDirectory(prefix="cenote-growth-") as folder:
        data.write(Path(folder))
        run = Comparison(
            names=CONTENDERS,
            server=server,
            collection=data,
            folder=Path(folder),
            environments=Path(),
            rounds=options.rounds,
            batch=1000,
            log=lambda text: print(text, file=sys.stderr, flush=True),
        )
        dsns = run.databases("growth", CONTENDERS)
        truth = Truth(data)
        size: dict[str, Any] = {"rows": rows, "contenders": {}}
        with run.workers(dsns) as workers:
            for name, worker in workers.items():
                worker("create_table")
                written = worker("upsert", start=0, stop=rows, batch=1000, tenant=None)
                begin = time.perf_counter()
                worker("create_index")
                built = time.perf_counter() - begin
                server.vacuum(dsns[name])
                bytes_ = server.sizes(dsns[name])
                run.log(f"{rows:,} rows, {name}: upserts {written:.0f} s, index {built:.0f} s")
                size["contenders"][name] = {
                    "upsert_seconds_per_million": written / rows * 1e6,
                    "build_seconds_per_million": built / rows * 1e6,
                    "index_bytes_per_vector": bytes_["index"] / rows,
                    "table_bytes_per_vector": bytes_["table"] / rows,
                }
            for tenant, share in (("large", LARGE), ("small", SMALL)):
                cell = measurements.search(
                    run,
                    workers,
                    truth,
                    tenant=name_of(share),
                    kind="none",
                    limit=10,
                    share=share,
                )
                for name, measured in cell["contenders"].items():
                    size["contenders"][name][tenant] = measured
    server.drop_databases()
    return size


def _tables(result: dict[str, Any]) -> list[Table]:
    sizes = result["sizes"]
    head = ["", *(f"{size['rows']:,}" for size in sizes)]
    ratios, quality = [], []
    for name in CONTENDERS:
        series = [size["contenders"][name] for size in sizes]
        for tenant in ("large", "small"):
            ratios.append([f"{name}, p50, {tenant}", *_ratios([s[tenant]["p50"] for s in series])])
            for measure in ("recall", "completeness"):
                values = [f"{step[tenant][measure]:.3f}" for step in series]
                quality.append([f"{name}, {measure}, {tenant}", *values])
        for key in ("index_bytes_per_vector", "table_bytes_per_vector"):
            ratios.append([f"{name}, {key.replace('_', ' ')}", *_ratios([s[key] for s in series])])
        for key in ("build_seconds_per_million", "upsert_seconds_per_million"):
            ratios.append([f"{name}, {key.replace('_', ' ')}", *_ratios([s[key] for s in series])])
    relative_to_floor = [
        [f"p50, {tenant} tenant", *(_relative_to_floor(size, tenant) for size in sizes)]
        for tenant in ("large", "small")
    ]
    return [
        Table("Relative to the smallest number of rows", head, ratios),
        Table(f"Tenants of {LARGE:g} % and {SMALL:g} % of the rows, limit 10", head, quality),
        Table("cenote relative to floor", head, relative_to_floor),
    ]


def _ratios(values: list[float]) -> list[str]:
    return [f"{value / values[0]:.2f}" for value in values]


def _relative_to_floor(size: dict[str, Any], tenant: str) -> str:
    cenote, floor = (size["contenders"][name][tenant]["p50"] for name in ("cenote", "floor"))
    return f"{cenote / floor:.2f}"


def _draw(result: dict[str, Any], file: Path) -> None:
    """Draw the search time and the recall of both tenants over the number of rows."""
    from benchmarks.pictures import COLOURS, label_ends, pair_of_axes

    sizes = result["sizes"]
    rows = [size["rows"] for size in sizes]
    with pair_of_axes(file) as (left, right):
        times, recalls = {}, {}
        for name in CONTENDERS:
            for tenant, style in (("large", "-"), ("small", "--")):
                series = [size["contenders"][name][tenant] for size in sizes]
                label = f"{name}, {tenant}"
                times[label] = [step["p50"] / series[0]["p50"] for step in series]
                recalls[label] = [step["recall"] for step in series]
                for axes, values in ((left, times[label]), (right, recalls[label])):
                    axes.plot(rows, values, style, color=COLOURS[name], marker="o")
        left.set_title("p50, relative to the first", loc="left")
        right.set_title("recall@10", loc="left")
        right.set_ylim(-0.03, 1.05)
        for axes, lines in ((left, times), (right, recalls)):
            axes.set_xscale("log")
            axes.set_xticks(rows, [f"{number:,}" for number in rows])
            axes.minorticks_off()
            axes.set_xlabel("rows")
            label_ends(axes, {label: values[-1] for label, values in lines.items()})


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    add = parser.add_argument
    add(
        "--rows",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[10_000, 100_000, 1_000_000],
    )
    add("--dimensions", type=int, default=64)
    add("--queries", type=int, default=100)
    add("--rounds", type=int, default=3)
    add("--dsn", help="server to use as it is (default: an embedded one with tuned settings)")
    add("--json", type=Path)
    add("--markdown", type=Path)
    add("--picture", type=Path, help="needs matplotlib")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
