"""Run cenote's revisions from ``alembic/env.py``, online and offline."""

from __future__ import annotations

import asyncio
import configparser
import logging.config
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any

from alembic import context
from alembic.config import Config
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.schema import CreateSchema

from cenote.config import SchemaConfig
from cenote.errors import CenoteError, ConfigurationError, MigrationError
from cenote.inspection import settings
from cenote.inspection.live_table import read_table
from cenote.migrate.autogenerate import hooks
from cenote.migrate.connection import own_connection
from cenote.migrate.operations import check_citus, check_shape
from cenote.migrate.versions import recorded_revision, version_table
from cenote.orm.factory import chunk_table
from cenote.postgres.dsn import create_engine
from cenote.postgres.locks import migration_lock

# -- from alembic's command line -------------------------------------------------------------------


def run_environment(environ: Mapping[str, str]) -> None:
    """Run the revisions that Alembic was asked for. ``env.py`` calls this function.

    `cenote.schema.upgrade()` passes its connection and settings. On the command line, settings come
    from the sources of `cenote.inspection.settings`, and the connection string from the setting
    ``database_url``, or else from ``sqlalchemy.url`` in the ini file.
    """
    attributes = context.config.attributes
    if "cenote" in attributes:  # cenote.schema.upgrade() calls, and holds the lock
        _run_online(attributes["connection"], attributes["cenote"], locked=True)
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
            # leave out `here`, which Alembic adds to every section
            here = ("here", config.file_config.defaults().get("here"))
            items = config.file_config.items("cenote")
            return {name: value for name, value in items if (name, value) != here}
        section: Mapping[str, Any] = config.toml_alembic_config.get("cenote", {})
        return section


def database_url(given: Mapping[str, Any], config: Config) -> str:
    """Return the connection string of the command line.

    Raises:
        ConfigurationError: The connection string is not set, or the ini file cannot be read.
    """
    with readable(config):
        url: str | None = given.get("database_url") or config.get_main_option("sqlalchemy.url")
    if url is None:
        raise ConfigurationError(
            "`database_url` is required: set CENOTE_DATABASE_URL=postgresql://..., or database_url "
            "in the section [cenote] of the ini file (option -c)",
            setting="database_url",
        )
    return url


@contextmanager
def readable(config: Config) -> Iterator[None]:
    """Turn errors of a configuration file's parser into a ConfigurationError.

    The error names the file, and quotes nothing from it, because the file may contain a password.
    """
    ini, toml = config.config_file_name, config.toml_file_name
    try:
        yield
    except configparser.InterpolationError as error:
        raise _unreadable(ini, error, "write % as %%") from None
    except configparser.Error as error:
        raise _unreadable(ini, error, "check its syntax") from None
    except TOMLDecodeError as error:
        raise _unreadable(toml, error, "check its syntax") from None
    except UnicodeDecodeError as error:
        names = " or ".join(name for name in (ini, toml) if name is not None)
        raise _unreadable(names, error, "save it as UTF-8") from None


def _unreadable(name: str | None, error: Exception, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name or 'the configuration file'} cannot be read ({type(error).__name__}): {hint}",
        setting="config",
    )


def _configure_logging() -> None:
    """Configure logging from the ini file, if it has a section [loggers].

    Loggers that the file does not mention stay enabled.
    """
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
    # End the transaction of the queries above. If a transaction is open, Alembic assumes that the
    # caller will commit it, and does not commit.
    connection.commit()
    context.configure(
        connection=connection, transaction_per_migration=True, **_options(given, config)
    )
    if context.get_context().opts.get("dont_mutate"):  # `alembic current`, which only reads
        with context.begin_transaction():
            context.run_migrations()
        return
    with nullcontext() if locked else migration_lock(connection, name):
        goes_up = _goes_up()  # before the revisions run, because they change the current revision
        _prepare(connection, schema, config, goes_up)
        with context.begin_transaction():
            context.run_migrations()
        if config is not None and goes_up:
            check_shape(connection, config)
            connection.commit()


def _prepare(
    connection: Connection, schema: str | None, config: SchemaConfig | None, goes_up: bool
) -> None:
    """Check that an existing table has the configured shape, and create the schema if needed."""
    if config is not None and goes_up:
        check_citus(connection, config)
        name = config.table_name
        if recorded_revision(connection, name, schema) is not None:
            check_shape(connection, config)
    if schema is not None and not inspect(connection).has_schema(schema):
        if not goes_up:
            raise MigrationError(f"there is no schema {schema!r}")
        connection.execute(CreateSchema(schema))  # for the version table
    connection.commit()


def _goes_up() -> bool:
    """Return True if Alembic was asked to upgrade to a revision.

    Return False for a downgrade (base, -n, an older revision) and for commands without a target.
    """
    migration = context.get_context()
    destination = migration.opts.get("destination_rev")  # missing for alembic check
    if isinstance(destination, tuple):
        (destination,) = destination or (None,)
    if destination in (None, "base") or str(destination).startswith("-"):
        return False
    heads = migration.get_current_heads()
    try:
        older = {script.revision for script in context.script.iterate_revisions(heads, "base")}
    except RevisionError:  # an unknown revision is recorded; Alembic will report it
        return True
    return destination not in older - set(heads)


def _run_offline(given: Mapping[str, Any]) -> None:
    _, schema = settings.table_name_and_schema(given)
    config = settings.resolve(given, None)
    context.configure(dialect_name="postgresql", literal_binds=True, **_options(given, config))
    with context.begin_transaction():
        if schema is not None:  # create the schema before the version table in it
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
        "include_object": _include_object,
        "include_schemas": schema is not None,
        "include_name": lambda named, kind, _: kind != "schema" or named in (None, schema),
    }


def _include_object(obj: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Hide from autogenerate the tables that only the database has: it would drop them."""
    return not (kind == "table" and reflected and other is None)
