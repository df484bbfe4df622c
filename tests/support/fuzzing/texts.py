"""Texts that make the parser of Postgres' full-text search look far ahead."""

from __future__ import annotations

from random import Random

LENGTH = 130_000

SLOW = {
    "words and underscores": "a_" * 65_000,
    "letters and underscores": "a_b" * 43_000,
    "comments without an end": "<!--" * 32_500,
    "home folders": "~/" * 65_000,
    "current folders": "./" * 65_000,
    "hyphens and numbers": "a-1-" * 32_500,
    "numbers and at signs": "@1a" * 43_000,
    "folders and long numbers": ("./" * 300 + "1" * 20_000 + "<") * 6,
    "long chains": ("a_" * 31 + "a" * 2_000 + " ") * 63,
    "long words": "a" * 64_000 + "_" + "a" * 64_000 + "<" + "_" * 40,
}
"""Texts that took Postgres' parser long or its whole stack, or that strain the replacements."""

LOOKED_AHEAD = [*"ab1é-_./@~:?"]
"""Characters of hosts, e-mail addresses, paths, numbers and hyphenated words."""

MARKUP = [
    *("<", "<a ", "</a", "<!--", "<!-", "-->", "<!d", "<?x", "<script>", "<style "),
    *("'", '"', "\\", "=", ">", "/", "&", "&#", ";", "a", " "),
]
"""Characters and beginnings of tags, comments and entities."""

OTHERS = [
    *"abzAZ0189eEx_-./:@<>&;#~?=%+'\"!*,()[]{}|\\^`$ \t\n",
    *("é", "ß", "日", "本", "\u0301", "١", "\u200b", "\u00a0", "𠀀"),
    *("http://", "www.", "a.b", "a@b.c", "&a;", "&#1;", "&#x", "1.2.3", "1e-", "-1", "../"),
    *("/a", "a-", "a_b", "é-", "a-é", "1-a", "com", "://", "?a=", "%20", "<a '", '<a "'),
]
"""Other ASCII characters, characters of other scripts, and short words."""


def short_text(random: Random) -> str:
    """Return a text of at most eight characters or short words."""
    parts = random.choice([LOOKED_AHEAD, LOOKED_AHEAD, MARKUP, OTHERS])
    return "".join(random.choices(parts, k=random.choice([1, 2, 2, 3, 3, 4, 5, 6, 8])))


def long_text(random: Random) -> str:
    """Return a text of 130,000 characters that repeats one or two short texts in some pattern."""
    unit, other = short_text(random), short_text(random)
    match random.choices(["alone", "ends", "halves", "runs", "mixed"], [9, 3, 2, 4, 2])[0]:
        case "alone":
            text = unit * LENGTH
        case "ends":
            return other + (unit * LENGTH)[: LENGTH - 2 * len(other)] + other
        case "halves":
            text = (unit * LENGTH)[: LENGTH // 2] + other * LENGTH
        case "runs":
            repeated = unit * random.choice([1, 5, 15, 31, 32, 33, 60, 300])
            filler = random.choice("a1é日") * random.choice([0, 1, 50, 500, 3_000, 20_000])
            text = (repeated + filler + random.choice([*" \n,<:?@'", ""])) * LENGTH
        case _:
            parts = random.choice([LOOKED_AHEAD + MARKUP, OTHERS])
            text = "".join(random.choices(random.sample(parts, random.choice([2, 3, 6])), k=LENGTH))
    return text[:LENGTH]
