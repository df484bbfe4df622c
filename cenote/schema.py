"""Running cenote's Alembic revisions: from code, from alembic's own command line, offline.

The revisions live in ``alembic/`` of a checkout and inside the package of an installed wheel.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import logging.config
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import alembic.command
from alembic import context, op
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateSchema

from cenote import drift
from cenote.config import SchemaConfig
from cenote.connections import (
    DRIVER_ERRORS,
    EXTENSION_QUERY,
    OLDEST_PGVECTOR,
    create_engine,
    driver_error,
    is_lost,
    parse_version,
    too_old,
)
from cenote.ddl import CreateExtension
from cenote.errors import CenoteError, ConfigurationError, MigrationError
from cenote.orm import chunk_table

LOCK_TIMEOUT_SECONDS = 300.0
"""How long a migration waits for another one of the same table."""

LOCK_KEY = int.from_bytes(hashlib.sha256(b"cenote migrations").digest()[:8], "big", signed=True)
"""The advisory lock that a migration holds."""

_POLL_SECONDS = 0.2

_logger = logging.getLogger(__name__)

# alembic.context and alembic.op are globals of the process: one migration at a time may run in it.
_alembic_lock = threading.Lock()


# -- from code -------------------------------------------------------------------------------------


async def upgrade(engine: AsyncEngine, config: SchemaConfig, revision: str = "head") -> None:
    """Bring the chunk table to a revision. Safe to call from many tasks, threads and processes.

    Args:
        engine: the database; one connection is taken from its pool.
        config: what the table shall look like.
        revision: as alembic's command line takes it.

    Raises:
        MigrationError: the database refused, or another migration held the lock for too long.
        ConfigurationError: the configuration cannot work.
    """
    with _own_errors():
        async with engine.connect() as connection:
            connection = await connection.execution_options(isolation_level="READ COMMITTED")
            await connection.run_sync(_upgrade, config, revision)


def _upgrade(connection: Connection, config: SchemaConfig, revision: str) -> None:
    with _migration_lock(connection, config), _process_lock(connection):
        settings = Config(attributes={"connection": connection, "cenote": config})
        settings.set_main_option("script_location", str(script_location()).replace("%", "%%"))
        alembic.command.upgrade(settings, revision)


def script_location() -> Path:
    """The folder of the revisions: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "migrations"
    return packaged if packaged.is_dir() else package.parent / "alembic"


# -- from alembic's command line -------------------------------------------------------------------


def run_environment(environ: Mapping[str, str]) -> None:
    """What ``env.py`` does: run the revisions that alembic was asked for.

    Connection and configuration are those that `upgrade` hands over. On the command line they come
    from ``-x name=value`` and then from the environment, where each field of `SchemaConfig` is
    ``CENOTE_<NAME>`` and the database is ``CENOTE_DATABASE_URL``.
    """
    attributes = context.config.attributes
    if "cenote" in attributes:
        _run_online(attributes["connection"], attributes["cenote"])
        return
    _configure_logging()
    try:
        settings = _settings(context.get_x_argument(as_dictionary=True), environ)
        database_url = settings.pop("database_url", None)
        config = config_from_settings(settings)
        if context.is_offline_mode():
            _run_offline(config)
        elif database_url is None:
            raise ConfigurationError(
                "which database? Set CENOTE_DATABASE_URL=postgresql://...", setting="database_url"
            )
        else:
            asyncio.run(_run_with_own_engine(database_url, config))
    except CenoteError as error:  # alembic prints a CommandError as a line, not as a traceback
        raise CommandError(str(error)) from error


def config_from_settings(settings: Mapping[str, str]) -> SchemaConfig:
    """A `SchemaConfig` from texts, as the command line and the environment give them.

    Raises:
        ConfigurationError: the dimensions are missing, a name is unknown or a value cannot work.
    """
    if "dimensions" not in settings:
        raise ConfigurationError(
            "how many dimensions have the vectors? Say -x dimensions=384 or set "
            "CENOTE_DIMENSIONS=384",
            setting="dimensions",
        )
    return SchemaConfig(**{name: _number(name, value) for name, value in settings.items()})


def _number(name: str, value: str) -> Any:
    if name not in {"dimensions", "hnsw_m", "hnsw_ef_construction", "partitions"}:
        return value
    try:
        return int(value)
    except ValueError:
        raise ConfigurationError(
            f"{name} must be an integer, not {value!r}", setting=name
        ) from None


def _settings(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    names = [field.name for field in fields(SchemaConfig)] + ["database_url"]
    if unknown := sorted(set(arguments) - set(names)):
        raise ConfigurationError(
            f"-x {unknown[0]} is none of cenote's settings, which are {', '.join(names)}",
            setting=unknown[0],
        )
    settings = {}
    for name in names:
        value = arguments.get(name) or environ.get("CENOTE_" + name.upper())
        if value:
            settings[name] = str(value)
    return settings


def _configure_logging() -> None:
    """Log as the ini file says, where there is one that does, and silence nobody else's loggers."""
    file = context.config.config_file_name
    if (
        file is not None
        and Path(file).is_file()
        and context.config.file_config.has_section("loggers")
    ):
        logging.config.fileConfig(file, disable_existing_loggers=False)


# -- running the revisions -------------------------------------------------------------------------


async def _run_with_own_engine(database_url: str, config: SchemaConfig) -> None:
    engine = create_engine(database_url, pool_size=1)
    try:
        with _own_errors():
            async with engine.connect() as connection:
                await connection.run_sync(_run_locked, config)
    finally:
        await engine.dispose()


def _run_locked(connection: Connection, config: SchemaConfig) -> None:
    with _migration_lock(connection, config):
        _run_online(connection, config)


def _run_online(connection: Connection, config: SchemaConfig) -> None:
    if config.schema is not None and not inspect(connection).has_schema(config.schema):
        connection.execute(CreateSchema(config.schema))
    # Alembic takes an open transaction for the caller's and would not commit its own work.
    connection.commit()
    context.configure(connection=connection, transaction_per_migration=True, **_options(config))
    with context.begin_transaction():
        context.run_migrations()
    _refuse_other_shape(connection, config)


def _refuse_other_shape(connection: Connection, config: SchemaConfig) -> None:
    """Say so if the table is there in another shape: alembic would find nothing to do."""
    live = connection.execute(drift.live_shape(config)).one_or_none()
    connection.commit()
    if live is not None:
        difference = drift.embedding_difference(live, config)
        difference = difference or drift.partition_difference(live, config)
        if difference is not None:
            raise MigrationError(difference)


def _run_offline(config: SchemaConfig) -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, **_options(config))
    with context.begin_transaction():
        if config.schema is not None:  # before the version table, which is in it
            context.execute(CreateSchema(config.schema, if_not_exists=True))
        context.run_migrations()


def _options(config: SchemaConfig) -> dict[str, Any]:
    return {
        "cenote": config,  # for revision_config()
        "target_metadata": chunk_table(config).metadata,
        "include_object": _is_ours,
        "version_table": version_table(config),
        "version_table_schema": config.schema,
    }


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turn what alembic, SQLAlchemy and the driver raise into errors of cenote's tree.

    The server's words are kept: unlike those about a chunk, they quote nobody's data.
    """
    try:
        yield
    except CommandError as error:
        raise MigrationError(str(error)) from error
    except (SQLAlchemyError, OSError, *DRIVER_ERRORS) as error:
        cause = driver_error(error)
        action = "cannot connect to Postgres" if is_lost(cause) else "the migration failed"
        raise MigrationError(f"{action}: {type(cause).__name__}: {cause}") from cause


def _is_ours(obj: Any, name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Keeps autogenerate from dropping what else the database holds, and our partitions."""
    return not (kind == "table" and reflected and counterpart is None)


def version_table(config: SchemaConfig) -> str:
    """The name of the table that holds the revision of a chunk table."""
    return config.table_name + "_alembic_version"


# -- for the revisions -----------------------------------------------------------------------------


def revision_config() -> SchemaConfig:
    """The configuration that the running revision is to apply."""
    config: SchemaConfig = op.get_context().opts["cenote"]
    return config


def refuse_existing_table(config: SchemaConfig) -> None:
    """Refuse to create a chunk table over another table (offline, Postgres itself will)."""
    if op.get_context().as_sql:
        return
    if inspect(op.get_bind()).has_table(config.table_name, schema=config.schema):
        raise MigrationError(
            f"table {config.table_name!r} exists already and was not made by these revisions; "
            "choose another table_name, or move it away"
        )


def ensure_extension(config: SchemaConfig) -> None:
    """Create the extension if it is missing; refuse one that is too old or out of sight.

    One that is there is left as it is, so that a role without the right to create it can migrate.
    """
    if op.get_context().as_sql:
        _create_extension(config)
        return
    bind = op.get_bind()
    if bind.execute(EXTENSION_QUERY).first() is None:
        _create_extension(config)
    installed = bind.execute(EXTENSION_QUERY).one()
    if parse_version(installed.extversion) < OLDEST_PGVECTOR:
        raise MigrationError(too_old(installed.extversion))
    if bind.scalar(select(func.to_regtype("vector"))) is None:
        raise MigrationError(
            f"the vector extension is in schema {installed.nspname!r}, which is not on the "
            "search_path; add it there (ALTER DATABASE ... SET search_path = ...)"
        )


def _create_extension(config: SchemaConfig) -> None:
    if config.extension_schema is not None:
        op.execute(CreateSchema(config.extension_schema, if_not_exists=True))
    op.execute(CreateExtension(config.extension_schema))


# -- locks -----------------------------------------------------------------------------------------


@contextmanager
def _migration_lock(connection: Connection, config: SchemaConfig) -> Iterator[None]:
    """Hold the lock of this database's cenote migrations for the session.

    One lock for all tables, since the extension and the schema are the database's.
    The lock is polled: a session that waits inside pg_advisory_lock() holds a snapshot, for which
    a concurrent index build would wait in turn. It ends with the session, so that a killed holder
    blocks nobody.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    waiting = False
    while not _scalar(connection, select(func.pg_try_advisory_lock(LOCK_KEY))):
        if time.monotonic() > deadline:
            raise MigrationError(
                f"another cenote migration of this database did not end within "
                f"{LOCK_TIMEOUT_SECONDS:.0f} seconds; table {config.table_name!r} was not migrated"
            )
        if not waiting:
            _logger.info(
                "waiting to migrate table %s: another cenote migration of this database runs",
                config.table_name,
            )
            waiting = True
        _sleep(connection)
    try:
        yield
    finally:
        if not connection.closed and not connection.invalidated:
            connection.rollback()
            _scalar(connection, select(func.pg_advisory_unlock(LOCK_KEY)))


@contextmanager
def _process_lock(connection: Connection) -> Iterator[None]:
    """Hold this process' use of alembic. Polled, since its holder may be a task of this thread."""
    while not _alembic_lock.acquire(blocking=False):
        _sleep(connection)
    try:
        yield
    finally:
        _alembic_lock.release()


def _sleep(connection: Connection) -> None:
    """Sleep on the server: that suspends a task, and a thread, whichever this runs in."""
    connection.execute(select(func.pg_sleep(_POLL_SECONDS)))
    connection.commit()


def _scalar(connection: Connection, statement: Any) -> Any:
    value = connection.scalar(statement)
    connection.commit()
    return value
