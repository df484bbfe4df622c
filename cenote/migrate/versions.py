"""Find cenote's revisions, and read which one the database records."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, column, func, select, table

from cenote.errors import ConfigurationError, MigrationError
from cenote.postgres.ddl import qualified


class RefusedRevisionError(MigrationError, CommandError):
    """A `MigrationError` in a running revision, which Alembic prints without a traceback."""


class UnconfiguredRevisionError(ConfigurationError, CommandError):
    """A `ConfigurationError` in a running revision, which Alembic prints without a traceback."""


def script_location() -> Path:
    """Return the folder of the revisions: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "migrations"
    return packaged if packaged.is_dir() else package.parent / "alembic"


def version_table(table_name: str) -> str:
    """Return the name of the table that holds the revision of a chunk table."""
    return table_name + "_alembic_version"


# -- revisions and the version table ---------------------------------------------------------------


def recorded_revision(connection: Connection, table_name: str, schema: str | None) -> str | None:
    """Return the revision that the database records for a chunk table, or None."""
    name = version_table(table_name)
    if connection.scalar(select(func.to_regclass(qualified(name, schema)))) is None:
        return None
    return connection.scalar(select(version_table_clause(name, schema).c.version_num))


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
    if not scripts_between(start, to):
        raise RefusedRevisionError(f"cenote has no revisions after {start} up to {to}")


def _script_directory() -> ScriptDirectory:
    return ScriptDirectory(str(script_location()))


def scripts_between(lower: str, upper: str) -> list[Script]:
    """Return the revisions after `lower` up to `upper`, oldest first."""
    try:
        newest_first = list(_script_directory().iterate_revisions(upper, lower))
    except (CommandError, RevisionError) as error:
        raise RefusedRevisionError(f"cenote's revisions: {error}") from error
    return newest_first[::-1]


def version_table_clause(name: str, schema: str | None) -> sa.TableClause:
    return table(name, column("version_num", sa.String), schema=schema)
