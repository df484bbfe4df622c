"""The README's code runs, and the tests that the comparison and tested-faults.md name exist."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from support.commands import REPOSITORY, asyncpg_url, cenote, output_of, run

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


OUTPUT = ["0.99 Cats purr.\n"]


def test_the_length() -> None:
    """A newcomer reads the README in a few minutes."""
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, empty_dsn: str) -> None:
    """Each Python block runs and prints the expected output."""
    command = (sys.executable, "-W", "error", "-c", blocks("python")[number])
    assert output_of(run(*command, DATABASE_URL=asyncpg_url(empty_dsn))) == OUTPUT[number]


def test_tests_named_in_the_comparison_exist() -> None:
    """Each row of the feature tables in docs/comparison.md names an existing test."""
    page = (REPOSITORY / "docs" / "comparison.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    matches = [match for line in lines if (match := re.search(r"`([\w/]+\.py)::(\w+)` \|$", line))]
    assert len(matches) == len(lines) - 2  # without the header rows of two tables
    for file, test in (match.groups() for match in matches):
        defined = re.findall(r"(?:def|class) (\w+)", (REPOSITORY / file).read_text("utf-8"))
        assert test in defined, file


def test_tests_named_in_the_page_of_faults_exist() -> None:
    """Each test named in docs/tested-faults.md exists."""
    page = (REPOSITORY / "docs" / "tested-faults.md").read_text(encoding="utf-8")
    files = (REPOSITORY / "tests").rglob("test_*.py")
    defined = re.findall(r"def (test_\w+)", "".join(file.read_text("utf-8") for file in files))
    named = re.findall(r"`(?:tests/[\w/]+\.py::)?(test_\w+)`", page)
    assert len(named) > 15
    assert set(named) <= set(defined)
    assert all((REPOSITORY / file).exists() for file in re.findall(r"`(tests/[\w/.]+)", page))


def test_commands_run(empty_dsn: str) -> None:
    """The cenote commands run one after another on one database."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert {line.split()[0] for line in lines} == {"cenote", "export", "make"}
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("cenote ")]
    assert len(commands) == 2
    for command in commands:
        output_of(cenote(*command, CENOTE_DATABASE_URL=empty_dsn))


def test_there_are_no_blocks_in_other_languages() -> None:
    """All code blocks are Python or console blocks, which other tests run."""
    opened = re.findall(r"^```(\w*)", README, re.MULTILINE)[::2]
    assert len(opened) == len(blocks("python")) + len(blocks("console"))


def test_make_targets_exist() -> None:
    """The make targets that the README names exist."""
    named = re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= set(targets)
