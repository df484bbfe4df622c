"""Name the chunk and the column that caused an error of the driver or the server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError

from cenote.errors import InvalidInputError
from cenote.orm.user_columns import UserColumn, column_error, value_error
from cenote.postgres.driver_errors import diagnostic, driver_error, redact, violated_key
from cenote.stores.pgvector.executor import StatementExecutor
from cenote.validation.batches import Batch
from cenote.validation.vectors import reject_beyond_half

_ABOUT_CONTENTS = ("22003", "22021", "22P05")
"""SQLSTATEs that a position of more than 32 bits in a legacy table, or a character that the
database's encoding lacks, may cause."""

_NO_CONVERSION = ("42804", "42846")
"""SQLSTATEs: the types do not match, or the server cannot convert one into the other."""


@contextmanager
def naming_the_chunk(
    operation: str,
    executor: StatementExecutor,
    namespace: str,
    batch: Batch,
    columns: Sequence[UserColumn],
    parameters: Mapping[str, Any],
) -> Iterator[None]:
    """Turn errors about one chunk of an upsert into errors that name it; other errors pass.

    Args:
        operation: Name of the operation, for messages.
        executor: Executor of the store, which translates errors.
        namespace: Namespace of the chunks.
        batch: The chunks.
        columns: User columns that the statement writes.
        parameters: Parameters of the statement.

    Raises:
        InvalidInputError: The driver cannot send the value of a user column, or the server rejects
            it, and there is only one chunk and one column that it can be.
        VectorStoreError: A chunk violates a constraint.
    """
    try:
        yield
    except DBAPIError as error:
        cause = driver_error(error)
        state = getattr(cause, "sqlstate", None) or ""
        invalid = _unsendable(error, cause, batch, columns, parameters)
        if invalid is None and _is_about_values(cause, state):
            if state in _ABOUT_CONTENTS:
                invalid = _unencodable(batch, columns, parameters) or _beyond_half(batch)
            else:
                checked = [column for column in columns if column.is_checked_by_server]
                invalid = _not_accepted(batch, checked, parameters)
        if invalid is not None:
            invalid.sqlstate = state or None
            redact(error)
            raise invalid from cause
        chunk_id = _violating_chunk(cause, namespace, batch, columns)
        if chunk_id is None:
            raise
        raise executor.translated(operation, error, chunk_id=chunk_id) from cause


def _is_about_values(cause: BaseException, state: str) -> bool:
    """Return whether an error is about a value.

    psycopg sends values with the types of Python, from which the server may have no conversion. It
    rejects lists of several types itself, without an SQLSTATE.
    """
    if state.startswith("22") or state in _NO_CONVERSION:
        return True
    return not state and type(cause).__name__ in ("DataError", "ProgrammingError")


def _unsendable(
    error: DBAPIError,
    cause: BaseException,
    batch: Batch,
    columns: Sequence[UserColumn],
    parameters: Mapping[str, Any],
) -> InvalidInputError | None:
    """Return an error about the value that asyncpg cannot encode; None for other errors.

    asyncpg's message contains the number of the parameter, which is a list of one value per chunk,
    and, for most types, the index in the list.
    """
    text = str(cause)
    number = re.search(r"invalid input for query argument \$(\d+)", text)
    indexes = re.findall(r"\(invalid array element at index (\d+): ", text)
    sent: Any = error.params
    if number is None or not isinstance(sent, Sequence):
        return None
    values = sent[int(number[1]) - 1]
    for column in columns:
        if parameters[column.name + "_list"] is values:
            index = int(indexes[-1]) if indexes else column.first_of_other_type(values)
            if index is None:
                return _not_accepted(batch, [column], parameters)
            return value_error(column, batch.chunks[index].id, values[index])
    return None


def _not_accepted(
    batch: Batch, columns: Sequence[UserColumn], parameters: Mapping[str, Any]
) -> InvalidInputError | None:
    """Return an error about a value in one of these columns; None if all values are None.

    The error names the chunk if only one chunk has a value.
    """
    values = {column.name: parameters[column.name + "_list"] for column in columns}
    names = " or ".join(name for name in values if any(v is not None for v in values[name]))
    ids = (
        [
            chunk.id
            for chunk, row in zip(batch.chunks, zip(*values.values(), strict=True), strict=True)
            if any(value is not None for value in row)
        ]
        if values
        else []
    )
    if not ids:
        return None
    if len(ids) == 1:
        return column_error(ids[0], f"Postgres does not accept its value for {names}")
    return InvalidInputError(
        f"Postgres does not accept the value of a chunk for {names}; to find the chunk, upsert "
        "smaller batches",
        field="columns",
    )


def _unencodable(
    batch: Batch, columns: Sequence[UserColumn], parameters: Mapping[str, Any]
) -> InvalidInputError | None:
    """Return an error about NUL or a lone surrogate in a value; None if there is none.

    Arrays and JSON are sent as text, in which JSON escapes the character NUL.
    """
    for column in columns:
        for chunk, value in zip(batch.chunks, parameters[column.name + "_list"], strict=True):
            if not isinstance(value, str):
                continue
            if column.is_checked_by_server and ("\0" in value or "u0000" in value):
                character = "the character NUL"
            elif not _is_utf8(value):
                character = "a lone surrogate"
            else:
                continue
            return column_error(chunk.id, f"the column {column.name} does not accept {character}")
    return None


def _beyond_half(batch: Batch) -> InvalidInputError | None:
    """Return an error about a vector that an index of 16-bit floats cannot store; None if all fit.

    A store that has not read the kind of the index yet does not check the vectors before.
    """
    try:
        reject_beyond_half(batch.embeddings, [chunk.id for chunk in batch.chunks])
    except InvalidInputError as error:
        return error
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _violating_chunk(
    cause: BaseException, namespace: str, batch: Batch, columns: Sequence[UserColumn]
) -> str | None:
    """Return the id of the chunk that violates a constraint, if the error's detail shows it."""
    detail = diagnostic(cause, "detail") or ""
    by_name = {column.column.name: column.name for column in columns}
    names, key = violated_key(cause)
    for chunk, values in zip(batch.chunks, batch.columns, strict=True):
        row = {
            "namespace": namespace,
            "id": chunk.id,
            "document_id": chunk.document_id,
            "position": chunk.position,
            **{name: values.get(attribute) for name, attribute in by_name.items()},
        }
        if names and set(names) <= row.keys():
            if ", ".join(str(row[name]) for name in names) == key:
                return chunk.id
        elif f"({namespace}, {chunk.id}, " in detail:  # the row that violates a check
            return chunk.id
    return None
