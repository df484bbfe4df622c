"""Operations for Alembic revisions: an application's, and cenote's own.

A revision of the application can run cenote's revisions under its own ``op``, with settings that
are written in that file::

    from cenote import SchemaConfig
    from cenote.operations import downgrade_chunks, upgrade_chunks

    CHUNKS = SchemaConfig(dimensions=384)


    def upgrade() -> None:
        upgrade_chunks(CHUNKS, start="base", to="cenote_0004")


    def downgrade() -> None:
        downgrade_chunks(CHUNKS, start="cenote_0004", to="base")

``cenote host-revision`` writes that file. `upgrade_chunks` records the revision in cenote's own
version table, as `cenote.schema.upgrade` does, so that each of the two skips what the other has
already done.

cenote's own revisions hold their DDL themselves. They may call these functions only, which return
settings and facts, or check them: `given_config`, `live_config`, `table_names`, `has_extension`,
`check_extension`, `has_text_search`, `check_row_security_allowed`, `live_partitions` and
`is_distributed`. A test pins the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, column, exists, func, inspect, literal, select, table
from sqlalchemy.schema import CreateSchema

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError, MigrationError
from cenote.inspection.checks.findings import subject_of
from cenote.inspection.checks.table import (
    check_can_secure,
    distribution_finding,
    embedding_finding,
    partitions_finding,
    row_security_finding,
    table_finding,
    text_search_finding,
)
from cenote.inspection.citus import (
    distribute_statements,
    is_installed,
    truncate_local_data_statement,
)
from cenote.inspection.live_table import LiveTable, read_table
from cenote.inspection.settings import HOW_TO_SET_DIMENSIONS, explicit_settings
from cenote.postgres import ddl
from cenote.postgres.ddl import partition_name, qualified, table_of
from cenote.postgres.extension import (
    EXTENSION_QUERY,
    OLDEST_PGVECTOR,
    outdated_message,
    parse_version,
)
from cenote.postgres.row_security import (
    disable_row_security_statements,
    enable_row_security_statements,
)

__all__ = [
    "create_partitions",
    "distribute",
    "downgrade_chunks",
    "ensure_extension",
    "open_rows",
    "secure_rows",
    "store_inline",
    "upgrade_chunks",
]

_logger = logging.getLogger(__name__)

_BEFORE_FULL_TEXT = {"cenote_0001"}
_BEFORE_ROW_SECURITY = {"cenote_0001", "cenote_0002"}
_BEFORE_DISTRIBUTION = {"cenote_0001", "cenote_0002", "cenote_0003"}
"""Revisions at which a table cannot have the feature yet: a later revision adds it."""

_frozen: ContextVar[SchemaConfig | None] = ContextVar("cenote_frozen", default=None)


class RefusedRevisionError(MigrationError, CommandError):
    """A `MigrationError` in a running revision, which Alembic prints without a traceback."""


class UnconfiguredRevisionError(ConfigurationError, CommandError):
    """A `ConfigurationError` in a running revision, which Alembic prints without a traceback."""


def script_location() -> Path:
    """Return the folder of the revisions: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "migrations"
    return packaged if packaged.is_dir() else package.parent / "alembic"


def version_table(table_name: str) -> str:
    """Return the name of the table that holds the revision of a chunk table."""
    return table_name + "_alembic_version"


# -- for an application's revisions ----------------------------------------------------------------


def upgrade_chunks(config: SchemaConfig, *, start: str, to: str) -> None:
    """Run cenote's revisions after `start` up to `to` under the ``op`` of the running revision.

    Revisions that the database records already are skipped.

    Args:
        config: Settings of the table, written out where this function is called.
        start: Revision of the table before, ``"base"`` if there is no table.
        to: Revision of the table afterwards.

    Raises:
        MigrationError: A revision is unknown, the table is not at `start`, or the table exists in
            another shape.
    """
    scripts = _scripts(start, to)
    with _settings_frozen(config):
        recorded = start if op.get_context().as_sql else _recorded(config)
        done = {script.revision for script in _scripts("base", recorded)}
        if start != "base" and start not in done:
            raise RefusedRevisionError(
                f"table {config.table_name!r} is at {recorded}, and this revision upgrades it from "
                f"{start}; run the revisions before this one"
            )
        _require_citus(config)
        _ensure_schema(config)
        for script in scripts:
            if script.revision not in done:
                _logger.info("table %s: upgrade to %s", config.table_name, script.revision)
                script.module.upgrade()
        if to not in done:
            _record(recorded, to)
    if not op.get_context().as_sql:  # the number of partitions may have been changed since
        refuse_other_shape(op.get_bind(), replace(config, partitions=None))


def downgrade_chunks(config: SchemaConfig, *, start: str, to: str) -> None:
    """Run the downgrades of cenote's revisions from `start` down to `to`.

    Down to ``"base"``, **the table is dropped with all its rows**.

    Args:
        config: Settings of the table, written out where this function is called.
        start: Revision of the table before.
        to: Revision of the table afterwards, ``"base"`` for no table.

    Raises:
        MigrationError: A revision is unknown, or the table is not at `start`.
    """
    scripts = _scripts(to, start)
    with _settings_frozen(config):
        recorded = start if op.get_context().as_sql else _recorded(config)
        if recorded != start:
            raise RefusedRevisionError(
                f"table {config.table_name!r} is at {recorded}, and this revision downgrades it "
                f"from {start}"
            )
        for script in reversed(scripts):
            _logger.info("table %s: downgrade from %s", config.table_name, script.revision)
            script.module.downgrade()
        _record(start, to)


def ensure_extension(schema: str | None = None) -> None:
    """Create the vector extension if it is missing, and check that it can be used.

    An existing extension is left as it is, so that a role without the right to create extensions
    can migrate.

    Args:
        schema: Schema to create the extension in, which is created too if it is missing. It must
            be on the search_path. Postgres chooses the schema if None.

    Raises:
        MigrationError: The extension is too old, or its schema is not on the search_path.
    """
    if not has_extension():
        _create_extension(schema)
    check_extension()


def _create_extension(schema: str | None) -> None:
    if schema is not None:
        op.execute(CreateSchema(schema, if_not_exists=True))
    op.execute(ddl.create_extension(schema))


def store_inline(table_name: str, *, schema: str | None = None) -> None:
    """Keep the embeddings, ids and metadata of a chunk table in its rows, not in the TOAST table.

    This makes an exact search several times as fast; see `cenote.postgres.ddl.store_inline`. Existing rows
    stay as they are until they are written again.

    Args:
        table_name: Table to change, with its partitions if it has any already.
        schema: Schema of the table.
    """
    op.execute(ddl.store_inline(table_name, schema))


def create_partitions(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Create the hash partitions of a chunk table that the revision has just created.

    Dropping the table drops them.

    Args:
        table_name: Table, created with ``postgresql_partition_by="HASH (namespace)"``.
        partitions: Number of partitions.
        schema: Schema of the table.
    """
    for remainder in range(partitions):
        op.execute(ddl.create_hash_partition(table_name, schema, partitions, remainder))


def secure_rows(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Turn on row-level security for a chunk table and its partitions; see `cenote.postgres.row_security`.

    Args:
        table_name: Table to secure.
        partitions: Number of its partitions, 0 for a plain table.
        schema: Schema of the table.

    Raises:
        MigrationError: The table has row-level security or policies that cenote did not create, or
            it is distributed.
    """
    tables = _with_partitions(table_name, partitions)
    if not op.get_context().as_sql:
        live = read_table(op.get_bind(), table_name, schema)
        if live is not None:
            check_can_secure(live)
            tables = [live.name, *live.partitions]
    for statement in enable_row_security_statements(tables, schema):
        op.execute(statement)


def open_rows(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Turn off row-level security for a chunk table and its partitions.

    Args:
        table_name: Table to open.
        partitions: Number of its partitions, 0 for a plain table.
        schema: Schema of the table.
    """
    for statement in disable_row_security_statements(
        _with_partitions(table_name, partitions), schema
    ):
        op.execute(statement)


def distribute(config: SchemaConfig) -> None:
    """Distribute a chunk table by namespace over the nodes of a Citus cluster, with its rows.

    A table that is already distributed is left as it is. The table may be that of a user model.

    Args:
        config: Names of the table, which must be a plain one, and settings of its distribution.

    Raises:
        MigrationError: The citus extension is missing.
    """
    _require_citus(config)
    statements = [*distribute_statements(config)]
    if not op.get_context().as_sql:
        live = read_table(op.get_bind(), config.table_name, config.schema)
        if live is not None and live.shards is not None:
            return
        has_rows = exists(
            select(literal(1)).select_from(table_of(config.table_name, config.schema))
        )
        if op.get_bind().scalar(select(has_rows)):
            statements.append(truncate_local_data_statement(config))
    for statement in statements:
        op.execute(statement)


def _with_partitions(table_name: str, partitions: int) -> list[str]:
    return [table_name, *(partition_name(table_name, number) for number in range(partitions))]


def _require_citus(config: SchemaConfig) -> None:
    if not op.get_context().as_sql:
        refuse_without_citus(op.get_bind(), config)


def _ensure_schema(config: SchemaConfig) -> None:
    """Create the schema of the table if it is missing.

    An existing schema is left as it is: CREATE SCHEMA IF NOT EXISTS needs the right to create.
    """
    if config.schema is None:
        return
    if op.get_context().as_sql or not inspect(op.get_bind()).has_schema(config.schema):
        op.execute(CreateSchema(config.schema, if_not_exists=True))


# -- revisions and the version table ---------------------------------------------------------------


def recorded_revision(connection: Connection, table_name: str, schema: str | None) -> str | None:
    """Return the revision that the database records for a chunk table, or None."""
    name = version_table(table_name)
    if connection.scalar(select(func.to_regclass(qualified(name, schema)))) is None:
        return None
    return connection.scalar(select(_versions(name, schema).c.version_num))


def head_revision() -> str:
    """Return the newest of cenote's revisions."""
    head = _script_directory().get_current_head()
    assert head is not None
    return head


def known_revisions() -> set[str]:
    """Return the ids of cenote's revisions."""
    return {script.revision for script in _script_directory().walk_revisions()}


def check_range(start: str, to: str) -> None:
    """Check that there are revisions after `start` up to `to`.

    Raises:
        MigrationError: A revision is unknown, or `to` does not come after `start`.
    """
    if not _scripts(start, to):
        raise RefusedRevisionError(f"cenote has no revisions after {start} up to {to}")


def _recorded(config: SchemaConfig) -> str:
    """Return the revision that the database records, ``"base"`` for none."""
    recorded = recorded_revision(op.get_bind(), config.table_name, config.schema)
    if recorded is not None and recorded not in known_revisions():
        raise RefusedRevisionError(
            f"table {config.table_name!r} is at {recorded}, which this version of cenote does not "
            "know; install the version of cenote that created it, or a newer one"
        )
    return recorded or "base"


def _script_directory() -> ScriptDirectory:
    return ScriptDirectory(str(script_location()))


def _scripts(lower: str, upper: str) -> list[Script]:
    """Return the revisions after `lower` up to `upper`, oldest first."""
    try:
        newest_first = list(_script_directory().iterate_revisions(upper, lower))
    except (CommandError, RevisionError) as error:
        raise RefusedRevisionError(f"cenote's revisions: {error}") from error
    return newest_first[::-1]


@contextmanager
def _settings_frozen(config: SchemaConfig) -> Iterator[None]:
    token = _frozen.set(config)
    try:
        yield
    finally:
        _frozen.reset(token)


def _record(start: str, to: str) -> None:
    """Record the step between two revisions in cenote's version table, as Alembic would."""
    name, schema = table_names()
    versions = _versions(version_table(name), schema)
    if to == "base":
        op.drop_table(versions.name, schema=schema)
    elif start == "base":
        op.create_table(
            versions.name,
            sa.Column("version_num", sa.String(32), nullable=False),
            sa.PrimaryKeyConstraint("version_num", name=versions.name + "_pkc"),
            schema=schema,
            if_not_exists=True,
        )
        op.execute(versions.insert().values(version_num=to))
    else:
        op.execute(versions.update().values(version_num=to))


def _versions(name: str, schema: str | None) -> sa.TableClause:
    return table(name, column("version_num", sa.String), schema=schema)


# -- for cenote's revisions ------------------------------------------------------------------------


def given_config() -> SchemaConfig:
    """Return the settings of a table that is to be created. For the first revision.

    Raises:
        ConfigurationError: `dimensions` is not set, or the revision runs in an environment that is
            not cenote's.
    """
    config = _frozen.get()
    if config is not None:
        return config
    options = op.get_context().opts
    if "cenote_table" not in options:
        raise UnconfiguredRevisionError(
            "cenote's revisions run in cenote's own environment only: remove cenote's folder from "
            "version_locations, and run cenote migrate, or write a revision of yours with cenote "
            "host-revision",
            setting="version_locations",
        )
    config = options["cenote"]
    if config is None:
        raise UnconfiguredRevisionError(HOW_TO_SET_DIMENSIONS, setting="dimensions")
    assert isinstance(config, SchemaConfig)
    return config


def live_config() -> SchemaConfig:
    """Return the settings of the table as it is. For every later revision.

    Dimensions, column type, partitions and HNSW parameters are those of the live table, even if
    the configuration has changed since. The same holds for full text, row-level security and a
    distribution if the table has them; otherwise they are those of the configuration. Offline, all
    settings are those of the configuration.
    """
    names = table_names()
    live = _live_table()
    if live is None or live.dimensions is None:
        return given_config()
    settings: dict[str, Any] = {"table_name": names[0], "schema": names[1]}
    if live.text_search is None:
        settings["text_search"] = given_config().text_search
    if not live.row_security:
        settings["row_security"] = given_config().row_security
    if live.shards is None and not live.partitioned:  # cenote distribute moves a partitioned table
        for name in ("distribution", "shard_count", "colocate_with"):
            settings[name] = getattr(given_config(), name)
    return SchemaConfig(**(live.settings | live.parameters | settings))


def table_names() -> tuple[str, str | None]:
    """Return the name and the schema of the chunk table."""
    options = op.get_context().opts
    if _frozen.get() is None and "cenote_table" in options:
        name, schema = options["cenote_table"]
        return name, schema
    config = given_config()
    return config.table_name, config.schema


def has_extension() -> bool:
    """Return whether the vector extension is installed; False offline."""
    if op.get_context().as_sql:
        return False
    return op.get_bind().execute(EXTENSION_QUERY).first() is not None


def check_extension() -> None:
    """Check that the vector extension is recent enough and on the search_path. Not offline.

    Raises:
        MigrationError: It is not.
    """
    if op.get_context().as_sql:
        return
    bind = op.get_bind()
    installed = bind.execute(EXTENSION_QUERY).one()
    if parse_version(installed.extversion) < OLDEST_PGVECTOR:
        raise RefusedRevisionError(outdated_message(installed.extversion))
    if bind.scalar(select(func.to_regtype("vector"))) is None:
        raise RefusedRevisionError(
            f"the vector extension is in schema {installed.nspname!r}, which is not on the "
            "search_path; add it there (ALTER DATABASE ... SET search_path = ...)"
        )


def has_text_search() -> bool:
    """Return whether the live table has full text that cenote created; False offline."""
    live = _live_table()
    return live is not None and live.text_search is not None


def check_row_security_allowed() -> None:
    """Check that row-level security can be turned on for the live table. Not offline.

    Raises:
        MigrationError: The table has policies that cenote did not create, or it is distributed.
    """
    live = _live_table()
    if live is not None:
        check_can_secure(live)


def live_partitions() -> tuple[str, ...]:
    """Return the names of the live table's partitions; none offline."""
    live = _live_table()
    return () if live is None else live.partitions


def is_distributed() -> bool:
    """Return whether Citus has distributed the live table; False offline."""
    live = _live_table()
    return live is not None and live.shards is not None


def _live_table() -> LiveTable | None:
    if op.get_context().as_sql:
        return None
    return read_table(op.get_bind(), *table_names())


# -- checks around the revisions -------------------------------------------------------------------


def refuse_without_citus(connection: Connection, config: SchemaConfig) -> None:
    """Check that the citus extension is installed if `distribution` is set.

    Raises:
        MigrationError: It is missing.
    """
    if config.distribution is not None and not is_installed(connection):
        raise RefusedRevisionError(
            "distribution='citus' needs the citus extension in this database: put citus into "
            "shared_preload_libraries, run CREATE EXTENSION citus and add the nodes, or leave "
            "distribution out"
        )


def refuse_other_shape(connection: Connection, config: SchemaConfig) -> None:
    """Check that an existing table has the configured shape: Alembic would find nothing to do.

    Raises:
        MigrationError: The table's dimensions, column type, partitions, full text, row-level
            security or distribution differ from the configuration, or the table is missing though
            its revision is recorded.
    """
    live = read_table(connection, config.table_name, config.schema)
    subject = subject_of(config.table_name, config.schema)
    recorded = recorded_revision(connection, config.table_name, config.schema)
    finding = None
    if live is None:
        if recorded is not None:
            finding = table_finding(subject, None, recorded, explicit_settings(config))
    elif live.column_type is not None:
        finding = embedding_finding(
            subject, live.column_type, live.dimensions, config
        ) or partitions_finding(subject, live, config)
        if finding is None and (live.text_search or recorded not in _BEFORE_FULL_TEXT):
            finding = text_search_finding(subject, live.text_search, config, live.configurations)
        if finding is None and (live.row_security or recorded not in _BEFORE_ROW_SECURITY):
            finding = row_security_finding(subject, live, config)
        if finding is None and recorded not in _BEFORE_DISTRIBUTION:
            finding = distribution_finding(subject, live, config)
    if finding is not None:
        raise RefusedRevisionError(str(finding))
