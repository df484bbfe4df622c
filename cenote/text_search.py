"""Full text: the generated column that holds a chunk's words, and the queries over it.

A text is looked for by its words, of which any may be there: in Postgres, ``websearch_to_tsquery``
and its kind want all of them, which a question in plain language never meets.
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
"""The generated column."""

LANGUAGE_KEY = "language"
"""The key of the metadata by which a chunk says its language, where a table has several."""

SEARCHED_CHARACTERS = 130_000
"""Characters of a content whose words are found.

A tsvector holds 1 MiB, and what does not fit would be refused. So many fit, whatever they are: a
character takes eight bytes at most, where a word of four-byte letters and many hyphens is stored as
a whole and by its parts, of which each has a place.
"""

ASKED_CHARACTERS = 2_000
"""Characters of a question whose words are looked for. Ranking a chunk takes as long as there are
words: 2,500 of them took 1.5 s over 4,900 chunks, 100 words a tenth of a second."""

_quote = String().literal_processor(PGDialect())  # type: ignore[no-untyped-call]


def generated(languages: tuple[str, ...]) -> Computed:
    """What generates the column.

    Args:
        languages: the text search configurations, one or more; the first is that of chunks whose
            metadata name none of the others.
    """
    return Computed(_words_of_row(languages), persisted=True)


_WORDS = r"""to_tsvector\('([\w.]+)'::regconfig, "left"\(content, \d+\)\)"""
_OURS = re.compile(
    rf"{_WORDS}|CASE lower\(\(metadata ->> '{LANGUAGE_KEY}'::text\)\)"
    rf"(\s+WHEN '[\w.]+'::text THEN {_WORDS})+\s+ELSE {_WORDS}\s+END"
)
"""What generates a column of ours, as Postgres prints it."""


def languages_of(expression: str | None) -> str | None:
    """The setting that made a column, by what the catalogue says of it; None where none did."""
    if not _OURS.fullmatch((expression or "").strip()):
        return None
    made = re.findall(_WORDS, expression or "")
    return ", ".join([*made[-1:], *made[:-1]])


def words_asked(languages: tuple[str, ...], text: ColumnElement[str]) -> ScalarSelect[str]:
    """The query for any of a text's words; null where it has none."""
    words, *more = (_words(language, text) for language in languages)
    for others in more:
        words = words.op("||", return_type=TSVECTOR())(others)
    asked_for = func.unnest(func.tsvector_to_array(words)).table_valued("lexeme").render_derived()
    query = cast(func.string_agg(_quoted(asked_for.c.lexeme), literal_column("' | '")), TSQUERY)
    return select(query).select_from(asked_for).scalar_subquery()


def rank(words: ColumnElement[str], query: ColumnElement[str]) -> Cast[float]:
    """How well a chunk's words answer a query, 0 to 1 and more; the higher the better.

    ``ts_rank`` as it is: on 93 queries of a collection of 11,429 abstracts it had an nDCG@10 of
    .3606, and .4968 fused with the ranking by vectors; divided by the logarithm of the length .3576
    and .4466, by the number of words .0834 and .2374; ``ts_rank_cd`` had .2116 and .4465.
    """
    return cast(func.ts_rank(words, query), Double)


def _words_of_row(languages: tuple[str, ...]) -> ColumnElement[str]:
    """The column's expression, written as Postgres prints it, since alembic compares the texts."""
    content = func.left(column("content"), literal_column(str(SEARCHED_CHARACTERS)))
    default, *others = languages
    if not others:
        return _words(default, content)
    language = func.lower(column("metadata").op("->>")(_constant(LANGUAGE_KEY, "text")))
    return case(
        {_constant(one, "text"): _words(one, content) for one in others},
        value=language,
        else_=_words(default, content),
    )


def _words(language: str, text: ColumnElement[str]) -> ColumnElement[str]:
    return func.to_tsvector(_constant(language, "regconfig"), text, type_=TSVECTOR)


def _constant(value: str, type_: str) -> ColumnElement[str]:
    """A constant as Postgres prints it, of names that are checked (`SchemaConfig.text_search`)."""
    quoted = _quote(value)
    return literal_column(quoted, Text).op("::", return_type=REGCONFIG())(literal_column(type_))


def _quoted(lexeme: ColumnElement[str]) -> ColumnElement[str]:
    """A lexeme as the input of a tsquery writes it."""
    doubled = lexeme
    marks: tuple[ColumnElement[str], ...] = (func.chr(92), literal_column("''''"))
    for one in marks:
        doubled = func.replace(doubled, one, func.concat(one, one))
    quote: ColumnElement[str] = literal_column("''''")
    return func.concat(quote, doubled, quote)
