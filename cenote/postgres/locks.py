"""Locks for schema changes: an advisory lock per database, a lock per process, and table locks."""

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

from sqlalchemy import Connection, Engine, cast, create_engine, func, select
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from cenote.errors import MigrationError
from cenote.postgres.driver_errors import database_errors, describe, driver_error
from cenote.postgres.pg_catalog import pg_database, pg_locks

LOCK_TIMEOUT_SECONDS = 300.0
"""Time limit of a schema change for waiting until other schema changes in the database end."""

LOCK_KEY = int.from_bytes(hashlib.sha256(b"cenote migrations").digest()[:8], "big", signed=True)
"""Key of the advisory lock that a schema change holds."""

_POLL_SECONDS = 0.2
"""Pause between two attempts to get the advisory lock, or the lock of the process."""

_PROBES = 5
"""Number of times that `_shares_its_process` compares the server processes of two connections."""

_PROBE_SECONDS = 5.0
"""Time limit for all of these comparisons."""

_LOST_STATEMENT = ("26000", "42P05")
"""SQLSTATEs: a prepared statement does not exist, or exists already.

Behind a pooler in transaction mode, a connection loses its statements, and their names collide with
the names of other clients' statements.
"""

TABLE_LOCK_TIMEOUT_SECONDS = 300.0
"""Time limit of `with_short_waits` for all attempts."""

_WAITS_MILLISECONDS = (100, 200, 500, 1500)
"""Maximum time that each attempt waits for a lock.

All other sessions that want the table wait behind a waiting attempt. The last value, which repeats,
is longer than deadlock_timeout (1 s): only then does Postgres cancel an autovacuum that holds the
table.
"""

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

# alembic.context and alembic.op are global, so a process can run only one migration at a time.
_alembic_lock = threading.Lock()


class InUseError(MigrationError):
    """Other sessions held a lock until the time limit."""


class TransactionPoolingError(MigrationError):
    """The connection goes through a pooler in transaction mode, so it has no session of its own."""


@contextmanager
def migration_lock(
    connection: Connection, table_name: str, *, seconds: float | None = None
) -> Iterator[None]:
    """Hold the session-level advisory lock for schema changes by cenote in this database.

    There is one lock for all tables, because they share the database's extension and schemas. This
    function polls, because a session that waits inside pg_advisory_lock() holds a snapshot, and a
    concurrent index build of the session that has the lock would wait for the snapshot's end. The
    server releases the lock when the session ends, so a killed process blocks nobody.

    Args:
        connection: Connection without an open transaction.
        table_name: Table that is to be changed, for the log and the error message.
        seconds: Time limit for waiting; `LOCK_TIMEOUT_SECONDS` if None.

    Raises:
        InUseError: Another session held the lock until the time limit.
        TransactionPoolingError: The connection goes through a pooler in transaction mode, so the
            lock would belong to the pooler.
    """
    _reject_transaction_pooling(connection)
    if seconds is None:
        seconds = LOCK_TIMEOUT_SECONDS
    deadline = time.monotonic() + seconds
    waiting = False
    while not _scalar(connection, select(func.pg_try_advisory_lock(LOCK_KEY))):
        if not waiting and seconds > 0:
            _logger.info(
                "waiting to change table %s: another schema change by cenote runs in this database "
                "(server process %s)",
                table_name,
                _scalar(connection, _HOLDER),
            )
            waiting = True
        if time.monotonic() > deadline:
            raise InUseError(
                f"another schema change by cenote in this database did not end within "
                f"{seconds:.0f} seconds; table {table_name!r} was not changed: try again later"
            )
        sleep(connection, _POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed and not connection.invalidated:
            connection.rollback()
            _scalar(connection, select(func.pg_advisory_unlock(LOCK_KEY)))


def _reject_transaction_pooling(connection: Connection) -> None:
    """Reject a pooler in transaction mode: its next client would get our lock and our settings."""
    raw: Any = connection.connection
    # The driver knows the id of the process that the server, or a pooler, reported at connection.
    driver = raw.driver_connection
    if connection.dialect.driver not in ("asyncpg", "psycopg"):
        return
    is_asyncpg = connection.dialect.driver == "asyncpg"
    reported = driver.get_server_pid() if is_asyncpg else driver.info.backend_pid
    if reported == _scalar(connection, _PID):
        return
    try:
        if connection.dialect.is_async:
            pooled = raw.dbapi_connection.run_async(partial(_shares_its_process, connection.engine))
        else:
            pooled = _shares_its_process_synchronously(connection.engine, driver)
    except database_errors() as error:  # a pooler in session mode may have no connection left
        state = getattr(driver_error(error), "sqlstate", None)
        _logger.info("cannot detect the pooler's mode: %s", describe(driver_error(error)))
        pooled = state in _LOST_STATEMENT
    if pooled:
        raise TransactionPoolingError(
            "schema changes need a session, but the connection goes through a pooler that assigns "
            "server connections per transaction (PgBouncer's pool_mode=transaction): connect to "
            "the server directly"
        )


async def _shares_its_process(engine: Engine, driver: Any) -> bool:
    """Return True if a second connection gets the same server process as the first.

    A pooler in session mode never shares a process between two clients. A busy pooler in
    transaction mode may, by chance, use different processes every time.

    Args:
        engine: Engine of the first connection.
        driver: The driver's first connection, which stays connected.
    """
    other = create_async_engine(engine.url, pool=engine.pool.recreate())
    own_pids, other_pids = set(), set()
    try:
        async with asyncio.timeout(_PROBE_SECONDS), other.connect() as connection:
            for _ in range(_PROBES):
                own_pids.add(await _pid_of(driver))
                other_pids.add(await connection.scalar(_PID))
                await connection.commit()
    finally:
        await other.dispose()
    return not own_pids.isdisjoint(other_pids)


async def _pid_of(driver: Any) -> int:
    """Return the process of an asynchronous driver's connection on the server."""
    query = "SELECT pg_backend_pid()"
    if hasattr(driver, "fetchval"):  # asyncpg
        pid: int = await driver.fetchval(query)
    else:
        pid = (await (await driver.execute(query)).fetchone())[0]
        await driver.commit()  # a transaction would keep the process
    return pid


def with_short_waits(
    connection: Connection,
    table_name: str,
    work: Callable[[], None],
    *,
    seconds: float | None = None,
) -> None:
    """Run `work` in a transaction that waits only briefly for table locks, until it succeeds.

    The waits are short because a transaction that waits for an exclusive lock on a table blocks all
    other sessions that want the table.

    Args:
        connection: Connection without an open transaction, not in AUTOCOMMIT.
        table_name: Table that `work` locks, for the log and the error message.
        work: Function to run in the transaction. It may be called several times.
        seconds: Time limit for all attempts; `TABLE_LOCK_TIMEOUT_SECONDS` if None.

    Raises:
        InUseError: Other sessions held a lock until the time limit.
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
                    f"other sessions kept table {table_name!r} locked for {seconds:.0f} seconds: "
                    "end their transactions and try again"
                ) from error
        _logger.info("table %s is in use; trying again", table_name)
        sleep(connection, 0.5)


@contextmanager
def process_lock(connection: Connection) -> Iterator[None]:
    """Hold the process's lock on alembic.

    The lock is polled: a blocking wait would never end if another task of this thread held it.
    """
    while not _alembic_lock.acquire(blocking=False):
        sleep(connection, _POLL_SECONDS)
    try:
        yield
    finally:
        _alembic_lock.release()


def sleep(connection: Connection, seconds: float) -> None:
    """Sleep on the server, so that only the current task or thread waits, not the event loop."""
    connection.execute(select(func.pg_sleep(seconds)))
    connection.commit()


def _scalar(connection: Connection, statement: Any) -> Any:
    value = connection.scalar(statement)
    connection.commit()
    return value


def _shares_its_process_synchronously(engine: Engine, driver: Any) -> bool:
    """Return what `_shares_its_process` returns, for synchronous engines on psycopg."""
    other = create_engine(engine.url, pool=engine.pool.recreate())
    own_pids, other_pids = set(), set()
    try:
        with other.connect() as connection:
            for _ in range(_PROBES):
                own_pids.add(driver.execute("SELECT pg_backend_pid()").fetchone()[0])
                driver.commit()  # a transaction would keep the process
                other_pids.add(connection.scalar(_PID))
                connection.commit()
    finally:
        other.dispose()
    return not own_pids.isdisjoint(other_pids)
