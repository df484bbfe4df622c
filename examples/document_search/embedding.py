"""What turns texts into vectors here: a substitute for your embedding model.

It hashes the beginnings, middles and ends of words into as many buckets as there are dimensions
(the hashing trick), so it knows which words look alike, and nothing of what they mean. In return it
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
    """One vector for each text, shape (texts, DIMENSIONS); zero for a text without words."""
    if not texts:
        return np.zeros((0, DIMENSIONS), np.float32)
    matrix: Float32Array = _vectorizer.transform(texts).toarray().astype("float32")
    return matrix
