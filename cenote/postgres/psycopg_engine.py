"""Engines and connections on psycopg, for what its driver needs beyond SQLAlchemy."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn


class PsycopgConnection(AsyncConnection):
    """A connection that returns to the pool if a call is cancelled, and that counts inserted rows.

    SQLAlchemy sets the isolation level after it has borrowed a connection from the pool. For this
    it awaits psycopg's `set_autocommit`, which lets other tasks run if psycopg has not waited for
    5 ms (``wait_async`` in psycopg's ``waiting.py``, version 3.3.9). A task that is cancelled there
    loses the connection: `Connection.__init__` raises, and the connection stays checked out until
    the garbage collector finds it. If the level is set on an open connection, the connection
    returns to the pool in AUTOCOMMIT. asyncpg's adapter only sets an attribute, and does not wait.
    """

    async def start(self, is_ctxmanager: bool = False) -> Self:
        if self.sync_connection is not None:
            await super().start(is_ctxmanager)  # raises SQLAlchemy's error
        self.sync_connection = await greenlet_spawn(_connect, self.sync_engine)
        return self

    async def execution_options(self, **options: Any) -> Self:
        try:
            await super().execution_options(**options)
        except asyncio.CancelledError:
            await self.invalidate()  # the pool would not reset the isolation level
            raise
        return self

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

    def _assign_proxied(self, target: Any) -> Any:
        # SQLAlchemy keeps one asynchronous object per connection: the application's own.
        return target


class PsycopgEngine(AsyncEngine):
    """An engine whose connections are `PsycopgConnection` objects.

    Args:
        engine: Synchronous engine, or the one inside an `AsyncEngine`.
    """

    _connection_cls: type[AsyncConnection] = PsycopgConnection

    def __init__(self, engine: Engine) -> None:
        self.sync_engine = engine  # not registered, as in `PsycopgConnection`

    def execution_options(self, **options: Any) -> Self:
        return type(self)(self.sync_engine.execution_options(**options))


def adapted_engine(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine for cenote's calls: a `PsycopgEngine` if its driver is psycopg."""
    if engine.dialect.driver != "psycopg" or isinstance(engine, PsycopgEngine):
        return engine
    return PsycopgEngine(engine.sync_engine)


def adapted_connection(connection: AsyncConnection) -> AsyncConnection:
    """Return a connection for cenote's calls: a `PsycopgConnection` if its driver is psycopg."""
    if connection.dialect.driver != "psycopg" or isinstance(connection, PsycopgConnection):
        return connection
    return PsycopgConnection(PsycopgEngine(connection.sync_engine), connection.sync_connection)


def _connect(engine: Engine) -> Connection:
    """Connect, and close the borrowed connection if one of the engine's events raises an error.

    SQLAlchemy sets the isolation level of an engine in such an event.
    """
    try:
        borrowed = engine.raw_connection()
    except engine.dialect.loaded_dbapi.Error as error:
        Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)
        raise
    try:
        return engine._connection_cls(engine, borrowed)
    except BaseException:
        borrowed.invalidate()
        raise


def untranslatable_character() -> Exception:
    """Return the server's error for a text that the connection's encoding lacks."""
    from psycopg.errors import UntranslatableCharacter

    return UntranslatableCharacter("the encoding of the connection lacks a character")
