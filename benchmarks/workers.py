"""The processes of the contenders, as the driver sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.base import UnsupportedError

_ROOT = Path(__file__).parent.parent
_Item = TypeVar("_Item")


class WorkerProcess:
    """A contender's process.

    Args:
        name: Name of the contender.
        folder: Folder of the data.
        environments: Folder of the contenders' virtual environments.
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

    def __call__(self, operation: str, **arguments: Any) -> Any:
        """Run an operation of the worker and return its result.

        Raises:
            UnsupportedError: The contender does not support the operation.
            RuntimeError: The operation failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        response = json.loads(line) if line else {"error": "the worker exited"}
        if "unsupported" in response:
            raise UnsupportedError(response["unsupported"])
        if "error" in response:
            raise RuntimeError(f"{self.name}, {operation}: {response['error']}")
        return response["result"]

    def stop(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def open_workers(
    dsns: dict[str, str], folder: Path, environments: Path, dimensions: int
) -> Iterator[dict[str, WorkerProcess]]:
    """Start a worker for each contender, connected to its database, and yield them by name."""
    with ExitStack() as stack:
        workers = {}
        # Start all processes before connecting: each spends its first second on imports.
        for name in dsns:
            workers[name] = WorkerProcess(name, folder, environments)
            stack.callback(workers[name].stop)
        for name, dsn in dsns.items():
            workers[name]("open", dsn=dsn, dimensions=dimensions)
        yield workers
        for worker in workers.values():
            worker("close")


def interpreter(name: str, environments: Path) -> Path:
    """Return the path of the Python that has the contender's library."""
    environment = CONTENDERS[name].environment
    if environment is None:
        return Path(sys.executable)
    return environments / environment / "bin" / "python"


def installed(environments: Path) -> list[str]:
    """Return the names of the contenders whose library is installed."""
    return [name for name in CONTENDERS if interpreter(name, environments).exists()]


def rotated(items: Sequence[_Item], by: int) -> list[_Item]:
    """Rotate the items, so that no contender comes first in every round."""
    by %= len(items)
    return [*items[by:], *items[:by]]
