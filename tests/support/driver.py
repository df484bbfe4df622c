"""Observe the statements that a driver sends, and insert many rows at once."""

from __future__ import annotations

import asyncio
import re
from functools import cache, wraps
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cenote import PgVectorStore
from cenote.testing import found


def watch(engine: AsyncEngine) -> list[str]:
    """Return a list to which the engine's later connections append the SQL of each statement.

    Only events of the pool are used, which the store does not have to respect.
    """
    sent: list[str] = []

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, record: Any) -> None:
        if isinstance(connection, psycopg.Connection):
            _log_statements(connection, sent)
        else:
            connection.driver_connection.add_query_logger(lambda query: sent.append(query.query))

    return sent


_statements: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()
"""Lists of `watch` by connection of psycopg."""


def _log_statements(connection: Any, sent: list[str]) -> None:
    """Append the SQL of each statement, which is executed by a cursor, to a list."""
    _log_cursors()
    _statements[connection] = sent


@cache
def _log_cursors() -> None:
    execute: Any = psycopg.Cursor.execute

    @wraps(execute)
    def log_and_execute(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        if cursor.connection in _statements:
            _statements[cursor.connection].append(query)
        return execute(cursor, query, *arguments, **options)

    cursors: Any = psycopg.Cursor
    cursors.execute = log_and_execute


def partition_of(sql: str, table: str = "cenote_chunks") -> str | None:
    """Return the partition that a statement reads by name; None if it reads the chunk table."""
    match = re.search(rf"\bFROM (?:\w+\.)?({table}_p\d+)\b", sql)
    return match and match[1]


async def insert(
    connection: AsyncConnection | AsyncEngine,
    namespace: str,
    count: int,
    *,
    first: int = 0,
    table: str = "cenote_chunks",
) -> None:
    """Insert chunks whose ids are numbers of six digits, in one statement.

    The metadata is ``{"k": number % 10}``. Ten chunks share a document. The vectors look random,
    and are the same for the same number.
    """
    if isinstance(connection, AsyncEngine):
        async with connection.begin() as new:
            await insert(new, namespace, count, first=first, table=table)
        return
    await connection.execute(
        text(f"""
            INSERT INTO {table} (namespace, id, document_id, content, position, metadata,
                content_hash, embedding, embedding_model)
            SELECT CAST(:namespace AS text), lpad(n::text, 6, '0'), 'd' || n / 10, 'text', n,
                jsonb_build_object('k', n % 10), '',
                (SELECT array_agg(((sin(n * 12.9898 + i * 78.233) * 43758.5453)::numeric % 1)::real
                    ORDER BY i) FROM generate_series(1, 4) AS i)::vector, 'model'
            FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
        """),
        {"namespace": namespace, "first": first, "last": first + count - 1},
    )


async def ids_of(store: PgVectorStore, *args: Any, **options: Any) -> list[str]:
    """Return the ids of the chunks that a search finds, after the driver's loggers have run."""
    try:
        return await found(store, *args, **options)
    finally:
        await asyncio.sleep(0)  # asyncpg calls its loggers in the next turn of the event loop


async def reference(
    store: PgVectorStore, engine: AsyncEngine, *args: Any, **options: Any
) -> list[str]:
    """Return the ids that the statement without hints finds, in a caller's transaction."""
    async with engine.connect() as connection:
        return await ids_of(store, *args, session=connection, **options)
