"""Fuzz tests of the parsing of texts: no text takes Postgres more than a second of CPU.

``CENOTE_TORTURE`` multiplies the number of texts; without it, the texts are the same in each run.
A query that takes longer than 10 s is cancelled and fails, on any server. On the embedded server,
the CPU time of the process is measured too, which other processes hardly change.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import psutil
import pytest
from sqlalchemy import Text, literal_column
from sqlalchemy.ext.asyncio import AsyncEngine
from support.attacks import Recorded
from support.fuzzing.harness import TORTURE
from support.fuzzing.texts import LENGTH, SLOW, long_text, short_text

from cenote import PgVectorStore
from cenote.maintenance import set_text_search
from cenote.postgres.full_text import COLUMN, QUERY_CHARACTERS, any_word_query
from cenote.testing import embedded

TEXTS = 40 * TORTURE
LOOKALIKES = 500 * TORTURE
SECONDS = 1.0

EXPRESSION = f"""
    SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
    JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
    WHERE adrelid = 'cenote_chunks'::regclass AND attname = '{COLUMN}'
"""

ORDINARY = [
    "A well-known state-of-the-art e-mail, sent by jane.doe_77@mail.example.co.uk at 10:30.",
    "See https://example.com/a_b/2024-01-02/some-long-title?q=a%20b&page=2#part, or www.a-b.org/x.",
    "/usr/local/lib/python3.11/site-packages/my_package/__init__.py and ../a/b_c.txt, ~/.profile",
    "Version 1.2.3-rc1 of 2024-12-31 costs -1.5e-10 or +7 & is 3/4 of x_y_z's snake_case_name.",
    "<p class='a'>One<!-- a comment, <b>left out</b> --> two &amp; three</p><!DOCTYPE html><br/>",
    "| a | b |\n|---|---|\n| 1 | 2 |\n" + "-" * 80 + "\nContents ........................... 12",
    "你好,世界。Größe-Länge, cœur-à-cœur, Ελλάδα-Κύπρος, русско-английский, का-की",
    '{"a":1,"b":[1.5,-2],"c":{"d":"e-f","g":"h@i.jk"}}',
    "if (a->b < c && d <!--e) return x-->y;",
]


class Parser:
    """A connection that parses texts as the table and the searches do."""

    def __init__(self, driver: Any, of_content: str, of_question: str) -> None:
        self._driver = driver
        self._of_content = of_content
        self._of_question = of_question
        self._process: psutil.Process | None = None
        if "CENOTE_TEST_DATABASE_URL" not in os.environ:
            pid = driver.get_server_pid()
            if psutil.pid_exists(pid) and "postgres" in psutil.Process(pid).name():
                self._process = psutil.Process(pid)

    async def seconds(self, text: str) -> float:
        """Parse a content and return the CPU time, or 0 if it is not known."""
        return await self._seconds(self._of_content, text)

    async def seconds_of_question(self, text: str) -> float:
        """Parse a question and return the CPU time, or 0 if it is not known."""
        return await self._seconds(self._of_question, text[:QUERY_CHARACTERS])

    async def words(self, text: str) -> tuple[str, str]:
        """Return the words of a content, and its words without the replacements."""
        plain = "to_tsvector('simple', content)"
        query = f"SELECT {self._of_content}::text, {plain}::text FROM (SELECT $1::text AS content)"
        indexed, ordinary = await self._driver.fetchrow(query, text)
        return indexed, ordinary

    async def _seconds(self, expression: str, text: str) -> float:
        before = self._cpu()
        await self._driver.fetchval(
            f"SELECT length(({expression})::text) FROM (SELECT $1::text AS content)",
            text,
        )
        return self._cpu() - before

    def _cpu(self) -> float:
        if self._process is None:
            return 0.0
        times = self._process.cpu_times()
        return float(times.user + times.system)


@pytest.fixture
async def parser(store: PgVectorStore, engine: AsyncEngine) -> AsyncIterator[Parser]:
    """A parser for a table with full text."""
    await set_text_search(engine, store.config, "simple")
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("SET statement_timeout = '10s'; SET client_min_messages = error")
        question = _sql_of_question(engine)
        yield Parser(driver, await driver.fetchval(EXPRESSION), question)
        await connection.invalidate()


def _sql_of_question(engine: AsyncEngine) -> str:
    """Return the SQL of a question's words, with a column in the place of the question."""
    query = any_word_query(("simple",), literal_column("content", Text))
    return str(query.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True}))


@pytest.mark.parametrize("pattern", SLOW)
async def test_slow_patterns(parser: Parser, pattern: str) -> None:
    """Patterns that took Postgres' own parser half a minute take less than a second."""
    text = SLOW[pattern]
    assert await parser.seconds(text) < SECONDS
    assert await parser.seconds_of_question(text) < SECONDS


async def test_generated_texts(parser: Parser, attacked: Recorded) -> None:
    """Generated texts take less than a second, as contents and as questions."""
    random = Random(None if TORTURE > 1 else 0)
    longest = 0.0
    for _ in range(TEXTS):
        text = long_text(random)
        assert len(text) == LENGTH
        seconds = max(await parser.seconds(text), await parser.seconds_of_question(text))
        assert seconds < SECONDS, repr(text[:200])
        longest = max(longest, seconds)
    attacked("slow texts for full-text search", TEXTS, f"at most {longest:.2f} s of server CPU")


@pytest.mark.parametrize("text", ORDINARY)
async def test_ordinary_texts_keep_their_words(parser: Parser, text: str) -> None:
    """Hyphenated words, hosts, addresses, paths, numbers and markup have the parser's own words."""
    indexed, ordinary = await parser.words(text)
    assert indexed == ordinary != ""


async def test_short_texts_keep_their_words(parser: Parser) -> None:
    """Texts with at most 31 of the counted characters, and without comments, keep their words."""
    random = Random(None if TORTURE > 1 else 0)
    for _ in range(LOOKALIKES):
        text = f"{short_text(random) * 2} {short_text(random)}a{short_text(random)}"
        if sum(map(text.count, "-._~/@")) <= 31 and "<!--" not in text:
            indexed, ordinary = await parser.words(text)
            assert indexed == ordinary, repr(text)


async def test_slow_contents_and_questions_in_a_store(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """Such contents are stored, and questions of such texts are answered."""
    await set_text_search(engine, store.config, "english, spanish")
    worded = PgVectorStore(engine, 4, text_search="english, spanish", operation_timeout=10)
    for pattern, text in SLOW.items():
        await worded.upsert([embedded(pattern, content=f"elephants {text}")], "n")
        await worded.search_text(f"elephant {text}", "n")
        await worded.search_hybrid(text, [1.0, 0.0, 0.0, 0.0], "n")
    found = await worded.search_text("elephant", "n", limit=len(SLOW))
    assert {result.chunk.id for result in found} == set(SLOW)


async def test_long_paths_and_comments_are_found(store: PgVectorStore, engine: AsyncEngine) -> None:
    """The words of a path of 40 parts are found, and so is what follows an unfinished comment."""
    await set_text_search(engine, store.config, "english")
    worded = PgVectorStore(engine, 4, text_search="english")
    path = "/" + "/".join(f"part{number}" for number in range(40))
    chunks = {
        "path": f"Stored in {path}.",
        "unfinished": "lions <!-- tigers",
        "finished": "lions <!-- zebras --> giraffes",
    }
    await worded.upsert([embedded(id, content=text) for id, text in chunks.items()], "n")
    for question, expected in (
        (path, ["path"]),
        ("tiger", ["unfinished"]),
        ("<!-- tiger", ["unfinished"]),
        ("zebra", []),
        ("<!-- zebra --> giraffe", ["finished"]),
    ):
        results = await worded.search_text(question, "n")
        assert [result.chunk.id for result in results] == expected
