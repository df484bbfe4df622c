"""A small embedding function, to be replaced by your embedding model.

It hashes groups of three and four characters within words into `DIMENSIONS` buckets (the hashing
trick). Words that are spelled alike get similar vectors; their meaning plays no role. In return, it
needs no download and no training.
"""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from cenote.types import Float32Array

DIMENSIONS = 512
MODEL = "hashed-trigrams-512"

_vectorizer = HashingVectorizer(
    analyzer="char_wb", ngram_range=(3, 4), n_features=DIMENSIONS, norm="l2"
)


def embed(texts: list[str]) -> Float32Array:
    """Return one vector for each text, shape (texts, DIMENSIONS).

    A text without words gets a zero vector.
    """
    if not texts:
        return np.zeros((0, DIMENSIONS), np.float32)
    matrix: Float32Array = _vectorizer.transform(texts).toarray().astype("float32")
    return matrix
