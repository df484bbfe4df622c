"""The sample application examples/document_search, over HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import QueuePool, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session
from support.commands import REPOSITORY, clean_environment, output_of, run
from support.database import execute, scalar

from cenote import PgVectorStore
from examples.document_search.__main__ import migrate
from examples.document_search.app import create_app
from examples.document_search.documents import split
from examples.document_search.models import Passage
from examples.document_search.sample import add_sample_documents

JSON = {"Content-Type": "application/json"}
ANN, CLEO = {"X-User": "Ann"}, {"X-User": "Cleo"}
TEXT = "\n\n".join(f"Paragraph {n} is about the number {n}." for n in range(5))


@pytest.fixture
async def engine(empty_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """The application's engine: at most five connections to a database with the sample documents.

    Every connection must be back in the pool when the test ends.
    """
    engine = create_async_engine(empty_engine.url, pool_size=5, max_overflow=0, pool_timeout=10)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await add_sample_documents(engine)
    yield engine
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    await engine.dispose()


@pytest.fixture
async def client(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which runs on a loopback port."""
    config = uvicorn.Config(create_app(engine), port=0, ws="none", log_level="critical")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server did not start"
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    server.should_exit = True
    await serving


async def add(client: httpx.AsyncClient, title: str = "t", text: str = TEXT) -> str:
    """Add a document as Ann and return its id."""
    response = await client.post("/documents", headers=ANN, json={"title": title, "text": text})
    assert response.status_code == 201
    assert response.json()["passages"] == len(split(text))
    return str(response.json()["id"])


async def count_added(engine: AsyncEngine) -> tuple[int, int]:
    """Return the numbers of documents and passages, without the sample documents."""
    documents = await scalar(engine, "SELECT count(*) FROM documents WHERE title ~ '^(t|[0-9]+)$'")
    passages = "SELECT count(*) FROM passages p LEFT JOIN documents d ON d.id = p.document_key"
    return documents, await scalar(
        engine, passages + " WHERE d.title ~ '^(t|[0-9]+)$' OR d IS NULL"
    )


async def test_life_of_a_document(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """Only the owner's team finds and deletes a document; its passages are deleted with it."""
    id = await add(client)
    query: Any = {"q": "the number 3", "limit": 3}
    found = (await client.get("/search", params=query, headers=ANN)).json()
    assert found[0]["text"] == "Paragraph 3 is about the number 3."
    assert found[0] | {"document": id, "title": "t", "owner": "Ann"} == found[0]
    scores = [result["score"] for result in found]
    assert scores == sorted(scores, reverse=True)
    found_by_cleo = (await client.get("/search", params=query, headers=CLEO)).json()
    assert {result["owner"] for result in found_by_cleo} == {"Cleo"}
    assert (await client.delete(f"/documents/{id}", headers=CLEO)).status_code == 404

    await execute(engine, f"UPDATE documents SET text = 'One line.' WHERE id = '{id}'")
    response = await client.post(f"/documents/{id}/index", headers=ANN)
    assert response.json() == {"passages": 1}
    assert await count_added(engine) == (1, 1)
    assert (await client.delete(f"/documents/{id}", headers=ANN)).status_code == 204
    assert await count_added(engine) == (0, 0)
    assert (await client.post(f"/documents/{id}/index", headers=ANN)).status_code == 404


async def test_searching_own_documents(client: httpx.AsyncClient) -> None:
    """The condition on the document's owner applies before the limit."""
    for mine, owners in ((False, {"Ann", "Bo"}), (True, {"Bo"})):
        parameters: Any = {"q": "a boat in the water", "mine": mine, "limit": 2}
        found = (await client.get("/search", params=parameters, headers={"X-User": "Bo"})).json()
        assert {result["owner"] for result in found} <= owners
        assert len(found) == 2


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/search?q=x", {"X-User": "nobody"}, 401),
        ("GET", "/search?q=x", {}, 422),
        ("GET", "/search?q=", ANN, 422),
        ("GET", "/search?q=x&limit=0", ANN, 422),
        ("DELETE", f"/documents/{uuid.UUID(int=1)}", ANN, 404),
        ("DELETE", "/documents/x", ANN, 422),
        ("POST", "/documents", ANN, 422),
    ],
)
async def test_invalid_requests(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """An invalid request gets the matching status code."""
    response = await client.request(method, path, headers=headers, json={"title": "", "text": "x"})
    assert response.status_code == status


@pytest.mark.parametrize(
    "body",
    [
        rb'{"title": "t", "text": "\ud800"}',
        rb'{"title": "\udfff", "text": "x"}',
        b'{"title": "t", "text": NaN}',
        b'{"title": -Infinity, "text": "x"}',
        b'{"title": "t", "text": ' + b"9" * 4000 + b"}",
        b'{"title": "t", "text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"title": "t", "text": "\xff"}',
        b"NaN",
    ],
    ids=["surrogate", "other", "nan", "infinity", "integer", "nested", "not UTF-8", "nan alone"],
)
async def test_values_that_json_cannot_express(client: httpx.AsyncClient, body: bytes) -> None:
    """The answer is an error of the client, not of the server, and does not quote the value."""
    response = await client.post("/documents", headers=ANN | JSON, content=body)
    assert 400 <= response.status_code < 500
    assert len(response.content) < 500


async def test_large_bodies(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """A body of 60 MB is rejected, with or without content-length, and not sent back."""
    body = b'{"title": "t", "text": "' + b"x" * (60 * 2**20) + b'"}'

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 2**20):
            yield body[start : start + 2**20]

    for content in (body, parts()):
        try:
            response = await client.post("/documents", headers=ANN | JSON, content=content)
        except httpx.WriteError:  # the server has answered and closed the connection
            continue
        assert response.status_code == 413
        assert len(response.content) < 100
    response = await client.post(
        "/documents", headers=ANN, json={"title": "t", "text": "x" * 200_001}
    )
    assert response.status_code == 422
    assert len(response.content) < 500
    # twelve bytes for each character
    longest = json.dumps({"title": "t", "text": "\U0001f600" * 200_000}).encode()
    response = await client.post("/documents", headers=ANN | JSON, content=longest)
    assert response.status_code == 201
    assert await count_added(engine) == (1, 1)


async def test_many_passages(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """A text that would be cut into too many passages is rejected before it is embedded."""
    body = {"title": "t", "text": "a\n\n" * 33_000}
    response = await client.post("/documents", headers=ANN, json=body)
    assert response.status_code == 422
    assert "33,000 passages" in response.text
    id = await add(client)
    await execute(engine, f"UPDATE documents SET text = repeat(E'a\\n\\n', 9999) WHERE id = '{id}'")
    assert (await client.post(f"/documents/{id}/index", headers=ANN)).status_code == 422
    assert await count_added(engine) == (1, 5)
    most = "\n\n".join(f"{number}." for number in range(2000))
    await add(client, text=most)


async def test_blank_texts(client: httpx.AsyncClient) -> None:
    """A blank document is rejected, and a blank query finds nothing."""
    response = await client.post("/documents", headers=ANN, json={"title": "t", "text": " \n\n "})
    assert response.status_code == 422
    assert (await client.get("/search", params={"q": " "}, headers=ANN)).json() == []


async def test_exception_before_the_commit(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """The exception rolls back both the document and its passages."""
    passages_at_commit: list[int] = []

    def fail(session: Session) -> None:
        count = session.connection().scalar(text("SELECT count(*) FROM passages"))
        passages_at_commit.append(count or 0)
        raise RuntimeError

    passages_before = await scalar(engine, "SELECT count(*) FROM passages")
    event.listen(Session, "before_commit", fail)
    try:
        body = {"title": "t", "text": TEXT}
        response = await client.post("/documents", headers=ANN, json=body)
    finally:
        event.remove(Session, "before_commit", fail)
    assert response.status_code == 500
    assert passages_at_commit == [passages_before + 5]  # written, but not committed
    assert await count_added(engine) == (0, 0)


WAITS_BEFORE_COMMIT = """
import asyncio, sys, time
import uvicorn
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from examples.document_search.app import create_app

@event.listens_for(Session, "before_commit")
def wait(session):
    print("written", flush=True)
    time.sleep(600)

app = create_app(create_async_engine(sys.argv[1]))
server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none"))

async def main():
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving

asyncio.run(main())
"""


async def test_killed_before_the_commit(engine: AsyncEngine) -> None:
    """If the process is killed before the commit, neither document nor passages are stored."""
    url = engine.url.render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WAITS_BEFORE_COMMIT, url),
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    async with httpx.AsyncClient(timeout=60) as client:
        request = asyncio.create_task(
            client.post(
                f"http://127.0.0.1:{port}/documents",
                headers=ANN,
                json={"title": "t", "text": TEXT},
            )
        )
        assert await process.stdout.readline() == b"written\n"
        open_transactions = (
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        )
        assert await scalar(engine, open_transactions) == 1
        process.kill()
        with pytest.raises(httpx.TransportError):
            await request
    await process.wait()
    while await scalar(engine, open_transactions):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert await count_added(engine) == (0, 0)


async def test_concurrent_clients(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """While 16 clients add 1,000 documents, readers see each with all of its passages."""
    texts = {
        str(n): "\n\n".join(f"{n}, line {line}." for line in range(n % 7 + 1)) for n in range(1000)
    }
    remaining = iter(texts.items())
    query = text(
        "SELECT d.title, count(p.id) FROM documents d FULL JOIN passages p"
        " ON p.document_key = d.id WHERE d.title ~ '^[0-9]+$' OR d IS NULL GROUP BY d.title"
    )
    observed_counts: list[int] = []

    async def add_remaining() -> None:
        for title, content in remaining:
            await add(client, title, content)

    async def observe() -> None:
        while not observed_counts or observed_counts[-1] < 1000:
            async with engine.connect() as connection:
                documents = (await connection.execute(query)).all()
            assert all(count == int(title) % 7 + 1 for title, count in documents)
            observed_counts.append(len(documents))
            await asyncio.sleep(0.02)

    observing = asyncio.create_task(observe())
    await asyncio.gather(*(add_remaining() for _ in range(16)))
    await asyncio.wait_for(observing, 60)
    assert len(set(observed_counts)) > 10
    assert await count_added(engine) == (1000, sum(n % 7 + 1 for n in range(1000)))
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    assert engine.pool.size() == 5
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state ~ '^idle in transaction'"
    assert await scalar(engine, idle) == 0


async def test_migrations_match_the_models(engine: AsyncEngine) -> None:
    """Autogenerate and `check_schema` find no difference, and a downgrade drops every table."""
    assert await PgVectorStore(engine, model=Passage).check_schema() == []

    def alembic(*arguments: str) -> str:
        return output_of(
            run(
                *(sys.executable, "-m", "alembic", "-c", "examples/document_search/alembic.ini"),
                *arguments,
                cwd=REPOSITORY,
                DATABASE_URL=engine.url.render_as_string(hide_password=False),
            )
        )

    assert "No new upgrade operations" in alembic("check")
    printed = alembic("upgrade", "head", "--sql")
    assert "ALTER COLUMN embedding SET STORAGE MAIN" in printed
    assert "create_partitions" not in printed
    alembic("downgrade", "base")
    assert await scalar(engine, "SELECT count(*) FROM pg_tables WHERE tablename ~ '^passages'") == 0
