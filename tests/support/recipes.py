"""Follow pages of the manual in a folder: write their files, and run their commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess

from sqlalchemy.engine import make_url
from support import commands
from support.commands import asyncpg_url, output_of, run
from support.manual import DOCS, Block, blocks


class Reader:
    """A reader who follows pages of the manual in an empty folder.

    Python blocks are written to the files that their first lines name, diffs are applied to these
    files, and commands run in the folder. A text block must equal the output of the command before
    it.

    Attributes:
        folder: The folder.
        environ: Environment variables of the commands.
        output: Output of the last command.
        written: Files that the reader has written. A further block continues the file.
    """

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.environ = {"DATABASE_URL": asyncpg_url(dsn), "PYTHONPATH": str(folder)}
        self.output = ""
        self.written: list[Path] = []

    def follow(self, page: str, *titles: str) -> None:
        """Follow the blocks of a page, or of some of its sections."""
        for block in blocks(page):
            if titles and title_of(page, block) not in titles:
                continue
            try:
                self.follow_block(block)
            except BaseException as error:
                error.add_note(f"docs/{page}, line {block.line}")
                raise

    def follow_block(self, block: Block) -> None:
        if block.language == "python":
            self.write(block)
        elif block.language == "diff":
            self.edit(block)
        elif block.language == "console":
            self.commands(*block.code.splitlines())
        else:
            assert (block.language, block.code) == ("text", self.output)

    def write(self, block: Block) -> None:
        """Write a block to its file, or append it to a file that a previous block started."""
        file = self.named_file(block)
        text = file.read_text(encoding="utf-8") + "\n\n" if file in self.written else ""
        file.write_text(text + block.code, encoding="utf-8")
        self.written.append(file)

    def edit(self, block: Block) -> None:
        """Apply a diff, whose first line names the file."""
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
        assert name is not None, f"the block names no file:\n{block.code}"
        return self.folder / name[1]

    def commands(self, *lines: str) -> None:
        """Run commands, except those that install packages."""
        for line in lines:
            command, *words = shlex.split(line)
            if command in ("alembic", "alchemy"):
                module = {"alembic": "alembic", "alchemy": "advanced_alchemy"}[command]
                output_of(commands.run_module(module, *words, cwd=self.folder, **self.environ))
            elif command == "python":
                self.output = self.python(*words)
            elif command == "pytest":
                output_of(self.pytest(*words))
            else:
                assert command == "pip", f"unknown command: {line!r}"

    def python(self, *arguments: str) -> str:
        """Run Python, and return its output."""
        # Advanced Alchemy uses a decorator that SQLAlchemy 2.1 deprecates.
        options = ("-W", "error", "-W", "ignore:The declarative_mixin:DeprecationWarning")
        command = (sys.executable, *options, *arguments)
        return output_of(run(*command, cwd=self.folder, **self.environ))

    def pytest(self, *arguments: str) -> CompletedProcess[str]:
        """Run pytest."""
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
        command = (sys.executable, "-m", "pytest", *warnings, *options, *arguments)
        # Loading the plugins of all installed packages takes 4 s.
        environ = {**self.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return run(*command, cwd=self.folder, **environ)


def title_of(page: str, block: Block) -> str:
    """Return the title of the section that contains a block, or "" before the first section."""
    text = (DOCS / page).read_text(encoding="utf-8")
    before = "".join(text.splitlines(keepends=True)[: block.line - 1])
    titles: list[str] = re.findall(r"^## (.*)$", before, re.MULTILINE)
    return titles[-1] if titles else ""


def sections_with_blocks(pages: Iterable[str]) -> set[tuple[str, str]]:
    """Return the page and the title of each section that contains a code block."""
    return {(page, title_of(page, block)) for page in pages for block in blocks(page)}
