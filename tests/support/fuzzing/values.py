"""Hypothesis strategies for the fuzz tests: valid and odd values of every kind.

Strategies named ``odd_...`` draw mostly values that cenote must reject, and some valid values that
look invalid. Values that must not appear in an error message contain `MARKER` or `NUMBER`.
"""

from __future__ import annotations

import array
import enum
import math
import re
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cenote.testing.helpers import SQL_LOOKALIKES, Awkward

Strategy = st.SearchStrategy[Any]

MARKER = "mArKeR"
NUMBER = 0.7316842
DIMENSIONS = 4


class Word(str):
    """A subclass of str."""

    __slots__ = ()


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    TWO = 2


class Keys(dict[str, Any]):
    """A subclass of dict."""


class Items(list[Any]):
    """A subclass of list."""


class Recipe:
    """Value that is created at each use: anew for each store, or because creating it may fail."""

    def make(self) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Lazy(Recipe):
    """Value that can be used only once or is too long to print."""

    name: str
    maker: Callable[[], Any]

    def make(self) -> Any:
        return self.maker()

    def __repr__(self) -> str:
        return f"<{self.name}>"


def resolve(value: Any) -> Any:
    """Return a value with every `Recipe` in it replaced by the object that it creates."""
    if isinstance(value, Recipe):
        return value.make()
    if type(value) is dict:
        return {key: resolve(item) for key, item in value.items()}
    return type(value)(map(resolve, value)) if type(value) in (list, tuple) else value


def lazy(**makers: Callable[[], Any]) -> Strategy:
    """Draw one of several lazy values."""
    return st.sampled_from([Lazy(name, make) for name, make in makers.items()])


ODD_PARTS: dict[str, list[Any]] = {}
"""Odd values for each part of a chunk, which a test also tries one by one."""


def odd_part(part: str, *values: Any, **makers: Callable[[], Any]) -> Strategy:
    """Register odd values for a part of a chunk, and draw one of them."""
    odd_values = [*values, *(Lazy(name, make) for name, make in makers.items())]
    ODD_PARTS.setdefault(part, []).extend(odd_values)
    return st.sampled_from(odd_values)


# -- anything

anything = (
    lazy(
        a_generator=lambda: (number for number in (1.0, 2.0, 3.0, 4.0)),
        an_object=object,
        an_awkward_object=Awkward,
        a_list_of_itself=lambda: _list_of_itself(),
        a_dict_of_itself=lambda: _dict_of_itself(),
        an_array=lambda: np.array([1, 2]),
        an_array_of_one=lambda: np.array([1]),
        a_0d_array=lambda: np.array(1.0),
        an_array_of_text=lambda: np.array([MARKER, MARKER]),
        an_array_of_objects=lambda: np.array([MARKER, None], dtype=object),
        a_function=lambda: lambda *_: None,
        a_type=lambda: dict,
        bytes_of_an_array=lambda: bytearray(b"1234"),
        a_set=lambda: {MARKER},
        a_huge_integer=lambda: 10**5000,
        a_user_dict=lambda: UserDict({"a": 1}),
    )
    | st.sampled_from(
        [
            *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**30, 10**400),
            *(0.0, 1.0, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, 5e-324, 1j),
            *(Decimal(1), Decimal("NaN"), Decimal(0), Fraction(1, 2), Level.TWO),
            *(np.int64(3), np.float32(1), np.float64(0.5), np.float64("nan"), np.bool_(True)),
            *(np.str_("text"), Word("text"), Color.RED, "", "text", "1", "\x00", "\ud800", b"text"),
            *((), (1,), [], ["text"], [None], {}, {"a": 1}, {1: 2}, range(4), Ellipsis, int),
            *(datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), date(2020, 1, 1)),
            timedelta(days=1),
        ]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)


def _list_of_itself() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def _dict_of_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = value
    return value


# -- text

good_texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8
) | st.sampled_from(
    [
        *SQL_LOOKALIKES,
        *("é", "e\u0301", "ﬁ", "\u202eabc", "\ufeff", "\u2028", "\U0010ffff", "\ufffe", "İ"),
        *("a\nb\rc\t", "%_\\", "{}[]", "null", "\\u0000", "\x01\x7f\x80", "🏳️‍🌈"),
        *(Word("word"), Color.RED, np.str_("text")),
    ]
)
good_keys = good_texts.filter(bool) | st.sampled_from(
    ["x" * 1024, "é" * 512, "\U0001f600" * 256, Word("x" * 1024)]
)
long_texts = lazy(
    a_megabyte=lambda: "x" * 2**20,
    two_megabytes=lambda: "é" * 2**20,
)
odd_keys = (
    anything
    | long_texts
    | odd_part(
        "id",
        *("", "x" * 1025, "é" * 513, "\U0001f600" * 257, Word("x" * 1025), Word("\x00")),
        *("a\x00", "\x00", "\ud800", "a\udfff", "\ud83d\ude00", 1, None, b"a"),
    )
)
secret_texts = st.builds(lambda text: MARKER + text, good_texts)
odd_contents = (
    anything
    | long_texts
    | odd_part(
        "content",
        *(MARKER + "\x00", "\ud800" + MARKER, "", Word(MARKER + "\x00")),
        *(MARKER.encode(), [MARKER], {MARKER: MARKER}),
        many_words=lambda: (MARKER + " ") * 150_000,
    )
)

# -- vectors

numbers = st.sampled_from([NUMBER, 1.0, -1.0, 0.0, 0.5, 2.0, 1e-3, 1e3])
_lists = st.lists(numbers, min_size=DIMENSIONS, max_size=DIMENSIONS)


def _kind(name: str, make: Callable[[list[float]], Any]) -> Strategy:
    return _lists.map(lambda values: Lazy(f"{name} of {values}", lambda: make(values)))


def _read_only(values: list[float]) -> Any:
    vector = np.array(values)
    vector.flags.writeable = False
    return vector


good_vectors = st.one_of(
    _lists,
    _lists.map(tuple),
    _kind("float32", lambda values: np.array(values, dtype=np.float32)),
    _kind("float16", lambda values: np.array(values, dtype=np.float16)),
    _kind("long double", lambda values: np.array(values, dtype=np.longdouble)),
    _kind("big-endian", lambda values: np.array(values, dtype=">f8")),
    _kind("strided", lambda values: np.repeat(np.array(values), 2)[::2]),
    _kind("reversed", lambda values: np.array(values)[::-1]),
    _kind("read-only", _read_only),
    _kind("array", lambda values: array.array("d", values)),
    _kind("memoryview", lambda values: memoryview(array.array("f", values))),
    _kind("deque", deque),
    _kind("numpy scalars", lambda values: [np.float32(value) for value in values]),
    _kind("unmasked", lambda values: np.ma.array(values)),
    st.sampled_from([range(4), [1, 0, 0, 2**62], [2**63, 0, 0, 0], [0, 0, 0, 0]]),
    lazy(
        int8=lambda: np.array([1, -2, 3, 4], dtype=np.int8),
        uint64=lambda: np.array([2**64 - 1, 0, 0, 0], dtype=np.uint64),
    ),
)
_EXTREMES = [
    *(math.nan, math.inf, -math.inf, 1e-30, 1e-45, 5e-324, 3e38, 3.5e38, 1e300, 65504, 65520),
    *(7e4, 1e-7, 1e-8, 1.1e-19, 1.8e19, 1e19, 10**400, 2**64, -0.0, True, None, MARKER, "1"),
    *(b"1", [1.0], Decimal(1), 1j, NUMBER),
]
_extremes = st.sampled_from(_EXTREMES)
odd_part(
    "embedding",
    *([extreme, 1.0, 0.0, 0.0] for extreme in _EXTREMES),
    *([extreme] * 4 for extreme in _EXTREMES),
)
odd_vectors = st.one_of(
    anything,
    st.lists(numbers, max_size=6),
    st.lists(numbers | _extremes, min_size=DIMENSIONS, max_size=DIMENSIONS),
    st.lists(_extremes, min_size=DIMENSIONS, max_size=DIMENSIONS),
    odd_part(
        "embedding",
        *(MARKER, "abcd", [MARKER] * 4, b"abcd", [[NUMBER] * 4], [[NUMBER]] * 4, [True] * 4),
        masked=lambda: np.ma.array([NUMBER, 1, 2, 3], mask=[True, False, False, False]),
        matrix=lambda: np.array([[NUMBER, 1, 2, 3]]),
        objects=lambda: np.array([NUMBER, None, 1, 2], dtype=object),
        numbers_as_objects=lambda: np.array([NUMBER, 1, 1, 2], dtype=object),
        texts=lambda: np.array([MARKER, "1", "1", "2"]),
        complex=lambda: np.array([NUMBER, 1, 1, 2j]),
        bools=lambda: np.array([True, False, True, True]),
        dates=lambda: np.array(["2020"] * 4, dtype="datetime64[D]"),
        durations=lambda: np.array([1] * 4, dtype="timedelta64[s]"),
        structure=lambda: np.zeros(4, dtype=[("a", "f4")]),
        empty=lambda: np.empty((0,)),
        flat_2d=lambda: np.empty((0, 4)),
        long_doubles=lambda: np.array(["1e4000", "1", "1", "1"], dtype=np.longdouble),
        subnormals=lambda: np.full(4, 1e-40, dtype=np.float32),
        half_subnormals=lambda: np.full(4, 1e-6, dtype=np.float32),
        deep=lambda: _nested([], 10_000),
    ),
)

# -- metadata


def _nested(value: Any, depth: int) -> list[Any]:
    for _ in range(depth):
        value = [value]
    return [value]


def _nested_dicts(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {MARKER: MARKER}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


good_values = st.recursive(
    st.sampled_from(
        [
            *(None, True, False, 0, 1, 1.0, -0.0, 0.1, 1e15, 1e16, 1e23, 1.7e308, 5e-324),
            *(2**63, 10**300, Level.TWO, np.float64(0.1), Color.RED, np.str_("a")),
        ]
    )
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | secret_texts
    | good_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(good_texts, inner, max_size=3),
    max_leaves=6,
)
good_metadata = st.dictionaries(
    st.sampled_from(["a", "b", "é", "e\u0301", "language"]) | good_texts, good_values, max_size=3
) | lazy(
    nested_200_deep=lambda: _nested_dicts(200),
    many_digits=lambda: {"a": -(10**4000)},
    ordered=lambda: OrderedDict(b=[1], a=2),
    default=lambda: defaultdict(list, a=1),
    keys=lambda: Keys(a=Keys(b=Items([1]))),
)
odd_metadata = st.one_of(
    anything,
    st.dictionaries(st.just(MARKER), anything, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["a", 1, None, ("a",), b"a", 1.0, "\x00", "\ud800"]), numbers),
    odd_part(
        "metadata",
        *({"a": (1, 2)}, {"a": {1: MARKER}}, {"a": [math.nan, MARKER]}, {"a\x00": MARKER}),
        *({"a": [MARKER + "\x00"]}, {"a": {MARKER + "\ud800": 1}}, {"a": Decimal(NUMBER)}),
        *({"a": np.float32(NUMBER)}, {"a": np.int64(1)}, {1: MARKER}, {None: MARKER}, None, MARKER),
        *({"a": {MARKER}}, {"a": MARKER.encode()}, [(MARKER, 1)], {"a": datetime(2020, 1, 1)}),
        nested_201_deep=lambda: _nested_dicts(201),
        nested_10_000_deep=lambda: _nested_dicts(10_000),
        lists_10_000_deep=lambda: {MARKER: _nested(MARKER, 10_000)},
        a_list_of_itself=lambda: {MARKER: _list_of_itself()},
        a_user_dict=lambda: UserDict({MARKER: MARKER}),
        a_huge_integer=lambda: {"a": 10**5000},
        a_huge_integer_inside=lambda: {"a": [10**5000]},
    ),
)

# -- arguments

good_limits = st.integers(1, 12) | st.sampled_from([10_000, Level.TWO])
odd_limits = anything | st.sampled_from(
    [0, -1, 10_001, 2**63, 10**400, True, 2.0, "3", np.int64(3), None, -(10**400)]
)
good_scores = st.sampled_from([None, 0, -1, 1, 0.5, np.float64(0.25), -1.0])
good_weights = st.sampled_from([0, 1, 1.0, 0.5, 1e-9, 1e9])

# -- comparing


def same_json(wanted: Any, found: Any) -> bool:
    """Compare stored metadata with the original: large floats may come back as integers."""
    if isinstance(wanted, dict):
        same_keys = type(found) is dict and set(map(str.__str__, wanted)) == set(found)
        return same_keys and all(same_json(wanted[key], found[key]) for key in wanted)
    if isinstance(wanted, list):
        same_length = type(found) is list and len(found) == len(wanted)
        return same_length and all(map(same_json, wanted, found))
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, float) and abs(wanted) >= 1e16:
        return type(found) is int and found == int(Decimal(repr(float(wanted))))
    return type(found) in (str, int, float, type(None)) and bool(wanted == found)


def leaks(error: BaseException) -> list[str]:
    """Return the secrets that an error, its causes and its contexts would write to a log.

    The adapters name keys of the metadata, as filters do, because keys are not secret.
    """
    text = ""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        current = chain.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            text += f"{current} {current!r} {vars(current)} {getattr(current, '__notes__', '')}"
            chain += [current.__cause__, current.__context__]
    text = re.sub(r"(metadata key|the value at) ('[^']*'|\"[^\"]*\")", "", text)
    return [secret for secret in (MARKER, str(NUMBER)) if secret in text]
