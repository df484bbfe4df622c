"""The two locks of whatever changes the schema: one for the database, one for this process."""

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

from cenote.connections import database_errors, describe, driver_error
from cenote.errors import MigrationError
from cenote.pg_catalog import pg_database, pg_locks

LOCK_TIMEOUT_SECONDS = 300.0
"""How long a change of the schema waits for another one of the same database."""

LOCK_KEY = int.from_bytes(hashlib.sha256(b"cenote migrations").digest()[:8], "big", signed=True)
"""The advisory lock that is held meanwhile."""

_POLL_SECONDS = 0.2

_PROBES = 5
"""How often two clients are asked which server process they have."""

_PROBE_SECONDS = 5.0
"""How long that may take."""

_LOST_STATEMENT = ("26000", "42P05")
"""SQLSTATE: there is no such prepared statement, or there is one already, which a pooler's other
client made."""

TABLE_LOCK_TIMEOUT_SECONDS = 300.0
"""How long `with_short_waits` keeps trying."""

_WAITS_MILLISECONDS = (100, 200, 500, 1500)
"""How long each try waits, and everybody else behind it; the last one repeats. That is longer than
the server's deadlock_timeout of 1 s, after which an autovacuum in the way gives up."""

NOT_NOW = {"55P03", "40P01"}
"""SQLSTATE: lock not available, deadlock detected."""

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

# alembic.context and alembic.op are globals of the process: one migration at a time may run in it.
_alembic_lock = threading.Lock()


class InUseError(MigrationError):
    """Others held a lock for as long as the caller would wait."""


class PooledError(MigrationError):
    """A pooler lends the server's connections for a transaction each, and a session is needed."""


@contextmanager
def migration_lock(
    connection: Connection, table_name: str, *, seconds: float | None = None
) -> Iterator[None]:
    """Hold the lock of this database's cenote migrations for the session.

    One lock for all tables, since the extension and the schema are the database's.
    The lock is polled: a session that waits inside pg_advisory_lock() holds a snapshot, for which
    a concurrent index build would wait in turn. It ends with the session, so that a killed holder
    blocks nobody.

    Args:
        connection: one without an open transaction.
        table_name: what waits, for the log.
        seconds: how long to wait; `LOCK_TIMEOUT_SECONDS` when None.

    Raises:
        InUseError: another one held it for so long.
        PooledError: there is no session that could hold it.
    """
    _refuse_transaction_pooling(connection)
    if seconds is None:
        seconds = LOCK_TIMEOUT_SECONDS
    deadline = time.monotonic() + seconds
    waiting = False
    while not _scalar(connection, select(func.pg_try_advisory_lock(LOCK_KEY))):
        if time.monotonic() > deadline:
            raise InUseError(
                f"another cenote migration of this database did not end within "
                f"{seconds:.0f} seconds; table {table_name!r} was not migrated"
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


def _refuse_transaction_pooling(connection: Connection) -> None:
    """Refuse a pooler that would keep the lock, and the settings of a build, for who comes next."""
    raw: Any = connection.connection
    told = getattr(raw.driver_connection, "get_server_pid", None)  # by who answers; asyncpg's
    if told is None or told() == _scalar(connection, _PID):
        return
    try:
        pooled = raw.dbapi_connection.run_async(partial(_shares_its_process, connection.engine))
    except database_errors() as error:  # one that lends for a session may have none left
        state = getattr(driver_error(error), "sqlstate", None)
        _logger.info("how the pooler lends cannot be told: %s", describe(driver_error(error)))
        pooled = state in _LOST_STATEMENT
    if pooled:
        raise PooledError(
            "a pooler lends the server's connections for a transaction each (PgBouncer's pool_mode "
            "transaction), and this needs a session: run it on a direct connection"
        )


async def _shares_its_process(engine: Engine, driver: Any) -> bool:
    """Whether another client gets the same server process, while this one is connected.

    A pooler that lends for a session never gives it; a busy one that lends for a transaction may
    happen not to.
    """
    other = create_async_engine(engine.url, pool=engine.pool.recreate())
    ours, theirs = set(), set()
    try:
        async with asyncio.timeout(_PROBE_SECONDS), other.connect() as connection:
            for _ in range(_PROBES):
                ours.add(await driver.fetchval("SELECT pg_backend_pid()"))
                theirs.add(await connection.scalar(_PID))
                await connection.commit()
    finally:
        await other.dispose()
    return not ours.isdisjoint(theirs)


def with_short_waits(
    connection: Connection,
    table_name: str,
    work: Callable[[], None],
    *,
    seconds: float | None = None,
) -> None:
    """Do work in a transaction that waits for no table lock for long, and again until it gets it.

    Whoever wants a table waits behind a transaction that waits for all of it.

    Args:
        connection: one without an open transaction, not in AUTOCOMMIT.
        table_name: what is wanted, for the log.
        work: may be called several times.
        seconds: how long to try; `TABLE_LOCK_TIMEOUT_SECONDS` when None.

    Raises:
        InUseError: it took longer.
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
            if getattr(driver_error(error), "sqlstate", None) not in NOT_NOW:
                raise
            if time.monotonic() > deadline:
                raise InUseError(
                    f"others held table {table_name!r} for {seconds:.0f} "
                    "seconds; end their transactions and run it again"
                ) from error
        _logger.info("table %s is in use; trying again", table_name)
        sleep(connection, 0.5)


@contextmanager
def process_lock(connection: Connection) -> Iterator[None]:
    """Hold this process' use of alembic. Polled, since its holder may be a task of this thread."""
    while not _alembic_lock.acquire(blocking=False):
        sleep(connection, _POLL_SECONDS)
    try:
        yield
    finally:
        _alembic_lock.release()


def sleep(connection: Connection, seconds: float) -> None:
    """Sleep on the server: that suspends a task, and a thread, whichever this runs in."""
    connection.execute(select(func.pg_sleep(seconds)))
    connection.commit()


def _scalar(connection: Connection, statement: Any) -> Any:
    value = connection.scalar(statement)
    connection.commit()
    return value
