"""Upgrade and check the schema from code, and run cenote's revisions for ``alembic/env.py``.

The revisions are in ``alembic/`` of a checkout, and inside the package of an installed wheel.
"""

from __future__ import annotations

import asyncio
import configparser
import logging.config
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any

import alembic.command
from alembic import context
from alembic.config import Config
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData, inspect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateSchema

from cenote import operations
from cenote.autogenerate import hooks
from cenote.config import SchemaConfig
from cenote.errors import CenoteError, ConfigurationError, MigrationError
from cenote.inspection import settings
from cenote.inspection.checks.findings import Finding, subject_of
from cenote.inspection.checks.table import (
    extension_finding,
    findings,
    revision_finding,
    shard_findings,
    table_finding,
)
from cenote.inspection.citus import read_shards
from cenote.inspection.hints import APPLICATION_MIGRATIONS
from cenote.inspection.live_table import read_table, schemas_with
from cenote.operations import script_location, version_table
from cenote.orm.factory import chunk_table
from cenote.postgres.driver_errors import (
    database_errors,
    describe,
    driver_error,
    is_lost,
    is_safe_to_quote,
    redact,
)
from cenote.postgres.dsn import create_engine, safe_url
from cenote.postgres.event_loops import check_event_loop, check_event_loop_of
from cenote.postgres.extension import EXTENSION_QUERY
from cenote.postgres.locks import migration_lock, process_lock

__all__ = [
    "Finding",
    "check",
    "current",
    "run_environment",
    "script_location",
    "upgrade",
    "version_table",
]


# -- from code -------------------------------------------------------------------------------------


async def upgrade(
    database: AsyncEngine | AsyncConnection, config: SchemaConfig, revision: str = "head"
) -> None:
    """Upgrade the chunk table to a revision. Safe to call from many tasks, threads and processes.

    Args:
        database: Engine, from whose pool one connection is taken, or connection without an open
            transaction. Each revision commits its own transaction. To migrate inside a transaction
            of the application, see `cenote.operations`.
        config: Settings of the table.
        revision: Target, in the notation of Alembic's command line.

    Raises:
        MigrationError: The database raised an error, the table exists in another shape, or another
            migration held the lock for too long.
        ConfigurationError: The configuration is invalid.
    """
    async with own_connection(database) as connection:
        await connection.run_sync(_upgrade, config, revision)


async def current(database: AsyncEngine | AsyncConnection, config: SchemaConfig) -> str | None:
    """Return the revision that the database records for the table, or None.

    Raises:
        MigrationError: The database raised an error.
    """
    async with own_connection(database, "the revision cannot be read") as connection:
        return await connection.run_sync(
            operations.recorded_revision, config.table_name, config.schema
        )


async def check(
    database: AsyncEngine | AsyncConnection, config: SchemaConfig, *, user_model: bool = False
) -> list[Finding]:
    """Return the differences between the database and the configuration, most severe first.

    Compares the extension, the revision, the columns, the primary key, the partitions (their number
    if the configuration has one, otherwise that they cover every namespace), and the indexes with
    their operator classes and parameters. Reads the catalogue and the version table only.

    Args:
        database: Engine, or connection without an open transaction.
        config: Expected settings.
        user_model: True if the table belongs to a user model, which the application's migrations
            create instead of cenote's revisions.

    Raises:
        MigrationError: The database raised an error.
    """
    async with own_connection(database, "the schema cannot be read") as connection:
        return await connection.run_sync(run_checks, settings.explicit_settings(config), user_model)


def _upgrade(connection: Connection, config: SchemaConfig, revision: str) -> None:
    with migration_lock(connection, config.table_name), process_lock(connection):
        alembic_config = Config(
            attributes={"connection": connection, "cenote": settings.explicit_settings(config)}
        )
        alembic_config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
        alembic.command.upgrade(alembic_config, revision)


@asynccontextmanager
async def own_connection(
    database: AsyncEngine | AsyncConnection, action: str = "the migration failed"
) -> AsyncIterator[AsyncConnection]:
    """Provide a READ COMMITTED connection whose errors become cenote's and name the action."""
    if not isinstance(database, AsyncEngine | AsyncConnection):
        raise ConfigurationError(
            f"the database must be an AsyncEngine or an AsyncConnection, not "
            f"{type(database).__name__}",
            setting="engine",
        )
    engine = database if isinstance(database, AsyncEngine) else database.engine
    if engine.get_execution_options().get("schema_translate_map"):
        raise ConfigurationError(
            "an engine with a schema_translate_map cannot be migrated; set schema in "
            "SchemaConfig instead",
            setting="schema",
        )
    with own_errors(action, engine.url):
        if isinstance(database, AsyncEngine):
            check_event_loop(database)
            async with AsyncExitStack() as stack:
                try:
                    connection = await stack.enter_async_context(database.connect())
                except ValueError as error:
                    raise ConfigurationError(
                        "the driver rejects the connection string's arguments", setting="dsn"
                    ) from error
                await check_event_loop_of(connection)
                yield await connection.execution_options(isolation_level="READ COMMITTED")
            return
        if database.in_transaction():
            raise MigrationError(
                "the connection has an open transaction; commit or roll back first, or pass the "
                "engine"
            )
        level = _isolation_level(database)
        await database.execution_options(isolation_level="READ COMMITTED")
        try:
            yield database
        finally:
            if not database.closed and not database.invalidated:
                await database.rollback()
                await database.execution_options(isolation_level=level)


def _isolation_level(connection: AsyncConnection) -> Any:
    """Return the isolation level that is set on a connection, on its engine, or on the server."""
    assert connection.sync_connection is not None
    options = connection.sync_connection.get_execution_options()
    engine_level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    return options.get("isolation_level") or engine_level or connection.default_isolation_level


# -- checks ----------------------------------------------------------------------------------------


def run_checks(
    connection: Connection, given: Mapping[str, Any], user_model: bool = False
) -> list[Finding]:
    """Return the findings of `check`, from a synchronous connection and incomplete settings."""
    name, schema_name = settings.table_name_and_schema(given)
    subject = subject_of(name, schema_name)
    installed = connection.execute(EXTENSION_QUERY).one_or_none()
    live = read_table(connection, name, schema_name)
    config = settings.resolve(given, live)
    recorded = operations.recorded_revision(connection, name, schema_name)
    found = [extension_finding(None if installed is None else installed.extversion)]
    if live is None or live.column_type is None or config is None:
        elsewhere = schemas_with(connection, name) if live is None else []
        missing = table_finding(subject, live, recorded, given, elsewhere)
        found.append(
            replace(missing, hint="run " + APPLICATION_MIGRATIONS) if user_model else missing
        )
    else:
        if not user_model:
            known, head = operations.known_revisions(), operations.head_revision()
            found.append(revision_finding(subject, recorded, known, head, given))
        found += findings(live, config)
        if live.shards is not None:
            shards = read_shards(connection, live.name, live.schema)
            found += shard_findings(shards, config)
    return [finding for finding in found if finding is not None]


# -- from alembic's command line -------------------------------------------------------------------


def run_environment(environ: Mapping[str, str]) -> None:
    """Run the revisions that Alembic was asked for. ``env.py`` calls this function.

    `upgrade` passes its connection and settings. On the command line, settings come from the
    sources of `cenote.inspection.settings`, and the database from the setting ``database_url`` or from
    ``sqlalchemy.url`` of the ini file.
    """
    attributes = context.config.attributes
    if "cenote" in attributes:
        _run_online(attributes["connection"], attributes["cenote"], locked=True)  # by upgrade()
        return
    _configure_logging()
    try:
        given = settings.gather(
            context.get_x_argument(as_dictionary=True), ini_section(context.config), environ
        )
        settings.resolve(given, None)  # reject invalid settings before connecting
        if context.is_offline_mode():
            _run_offline(given)
        else:
            asyncio.run(_run_with_own_engine(database_url(given, context.config), given))
    except CenoteError as error:  # Alembic prints a CommandError without a traceback
        raise CommandError(str(error)) from error


def ini_section(config: Config) -> Mapping[str, Any]:
    """Return the settings in the ini file, or in pyproject.toml.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    with readable(config):
        if config.config_file_name is not None and config.file_config.has_section("cenote"):
            here = {"here": config.file_config.defaults().get("here")}
            items = config.file_config.items("cenote")
            return {name: value for name, value in items if here.get(name) != value}
        section: Mapping[str, Any] = config.toml_alembic_config.get("cenote", {})
        return section


def database_url(given: Mapping[str, Any], config: Config) -> str:
    """Return the connection string of the command line.

    Raises:
        ConfigurationError: It is not set, or the ini file cannot be read.
    """
    with readable(config):
        url: str | None = given.get("database_url") or config.get_main_option("sqlalchemy.url")
    if url is None:
        raise ConfigurationError(
            "`database_url` is required: set CENOTE_DATABASE_URL=postgresql://..., or database_url "
            "in the section [cenote] of the ini file that -c names",
            setting="database_url",
        )
    return url


@contextmanager
def readable(config: Config) -> Iterator[None]:
    """Turn errors of a file's parser into a ConfigurationError, without text of the file.

    The text may contain a password.
    """
    try:
        yield
    except (configparser.Error, TOMLDecodeError, UnicodeDecodeError) as error:
        name = config.config_file_name if isinstance(error, configparser.Error) else None
        raise ConfigurationError(
            f"{name or 'the configuration file'} cannot be read ({type(error).__name__}); "
            "write % as %% in an ini file",
            setting="config",
        ) from None


def _configure_logging() -> None:
    """Configure logging as the ini file says, if it does. Other loggers stay enabled."""
    file = context.config.config_file_name
    if (
        file is not None
        and Path(file).is_file()
        and context.config.file_config.has_section("loggers")
    ):
        logging.config.fileConfig(file, disable_existing_loggers=False)


# -- running the revisions -------------------------------------------------------------------------


async def _run_with_own_engine(url: str, given: Mapping[str, Any]) -> None:
    engine = create_engine(url, pool_size=1)
    try:
        async with own_connection(engine) as connection:
            await connection.run_sync(_run_online, given, locked=False)
    finally:
        await engine.dispose()


def _run_online(connection: Connection, given: Mapping[str, Any], *, locked: bool) -> None:
    name, schema = settings.table_name_and_schema(given)
    config = settings.resolve(given, read_table(connection, name, schema))
    # Alembic would take an open transaction for the caller's, and not commit its own work.
    connection.commit()
    context.configure(
        connection=connection, transaction_per_migration=True, **_options(given, config)
    )
    if context.get_context().opts.get("dont_mutate"):  # alembic current only reads
        with context.begin_transaction():
            context.run_migrations()
        return
    with nullcontext() if locked else migration_lock(connection, name):
        goes_up = _goes_up()  # compares with the revision before the upgrade
        _prepare(connection, schema, config, goes_up)
        with context.begin_transaction():
            context.run_migrations()
        if config is not None and goes_up:
            operations.refuse_other_shape(connection, config)
            connection.commit()


def _prepare(
    connection: Connection, schema: str | None, config: SchemaConfig | None, goes_up: bool
) -> None:
    """Check that an existing table has the configured shape, and create the schema if needed."""
    if config is not None and goes_up:
        operations.refuse_without_citus(connection, config)
        name = config.table_name
        if operations.recorded_revision(connection, name, schema) is not None:
            operations.refuse_other_shape(connection, config)
    if schema is not None and not inspect(connection).has_schema(schema):
        if not goes_up:
            raise MigrationError(f"there is no schema {schema!r}")
        connection.execute(CreateSchema(schema))  # the version table is in it
    connection.commit()


def _goes_up() -> bool:
    """Return whether Alembic's target is a revision, and not older than the present one."""
    migration = context.get_context()
    destination = migration.opts.get("destination_rev")  # missing for alembic check
    if isinstance(destination, tuple):
        (destination,) = destination or (None,)
    if destination in (None, "base") or str(destination).startswith("-"):
        return False
    heads = migration.get_current_heads()
    try:
        older = {script.revision for script in context.script.iterate_revisions(heads, "base")}
    except RevisionError:  # Alembic will not find the revision either, and report it
        return True
    return destination not in older - set(heads)


def _run_offline(given: Mapping[str, Any]) -> None:
    _, schema = settings.table_name_and_schema(given)
    config = settings.resolve(given, None)
    context.configure(dialect_name="postgresql", literal_binds=True, **_options(given, config))
    with context.begin_transaction():
        if schema is not None:  # before the version table, which is in it
            context.execute(CreateSchema(schema, if_not_exists=True))
        context.run_migrations()


def _options(given: Mapping[str, Any], config: SchemaConfig | None) -> dict[str, Any]:
    name, schema = settings.table_name_and_schema(given)
    return {
        "cenote": config,  # for the revisions
        "cenote_table": (name, schema),
        "target_metadata": MetaData() if config is None else chunk_table(config).metadata,
        "version_table": version_table(name),
        "version_table_schema": schema,
        **hooks(),
        "include_object": _is_ours,
        "include_schemas": schema is not None,
        "include_name": lambda named, kind, _: kind != "schema" or named in (None, schema),
    }


def _is_ours(obj: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Keep autogenerate from dropping other tables of the database."""
    return not (kind == "table" and reflected and other is None)


@contextmanager
def own_errors(action: str, url: URL) -> Iterator[None]:
    """Turn errors of Alembic, SQLAlchemy and the driver into cenote's.

    The server's message is kept if it cannot quote data.
    """
    try:
        yield
    except CenoteError:
        raise
    except CommandError as error:
        raise MigrationError(str(error)) from error
    except database_errors() as error:
        cause = driver_error(error)
        if isinstance(cause, TimeoutError):
            action = f"{action}: no answer in time"
        elif is_lost(cause):
            action = f"cannot connect to {safe_url(url)}"
        reason = f"{type(cause).__name__}: {cause}" if is_safe_to_quote(error) else describe(cause)
        redact(error)
        raise MigrationError(f"{action}: {reason}") from cause
