"""Run programs as a user would."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

from sqlalchemy.engine import make_url

REPOSITORY = Path(__file__).parents[2]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cenote.cli", "sqlalchemy.dialects.postgresql.asyncpg", "asyncpg"])


def run(*command: str, cwd: str | Path = REPOSITORY, **environ: str) -> CompletedProcess[str]:
    """Run a program without this process's CENOTE_ settings."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**clean_environment(), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """Return this process's environment without its CENOTE_ settings."""
    return {key: value for key, value in os.environ.items() if not key.startswith("CENOTE_")}


def alembic(*arguments: str, cwd: str | Path = REPOSITORY, **environ: str) -> CompletedProcess[str]:
    """Run the alembic command."""
    return run_module("alembic", *arguments, cwd=cwd, **environ)


def cenote(*arguments: str, cwd: str | Path = REPOSITORY, **environ: str) -> CompletedProcess[str]:
    """Run the cenote command."""
    return run_module("cenote", *arguments, cwd=cwd, **environ)


def run_module(
    module: str, *options: str, cwd: str | Path = REPOSITORY, **environ: str
) -> CompletedProcess[str]:
    """Run a module like ``python -m``, in a fork of a process that has imported cenote.

    The imports would take most of a second.
    """
    command = [module, *options]
    environment = {**clean_environment(), **environ}
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        arguments = (command, str(cwd), environment, [out.name, err.name])
        process = FORKS.Process(target=run_in_fork, args=arguments)
        process.start()
        process.join()
        return CompletedProcess(command, process.exitcode or 0, out.read(), err.read())


def run_in_fork(
    command: list[str], cwd: str, environment: dict[str, str], streams: list[str]
) -> None:
    """Run a module in a forked process.

    Args:
        command: Name of the module, and its arguments.
        cwd: Current folder.
        environment: All environment variables.
        streams: Names of the files for stdout and stderr.
    """
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    path = environment.get("PYTHONPATH")
    sys.path[:0] = [cwd, *(path.split(os.pathsep) if path else ())]
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def output_of(result: CompletedProcess[str]) -> str:
    """Return the output of a program, after checking that it succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def asyncpg_url(dsn: str) -> str:
    """Return the URL that an application passes to create_async_engine."""
    return make_url(dsn).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
