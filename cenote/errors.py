"""Every error cenote raises, in one tree.

No message carries content, metadata, vectors or passwords; the facts a caller may want to act on
are attributes. An error from the database driver is the ``__cause__`` of ours.

    CenoteError
    ├── ConfigurationError          a setting that cannot work
    ├── MigrationError              the schema could not be brought to the wanted revision
    └── VectorStoreError            a call on a store failed
        ├── InvalidInputError       the caller's data was refused; nothing was written
        │   └── DimensionMismatchError
        └── StoreConnectionError    the database could not be reached, or hung up
            └── StoreTimeoutError   it did not answer in time
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
    """The root of cenote's errors."""


class ConfigurationError(CenoteError):
    """A setting is missing or cannot work.

    Attributes:
        setting: the name of the setting at fault, if there is one.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class MigrationError(CenoteError):
    """The schema could not be brought to the wanted revision; the transaction was rolled back."""


class VectorStoreError(CenoteError):
    """A call on a store failed.

    Attributes:
        sqlstate: the five-character SQLSTATE the server gave, if it was the server that refused.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class InvalidInputError(VectorStoreError):
    """The caller's data was refused before anything was written.

    Attributes:
        field: the argument or field at fault, such as ``"metadata"`` or ``"limit"``.
        chunk_id: the chunk at fault, where the data belongs to one.
    """

    def __init__(
        self, message: str, *, field: str | None = None, chunk_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.chunk_id = chunk_id


class DimensionMismatchError(InvalidInputError):
    """A vector has another number of dimensions than the store.

    Attributes:
        expected: the store's number of dimensions.
        actual: the vector's.
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
    """The database could not be reached, refused the connection or ended it.

    Attributes:
        attempts: how often a connection was tried.
    """

    def __init__(self, message: str, *, attempts: int = 1, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate=sqlstate)
        self.attempts = attempts


class StoreTimeoutError(StoreConnectionError):
    """The database did not answer within the store's `operation_timeout`.

    The connection is given up: a write may have taken effect or not, and a transaction of the
    caller's is over.
    """
