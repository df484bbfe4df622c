"""Chunks with random vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from cenote import EmbeddedChunk
from cenote.testing import embedded


def random_chunks(count: int, seed: int = 0, **fields: Any) -> list[EmbeddedChunk]:
    """Return chunks with reproducible random vectors of four dimensions."""
    vectors = np.random.default_rng(seed).standard_normal((count, 4))
    return [embedded(f"{row:05}", vector, **fields) for row, vector in enumerate(vectors)]
