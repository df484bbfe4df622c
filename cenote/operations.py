"""Operations for the revisions of an application's own Alembic history.

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
"""

from cenote.migrate.operations import (
    create_partitions,
    distribute_chunks,
    downgrade_chunks,
    ensure_extension,
    open_rows,
    secure_rows,
    store_inline,
    upgrade_chunks,
)

__all__ = [
    "create_partitions",
    "distribute_chunks",
    "downgrade_chunks",
    "ensure_extension",
    "open_rows",
    "secure_rows",
    "store_inline",
    "upgrade_chunks",
]
