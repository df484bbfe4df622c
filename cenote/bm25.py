"""Searching by words in memory: BM25 over texts that are taken apart.

Needs the extra ``cenote[bm25]``.
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
"""Takes a text apart into the words that are to be found in it."""

_STEMS = 100_000
"""Words of which the stems are kept, for each language."""


class _Separators(dict[int, str]):
    """For `str.translate`: a blank for whatever is no part of a word."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # A mark belongs to the letter before it, as most vowels of Hindi do.
        part = character.isalnum() or unicodedata.category(character).startswith("M")
        self[code] = character if part else " "
        return self[code]


_separators = _Separators()


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return text.casefold().translate(_separators).split()


@cache
def stems(language: str) -> Tokenize:
    """A function that takes a text apart into the stems of its words, by Snowball's algorithms.

    Those are what Postgres' text search configurations use; its lists of stop words are not here.

    Args:
        language: its English name, such as ``"spanish"``; ``"simple"`` for words as they are.

    Raises:
        ConfigurationError: there is no such algorithm, or no snowballstemmer.
    """
    if language == "simple":
        return words
    snowball = imported("snowballstemmer")
    if language not in snowball.algorithms():
        raise ConfigurationError(
            f"there are no stems for {language!r}; there are simple, "
            + ", ".join(sorted(snowball.algorithms())),
            setting="text_search",
        )
    stemmer = snowball.stemmer(language)
    lock = Lock()  # a stemmer has the word in hand as its state

    @lru_cache(_STEMS)
    def stem(word: str) -> str:
        with lock:
            found: str = stemmer.stemWord(word)
        return found

    return lambda text: [stem(word) for word in words(text)]


def imported(module: str) -> Any:
    """A module of the extra.

    Raises:
        ConfigurationError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"searching by words in memory needs {module}: pip install 'cenote[bm25]'",
            setting="bm25",
        ) from error


@dataclass(frozen=True, slots=True)
class WordIndex:
    """The words of a namespace's chunks.

    Attributes:
        ids: of the chunks, in ascending order.
        bm25: scores of their words; None where there are none.
    """

    ids: list[str]
    bm25: Any

    @classmethod
    def of(cls, ids: list[str], tokens: list[list[str]]) -> WordIndex:
        """An index of texts that are taken apart, of which each has an id."""
        if not any(tokens):
            return cls(ids, None)
        bm25 = imported("bm25s").BM25()
        bm25.index(tokens, show_progress=False)
        return cls(ids, bm25)

    def ranked(self, tokens: Sequence[str]) -> list[tuple[str, float]]:
        """Ids and scores of the chunks that have one of the words, the best first, ties by id."""
        if self.bm25 is None or not tokens:
            return []
        scores = self.bm25.get_scores(list(tokens))
        order = np.argsort(-scores, kind="stable")
        return [(self.ids[n], float(scores[n])) for n in order if scores[n] > 0]
