"""Text and JSON in Postgres: values it cannot store, and the form in which others come back."""

from __future__ import annotations

import json
import json.encoder
import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

MAX_TEXT_BYTES = 128 * 2**20
"""Maximum UTF-8 bytes of a content, or of metadata as JSON: jsonb takes 256 MB, a message 1 GB."""

MAX_METADATA_DEPTH = 200
"""Maximum nesting depth of metadata, far below the limits of Python's and Postgres' parsers."""

# -- text ------------------------------------------------------------------------------------------


def unstorable(text: str) -> str | None:
    """Return the reason why Postgres cannot store a text; None if it can."""
    if "\x00" in text:
        return "contains a NUL character, which Postgres cannot store"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "contains a lone surrogate, which is not valid Unicode"
    return None


def longer_than(text: str, most_bytes: int) -> bool:
    """Return whether a text has more bytes of UTF-8. A surely shorter text is not encoded."""
    return len(text) > most_bytes // 4 and len(text.encode()) > most_bytes


# -- JSON ------------------------------------------------------------------------------------------


def approximate_bytes(value: Any) -> int:
    """Return the approximate size of a value as JSON.

    Texts count with their bytes of UTF-8, and each item of a list or an object with 32 bytes more.
    """
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(32 + len(key) + approximate_bytes(item) for key, item in value.items())
    if isinstance(value, list):
        return sum([32 + approximate_bytes(item) for item in value])
    return 8


def _encoder() -> Callable[[Any], str]:
    """Return a function that prints a JSON value without reference cycles.

    `json.JSONEncoder.encode` creates a new encoder for each call, which takes half of the time for
    small objects, and looks for reference cycles.
    """
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
    module: Any = json.encoder  # its functions have no types
    if module.c_make_encoder is None:  # Python without its C accelerators
        return encoder.encode
    encode = module.c_make_encoder(
        None, encoder.default, module.encode_basestring, None, ": ", ", ", False, False, False
    )
    return lambda value: "".join(encode(value, 0))


_encode = _encoder()


class NotJSONError(Exception):
    """Explains why a value is not JSON, without quoting it."""


class DateInJSONError(NotJSONError):
    """Explains that a value is a date or a datetime."""


def json_text(value: Any) -> str:
    """Return canonical JSON as text for jsonb."""
    try:
        text = _encode(value)
    except ValueError:  # an int of more digits than Python converts
        raise NotJSONError("contains an integer of too many digits") from None
    except RecursionError:
        raise NotJSONError("is nested too deep for what is left of the call stack") from None
    if longer_than(text, MAX_TEXT_BYTES):
        raise NotJSONError(f"is longer than {MAX_TEXT_BYTES:,} bytes of JSON")
    return text


def canonical_json(value: Any) -> Any:
    """Return a deep copy of a JSON value in the form in which it comes back from jsonb.

    jsonb stores numbers as decimals and prints them without an exponent. A float of 1e16 or more
    therefore comes back as the integer of its shortest decimal form.

    Raises:
        NotJSONError: The value contains something that would not come back.
    """
    try:
        return _canonical(value, 0)
    except RecursionError:
        raise NotJSONError("is nested too deep for what is left of the call stack") from None


_UNCHANGED = frozenset((bool, int, type(None)))


def canonical_object(value: dict[Any, Any]) -> tuple[dict[str, Any], str]:
    """Return a JSON object in the form in which it comes back from jsonb, and its text.

    Raises:
        NotJSONError: The object contains a value that would not come back.
    """
    # Most objects are flat, with plain values. Then the text shows at once if it can be stored.
    if _KEYS.issuperset(map(type, value)) and _PLAIN.issuperset(map(type, value.values())):
        try:
            text = _encode(value)
        except ValueError:  # an int of more digits than Python converts: see json_text
            text = None
        if (
            text is not None
            and len(text) <= MAX_TEXT_BYTES // 4
            and "\\u0000" not in text
            and not unstorable(text)
        ):
            return value.copy(), text
    canonical = canonical_json(value)
    return canonical, json_text(canonical)


_KEYS = frozenset((str,))
_PLAIN = frozenset((str, int, bool, type(None)))


def _canonical(value: Any, depth: int) -> Any:
    if type(value) in _UNCHANGED:  # the common cases: matching is slow
        return value
    if type(value) is str:
        if reason := unstorable(value):
            raise NotJSONError(reason)
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
        case datetime():
            raise DateInJSONError(
                "contains a datetime, which is not JSON; use UTC text, which sorts by time: "
                "value.astimezone(timezone.utc).isoformat()"
            )
        case date():
            raise DateInJSONError(
                "contains a date, which is not JSON; use text, which sorts by time: "
                "value.isoformat()"
            )
    raise NotJSONError(
        f"contains a value of type {type(value).__name__}, which is not JSON; convert it first "
        "(list(), str(), .item())"
    )


def _canonical_float(value: float) -> float | int:
    if not math.isfinite(value):
        raise NotJSONError("contains NaN or an infinity, which JSON lacks")
    if abs(value) >= 1e16:  # from here on, repr() and JSON use an exponent
        return int(Decimal(repr(value)))
    return value + 0.0  # turns -0.0 into 0.0


def _canonical_key(key: Any) -> str:
    if not isinstance(key, str):
        raise NotJSONError(f"has a key of type {type(key).__name__}, not str")
    if reason := unstorable(key):
        raise NotJSONError(f"has a key that {reason}")
    return str.__str__(key)
