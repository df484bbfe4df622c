"""Synchronous engines, connections and sessions with SQLAlchemy's asynchronous interface.

SQLAlchemy's asynchronous classes call the synchronous ones in a greenlet, which an asynchronous
driver leaves to wait. A synchronous driver never leaves it, so these coroutines never suspend.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from cenote.postgres.psycopg_engine import PsycopgConnection, PsycopgEngine
from cenote.postgres.watchdog import cancel


class SyncConnection(PsycopgConnection):
    """A synchronous connection with the methods of `AsyncConnection` that cenote calls."""

    async def execute(self, statement: Any, parameters: Any = None, **options: Any) -> Any:
        try:
            return await super().execute(statement, parameters, **options)
        except BaseException:
            connection: Any = self.sync_connection
            if connection is None or connection.closed or connection.invalidated:
                raise
            if end_statement(connection.connection.driver_connection):
                await self.invalidate()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class SyncEngine(PsycopgEngine):
    """A synchronous engine with the methods of `AsyncEngine` that cenote calls."""

    _connection_cls = SyncConnection


class SyncSession(AsyncSession):
    """A synchronous session of the application with the methods that cenote calls."""

    def __init__(self, session: Session) -> None:
        self.sync_session = self._proxied = session

    async def connection(self, *arguments: Any, **options: Any) -> AsyncConnection:
        return wrap_connection(self.sync_session.connection(*arguments, **options))


class SyncScopedSession:
    """A `scoped_session` of the application, whose session is looked up for each call."""

    def __init__(self, scoped: scoped_session[Session]) -> None:
        self._scoped = scoped

    def __call__(self) -> SyncSession:
        return SyncSession(self._scoped())


def wrap_connection(connection: Connection) -> SyncConnection:
    """Return a connection of the application with the methods of `AsyncConnection`."""
    return SyncConnection(SyncEngine(connection.engine), connection)


def is_in_a_statement(driver: Any) -> bool:
    """Return whether an exception has left a connection of psycopg in the middle of a statement."""
    from psycopg.pq import TransactionStatus

    status: int = driver.info.transaction_status
    return status == TransactionStatus.ACTIVE


def end_statement(driver: Any) -> bool:
    """Cancel the statement that an exception has interrupted on a connection of psycopg.

    psycopg itself does so after `KeyboardInterrupt` only. Other exceptions of signal handlers, such
    as Celery's SoftTimeLimitExceeded, leave a connection that accepts no other statement, not even
    a rollback.

    Returns:
        True if there was a statement. The connection is of no use then.
    """
    if not is_in_a_statement(driver):
        return False
    cancel(driver)
    return True
