"""Every code block of the manual runs, and prints what the page shows.

`SKIPPED_BLOCKS` lists the exceptions.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support import commands
from support.commands import REPOSITORY, asyncpg_url, clean_environment, output_of
from support.database import run_script
from support.manual import DOCS, Block, Page, blocks
from support.recipes import Reader

import cenote as cenote_package
from cenote import PgVectorStore, cli
from cenote import __all__ as public_names
from cenote.adapters.metadata import json_form
from cenote.inspection.checks.findings import FindingKind
from cenote.testing import embedded

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

SETUP = {
    "change-table.md": "cenote migrate -x dimensions=384 upgrade head",
    "scaling.md": "cenote migrate -x dimensions=2 upgrade head",
}
"""Commands to run before a page whose blocks assume an existing schema."""

APPLICATION_PAGES = [
    "application.md",
    "existing-documents.md",
    "chunk-models.md",
    "orm-queries.md",
    "testing.md",
    "drivers.md",
]
"""Pages that continue one application, in this order."""

CONTINUED_PAGES = {"measure-recall.md": "recall.md"}
"""Pages that continue with the table of another page, whose blocks run before them."""

OTHER_TESTS = {
    **dict.fromkeys(APPLICATION_PAGES, "test_the_application_pages_run"),
    **dict.fromkeys(
        [page for page in PAGES if page.startswith("frameworks")], "tests/docs/test_frameworks.py"
    ),
    "synchronous.md": "tests/docs/test_frameworks.py",
}
"""Pages that are not run by `test_pages_run`, and their tests."""

SKIPPED_BLOCKS = {
    ("index.md", 'pip install ".[embedded]"'): "tests/unit/test_package.py installs the wheel",
    ("quickstart.md", "# server.py"): "waits for a key; test_the_example_server runs it",
    ("migrations.md", "cenote host-revision -x"): (
        "tests/schema/test_application_history.py runs it in an application with a history"
    ),
    ("migrations.md", "cenote host-revision --from"): (
        "tests/schema/test_application_history.py runs it in an application with a history"
    ),
    **{
        ("coming-from/langchain-postgres-data.md", f"CREATE VIEW notes AS\nSELECT {first}"): (
            "test_a_view_moves_tables_of_langchain runs it"
        )
        for first in ("'acme'", "tenant", "c.name")
    },
    ("schema.md", "cenote check --model"): "tests/schema/test_checks.py checks a model",
    (
        "embedding-model.md",
        "import asyncio",
    ): "test_change_of_the_embedding_model_without_downtime runs it",
    ("row-security.md", "import asyncio\nimport os\n\nfrom sqlalchemy import select"): (
        "tests/maintenance/test_row_security.py runs it as the application's role"
    ),
    (
        "pgbouncer.md",
        "import asyncio\nimport os\n\nfrom sqlalchemy.ext",
    ): "tests/pgbouncer runs it",
    ("row-security.md", "CREATE ROLE"): "tests/support/deployment.py creates these roles",
    ("citus.md", "cenote migrate -x dimensions=384 -x distribution"): (
        "tests/maintenance/test_citus.py distributes a table"
    ),
    ("recall.md", "recall@10 by ef_search"): "the durations differ in each run",
    ("scaling.md", "python -m benchmarks.growth"): "takes hours",
    ("scaling.md", "python -m benchmarks.index_kinds"): "takes ten minutes",
}
"""Blocks that are not run, by page and the start of the block, each with the reason."""


def skip_key(page: str, block: Block) -> tuple[str, str] | None:
    """Return the key of a block in `SKIPPED_BLOCKS`, or None if the block is run."""
    keys = [key for key in SKIPPED_BLOCKS if key[0] == page and block.code.startswith(key[1])]
    return keys[0] if keys else None


@pytest.fixture
def created_roles(server_dsn: str) -> Iterator[list[str]]:
    """A list of roles, which are dropped after the test's database."""
    roles: list[str] = []
    yield roles

    async def drop() -> None:
        engine = create_async_engine(make_url(server_dsn).set(drivername="postgresql+asyncpg"))
        await run_script(engine, "".join(f"DROP ROLE {role};" for role in roles))
        await engine.dispose()

    if roles:
        asyncio.run(drop())


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OTHER_TESTS])
def test_pages_run(
    page: str,
    created_roles: list[str],
    empty_dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All blocks of a page run in order, in an empty folder and on a database of their own."""
    superuser = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    monkeypatch.chdir(tmp_path)
    reader = Page(superuser, created_roles)
    with patch.dict(os.environ, clean_environment(), clear=True):
        os.environ["CENOTE_DATABASE_URL"] = empty_dsn
        os.environ["DATABASE_URL"] = superuser.render_as_string(hide_password=False)
        reader.console(SETUP.get(page, ""))
        for name in filter(None, [CONTINUED_PAGES.get(page), page]):
            for block in blocks(name):
                if skip_key(name, block):
                    continue
                try:
                    reader.follow(block)
                except BaseException as error:
                    error.add_note(f"docs/{name}, line {block.line}")
                    raise
            reader.check_output_is_shown()


def test_the_application_pages_run(tmp_path: Path, empty_dsn: str) -> None:
    """The pages run one after another in one folder, and so does each file alone."""
    reader = Reader(tmp_path, empty_dsn)
    ini = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(ini)
    (tmp_path / "migrations" / "script.py.mako").write_text(
        (REPOSITORY / "tests" / "application" / "migrations" / "script.py.mako").read_text()
    )
    for page in APPLICATION_PAGES:
        reader.follow(page)
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in APPLICATION_PAGES)
    run_by_the_pages = re.findall(r"^(?:python|pytest) (\S+)$", text, re.MULTILINE)
    for file in {file.name for file in reader.written} - {"env.py", "conftest.py"}:
        if file not in run_by_the_pages:
            reader.python(file)
    reader.commands("alembic check", "alembic downgrade base")


async def test_change_of_the_embedding_model_without_downtime(
    dsn: str, engine: AsyncEngine
) -> None:
    """After the recipe, both tables agree, although an application was writing to them."""
    url = {"CENOTE_DATABASE_URL": dsn}
    old, new = PgVectorStore(engine, 4), PgVectorStore(engine, 768, table_name="chunks_v2")
    ids = [f"{number:04}" for number in range(1200)]
    for tenant in ("a", "b"):
        await old.upsert([embedded(id, content=f"first {id}") for id in ids], tenant)
    text = (DOCS / "embedding-model.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d\. [^`\n]*`cenote (.*?)`", text, re.MULTILINE)
    program = blocks("embedding-model.md")[-1].code
    output_of(commands.cenote(*steps[0].split(), **url))
    recipe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", program),
        env={**clean_environment(), "DATABASE_URL": asyncpg_url(dsn)},
        stdout=asyncio.subprocess.PIPE,
    )
    communication = asyncio.create_task(recipe.communicate())
    numbers = random.Random(1)
    writes = 0
    while not communication.done():
        writes += 1
        tenant, id = numbers.choice("ab"), numbers.choice(ids)
        content = f"write {writes}"
        for store, vector in ((old, [1.0, 0, 0, 0]), (new, [1.0] * 768)):
            if writes % 3:
                item = embedded(id, vector, content=content, embedding_model="new")
                await store.upsert([item], tenant)
            else:
                await store.delete([id], tenant)
        if writes == 150:  # with more writes, the recipe might never finish
            break
    output, _ = await asyncio.wait_for(communication, 60)
    assert recipe.returncode == 0
    assert output == b"the tables agree\n"
    assert writes > 10
    for tenant in ("a", "b"):
        expected = [chunk async for chunk in old.get_all_chunks(tenant)]
        assert [chunk async for chunk in new.get_all_chunks(tenant)] == expected
        assert len(await new.search([1.0] * 768, tenant, limit=5)) == 5
    assert await new.check_schema() == []
    output_of(commands.cenote(*steps[1].split(), **url))
    assert [finding.kind for finding in await old.check_schema()] == ["table_missing"]
    assert await new.check_schema() == []


OLDER_LANGCHAIN_TABLES = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE langchain_pg_collection (
    uuid UUID PRIMARY KEY, name VARCHAR NOT NULL UNIQUE, cmetadata JSON
);
CREATE TABLE langchain_pg_embedding (
    id VARCHAR PRIMARY KEY,
    collection_id UUID REFERENCES langchain_pg_collection (uuid) ON DELETE CASCADE,
    embedding vector(3),
    document VARCHAR,
    cmetadata JSONB
);
WITH collection AS (
    INSERT INTO langchain_pg_collection VALUES (gen_random_uuid(), 'acme') RETURNING uuid
)
INSERT INTO langchain_pg_embedding
SELECT number, uuid, '[1, 0, 0]', 'text', jsonb_build_object('source', number)
FROM collection, (VALUES (0), (1)) AS numbers (number);
"""
"""The tables of langchain-postgres' class PGVector."""

TABLE_PER_TENANT = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE notes_globex (
    langchain_id UUID PRIMARY KEY,
    content TEXT NOT NULL,
    embedding vector(3) NOT NULL,
    langchain_metadata JSON
);
CREATE TABLE notes_acme (LIKE notes_globex);
INSERT INTO notes_acme (langchain_id, content, embedding, langchain_metadata)
SELECT gen_random_uuid(), 'text', '[1, 0, 0]', json_build_object('source', number)
FROM (VALUES (0), (1)) AS numbers (number);
INSERT INTO notes_globex (langchain_id, content, embedding) VALUES
    (gen_random_uuid(), 'text', '[1, 0, 0]');
"""
"""Tables of langchain-postgres' class PGVectorStore without a column for the tenant."""

METADATA_COLUMNS = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE old_notes (
    langchain_id UUID PRIMARY KEY,
    content TEXT NOT NULL,
    embedding vector(3) NOT NULL,
    tenant TEXT,
    price NUMERIC,
    day DATE,
    added TIMESTAMPTZ,
    langchain_metadata JSON
);
INSERT INTO old_notes VALUES
    (gen_random_uuid(), 'a', '[1, 0, 0]', 'acme', 2.5, '2024-02-29', '2024-02-29 12:00+01',
     '{"source": 0}'),
    (gen_random_uuid(), 'b', '[1, 0, 0]', 'acme', NULL, NULL, NULL, NULL);
"""
"""A table of langchain-postgres' class PGVectorStore with metadata columns."""

sorted_json = partial(json.dumps, sort_keys=True)


@pytest.mark.parametrize(
    ("page", "documents"),
    [
        ("coming-from/langchain-postgres-data.md", {"0": "0", "1": "1"}),
        ("coming-from/vecs.md", {"a": "a"}),
        ("coming-from/pgvector.md", None),
    ],
)
async def test_an_interrupted_copy_continues(
    page: str, documents: dict[str, str] | None, empty_dsn: str, tmp_path: Path
) -> None:
    """A program that copies rows ends, although the index is missing: it reads while it loads."""
    scripts = [block.code for block in blocks(page) if block.language == "sql"]
    (program,) = [block.code for block in blocks(page) if block.code.startswith("# move.py")]
    old_table = scripts[0]
    if "langchain" in page:
        (view,) = [script for script in scripts if "FROM langchain_pg_embedding" in script]
        old_table = OLDER_LANGCHAIN_TABLES + view
    engine = create_async_engine(asyncpg_url(empty_dsn))
    await run_script(engine, old_table)
    store = PgVectorStore(engine, 3)
    await store.apply_migrations()
    await store.upsert([embedded("first", [1.0, 0, 0])], "acme")
    await run_script(engine, "DROP INDEX ix_cenote_chunks_embedding")
    (tmp_path / "move.py").write_text(program)
    move = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(tmp_path / "move.py")),
        env={**clean_environment(), "DATABASE_URL": asyncpg_url(empty_dsn)},
    )
    try:
        assert await asyncio.wait_for(move.wait(), 30) == 0
    finally:
        if move.returncode is None:
            move.kill()
            await move.wait()
    copied = {chunk.id: chunk.document_id async for chunk in store.get_all_chunks("acme")}
    del copied["first"]
    assert copied == documents if documents else len(copied) == 2
    assert [finding.kind for finding in await store.check_schema()] == ["index_missing"]
    await engine.dispose()


@pytest.mark.parametrize(
    ("old_tables", "view", "expected"),
    [
        (
            TABLE_PER_TENANT,
            "FROM notes_acme",
            {"acme": [{"source": 0}, {"source": 1}], "globex": [{}]},
        ),
        (
            METADATA_COLUMNS,
            "FROM old_notes",
            {
                "acme": [
                    {
                        "source": 0,
                        **json_form(
                            {
                                "price": Decimal("2.5"),
                                "day": date(2024, 2, 29),
                                "added": datetime(2024, 2, 29, 11, tzinfo=UTC),
                            }
                        ),
                    },
                    {"price": None, "day": None, "added": None},
                ]
            },
        ),
        (OLDER_LANGCHAIN_TABLES, "JOIN", {"acme": [{"source": 0}, {"source": 1}]}),
    ],
)
async def test_a_view_moves_tables_of_langchain(
    old_tables: str,
    view: str,
    expected: dict[str, list[dict[str, Any]]],
    empty_dsn: str,
    tmp_path: Path,
) -> None:
    """The program reads each view of the page, and the two statements find no difference."""
    page = "coming-from/langchain-postgres-data.md"
    scripts = [block.code for block in blocks(page) if block.language == "sql"]
    (create_view,) = [code for code in scripts if code.startswith("CREATE VIEW") and view in code]
    (delete,) = [code for code in scripts if code.startswith("DELETE")]
    (verify,) = [code for code in scripts if code.startswith("SELECT tenant")]
    (program,) = [block.code for block in blocks(page) if block.code.startswith("# move.py")]
    engine = create_async_engine(asyncpg_url(empty_dsn))
    await run_script(engine, old_tables + create_view)
    (tmp_path / "move.py").write_text(program)
    move = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(tmp_path / "move.py")),
        env={**clean_environment(), "DATABASE_URL": asyncpg_url(empty_dsn)},
    )
    assert await asyncio.wait_for(move.wait(), 60) == 0
    store = PgVectorStore(engine, 3)
    for tenant, metadata in expected.items():
        copied = [chunk.metadata async for chunk in store.get_all_chunks(tenant)]
        assert Counter(map(sorted_json, copied)) == Counter(map(sorted_json, metadata))
    async with engine.begin() as connection:
        assert (await connection.execute(text(delete))).rowcount == 0
        assert (await connection.execute(text(verify))).all() == []
    assert await store.list_namespaces() == {name: len(rows) for name, rows in expected.items()}
    await engine.dispose()


def test_the_example_server(tmp_path: Path) -> None:
    """The program prints settings as export commands, and runs until a key is pressed."""
    (program,) = [
        block.code for block in blocks("quickstart.md") if block.code.startswith("# server.py")
    ]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        lines = [shlex.split(server.stdout.readline()) for _ in range(2)]
        settings = dict(words[1].split("=", 1) for words in lines if words[0] == "export")
        assert [*settings] == ["CENOTE_DATABASE_URL", "DATABASE_URL"]
        migrate = ("migrate", "-x", "dimensions=3", "upgrade", "head")
        output_of(commands.cenote(*migrate, **settings))

        async def count() -> int:
            engine = create_async_engine(settings["DATABASE_URL"])
            number = await PgVectorStore(engine, 3).count("acme")
            await engine.dispose()
            return number

        assert asyncio.run(count()) == 0
        server.communicate("\n", timeout=30)
    assert server.returncode == 0


def test_the_reference_documents_every_public_name() -> None:
    """Each name is documented separately or with its module."""
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES)
    documented = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    for name in public_names:
        path = f"{getattr(cenote_package, name).__module__}.{name}"
        assert {f"cenote.{name}", path, path.rpartition(".")[0]} & set(documented), name


def test_the_reference_links_an_example_of_every_method() -> None:
    """The table of examples names each public method of a store."""
    page = (DOCS / "reference" / "stores.md").read_text(encoding="utf-8")
    table = page.partition("## Find an example")[2].partition("\n## ")[0]
    methods = {name for name in dir(PgVectorStore) if not name.startswith("_")}
    assert methods - set(re.findall(r"`(\w+)`", table)) == set()


def test_the_command_page_documents_every_command_and_option() -> None:
    """The page contains every command and option, except for the options of all commands."""
    page = (DOCS / "reference" / "command.md").read_text(encoding="utf-8")
    (commands_of,) = [
        action.choices for action in cli._parser()._actions if isinstance(action.choices, dict)
    ]
    for name, parser in commands_of.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `cenote {name}"))
        for action in parser._actions:
            options = {*action.option_strings}
            assert (
                not options
                or options & {"-h", "-x", "-c"}
                or any(f"`{option}`" in row for option in options)
            ), (name, options)


def test_the_command_page_documents_every_kind_of_finding() -> None:
    """The table of findings contains each kind once, and no others."""
    page = (DOCS / "reference" / "command.md").read_text(encoding="utf-8")
    table = page.partition("## Kinds of findings")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert Counter(re.findall(r"`(\w+)`", " ".join(rows))) == Counter(get_args(FindingKind))


def test_figures_equal_the_benchmarks_results() -> None:
    """The figures in docs/tenants.md equal those of the benchmark's table of completeness."""
    contenders = {
        "SQL by hand": "floor",
        "langchain-postgres": "langchain",
        "LlamaIndex": "llama-index",
    }
    benchmark = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    measured = table_after("**Completeness by the tenant's share of the rows", benchmark)
    documented = table_after(
        "share of the existing results that a search returned",
        (DOCS / "tenants.md").read_text("utf-8"),
    )
    shares = measured.pop("")
    documented_shares = documented.pop("share of the tenant")
    assert len(documented) == 5
    for name, figures in documented.items():
        label = name.partition(",")[0]
        row = dict(zip(shares, measured[contenders.get(label, label)], strict=True))
        assert [row[share] for share in documented_shares] == figures, name


def table_after(words: str, page: str) -> dict[str, list[str]]:
    """Return the rows of the first table after `words`, by their first cells."""
    lines = page.partition(words)[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), lines[start:])
    ]
    return {first: rest for first, *rest in rows if set(first) != {"-"}}


def test_skipped_blocks_exist() -> None:
    """Each entry of `SKIPPED_BLOCKS` matches exactly one block."""
    used = Counter(skip_key(page, block) for page in PAGES for block in blocks(page))
    del used[None]
    assert used == dict.fromkeys(SKIPPED_BLOCKS, 1)
