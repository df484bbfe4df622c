"""Upgrade, inspect and check the schema of a chunk table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import alembic.command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cenote.config import SchemaConfig
from cenote.inspection import settings
from cenote.inspection.checks.findings import Finding, subject_of
from cenote.inspection.checks.table import (
    embedding_finding,
    extension_finding,
    findings,
    legacy_finding,
    revision_finding,
    shard_findings,
    table_finding,
    unrecorded_finding,
)
from cenote.inspection.citus import read_shards
from cenote.inspection.live_table import (
    LiveTable,
    chunk_table_settings,
    read_table,
    schemas_with,
)
from cenote.migrate.connection import own_connection, translated
from cenote.migrate.ownership import Owner, has_application_history, read_owner
from cenote.migrate.versions import (
    head_revision,
    known_revisions,
    recorded_revision,
    script_location,
)
from cenote.postgres.extension import EXTENSION_QUERY
from cenote.postgres.locks import migration_lock, process_lock

# -- public functions ------------------------------------------------------------------------------


async def upgrade(
    database: AsyncEngine | AsyncConnection, config: SchemaConfig, revision: str = "head"
) -> None:
    """Upgrade the chunk table to a revision. Safe to call from many tasks, threads and processes.

    Args:
        database: Engine, or connection without an open transaction. Of an engine's pool, one
            connection is used. Each revision commits its own transaction. To migrate inside a
            transaction of the application, see `cenote.operations`.
        config: Settings of the table.
        revision: Target, in the notation of Alembic's command line.

    Raises:
        MigrationError: The database raised an error, the table exists in another shape, or another
            schema change held the lock until the time limit.
        ConfigurationError: The configuration is invalid.
    """
    async with own_connection(database) as connection:
        await connection.run_sync(_upgrade, config, revision)


async def current(database: AsyncEngine | AsyncConnection, config: SchemaConfig) -> str | None:
    """Return the revision that the database records for the table, or None.

    Raises:
        MigrationError: The database raised an error.
    """
    config = translated(database, config)
    async with own_connection(
        database, "the revision cannot be read", reads_only=True
    ) as connection:
        return await connection.run_sync(recorded_revision, config.table_name, config.schema)


async def check(
    database: AsyncEngine | AsyncConnection, config: SchemaConfig, *, user_model: bool = False
) -> list[Finding]:
    """Return the differences between the database and the configuration, most severe first.

    The check compares the extension, the revision, the columns, full text, row-level security, the
    distribution, the primary key, and the indexes with their operator classes and parameters. It
    also compares the number of partitions, if it is configured, and checks that the partitions
    cover every namespace. Only the catalogue and the version table are read.

    If no version table of cenote exists for the table, the table belongs to the application, and
    no revision is expected.

    Args:
        database: Engine, or connection without an open transaction. A ``schema_translate_map`` of
            its options translates the schema.
        config: Expected settings.
        user_model: True if the table belongs to a user model, which the application's migrations
            create instead of cenote's revisions.

    Raises:
        MigrationError: The database raised an error.
    """
    config = translated(database, config)
    async with own_connection(database, "the schema cannot be read", reads_only=True) as connection:
        return await connection.run_sync(run_checks, settings.explicit_settings(config), user_model)


def _upgrade(connection: Connection, config: SchemaConfig, revision: str) -> None:
    with migration_lock(connection, config.table_name), process_lock(connection):
        alembic_config = Config(
            attributes={"connection": connection, "cenote": settings.explicit_settings(config)}
        )
        alembic_config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
        alembic.command.upgrade(alembic_config, revision)


# -- checks ----------------------------------------------------------------------------------------


def run_checks(
    connection: Connection, given: Mapping[str, Any], user_model: bool = False
) -> list[Finding]:
    """Return the findings of `check`.

    Args:
        connection: Connection without an open transaction.
        given: Explicit settings; the live table supplies the others.
        user_model: True if the table belongs to a user model.
    """
    name, schema_name = settings.table_name_and_schema(given)
    subject = subject_of(name, schema_name)
    installed = connection.execute(EXTENSION_QUERY).one_or_none()
    live = read_table(connection, name, schema_name)
    owner = read_owner(connection, name, schema_name, live)
    if owner == "application" and live is not None and not user_model:
        # The parameters of the application's model are not known, so the live ones are expected.
        given = {**live.parameters, **given}
    config = settings.resolve(given, live)
    recorded = recorded_revision(connection, name, schema_name)
    found = [extension_finding(None if installed is None else installed.extversion, given)]
    if live is None or live.column_type is None or config is None:
        found.append(
            table_finding(
                subject,
                live,
                recorded,
                given,
                schemas_with(connection, name) if live is None else (),
                () if user_model or recorded else chunk_table_settings(connection),
                user_model=user_model,
                has_application=has_application_history(connection, name),
            )
        )
        return [finding for finding in found if finding is not None]
    if owner == "legacy" and not user_model:
        # The upgrade mends all other differences, and expects to find them.
        dimensions = embedding_finding(subject, live.column_type, live.dimensions, config)
        found += [legacy_finding(subject, head_revision(), given), dimensions]
        return [finding for finding in found if finding is not None]
    if not user_model:
        found.append(_revision_finding(connection, owner, recorded, live, given))
    is_applications = user_model or owner == "application"
    found += findings(live, config, is_applications=is_applications)
    if live.shards is not None:
        shards = read_shards(connection, live.name, live.schema)
        found += shard_findings(shards, config)
    return [finding for finding in found if finding is not None]


def _revision_finding(
    connection: Connection,
    owner: Owner,
    recorded: str | None,
    live: LiveTable,
    given: Mapping[str, Any],
) -> Finding | None:
    """Return the finding for the recorded revision. An application's table needs none."""
    subject = subject_of(*settings.table_name_and_schema(given))
    head = head_revision()
    if recorded is not None:
        return revision_finding(subject, recorded, known_revisions(), head, given)
    if owner == "unrecorded":
        has_application = has_application_history(connection, live.name)
        return unrecorded_finding(subject, live, head, given, has_application=has_application)
    return None


def note_on_owner(connection: Connection, given: Mapping[str, Any]) -> str | None:
    """Return a note for a chunk table of the application: without its model, less is checked."""
    name, schema_name = settings.table_name_and_schema(given)
    live = read_table(connection, name, schema_name)
    if live is None or live.column_type is None:
        return None
    if read_owner(connection, name, schema_name, live) != "application":
        return None
    return (
        f"{subject_of(name, schema_name)} belongs to your application, because no revision of "
        "cenote is recorded for it. To compare it with your model, pass --model app.models:Passage"
    )
