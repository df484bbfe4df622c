"""What revisions call: cenote's own, and a host's that carry cenote's table in the host's history.

A host's revision replays cenote's under its own ``op``, with settings frozen in that file::

    from cenote import SchemaConfig
    from cenote.operations import downgrade_chunks, upgrade_chunks

    CHUNKS = SchemaConfig(dimensions=384)


    def upgrade() -> None:
        upgrade_chunks(CHUNKS, start="base", to="cenote_0001")


    def downgrade() -> None:
        downgrade_chunks(CHUNKS, start="cenote_0001", to="base")

``cenote host-revision`` writes that file. What was replayed is recorded in cenote's own version
table, as `cenote.schema.upgrade` does: whichever way comes second finds what the first one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.schema import CreateSchema

from cenote import drift
from cenote.catalog import LiveTable, qualified, read_table
from cenote.config import SchemaConfig
from cenote.connections import EXTENSION_QUERY, OLDEST_PGVECTOR, parse_version, too_old
from cenote.ddl import CreateExtension
from cenote.errors import ConfigurationError, MigrationError
from cenote.settings import HOW_TO_SET_DIMENSIONS

_frozen: ContextVar[SchemaConfig | None] = ContextVar("cenote_frozen", default=None)


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
    offline = op.get_context().as_sql
    done = set() if offline else _done(config)
    if not offline and start != "base" and start not in done:
        raise MigrationError(
            f"table {config.table_name!r} is not at {start}, from which this revision starts; "
            "run the ones before it"
        )
    with _settings_frozen(config):
        ensure_schema(config)
        for script in scripts:
            if script.revision not in done:
                script.module.upgrade()
        if to not in done:
            _record(start, to)
    if not offline:
        refuse_other_shape(op.get_bind(), config)


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
    if not op.get_context().as_sql:
        recorded = recorded_revision(op.get_bind(), config.table_name, config.schema)
        if recorded != start:
            raise MigrationError(
                f"table {config.table_name!r} is at {recorded or 'base'}, and this revision takes "
                f"it down from {start}"
            )
    with _settings_frozen(config):
        for script in reversed(scripts):
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


def recorded_revision(connection: Connection, table_name: str, schema: str | None) -> str | None:
    """The revision that the database records for a chunk table, or None."""
    options = {"version_table": version_table(table_name), "version_table_schema": schema}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


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
        raise MigrationError(f"there are no revisions of cenote's after {start} up to {to}")


def _done(config: SchemaConfig) -> set[str]:
    """The revisions that the database records as run."""
    recorded = recorded_revision(op.get_bind(), config.table_name, config.schema)
    if recorded is None:
        return set()
    if recorded not in known_revisions():
        raise MigrationError(
            f"table {config.table_name!r} is at {recorded}, which this version of cenote does not "
            "know; install the one that made it, or a newer one"
        )
    return {script.revision for script in _scripts("base", recorded)}


def _script_directory() -> ScriptDirectory:
    return ScriptDirectory(str(script_location()))


def _scripts(lower: str, upper: str) -> list[Script]:
    """The revisions after `lower` up to `upper`, the oldest first."""
    try:
        found = list(_script_directory().iterate_revisions(upper, lower))
    except CommandError as error:
        raise MigrationError(f"cenote's revisions: {error}") from error
    return [*reversed(found)]


@contextmanager
def _settings_frozen(config: SchemaConfig) -> Iterator[None]:
    token = _frozen.set(config)
    try:
        yield
    finally:
        _frozen.reset(token)


def _record(start: str, to: str) -> None:
    """Write into cenote's version table that the chunk table went from a revision to another."""
    name, schema = table_names()
    own = version_table(name)
    context = op.get_context()
    options: dict[str, Any] = {"version_table": own, "version_table_schema": schema}
    if not context.as_sql:
        MigrationContext.configure(op.get_bind(), opts=options).stamp(_script_directory(), to)
    else:
        if start == "base":  # as alembic makes it, which does not when it stamps offline
            op.create_table(
                own,
                sa.Column("version_num", sa.String(32), nullable=False),
                sa.PrimaryKeyConstraint("version_num", name=own + "_pkc"),
                schema=schema,
                if_not_exists=True,
            )
        options["as_sql"] = True
        options["output_buffer"] = context.impl.output_buffer
        options["starting_rev"] = None if start == "base" else start
        offline = MigrationContext.configure(dialect_name="postgresql", opts=options)
        offline.stamp(_script_directory(), to)
    if to == "base":
        op.drop_table(own, schema=schema)


# -- for cenote's revisions ------------------------------------------------------------------------


def given_config() -> SchemaConfig:
    """The configuration to make a new table by. For the first revision only.

    Raises:
        ConfigurationError: the dimensions are not set.
    """
    config = _frozen.get() or op.get_context().opts.get("cenote")
    if config is None:
        raise ConfigurationError(HOW_TO_SET_DIMENSIONS, setting="dimensions")
    assert isinstance(config, SchemaConfig)
    return config


def live_config() -> SchemaConfig:
    """The configuration of the table as it is. For every later revision.

    Dimensions, type, partitions and the parameters of the ANN index are those of the live table,
    whatever the configuration says by now; offline, with none to ask, the configuration's.
    """
    names = table_names()
    live = None if op.get_context().as_sql else read_table(op.get_bind(), *names)
    if live is None or live.dimensions is None:
        return given_config()
    named: dict[str, Any] = {"table_name": names[0], "schema": names[1]}
    return SchemaConfig(**(live.settings | live.parameters | named))


def table_names() -> tuple[str, str | None]:
    """Name and schema of the chunk table."""
    options = op.get_context().opts
    config = _frozen.get() or options.get("cenote")
    if config is not None:
        return config.table_name, config.schema
    name, schema = options["cenote_table"]
    return name, schema


def ensure_schema(config: SchemaConfig) -> None:
    """Create the schema of the table if it is missing; a role that may not need not."""
    if config.schema is None:
        return
    if op.get_context().as_sql or not inspect(op.get_bind()).has_schema(config.schema):
        op.execute(CreateSchema(config.schema, if_not_exists=True))


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


def refuse_other_shape(connection: Connection, config: SchemaConfig) -> None:
    """Refuse a table that is there in another shape: alembic would find nothing to do.

    Raises:
        MigrationError: its dimensions, type or partitions are not the configuration's.
    """
    live = read_table(connection, config.table_name, config.schema)
    if live is None:
        return
    finding = shape_finding(live, config)
    if finding is not None:
        raise MigrationError(str(finding))


def shape_finding(live: LiveTable, config: SchemaConfig) -> drift.Finding | None:
    """What of the shape that the first revision gave a table differs."""
    subject = "table " + qualified(config.table_name, config.schema)
    return drift.embedding_finding(
        subject, live.column_type, live.dimensions, config
    ) or drift.partitions_finding(subject, live, config)
