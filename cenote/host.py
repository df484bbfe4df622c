"""Writing the revision that carries the chunk table in a host's own history."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError, rev_id

from cenote import operations
from cenote.config import SchemaConfig
from cenote.errors import MigrationError

_IMPORTS = """\
from cenote import SchemaConfig
from cenote.operations import downgrade_chunks, upgrade_chunks

# Frozen: this revision makes the table by these settings, whatever the application's say by now.
CHUNKS = {settings}
"""


_FOR_LIFE = ("dimensions", "column_type", "table_name", "schema", "text_search", "row_security")


def write_host_revision(
    host: Config,
    config: SchemaConfig,
    *,
    message: str = "cenote's chunk table",
    start: str = "base",
    to: str | None = None,
) -> Path:
    """Write a revision after the host's head that replays cenote's; see `cenote.operations`.

    Args:
        host: the host's alembic configuration.
        config: the settings, which are written into the file.
        message: of the revision.
        start: cenote's revision before it, ``"base"`` for none.
        to: cenote's revision after it; the newest by default.

    Returns:
        The file, made from the host's own ``script.py.mako``.

    Raises:
        MigrationError: the host's history has no or several heads, or a revision is unknown.
    """
    to = operations.head_revision() if to is None else to
    operations.check_range(start, to)
    steps = f'start="{start}", to="{to}"', f'start="{to}", to="{start}"'
    try:
        history = ScriptDirectory.from_config(host)
        _refuse_history(history, config, start)
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


def _refuse_history(history: ScriptDirectory, config: SchemaConfig, start: str) -> None:
    """Refuse cenote's own folder, and a history that makes the table already."""
    if Path(history.dir).resolve() == operations.script_location().resolve():
        raise MigrationError(
            "this configuration's script_location is cenote's own; name the one of your revisions "
            "with -c"
        )
    for script in history.walk_revisions():
        made = getattr(script.module, "CHUNKS", None)
        if not isinstance(made, SchemaConfig) or start != "base":
            continue
        if (made.table_name, made.schema) == (config.table_name, config.schema):
            raise MigrationError(
                f"your revision {script.revision} makes table {config.table_name!r} already; say "
                "--from cenote_... for what comes after it"
            )


def _as_python(config: SchemaConfig, *, new: bool) -> str:
    """The settings as Python: all of them for a new table, else what a table keeps for life."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values["partitions"] = config.new_partitions
    if not new:
        values = {name: values[name] for name in _FOR_LIFE}
    lines = [
        f"    {name}={_literal(value)},\n" for name, value in values.items() if value is not None
    ]
    return "SchemaConfig(\n" + "".join(lines) + ")"


def _literal(value: object) -> str:
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
