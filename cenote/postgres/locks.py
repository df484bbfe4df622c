"""Locks for changes of the schema: one per database, one per process, and table locks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, repeat
from typing import Any

from sqlalchemy import Connection, Engine, cast, func, select
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from cenote.errors import MigrationError
from cenote.postgres.driver_errors import database_errors, describe, driver_error
from cenote.postgres.pg_catalog import pg_database, pg_locks

LOCK_TIMEOUT_SECONDS = 300.0
"""How long a change of the schema waits for another one in the same database."""

LOCK_KEY = int.from_bytes(hashlib.sha256(b"cenote migrations").digest()[:8], "big", signed=True)
"""Key of the advisory lock that a change of the schema holds."""

_POLL_SECONDS = 0.2

_PROBES = 5
"""How often two clients are asked which server process they have."""

_PROBE_SECONDS = 5.0
"""How long these questions may take altogether."""

_LOST_STATEMENT = ("26000", "42P05")
"""SQLSTATEs for a prepared statement that does not exist, or that already exists because another
client of the pooler created it."""

TABLE_LOCK_TIMEOUT_SECONDS = 300.0
"""How long `with_short_waits` keeps trying."""

_WAITS_MILLISECONDS = (100, 200, 500, 1500)
"""How long each attempt waits for a lock. All other sessions that want the table wait behind it.

The last value repeats. It is longer than the server's deadlock_timeout of 1 s, after which an
autovacuum that holds the table is cancelled."""

_LOCK_CONFLICTS = {"55P03", "40P01"}
"""SQLSTATEs: lock not available, deadlock detected."""

_HOLDER = (
    select(pg_locks.c.pid)
    .join(pg_database, pg_database.c.oid == pg_locks.c.database)
    .where(
        pg_database.c.datname == func.current_database(),
        pg_locks.c.locktype == "advisory",
        pg_locks.c.classid == cast((LOCK_KEY >> 32) & 0xFFFFFFFF, OID),
        pg_locks.c.objid == cast(LOCK_KEY & 0xFFFFFFFF, OID),
        pg_locks.c.granted,
    )
)

_PID = select(func.pg_backend_pid())

_logger = logging.getLogger(__name__)

# alembic.context and alembic.op are global in a process, so it can run one migration at a time.
_alembic_lock = threading.Lock()


class InUseError(MigrationError):
    """Other sessions held a lock for as long as the caller was willing to wait."""


class TransactionPoolingError(MigrationError):
    """The operation needs a session, but a pooler assigns server connections per transaction."""


@contextmanager
def migration_lock(
    connection: Connection, table_name: str, *, seconds: float | None = None
) -> Iterator[None]:
    """Hold the session-level advisory lock for cenote migrations of this database.

    There is one lock for all tables, because they share the database's extension and schemas. The
    lock is polled: a session that waits inside pg_advisory_lock() holds a snapshot, and a
    concurrent index build would wait for that snapshot in turn. The server releases the lock when
    the session ends, so a killed process blocks nobody.

    Args:
        connection: Connection without an open transaction.
        table_name: Table that is to be migrated, for the log and the error message.
        seconds: How long to wait; `LOCK_TIMEOUT_SECONDS` if None.

    Raises:
        InUseError: Another session held the lock for the whole time.
        TransactionPoolingError: A pooler leaves the connection no session that could hold the lock.
    """
    _reject_transaction_pooling(connection)
    if seconds is None:
        seconds = LOCK_TIMEOUT_SECONDS
    deadline = time.monotonic() + seconds
    waiting = False
    while not _scalar(connection, select(func.pg_try_advisory_lock(LOCK_KEY))):
        if time.monotonic() > deadline:
            raise InUseError(
                f"another cenote migration of this database did not end within "
                f"{seconds:.0f} seconds; table {table_name!r} was not migrated: run it again later"
            )
        if not waiting:
            _logger.info(
                "waiting to migrate table %s: another cenote migration of this database runs "
                "(server process %s)",
                table_name,
                _scalar(connection, _HOLDER),
            )
            waiting = True
        sleep(connection, _POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed and not connection.invalidated:
            connection.rollback()
            _scalar(connection, select(func.pg_advisory_unlock(LOCK_KEY)))


def _reject_transaction_pooling(connection: Connection) -> None:
    """Reject a pooler that would pass the lock, and a build's settings, on to its next client."""
    raw: Any = connection.connection
    # asyncpg's answer is the process that the server, or a pooler, named when connecting.
    get_server_pid = getattr(raw.driver_connection, "get_server_pid", None)
    if get_server_pid is None or get_server_pid() == _scalar(connection, _PID):
        return
    try:
        pooled = raw.dbapi_connection.run_async(partial(_shares_its_process, connection.engine))
    except database_errors() as error:  # a pooler in session mode may have no connection left
        state = getattr(driver_error(error), "sqlstate", None)
        _logger.info("cannot detect the pooler's mode: %s", describe(driver_error(error)))
        pooled = state in _LOST_STATEMENT
    if pooled:
        raise TransactionPoolingError(
            "this needs a session, but a pooler assigns server connections per transaction "
            "(PgBouncer's pool_mode=transaction): run it on a direct connection"
        )


async def _shares_its_process(engine: Engine, driver: Any) -> bool:
    """Return True if another client gets the server process of this one, which is connected.

    A pooler in session mode never shares a process. A busy pooler in transaction mode may happen
    not to share one either.
    """
    other = create_async_engine(engine.url, pool=engine.pool.recreate())
    own_pids, other_pids = set(), set()
    try:
        async with asyncio.timeout(_PROBE_SECONDS), other.connect() as connection:
            for _ in range(_PROBES):
                own_pids.add(await driver.fetchval("SELECT pg_backend_pid()"))
                other_pids.add(await connection.scalar(_PID))
                await connection.commit()
    finally:
        await other.dispose()
    return not own_pids.isdisjoint(other_pids)


def with_short_waits(
    connection: Connection,
    table_name: str,
    work: Callable[[], None],
    *,
    seconds: float | None = None,
) -> None:
    """Run `work` in a transaction that waits only briefly for table locks, until it succeeds.

    The waits are short because all other sessions that want a table wait behind a transaction that
    waits for an exclusive lock on it.

    Args:
        connection: Connection without an open transaction, not in AUTOCOMMIT.
        table_name: Table that `work` locks, for the log and the error message.
        work: Function to run in the transaction. It may be called several times.
        seconds: How long to keep trying; `TABLE_LOCK_TIMEOUT_SECONDS` if None.

    Raises:
        InUseError: Other sessions held the lock for the whole time.
    """
    if seconds is None:
        seconds = TABLE_LOCK_TIMEOUT_SECONDS
    deadline = time.monotonic() + seconds
    for wait in chain(_WAITS_MILLISECONDS, repeat(_WAITS_MILLISECONDS[-1])):
        try:
            with connection.begin():
                connection.execute(select(func.set_config("lock_timeout", f"{wait}ms", True)))
                work()
            return
        except DBAPIError as error:
            if getattr(driver_error(error), "sqlstate", None) not in _LOCK_CONFLICTS:
                raise
            if time.monotonic() > deadline:
                raise InUseError(
                    f"other sessions held table {table_name!r} for {seconds:.0f} "
                    "seconds: end their transactions and run it again"
                ) from error
        _logger.info("table %s is in use; trying again", table_name)
        sleep(connection, 0.5)


@contextmanager
def process_lock(connection: Connection) -> Iterator[None]:
    """Hold the process's lock on alembic, polled because a task of this thread may hold it."""
    while not _alembic_lock.acquire(blocking=False):
        sleep(connection, _POLL_SECONDS)
    try:
        yield
    finally:
        _alembic_lock.release()


def sleep(connection: Connection, seconds: float) -> None:
    """Sleep on the server, which suspends only the task or thread that this runs in."""
    connection.execute(select(func.pg_sleep(seconds)))
    connection.commit()


def _scalar(connection: Connection, statement: Any) -> Any:
    value = connection.scalar(statement)
    connection.commit()
    return value
