"""What the README and the pages in docs show runs as it stands there."""

from __future__ import annotations

import asyncio
import random
import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY, cenote, clean_environment, output_of, run
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import PgVectorStore
from cenote.testing import embedded

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SCHEMA = (REPOSITORY / "docs" / "schema.md").read_text(encoding="utf-8")


SEARCHING = (REPOSITORY / "docs" / "searching.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    """A page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def asyncpg_url(dsn: str) -> str:
    """What a host gives to create_async_engine."""
    return make_url(dsn).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


OUTPUT = [
    "0.99 Cats purr.\n",
    "('0', 2)\n('1', 1)\nguide:2 Deploy.\nguide:3 Watch.\n",
    "",
    "",
    "3000\n3000\n",
    "",
]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, empty_dsn: str) -> None:
    """And print what the README says."""
    command = (sys.executable, "-W", "error", "-c", blocks("python")[number])
    assert output_of(run(*command, DATABASE_URL=asyncpg_url(empty_dsn))) == OUTPUT[number]


@pytest.mark.parametrize("code", blocks("python", SCHEMA)[:-1])
def test_python_blocks_of_the_schema_page_run(code: str) -> None:
    """All but the last, which is a program: see below."""
    output_of(run(sys.executable, "-W", "error", "-c", code))


SAID = [
    "",
    "",
    "4 ['cats:0', 'dogs:4'] cats:2\n['cats:0', 'dogs:0'] 3\n['cats:0', 'cats:1', 'cats:2'] 5\n",
    "SyncResult(written=3, removed=0, unchanged=0)\n"
    "SyncResult(written=1, removed=1, unchanged=1)\n",
    "['dogs'] text\n['cats', 'part', 'dogs'] hybrid\n",
    "1.00 Cats purr.\n",
    "1.00 Cats purr.\n",
    "['Dogs bark.']\n",
]


@pytest.mark.parametrize("number", range(len(blocks("python", SEARCHING))))
def test_python_blocks_of_the_searching_page_run(number: int, empty_dsn: str) -> None:
    """And print what they are to."""
    command = (sys.executable, "-W", "error", "-c", blocks("python", SEARCHING)[number])
    assert output_of(run(*command, DATABASE_URL=empty_dsn)) == SAID[number]


def test_the_feature_table_names_tests_that_exist() -> None:
    """Each line has one."""
    section = README.split("## What it has, beside others")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    named = [found for line in lines if (found := re.search(r"`([\w/]+\.py)::(\w+)` \|$", line))]
    assert len(named) == len(lines) - 2  # the heads of two tables
    for file, test in (found.groups() for found in named):
        defined = re.findall(r"(?:def|class) (\w+)", (REPOSITORY / file).read_text("utf-8"))
        assert test in defined, file


def test_the_reliability_tables_name_tests_that_exist() -> None:
    """Whatever is damaged, loaded or put in has one."""
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    files = (REPOSITORY / "tests").rglob("test_*.py")
    defined = re.findall(r"def (test_\w+)", "".join(file.read_text("utf-8") for file in files))
    named = re.findall(r"`(?:tests/[\w/]+\.py::)?(test_\w+)`", page)
    assert len(named) > 15
    assert set(named) <= set(defined)
    assert all((REPOSITORY / file).exists() for file in re.findall(r"`(tests/[\w/.]+)", page))


def test_commands_run(empty_dsn: str) -> None:
    """One after another, on one database."""
    commands = [
        shlex.split(line)[1:]
        for page in (README, SCHEMA)
        for block in blocks("console", page)
        for line in block.splitlines()
        if line.startswith("cenote ") and "host-revision" not in line
    ]
    assert len(commands) == 6
    for command in commands:
        output_of(cenote(*command, CENOTE_DATABASE_URL=empty_dsn))


async def test_another_embedding_model_without_downtime(dsn: str, engine: AsyncEngine) -> None:
    """The recipe, beside an application that writes to both tables: in the end they agree."""
    url = {"CENOTE_DATABASE_URL": dsn}
    old, new = PgVectorStore(engine, 4), PgVectorStore(engine, 768, table_name="chunks_v2")
    ids = [f"{number:04}" for number in range(1200)]
    for tenant in ("a", "b"):
        await old.upsert([embedded(id, content=f"first {id}") for id in ids], tenant)
    steps = re.findall(r"^\d\. `cenote (.*?)`", SCHEMA, re.MULTILINE)
    output_of(cenote(*steps[0].split(), **url))
    recipe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", blocks("python", SCHEMA)[-1]),
        env={**clean_environment(), "DATABASE_URL": asyncpg_url(dsn)},
        stdout=asyncio.subprocess.PIPE,
    )
    ended = asyncio.create_task(recipe.communicate())
    numbers = random.Random(1)
    writes = 0
    while not ended.done():
        writes += 1
        tenant, id = numbers.choice("ab"), numbers.choice(ids)
        content = f"write {writes}"
        for store, vector in ((old, [1.0, 0, 0, 0]), (new, [1.0] * 768)):
            if writes % 3:
                item = embedded(id, vector, content=content, embedding_model="new")
                await store.upsert([item], tenant)
            else:
                await store.delete([id], tenant)
        if writes == 150:  # or the passes might never catch up with us
            break
    output, _ = await asyncio.wait_for(ended, 60)
    assert recipe.returncode == 0
    assert output == b"nothing differs any more\n"
    assert writes > 10
    for tenant in ("a", "b"):
        expected = [chunk async for chunk in old.get_all_chunks(tenant)]
        assert [chunk async for chunk in new.get_all_chunks(tenant)] == expected
        assert len(await new.search([1.0] * 768, tenant, limit=5)) == 5
    assert await new.check_schema() == []
    output_of(cenote(*steps[1].split(), **url))
    assert [finding.kind for finding in await old.check_schema()] == ["table_missing"]
    assert await new.check_schema() == []


APPLICATION = (REPOSITORY / "docs" / "application.md").read_text(encoding="utf-8")


def test_the_application_page_runs(tmp_path: Path, empty_dsn: str) -> None:
    """Its blocks make the files they name, one after another, and its commands run there."""
    environ = {"DATABASE_URL": asyncpg_url(empty_dsn), "PYTHONPATH": str(tmp_path)}
    ini = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(ini)
    (tmp_path / "migrations" / "script.py.mako").write_text(
        (REPOSITORY / "tests" / "host" / "migrations" / "script.py.mako").read_text()
    )
    printed = {}
    pattern = r"^```(python|console|text)\n(.*?)^```$"
    for language, code in re.findall(pattern, APPLICATION, re.MULTILINE | re.DOTALL):
        if language == "python":
            name = re.match(r"# (\S+)\n", code)
            assert name is not None
            file = tmp_path / name[1]
            with file.open("a") as written:
                written.write(code + "\n\n")
            if "env" not in file.name and "app" not in file.name:
                python = (sys.executable, "-W", "error", str(file))
                output_of(run(*python, cwd=tmp_path, **environ))
        elif language == "console":
            for line in code.splitlines():
                command, *arguments = shlex.split(line)
                module = ["-m", command] if command == "alembic" else []
                result = run(sys.executable, *module, *arguments, cwd=tmp_path, **environ)
                printed[command] = output_of(result)
        else:
            assert printed["python"] == code
    for also in (["check"], ["downgrade", "base"]):
        output_of(run(sys.executable, "-m", "alembic", *also, cwd=tmp_path, **environ))


def test_make_targets_exist() -> None:
    """Those the README names."""
    named = re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= set(targets)
