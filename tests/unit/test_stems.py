"""Stems of words, by Postgres's languages."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cenote import ConfigurationError, InMemoryVectorStore
from cenote.ranking.bm25 import stems


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
