"""Run cenote's revisions, or single steps of them, inside an application's revision."""

from __future__ import annotations

import logging
from dataclasses import replace

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, exists, inspect, literal, select
from sqlalchemy.schema import CreateSchema

from cenote.config import SchemaConfig
from cenote.inspection.checks.findings import subject_of
from cenote.inspection.checks.table import (
    check_can_secure,
    distribution_finding,
    embedding_finding,
    metric_finding,
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
from cenote.inspection.live_table import read_table
from cenote.inspection.settings import explicit_settings
from cenote.migrate.revision_context import (
    check_extension,
    frozen_settings,
    has_extension,
    table_names,
)
from cenote.migrate.versions import (
    RefusedRevisionError,
    known_revisions,
    recorded_revision,
    scripts_between,
    version_table,
    version_table_clause,
)
from cenote.postgres import ddl
from cenote.postgres.ddl import partition_name, table_of
from cenote.postgres.row_security import (
    disable_row_security_statements,
    enable_row_security_statements,
)

_logger = logging.getLogger(__name__)

_BEFORE_FULL_TEXT = {"cenote_0001"}
_BEFORE_ROW_SECURITY = {"cenote_0001", "cenote_0002"}
_BEFORE_DISTRIBUTION = {"cenote_0001", "cenote_0002", "cenote_0003"}
"""Revisions at which a table cannot have the feature yet: a later revision adds it."""


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
    scripts = scripts_between(start, to)
    with frozen_settings(config):
        recorded = start if op.get_context().as_sql else _recorded(config)
        done = {script.revision for script in scripts_between("base", recorded)}
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
    if not op.get_context().as_sql:
        # `cenote repartition` may have changed the number of partitions since.
        check_shape(op.get_bind(), replace(config, partitions=None))


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
    scripts = scripts_between(to, start)
    with frozen_settings(config):
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

    This makes an exact search several times as fast. Existing rows stay as they are until they are
    written again.

    Args:
        table_name: Table to change, with its partitions if it has any already.
        schema: Schema of the table.
    """
    op.execute(ddl.store_inline(table_name, schema))


def create_partitions(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Create the hash partitions of a chunk table that the revision has just created.

    Dropping the table drops its partitions.

    Args:
        table_name: Table, created with ``postgresql_partition_by="HASH (namespace)"``.
        partitions: Number of partitions.
        schema: Schema of the table.
    """
    for remainder in range(partitions):
        op.execute(ddl.create_hash_partition(table_name, schema, partitions, remainder))


def secure_rows(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Turn on row-level security for a chunk table and its partitions.

    A transaction then reads and writes only the rows of the namespace that its setting
    ``cenote.namespace`` holds. Without the setting it sees no rows.

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


def distribute_chunks(config: SchemaConfig) -> None:
    """Distribute a chunk table by namespace over the nodes of a Citus cluster, with its rows.

    A table that is already distributed is left as it is. The table may belong to a user model.

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
        check_citus(op.get_bind(), config)


def _ensure_schema(config: SchemaConfig) -> None:
    """Create the schema of the table if it is missing.

    An existing schema is left as it is: CREATE SCHEMA IF NOT EXISTS needs the right to create.
    """
    if config.schema is None:
        return
    if op.get_context().as_sql or not inspect(op.get_bind()).has_schema(config.schema):
        op.execute(CreateSchema(config.schema, if_not_exists=True))


def _recorded(config: SchemaConfig) -> str:
    """Return the revision that the database records, ``"base"`` for none."""
    recorded = recorded_revision(op.get_bind(), config.table_name, config.schema)
    if recorded is not None and recorded not in known_revisions():
        raise RefusedRevisionError(
            f"table {config.table_name!r} is at {recorded}, which this version of cenote does not "
            "know; install the version of cenote that created it, or a newer one"
        )
    return recorded or "base"


def _record(start: str, to: str) -> None:
    """Record the step between two revisions in cenote's version table, as Alembic would."""
    name, schema = table_names()
    versions = version_table_clause(version_table(name), schema)
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


# -- checks around the revisions -------------------------------------------------------------------


def check_citus(connection: Connection, config: SchemaConfig) -> None:
    """Check that the citus extension is installed if `distribution` is set.

    Raises:
        MigrationError: The extension is missing.
    """
    if config.distribution is not None and not is_installed(connection):
        raise RefusedRevisionError(
            "distribution='citus' needs the citus extension in this database: put citus into "
            "shared_preload_libraries, run CREATE EXTENSION citus and add the nodes, or leave "
            "distribution out"
        )


def check_shape(connection: Connection, config: SchemaConfig) -> None:
    """Check that an existing table has the configured shape.

    Without this check, Alembic would run no revision for such a table, and raise no error.

    Raises:
        MigrationError: The table's dimensions, column type, partitions, full text, row-level
            security or distribution differ from the configuration, or the table is missing although
            a revision is recorded.
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
        ) or metric_finding(subject, live.comment, config)
        finding = finding or partitions_finding(subject, live, config)
        if finding is None and (live.text_search or recorded not in _BEFORE_FULL_TEXT):
            finding = text_search_finding(subject, live.text_search, config, live.configurations)
        if finding is None and (live.row_security or recorded not in _BEFORE_ROW_SECURITY):
            finding = row_security_finding(subject, live, config)
        if finding is None and recorded not in _BEFORE_DISTRIBUTION:
            finding = distribution_finding(subject, live, config)
    if finding is not None:
        raise RefusedRevisionError(str(finding))
