"""What revisions call: cenote's own, and a host's that carry cenote's table in the host's history.

A host's revision replays cenote's under its own ``op``, with settings frozen in that file::

    from cenote import SchemaConfig
    from cenote.operations import downgrade_chunks, upgrade_chunks

    CHUNKS = SchemaConfig(dimensions=384)


    def upgrade() -> None:
        upgrade_chunks(CHUNKS, start="base", to="cenote_0004")


    def downgrade() -> None:
        downgrade_chunks(CHUNKS, start="cenote_0004", to="base")

``cenote host-revision`` writes that file. What was replayed is recorded in cenote's own version
table, as `cenote.schema.upgrade` does: whichever way comes second finds what the first one did.
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

from cenote import ddl, drift
from cenote.catalog import read_table
from cenote.citus import (
    distribute_statements,
    is_installed,
    truncate_local_data_statement,
    undistribute_statement,
)
from cenote.config import SchemaConfig
from cenote.connections import EXTENSION_QUERY, OLDEST_PGVECTOR, parse_version, too_old
from cenote.ddl import (
    partition_name,
    qualified,
    table_of,
)
from cenote.errors import ConfigurationError, MigrationError
from cenote.policies import disable_row_security_statements, enable_row_security_statements
from cenote.settings import HOW_TO_SET_DIMENSIONS, given_in_code

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
"""Revisions of which a later one adds what is set."""

_frozen: ContextVar[SchemaConfig | None] = ContextVar("cenote_frozen", default=None)


class RefusedRevisionError(MigrationError, CommandError):
    """A `MigrationError` inside a running revision, which alembic prints without a traceback."""


class UnconfiguredRevisionError(ConfigurationError, CommandError):
    """A `ConfigurationError` inside a running revision, likewise."""


def script_location() -> Path:
    """The folder of the revisions: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "migrations"
    return packaged if packaged.is_dir() else package.parent / "alembic"


def version_table(table_name: str) -> str:
    """The name of the table that holds the revision of a chunk table."""
    return table_name + "_alembic_version"


# -- for a host's revision -------------------------------------------------------------------------


def upgrade_chunks(config: SchemaConfig, *, start: str, to: str) -> None:
    """Replay cenote's revisions after `start` up to `to` under the running revision's ``op``.

    What the database records as done already, by whichever way, is left as it is.

    Args:
        config: the settings, written out where this is called.
        start: the revision the table is at before, ``"base"`` for none.
        to: the revision it is at afterwards.

    Raises:
        MigrationError: a revision is unknown, the table is not at `start`, or it is there in
            another shape.
    """
    scripts = _scripts(start, to)
    with _settings_frozen(config):
        recorded = start if op.get_context().as_sql else _recorded(config)
        done = {script.revision for script in _scripts("base", recorded)}
        if start != "base" and start not in done:
            raise RefusedRevisionError(
                f"table {config.table_name!r} is at {recorded}, and this revision takes it from "
                f"{start}; run the ones before it"
            )
        require_distribution(config)
        ensure_schema(config)
        for script in scripts:
            if script.revision not in done:
                _logger.info("table %s: upgrade to %s", config.table_name, script.revision)
                script.module.upgrade()
        if to not in done:
            _record(recorded, to)
    if not op.get_context().as_sql:  # its partitions may have been changed since
        refuse_other_shape(op.get_bind(), replace(config, partitions=None))


def downgrade_chunks(config: SchemaConfig, *, start: str, to: str) -> None:
    """Replay the downgrades of cenote's revisions from `start` down to `to`.

    Down to ``"base"`` **the table is dropped with all its rows**.

    Args:
        config: the settings, written out where this is called.
        start: the revision the table is at before.
        to: the revision it is at afterwards, ``"base"`` for none.

    Raises:
        MigrationError: a revision is unknown, or the table is not at `start`.
    """
    scripts = _scripts(to, start)
    with _settings_frozen(config):
        recorded = start if op.get_context().as_sql else _recorded(config)
        if recorded != start:
            raise RefusedRevisionError(
                f"table {config.table_name!r} is at {recorded}, and this revision takes it down "
                f"from {start}"
            )
        for script in reversed(scripts):
            _logger.info("table %s: downgrade from %s", config.table_name, script.revision)
            script.module.downgrade()
        _record(start, to)


def record_branch(*, step: Any, **_: Any) -> None:
    """Record cenote's revisions when they are a branch of the host's history, too.

    An ``on_version_apply`` of alembic, among `cenote.autogenerate.hooks`. The host's own version
    table forgets a branch that another revision depends on.
    """
    revision = step.up_revision_id
    if str(revision).startswith("cenote_"):
        below = step.down_revision_ids[0] if step.down_revision_ids else "base"
        _record(*((below, revision) if step.is_upgrade else (revision, below)))


def ensure_extension(schema: str | None = None) -> None:
    """Create the vector extension if it is missing; refuse one that is too old or out of sight.

    One that is there is left as it is, so that a role without the right to create it can migrate.

    Args:
        schema: where to create it, and to create that if it is missing; it must be on the
            search_path. Postgres' own choice when None.

    Raises:
        MigrationError: the extension cannot serve.
    """
    if op.get_context().as_sql:
        _create_extension(schema)
        return
    bind = op.get_bind()
    if bind.execute(EXTENSION_QUERY).first() is None:
        _create_extension(schema)
    installed = bind.execute(EXTENSION_QUERY).one()
    if parse_version(installed.extversion) < OLDEST_PGVECTOR:
        raise RefusedRevisionError(too_old(installed.extversion))
    if bind.scalar(select(func.to_regtype("vector"))) is None:
        raise RefusedRevisionError(
            f"the vector extension is in schema {installed.nspname!r}, which is not on the "
            "search_path; add it there (ALTER DATABASE ... SET search_path = ...)"
        )


def _create_extension(schema: str | None) -> None:
    if schema is not None:
        op.execute(CreateSchema(schema, if_not_exists=True))
    op.execute(ddl.create_extension(schema))


def store_inline(table_name: str, *, schema: str | None = None) -> None:
    """Keep the embeddings, ids and metadata of a chunk table in its rows, not in the TOAST table.

    An exact search is several times as fast for it; see `cenote.ddl.store_inline`. Rows that are
    there already stay as they are until they are written again.

    Args:
        table_name: the table; its partitions, if it has some already, follow.
        schema: the schema of the table.
    """
    op.execute(ddl.store_inline(table_name, schema))


def create_partitions(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Create the hash partitions of a chunk table that the revision has just created.

    Dropping the table drops them.

    Args:
        table_name: the table, made with ``postgresql_partition_by="HASH (namespace)"``.
        partitions: how many.
        schema: the schema of the table.
    """
    for remainder in range(partitions):
        op.execute(ddl.create_hash_partition(table_name, schema, partitions, remainder))


def secure_rows(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Turn on the row-level security of a chunk table and its partitions; see `cenote.policies`.

    Args:
        table_name: the table.
        partitions: how many it has, 0 for a plain one.
        schema: the schema of the table.

    Raises:
        MigrationError: the table has row-level security of others.
    """
    tables = _with_partitions(table_name, partitions)
    if not op.get_context().as_sql:
        live = read_table(op.get_bind(), table_name, schema)
        if live is not None:
            drift.refuse_to_secure(live)
            tables = [live.name, *live.partitions]
    for statement in enable_row_security_statements(tables, schema):
        op.execute(statement)


def open_rows(table_name: str, partitions: int, *, schema: str | None = None) -> None:
    """Turn it off.

    Args:
        table_name, partitions, schema: as of :func:`secure_rows`.
    """
    for statement in disable_row_security_statements(
        _with_partitions(table_name, partitions), schema
    ):
        op.execute(statement)


def require_distribution(config: SchemaConfig) -> None:
    """Refuse settings for a cluster where the running revision's database is of none.

    Raises:
        MigrationError: `distribution` is set, and there is no citus extension.
    """
    if not op.get_context().as_sql:
        refuse_without_citus(op.get_bind(), config)


def refuse_without_citus(connection: Connection, config: SchemaConfig) -> None:
    """As `require_distribution`, on a connection."""
    if config.distribution is not None and not is_installed(connection):
        raise RefusedRevisionError(
            "distribution='citus' needs the citus extension in this database: put citus into "
            "shared_preload_libraries, run CREATE EXTENSION citus and add the nodes, or leave "
            "distribution out"
        )


def distribute(config: SchemaConfig) -> None:
    """Distribute a chunk table by namespace over the nodes of a Citus cluster, with its rows.

    One that is distributed already is left as it is. For a table of a host's own model, too.

    Args:
        config: which table it is, a plain one, and how it is to be distributed.

    Raises:
        MigrationError: there is no citus extension.
    """
    require_distribution(config)
    clear: list[sa.Executable] = []
    if not op.get_context().as_sql:
        live = read_table(op.get_bind(), config.table_name, config.schema)
        if live is not None and live.shards is not None:
            return
        filled = exists(select(literal(1)).select_from(table_of(config.table_name, config.schema)))
        clear = (
            [truncate_local_data_statement(config)] if op.get_bind().scalar(select(filled)) else []
        )
    for statement in (*distribute_statements(config), *clear):
        op.execute(statement)


def undistribute(config: SchemaConfig) -> None:
    """Make a plain table of a distributed one, on the coordinator, with its rows.

    One that is not distributed is left as it is.

    Args:
        config: which table it is.
    """
    if not op.get_context().as_sql:
        live = read_table(op.get_bind(), config.table_name, config.schema)
        if live is None or live.shards is None:
            return
    op.execute(undistribute_statement(config))


def _with_partitions(table_name: str, partitions: int) -> list[str]:
    return [table_name, *(partition_name(table_name, number) for number in range(partitions))]


def recorded_revision(connection: Connection, table_name: str, schema: str | None) -> str | None:
    """The revision that the database records for a chunk table, or None."""
    name = version_table(table_name)
    if connection.scalar(select(func.to_regclass(qualified(name, schema)))) is None:
        return None
    return connection.scalar(select(_versions(name, schema).c.version_num))


def head_revision() -> str:
    """The newest of cenote's revisions."""
    head = _script_directory().get_current_head()
    assert head is not None
    return head


def known_revisions() -> set[str]:
    """The ids of cenote's revisions."""
    return {script.revision for script in _script_directory().walk_revisions()}


def check_range(start: str, to: str) -> None:
    """Refuse revisions that are unknown, or not in this order.

    Raises:
        MigrationError: they are.
    """
    if not _scripts(start, to):
        raise RefusedRevisionError(f"there are no revisions of cenote's after {start} up to {to}")


def _recorded(config: SchemaConfig) -> str:
    """The revision that the database records, ``"base"`` for none."""
    recorded = recorded_revision(op.get_bind(), config.table_name, config.schema)
    if recorded is not None and recorded not in known_revisions():
        raise RefusedRevisionError(
            f"table {config.table_name!r} is at {recorded}, which this version of cenote does not "
            "know; install the one that made it, or a newer one"
        )
    return recorded or "base"


def _script_directory() -> ScriptDirectory:
    return ScriptDirectory(str(script_location()))


def _scripts(lower: str, upper: str) -> list[Script]:
    """The revisions after `lower` up to `upper`, the oldest first."""
    try:
        found = list(_script_directory().iterate_revisions(upper, lower))
    except (CommandError, RevisionError) as error:
        raise RefusedRevisionError(f"cenote's revisions: {error}") from error
    return [*reversed(found)]


@contextmanager
def _settings_frozen(config: SchemaConfig) -> Iterator[None]:
    token = _frozen.set(config)
    try:
        yield
    finally:
        _frozen.reset(token)


def _record(start: str, to: str) -> None:
    """Write into cenote's version table, as alembic would: from a revision to another."""
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
    """The configuration to make a new table by. For the first revision only.

    Raises:
        ConfigurationError: the dimensions are not set.
    """
    config = _frozen.get()
    if config is not None:
        return config
    options = op.get_context().opts
    config = options.get("cenote")
    if "cenote_table" in options:  # in our own env.py
        if config is None:
            raise UnconfiguredRevisionError(HOW_TO_SET_DIMENSIONS, setting="dimensions")
    elif config is None or record_branch not in op.get_context().on_version_apply_callbacks:
        raise UnconfiguredRevisionError(
            "each context.configure of your env.py, online and offline, needs "
            "cenote=SchemaConfig(dimensions=...) and **cenote.autogenerate.hooks()",
            setting="dimensions",
        )
    assert isinstance(config, SchemaConfig)
    return config


def live_config() -> SchemaConfig:
    """The configuration of the table as it is. For every later revision.

    Dimensions, type, partitions and the parameters of the ANN index are those of the live table,
    whatever the configuration says by now, and so are full text, row-level security and a
    distribution that it has; offline, with none to ask, the configuration's.
    """
    names = table_names()
    live = None if op.get_context().as_sql else read_table(op.get_bind(), *names)
    if live is None or live.dimensions is None:
        return given_config()
    named: dict[str, Any] = {"table_name": names[0], "schema": names[1]}
    if live.text_search is None:
        named["text_search"] = given_config().text_search
    if not live.row_security:
        named["row_security"] = given_config().row_security
    if live.shards is None and not live.partitioned:  # else it is cenote distribute's
        for setting in ("distribution", "shard_count", "colocate_with"):
            named[setting] = getattr(given_config(), setting)
    return SchemaConfig(**(live.settings | live.parameters | named))


def has_text_search() -> bool:
    """Whether the live table has full text of cenote's; offline, with none to ask, not yet."""
    if op.get_context().as_sql:
        return False
    live = read_table(op.get_bind(), *table_names())
    return live is not None and live.text_search is not None


def table_names() -> tuple[str, str | None]:
    """Name and schema of the chunk table."""
    options = op.get_context().opts
    if _frozen.get() is None and "cenote_table" in options:
        name, schema = options["cenote_table"]
        return name, schema
    config = given_config()
    return config.table_name, config.schema


def ensure_schema(config: SchemaConfig) -> None:
    """Create the schema of the table if it is missing; a role that may not need not."""
    if config.schema is None or "cenote_table" in op.get_context().opts:
        return  # our own env.py has seen to it, for the version table
    if op.get_context().as_sql or not inspect(op.get_bind()).has_schema(config.schema):
        op.execute(CreateSchema(config.schema, if_not_exists=True))


def refuse_other_shape(connection: Connection, config: SchemaConfig) -> None:
    """Refuse a table that is there in another shape: alembic would find nothing to do.

    Raises:
        MigrationError: its dimensions, type, partitions, full text, row-level security or
            distribution are not the configuration's, or it is gone though its revision is recorded.
    """
    live = read_table(connection, config.table_name, config.schema)
    subject = drift.subject_of(config.table_name, config.schema)
    recorded = recorded_revision(connection, config.table_name, config.schema)
    finding = None
    if live is None:
        if recorded is not None:
            finding = drift.table_finding(subject, None, recorded, given_in_code(config))
    elif live.column_type is not None:
        finding = drift.embedding_finding(
            subject, live.column_type, live.dimensions, config
        ) or drift.partitions_finding(subject, live, config)
        if finding is None and (live.text_search or recorded not in _BEFORE_FULL_TEXT):
            finding = drift.text_search_finding(
                subject, live.text_search, config, live.configurations
            )
        if finding is None and (live.row_security or recorded not in _BEFORE_ROW_SECURITY):
            finding = drift.row_security_finding(subject, live, config)
        if finding is None and recorded not in _BEFORE_DISTRIBUTION:
            finding = drift.distribution_finding(subject, live, config)
    if finding is not None:
        raise RefusedRevisionError(str(finding))
