"""Add full text if `text_search` is set: a generated column of the content's words, and its index.

If the table has rows, Postgres rewrites all of them and rebuilds all indexes under an exclusive
lock. If `text_search` is not set, this revision does nothing; ``cenote text-search`` adds full text
later.

Never edit a revision after its release: databases have already run it. A revision holds its own
DDL; CONTRIBUTING lists the functions of cenote that it may call.

Revision ID: cenote_0002
Revises: cenote_0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from cenote.migrate.revision_context import has_text_search, live_config

revision = "cenote_0002"
down_revision = "cenote_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    config = live_config()
    if not config.languages or has_text_search():
        return
    table = config.table_name
    words = sa.Computed(_words_of_row(config.languages), persisted=True)
    op.add_column(
        table, sa.Column("content_tsv", TSVECTOR, words, nullable=False), schema=config.schema
    )
    op.create_index(
        "ix_" + table + "_content_tsv",
        table,
        ["content_tsv"],
        schema=config.schema,
        postgresql_using="gin",
    )


def downgrade() -> None:
    """Drop the column and its index. Nothing is lost: the column is generated."""
    config = live_config()
    offline = op.get_context().as_sql and config.languages
    if offline or has_text_search():
        op.drop_column(config.table_name, "content_tsv", schema=config.schema)


def _words_of_row(languages: tuple[str, ...]) -> str:
    """Return the expression of the generated column.

    The first language applies to chunks whose metadata does not name one of the other languages.
    """
    default, *others = languages
    if not others:
        return _words(default)
    cases = "".join(f"WHEN ('{language}' :: text) THEN {_words(language)} " for language in others)
    return f"CASE lower(metadata ->> ('language' :: text)) {cases}ELSE {_words(default)} END"


def _words(language: str) -> str:
    """Return the expression for one language, the name of a text search configuration.

    The name is a validated identifier, so it needs no quoting. A tsvector holds at most 1 MiB; the
    words of 130,000 characters always fit. The replacements keep the time to parse them linear:
    Postgres' parser takes 31 s of CPU for ``"a_" * 65_000`` and 22 s for ``"<!--" * 32_000``.
    """
    content = r"""regexp_replace(
        regexp_replace(left(content, 130000), '<!--.*?-->', ' ', 'g'),
        '<!-(?=-)|[-._~/@](?:[A-Za-z0-9]*[-._~/@]){31}', '\& ', 'g'
    )"""
    return f"to_tsvector('{language}' :: regconfig, {content})"
