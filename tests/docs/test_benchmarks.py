"""The comparison of the benchmarks: its results, but no times."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from support.commands import REPOSITORY, output_of, run


@pytest.fixture(scope="module")
def compared(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Numbers and tables of a small comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    sizes = "--rows 1200 --queries 10 --dimensions 32 --upsert-rows 300 --bulk-rows 300"
    sizes += " --live-rows 100 --client-searches 40 --memory-rows 500 --memory-queries 5"
    cells = "--measure upsert,search,memory "
    cells += "--shares 47,3 --filters none,topic --large-limits 100 --rounds 2 --quiet"
    output_of(
        run(
            *[sys.executable, "-m", "benchmarks.compare", "--dsn", server_dsn],
            *["--contenders", "floor,floor-exact,complete,original,cenote,cenote-measured"],
            *["--json", str(folder / "run.json"), "--markdown", str(folder / "run.md")],
            *sizes.split(),
            *cells.split(),
            PYTHONPATH=str(REPOSITORY),
        )
    )
    numbers = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return numbers, (folder / "run.md").read_text(encoding="utf-8")


def test_every_measurement_includes_every_contender(compared: Any) -> None:
    """Each measurement has a number for each contender that supports it."""
    result, _ = compared
    writers = {"floor", "original", "cenote"}
    readers = writers | {"floor-exact", "complete", "cenote-measured"}
    assert len(result["cells"]) == 2 * 2 + 2
    assert all(set(cell["contenders"]) == readers for cell in result["cells"])
    for rates in (result["upsert"], result["rewrite"], result["live"], result["load"]["seconds"]):
        assert set(rates) == writers
    assert set(result["clients"]["per_second"]) == set(result["peak"]) == readers
    assert set(result["clients"]["cpu"]) == readers
    assert set(result["scan"]["per_second"]) == writers
    assert {cell["ef_search"] for cell in result["sweep"]} >= {40, 160}
    assert {search["rows"] for search in result["memory"]} == {500}


def test_cenote_and_exact_searches_are_complete(compared: Any) -> None:
    """cenote and exact searches return all results, and no contender returns foreign rows."""
    result, _ = compared
    for cell in result["cells"]:
        for name, measured in cell["contenders"].items():
            assert measured["foreign"] == 0
            if name in ("cenote", "cenote-measured", "complete", "floor-exact"):
                assert measured["completeness"] == 1
    exact = [cell["contenders"]["floor-exact"]["recall"] for cell in result["cells"]]
    assert exact == [1] * len(exact)


def test_bare_asyncpg_runs_the_same_sql(compared: Any) -> None:
    """The client's CPU is measured for cenote and for bare asyncpg, in every cell."""
    result, _ = compared
    measured = result["client_cpu"]
    assert [(cell["share"], cell["filter"]) for cell in measured["cells"]] == [
        *[(47, "none"), (47, "tenth"), (3, "none"), (3, "tenth")]
    ]
    for cell in (*measured["cells"], measured["clients"]):
        assert min(cell["same_sql"], cell["milliseconds"], cell["ratio"]) > 0


def test_tables_of_targets(compared: Any) -> None:
    """The table of targets shows the measured value and whether the target is met."""
    _, tables = compared
    assert "| completeness, every cell | 1.00 | 1.0000 | met |" in tables
