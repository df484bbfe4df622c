"""Evaluate the SQL of column defaults in Python, as far as it is simple."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Hashable
from datetime import datetime

from sqlalchemy import ClauseElement, Dialect, types

from cenote.filters.operands import UNKNOWN
from cenote.orm.column_values import ValueType

_NOW = (
    r"((now|transaction_timestamp|statement_timestamp|clock_timestamp)\(\)"
    r"|(current_timestamp|localtimestamp|current_date|current_time|localtime)(\(\d?\))?)"
)
_UTC = r"'(utc|etc/utc|gmt)'(::text)?"
_NOW_IN_UTC = rf"(timezone\({_UTC}, *{_NOW}\)|{_NOW} at time zone \(?{_UTC}\)?)"
_WRAPPERS = (
    re.compile(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)"),
    re.compile(r"CAST\((.*) AS [^()]+(?:\([\d, ]*\))?\)", re.IGNORECASE | re.DOTALL),
    re.compile(r"(.*[^:])::\s*[\w\s\".]+(?:\([\d, ]*\))?(?:\s*\[\])*", re.DOTALL),
)
"""Parentheses and casts around an expression. The group is the expression."""


def evaluate(
    default: ClauseElement | str,
    value_type: ValueType,
    dialect: Dialect,
    now: datetime,
    next_value: Callable[[], int],
) -> Hashable:
    """Return the value of a default, in the form that filters compare.

    It is `UNKNOWN` unless the default is a constant, the current time, a random UUID or the next
    value of a sequence.

    Args:
        default: SQL expression, or text that stands for itself.
        value_type: Type of the column.
        dialect: Dialect that compiles the expression.
        now: Current time, with a time zone. Its date and naive time are those of UTC.
        next_value: Function that returns the next value of the column's sequence.
    """
    try:
        if isinstance(default, str):
            return value_type.parsed(default)
        options = {"literal_binds": True}
        sql = str(default.compile(dialect=dialect, compile_kwargs=options))
        return _evaluate(_stripped(sql), value_type, now, next_value)
    except Exception:  # raised by SQLAlchemy's compiler, or because the value has another format
        return UNKNOWN


def _stripped(sql: str) -> str:
    """Return an expression without outer parentheses and casts."""
    while True:
        sql = sql.strip()
        found = next((match for match in (p.fullmatch(sql) for p in _WRAPPERS) if match), None)
        if found is None:
            return sql
        sql = found[1]


def _evaluate(
    sql: str, value_type: ValueType, now: datetime, next_value: Callable[[], int]
) -> Hashable:
    lower = sql.lower()
    if literal := re.fullmatch(r"'((?:[^']|'')*)'", sql):
        return value_type.parsed(literal[1].replace("''", "'"))
    if lower == "null":
        return None
    if lower in ("true", "false") or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", lower):
        return value_type.parsed(sql)
    if re.fullmatch(r"array\[\s*\]", lower):
        return value_type.parsed("{}")
    if re.fullmatch(_NOW, lower):
        return _time(now, value_type)
    if re.fullmatch(_NOW_IN_UTC, lower) and not getattr(value_type.kind, "timezone", False):
        return _time(now, value_type)
    if lower in ("gen_random_uuid()", "uuid_generate_v4()"):
        return value_type.stored(uuid.uuid4())
    if lower.startswith("nextval("):
        return value_type.stored(next_value())
    return UNKNOWN


def _time(now: datetime, value_type: ValueType) -> Hashable:
    has_zone = getattr(value_type.kind, "timezone", False)
    if isinstance(value_type.kind, types.DateTime):
        return value_type.stored(now if has_zone else now.replace(tzinfo=None))
    if isinstance(value_type.kind, types.Date):
        return value_type.stored(now.date())
    if isinstance(value_type.kind, types.Time):
        return value_type.stored(now.timetz() if has_zone else now.time())
    return UNKNOWN
