"""What grows with the rows: a search's time, its recall, the index, the time to build it.

    python -m benchmarks.growth --json growth.json --picture growth.svg

cenote beside the floor of `benchmarks.compare`, at ten times the rows each time; all but recall and
completeness is told in multiples of the same contender's at the fewest rows.
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
from benchmarks.server import Server, a_server

CONTENDERS = ["floor", "cenote"]
LARGE, SMALL = 47.0, 0.5
WORDS = 20
"""Of a row's content: short, so that a million rows stay small."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write what was asked for."""
    options = _options(argv)
    with a_server(options.dsn) as server:
        about = {"dimensions": options.dimensions, "settings": server.settings()}
        sizes = [_size(server, rows, options) for rows in options.rows]
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


def _size(server: Server, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """One number of rows: load, index, look at the sizes, search."""
    data = collection.generate(
        rows, dimensions=options.dimensions, queries=options.queries, further=0, words=WORDS
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
            say=lambda text: print(text, file=sys.stderr, flush=True),
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
                server.settle(dsns[name])
                bytes_ = server.sizes(dsns[name])
                run.say(f"{rows:,} rows, {name}: written in {written:.0f} s, index {built:.0f} s")
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
    ratios, found = [], []
    for name in CONTENDERS:
        series = [size["contenders"][name] for size in sizes]
        for tenant in ("large", "small"):
            ratios.append([f"{name}, p50, {tenant}", *_ratios([s[tenant]["p50"] for s in series])])
            for measure in ("recall", "completeness"):
                values = [f"{one[tenant][measure]:.3f}" for one in series]
                found.append([f"{name}, {measure}, {tenant}", *values])
        for key in ("index_bytes_per_vector", "table_bytes_per_vector"):
            ratios.append([f"{name}, {key.replace('_', ' ')}", *_ratios([s[key] for s in series])])
        for key in ("build_seconds_per_million", "upsert_seconds_per_million"):
            ratios.append([f"{name}, {key.replace('_', ' ')}", *_ratios([s[key] for s in series])])
    beside = [
        [f"p50, {tenant} tenant", *(_beside_floor(size, tenant) for size in sizes)]
        for tenant in ("large", "small")
    ]
    return [
        Table("In multiples of the same at the fewest rows", head, ratios),
        Table(f"Tenants of {LARGE:g} % and {SMALL:g} % of the rows, limit 10", head, found),
        Table("cenote in multiples of floor", head, beside),
    ]


def _ratios(values: list[float]) -> list[str]:
    return [f"{value / values[0]:.2f}" for value in values]


def _beside_floor(size: dict[str, Any], tenant: str) -> str:
    ours, floor = (size["contenders"][name][tenant]["p50"] for name in ("cenote", "floor"))
    return f"{ours / floor:.2f}"


def _draw(result: dict[str, Any], file: Path) -> None:
    """The large tenant's search time, and the recall of both tenants, over the rows."""
    from benchmarks.pictures import COLOURS, label_ends, pair_of_axes

    sizes = result["sizes"]
    rows = [size["rows"] for size in sizes]
    with pair_of_axes(file) as (left, right):
        times, recalls = {}, {}
        for name in CONTENDERS:
            for tenant, style in (("large", "-"), ("small", "--")):
                series = [size["contenders"][name][tenant] for size in sizes]
                label = f"{name}, {tenant}"
                times[label] = [one["p50"] / series[0]["p50"] for one in series]
                recalls[label] = [one["recall"] for one in series]
                for axes, values in ((left, times[label]), (right, recalls[label])):
                    axes.plot(rows, values, style, color=COLOURS[name], marker="o")
        left.set_title("p50, multiples of the first", loc="left")
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
    add("--dsn", help="a server of your own, as it is; else the embedded one, configured")
    add("--json", type=Path)
    add("--markdown", type=Path)
    add("--picture", type=Path, help="needs matplotlib")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
