"""Vectors with elements that are not floats."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from cenote import EmbeddedChunk, InMemoryVectorStore, InvalidInputError
from cenote.testing import embedded
from cenote.validation.vectors import check_query_vector


class Numbers(list[Any]):
    """A subclass of list."""


@pytest.mark.parametrize(
    ("vector", "position", "type_name"),
    [
        ([0.1, None], 1, "NoneType"),
        ((0.5, None), 1, "NoneType"),
        ([True, False], 0, "bool"),
        ([0.1, True], 1, "bool"),
        (Numbers([0.1, True]), 1, "bool"),
        ([False, 0.5], 0, "bool"),
        ([Decimal("0.1"), True], 1, "bool"),
        ([np.float32(0.5), np.bool_(True)], 1, "bool"),
        (np.array([True, False]), 0, "bool"),
        (["0.1", "0.2"], 0, "str"),
        ([0.1, "0.2"], 1, "str"),
        ([b"1", 0.2], 0, "bytes"),
        ([0.1, [0.2]], 1, "list"),
        ([0.1, {}], 1, "dict"),
        ([0.1, 1j], 1, "complex"),
        (np.array([0.1, None], dtype=object), 1, "NoneType"),
    ],
    ids=repr,
)
async def test_elements_that_are_not_numbers(vector: Any, position: int, type_name: str) -> None:
    """The error contains the position and the type, and not the element."""
    message = (
        f"must consist of numbers, but the element at position {position} is of type {type_name}"
    )
    store = InMemoryVectorStore(2)
    with pytest.raises(InvalidInputError, match=message) as error:
        await store.search(vector, "n")
    assert error.value.field == "query_vector"
    chunk = EmbeddedChunk(chunk=embedded("a").chunk, embedding=vector, embedding_model="m")
    with pytest.raises(InvalidInputError, match=message) as error:
        await store.upsert([chunk], "n")
    assert (error.value.field, error.value.chunk_id) == ("embedding", "a")


@pytest.mark.parametrize(
    "vector",
    [
        [Decimal("0.5"), Decimal(1)],
        [0.5, Decimal("1.0")],
        (Fraction(1, 2), 1),
        np.array([0.5, 1], dtype=object),
        [np.float64(0.5), np.int64(1)],
        [0.5, 1],
        [np.array(0.5), np.array(1.0)],
    ],
    ids=repr,
)
def test_numbers_of_all_kinds(vector: Any) -> None:
    """Decimals, fractions, integers and numpy scalars of all kinds are converted."""
    assert check_query_vector(vector, 2, "vector").tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([Decimal("NaN"), 1], "contains NaN"),
        ([Decimal("sNaN"), 1], "contains NaN"),
        ([Decimal("Infinity"), 1], "contains NaN, an infinity"),
        ([10**400, 1], "a number beyond 32 bits"),
        ([[0.1], [0.2]], r"not of shape \(2, 1\)"),
        ("ab", "not str"),
        (None, "not NoneType"),
        ({0.1, 0.2}, "not set"),
        (0.5, "not float"),
    ],
    ids=repr,
)
def test_other_invalid_vectors(vector: Any, message: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(InvalidInputError, match=message):
        check_query_vector(vector, 2, "vector")
