"""Exceptions that cenote raises.

Messages never contain content, metadata, vectors or passwords. Facts that a caller may act on are
attributes. If the database driver raised an error, it is the ``__cause__``.

    CenoteError
    ├── ConfigurationError          a setting is missing or invalid
    ├── MigrationError              the schema could not be migrated
    └── VectorStoreError            an operation of a store failed
        ├── InvalidInputError       the caller's data is invalid; nothing was written
        │   └── DimensionMismatchError
        └── StoreConnectionError    the connection could not be opened, or broke
            └── StoreTimeoutError   the database did not answer in time
"""

from __future__ import annotations

__all__ = [
    "CenoteError",
    "ConfigurationError",
    "DimensionMismatchError",
    "InvalidInputError",
    "MigrationError",
    "StoreConnectionError",
    "StoreTimeoutError",
    "VectorStoreError",
]


class CenoteError(Exception):
    """Base class of all exceptions that cenote raises."""


class ConfigurationError(CenoteError):
    """A setting is missing or invalid.

    Attributes:
        setting: Name of the setting, or None if the error concerns no single setting.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class MigrationError(CenoteError):
    """The schema could not be migrated to the requested revision.

    The transaction was rolled back.
    """


class VectorStoreError(CenoteError):
    """An operation of a store failed.

    Attributes:
        sqlstate: Five-character SQLSTATE of the server's error, or None if the error did not come
            from the server.
    """

    _is_stale_plan = False
    """True if a prepared statement was out of date, because its table has changed."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class InvalidInputError(VectorStoreError):
    """The caller's data is invalid. Nothing was written.

    Attributes:
        field: Name of the invalid argument or field, for example ``"metadata"`` or ``"limit"``.
        chunk_id: Id of the chunk that contains the invalid data, if it belongs to a chunk.
    """

    def __init__(
        self, message: str, *, field: str | None = None, chunk_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.chunk_id = chunk_id


class DimensionMismatchError(InvalidInputError):
    """The number of dimensions of a vector differs from that of the store.

    Attributes:
        expected: Number of dimensions of the store.
        actual: Number of dimensions of the vector.
    """

    def __init__(
        self,
        message: str,
        *,
        expected: int | None = None,
        actual: int | None = None,
        field: str | None = None,
        chunk_id: str | None = None,
    ) -> None:
        super().__init__(message, field=field, chunk_id=chunk_id)
        self.expected = expected
        self.actual = actual


class StoreConnectionError(VectorStoreError):
    """The database could not be reached, rejected the connection or closed it.

    Attributes:
        attempts: Number of connection attempts.
    """

    def __init__(self, message: str, *, attempts: int = 1, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate=sqlstate)
        self.attempts = attempts


class StoreTimeoutError(StoreConnectionError):
    """The database did not answer within the store's `operation_timeout`.

    A write may or may not have taken effect. On asyncpg, the connection is closed, and a
    transaction of the caller has ended. On psycopg, the store asks the server to cancel the
    statement. The connection stays open: roll a transaction of the caller back, at least to a
    savepoint. A `SyncPgVectorStore` closes the connection if the server does not answer.
    """
