"""Let the contract suite, which awaits, call synchronous stores."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any


class Awaited:
    """A synchronous store with the asynchronous methods that the contract suite calls.

    Args:
        store: The synchronous store.
    """

    def __init__(self, store: Any) -> None:
        self.sync = store

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.sync, name)
        if name == "get_all_chunks":
            return lambda *arguments, **options: _iterate(value(*arguments, **options))
        if not inspect.ismethod(value) or name in ("search_statement", "in_session"):
            return value

        async def call(*arguments: Any, **options: Any) -> Any:
            return value(*arguments, **options)

        return call


async def _iterate(chunks: Iterator[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk
