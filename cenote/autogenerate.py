"""Hooks for an application's env.py, for autogenerate and `alembic check`."""

from cenote.migrate.autogenerate import compare_type, hooks, include_object, render_item

__all__ = ["compare_type", "hooks", "include_object", "render_item"]
