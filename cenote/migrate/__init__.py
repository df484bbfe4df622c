"""Run cenote's revisions, alone or inside an application's own Alembic history.

The public names are in `cenote.schema`, `cenote.operations` and `cenote.autogenerate`. No package
below this one imports alembic, because ``import cenote`` must not import it.
"""
