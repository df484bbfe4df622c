"""Checks for arguments that arrive through a framework's interface."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cenote.errors import InvalidInputError
from cenote.validation.arguments import as_list, is_number, safe_repr


def list_of(values: Any, kind: type[Any], *, field: str) -> list[Any]:
    """Return a list of instances of one class.

    Args:
        values: List or other iterable.
        kind: Class that every element must be an instance of.
        field: Name of the argument, for the message.

    Raises:
        InvalidInputError: `values` is not iterable, or an element is not a `kind`.
    """
    rule = f"{field} must be a list of {kind.__name__}"
    items = as_list(values, rule, field=field, but_not=(str, bytes, Mapping, kind))
    for item in items:
        if not isinstance(item, kind):
            raise InvalidInputError(
                f"{rule}, but it contains an object of type {type(item).__name__}", field=field
            )
    return items


def list_of_length(values: Any, count: int, *, field: str) -> list[Any]:
    """Return a list with one element per text.

    Args:
        values: List or other iterable.
        count: Number of texts.
        field: Name of the argument, for the message.

    Raises:
        InvalidInputError: `values` is not iterable or does not have `count` elements.
    """
    rule = f"{field} must be a list of {count:,} elements, one per text"
    items = as_list(values, rule, field=field, but_not=(str, bytes, Mapping))
    if len(items) != count:
        raise InvalidInputError(f"{rule}, but it has {len(items):,}", field=field)
    return items


def reject_unknown(options: Mapping[str, Any], method: str) -> None:
    """Check that a method got no keyword arguments that it would ignore.

    Args:
        options: Keyword arguments that the method does not know.
        method: Name of the method, for the message.

    Raises:
        InvalidInputError: There are any. The error names the first.
    """
    for name in options:
        hint = ""
        if name == "namespace":
            hint = ": create another object for another namespace"
        raise InvalidInputError(f"{method}() does not accept {safe_repr(name)}{hint}", field=name)


def check_share(value: Any, *, field: str) -> None:
    """Check that an argument is a number from 0 to 1.

    Raises:
        InvalidInputError: It is not.
    """
    if not is_number(value, 0, 1):
        raise InvalidInputError(
            f"{field} must be a number from 0 to 1, not {safe_repr(value)}", field=field
        )


def document_id(metadata: Any, key: str, chunk_id: Any) -> Any:
    """Return the document id stored in metadata, or the chunk's id if there is none.

    Converts numbers to text. Returns other values unchanged; the store rejects them.
    """
    value = metadata.get(key) if isinstance(metadata, Mapping) else None
    if value is None or (isinstance(value, str) and not value):
        return chunk_id
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError:  # more digits than Python converts
            return value
    return value


def substring_pattern(value: Any) -> Any:
    """Return a LIKE pattern for texts that contain a text. Returns other values unchanged."""
    return "%" + re.sub(r"[\\%_]", r"\\\g<0>", value) + "%" if isinstance(value, str) else value
