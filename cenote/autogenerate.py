"""Support for chunk tables in Alembic's autogenerate: one line in an ``env.py``.

::

    from cenote.autogenerate import hooks

    context.configure(connection=connection, target_metadata=Base.metadata, **hooks())

If an env.py has its own ``include_object``, ``render_item`` or ``compare_type``, let it call the
function of that name here, and pass ``**(hooks() | {"include_object": include_object})``.
"""

from cenote.migrate.autogenerate import compare_type, hooks, include_object, render_item

__all__ = ["compare_type", "hooks", "include_object", "render_item"]
