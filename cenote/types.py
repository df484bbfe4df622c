"""The types that cenote's signatures speak of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ColumnType", "Float32Array", "Metadata", "Vector"]

Vector: TypeAlias = Sequence[float] | NDArray[np.floating[Any]]
"""One embedding: a list, a tuple or a one-dimensional numpy array of finite numbers."""

Float32Array: TypeAlias = NDArray[np.float32]
"""What cenote makes of vectors, one (dimensions,) or many (rows, dimensions)."""

Metadata: TypeAlias = dict[str, Any]
"""A JSON object: str keys; str, int, float, bool, None, list and dict values."""

ColumnType: TypeAlias = Literal["vector", "halfvec"]
"""How Postgres keeps the embedding: 32 or 16 bits for each dimension."""
