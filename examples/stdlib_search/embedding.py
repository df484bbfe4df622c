"""Embedding models: latent semantic analysis, or a sentence-transformers model."""

from __future__ import annotations

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Sequence
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

from .corpus import Passage, split_words

DIMENSIONS = 384
"""Number of dimensions of the latent semantic analysis.

Out of the 50 questions in ``tests/support/stdlib_questions.py``, 256 dimensions had an answer among
the first three results for 62 %, 384 dimensions for 68 %, and 512 dimensions for 60 %. With 512
dimensions, Postgres stores the vectors out of line, and an exact search took almost three times as
long.

Two alternatives were measured with the same questions, and not adopted:

- Fusing the ranking with a BM25 ranking of the contents, as a hybrid search does, had fewer answers
  among the first three (64 to 68 % instead of 72 %, in an earlier version of this model): the
  contents of docstrings rarely contain the words that people ask with.
- The static embeddings of WordLlama 0.4, whose wheel of 19 MB contains its weights, had 60 to 66 %
  (this model had 64 % before it split compounds). They are derived from Llama 2, whose licence is
  not the package's.
"""

SHARE_OF_NAME = 0.2
"""Weight of the name's vector in a passage's vector, compared with the vector of its text."""

SHARE_OF_SURROUNDINGS = 0.2
"""Weight of the vector of the surroundings, compared with the vector of the text."""

MIN_RETAINED_WEIGHT = 0.02
"""Lower bound for a word's retained weight.

It prevents a word that the decomposition dropped altogether from outweighing all others.
"""

MIN_TEXTS_OF_PART = 30
"""Number of texts that must contain a word before other words are split at it."""


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

    def embed(self, passages: Sequence[Passage]) -> Float32Array:
        """Return one vector for each passage, shape (passages, dimensions)."""
        ...

    def embed_question(self, question: str) -> Float32Array:
        """Return the vector of a question, shape (dimensions,); zero if all words are unknown."""
        ...


class LatentSemanticAnalysis:
    """TF-IDF and a singular value decomposition, fitted to the passages that will be searched.

    Words that occur in the same texts get similar vectors. The model knows nothing else about
    language, and needs no download and no GPU.

    Args:
        passages: Passages to fit the model to.
        folder: Folder of the fitted model. Its name changes with the texts, the versions of
            Python, scikit-learn and numpy, and the contents of this file.
    """

    dimensions = DIMENSIONS
    table_name = DEFAULT_TABLE_NAME

    def __init__(self, passages: Sequence[Passage], folder: Path) -> None:
        texts = [f"{passage.text}\n{passage.surroundings}" for passage in passages]
        self.name = f"lsa-{DIMENSIONS}-{_fingerprint(texts)}"
        file = folder / f"{self.name}.joblib"
        if file.is_file():
            self._tfidf, self._svd = joblib.load(file)
            self.description = "latent semantic analysis (cached)"
        else:
            self._tfidf, self._svd = _fit(texts)
            _save((self._tfidf, self._svd), file)
            self.description = "latent semantic analysis"

    def embed(self, passages: Sequence[Passage]) -> Float32Array:
        """Embed the texts, with some weight for the names and the surroundings.

        The name says best what an object is for. The surroundings tell ``sorted``, which sorts
        lists, from a method of the same name in a module about graphs.
        """
        weighted_parts = [
            (1.0, [passage.text for passage in passages]),
            (SHARE_OF_NAME, [passage.chunk.document_id for passage in passages]),
            (SHARE_OF_SURROUNDINGS, [passage.surroundings for passage in passages]),
        ]
        parts = [
            weight * self._project(self._tfidf.transform(texts)) for weight, texts in weighted_parts
        ]
        vectors: Float32Array = normalize(np.sum(parts, axis=0)).astype(np.float32)
        return vectors

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
        self.dimensions = len(self.embed_question("how long is a vector?"))
        identifier = re.sub(r"\W+", "_", name.lower())[-20:].strip("_")
        self.table_name = f"chunks_{identifier}_{_hash(name)}"

    def embed(self, passages: Sequence[Passage]) -> Float32Array:
        return self._encode([passage.text for passage in passages])

    def embed_question(self, question: str) -> Float32Array:
        vector: Float32Array = self._encode([question])[0]
        return vector

    def _encode(self, texts: list[str]) -> Float32Array:
        vectors: Float32Array = self._model.encode(texts, show_progress_bar=False)
        return vectors


class WordSplitter:
    """Splits a text into the stems of its words: "parses" and "parsing" both become "pars".

    A compound gives its own stem and those of its two parts: "datetime" also counts as "date" and
    "time", and "sendmail" as "send" and "mail". Python's names are full of compounds, and people
    ask with the parts. Stop words and single characters are left out.

    Args:
        texts: Texts to learn words from. A word of at least three letters that occurs in
            `MIN_TEXTS_OF_PART` of them can be part of a compound.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(word for text in texts for word in set(_lowercase_words(text)))
        self._counts = {
            word: count
            for word, count in counts.items()
            if len(word) >= 3 and count >= MIN_TEXTS_OF_PART
        }
        self._stems: dict[str, list[str]] = {}

    def __call__(self, text: str) -> list[str]:
        stems = []
        for word in _lowercase_words(text):
            if word not in self._stems:
                self._stems[word] = [_stem(part) for part in (word, *self._parts(word))]
            stems += self._stems[word]
        return stems

    def _parts(self, word: str) -> tuple[str, ...]:
        """Return the two parts of a compound, or nothing if the word is not a compound.

        Of several ways to split it, return the one whose rarer part is in most texts.
        """
        splits = [(word[:end], word[end:]) for end in range(3, len(word) - 2)]
        return max(
            (parts for parts in splits if all(part in self._counts for part in parts)),
            key=lambda parts: min(self._counts[part] for part in parts),
            default=(),
        )


def _lowercase_words(text: str) -> list[str]:
    words = (word.lower() for word in split_words(text))
    return [word for word in words if len(word) > 1 and word not in ENGLISH_STOP_WORDS]


def _stem(word: str) -> str:
    """Strip English endings. This is crude, but docstrings are short: it finds far more."""
    word = re.sub(r"(?<=..[^s])s$", "", word)
    word = re.sub(r"(?<=...)(?:ation|ion|ing|er|or|ed|ly|al)$", "", word)
    return re.sub(r"(?<=...)(?:e|ie|y|i)$", "", word)


def _fit(texts: list[str]) -> tuple[Any, Any]:
    words = WordSplitter(texts)
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
