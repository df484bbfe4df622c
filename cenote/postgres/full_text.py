"""Full text: the generated column that holds a chunk's words, and the queries over it.

A query matches chunks that have at least one of its words. ``websearch_to_tsquery`` and similar
functions of Postgres require all words, but hardly any chunk has all words of a question in natural
language.
"""

from __future__ import annotations

import re

from sqlalchemy import (
    Cast,
    ColumnElement,
    Computed,
    Double,
    ScalarSelect,
    String,
    Text,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY, TSVECTOR
from sqlalchemy.dialects.postgresql.base import PGDialect

COLUMN = "content_tsv"
"""Name of the generated column."""

LANGUAGE_KEY = "language"
"""Metadata key that holds a chunk's language, in a table with several languages."""

SEARCHED_CHARACTERS = 130_000
"""Number of characters at the start of a chunk's content whose words can be found.

A tsvector holds at most 1 MiB, and Postgres rejects a row whose words do not fit. The words of this
number of characters always fit: a character takes at most eight bytes. The worst case is a word of
four-byte letters and many hyphens, which is stored as a whole and as parts, each with a position.
"""

COMMENTS = "<!--.*?-->"
"""Regular expression for the comments of HTML, which Postgres' parser skips.

They become spaces before the text is parsed; see `_bounded`.
"""

CHAINS = "<!-(?=-)|[-._~/@](?:[A-Za-z0-9]*[-._~/@]){31}"
"""Regular expression for the places in a text where a space is inserted; see `_bounded`.

It starts with a fixed character: Postgres tries each character between two matches as the start of
a match, and a start that can match any number of letters took 27 s for 128,000 letters.
"""

QUERY_CHARACTERS = 2_000
"""Number of characters at the start of a query whose words are searched for.

The time to rank a chunk grows with the number of words: over 4,900 chunks, 2,500 words took 1.5 s
and 100 words took 0.1 s.
"""

_quote = String().literal_processor(PGDialect())  # type: ignore[no-untyped-call]


def generated(languages: tuple[str, ...]) -> Computed:
    """Return the expression that generates the column.

    Args:
        languages: One or more text search configurations. The first applies to chunks whose
            metadata does not name one of the others.
    """
    return Computed(_words_of_row(languages), persisted=True)


_CONTENT = (
    f"""regexp_replace(regexp_replace("left"(content, {SEARCHED_CHARACTERS}), '{COMMENTS}'::text,"""
    f""" ' '::text, 'g'::text), '{CHAINS}'::text, '\\& '::text, 'g'::text)"""
)
_WORDS = rf"""to_tsvector\('([\w.]+)'::regconfig, {re.escape(_CONTENT)}\)"""
_GENERATED = re.compile(
    rf"{_WORDS}|CASE lower\(\(metadata ->> '{LANGUAGE_KEY}'::text\)\)"
    rf"(\s+WHEN '[\w.]+'::text THEN {_WORDS})+\s+ELSE {_WORDS}\s+END"
)
"""Expression of a column that cenote created, as Postgres prints it."""


def languages_of(expression: str | None) -> str | None:
    """Return the `SchemaConfig.text_search` that created a column.

    Args:
        expression: SQL that generates the column, as Postgres prints it; None without a column.

    Returns:
        The text search configurations, separated by commas; None if cenote did not create the
        column.
    """
    if not _GENERATED.fullmatch((expression or "").strip()):
        return None
    *others, default = re.findall(_WORDS, expression or "")
    return ", ".join([default, *others])


def any_word_query(languages: tuple[str, ...], text: ColumnElement[str]) -> ScalarSelect[str]:
    """Return a tsquery for any of a text's words, in any of the languages; null without words."""
    bounded = _bounded(text)
    words, *words_in_others = (_words(language, bounded) for language in languages)
    for other_words in words_in_others:
        words = words.op("||", return_type=TSVECTOR())(other_words)
    lexemes = func.unnest(func.tsvector_to_array(words)).table_valued("lexeme").render_derived()
    query = cast(func.string_agg(_quoted(lexemes.c.lexeme), literal_column("' | '")), TSQUERY)
    return select(query).select_from(lexemes).scalar_subquery()


def rank(words: ColumnElement[str], query: ColumnElement[str]) -> Cast[float]:
    """Return the score of a chunk's words for a query, 0 or more. Higher is better.

    The score is plain ``ts_rank``. On 93 queries over a collection of 11,429 abstracts it reached
    an nDCG@10 of .3606, and .4968 when fused with the ranking by vectors. Divided by the logarithm
    of the length, it reached .3576 and .4466; divided by the number of words, .0834 and .2374.
    ``ts_rank_cd`` reached .2116 and .4465.
    """
    return cast(func.ts_rank(words, query), Double)


def _words_of_row(languages: tuple[str, ...]) -> ColumnElement[str]:
    """Return the column's expression as Postgres prints it, because Alembic compares the text."""
    content = _bounded(func.left(column("content"), literal_column(str(SEARCHED_CHARACTERS))))
    default, *others = languages
    if not others:
        return _words(default, content)
    language = func.lower(column("metadata").op("->>")(_constant(LANGUAGE_KEY, "text")))
    return case(
        {_constant(other, "text"): _words(other, content) for other in others},
        value=language,
        else_=_words(default, content),
    )


def _bounded(text: ColumnElement[str]) -> ColumnElement[str]:
    """Return a text in a form that Postgres parses in linear time, with the same words.

    At each word, Postgres' parser looks for a host, an e-mail address, a path or a tag. If it finds
    none, it has read to the end of the run and starts again at the next word. ``"a_" * 65_000``
    took 31 s of CPU, ``"<!--" * 32_000`` 22 s, and ``"@1a" * 43_000`` exceeded the server's stack.
    Therefore:

    - A comment of HTML becomes a space. The parser skips comments too.
    - "<!-" without an end gets a space behind it, because the parser reads to the end of the text.
    - After 32 of the characters ``- . _ ~ / @`` with only ASCII letters and digits between them,
      a space is inserted. Longer hosts, addresses, paths and hyphenated words become several words.

    The slowest of 18,000 generated texts of 130,000 characters then took 0.4 s. Limits of 16 and 64
    characters took 0.2 and 0.7 s. Ordinary text takes 6 to 14 % longer than without the
    replacements: 6 % as one long text, 14 % as 11,429 abstracts of 270 characters.
    """
    everywhere = _constant("g", "text")
    without_comments = func.regexp_replace(
        text, _constant(COMMENTS, "text"), _constant(" ", "text"), everywhere, type_=Text
    )
    return func.regexp_replace(
        without_comments,
        _constant(CHAINS, "text"),
        _constant("\\& ", "text"),
        everywhere,
        type_=Text,
    )


def _words(language: str, text: ColumnElement[str]) -> ColumnElement[str]:
    return func.to_tsvector(_constant(language, "regconfig"), text, type_=TSVECTOR)


def _constant(value: str, type_: str) -> ColumnElement[str]:
    """Return a constant as Postgres prints it.

    The values are constants of this module and names that `SchemaConfig.text_search` has checked.
    """
    quoted = _quote(value)
    return literal_column(quoted, Text).op("::", return_type=REGCONFIG())(literal_column(type_))


def _quoted(lexeme: ColumnElement[str]) -> ColumnElement[str]:
    """Return a lexeme in quotes, as the input syntax of a tsquery writes it."""
    backslash: ColumnElement[str] = func.chr(92)
    quote: ColumnElement[str] = literal_column("''''")
    escaped = lexeme
    for character in (backslash, quote):
        escaped = func.replace(escaped, character, func.concat(character, character))
    return func.concat(quote, escaped, quote)
