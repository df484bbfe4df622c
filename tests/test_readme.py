"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from commands import REPOSITORY, alembic, output_of, run
from sqlalchemy.engine import make_url

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


OUTPUT = [
    "0.99 Cats purr.\n",
    "('0', 2)\n('1', 1)\nguide:2 Deploy.\nguide:3 Watch.\n",
    "",
    "",
]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, empty_dsn: str) -> None:
    """And print what the README says."""
    url = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    result = run(
        *(sys.executable, "-W", "error", "-c", blocks("python")[number]),
        DATABASE_URL=url.render_as_string(hide_password=False),
    )
    assert output_of(result) == OUTPUT[number]


def test_alembic_commands_run(empty_dsn: str) -> None:
    """One after another, on one database."""
    commands = [
        shlex.split(line)[1:]
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("alembic ")
    ]
    assert len(commands) == 1
    for command in commands:
        output_of(alembic(*command, CENOTE_DATABASE_URL=empty_dsn))


def test_make_targets_exist() -> None:
    """Those the README names."""
    named = re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= set(targets)
