"""Run compiled statements on the connections of psycopg, without SQLAlchemy's execution.

See `cenote.stores.pgvector.direct`. With SQLAlchemy's execution, and without remembering where a
namespace is, a search of 200 rows took twice as long, measured with SQLAlchemy 2.1 and psycopg 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Dialect, PoolProxiedConnection, Select
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.errors import CenoteError, StoreTimeoutError
from cenote.postgres.driver_errors import database_errors, is_stale_plan
from cenote.postgres.extension import is_prepared, prepare_psycopg
from cenote.postgres.psycopg_engine import untranslatable_character
from cenote.postgres.sync_engine import end_statement, is_in_a_statement
from cenote.stores.pgvector.direct import DirectConnections
from cenote.stores.pgvector.sql.compiled_query import CompiledQuery


class DirectPsycopgConnections(DirectConnections):
    """Borrows synchronous connections of psycopg from an engine's pool, and calls the driver."""

    _driver = "psycopg"

    def __init__(self, engine: AsyncEngine, migrations: str) -> None:
        super().__init__(engine, migrations)
        # psycopg reads SQL with numbered parameters as it is. It would search other SQL for names,
        # and remember the result for statements of up to 4,096 characters only.
        dialect: Any = type(engine.dialect)
        self._numbering: Dialect = dialect(paramstyle="numeric_dollar")

    def _compile(self, statement: Select[Any], dialect: Dialect) -> CompiledQuery:
        return CompiledQuery(statement, dialect, self._numbering)

    async def fetch(
        self,
        statement: Select[Any],
        parameters: Mapping[str, Any],
        limit_time: Callable[[Any], AbstractContextManager[object]],
    ) -> Sequence[Sequence[Any]] | None:
        query = self._queries[statement]
        arguments = query.arguments(parameters)
        connection = self._connect()
        try:
            driver: Any = connection.driver_connection
            if not _is_plain(driver):
                self._supported = False
                return None
            with limit_time(driver):
                return self._fetch_rows(connection, driver, query, arguments)
        except BaseException as error:
            expected = isinstance(error, (CenoteError, *database_errors()))
            if end_statement(connection.driver_connection) or not expected:
                connection.invalidate()  # a signal handler has raised it
            else:
                self._invalidate_pool_if_useless(connection, error)
            raise
        finally:
            connection.close()

    def _fetch_rows(
        self,
        connection: PoolProxiedConnection,
        driver: Any,
        query: CompiledQuery,
        arguments: Sequence[Any],
    ) -> Sequence[Sequence[Any]]:
        from psycopg import RawCursor
        from psycopg.rows import tuple_row

        autocommit = driver.autocommit
        try:
            if not autocommit:
                driver.autocommit = True  # without BEGIN and ROLLBACK, which are round trips
            if not is_prepared(connection):
                prepare_psycopg(connection, migrations=self._migrations)
            # A connection's own threshold for prepared statements applies, or none behind a pooler.
            cursor: Any = RawCursor(driver, row_factory=tuple_row)
            cursor.execute(query.sql, arguments, prepare=None if query.kept else False)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows
        except UnicodeEncodeError:  # it contains the text, and has a place in the next error
            pass
        finally:
            if not autocommit and not driver.closed and not is_in_a_statement(driver):
                driver.autocommit = False
        raise untranslatable_character()

    def _invalidate_pool_if_useless(self, connection: PoolProxiedConnection, error: Any) -> None:
        """Make the pool replace its connections if they are lost or have stale plans.

        psycopg keeps a prepared statement on each connection, also if its table has changed. The
        time limit closes a connection whose server does not answer.
        """
        given_up = isinstance(error, StoreTimeoutError) and self._is_closed(connection)
        if given_up or is_stale_plan(error):
            self._engine.sync_engine.pool._invalidate(connection, error)
        else:
            self._invalidate_pool_if_lost(connection, error)

    def _is_closed(self, connection: PoolProxiedConnection) -> bool:
        driver: Any = connection.driver_connection
        return bool(driver.closed)


def _is_plain(driver: Any) -> bool:
    """Return whether a connection has psycopg's own classes.

    Instrumentations replace the class of the connection or of its cursors.
    """
    from psycopg import Connection, Cursor

    return type(driver) is Connection and driver.cursor_factory is Cursor
