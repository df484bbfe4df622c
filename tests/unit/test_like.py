"""LIKE patterns match in Python as the SQL standard says, however long they are."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cenote.filters.like import LikePattern

# Few different characters, so that pieces of the pattern match often and in the wrong places.
patterns = st.lists(st.sampled_from(["a", "b", "%", "_", r"\%", r"\_", r"\\", "\n"])).map("".join)
texts = st.text("ab%_\\\n", max_size=12)


def regular_expression(pattern: str) -> re.Pattern[str]:
    """Return the plain translation of a pattern, which may take exponential time."""
    translated = re.sub(
        r"\\(.)|(%)|(_)|(.)",
        lambda token: ".*" if token[2] else "." if token[3] else re.escape(token[1] or token[4]),
        pattern,
        flags=re.DOTALL,
    )
    return re.compile(translated, re.DOTALL)


@given(pattern=patterns, text=texts)
def test_patterns_match_like_their_regular_expressions(pattern: str, text: str) -> None:
    """Any pattern matches exactly the texts that its regular expression matches."""
    expected = regular_expression(pattern).fullmatch(text) is not None
    assert LikePattern(pattern).matches(text) is expected


@pytest.mark.parametrize("repeated", ["%a", "%_", "%a_b", "a_", "a", "_", r"%\%"])
def test_long_patterns_end(repeated: str) -> None:
    """100 kB take less than 5 s of CPU: as regular expressions, some of them never end."""
    pattern = repeated * (100_000 // len(repeated))
    start = time.process_time()
    parsed = LikePattern(pattern)
    for text in ("ab" * 500, "ab" * 100_000):
        parsed.matches(text)
    for number in range(20_000):
        parsed.matches(f"title {number}")
    assert time.process_time() - start < 5
