"""What the adapters check of what a framework hands over, before there is a chunk for a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cenote.errors import InvalidInputError
from cenote.validation import listed, shown


def objects(values: Any, kind: type[Any], *, field: str) -> list[Any]:
    """A list of a framework's objects; refuses one of anything else.

    Args:
        values: the list, or another iterable.
        kind: of which class they must be.
        field: the argument.
    """
    rule = f"{field} must be a list of {kind.__name__}"
    several = listed(values, rule, field=field, but_not=(str, bytes, Mapping, kind))
    for one in several:
        if not isinstance(one, kind):
            raise InvalidInputError(f"{rule}, not of {type(one).__name__}", field=field)
    return several


def as_many(values: Any, count: int, *, field: str) -> list[Any]:
    """A list of one for each text; refuses another number of them."""
    rule = f"{field} must be a list of {count:,}, one for each text"
    several = listed(values, rule, field=field, but_not=(str, bytes, Mapping))
    if len(several) != count:
        raise InvalidInputError(f"{rule}, not of {len(several):,}", field=field)
    return several


def is_whole(value: Any, *, least: int) -> bool:
    """Whether a value is an integer of so much or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(value: Any, *, least: int, field: str) -> None:
    """Refuse what is no integer of so much or more."""
    if not is_whole(value, least=least):
        raise InvalidInputError(
            f"{field} must be an integer of {least} or more, not {shown(value)}", field=field
        )


def check_share(value: Any, *, field: str) -> None:
    """Refuse what is no number from 0 to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1):
        raise InvalidInputError(f"{field} must be from 0 to 1, not {shown(value)}", field=field)


def document_id(metadata: Any, key: str, chunk_id: Any) -> Any:
    """The document that metadata name: the chunk itself where there is none.

    Numbers are written as texts. What cannot be an id is left for the store to refuse.
    """
    named = metadata.get(key) if isinstance(metadata, Mapping) else None
    if named is None or (isinstance(named, str) and not named):
        return chunk_id
    if isinstance(named, int | float):
        try:
            return str(named)
        except ValueError:  # of more digits than Python writes
            return named
    return named
