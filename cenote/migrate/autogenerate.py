"""Compare and render chunk tables for Alembic's autogenerate."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import ops
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult, warn
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, ForeignKeyConstraint, Index, Integer, Table

from cenote.config import SchemaConfig
from cenote.inspection.checks.findings import subject_of
from cenote.inspection.checks.indexes import index_differences
from cenote.inspection.checks.table import text_search_finding
from cenote.inspection.live_table import LiveIndex, LiveTable, read_table
from cenote.migrate.versions import UnconfiguredRevisionError
from cenote.orm.mixin import (
    CHUNK_COLUMNS,
    KEY,
    LANGUAGES,
    PARTITIONS,
    ROW_SECURITY,
    missing_dimensions_message,
)

__all__ = ["compare_type", "hooks", "include_object", "render_item"]

PLUGIN = "cenote.chunk_tables"
"""Name of cenote's comparators among Alembic's plugins."""


def hooks() -> dict[str, Any]:
    """Return arguments for ``context.configure``: the functions below, and comparators.

    The comparators handle what Alembic ignores: the extension and the partitions that a new chunk
    table needs, and the method, operator classes and ``WITH`` options of indexes.
    """
    _register()
    return {
        "include_object": include_object,
        "render_item": render_item,
        "compare_type": compare_type,
        "autogenerate_plugins": ["alembic.autogenerate.*", PLUGIN],
    }


def include_object(obj: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Exclude objects of cenote that are not in the metadata: autogenerate would drop them.

    The objects are partitions, chunk tables that are not in the metadata, version tables, the
    version table of a legacy table, and the parts of a foreign key to a partitioned table.
    """
    if not reflected or other is not None:
        return True
    if kind == "foreign_key_constraint":
        return not _is_part_of_key(obj)
    if kind != "table":
        return True
    columns = set(obj.columns.keys())
    return not (
        columns >= CHUNK_COLUMNS
        or (columns == {"version_num"} and str(name).endswith("_alembic_version"))
        or name == "cenote_schema_migrations"
    )


def render_item(kind: str, obj: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Render vector types as ``VECTOR(384)``, and add the import."""
    if kind != "type" or not isinstance(obj, VECTOR | HALFVEC):
        return False
    name = "HALFVEC" if isinstance(obj, HALFVEC) else "VECTOR"
    autogen_context.imports.add(f"from pgvector.sqlalchemy import {name}")
    return f"{name}({'' if obj.dim is None else int(obj.dim)})"


def compare_type(
    context: Any, inspected: Any, column: Any, inspected_type: Any, column_type: Any
) -> bool | None:
    """Ignore the INTEGER `position` column of legacy tables. Alembic compares all other types."""
    if column.name == "position" and _is_chunk_table(column.table):
        return False if isinstance(inspected_type, Integer) else None
    return None


def setup(plugin: Plugin) -> None:
    """Add cenote's comparators after Alembic's own. Alembic calls this function."""
    plugin.add_autogenerate_comparator(
        _compare_indexes,
        "table",
        PLUGIN,
        qualifier="postgresql",
        priority=DispatchPriority.LAST,
    )
    plugin.add_autogenerate_comparator(
        _replace_creations,
        "schema",
        PLUGIN,
        qualifier="postgresql",
        priority=DispatchPriority.LAST,
    )


@cache
def _register() -> None:
    Plugin.setup_plugin_from_module(sys.modules[__name__], PLUGIN)


class EnsureExtensionOp(ops.MigrateOperation):
    """Create the extension if it is missing. The downgrade keeps the extension."""

    def __init__(self, *, down: bool = False) -> None:
        self.down = down

    def reverse(self) -> EnsureExtensionOp:
        return EnsureExtensionOp(down=not self.down)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("ensure_extension",)


@renderers.dispatch_for(EnsureExtensionOp)
def _render_extension(autogen_context: AutogenContext, operation: EnsureExtensionOp) -> list[str]:
    if operation.down:
        return []
    autogen_context.imports.add("from cenote.operations import ensure_extension")
    return ["ensure_extension()"]


class CreateChunkTableOp(ops.CreateTableOp):
    """Create a chunk table, set its storage, and create its partitions and policies."""

    partitions: int
    secured: bool

    @classmethod
    def of(cls, operation: ops.CreateTableOp) -> CreateChunkTableOp:
        """Return the operation that replaces Alembic's."""
        replacement = cls.__new__(cls)
        replacement.__dict__.update(operation.__dict__)
        settings = (LANGUAGES, PARTITIONS, ROW_SECURITY)
        replacement.info = {
            key: value for key, value in operation.info.items() if key not in settings
        }
        replacement.partitions = operation.info.get(PARTITIONS, 0)
        replacement.secured = operation.info.get(ROW_SECURITY, False)
        (embedding,) = [
            item
            for item in operation.columns
            if isinstance(item, Column) and item.name == "embedding"
        ]
        if getattr(embedding.type, "dim", None) is None:
            raise UnconfiguredRevisionError(
                missing_dimensions_message(str(operation.table_name)), setting="dimensions"
            )
        return replacement


def _replace_creations(
    autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    for place, operation in enumerate(upgrade_ops.ops):
        if isinstance(operation, ops.CreateTableOp):
            columns = {item.name for item in operation.columns if isinstance(item, Column)}
            if columns >= CHUNK_COLUMNS:
                upgrade_ops.ops[place] = CreateChunkTableOp.of(operation)
    if any(isinstance(operation, CreateChunkTableOp) for operation in upgrade_ops.ops):
        # Create the extension before all tables: the application's other tables may have vectors.
        upgrade_ops.ops.insert(0, EnsureExtensionOp())
    return PriorityDispatchResult.CONTINUE


@renderers.dispatch_for(CreateChunkTableOp)
def _render_creation(autogen_context: AutogenContext, operation: CreateChunkTableOp) -> list[str]:
    create_table = renderers.dispatch(ops.CreateTableOp)(autogen_context, operation)
    schema = "" if operation.schema is None else f", schema={str(operation.schema)!r}"
    name = str(operation.table_name)
    autogen_context.imports.add("from cenote.operations import store_inline")
    lines = [create_table, f"store_inline({name!r}{schema})"]
    if operation.partitions:
        autogen_context.imports.add("from cenote.operations import create_partitions")
        lines.append(f"create_partitions({name!r}, {operation.partitions}{schema})")
    if operation.secured:
        autogen_context.imports.add("from cenote.operations import secure_rows")
        lines.append(f"secure_rows({name!r}, {operation.partitions}{schema})")
    return lines


def _compare_indexes(
    autogen_context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    schema: str | None,
    name: str,
    live_table: Table | None,
    table: Table | None,
) -> PriorityDispatchResult:
    if live_table is None or table is None or not _is_chunk_table(table):
        return PriorityDispatchResult.CONTINUE
    assert autogen_context.connection is not None
    live = read_table(autogen_context.connection, name, schema)
    assert live is not None
    _warn_of_languages(live, table)
    dropped = {op.index_name for op in modify_ops.ops if isinstance(op, ops.DropIndexOp)}
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        actual = live.index(str(index.name))
        if actual is None or index.name in dropped:
            continue
        if any(index_differences(actual, index)):
            modify_ops.ops.append(ops.DropIndexOp.from_index(_reflected(actual, live_table)))
            modify_ops.ops.append(ops.CreateIndexOp.from_index(index))
    return PriorityDispatchResult.CONTINUE


def _warn_of_languages(live: LiveTable, table: Table) -> None:
    """Warn if the languages differ: no revision can change the expression of a generated column."""
    wanted: tuple[str, ...] = table.info.get(LANGUAGES, ())
    if live.text_search is None or not wanted:
        return
    config = SchemaConfig(
        dimensions=1, table_name=table.name, schema=table.schema, text_search=", ".join(wanted)
    )
    subject = subject_of(table.name, table.schema)
    finding = text_search_finding(subject, live.text_search, config, live.configurations)
    if finding is not None:
        warn(str(finding))


def _is_part_of_key(key: ForeignKeyConstraint) -> bool:
    """Return whether a reflected foreign key is a part that Postgres created for a partition."""
    targets = [element.target_fullname.rsplit(".", 2)[-2:] for element in key.elements]
    return {column for _, column in targets} == set(KEY) and all(
        re.search(r"_p\d{2,4}$", table) for table, _ in targets
    )


def _is_chunk_table(table: Table) -> bool:
    return set(table.columns.keys()) >= CHUNK_COLUMNS


def _reflected(index: LiveIndex, table: Table) -> Index:
    """Return a live index as an `Index`, for Alembic to drop and to create in the downgrade."""
    return Index(
        index.name,
        *(table.c[name] for name in index.columns),
        postgresql_using=index.method,
        postgresql_ops=dict(zip(index.columns, index.operator_classes, strict=True)),
        postgresql_with=dict(index.options),
        _table=table,
    )
