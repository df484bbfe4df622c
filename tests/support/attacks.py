"""A table of what attacks tried and what they achieved, at the end of a run (``make attack``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

ATTACK = "attack"

Recorded = Callable[[str, int, str], None]


@pytest.fixture
def attacked(record_property: Callable[[str, object], None]) -> Recorded:
    """Function that adds a row to the table: the attack, the number of attempts, the result."""

    def record(attack: str, attempts: int, result: str) -> None:
        assert attempts > 0, attack
        record_property(ATTACK, (attack, attempts, result))

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table. Rows of failed tests are marked."""
    properties: list[tuple[Any, str]] = [
        (value, report.outcome)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == ATTACK
    ]
    rows = [(*value, outcome) for value, outcome in properties]
    if not rows:
        return
    terminalreporter.section("attacks")
    width = max(len(attack) for attack, *_ in rows)
    for attack, attempts, result, outcome in sorted(rows):
        failed = "" if outcome == "passed" else f"  ({outcome})"
        terminalreporter.write_line(f"{attack:{width}}  {attempts:9,} attempts  {result}{failed}")
