"""The driver's side of the workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS

_ROOT = Path(__file__).parent.parent


class NotOfferedError(Exception):
    """The contender has no way to do this."""


class WorkerProcess:
    """A contender in a process of its own.

    Args:
        name: the contender.
        folder: of the data.
        environments: of the virtual environments of the contenders that need one.
    """

    def __init__(self, name: str, folder: Path, environments: Path) -> None:
        self.name = name
        command = [str(interpreter(name, environments)), "-m", "benchmarks.worker", name]
        self._process = subprocess.Popen(  # noqa: S603
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Order something, and wait for the result.

        Raises:
            NotOfferedError: the contender has no way to do it.
            RuntimeError: it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the worker ended"}
        if "not_offered" in answer:
            raise NotOfferedError(answer["not_offered"])
        if "error" in answer:
            raise RuntimeError(f"{self.name}, {do}: {answer['error']}")
        return answer["result"]

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def open_workers(
    dsns: dict[str, str], folder: Path, environments: Path, dimensions: int
) -> Iterator[dict[str, WorkerProcess]]:
    """A worker for each contender, connected to its database."""
    with ExitStack() as stack:
        workers = {}
        for name in dsns:  # all at first, since they spend their first second on imports
            workers[name] = WorkerProcess(name, folder, environments)
            stack.callback(workers[name].stop)
        for name, dsn in dsns.items():
            workers[name]("open", dsn=dsn, dimensions=dimensions)
        yield workers
        for worker in workers.values():
            worker("close")


def interpreter(name: str, environments: Path) -> Path:
    """The Python that has the contender's library."""
    environment = CONTENDERS[name].environment
    if environment is None:
        return Path(sys.executable)
    return environments / environment / "bin" / "python"


def installed(environments: Path) -> list[str]:
    """The contenders whose library is there."""
    return [name for name in CONTENDERS if interpreter(name, environments).exists()]


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The same in another order, so that none comes first in every round."""
    by %= len(names)
    return [*names[by:], *names[:by]]
