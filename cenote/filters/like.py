"""Match LIKE patterns in Python, as Postgres does."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SAMPLE = 1000
"""Number of characters of a text in which the literals of a piece are counted."""

_TOKENS = re.compile(r"\\(.)|(%)|(_+)|[^\\%_]+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a pattern between two ``%``.

    Attributes:
        length: Number of characters that the piece matches.
        literals: Texts between the ``_``, each after its offset in the piece.
    """

    length: int
    literals: tuple[tuple[int, str], ...]

    def matches_at(self, text: str, start: int) -> bool:
        return all(text.startswith(literal, start + offset) for offset, literal in self.literals)

    def find(self, text: str, start: int, end: int) -> int:
        """Return the first position in ``text[start:end]`` at which the piece matches, or -1."""
        if not self.literals:
            return start if start + self.length <= end else -1
        offset, literal = self.literals[0]
        if len(self.literals) > 1:  # the literal that occurs least leaves the fewest positions
            offsets = {literal: offset for offset, literal in self.literals}
            sample = min(end, start + _SAMPLE)
            literal = min(offsets, key=lambda literal: text.count(literal, start, sample))
            offset = offsets[literal]
        last = end - self.length + offset + len(literal)
        while True:
            found = text.find(literal, start + offset, last)
            if found < 0:
                return -1
            start = found - offset
            if self.matches_at(text, start):
                return start
            start += 1


class LikePattern:
    """A LIKE pattern.

    A pattern becomes one piece per ``%``, and ``str.find`` looks for each piece once, from left to
    right: if the leftmost match of a piece leads to no match of the whole pattern, no other match
    of the piece does. As a regular expression, a pattern of 100 kB took 3.5 s to compile.

    Args:
        pattern: The pattern. A backslash must be followed by a character.
    """

    __slots__ = ("_first", "_last", "_length", "_others")

    def __init__(self, pattern: str) -> None:
        pieces = list(_split(pattern))
        self._length = sum(piece.length for piece in pieces)
        self._last = pieces.pop() if len(pieces) > 1 else None
        self._first = pieces[0]
        # An empty piece between two % matches anywhere.
        self._others = [piece for piece in pieces[1:] if piece.length]

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches a whole text."""
        if len(text) < self._length or not self._first.matches_at(text, 0):
            return False
        if self._last is None:
            return len(text) == self._length
        end = len(text) - self._last.length
        if not self._last.matches_at(text, end):
            return False
        position = self._first.length
        for piece in self._others:
            found = piece.find(text, position, end)
            if found < 0:
                return False
            position = found + piece.length
        return True


def _split(pattern: str) -> list[_Piece]:
    pieces = []
    length = 0
    literals: list[tuple[int, str]] = []
    run: list[str] = []  # adjacent parts of one literal
    run_start = 0

    def end_literal() -> None:
        if run:
            literals.append((run_start, "".join(run)))
            run.clear()

    for token in _TOKENS.finditer(pattern):
        escaped, percent, underscores = token.groups()
        if percent or underscores:
            end_literal()
            if percent:
                pieces.append(_Piece(length, tuple(literals)))
                length, literals = 0, []
            else:
                length += len(underscores)
            continue
        if not run:
            run_start = length
        run.append(escaped or token[0])
        length += len(run[-1])
    end_literal()
    pieces.append(_Piece(length, tuple(literals)))
    return pieces
