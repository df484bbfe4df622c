"""No content, metadata, vector or password in what cenote says, however something fails."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from database import execute
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote import (
    CenoteError,
    Chunk,
    EmbeddedChunk,
    InMemoryVectorStore,
    PgVectorStore,
    SchemaConfig,
    field,
    meta,
    schema,
)

MARKER = "mArKeR"
NUMBER = 0.12345678
VECTOR = [NUMBER, 1.0, 0.0, 0.0]
SECRETS = [MARKER, str(NUMBER)]


def secret(**changes: Any) -> EmbeddedChunk:
    """A chunk of secrets, but for its ids, which are named in messages."""
    values: dict[str, Any] = {
        "id": "id",
        "document_id": "document",
        "content": MARKER,
        "metadata": {MARKER: MARKER},
    }
    embedding = changes.pop("embedding", VECTOR)
    return EmbeddedChunk(
        chunk=Chunk(**values | changes), embedding=embedding, embedding_model="model"
    )


def said_by(error: BaseException) -> str:
    """All that a log of an exception, its causes and contexts, and their attributes would hold."""
    said = ""
    one: BaseException | None = error
    while one is not None:
        said += "".join(traceback.format_exception(one)) + repr(one) + repr(vars(one))
        if one.__context__ is not None and one.__context__ is not one.__cause__:
            said += said_by(one.__context__)
        one = one.__cause__
    return said


def leaks(said: str) -> list[str]:
    """The secrets in a text, but for where this file says them itself."""
    lines = [line for line in said.splitlines() if "secret(" not in line and "VECTOR" not in line]
    return [one for one in SECRETS if one in "\n".join(lines)]


Call = Callable[[Any], Awaitable[Any]]

BAD_INPUT: dict[str, Call] = {
    "NUL in the content": lambda s: s.upsert([secret(content=MARKER + "\x00")], "n"),
    "a surrogate in the metadata": lambda s: s.upsert([secret(metadata={MARKER: "\ud800"})], "n"),
    "a set in the metadata": lambda s: s.upsert([secret(metadata={MARKER: {MARKER}})], "n"),
    "NaN in the metadata": lambda s: s.upsert([secret(metadata={MARKER: float("nan")})], "n"),
    "a vector too long": lambda s: s.upsert([secret(embedding=[*VECTOR, NUMBER])], "n"),
    "NaN in the vector": lambda s: s.upsert([secret(embedding=[NUMBER, float("nan"), 1, 1])], "n"),
    "text for a vector": lambda s: s.upsert([secret(embedding=MARKER)], "n"),
    "text in a vector": lambda s: s.upsert([secret(embedding=[MARKER, 1, 2, 3])], "n"),
    "a position that is none": lambda s: s.upsert([secret(position=MARKER)], "n"),
    "a query too long": lambda s: s.search([*VECTOR, NUMBER], "n"),
    "a query of text": lambda s: s.search(MARKER, "n"),
    "a filter of a set": lambda s: s.search(VECTOR, "n", filter={"key": {MARKER}}),
    "an operator that is none": lambda s: s.search(VECTOR, "n", filter={"key": {"$eq": {MARKER}}}),
    "a comparison that is none": lambda s: s.count("n", meta("key") < [MARKER]),
    "a column's value": lambda s: s.count("n", field("position") == MARKER),
    "a question": lambda s: s.search_text(MARKER + "\x00", "n"),
    "metadata": lambda s: s.update_metadata({"id": {MARKER: {MARKER}}}, "n"),
    "a document": lambda s: s.sync_document("other", [secret()], "n"),
    "a chunk without embedding": lambda s: s.sync_document("document", [secret().chunk], "n"),
}


@pytest.mark.parametrize("fault", BAD_INPUT)
async def test_bad_input(engine: AsyncEngine, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    """Refused in either store, with a message that names no more than ids and kinds."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)  # the host's to set, and to see
    postgres = PgVectorStore(engine, 4, table_name="worded", text_search="simple")
    await postgres.apply_migrations()
    for store in (InMemoryVectorStore(4, text_search="simple"), postgres):
        caplog.clear()
        with pytest.raises(CenoteError) as error:
            await BAD_INPUT[fault](store)
        assert leaks(said_by(error.value)) == []
        assert leaks(caplog.text) == []


SERVER: dict[str, list[str]] = {
    "a check": ["ALTER TABLE cenote_chunks ADD CHECK (content = '')"],
    "a unique constraint": [
        "ALTER TABLE cenote_chunks ADD UNIQUE (namespace, content)",
        "INSERT INTO cenote_chunks SELECT 'n', 'other', '', 'mArKeR', 0, '{}', '', '[1,0,0,0]', ''",
    ],
    "a length": ["ALTER TABLE cenote_chunks ALTER content TYPE varchar(3)"],
    "another type": ["ALTER TABLE cenote_chunks ALTER content TYPE int USING 1"],
    "a foreign key": [
        'CREATE TABLE documents (id text COLLATE "C" PRIMARY KEY)',
        "ALTER TABLE cenote_chunks ADD FOREIGN KEY (content) REFERENCES documents (id)",
    ],
    "a trigger": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no %', NEW.content USING DETAIL = NEW.metadata; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON cenote_chunks FOR EACH ROW"
        " EXECUTE FUNCTION refuse()",
    ],
    "no table": ["DROP TABLE cenote_chunks"],
    "no privilege": ["ALTER TABLE cenote_chunks RENAME TO gone"],
}


@pytest.mark.parametrize("fault", SERVER)
async def test_errors_of_the_server(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Which quotes rows in DETAIL, and values in messages, neither of which goes further."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
    store = PgVectorStore(engine, 4)
    await execute(engine, *SERVER[fault])
    with pytest.raises(CenoteError) as error:
        await store.upsert([secret()], "n")
    assert leaks(said_by(error.value)) == []
    assert leaks(caplog.text) == []


async def test_passwords(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of connection strings that work, and that do not."""
    caplog.set_level(logging.DEBUG)
    url = make_url(dsn).set(password=MARKER, username="nobody")
    bad = url.render_as_string(hide_password=False)
    with pytest.raises(CenoteError) as error:
        await PgVectorStore.connect(bad, 4, startup_retries=0)
    assert leaks(said_by(error.value)) == []
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    store = PgVectorStore(engine, 4)
    for call in (store.count("n"), schema.upgrade(engine, SchemaConfig(dimensions=4))):
        with pytest.raises(CenoteError) as error:
            await call
        assert leaks(said_by(error.value)) == []
    assert leaks(repr(store) + repr(store.config) + caplog.text) == []
    await engine.dispose()


async def test_what_is_printed(engine: AsyncEngine) -> None:
    """Chunks, results and filters keep their contents to themselves."""
    store = PgVectorStore(engine, 4)
    await store.upsert([secret()], "n")
    results = await store.search(VECTOR, "n")
    said = repr([secret(), results, await store.get(["id"], "n")])
    assert leaks(said) == []
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT content FROM cenote_chunks")) == MARKER


async def test_errors_of_the_callers_stay_as_they_are(engine: AsyncEngine) -> None:
    """What they were handling is theirs."""
    store = PgVectorStore(engine, 4)
    await execute(engine, *SERVER["a check"])
    mine = ValueError(MARKER)
    try:
        raise mine
    except ValueError:
        with pytest.raises(CenoteError):
            await store.upsert([secret()], "n")
    assert mine.args == (MARKER,)
