"""Embedding models: latent semantic analysis, or a sentence-transformers model."""

from __future__ import annotations

import hashlib
import platform
import re
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
import sklearn
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.preprocessing import normalize

from cenote import ConfigurationError
from cenote.config import DEFAULT_TABLE_NAME
from cenote.types import Float32Array

from .corpus import split_words

DIMENSIONS = 384
"""Number of dimensions of the latent semantic analysis.

Out of 60 questions with known answers, 256 dimensions had the answer among the first three results
for 82 %, 384 and 512 dimensions both for 85 %. With 512 dimensions, Postgres stores the vectors out
of line, and an exact search took almost three times as long.
"""

MIN_RETAINED_WEIGHT = 0.02
"""Lower bound for a word's retained weight.

It prevents a word that the decomposition dropped altogether from outweighing all others.
"""


class Embedder(Protocol):
    """An embedding model, as the demo uses it.

    Attributes:
        name: Name to store as the chunks' ``embedding_model``.
        description: Description for the demo's output.
        dimensions: Length of its vectors.
        table_name: Name of its table: a table holds the vectors of one model.
    """

    name: str
    description: str
    dimensions: int
    table_name: str

    def embed(self, texts: list[str]) -> Float32Array:
        """Return one vector for each text, shape (texts, dimensions)."""
        ...

    def embed_question(self, question: str) -> Float32Array:
        """Return the vector of a question, shape (dimensions,); zero if all words are unknown."""
        ...


class LatentSemanticAnalysis:
    """TF-IDF and a singular value decomposition, fitted to the texts that will be searched.

    Words that occur in the same texts get similar vectors. The model knows nothing else about
    language, and needs no download and no GPU.

    Args:
        texts: Texts to fit the model to.
        folder: Folder of the fitted model. Its name changes with the texts, the versions of
            Python, scikit-learn and numpy, and the contents of this file.
    """

    dimensions = DIMENSIONS
    table_name = DEFAULT_TABLE_NAME

    def __init__(self, texts: list[str], folder: Path) -> None:
        self.name = f"lsa-{DIMENSIONS}-{_fingerprint(texts)}"
        file = folder / f"{self.name}.joblib"
        if file.is_file():
            self._tfidf, self._svd = joblib.load(file)
            self.description = "latent semantic analysis (cached)"
        else:
            self._tfidf, self._svd = _fit(texts)
            _save((self._tfidf, self._svd), file)
            self.description = "latent semantic analysis"

    def embed(self, texts: list[str]) -> Float32Array:
        return self._project(self._tfidf.transform(texts))

    def embed_question(self, question: str) -> Float32Array:
        """Embed a question, with more weight for rare words, most of which the decomposition drops.

        In a text, rare words are details. In a question of three words, one of them is the point.
        """
        weighted = self._tfidf.transform([question])
        retained = np.linalg.norm(self._svd.components_, axis=0)[weighted.indices]
        weighted.data /= np.sqrt(np.maximum(retained, MIN_RETAINED_WEIGHT))
        vector: Float32Array = self._project(weighted)[0]
        return vector

    def _project(self, weighted_words: Any) -> Float32Array:
        vectors: Float32Array = normalize(self._svd.transform(weighted_words)).astype(np.float32)
        return vectors


class SentenceTransformerModel:
    """A model of the sentence-transformers library.

    Args:
        name: Name to pass to ``SentenceTransformer``, which downloads the model if necessary.

    Raises:
        ConfigurationError: The library is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "--model needs sentence-transformers: pip install sentence-transformers"
            ) from error

        self._model: Any = SentenceTransformer(name)
        self.name = name
        self.description = name
        self.dimensions = len(self.embed(["how long is a vector?"])[0])
        identifier = re.sub(r"\W+", "_", name.lower())[-20:].strip("_")
        self.table_name = f"chunks_{identifier}_{_hash(name)}"

    def embed(self, texts: list[str]) -> Float32Array:
        vectors: Float32Array = self._model.encode(texts, show_progress_bar=False)
        return vectors

    def embed_question(self, question: str) -> Float32Array:
        vector: Float32Array = self.embed([question])[0]
        return vector


def words(text: str) -> list[str]:
    """Return the stems of the words: "parses", "parsed" and "parsing" all become "pars".

    Stop words and single characters are left out.
    """
    lowercase = (word.lower() for word in split_words(text))
    return [_stem(word) for word in lowercase if len(word) > 1 and word not in ENGLISH_STOP_WORDS]


def _stem(word: str) -> str:
    """Strip English endings. This is crude, but docstrings are short: it finds far more."""
    word = re.sub(r"(?<=..[^s])s$", "", word)
    word = re.sub(r"(?<=...)(?:ation|ion|ing|er|or|ed|ly|al)$", "", word)
    return re.sub(r"(?<=...)(?:e|ie|y|i)$", "", word)


def _fit(texts: list[str]) -> tuple[Any, Any]:
    tfidf = TfidfVectorizer(analyzer=words, max_df=0.5, sublinear_tf=True, dtype=np.float32)
    svd = TruncatedSVD(DIMENSIONS, random_state=0)
    svd.fit(tfidf.fit_transform(texts))
    return tfidf, svd


def _save(model: Any, file: Path) -> None:
    """Save the model and delete earlier ones; an interrupted write leaves no incomplete model."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    joblib.dump(model, unfinished)
    for old in file.parent.glob("lsa-*.joblib"):
        old.unlink()
    unfinished.replace(file)


def _fingerprint(texts: list[str]) -> str:
    code = Path(__file__).read_text(encoding="utf-8")
    return _hash(platform.python_version(), sklearn.__version__, np.__version__, code, *texts)


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:8]
