"""Trying a store's operation again, where that can do no harm.

Only operations on connections of the store's own: in a caller's transaction, what went before would
have to be done again, too. After a lost connection only once: whoever wants more knows better how
long to wait.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

from cenote.errors import StoreConnectionError, VectorStoreError

REPEATABLE = frozenset(
    {
        *("search", "search_many", "search_text", "search_hybrid", "search_diverse"),
        *("get", "get_embeddings", "list_chunks", "_page", "count", "list_namespaces"),
        *("neighbours", "missing", "upsert", "delete", "delete_namespace"),
    }
)
"""Operations that may be done twice: readings, and writes that say nothing of what they changed."""

COUNTING = frozenset({"delete_document", "delete_matching", "update_metadata", "sync_document"})
"""Those of which a second run would count wrongly, if the first one took effect after all."""

_UNDONE = ("40001", "40P01")
"""Serialization failure, deadlock: the server has undone everything. Source: PostgreSQL manual,
appendix A."""

_LISTS = frozenset(("embedded_chunks", "chunk_ids", "chunks", "query_vectors"))
"""The arguments that may be iterators. Another, such as a query vector, must be refused as one."""

_ATTEMPTS = 4
"""How often an operation is tried that the server undoes: what was in its way goes on meanwhile."""

_PAUSE_SECONDS = 0.05
"""What the longest pause before it is tried again starts from; it doubles. Of those that met, one
comes first then."""

_STALE_PLAN = "InvalidCachedStatementError"
"""What asyncpg calls a prepared statement whose table was changed since; the next one is new."""

_ENDED = ("08", "57P")
"""Connection exception; ended by the operator, shut down, starting up."""

_logger = logging.getLogger(__name__)

Store = TypeVar("Store", bound=type)


def retrying(store: Store) -> Store:
    """Have the operations of a store class tried again where that can do no harm."""
    for name in REPEATABLE | COUNTING:
        method = getattr(store, name)
        names = [*inspect.signature(method).parameters][1:]  # without self
        setattr(store, name, _twice(method, names))
    return store


def _twice(method: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    place = names.index("session")

    @wraps(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        session = arguments[place] if place < len(arguments) else options.get("session")
        if session is not None:
            return await method(self, *arguments, **options)
        again = [_again(name, one) for name, one in zip(names, arguments, strict=False)]
        again += arguments[len(names) :]  # more than there are, for the method to refuse
        options = {name: _again(name, one) for name, one in options.items()}
        attempt = 1
        while True:
            try:
                return await method(self, *again, **options)
            except VectorStoreError as error:
                if not _may_be_repeated(method.__name__, error, attempt):
                    raise
                _logger.info("%s is tried again after %s", method.__name__, error)
                if error.sqlstate in _UNDONE:
                    await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS * 2**attempt))
                attempt += 1

    return call


def _again(name: str, argument: Any) -> Any:
    """An argument for several attempts: what can be read once would be empty the second time."""
    return list(argument) if name in _LISTS and isinstance(argument, Iterator) else argument


def _may_be_repeated(operation: str, error: VectorStoreError, attempt: int) -> bool:
    if error.sqlstate in _UNDONE:
        return attempt < _ATTEMPTS
    if attempt > 1:
        return False
    if type(error.__cause__).__name__ == _STALE_PLAN:
        return True
    if operation in COUNTING or isinstance(error.__cause__, TimeoutError):
        return False  # a server that is slow would get twice the load
    lost = isinstance(error, StoreConnectionError)
    return lost and (error.sqlstate is None or error.sqlstate.startswith(_ENDED))
