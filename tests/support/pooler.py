"""A real PgBouncer in front of the tests' server; `make pgbouncer` installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.engine import make_url

CONFIGURATION = """
[databases]
{database} = {server} dbname={database} pool_size={servers}

[pgbouncer]
unix_socket_dir = {folder}
listen_port = 5432
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = {mode}
ignore_startup_parameters = {ignored}
"""


@contextmanager
def running_pgbouncer(
    dsn: str,
    mode: str = "transaction",
    *,
    servers: int = 2,
    role: str | None = None,
    ignored: str = "jit",
) -> Iterator[URL]:
    """Run a PgBouncer in front of a database, on a Unix socket, until the block ends.

    Args:
        dsn: Connection string of the database.
        mode: Pool mode, ``transaction`` or ``session``.
        servers: Number of connections to the server.
        role: Role that connects; None stands for the user of `dsn`.
        ignored: Startup parameters that PgBouncer ignores; it rejects other unknown ones.

    Yields:
        URL of the database through PgBouncer.
    """
    server = make_url(dsn)
    role = role or server.username
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    try:
        (folder / "users.txt").write_text(f'"{role}" "{server.password or ""}"\n')
        (folder / "pgbouncer.ini").write_text(
            CONFIGURATION.format(
                server=f"host={server.query.get('host') or server.host} port={server.port or 5432}",
                database=server.database,
                servers=servers,
                folder=folder,
                mode=mode,
                ignored=ignored,
            )
        )
        with _running(
            [_program(), *_as_user(folder, server), str(folder / "pgbouncer.ini")], folder
        ):
            yield URL.create(
                "postgresql+asyncpg",
                username=role,
                database=server.database,
                query={"host": str(folder)},
            )
    finally:
        shutil.rmtree(folder)


def _program() -> str:
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    assert program, "pgbouncer is not installed: run make pgbouncer"
    return program


def _as_user(folder: Path, server: URL) -> list[str]:
    """Return the option that makes PgBouncer run as the server's user, or as nobody.

    PgBouncer does not run as root.
    """
    if os.getuid() != 0:
        return []
    socket = server.query.get("host")
    user = Path(str(socket)).owner() if socket else "nobody"
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, user)
    return ["-u", user]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not (folder / ".s.PGSQL.5432").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
