"""What the README shows runs as it stands there. The pages of the manual are in test_manual.py."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from commands import REPOSITORY, asyncpg_url, cenote, output_of, run

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Its code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


OUTPUT = [
    "0.99 Cats purr.\n",
    "('0', 2)\n('1', 1)\nguide:2 Deploy.\nguide:3 Watch.\n",
    "",
    "",
    "3000\n3000\n",
    "",
]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, empty_dsn: str) -> None:
    """And print what the README says."""
    command = (sys.executable, "-W", "error", "-c", blocks("python")[number])
    assert output_of(run(*command, DATABASE_URL=asyncpg_url(empty_dsn))) == OUTPUT[number]


def test_the_feature_table_names_tests_that_exist() -> None:
    """Each line has one."""
    section = README.split("## What it has, beside others")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    named = [found for line in lines if (found := re.search(r"`([\w/]+\.py)::(\w+)` \|$", line))]
    assert len(named) == len(lines) - 2  # the heads of two tables
    for file, test in (found.groups() for found in named):
        defined = re.findall(r"(?:def|class) (\w+)", (REPOSITORY / file).read_text("utf-8"))
        assert test in defined, file


def test_the_reliability_tables_name_tests_that_exist() -> None:
    """Whatever is damaged, loaded or put in has one."""
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    files = (REPOSITORY / "tests").rglob("test_*.py")
    defined = re.findall(r"def (test_\w+)", "".join(file.read_text("utf-8") for file in files))
    named = re.findall(r"`(?:tests/[\w/]+\.py::)?(test_\w+)`", page)
    assert len(named) > 15
    assert set(named) <= set(defined)
    assert all((REPOSITORY / file).exists() for file in re.findall(r"`(tests/[\w/.]+)", page))


def test_commands_run(empty_dsn: str) -> None:
    """One after another, on one database; make has its own test."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert {line.split()[0] for line in lines} == {"cenote", "export", "make"}
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("cenote ")]
    assert len(commands) == 2
    for command in commands:
        output_of(cenote(*command, CENOTE_DATABASE_URL=empty_dsn))


def test_all_blocks_are_run() -> None:
    """There is none in another language."""
    opened = re.findall(r"^```(\w*)", README, re.MULTILINE)[::2]
    assert len(opened) == len(blocks("python")) + len(blocks("console"))


def test_make_targets_exist() -> None:
    """Those the README names."""
    named = re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= set(targets)
