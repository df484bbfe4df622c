"""Stores for the test classes that run the contract suite on Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Delete, Engine, delete
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.orm.factory import chunk_table
from cenote.testing import MakeStore

CreateStore = Callable[..., Awaitable[Any]]
"""Function ``(dimensions, table_name, **options)`` that returns a store and creates its table."""


class ContractStores:
    """Empty stores for a test class.

    Each set of options has one store: creating a store and its table takes longer than most tests.

    Args:
        engine: An engine that may delete all rows.
    """

    def __init__(self, engine: AsyncEngine | Engine) -> None:
        self._engine = engine
        self._stores: dict[object, tuple[Any, Delete]] = {}

    @asynccontextmanager
    async def maker(self, create: CreateStore, table_name: str) -> AsyncIterator[MakeStore]:
        """Yield the value of the fixture ``make_store`` for one test.

        Afterwards, check that the test's stores have returned their connections.

        Args:
            create: Called once for each set of options.
            table_name: Beginning of the tables' names, different for each value of `create`. Each
                full-text configuration has a table.
        """
        used: list[Any] = []

        async def make(dimensions: int, **options: Any) -> Any:
            key = (table_name, dimensions, *sorted(options.items()))
            if key not in self._stores:
                languages = options.get("text_search", "").split(", ")
                name = "_".join(filter(None, (table_name, *languages)))
                store = await create(dimensions, table_name=name, **options)
                self._stores[key] = store, delete(chunk_table(store.config))
            store, statement = self._stores[key]
            await self._execute(statement)
            used.append(store)
            return store

        yield make
        for store in used:
            assert store.engine.pool.checkedout() == 0, "a connection was not returned to the pool"

    async def _execute(self, statement: Delete) -> None:
        if isinstance(self._engine, Engine):
            with self._engine.begin() as connection:
                connection.execute(statement)
        else:
            async with self._engine.begin() as connection:
                await connection.execute(statement)
