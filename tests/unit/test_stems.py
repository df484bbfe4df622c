"""Stems of words, by Postgres's languages."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cenote import ConfigurationError, InMemoryVectorStore
from cenote.ranking import bm25
from cenote.ranking.bm25 import stems, words


def test_stems_in_many_threads() -> None:
    """Two threads never use the same stemmer at the same time."""
    content = ["caminaban", "jardines", "universidades", "corriendo", "gatos"]
    stems.cache_clear()
    expected = stems("spanish")(" ".join(content))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for suffix in range(300):
                stems.cache_clear()
                stem = stems("spanish")
                texts = [" ".join([*content, f"otro{suffix}{n}"]) for n in range(4)]
                for stemmed in threads.map(stem, texts):
                    assert [*stemmed][:5] == expected
    finally:
        sys.setswitchinterval(interval)


def test_stems() -> None:
    """Postgres's languages are available; the error for another language lists them."""
    assert [*stems("spanish")("Caminaban por JARDINES")] == ["camin", "por", "jardin"]
    assert [*stems("simple")("It's ÑANDÚ 7")] == ["it", "s", "ñandú", "7"]
    with pytest.raises(ConfigurationError, match=r"'klingon' .* available are simple, arabic"):
        InMemoryVectorStore(4, text_search="klingon")


def test_long_words_are_not_stemmed() -> None:
    """The time of stemmers grows with the square of a word's length, so the length is limited."""
    stem = stems("english")
    longest = "a" * 993 + "walking"
    assert stem(longest) == ["a" * 993 + "walk"]
    assert stem("a" + longest) == ["a" + longest]
    assert stems("serbian")("\u045a" * 501) == ["\u045a" * 501]
    assert stem("a" * 2_046) == ["a" * 2_046]
    assert stem("a" * 2_047 + " cats") == ["cat"]


def test_stems_of_long_words_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of stems does not hold words of more than 64 characters."""
    stemmed = []

    class Stemmer:
        def stemWord(self, word: str) -> str:  # noqa: N802
            stemmed.append(word)
            return word

    snowball = bm25.imported("snowballstemmer")
    monkeypatch.setattr(snowball, "stemmer", lambda _: Stemmer())
    stems.cache_clear()
    try:
        stem = stems("english")
        for _ in range(2):
            assert stem(f"{'a' * 64} {'b' * 65}") == ["a" * 64, "b" * 65]
    finally:
        stems.cache_clear()
    assert stemmed == ["a" * 64, "b" * 65, "b" * 65]


def test_rare_characters_are_not_kept() -> None:
    """Texts of all characters do not grow the table of separators beyond 65,536 entries."""
    every = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x30000)]))
    assert "".join(words(f"{every} \U00020000 cats")).endswith("\U00020000cats")
    assert len(bm25._separators) <= 65_536
