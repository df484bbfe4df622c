"""Kill a command of cenote, or its server process, at one of its statements."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from subprocess import CompletedProcess
from typing import Any, Literal

import psycopg
from sqlalchemy import Engine, event
from support.commands import FORKS, REPOSITORY, clean_environment, output_of, run_in_fork

How = Literal["process", "backend", "waiting"]
"""What is killed, and when.

``process``: the command, by SIGKILL, before the statement. ``backend``: its server process, before
the statement. ``waiting``: its server process, while the statement, which is concurrent, waits.
"""

COMMIT = "COMMIT"


def run_and_kill(
    arguments: Sequence[str],
    dsn: str,
    at: int,
    how: How,
    *,
    module: str = "cenote",
    waits: int = 1,
) -> CompletedProcess[str]:
    """Run a command that is killed at its statement number `at`.

    Statements are counted from 0; commits count as statements. A command with fewer statements ends
    by itself.

    Args:
        arguments: Arguments of the command.
        dsn: Connection string of the database.
        at: Number of the statement.
        how: What is killed, and when.
        module: Module to run, like ``python -m``.
        waits: With ``waiting``: how often the statement must have waited for another transaction.

    Returns:
        The exit code, and the output. The exit code of a killed process is -9.
    """
    result = _run([module, *arguments], dsn, _Kill(dsn, at, how, waits))
    _wait_for_the_server(dsn)
    return result


def statements_of(arguments: Sequence[str], dsn: str, *, module: str = "cenote") -> list[str]:
    """Run a command, and return its statements and commits."""
    with tempfile.NamedTemporaryFile("r") as file:
        output_of(_run([module, *arguments], dsn, _Record(file.name)))
        return [json.loads(line) for line in file]


def writes_of(statements: list[str]) -> list[int]:
    """Return the numbers of statements at which a kill may leave different states.

    These are a write and the commit of each transaction that writes, each concurrent statement, and
    what follows the last of them. Postgres rolls an open transaction back, so kills at other
    statements leave the same states.
    """
    points: list[int] = []
    writes: list[int] = []
    for number, statement in enumerate(statements):
        if statement == COMMIT and writes:
            points += [writes[len(writes) // 2], number]
            writes = []
        elif is_concurrent(statement):
            points.append(number)
        elif statement != COMMIT and not statement.lstrip().upper().startswith("SELECT"):
            writes.append(number)
    return [*points, points[-1] + 1]


def is_concurrent(statement: str) -> bool:
    """Return whether a statement runs outside a transaction, while the table is in use."""
    return " CONCURRENTLY " in statement


@dataclass(frozen=True)
class _Record:
    """Append statements to a file."""

    file: str

    def __call__(self, number: int, connection: Any, statement: str) -> None:
        with open(self.file, "a") as out:
            out.write(json.dumps(statement) + "\n")


@dataclass(frozen=True)
class _Kill:
    """Kill the process or its server process; see `run_and_kill`."""

    dsn: str
    at: int
    how: How
    waits: int

    def __call__(self, number: int, connection: Any, statement: str) -> None:
        if number != self.at:
            return
        if self.how == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        pid = connection.connection.driver_connection.get_server_pid()
        if self.how == "waiting":
            _block(self.dsn, pid, self.waits)
            return
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def _run(command: list[str], dsn: str, notify: _Record | _Kill) -> CompletedProcess[str]:
    """Run a module in a forked process that calls `notify` before each statement and commit."""
    environment = {
        **clean_environment(),
        "CENOTE_DATABASE_URL": dsn,
        "PYTHONPATH": str(REPOSITORY / "tests"),
    }
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        arguments = (command, environment, [out.name, err.name], notify)
        process = FORKS.Process(target=_run_in_fork, args=arguments)
        process.start()
        process.join()
        return CompletedProcess(command, process.exitcode or 0, out.read(), err.read())


def _run_in_fork(
    command: list[str], environment: dict[str, str], streams: list[str], notify: _Record | _Kill
) -> None:
    numbers = count()

    def before_statement(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "pg_stat_progress" not in statement:  # their number differs from run to run
            notify(next(numbers), connection, statement)

    def before_commit(connection: Any) -> None:
        notify(next(numbers), connection, COMMIT)

    event.listen(Engine, "before_cursor_execute", before_statement)
    event.listen(Engine, "commit", before_commit)
    run_in_fork(command, str(REPOSITORY), environment, streams)


def _block(dsn: str, pid: int, waits: int) -> None:
    """Make the next concurrent statement wait, and terminate its server process meanwhile.

    A concurrent statement waits several times, for the transactions that are open when the wait
    begins. A transaction blocks the first wait; before it ends, another one blocks the next wait.
    """
    holder = _hold(dsn)

    def terminate() -> None:
        nonlocal holder
        with psycopg.connect(dsn, autocommit=True) as admin:
            for wait in range(waits):
                deadline = time.monotonic() + 10
                query = "SELECT %s = ANY (pg_blocking_pids(%s)), count(*) > 0"
                query += " FROM pg_stat_activity WHERE pid = %s"
                while True:
                    row = admin.execute(query, [holder.info.backend_pid, pid, pid]).fetchone()
                    if row is None or row[0] or not row[1] or time.monotonic() > deadline:
                        break
                    time.sleep(0.002)
                if row is None or not row[0]:
                    break
                if wait + 1 < waits:
                    following = _hold(dsn)
                    holder.close()
                    holder = following
                else:
                    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            holder.close()

    threading.Thread(target=terminate).start()


def _hold(dsn: str) -> psycopg.Connection[Any]:
    """Open a transaction that has a snapshot and locks the chunk table like a writer."""
    connection = psycopg.connect(dsn)
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    connection.execute("LOCK TABLE cenote_chunks IN ROW EXCLUSIVE MODE")
    connection.execute("SELECT 1")
    return connection


def _wait_for_the_server(dsn: str) -> None:
    """Wait until the server processes of a killed command have ended."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    with psycopg.connect(dsn, autocommit=True) as admin:
        deadline = time.monotonic() + 30
        while True:
            row = admin.execute(query).fetchone()
            assert row is not None
            if not row[0]:
                return
            assert time.monotonic() < deadline, "a server process does not end"
            time.sleep(0.005)
