"""The recipes of docs/frameworks/ and docs/synchronous.md run with the real frameworks."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.manual import DOCS, Block, blocks
from support.recipes import Reader, sections_with_blocks, title_of

pytest.importorskip("advanced_alchemy")
pytest.importorskip("celery")
pytest.importorskip("flask")
pytest.importorskip("flask_sqlalchemy")
pytest.importorskip("sqlmodel")

OVERVIEW = "frameworks.md"
FASTAPI = "frameworks/fastapi.md"
SQLMODEL = "frameworks/sqlmodel.md"
ADVANCED_ALCHEMY = "frameworks/advanced-alchemy.md"
FLASK = "frameworks/flask.md"
CELERY = "frameworks/celery.md"
SYNCHRONOUS = "synchronous.md"

ASYNCHRONOUS_TASK = "Run an asynchronous task"
CREATE_TABLES = "Create the tables"
SYNCHRONOUS_TASK = "Run a synchronous task"
WRITE_FASTAPI = "Write the application"

SQLMODEL_SECTIONS = ["Define the models", "Use asynchronous sessions"]
SYNCHRONOUS_SQLMODEL = [
    "Define the models",
    "Use synchronous sessions",
    "Roll back after each test",
]


@pytest.fixture
def reader(tmp_path: Path, empty_dsn: str) -> Reader:
    return Reader(tmp_path, empty_dsn)


def test_fastapi_and_event_loops(reader: Reader) -> None:
    """The page's test passes, twice, and the task runs twice in a process."""
    reader.follow(OVERVIEW)
    reader.follow(FASTAPI)
    reader.follow(CELERY, ASYNCHRONOUS_TASK)
    result = reader.pytest()
    assert "1 passed" in result.stdout, result.stdout
    task = "from async_tasks import count_passages as count; print(count('acme'), count('acme'))"
    assert reader.python("-c", task) == "2 2\n"
    reader.commands("alembic check", "alembic downgrade base")


def test_fastapis_test_client(reader: Reader) -> None:
    """A test client can be opened twice; without `with` there is no store."""
    reader.follow(OVERVIEW)
    reader.follow(FASTAPI, WRITE_FASTAPI, CREATE_TABLES)
    file = reader.folder / "test_client.py"
    file.write_text(
        "import pytest\n"
        "from app import app\n"
        "from fastapi.testclient import TestClient\n"
        "def test_no_lifespan():\n"
        "    with pytest.raises(AttributeError):\n"
        "        TestClient(app).get('/search', params={'question': 'cats'})\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_lifespan(number):\n"
        "    with TestClient(app) as client:\n"
        "        for _ in range(2):\n"
        "            client.get('/search', params={'question': 'cats'}).raise_for_status()\n"
    )
    result = reader.pytest()
    assert "3 passed" in result.stdout, result.stdout


def test_sqlmodel(reader: Reader) -> None:
    """The relationship works from both sides, and a deleted article takes its chunks along."""
    reader.follow(OVERVIEW)
    reader.follow(SQLMODEL, *SQLMODEL_SECTIONS)
    reader.commands("alembic check")
    both_sides = """
import asyncio, os
from app import Article, AsyncSession, Excerpt, create_async_engine
from sqlalchemy.orm import selectinload
from sqlmodel import func, select

async def main():
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with AsyncSession(engine) as session:
        query = select(Article).options(selectinload(Article.excerpts))
        article = (await session.exec(query)).one()
        print([excerpt.content for excerpt in article.excerpts])
        await session.delete(article)
        await session.commit()
        print((await session.exec(select(func.count()).select_from(Excerpt))).one())
    await engine.dispose()

asyncio.run(main())
"""
    assert reader.python("-c", both_sides) == "['Cats purr at dawn.']\n0\n"
    reader.commands("alembic downgrade base")


def test_sqlmodel_with_synchronous_sessions(reader: Reader, empty_dsn: str) -> None:
    """The page's tests roll back. Without their fixture, the endpoints commit."""
    reader.use_psycopg(empty_dsn)
    reader.follow(OVERVIEW)
    models, *application = SYNCHRONOUS_SQLMODEL
    reader.follow(SQLMODEL, models)
    # The page says how this recipe differs from the one that it refers to.
    reader.commands("alembic init migrations")
    _, change, revise = migrations_of(SYNCHRONOUS)
    reader.follow_block(change)
    reader.replace("migrations/env.py", "from documents import Base", "from models import Base")
    reader.replace("migrations/env.py", "**hooks()", "**hooks(compare_type=True)")
    reader.replace("migrations/script.py.mako", "import sqlalchemy as sa\n", WITH_SQLMODEL)
    reader.follow_block(revise)
    reader.commands("alembic check")
    reader.follow(SQLMODEL, *application)
    result = reader.pytest()
    assert "3 passed" in result.stdout, result.stdout
    assert reader.python("-c", FASTAPI_CLIENT) == "Cats purr at dawn.\n{'excerpts': 1}\n[]\n"


WITH_SQLMODEL = "import sqlalchemy as sa\nimport sqlmodel\n"

FASTAPI_CLIENT = """
from app import app
from fastapi.testclient import TestClient
client = TestClient(app)
article = {"title": "Cats", "text": "Cats purr at dawn."}
id = client.post("/articles", params=article).json()["id"]
question = {"question": "What do cats do?"}
(found,) = client.get("/articles", params=question).json()
print(found["text"])
print(client.delete(f"/articles/{id}").json())
print(client.get("/articles", params=question).json())
"""


def test_advanced_alchemy(reader: Reader) -> None:
    """The command creates the table, finds nothing more to do, and removes the table again."""
    reader.follow(OVERVIEW)
    reader.follow(ADVANCED_ALCHEMY)
    alchemy = "alchemy --config app.alchemy"
    reader.commands(f"{alchemy} check", f"{alchemy} downgrade --no-prompt base")


def test_a_synchronous_application(reader: Reader, empty_dsn: str) -> None:
    """The script, Flask and the adapter add and search; the tests pass; Celery runs the task."""
    reader.use_psycopg(empty_dsn)
    reader.follow(SYNCHRONOUS)
    reader.commands("alembic check")
    result = reader.pytest()
    assert "3 passed" in result.stdout, result.stdout
    reader.follow(FLASK)
    reader.follow(CELERY, SYNCHRONOUS_TASK)
    assert reader.python("-c", FLASK_CLIENT) == "Cats purr at dawn.\n{'chunks': 1}\n[]\n"
    assert reader.python("-c", FACTORY_CLIENT) == "{'chunks': 1}\n"
    assert reader.python("-c", CELERY_CALL) == "1 0\n"
    reader.commands("alembic downgrade base")


FLASK_CLIENT = """
from app import app
client = app.test_client()
document = {"title": "Cats", "text": "Cats purr at dawn."}
id = client.post("/documents", data=document).json["id"]
question = {"question": "What do cats do?"}
(found,) = client.get("/search", query_string=question).json
print(found["text"])
print(client.delete(f"/documents/{id}").json)
print(client.get("/search", query_string=question).json)
"""

FACTORY_CLIENT = """
import app
from factory import create_app
document = {"title": "Cats", "text": "Cats purr at dawn."}
id = app.app.test_client().post("/documents", data=document).json["id"]
client = create_app().test_client()
print(client.delete(f"/documents/{id}").json)
assert app.store.count("acme") == 0
"""

CELERY_CALL = """
import tasks
from app import app
app.test_client().post("/documents", data={"title": "Cats", "text": "Cats purr at dawn."})
tasks.celery.conf.task_always_eager = True
print(tasks.delete_tenant.delay("acme").get(), tasks.store().count("acme"))
"""


def migrations_of(page: str) -> list[Block]:
    """Return the blocks that create the tables."""
    return [block for block in blocks(page) if title_of(page, block) == CREATE_TABLES]


def test_every_block_runs() -> None:
    """The tests above follow all sections: files, diffs of files, and commands."""
    followed = {(SQLMODEL, title) for title in [*SQLMODEL_SECTIONS, *SYNCHRONOUS_SQLMODEL]}
    followed |= {(CELERY, title) for title in [SYNCHRONOUS_TASK, ASYNCHRONOUS_TASK]}
    whole = {OVERVIEW, FASTAPI, ADVANCED_ALCHEMY, FLASK, SYNCHRONOUS}
    pages = {path.relative_to(DOCS).as_posix() for path in (DOCS / "frameworks").glob("*.md")}
    assert pages == (whole | {SQLMODEL, CELERY}) - {OVERVIEW, SYNCHRONOUS}
    assert sections_with_blocks([SQLMODEL, CELERY]) == followed
