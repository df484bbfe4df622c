"""Values of SQL types, as Postgres compares them: converted and checked in Python."""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Hashable
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import cached_property
from typing import Any

import numpy as np
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Dialect, types
from sqlalchemy.dialects.postgresql import CIDR, INET, INTERVAL
from sqlalchemy.types import TypeEngine

from cenote.filters.operands import json_token

_CONTEXT = Context(prec=2000)
"""Context for NUMERIC, which has up to 1,000 digits before and after the decimal point."""


class UnsuitableValueError(Exception):
    """A column does not accept a value. The message says which values the column accepts."""


class ValueType:
    """A SQL type, with the conversions of its values.

    Args:
        type_: SQLAlchemy type of the column.
        dialect: Dialect of the engine.

    Attributes:
        kind: The type in Postgres, without its type decorators. A decorator or a variant may have
            another type elsewhere: Advanced Alchemy's GUID is a BINARY(16) that becomes a UUID in
            Postgres.
    """

    def __init__(self, type_: TypeEngine[Any], dialect: Dialect) -> None:
        self._type = type_
        self._dialect = dialect
        self.kind: Any = type_._unwrapped_dialect_impl(dialect)
        self._item: ValueType | None = None
        if isinstance(self.kind, types.ARRAY):
            self._item = ValueType(self.kind.item_type, dialect)
        self._ranks: dict[str, int] | None = None
        if isinstance(self.kind, types.Enum) and self.kind.native_enum:
            self._ranks = {label: rank for rank, label in enumerate(self.kind.enums)}
        self._convert: Callable[[Any, ValueType], Any] = next(
            (convert for kinds, convert in _CONVERSIONS if isinstance(self.kind, kinds)),
            _unknown,
        )
        if isinstance(self.kind, types.String) and self.name == "CITEXT":
            self._convert = _unknown

    @cached_property
    def name(self) -> str:
        """SQL name of the type."""
        return str(self._type.compile(dialect=self._dialect))

    @cached_property
    def is_real(self) -> bool:
        """True for a floating-point type of 32 bits."""
        precision = re.fullmatch(r"FLOAT\((\d+)\)", self.name)
        return self.name == "REAL" or (precision is not None and int(precision[1]) <= 24)

    @property
    def is_known(self) -> bool:
        """True if values can be compared in Python."""
        return self._convert is not _unknown if self._item is None else self._item.is_known

    @cached_property
    def has_equality(self) -> bool:
        """True if Postgres can compare values of this type with ``=``."""
        return not isinstance(self.kind, types.JSON) or self.name == "JSONB"

    def check_limits(self, value: Any, *, check_length: bool = True) -> None:
        """Check the limits of types that the server checks without naming the column or the row.

        Args:
            value: Bound value, which is not None.
            check_length: Check the length of strings.

        Raises:
            UnsuitableValueError: The value exceeds a limit.
        """
        kind = self.kind
        if self._item is not None:
            for element in value if isinstance(value, list | tuple) else ():
                part = self if isinstance(element, list | tuple) else self._item
                part.check_limits(element)
        elif isinstance(value, str):
            length = getattr(kind, "length", None)
            if "\x00" in value:
                raise UnsuitableValueError("does not accept the character NUL")
            if self._ranks is not None:
                if value not in self._ranks:
                    raise UnsuitableValueError("accepts only the values of its enum")
            elif (
                check_length and length is not None and len(value.rstrip(" ")) > length
            ):  # Postgres cuts off spaces
                raise UnsuitableValueError(f"accepts at most {length} characters")
            elif isinstance(kind, types.Uuid):
                uuid.UUID(value)
        elif isinstance(kind, types.Integer):
            self._check_integer(value)
        elif isinstance(kind, types.Numeric) and kind.precision is not None:
            if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
                return
            number, scale = Decimal(value), kind.scale or 0
            largest = Decimal(10) ** (kind.precision - scale) - Decimal(5) / 10 ** (scale + 1)
            if not number.is_nan() and abs(number) >= largest and not isinstance(kind, types.Float):
                raise UnsuitableValueError(
                    f"accepts at most {kind.precision - scale} digits before the decimal point"
                )

    def _check_integer(self, value: Any) -> None:
        if isinstance(value, float | Decimal) and value % 1 != 0:  # asyncpg would truncate it
            raise UnsuitableValueError("accepts integers")
        if isinstance(value, int | float | Decimal):
            bits = 15 if isinstance(self.kind, types.SmallInteger) else 31
            bits = 63 if isinstance(self.kind, types.BigInteger) else bits
            if not -(2**bits) <= value < 2**bits:
                raise UnsuitableValueError(f"accepts integers of {bits + 1} bits")

    # -- comparable values

    def comparable(self, value: Any, *, check_length: bool = True) -> Hashable:
        """Return a Python value that compares as Postgres compares a value of this type.

        Args:
            value: Bound value, which the driver accepts for a parameter of this type.
            check_length: Check the length of strings.

        Raises:
            Exception: The type does not accept the value; it may raise any error.
        """
        if value is None:
            return None
        if self._item is not None:
            return self._array(value, self._item.comparable)
        self.check_limits(value, check_length=check_length)
        return self._ranks[value] if self._ranks is not None else self._convert(value, self)

    def stored(self, value: Any) -> Hashable:
        """Return :meth:`comparable` of a value to be written.

        The elements of arrays are written as text.
        """
        if value is None:
            return None
        if self._item is not None:
            return self._array(value, self._item._stored_element)
        comparable = self.comparable(value)
        length = getattr(self.kind, "length", None)
        # Postgres cuts off spaces beyond the length.
        return comparable[:length] if isinstance(comparable, str) else comparable

    def _stored_element(self, value: Any) -> Hashable:
        if isinstance(self.kind, types.String) and not isinstance(value, str):
            return self.stored(str(value))
        return self.parsed(value) if isinstance(value, str) else self.stored(value)

    def _array(self, values: Any, convert: Callable[[Any], Hashable]) -> Hashable:
        """Return a tuple that sorts as an array: NULL after all other elements."""
        if not isinstance(values, list | tuple | np.ndarray):
            raise TypeError
        nested = [value for value in values if isinstance(value, list | tuple)]
        if nested and (len(nested) < len(values) or len(set(map(len, nested))) > 1):
            raise ValueError  # rows of different lengths
        return tuple(
            (True, 0)
            if value is None
            else (False, self._array(value, convert) if nested else convert(value))
            for value in values
        )

    def parsed(self, text: str) -> Hashable:
        """Return :meth:`comparable` of a value in the text format of Postgres.

        Raises:
            Exception: The text is not a value of this type, or its format is not supported.
        """
        if self._item is not None:
            if not re.fullmatch(r'\{[^{}"\\]*\}', text):
                raise ValueError
            items = text[1:-1].split(",") if text != "{}" else []
            return self._array(
                [None if item.upper() == "NULL" else item for item in items],
                self._item._stored_element,
            )
        for kinds, parse in _PARSERS:
            if isinstance(self.kind, kinds):
                return self.stored(parse(text))
        raise ValueError


def _unknown(value: Any, type_: ValueType) -> Any:
    raise TypeError(type_.name)


def _text(value: Any, type_: ValueType) -> str:
    if not isinstance(value, str):
        raise TypeError
    text = str.__str__(value)  # members of an enum may print something else
    return text.rstrip(" ") if isinstance(type_.kind, types.CHAR) else text


def _integer(value: Any, type_: ValueType) -> int:
    if not hasattr(value, "__int__"):  # int() also accepts strings and bytes
        raise TypeError
    return int(value)


def _numeric(value: Any, type_: ValueType) -> Hashable:
    """Return a pair that sorts as NUMERIC: NaN equals itself and comes last."""
    number = Decimal(value)
    if number.is_nan():
        return (True, Decimal(0))
    if type_.kind.precision is not None:
        exponent = Decimal(1).scaleb(-(type_.kind.scale or 0))
        number = number.quantize(exponent, ROUND_HALF_UP, _CONTEXT)
    return (False, number)


def _float(value: Any, type_: ValueType) -> Hashable:
    """Return a pair that sorts as a floating-point number: NaN equals itself and comes last."""
    if isinstance(value, str):
        raise TypeError
    number = _rounded_to_real(float(value)) if type_.is_real else float(value)
    return (True, 0.0) if np.isnan(number) else (False, number)


def _rounded_to_real(number: float) -> float:
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    if np.isinf(rounded) and not np.isinf(number):
        raise OverflowError
    return rounded


def _boolean(value: Any, type_: ValueType) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _date(value: Any, type_: ValueType) -> date:
    return date.fromordinal(value.toordinal())


def _datetime(value: Any, type_: ValueType) -> datetime:
    if not isinstance(value, date):
        raise TypeError
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    moment: datetime = value
    if type_.kind.timezone:
        return moment.astimezone(UTC)  # as asyncpg: a naive datetime is local time
    if moment.tzinfo is not None:
        raise TypeError
    return moment


def _time(value: Any, type_: ValueType) -> Hashable:
    since_midnight = timedelta(
        hours=value.hour,
        minutes=value.minute,
        seconds=value.second,
        microseconds=value.microsecond,
    )
    if not type_.kind.timezone:
        return since_midnight
    offset = value.tzinfo.utcoffset(None)
    return (since_midnight - offset, -offset)


def _interval(value: Any, type_: ValueType) -> timedelta:
    return timedelta(value.days, value.seconds, value.microseconds)


def _uuid(value: Any, type_: ValueType) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F-]{32,36}", value):
        raise TypeError
    return uuid.UUID(value)


def _bytes(value: Any, type_: ValueType) -> bytes:
    return bytes(memoryview(value))


def _json(value: Any, type_: ValueType) -> Hashable:
    return ("json", json_token(json.loads(value)))  # a pair, because JSON's null is not NULL


def _vector(value: Any, type_: ValueType) -> Hashable:
    if isinstance(value, str):
        value = json.loads(value)
    dtype = np.float16 if isinstance(type_.kind, HALFVEC) else np.float32
    vector = np.asarray(value, dtype=dtype)
    if vector.ndim != 1 or type_.kind.dim not in (None, len(vector)):
        raise UnsuitableValueError(f"accepts vectors of {type_.kind.dim} dimensions")
    return tuple(vector.tolist())


def _inet(value: Any, type_: ValueType) -> Hashable:
    if isinstance(type_.kind, CIDR):
        value = ipaddress.ip_network(value)  # rejects addresses with bits after the prefix
    address = ipaddress.ip_interface(value)
    return (address.version, int(address.ip), address.network.prefixlen)


_CONVERSIONS: list[tuple[Any, Callable[[Any, ValueType], Any]]] = [
    (types.String, _text),
    (types.Integer, _integer),
    (types.Float, _float),
    (types.Numeric, _numeric),
    (types.Boolean, _boolean),
    (types.DateTime, _datetime),
    (types.Date, _date),
    (types.Time, _time),
    (INTERVAL, _interval),
    (types.Uuid, _uuid),
    (types.LargeBinary, _bytes),
    (types.JSON, _json),
    ((VECTOR, HALFVEC), _vector),
    ((INET, CIDR), _inet),
]
"""Conversion of a bound value, by type. A float is also a Numeric for SQLAlchemy."""

_BOOLEANS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}

_PARSERS: list[tuple[Any, Callable[[str], Any]]] = [
    (types.String, str),
    (types.Integer, int),
    (types.Float, float),
    (types.Numeric, Decimal),
    (types.Boolean, lambda text: _BOOLEANS[text.strip().lower()]),
    (types.DateTime, datetime.fromisoformat),
    (types.Date, date.fromisoformat),
    (types.Time, time.fromisoformat),
    (types.LargeBinary, lambda text: bytes.fromhex(text.removeprefix("\\x"))),
    ((types.Uuid, types.JSON, VECTOR, HALFVEC, INET, CIDR), str),
]
"""Conversion of the text format to a bound value, by type."""
