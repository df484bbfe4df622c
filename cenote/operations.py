"""Operations for Alembic revisions in an application's own history."""

from cenote.migrate.operations import (
    create_partitions,
    distribute,
    downgrade_chunks,
    ensure_extension,
    open_rows,
    secure_rows,
    store_inline,
    upgrade_chunks,
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
