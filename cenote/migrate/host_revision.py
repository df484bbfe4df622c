"""Write the revision that creates the chunk table in an application's own history."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError, rev_id

from cenote.config import SchemaConfig
from cenote.errors import MigrationError
from cenote.migrate.versions import check_range, head_revision, script_location

_IMPORTS = """\
from cenote import SchemaConfig
from cenote.operations import downgrade_chunks, upgrade_chunks

# Frozen: this revision uses these settings, even if the application's settings change.
CHUNKS = {settings}
"""

_PERMANENT = (
    "dimensions",
    "column_type",
    "metric",
    "table_name",
    "schema",
    "text_search",
    "row_security",
)
"""Settings that are also written into a revision that upgrades an existing table."""


def write_host_revision(
    application: Config,
    config: SchemaConfig,
    *,
    message: str = "cenote's chunk table",
    start: str = "base",
    to: str | None = None,
) -> Path:
    """Write a revision after the application's head that runs cenote's; see `cenote.operations`.

    Args:
        application: Alembic configuration of the application.
        config: Settings of the table, which are written into the file.
        message: Message of the revision.
        start: Revision of cenote that the table has before, ``"base"`` for a new table.
        to: Revision of cenote that the table has afterwards; the newest by default.

    Returns:
        The path of the file, written from the application's own ``script.py.mako``.

    Raises:
        MigrationError: The application's history has no head or several heads, or creates the table
            already, or a revision is unknown.
    """
    to = head_revision() if to is None else to
    check_range(start, to)
    steps = f'start="{start}", to="{to}"', f'start="{to}", to="{start}"'
    try:
        history = ScriptDirectory.from_config(application)
        _check_history(history, config, start)
        script = history.generate_revision(
            rev_id(),
            message,
            refresh=True,
            imports=_IMPORTS.format(settings=_as_python(config, new=start == "base")),
            upgrades=f"upgrade_chunks(CHUNKS, {steps[0]})",
            downgrades=f"downgrade_chunks(CHUNKS, {steps[1]})",
        )
    except CommandError as error:
        raise MigrationError(f"your revisions: {error}") from error
    assert script is not None
    return Path(script.path)


def _check_history(history: ScriptDirectory, config: SchemaConfig, start: str) -> None:
    """Check that the history is the application's, and does not create the table already."""
    if Path(history.dir).resolve() == script_location().resolve():
        raise MigrationError(
            "the script_location of this configuration is cenote's own; pass your application's "
            "configuration with -c"
        )
    for script in history.walk_revisions():
        frozen = getattr(script.module, "CHUNKS", None)
        if not isinstance(frozen, SchemaConfig) or start != "base":
            continue
        if (frozen.table_name, frozen.schema) == (config.table_name, config.schema):
            raise MigrationError(
                f"your revision {script.revision} creates table {config.table_name!r} already; "
                "pass --from cenote_... to upgrade it from that revision"
            )


def _as_python(config: SchemaConfig, *, new: bool) -> str:
    """Return the settings as Python: all for a new table, otherwise `_PERMANENT`."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values["partitions"] = config.new_partitions
    if not new:
        values = {name: values[name] for name in _PERMANENT}
    lines = [
        f"    {name}={_literal(value)},\n" for name, value in values.items() if value is not None
    ]
    return "SchemaConfig(\n" + "".join(lines) + ")"


def _literal(value: object) -> str:
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
