"""Synchronous engines, connections and sessions with SQLAlchemy's asynchronous interface.

SQLAlchemy's asynchronous classes call the synchronous ones in a greenlet, which an asynchronous
driver leaves to wait. A synchronous driver never leaves it, so these coroutines never suspend.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, scoped_session


class SyncConnection(AsyncConnection):
    """A synchronous connection with the methods of `AsyncConnection` that cenote calls."""

    async def execute(self, statement: Any, parameters: Any = None, **options: Any) -> Any:
        # psycopg's number of inserted rows is otherwise lost when the cursor is closed.
        given = options.pop("execution_options", None) or {}
        given = {**given, "preserve_rowcount": True}

        def run(connection: Connection) -> Any:
            return connection.execute(statement, parameters, execution_options=given)

        try:
            return await self.run_sync(run)
        except UnicodeEncodeError:  # it contains the text, and has a place in the next error
            pass
        raise DBAPIError(None, None, untranslatable_character())

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class SyncEngine(AsyncEngine):
    """A synchronous engine with the methods of `AsyncEngine` that cenote calls."""

    _connection_cls = SyncConnection

    def __init__(self, engine: Engine) -> None:
        self.sync_engine = self._assign_proxied(engine)

    def execution_options(self, **options: Any) -> SyncEngine:
        return SyncEngine(self.sync_engine.execution_options(**options))


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


def untranslatable_character() -> Exception:
    """Return the server's error for a text that the connection's encoding lacks."""
    from psycopg.errors import UntranslatableCharacter

    return UntranslatableCharacter("the encoding of the connection lacks a character")


def wrap_connection(connection: Connection) -> SyncConnection:
    """Return a connection of the application with the methods of `AsyncConnection`."""
    return SyncConnection(SyncEngine(connection.engine), connection)
