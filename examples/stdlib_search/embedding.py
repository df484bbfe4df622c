"""What turns texts into vectors: latent semantic analysis, or a sentence-transformers model."""

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
"""Of the latent semantic analysis. Of 60 questions with known answers, 256 dimensions answered 82 %
among the first three results, 384 and 512 both 85 %. With 512, Postgres keeps the vectors out of
line, and an exact search took almost three times as long."""

LEAST_WEIGHT_KEPT = 0.02
"""A word that the decomposition dropped altogether must not outweigh all others."""


class Embedder(Protocol):
    """What the demo needs of an embedding model.

    Attributes:
        name: what is stored as the chunks' ``embedding_model``.
        description: what it is, for the reader.
        dimensions: the length of its vectors.
        table_name: its table, since one table holds the vectors of one model.
    """

    name: str
    description: str
    dimensions: int
    table_name: str

    def embed(self, texts: list[str]) -> Float32Array:
        """One vector for each text to be searched, shape (texts, dimensions)."""
        ...

    def embed_question(self, question: str) -> Float32Array:
        """The vector of a question, shape (dimensions,); zero if no word of it is known."""
        ...


class LatentSemanticAnalysis:
    """TF-IDF and a singular value decomposition, learnt from the texts that are to be searched.

    Words that occur in the same texts come to lie close together. It knows nothing else about
    language, and needs no download and no GPU.

    Args:
        texts: what to learn from.
        folder: where the fitted model is kept. Other texts, another Python or scikit-learn, or
            another version of this file make another model, of another name.
    """

    dimensions = DIMENSIONS
    table_name = DEFAULT_TABLE_NAME

    def __init__(self, texts: list[str], folder: Path) -> None:
        self.name = f"lsa-{DIMENSIONS}-{_fingerprint(texts)}"
        file = folder / f"{self.name}.joblib"
        if file.is_file():
            self._tfidf, self._svd = joblib.load(file)
            self.description = "latent semantic analysis as kept"
        else:
            self._tfidf, self._svd = _fit(texts)
            _keep((self._tfidf, self._svd), file)
            self.description = "latent semantic analysis"

    def embed(self, texts: list[str]) -> Float32Array:
        return self._project(self._tfidf.transform(texts))

    def embed_question(self, question: str) -> Float32Array:
        """As `embed`, with more weight for rare words, most of which the decomposition drops.

        In a text they are details; in a question of three words, one of them is the point.
        """
        weighted = self._tfidf.transform([question])
        kept = np.linalg.norm(self._svd.components_, axis=0)[weighted.indices]
        weighted.data /= np.sqrt(np.maximum(kept, LEAST_WEIGHT_KEPT))
        vector: Float32Array = self._project(weighted)[0]
        return vector

    def _project(self, weighted_words: Any) -> Float32Array:
        vectors: Float32Array = normalize(self._svd.transform(weighted_words)).astype(np.float32)
        return vectors


class SentenceTransformerModel:
    """A model of the sentence-transformers library, if that is installed.

    Args:
        name: as ``SentenceTransformer`` takes it; downloaded if it is not on this machine.

    Raises:
        ConfigurationError: the library is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "--model needs another package: pip install sentence-transformers"
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
    """The words that count, each as a stem: "parses", "parsed" and "parsing" are all "pars"."""
    found = (word.lower() for word in split_words(text))
    return [_stem(word) for word in found if len(word) > 1 and word not in ENGLISH_STOP_WORDS]


def _stem(word: str) -> str:
    """Strip English endings. Crude, and docstrings are short: with it, far more is found."""
    word = re.sub(r"(?<=..[^s])s$", "", word)
    word = re.sub(r"(?<=...)(?:ation|ion|ing|er|or|ed|ly|al)$", "", word)
    return re.sub(r"(?<=...)(?:e|ie|y|i)$", "", word)


def _fit(texts: list[str]) -> tuple[Any, Any]:
    tfidf = TfidfVectorizer(analyzer=words, max_df=0.5, sublinear_tf=True, dtype=np.float32)
    svd = TruncatedSVD(DIMENSIONS, random_state=0)
    svd.fit(tfidf.fit_transform(texts))
    return tfidf, svd


def _keep(model: Any, file: Path) -> None:
    """Write the model in place of the ones before it; an interrupted write leaves none behind."""
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
