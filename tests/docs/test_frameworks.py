"""The recipes of docs/frameworks.md run as shown, with the real frameworks."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from sqlalchemy.engine import make_url
from support import commands
from support.commands import asyncpg_url, output_of, run
from support.manual import DOCS, Block, blocks

pytest.importorskip("advanced_alchemy")
pytest.importorskip("celery")
pytest.importorskip("flask")
pytest.importorskip("flask_sqlalchemy")
pytest.importorskip("sqlmodel")

PAGE = "frameworks.md"
SYNCHRONOUS = "synchronous.md"
INTRODUCTION = "Introduction"
SYNCHRONOUS_SQLMODEL = "SQLModel with synchronous sessions"
FLASK = "A Flask application"
ADAPTERS = "LangChain, LlamaIndex and Haystack"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


TEXT = text_of(PAGE)


class Reader:
    """A reader who follows the recipes of some sections in an empty folder."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.environ = {"DATABASE_URL": asyncpg_url(dsn), "PYTHONPATH": str(folder)}
        self.write(*section(INTRODUCTION, "python"))

    def write(self, *files: Block) -> None:
        """Write blocks to the files that their first lines name."""
        for block in files:
            self.named_file(block).write_text(block.code, encoding="utf-8")

    def edit(self, *diffs: Block) -> None:
        """Apply diffs, each of which starts with the name of the file."""
        for block in diffs:
            file = self.named_file(block)
            text = file.read_text(encoding="utf-8")
            for hunk in block.code.partition("\n")[2].split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] in " -")
                new = "".join(line[1:] for line in lines if line[0] in " +")
                pattern = "^" + re.escape(old)
                text, count = re.subn(pattern, new.replace("\\", r"\\"), text, flags=re.MULTILINE)
                assert count > 0, f"{file.name} does not contain:\n{old}"
            file.write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace a text in a file."""
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} does not contain:\n{old}"
        (self.folder / name).write_text(text.replace(old, new), encoding="utf-8")

    def use_psycopg(self, dsn: str) -> None:
        """Let the applications connect with psycopg."""
        url = make_url(dsn).set(drivername="postgresql+psycopg")
        self.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)

    def named_file(self, block: Block) -> Path:
        name = re.match(r"# (\S+)\n", block.code)
        assert name is not None
        return self.folder / name[1]

    def commands(self, *lines: str) -> None:
        for line in lines:
            command, *words = shlex.split(line)
            module = {"alembic": "alembic", "alchemy": "advanced_alchemy"}[command]
            output_of(commands.run_module(module, *words, cwd=self.folder, **self.environ))

    def python(self, *arguments: str) -> str:
        # Advanced Alchemy uses a decorator that SQLAlchemy 2.1 deprecates.
        options = ("-W", "error", "-W", "ignore:The declarative_mixin:DeprecationWarning")
        command = (sys.executable, *options, *arguments)
        return output_of(run(*command, cwd=self.folder, **self.environ))

    def pytest(self) -> CompletedProcess[str]:
        # The frameworks use each other's deprecated names.
        warnings = ("-W", "error", "-W", "ignore::DeprecationWarning")
        options = (
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_asyncio.plugin",
            "-o",
            "asyncio_default_fixture_loop_scope=function",
        )
        command = (sys.executable, "-m", "pytest", *warnings, *options)
        # Loading the plugins of all installed packages takes 4 s.
        environ = {**self.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return run(*command, cwd=self.folder, **environ)


def section(title: str, language: str, page: str = PAGE) -> list[Block]:
    """Return the code blocks of a language in a section of a page."""
    text = text_of(page)
    headings = {match[1]: match.start() for match in re.finditer(r"^## (.*)$", text, re.MULTILINE)}
    lines = {name: text.count("\n", 0, start) for name, start in headings.items()}
    found = []
    for block in blocks(page):
        before = [name for name, line in lines.items() if line < block.line]
        if block.language == language and title == [INTRODUCTION, *before][-1]:
            found.append(block)
    return found


def inline_commands(command: str) -> list[str]:
    """Return the commands in the running text."""
    return re.findall(rf"`({command} [^`]*)`", TEXT)


def lines_of(title: str) -> list[str]:
    """Return the lines of a section's console blocks."""
    return [line for block in section(title, "console") for line in block.code.splitlines()]


@pytest.fixture
def reader(tmp_path: Path, empty_dsn: str) -> Reader:
    return Reader(tmp_path, empty_dsn)


def migrate(reader: Reader, module: str = "app") -> None:
    """Set up Alembic as the section about FastAPI says, and migrate the models of a module."""
    reader.commands(*inline_commands("alembic"))
    reader.edit(*section("FastAPI", "diff"), *section("SQLModel", "diff"))
    reader.replace("migrations/env.py", "from app import Base", f"from {module} import Base")
    reader.commands(*lines_of("FastAPI"), "alembic check")


def test_fastapi_and_event_loops(reader: Reader) -> None:
    """The page's test passes, twice, and the task runs twice in a process."""
    reader.write(*section("FastAPI", "python"), *section("Event loops", "python"))
    migrate(reader)
    for _ in range(2):
        result = reader.pytest()
        assert result.returncode == 0, result.stdout
        assert "1 passed" in result.stdout
    task = "from tasks import count_passages as count; print(count('acme'), count('acme'))"
    assert reader.python("-c", task) == "2 2\n"
    reader.commands("alembic downgrade base")


def test_fastapis_test_client(reader: Reader) -> None:
    """A test client can be opened twice; without `with` there is no store."""
    reader.write(*section("FastAPI", "python"))
    migrate(reader)
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
    reader.write(*section("SQLModel", "python"))
    migrate(reader, "models")
    assert [reader.python("app.py")] == printed("SQLModel")
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
    reader.write(*section("SQLModel", "python"), *section(SYNCHRONOUS_SQLMODEL, "python"))
    reader.commands("alembic init migrations")
    reader.edit(*section(FLASK, "diff", SYNCHRONOUS), *section("SQLModel", "diff"))
    reader.replace("migrations/env.py", "from app import Base", "from models import Base")
    reader.replace("migrations/env.py", "**hooks()", "**hooks(compare_type=True)")
    (console,) = section(FLASK, "console", SYNCHRONOUS)
    reader.commands(*console.code.splitlines(), "alembic check")
    result = reader.pytest()
    assert "3 passed" in result.stdout, result.stdout
    assert reader.python("-c", FASTAPI_CLIENT) == "Cats purr at dawn.\n{'excerpts': 1}\n[]\n"


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
    reader.write(*section("Advanced Alchemy", "python"))
    (init,) = inline_commands("alchemy")
    reader.commands(f"{init} --no-prompt")
    reader.edit(*section("Advanced Alchemy", "diff"))
    reader.commands(*lines_of("Advanced Alchemy"))
    assert [reader.python("app.py")] == printed("Advanced Alchemy")
    alchemy = "alchemy --config app.alchemy"
    reader.commands(f"{alchemy} check", f"{alchemy} downgrade --no-prompt base")


def printed(title: str) -> list[str]:
    """Return the output of ``python app.py`` that a section shows."""
    text = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [f"{line}\n" for line in re.findall(r"`python app.py` prints `(.*)`", text)]


def test_every_block_runs() -> None:
    """The tests above run all blocks: files, diffs of files, and commands."""
    titles = [INTRODUCTION, "FastAPI", "SQLModel", SYNCHRONOUS_SQLMODEL]
    titles += ["Advanced Alchemy", "Event loops"]
    languages = ["python", "diff", "console"]
    found = [
        block for title in titles for language in languages for block in section(title, language)
    ]
    assert sorted(found, key=lambda block: block.line) == blocks(PAGE)


# -- docs/synchronous.md


def test_a_synchronous_application(reader: Reader, empty_dsn: str) -> None:
    """Flask and the adapter add and search; the page's tests pass; Celery runs the task."""
    reader.use_psycopg(empty_dsn)
    for title in (FLASK, "Flask-SQLAlchemy", "Tests", "Celery", ADAPTERS):
        reader.write(*section(title, "python", SYNCHRONOUS))
    reader.commands("alembic init migrations")
    reader.edit(*section(FLASK, "diff", SYNCHRONOUS))
    (console,) = section(FLASK, "console", SYNCHRONOUS)
    reader.commands(*console.code.splitlines(), "alembic check")
    for _ in range(2):
        result = reader.pytest()
        assert "3 passed" in result.stdout, result.stdout
    assert reader.python("-c", FLASK_CLIENT) == "Cats purr at dawn.\n{'chunks': 1}\n[]\n"
    assert reader.python("-c", FACTORY_CLIENT) == "{'chunks': 1}\n"
    assert reader.python("-c", CELERY_CALL) == "1 0\n"
    assert reader.python("notes.py") == "Cats purr at dawn.\n"
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
tasks.open_store()
app.test_client().post("/documents", data={"title": "Cats", "text": "Cats purr at dawn."})
tasks.celery.conf.task_always_eager = True
print(tasks.delete_tenant.delay("acme").get(), tasks.store.count("acme"))
"""
