"""The command line, and the steps of the demo in order."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from cenote import CenoteError, MigrationError, PgVectorStore
from cenote.config import DEFAULT_TABLE_NAME
from cenote.embedded import EmbeddedPostgres

from .asking import Asker
from .corpus import PRIVATE, PUBLIC, Passage, passages_by_namespace, read_standard_library
from .embedding import Embedder, LatentSemanticAnalysis, SentenceTransformerModel
from .loading import analyze, apply_changes, find_changes
from .report import Report

REPOSITORY = Path(__file__).resolve().parents[2]

CLOSING = """\
Scores are cosine similarities. Times are the duration of the search alone;
the first search of each kind also prepares its statement.
Ask your own question: make demo QUERY="parse a date"
"""


def main() -> None:
    arguments = _parse_arguments()
    console = Console(highlight=False)
    console.width = min(console.width, 100)
    try:
        run(arguments, Report(console))
    except CenoteError as error:
        console.print(Text.assemble((f"{type(error).__name__}: ", "bold red"), str(error)))
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Stopped. The next run continues from here.")
        sys.exit(130)


def run(arguments: argparse.Namespace, report: Report) -> None:
    report.title(f"Semantic search in the standard library of Python {platform.python_version()}")
    passages = _read(report)
    embedder = _prepare_embedder(arguments.model, passages[PUBLIC], arguments.folder, report)
    with _database(arguments.database_url, arguments.folder, report) as dsn:
        _migrate(dsn, embedder, report)
        asyncio.run(_load_and_ask(dsn, passages, embedder, arguments.query, report))
    report.end(CLOSING)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.stdlib_search",
        description="Semantic search over the docstrings of Python's standard library.",
    )
    parser.add_argument(
        "--query", metavar="TEXT", help="ask this question instead of the demo's questions"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="embed with this sentence-transformers model instead of latent semantic analysis",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=REPOSITORY / ".demo",
        help="folder of the database and the fitted model (default: .demo in the repository)",
    )
    parser.add_argument(
        "--database-url",
        metavar="URL",
        default=os.environ.get("CENOTE_DATABASE_URL"),
        help="Postgres to use instead of the embedded one (default: CENOTE_DATABASE_URL)",
    )
    return parser.parse_args()


def _read(report: Report) -> dict[str, list[Passage]]:
    with report.step("Read") as step:
        docstrings = read_standard_library()
        passages = passages_by_namespace(docstrings)
        step.outcome = (
            f"{len(docstrings):,} docstrings, {len(passages[PUBLIC]):,} public and "
            f"{len(passages[PRIVATE]):,} private chunks"
        )
    return passages


def _prepare_embedder(
    model: str | None, passages: list[Passage], folder: Path, report: Report
) -> Embedder:
    with report.step("Model") as step:
        embedder: Embedder
        if model:
            embedder = SentenceTransformerModel(model)
        else:
            # Learn from the public passages alone: a tenant's private texts must not influence a
            # model that other tenants share.
            embedder = LatentSemanticAnalysis(passages, folder)
        step.outcome = f"{embedder.description}, {embedder.dimensions} dimensions"
    return embedder


@contextmanager
def _database(url: str | None, folder: Path, report: Report) -> Iterator[str]:
    if url:
        yield url
        return
    with ExitStack() as stack:
        with report.step("Postgres") as step:
            server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
            step.outcome = f"embedded, data in {escape(_relative(folder / 'postgres'))}"
        yield server.dsn


def _migrate(dsn: str, embedder: Embedder, report: Report) -> None:
    arguments = ["-x", f"dimensions={embedder.dimensions}"]
    if embedder.table_name != DEFAULT_TABLE_NAME:
        arguments += ["-x", f"table_name={embedder.table_name}"]
    arguments += ["upgrade", "head"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CENOTE_")
    }
    with report.step("Migrate") as step:
        result = subprocess.run(  # noqa: S603 - a fixed command
            [sys.executable, "-m", "alembic", *arguments],
            cwd=REPOSITORY,
            env=environment | {"CENOTE_DATABASE_URL": dsn},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise MigrationError(f"alembic failed:\n{result.stderr}")
        revisions = re.findall(r"Running upgrade .*-> (\w+)", result.stderr)
        outcome = f"ran {', '.join(revisions)}" if revisions else "nothing to do"
        step.outcome = f"[cyan]alembic {' '.join(arguments)}[/]: {outcome}"


async def _load_and_ask(
    dsn: str,
    passages: dict[str, list[Passage]],
    embedder: Embedder,
    query: str | None,
    report: Report,
) -> None:
    async with await PgVectorStore.connect(
        dsn, embedder.dimensions, table_name=embedder.table_name, embedding_model=embedder.name
    ) as store:
        await _load(store, passages, embedder, report)
        asker = Asker(store, embedder, report)
        if query:
            await asker.ask(query)
        else:
            await asker.ask_all()


async def _load(
    store: PgVectorStore,
    passages: dict[str, list[Passage]],
    embedder: Embedder,
    report: Report,
) -> None:
    """Update the namespaces so that they hold exactly these passages."""
    with report.step("Compare") as step:
        differences = [
            await find_changes(store, namespace, expected, embedder.name)
            for namespace, expected in passages.items()
        ]
        new = sum(len(changes.new) for changes in differences)
        changed = sum(len(changes.changed) for changes in differences)
        removed = sum(len(changes.removed_ids) for changes in differences)
        step.outcome = (
            f"with the stored chunks: {new:,} new, {changed:,} changed, {removed:,} removed"
        )
    if new + changed + removed:
        with report.progress("Load", new + changed + removed) as advance:
            for changes in differences:
                await apply_changes(store, changes, embedder, advance)
            await analyze(store)


def _relative(path: Path) -> str:
    """Return the path relative to the working directory if it is inside it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    main()
