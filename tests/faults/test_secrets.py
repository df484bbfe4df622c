"""Errors and logs never contain contents, metadata, vectors or passwords."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import execute
from support.drivers import (
    PSYCOPG,
    SYNCHRONOUS,
    connect_on,
    engine_on,
    on_every_driver,
    store_on,
)

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
    """Return a chunk that consists of secrets, except for its ids, which messages may quote."""
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


def logged_text(error: BaseException) -> str:
    """Return the traceback, repr and attributes of an exception, its causes and contexts."""
    text = ""
    current: BaseException | None = error
    while current is not None:
        text += "".join(traceback.format_exception(current)) + repr(current) + repr(vars(current))
        if current.__context__ is not None and current.__context__ is not current.__cause__:
            text += logged_text(current.__context__)
        current = current.__cause__
    return text


def leaks(text: str) -> list[str]:
    """Return the secrets in a text, ignoring lines of a traceback that quote this file."""
    lines = [line for line in text.splitlines() if "secret(" not in line and "VECTOR" not in line]
    return [secret for secret in SECRETS if secret in "\n".join(lines)]


Call = Callable[[Any], Awaitable[Any]]

INVALID_INPUT: dict[str, Call] = {
    "NUL in the content": lambda store: store.upsert([secret(content=MARKER + "\x00")], "n"),
    "a surrogate in the metadata": lambda store: store.upsert(
        [secret(metadata={MARKER: "\ud800"})], "n"
    ),
    "a set in the metadata": lambda store: store.upsert([secret(metadata={MARKER: {MARKER}})], "n"),
    "NaN in the metadata": lambda store: store.upsert(
        [secret(metadata={MARKER: float("nan")})], "n"
    ),
    "a vector too long": lambda store: store.upsert([secret(embedding=[*VECTOR, NUMBER])], "n"),
    "NaN in the vector": lambda store: store.upsert(
        [secret(embedding=[NUMBER, float("nan"), 1, 1])], "n"
    ),
    "text for a vector": lambda store: store.upsert([secret(embedding=MARKER)], "n"),
    "text in a vector": lambda store: store.upsert([secret(embedding=[MARKER, 1, 2, 3])], "n"),
    "a position of text": lambda store: store.upsert([secret(position=MARKER)], "n"),
    "a query too long": lambda store: store.search([*VECTOR, NUMBER], "n"),
    "a query of text": lambda store: store.search(MARKER, "n"),
    "a filter of a set": lambda store: store.search(VECTOR, "n", filter={"key": {MARKER}}),
    "an invalid operand": lambda store: store.search(
        VECTOR, "n", filter={"key": {"$eq": {MARKER}}}
    ),
    "an invalid comparison": lambda store: store.count("n", meta("key") < [MARKER]),
    "a column's value": lambda store: store.count("n", field("position") == MARKER),
    "a question": lambda store: store.search_text(MARKER + "\x00", "n"),
    "metadata": lambda store: store.update_metadata({"id": {MARKER: {MARKER}}}, "n"),
    "a document": lambda store: store.sync_document("other", [secret()], "n"),
    "a chunk without embedding": lambda store: store.sync_document(
        "document", [secret().chunk], "n"
    ),
}


@pytest.mark.parametrize("fault", INVALID_INPUT)
async def test_invalid_input(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Both stores reject invalid input without quoting anything but ids."""
    postgres = PgVectorStore(engine, 4, table_name="with_text", text_search="simple")
    await postgres.apply_migrations()
    for store in (InMemoryVectorStore(4, text_search="simple"), postgres):
        await _check_invalid_input(store, fault, caplog)


@pytest.mark.parametrize("driver", [PSYCOPG, SYNCHRONOUS], indirect=True)
async def test_invalid_input_on_psycopg(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The stores on psycopg quote no more than the one on asyncpg."""
    store = store_on(engine, 4, table_name="with_text", text_search="simple")
    await store.apply_migrations()
    for fault in INVALID_INPUT:
        await _check_invalid_input(store, fault, caplog)


async def _check_invalid_input(store: Any, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    # SQLAlchemy logs parameters, which the application controls.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
    caplog.clear()
    with pytest.raises(CenoteError) as error:
        await INVALID_INPUT[fault](store)
    assert leaks(logged_text(error.value)) == [], fault
    assert leaks(caplog.text) == [], fault


SERVER_ERRORS: dict[str, list[str]] = {
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
        "CREATE FUNCTION reject_row() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no %', NEW.content USING DETAIL = NEW.metadata; END $$",
        "CREATE TRIGGER reject_row BEFORE INSERT ON cenote_chunks FOR EACH ROW"
        " EXECUTE FUNCTION reject_row()",
    ],
    "no table": ["DROP TABLE cenote_chunks"],
    "no privilege": ["ALTER TABLE cenote_chunks RENAME TO gone"],
}


@on_every_driver
@pytest.mark.parametrize("fault", SERVER_ERRORS)
async def test_errors_of_the_server(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """The server quotes rows in DETAIL and in messages, but cenote repeats neither."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
    store = store_on(engine, 4)
    await execute(engine, *SERVER_ERRORS[fault])
    with pytest.raises(CenoteError) as error:
        await store.upsert([secret()], "n")
    assert leaks(logged_text(error.value)) == []
    assert leaks(caplog.text) == []


@on_every_driver
async def test_passwords(dsn: str, driver: str, caplog: pytest.LogCaptureFixture) -> None:
    """Passwords never appear in errors, reprs or logs."""
    caplog.set_level(logging.DEBUG)
    url = make_url(dsn).set(password=MARKER, username="nobody")
    connection_string = url.render_as_string(hide_password=False)
    if driver != PSYCOPG:  # connect() uses asyncpg
        with pytest.raises(CenoteError) as error:
            await connect_on(driver, connection_string, 4, startup_retries=0)
        assert leaks(logged_text(error.value)) == []
    engine = engine_on(driver, url)
    store = store_on(engine, 4)
    for call in (store.count("n"), schema.upgrade(engine, SchemaConfig(dimensions=4))):
        with pytest.raises(CenoteError) as error:
            await call
        assert leaks(logged_text(error.value)) == []
    assert leaks(repr(store) + repr(store.config) + caplog.text) == []
    await engine.dispose()


async def test_reprs(engine: AsyncEngine) -> None:
    """The reprs of chunks and results contain no secrets."""
    store = PgVectorStore(engine, 4)
    await store.upsert([secret()], "n")
    results = await store.search(VECTOR, "n")
    reprs = repr([secret(), results, await store.get(["id"], "n")])
    assert leaks(reprs) == []
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT content FROM cenote_chunks")) == MARKER


@on_every_driver
async def test_exceptions_of_the_caller_are_not_redacted(engine: AsyncEngine) -> None:
    """An exception that the caller is handling keeps its arguments."""
    store = store_on(engine, 4)
    await execute(engine, *SERVER_ERRORS["a check"])
    callers_error = ValueError(MARKER)
    try:
        raise callers_error
    except ValueError:
        with pytest.raises(CenoteError):
            await store.upsert([secret()], "n")
    assert callers_error.args == (MARKER,)
