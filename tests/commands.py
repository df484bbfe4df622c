"""Running programs as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

from sqlalchemy.engine import make_url

REPOSITORY = Path(__file__).parents[1]


def run(*command: str, cwd: str | Path = REPOSITORY, **environ: str) -> CompletedProcess[str]:
    """Run a program without this process' CENOTE_ settings."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**clean_environment(), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """This process' environment without its CENOTE_ settings."""
    return {key: value for key, value in os.environ.items() if not key.startswith("CENOTE_")}


def alembic(*arguments: str, cwd: str | Path = REPOSITORY, **environ: str) -> CompletedProcess[str]:
    """Run alembic's own command line."""
    return run(sys.executable, "-m", "alembic", *arguments, cwd=cwd, **environ)


def cenote(*arguments: str, cwd: str | Path = REPOSITORY, **environ: str) -> CompletedProcess[str]:
    """Run our command line."""
    return run(sys.executable, "-m", "cenote", *arguments, cwd=cwd, **environ)


def output_of(result: CompletedProcess[str]) -> str:
    """What a program printed, if it ended well."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def asyncpg_url(dsn: str) -> str:
    """What a host gives to create_async_engine."""
    return make_url(dsn).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
