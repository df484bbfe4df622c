"""Support for chunk tables in Alembic's autogenerate: one line in an ``env.py``.

::

    from cenote.autogenerate import hooks

    context.configure(connection=connection, target_metadata=Base.metadata, **hooks())

Pass your own arguments to `hooks`, which merges them, for example
``hooks(include_object=mine, compare_type=True)``.
"""

from cenote.migrate.autogenerate import compare_type, hooks, include_object, render_item

__all__ = ["compare_type", "hooks", "include_object", "render_item"]
