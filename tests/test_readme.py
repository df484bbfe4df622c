"""What the README shows runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout."""
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


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
        [sys.executable, "-W", "error", "-c", blocks("python")[number]],
        DATABASE_URL=url.render_as_string(hide_password=False),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == OUTPUT[number]


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
        result = run([sys.executable, "-m", "alembic", *command], CENOTE_DATABASE_URL=empty_dsn)
        assert result.returncode == 0, result.stderr


def test_make_targets_exist() -> None:
    """Those the README names."""
    named = re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= set(targets)
