"""Text and JSON in Postgres: what it cannot keep, and the form in which the rest comes back."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from decimal import Decimal
from typing import Any

MAX_TEXT_BYTES = 128 * 2**20
"""UTF-8 bytes in a content, or in metadata as JSON: jsonb takes 256 MB, a message 1 GB."""

MAX_METADATA_DEPTH = 200
"""Nesting of metadata: far below what Python's and Postgres' JSON parsers stop at."""

# -- text ------------------------------------------------------------------------------------------


def unstorable(text: str) -> str | None:
    """Why Postgres cannot store a text, if it cannot."""
    if "\x00" in text:
        return "holds a NUL character, which Postgres cannot store"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds a lone surrogate, which is no valid Unicode"
    return None


def longer_than(text: str, most_bytes: int) -> bool:
    """Whether a text has more bytes of UTF-8, without encoding one that is surely shorter."""
    return len(text) > most_bytes // 4 and len(text.encode()) > most_bytes


# -- JSON ------------------------------------------------------------------------------------------


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class NotJSONError(Exception):
    """Says what about a value is not JSON, without quoting it."""


def json_text(value: Any) -> str:
    """Canonical JSON as text for jsonb."""
    try:
        text = _encode(value)
    except ValueError:  # an int of more digits than Python converts
        raise NotJSONError("holds an integer of too many digits") from None
    except RecursionError:
        raise NotJSONError("is nested too deep for what is left of the call stack") from None
    if longer_than(text, MAX_TEXT_BYTES):
        raise NotJSONError(f"is longer than {MAX_TEXT_BYTES:,} bytes of JSON")
    return text


def canonical_json(value: Any) -> Any:
    """A deep copy of a JSON value as it comes back from jsonb.

    jsonb keeps numbers as decimals and prints them without an exponent, so a float of 1e16 or more
    returns as an integer: that of its shortest decimal form.

    Raises:
        NotJSONError: the value holds something that would not survive.
    """
    try:
        return _canonical(value, 0)
    except RecursionError:
        raise NotJSONError("is nested too deep for what is left of the call stack") from None


_UNCHANGED = frozenset((bool, int, type(None)))


def canonical_object(value: dict[Any, Any]) -> tuple[dict[str, Any], str]:
    """A JSON object as it comes back from jsonb, and its text.

    Raises:
        NotJSONError: it holds something that would not survive.
    """
    # Most are flat, of plain values: then the text says at once whether it can be stored.
    if all(type(key) is str and type(one) in _PLAIN for key, one in value.items()):
        with suppress(ValueError):  # an int of more digits than Python converts: see json_text
            text = _encode(value)
            if len(text) <= MAX_TEXT_BYTES // 4 and "\\u0000" not in text and not unstorable(text):
                return value.copy(), text
    canonical = canonical_json(value)
    return canonical, json_text(canonical)


_PLAIN = frozenset((str, int, bool, type(None)))


def _canonical(value: Any, depth: int) -> Any:
    if type(value) in _UNCHANGED:  # most values are, and matching takes its time
        return value
    match value:
        case str():
            if reason := unstorable(value):
                raise NotJSONError(reason)
            return str.__str__(value)  # str() of an enum member would be its name
        case int():
            return int(value)
        case float():
            return _canonical_float(float(value))
        case dict() | list() if depth >= MAX_METADATA_DEPTH:
            raise NotJSONError(f"is nested more than {MAX_METADATA_DEPTH} deep")
        case dict():
            return {_canonical_key(k): _canonical(v, depth + 1) for k, v in value.items()}
        case list():
            return [_canonical(item, depth + 1) for item in value]
    raise NotJSONError(
        f"holds a value of type {type(value).__name__}, which is not JSON; convert it first "
        "(list(), str(), .item(), .isoformat())"
    )


def _canonical_float(value: float) -> float | int:
    if not math.isfinite(value):
        raise NotJSONError("holds NaN or an infinity, which JSON lacks")
    if abs(value) >= 1e16:  # from here on repr() and JSON use an exponent
        return int(Decimal(repr(value)))
    return value + 0.0  # makes -0.0 into 0.0


def _canonical_key(key: Any) -> str:
    if not isinstance(key, str):
        raise NotJSONError(f"has a key of type {type(key).__name__}, not str")
    if reason := unstorable(key):
        raise NotJSONError(f"has a key that {reason}")
    return str.__str__(key)
