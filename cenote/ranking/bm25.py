"""Full-text search in memory: tokenising, stemming and BM25.

Requires the extra ``cenote[bm25]``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock
from typing import Any

import numpy as np

from cenote.errors import ConfigurationError

Tokenize = Callable[[str], Sequence[str]]
"""Function that splits a text into searchable words."""

_STEMS = 100_000
"""Number of words per language whose stems are cached."""

_CACHED_CHARACTERS = 64
"""Maximum length of a word whose stem is cached. The cache of a language stays below 60 MB."""

_STEMMED_BYTES = 1_000
"""Maximum length in UTF-8 of a word that is stemmed. Postgres does not stem longer words either.

The time of some algorithms grows with the square of the length: the Serbian one took 10 s for a
word of 130,000 characters.
"""

_INDEXED_BYTES = 2_046
"""Maximum length in UTF-8 of a word that can be found. Postgres ignores longer words too."""


class _Separators(dict[int, str]):
    """A table for `str.translate` that replaces every character outside words by a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # A mark belongs to the letter before it; most vowels of Hindi are marks.
        in_word = character.isalnum() or unicodedata.category(character).startswith("M")
        replacement = character if in_word else " "
        if code <= 0xFFFF:  # a table of all characters would take 90 MB
            self[code] = replacement
        return replacement


_separators = _Separators()


def words(text: str) -> list[str]:
    """Split a text into words, in lower case. Words of more than 2,046 bytes are left out."""
    found = text.casefold().translate(_separators).split()
    return [word for word in found if _fits(word, _INDEXED_BYTES)]


def _fits(word: str, size: int) -> bool:
    """Return whether a word takes at most `size` bytes of UTF-8."""
    return len(word) * 4 <= size or len(word.encode()) <= size


@cache
def stems(language: str) -> Tokenize:
    """Return a function that splits a text into the stems of its words, by Snowball algorithms.

    Postgres' text search configurations use the same algorithms. They also ignore stop words, which
    this function does not. Words of more than 1,000 bytes are not stemmed, as in Postgres.

    Args:
        language: English name of the language, such as ``"spanish"``, or ``"simple"`` for words
            without stemming.

    Raises:
        ConfigurationError: the language has no algorithm, or snowballstemmer is not installed.
    """
    if language == "simple":
        return words
    snowball = imported("snowballstemmer")
    if language not in snowball.algorithms():
        raise ConfigurationError(
            f"text_search {language!r} is not available in memory; available are simple, "
            + ", ".join(sorted(snowball.algorithms())),
            setting="text_search",
        )
    stemmer = snowball.stemmer(language)
    lock = Lock()  # a stemmer keeps the current word as state

    def stem(word: str) -> str:
        with lock:
            stemmed: str = stemmer.stemWord(word)
        return stemmed

    cached_stem = lru_cache(_STEMS)(stem)

    def stem_if_short(word: str) -> str:
        if len(word) <= _CACHED_CHARACTERS:
            return cached_stem(word)
        return stem(word) if _fits(word, _STEMMED_BYTES) else word

    return lambda text: [stem_if_short(word) for word in words(text)]


def imported(module: str) -> Any:
    """Import and return a module of the extra.

    Raises:
        ConfigurationError: the module is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"full-text search in memory requires {module}: pip install 'cenote[bm25]'",
            setting="bm25",
        ) from error


@dataclass(frozen=True, slots=True)
class WordIndex:
    """A BM25 index over the words of a namespace's chunks.

    Attributes:
        ids: Chunk ids in ascending order.
        bm25: The `bm25s.BM25` index, or None if no chunk has any words.
    """

    ids: list[str]
    bm25: Any

    @classmethod
    def of(cls, ids: list[str], tokens: list[list[str]]) -> WordIndex:
        """Build an index of chunks from their ids and words, in the same order."""
        if not any(tokens):
            return cls(ids, None)
        bm25 = imported("bm25s").BM25()
        bm25.index(tokens, show_progress=False)
        return cls(ids, bm25)

    def ranked(self, tokens: Sequence[str]) -> list[tuple[str, float]]:
        """Return ids and scores of the chunks with any of the words, best first, ties by id."""
        if self.bm25 is None or not tokens:
            return []
        scores = self.bm25.get_scores(list(tokens))
        order = np.argsort(-scores, kind="stable")
        return [
            (self.ids[position], float(scores[position]))
            for position in order
            if scores[position] > 0
        ]
