"""The operations for revisions of an application, compared with cenote's own revisions."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from cenote import SchemaConfig, operations
from cenote.migrate.revision_context import frozen_settings
from cenote.migrate.versions import script_location

SECURED = SchemaConfig(dimensions=3, schema="app", partitions=2, row_security=True)
DISTRIBUTED = SchemaConfig(dimensions=3, distribution="citus", shard_count=8)


def _sql(run: Callable[[], Any]) -> str:
    """Return the SQL that a function would execute with the operations of Alembic."""
    output = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output}
    )
    with Operations.context(context):
        run()
    return output.getvalue()


@pytest.mark.parametrize(
    ("operation", "revision", "step", "config"),
    [
        (
            lambda: operations.secure_rows("cenote_chunks", 2, schema="app"),
            "cenote_0003",
            "upgrade",
            SECURED,
        ),
        (
            lambda: operations.open_rows("cenote_chunks", 2, schema="app"),
            "cenote_0003",
            "downgrade",
            SECURED,
        ),
        (
            lambda: operations.distribute_chunks(DISTRIBUTED),
            "cenote_0004",
            "upgrade",
            DISTRIBUTED,
        ),
    ],
    ids=["secure_rows", "open_rows", "distribute_chunks"],
)
def test_operations_equal_the_newest_revisions(
    operation: Callable[[], None], revision: str, step: str, config: SchemaConfig
) -> None:
    """A user model's revision executes the SQL that a revision of cenote executes."""
    script = ScriptDirectory(str(script_location())).get_revision(revision)
    with frozen_settings(config):
        expected = _sql(getattr(script.module, step))
    assert _sql(operation) == expected != ""
