"""The console command `cenote`: create, check and change the schema.

Only this module and Alembic's env.py read the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from alembic.config import CommandLine, Config
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import CenoteError, ConfigurationError, MigrationError
from cenote.inspection import settings
from cenote.inspection.live_table import read_table
from cenote.maintenance.distribution import distribute
from cenote.maintenance.full_text import set_text_search
from cenote.maintenance.recall_output import check_picture, draw, table_of_report
from cenote.maintenance.reindexing import reindex, reindex_plan
from cenote.maintenance.repartitioning import repartition
from cenote.maintenance.row_security import set_row_security
from cenote.migrate.api import note_on_owner, run_checks
from cenote.migrate.connection import own_connection
from cenote.migrate.environment import database_url, ini_section, readable
from cenote.migrate.host_revision import write_host_revision
from cenote.migrate.versions import script_location
from cenote.orm.factory import config_from_model
from cenote.postgres.dsn import create_engine
from cenote.progress import progress_bar
from cenote.stores import PgVectorStore
from cenote.stores.pgvector.measuring import (
    DEFAULT_TARGET,
    EF_SEARCH_VALUES,
    MEASURED_NAMESPACES,
    RERANK_VALUES,
    SAMPLED_ROWS,
    not_reached,
)
from cenote.types import IndexKind

EXIT_FINDINGS = 1
"""Exit status of ``cenote check`` if there are findings, and of ``cenote recall`` if no measured
value reaches the target. Errors exit with 2."""

_READING = "the schema cannot be read"

_MIGRATE_COMMANDS = (
    "branches",
    "check",
    "current",
    "downgrade",
    "ensure_version",
    "heads",
    "history",
    "show",
    "stamp",
    "upgrade",
)
"""Alembic's sub-commands that do not write revisions, since the revisions are cenote's own."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. This is the entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    clear_progress_bar = "\r\x1b[K" if sys.stderr.isatty() else ""
    logging.basicConfig(
        level=logging.WARNING, format=clear_progress_bar + "%(levelname)s [%(name)s] %(message)s"
    )
    logging.getLogger("cenote").setLevel(logging.INFO)
    command, setting_arguments = _split_arguments(arguments)
    try:
        if command[:1] == ["migrate"]:
            _migrate(setting_arguments + command[1:])
            return
        options = _parser().parse_args(command + setting_arguments)
        sys.exit(options.run(options))
    except CenoteError as error:
        print(f"cenote: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ncenote: interrupted; the table can be used as before", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate -x and -c, which may stand anywhere, from the other arguments."""
    others: list[str] = []
    setting_arguments: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("-x", "-c", "--config"):
            setting_arguments += [argument, *islice(remaining, 1)]
        elif argument.startswith(("-x", "--config=")):
            setting_arguments.append(argument)
        else:
            others.append(argument)
    return others, setting_arguments


# -- alembic's own commands ------------------------------------------------------------------------


def _migrate(arguments: list[str]) -> None:
    """Run Alembic's command line with cenote's revisions. An ini file may configure logging."""
    line = CommandLine(prog="cenote migrate")
    options = line.parser.parse_args(arguments)
    names = ", ".join(_MIGRATE_COMMANDS)
    if not hasattr(options, "cmd"):
        line.parser.error(f"a command is required: one of {names}")
    if options.cmd[0].__name__ not in _MIGRATE_COMMANDS:
        line.parser.error(f"the revisions are cenote's own; the commands are {names}")
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    logging.getLogger("alembic.util.messaging").setLevel(logging.CRITICAL)  # it is printed too
    config = _alembic_config(options.config, ini_section=options.name, cmd_opts=options)
    line.run_cmd(config, options)


def _alembic_config(names: list[str] | None, **kw: Any) -> Config:
    """Return an Alembic configuration whose revisions are cenote's only, whatever the file says."""
    ini, toml = _files(names or [])
    config = Config(file_=ini, toml_file=toml, **kw)
    location = str(script_location()).replace("%", "%%")
    with readable(config):
        config.set_main_option("script_location", location)
        config.set_main_option("version_locations", location + "/versions")
        config.set_main_option("path_separator", "newline")
        _ = config.toml_alembic_config  # raise errors of the file here, not inside Alembic
    return config


def _files(names: list[str]) -> tuple[str | None, str | None]:
    """Return the ini file and the pyproject.toml among the names."""
    for name in names:
        if not Path(name).is_file():
            raise ConfigurationError(f"there is no file {name}", setting="config")
    toml = [name for name in names if Path(name).name == "pyproject.toml"]
    ini = [name for name in names if name not in toml]
    return (ini[-1] if ini else None), (toml[-1] if toml else None)


# -- cenote's own commands -------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cenote", description="Create, check and change the schema of the chunk table."
    )
    parser.add_argument("--version", action="version", version="%(prog)s " + version("cenote"))
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser(
        "migrate", help="run Alembic's commands with cenote's revisions: upgrade head, current, ..."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-x", action="append", metavar="name=value", help="a setting")
    common.add_argument(
        "-c", "--config", action="append", metavar="FILE", help="ini file or pyproject.toml"
    )

    check = commands.add_parser(
        "check", parents=[common], help="compare the database with the settings"
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.add_argument(
        "--model",
        metavar="MODULE:CLASS",
        help="chunk model of your application, which has the settings: app.models:Passage",
    )
    check.set_defaults(run=_check)

    rebuild = commands.add_parser(
        "reindex", parents=[common], help="rebuild the ANN index while the table is in use"
    )
    rebuild.add_argument(
        "--m",
        type=int,
        help="links per node, 2 to 100; default: the setting, or else the present value",
    )
    rebuild.add_argument(
        "--ef-construction", type=int, help="candidates while building; default: as for --m"
    )
    rebuild.add_argument(
        "--index",
        choices=get_args(IndexKind),
        help="kind of the index; none drops it; default: as for --m",
    )
    rebuild.add_argument(
        "--memory", metavar="SIZE", help="maintenance_work_mem, such as 2GB; default: an estimate"
    )
    rebuild.add_argument("--workers", type=int, help="max_parallel_maintenance_workers")
    rebuild.add_argument("--dry-run", action="store_true", help="only print the statements")
    rebuild.set_defaults(run=_reindex)

    recall = commands.add_parser(
        "recall",
        parents=[common],
        help="measure the recall of the ANN index at several values of ef_search, or of rerank",
    )
    recall.add_argument(
        "--namespace",
        action="append",
        metavar="NAME",
        help=f"tenant to measure, repeatable; default: the {MEASURED_NAMESPACES} largest",
    )
    recall.add_argument(
        "--queries",
        type=Path,
        metavar="FILE.npy",
        help=f"query vectors; default: {SAMPLED_ROWS} stored rows of each namespace",
    )
    recall.add_argument("--limit", type=int, default=10, help="results of each search; default: 10")
    recall.add_argument(
        "--ef-search",
        type=int,
        nargs="+",
        metavar="N",
        help="values to measure; default: " + " ".join(map(str, EF_SEARCH_VALUES)),
    )
    recall.add_argument(
        "--rerank",
        type=int,
        nargs="+",
        metavar="N",
        help="values to measure if the index is of kind bit; default: "
        + " ".join(map(str, RERANK_VALUES)),
    )
    recall.add_argument("--json", action="store_true", help="print the report as JSON")
    recall.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the report; .png, .svg or .pdf"
    )
    recall.add_argument(
        "--target",
        type=float,
        metavar="RECALL",
        help="find the smallest value with this recall in every namespace; exit with 1 if none has "
        f"it; default of --apply: {DEFAULT_TARGET}",
    )
    recall.add_argument(
        "--apply", action="store_true", help="store this value in the index, for all stores"
    )
    recall.set_defaults(run=_recall)

    rewrite = commands.add_parser(
        "repartition",
        parents=[common],
        help="rewrite the table with another number of partitions; locks the table",
    )
    rewrite.add_argument("partitions", type=int, help="2 to 1,024, or 0 for a plain table")
    rewrite.add_argument("--memory", metavar="SIZE", help="as for reindex")
    rewrite.set_defaults(run=_repartition)

    words = commands.add_parser(
        "text-search",
        parents=[common],
        help="add, change or remove full text; locks the table",
    )
    words.add_argument(
        "languages", help="spanish, or several: spanish,english; none removes full text"
    )
    words.add_argument("--memory", metavar="SIZE", help="as for reindex")
    words.set_defaults(run=_text_search)

    secure = commands.add_parser(
        "row-security", parents=[common], help="turn row-level security on or off"
    )
    secure.add_argument("state", choices=["on", "off"])
    secure.set_defaults(run=_row_security)

    spread = commands.add_parser(
        "distribute",
        parents=[common],
        help="distribute the table over a Citus cluster; locks the table",
    )
    spread.add_argument("--shards", type=int, help="number of shards; default: the setting")
    spread.add_argument(
        "--colocate-with", metavar="TABLE", help="table to co-locate the shards with"
    )
    spread.add_argument("--memory", metavar="SIZE", help="as for reindex")
    spread.set_defaults(run=_distribute)

    host_revision = commands.add_parser(
        "host-revision",
        parents=[common],
        help="write a revision into your application's history that creates the chunk table",
    )
    host_revision.add_argument(
        "-m", "--message", default="cenote's chunk table", help="message of the revision"
    )
    host_revision.add_argument(
        "--from", dest="start", default="base", help="revision of cenote before it"
    )
    host_revision.add_argument("--to", help="revision of cenote after it; default: the newest")
    host_revision.set_defaults(run=_host_revision)
    return parser


def _given(options: argparse.Namespace) -> tuple[dict[str, Any], Config]:
    """Return the settings of a command line, and the configuration they were read from."""
    config = _alembic_config(options.config)
    arguments = {}
    for argument in options.x or ():
        name, equals, value = argument.partition("=")
        if not equals:
            raise ConfigurationError(f"-x {name} has no value; write -x {name}=value", setting=name)
        arguments[name] = value
    given = settings.gather(arguments, ini_section(config), os.environ)
    settings.resolve(given, None)  # reject invalid settings before connecting
    return given, config


def _with_engine(
    options: argparse.Namespace,
    work: Callable[[AsyncEngine, dict[str, Any]], Awaitable[int]],
) -> int:
    """Run a coroutine with an engine for the command line's database."""
    given, config = _given(options)

    async def run() -> int:
        engine = create_engine(
            database_url(given, config),
            pool_size=2,
            distributed=given.get("distribution") == "citus",
        )
        try:
            return await work(engine, given)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def _check(options: argparse.Namespace) -> int:
    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        has_model = options.model is not None
        if has_model:
            given = _settings_of_model(options.model, given)
        async with own_connection(engine, _READING) as connection:
            findings = await connection.run_sync(run_checks, given, has_model)
            note = None if has_model else await connection.run_sync(note_on_owner, given)
        if note is not None:
            print(f"cenote: {note}", file=sys.stderr)
        if options.json:
            print(json.dumps([finding.as_dict() for finding in findings], indent=2))
        for finding in () if options.json else findings:
            print(finding)
        if not findings and not options.json:
            print("no differences found")
        return EXIT_FINDINGS if findings else 0

    return _with_engine(options, work)


def _settings_of_model(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a model, after checking that the other settings agree with them."""
    arguments = {name: value for name, value in given.items() if name != "database_url"}
    return settings.explicit_settings(config_from_model(_import_model(path), arguments))


def _import_model(path: str) -> Any:
    """Import a model by the name of its module, a colon, and the name of the class.

    The current folder is on the path, as for ``python -m``. The text of an error of the module is
    left out, because it may contain a password.
    """
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise ConfigurationError(
            f"--model must be a module and a class, such as app.models:Passage, not {path!r}",
            setting="model",
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--model: there is no module {error.name!r}; run the command where `python -c "
            f"'import {module_name}'` works",
            setting="model",
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"--model: importing {module_name} raised {type(error).__name__}", setting="model"
        ) from error
    for name in class_name.split("."):
        if not hasattr(value, name):
            raise ConfigurationError(
                f"--model: module {module_name!r} has no class {class_name!r}", setting="model"
            )
        value = getattr(value, name)
    return value


def _reindex(options: argparse.Namespace) -> int:
    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        config = await _live_config(engine, given, **_parameters(options, given))
        if options.dry_run:
            for statement in await reindex_plan(engine, config):
                print(str(statement.compile(dialect=engine.dialect)).strip() + ";")
            return 0
        await reindex(
            engine,
            config,
            memory=options.memory,
            workers=options.workers,
            progress=progress_bar(),
        )
        if config.index_kind == "none":
            print("index dropped: every search is exact")
            return 0
        print(
            f"index of kind {config.index_kind} rebuilt with m={config.hnsw_m}, "
            f"ef_construction={config.hnsw_ef_construction}"
        )
        return 0

    return _with_engine(options, work)


def _parameters(options: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Return the kind and the parameters of the ANN index: of the command, or of the settings."""
    options_given = {
        "index": options.index,
        "hnsw_m": options.m,
        "hnsw_ef_construction": options.ef_construction,
    }
    return {
        name: given.get(name) if value is None else value for name, value in options_given.items()
    }


def _recall(options: argparse.Namespace) -> int:
    if options.picture is not None:
        check_picture(options.picture)
    target = DEFAULT_TARGET if options.apply and options.target is None else options.target
    if target is not None and not 0 < target <= 1:
        raise ConfigurationError(
            "target must be greater than 0 and at most 1, e.g. 0.98", setting="target"
        )
    queries = None if options.queries is None else _read_vectors(options.queries)

    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        store = _store(engine, await _live_config(engine, given))
        report = await store.measure_recall(
            options.namespace,
            queries,
            options.limit,
            options.ef_search,
            rerank=options.rerank,
            progress=progress_bar(),
        )
        point = None if target is None else report.smallest(target)
        if not options.json:
            requested = (
                options.rerank or RERANK_VALUES
                if report.kind == "bit"
                else options.ef_search or EF_SEARCH_VALUES
            )
            print(table_of_report(report, requested))
        if options.picture is not None and report.namespaces:
            draw(report, options.picture, target)
        if options.apply and target is not None and point is not None:
            await store.apply_recall(report, target)
        if options.json:
            result = {
                "target": target,
                "smallest_ef_search": None if point is None else point.ef_search,
                "smallest_rerank": None if point is None else point.rerank,
                "applied": options.apply and point is not None,
            }
            print(json.dumps(report.as_dict() | result, indent=2))
        if target is None:
            return 0
        if point is None:
            print(f"cenote: {not_reached(report, target)}", file=sys.stderr)
            return EXIT_FINDINGS
        if not options.json:
            print(
                f"\n{report.setting} {report.value(point)} reaches {target:g} in every measured "
                f"namespace (lowest: {point.recall:.4f})"
                + ("; it is stored in the index" if options.apply else "")
            )
        return 0

    return _with_engine(options, work)


def _store(engine: AsyncEngine, config: SchemaConfig) -> PgVectorStore:
    """Return a store over the live table of a configuration."""
    names = (
        "table_name",
        "schema",
        "column_type",
        "metric",
        "index",
        "partitions",
        "text_search",
        "row_security",
    )
    settings_of_table = {name: getattr(config, name) for name in names}
    return PgVectorStore(engine, config.dimensions, **settings_of_table)


def _read_vectors(file: Path) -> NDArray[np.floating[Any]]:
    """Read vectors from a .npy file, shape (n, dimensions)."""
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is not a .npy file of numbers"
        raise ConfigurationError(f"{file} cannot be read: {reason}", setting="queries") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise ConfigurationError(
            f"{file} must contain one array of numbers, shape (queries, dimensions)",
            setting="queries",
        )
    return vectors


def _repartition(options: argparse.Namespace) -> int:
    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        config = await _live_config(engine, given, partitions=options.partitions)
        changed = await repartition(engine, config, memory=options.memory)
        shape = f"has {config.partitions} partitions" if config.partitions else "is a plain table"
        print(f"table {config.table_name} {shape}" + ("" if changed else " already"))
        return 0

    return _with_engine(options, work)


def _text_search(options: argparse.Namespace) -> int:
    text_search = None if options.languages == "none" else options.languages

    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        config = await _live_config(engine, given)
        changed = await set_text_search(engine, config, text_search, memory=options.memory)
        has = "no full text" if text_search is None else f"full text: {text_search}"
        print(f"table {config.table_name} has {has}" + ("" if changed else " already"))
        return 0

    return _with_engine(options, work)


def _row_security(options: argparse.Namespace) -> int:
    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        config = await _live_config(engine, given)
        changed = await set_row_security(engine, config, on=options.state == "on")
        already = "" if changed else " already"
        print(f"row-level security of table {config.table_name} is {options.state}{already}")
        return 0

    return _with_engine(options, work)


def _distribute(options: argparse.Namespace) -> int:
    async def work(engine: AsyncEngine, given: dict[str, Any]) -> int:
        config = replace(
            await _live_config(engine, given),
            distribution="citus",
            **_shard_settings(options, given),
            partitions=None,
            row_security=None,
        )
        changed = await distribute(engine, config, memory=options.memory)
        print(f"table {config.table_name} is distributed" + ("" if changed else " already"))
        return 0

    return _with_engine(options, work)


def _shard_settings(options: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Return shard_count and colocate_with from the command, or else from the settings."""
    if options.shards is None and options.colocate_with is None:
        names = ("shard_count", "colocate_with")
        return {name: given.get(name) for name in names}
    return {"shard_count": options.shards, "colocate_with": options.colocate_with}


async def _live_config(engine: AsyncEngine, given: dict[str, Any], **changes: Any) -> SchemaConfig:
    """Return the live table's settings, with its HNSW parameters and the given changes."""
    name, schema_name = settings.table_name_and_schema(given)
    async with own_connection(engine, _READING) as connection:
        live = await connection.run_sync(read_table, name, schema_name)
    if live is None or live.dimensions is None:
        raise MigrationError(f"there is no chunk table {name!r} in this database")
    changed: dict[str, Any] = {
        setting: value for setting, value in changes.items() if value is not None
    }
    named = {"table_name": name, "schema": schema_name}
    return SchemaConfig(**(live.settings | live.parameters | named | changed))


# -- into an application's history -----------------------------------------------------------------


def _live_or_given(given: dict[str, Any]) -> SchemaConfig | None:
    """Return the settings, completed by the live table's if there is one."""

    async def read() -> SchemaConfig | None:
        engine = create_engine(given["database_url"], pool_size=1)
        try:
            async with own_connection(engine, _READING) as connection:
                name, schema_name = settings.table_name_and_schema(given)
                live = await connection.run_sync(read_table, name, schema_name)
                return settings.resolve(given, live)
        finally:
            await engine.dispose()

    return asyncio.run(read())


def _host_revision(options: argparse.Namespace) -> int:
    here = [name for name in ("alembic.ini", "pyproject.toml") if Path(name).is_file()]
    options.config = options.config or here or ["alembic.ini"]
    given, _ = _given(options)
    config = _live_or_given(given) if "database_url" in given else settings.resolve(given, None)
    if config is None:
        raise ConfigurationError(settings.HOW_TO_SET_DIMENSIONS, setting="dimensions")
    ini, toml = _files(options.config)
    application = Config(file_=ini, toml_file=toml)
    write_host_revision(
        application, config, message=options.message, start=options.start, to=options.to
    )
    return 0
