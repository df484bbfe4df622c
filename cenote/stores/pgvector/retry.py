"""The decorator of `PgVectorStore`'s operations: telemetry, and retries where they are safe.

Only an operation on a connection of the store is retried. In the caller's transaction, the work
that came before would have to be repeated as well. After a lost connection an operation is retried
once: only the application knows how much longer it can wait.
"""

from __future__ import annotations

import enum
import logging
import random
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, cast

from cenote.errors import StoreConnectionError, VectorStoreError
from cenote.responsive import sleep
from cenote.telemetry import Method, argument_position, reported

_ROLLED_BACK = ("40001", "40P01")
"""Codes for serialization failures and deadlocks: the server has rolled everything back. Source:
PostgreSQL manual, appendix A."""

_MAX_ATTEMPTS = 4
"""Maximum number of attempts if the server rolls an operation back: meanwhile, the transaction that
it collided with goes on."""

_PAUSE_SECONDS = 0.05
"""Base of the longest pause before a retry after a rollback; it doubles with each attempt. The
pause is random, which keeps contending operations from colliding again."""

_ENDED = ("08", "57P")
"""Prefixes of the codes for connection exceptions, and for a server that ends connections, shuts
down or starts up."""

_logger = logging.getLogger(__name__)


class Retry(enum.Enum):
    """Rule for retrying an operation that fails on a connection of the store."""

    ALWAYS = enum.auto()
    """Retry after a lost connection, a rollback by the server and a stale plan. For reads, and for
    writes that return nothing: a second run does no harm if the first one took effect after all."""

    IF_ROLLED_BACK = enum.auto()
    """Retry only what the server has rolled back or never run. For operations that count changes:
    if the first run took effect after all, a second one would return a wrong count."""

    NEVER = enum.auto()
    """Never retry. For operations that consist of other operations."""


def operation(name: str, *, retry: Retry, batch: str | None = None) -> Callable[[Method], Method]:
    """Decorate a coroutine method of a store as an operation that is reported and retried.

    Calls with ``session=``, and calls of a store that is bound to a session, are never retried. One
    operation is reported, however many attempts it takes.

    Args:
        name: Name of the operation in telemetry and logs.
        retry: Retry rule.
        batch: Parameter that accepts an iterator, which is read into a list before the first
            attempt, because the second one would find it empty. Other parameters, such as query
            vectors, reject iterators.
    """

    def decorate(method: Method) -> Method:
        if retry is Retry.NEVER:
            return reported(name)(method)
        return reported(name)(_naming_the_filter(_with_retry(method, name, retry, batch)))

    return decorate


def _naming_the_filter(method: Method) -> Method:
    """Raise `InvalidInputError` for a value of the filter that the driver or the server rejects."""
    position = argument_position(method, "filter")
    if position is None:
        return method

    @wraps(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return await method(self, *arguments, **options)
        except VectorStoreError as error:
            given = arguments[position] if position < len(arguments) else options.get("filter")
            invalid = self._filter_error(given, error)
            if invalid is None:
                raise
            raise invalid from error.__cause__

    return cast(Method, call)


def _with_retry(method: Method, name: str, retry: Retry, batch: str | None) -> Method:
    position = None if batch is None else argument_position(method, batch)
    assert (position is None) == (batch is None), f"{name} has no parameter {batch}"

    @wraps(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("session") is not None or self._session is not None:
            return await method(self, *arguments, **options)
        if batch is not None and position is not None:
            if position >= len(arguments):
                if isinstance(options.get(batch), Iterator):
                    options[batch] = list(options[batch])
            elif isinstance(arguments[position], Iterator):
                items = list(arguments[position])
                arguments = (*arguments[:position], items, *arguments[position + 1 :])
        attempt = 1
        while True:
            try:
                return await method(self, *arguments, **options)
            except VectorStoreError as error:
                if not _is_retried(retry, error, attempt):
                    raise
                _logger.info("retrying %s after: %s", name, error)
                if error.sqlstate in _ROLLED_BACK:
                    await sleep(random.uniform(0, _PAUSE_SECONDS * 2**attempt))
                attempt += 1

    return cast(Method, call)


def _is_retried(retry: Retry, error: VectorStoreError, attempt: int) -> bool:
    if error.sqlstate in _ROLLED_BACK:
        return attempt < _MAX_ATTEMPTS
    if attempt > 1:
        return False
    if error._is_stale_plan:
        return True
    if retry is Retry.IF_ROLLED_BACK or isinstance(error.__cause__, TimeoutError):
        return False  # retrying after a timeout would double the load on a slow server
    lost = isinstance(error, StoreConnectionError)
    return lost and (error.sqlstate is None or error.sqlstate.startswith(_ENDED))
