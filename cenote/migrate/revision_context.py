"""Settings and facts for cenote's revisions.

These functions, and `cenote.migrate.legacy.upgrade_legacy_table`, are all that a revision may call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from alembic import op
from sqlalchemy import func, select

from cenote.config import SchemaConfig
from cenote.inspection.checks.table import check_can_secure
from cenote.inspection.live_table import LiveTable, read_table
from cenote.inspection.settings import HOW_TO_SET_DIMENSIONS
from cenote.migrate.versions import RefusedRevisionError, UnconfiguredRevisionError
from cenote.postgres.extension import (
    EXTENSION_QUERY,
    OLDEST_PGVECTOR,
    outdated_message,
    parse_version,
)

_frozen: ContextVar[SchemaConfig | None] = ContextVar("cenote_frozen", default=None)


@contextmanager
def frozen_settings(config: SchemaConfig) -> Iterator[None]:
    """Let the revisions that run inside the block use `config` instead of the environment's."""
    token = _frozen.set(config)
    try:
        yield
    finally:
        _frozen.reset(token)


# -- for cenote's revisions ------------------------------------------------------------------------


def given_config() -> SchemaConfig:
    """Return the settings of a table that is to be created. For the first revision.

    Raises:
        ConfigurationError: `dimensions` is not set, or the revision runs in the Alembic environment
            of an application.
    """
    config = _frozen.get()
    if config is not None:
        return config
    options = op.get_context().opts
    if "cenote_table" not in options:
        raise UnconfiguredRevisionError(
            "cenote's revisions run in cenote's own environment only: remove cenote's folder from "
            "version_locations, and run cenote migrate, or add a revision to your history with "
            "cenote host-revision",
            setting="version_locations",
        )
    config = options["cenote"]
    if config is None:
        raise UnconfiguredRevisionError(HOW_TO_SET_DIMENSIONS, setting="dimensions")
    assert isinstance(config, SchemaConfig)
    return config


def live_config() -> SchemaConfig:
    """Return the settings of the live table. For every revision after the first.

    Dimensions, column type, partitions and HNSW parameters come from the live table, because the
    configuration may have changed since it was created. Full text, row-level security and a
    distribution also come from the live table if it has them, and otherwise from the configuration.
    Offline, all settings come from the configuration.
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
    """Check that the vector extension is recent enough and on the search_path.

    Offline, nothing is checked.

    Raises:
        MigrationError: The extension is too old, or its schema is not on the search_path.
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
            "search_path; add the schema (ALTER DATABASE ... SET search_path = ...)"
        )


def has_text_search() -> bool:
    """Return whether the live table has full text that cenote created; False offline."""
    live = _live_table()
    return live is not None and live.text_search is not None


def check_row_security_allowed() -> None:
    """Check that row-level security can be turned on for the live table.

    Offline, nothing is checked.

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
