"""Fast paths of the checks give the same answers as the checks of each value."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cenote import InvalidInputError
from cenote.validation.json import canonical_json, canonical_object, json_text
from cenote.validation.vectors import checked_vectors

GOOD = [0.5, -1.0, 0.25]
VECTORS = {
    "good": GOOD,
    "zero": [0.0, 0.0, 0.0],
    "nan": [0.5, float("nan"), 0.5],
    "infinite": [0.5, float("-inf"), 0.5],
    "too large": [1e20, 1.0, 1.0],
    "largest": [1e19, 1.0, 1.0],
    "too small": [1e-25, 0.0, 0.0],
    "smallest": [1e-17, 0.0, 0.0],
    "short": [0.5, 0.5],
    "nested": [GOOD],
}


def outcome(vectors: list[Any], column_type: Any) -> Any:
    """Return the checked vectors, or the error with its chunk id."""
    ids = [f"c{number}" for number in range(len(vectors))]
    try:
        return checked_vectors(vectors, ids, 3, column_type).tolist()
    except InvalidInputError as error:
        return type(error), str(error).replace("list", "ndarray"), error.chunk_id


@pytest.mark.parametrize("column_type", ["vector", "halfvec"])
@pytest.mark.parametrize("kind", VECTORS)
def test_float32_arrays_are_checked_like_lists(kind: str, column_type: str) -> None:
    """A batch of arrays is checked at once, with the results and errors of single checks."""
    lists = [GOOD, VECTORS[kind], GOOD]
    arrays = [np.array(vector, dtype=np.float32) for vector in lists]
    assert outcome(arrays, column_type) == outcome(lists, column_type)


def test_arrays_of_other_types_are_converted_or_rejected() -> None:
    """The fast path accepts only plain float32 arrays in native byte order."""
    expected = [GOOD, GOOD]
    for dtype in (np.float64, ">f4", np.float16):
        assert outcome([np.array(GOOD, np.float32), np.array(GOOD, dtype)], "vector") == expected
    masked = np.ma.masked_array(np.array(GOOD, np.float32), mask=[True, False, False])
    assert "masked" in outcome([np.array(GOOD, np.float32), masked], "vector")[1]
    booleans = np.array([True] * 3)
    assert "0 is of type bool" in outcome([np.array(GOOD, np.float32), booleans], "vector")[1]


def test_checked_vectors_are_copies() -> None:
    """The caller can change its arrays afterwards."""
    array = np.array(GOOD, dtype=np.float32)
    checked = checked_vectors([array], ["c"], 3, "vector")
    array[:] = 9
    assert checked.tolist() == [GOOD]


@pytest.mark.parametrize(
    "value",
    [
        *("", 'é"\\/\n\x1f\u2028', 0, -1, 10**30, True, None, 0.1, -1.5e-7, [], {}, [[], {}]),
        {"a": "é", "ключ": 1, "b": None, "c": False},
        {"a": {"b": [1, {"c": "d"}]}, "e": 2.5},
    ],
    ids=repr,
)
def test_json_text_is_that_of_the_standard_library(value: Any) -> None:
    """The encoder that is created once prints the same as `json.dumps`."""
    expected = json.dumps(value, ensure_ascii=False)
    assert json_text(value) == expected
    if isinstance(value, dict):
        assert canonical_object(value) == (canonical_json(value), expected)
