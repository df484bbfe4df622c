"""Type aliases used in cenote's signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ColumnType", "Float32Array", "IndexKind", "Metadata", "Metric", "Vector"]

Vector: TypeAlias = Sequence[float] | NDArray[np.floating[Any]]
"""An embedding: a list, a tuple or a one-dimensional numpy array of finite numbers."""

Float32Array: TypeAlias = NDArray[np.float32]
"""Validated vectors: an array of shape (dimensions,) or (rows, dimensions)."""

Metadata: TypeAlias = dict[str, Any]
"""A JSON object: str keys; str, int, float, bool, None, list and dict values."""

ColumnType: TypeAlias = Literal["vector", "halfvec"]
"""Postgres type of the embedding column: 32 (``vector``) or 16 bits per dimension."""

Metric: TypeAlias = Literal["cosine", "inner_product", "l2"]
"""How near two vectors are: by cosine similarity, inner product, or Euclidean distance."""

IndexKind: TypeAlias = Literal["vector", "halfvec", "bit", "none"]
"""Form of a vector in the ANN index: 32 bits per dimension, 16 bits, or 1 bit (the sign).
``"none"`` means no ANN index."""
