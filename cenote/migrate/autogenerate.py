"""Compare and render chunk tables for Alembic's autogenerate."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult, warn
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    literal_column,
)

from cenote.config import SchemaConfig
from cenote.inspection.checks.findings import subject_of
from cenote.inspection.checks.indexes import index_differences, parameter_differences
from cenote.inspection.checks.table import text_search_finding
from cenote.inspection.index_definitions import equal_indexes, needs_the_server
from cenote.inspection.live_table import LiveIndex, LiveTable, embedding_sql, read_table
from cenote.migrate.autogenerate_operations import (
    AlterEmbeddingOp,
    CreateChunkTableOp,
    EnsureExtensionOp,
    StoreInlineOp,
)
from cenote.migrate.versions import UnconfiguredRevisionError
from cenote.orm.mixin import (
    CHUNK_COLUMNS,
    INDEX_KIND,
    KEY,
    LANGUAGES,
    ann_index_name,
    missing_dimensions_message,
)
from cenote.postgres.ann_index import has_no_index, marked_comment, parse_metric

__all__ = ["compare_type", "hooks", "include_object", "render_item"]

PLUGIN = "cenote.chunk_tables"
"""Name of cenote's comparators among Alembic's plugins."""


def hooks(**options: Any) -> dict[str, Any]:
    """Return arguments for ``context.configure``: the functions below, and comparators.

    The comparators handle what Alembic ignores: the extension and the partitions that a new chunk
    table needs, the method, operator classes and ``WITH`` options of indexes, and the order of
    changes to a column and its indexes. The server compares expressions of indexes.

    Args:
        **options: Your own arguments for ``context.configure``, which are merged with cenote's.
            An object is included if your ``include_object`` includes it too. Your ``render_item``
            comes first. Your ``compare_type`` decides where cenote's does not: True compares types
            as Alembic does, which is the default, and False compares only the type of the
            embedding, because the index depends on it. Your ``autogenerate_plugins`` stay. All
            other arguments are returned as they are.
    """
    _register()
    plugins = options.get("autogenerate_plugins")
    if plugins is None:
        plugins = ["alembic.autogenerate.*"]
    return options | {
        "include_object": _merge_include_object(options.get("include_object")),
        "render_item": _merge_render_item(options.get("render_item")),
        "compare_type": _merge_compare_type(options.get("compare_type")),
        "autogenerate_plugins": [*(name for name in plugins if name != PLUGIN), PLUGIN],
    }


def _merge_include_object(users: Callable[..., bool] | None) -> Callable[..., bool]:
    if users is None:
        return include_object
    return lambda *arguments: include_object(*arguments) and users(*arguments)


def _merge_render_item(
    users: Callable[..., str | Literal[False]] | None,
) -> Callable[..., str | Literal[False]]:
    if users is None:
        return render_item

    def render(*arguments: Any) -> str | Literal[False]:
        rendered = users(*arguments)
        return render_item(*arguments) if rendered is False else rendered

    return render


def _merge_compare_type(
    users: Callable[..., bool | None] | bool | None,
) -> Callable[..., bool | None]:
    if users is None or users is True:
        return compare_type

    def compare(context: Any, inspected: Any, column: Any, *types: Any) -> bool | None:
        differs = compare_type(context, inspected, column, *types)
        if differs is not None:
            return differs
        if users is not False:
            return users(context, inspected, column, *types)
        is_embedding = _is_chunk_table(column.table) and column.name == "embedding"
        return None if is_embedding else False

    return compare


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
    """Ignore two differences of chunk tables. Alembic compares all other types.

    The differences are the INTEGER `position` column of legacy tables, and the dimensions of a
    model that does not state them.

    Raises:
        ConfigurationError: The type of the embedding differs, and the model has no dimensions.
    """
    if not _is_chunk_table(column.table):
        return None
    if column.name == "position":
        return False if isinstance(inspected_type, Integer) else None
    if column.name != "embedding" or getattr(column_type, "dim", 0) is not None:
        return None
    if _column_type(inspected_type) == _column_type(column_type):
        return False
    raise UnconfiguredRevisionError(
        missing_dimensions_message(str(column.table.name)), setting="dimensions"
    )


def setup(plugin: Plugin) -> None:
    """Add cenote's comparators after Alembic's own. Alembic calls this function."""
    plugin.add_autogenerate_comparator(
        _compare_table,
        "table",
        PLUGIN,
        qualifier="postgresql",
        priority=DispatchPriority.LAST,
    )
    plugin.add_autogenerate_comparator(
        _complete_operations,
        "schema",
        PLUGIN,
        qualifier="postgresql",
        priority=DispatchPriority.LAST,
    )


@cache
def _register() -> None:
    Plugin.setup_plugin_from_module(sys.modules[__name__], PLUGIN)


def _complete_operations(
    autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Add what chunk tables need to the operations that create them or change their embedding."""
    for place, operation in enumerate(upgrade_ops.ops):
        if isinstance(operation, ops.CreateTableOp):
            columns = {item.name for item in operation.columns if isinstance(item, Column)}
            if columns >= CHUNK_COLUMNS:
                upgrade_ops.ops[place] = CreateChunkTableOp.of(operation)
    if any(isinstance(operation, CreateChunkTableOp) for operation in upgrade_ops.ops):
        # Create the extension before all tables: the application's other tables may have vectors.
        upgrade_ops.ops.insert(0, EnsureExtensionOp())
    for operation in [*upgrade_ops.ops]:
        if isinstance(operation, ops.ModifyTableOps) and any(
            isinstance(change, AlterEmbeddingOp) for change in operation.ops
        ):
            place = upgrade_ops.ops.index(operation)
            upgrade_ops.ops[place : place + 1] = [
                StoreInlineOp(operation.table_name, operation.schema, down=True),
                operation,
                StoreInlineOp(operation.table_name, operation.schema),
            ]
    return PriorityDispatchResult.CONTINUE


def _compare_table(
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
    _compare_comment(modify_ops, live, table)
    _compare_indexes(autogen_context, modify_ops, live, live_table, table)
    _keep_ann_index(modify_ops, live, live_table, table)
    _alter_embedding(modify_ops)
    return PriorityDispatchResult.CONTINUE


def _compare_indexes(
    autogen_context: AutogenContext,
    modify_ops: ops.ModifyTableOps,
    live: LiveTable,
    live_table: Table,
    table: Table,
) -> None:
    """Correct Alembic's comparison of the indexes that are in the model and in the database."""
    assert autogen_context.connection is not None
    reflected = {str(index.name): index for index in live_table.indexes}
    compared = [
        index
        for index in sorted(table.indexes, key=lambda index: str(index.name))
        if (other := reflected.get(str(index.name))) is not None
        and autogen_context.run_object_filters(index, index.name, "index", False, other)
    ]
    for_the_server = [
        index
        for index in compared
        if needs_the_server(index) or _loses_expressions(live, reflected[str(index.name)])
    ]
    are_equal = equal_indexes(autogen_context.connection, live, for_the_server)
    for index in compared:
        name = str(index.name)
        actual = live.index(name)
        if actual is None:
            continue
        if index not in for_the_server:
            if any(index_differences(actual, index)):
                _replace_index(modify_ops, _reflected(actual, live_table), index)
        elif name not in are_equal:
            warn(
                f"index {name} cannot be compared: the role or the transaction may not create "
                "temporary tables"
            )
        elif are_equal[name]:
            modify_ops.ops[:] = [
                op for op in modify_ops.ops if getattr(op, "index_name", None) != name
            ]
        else:
            _replace_index(modify_ops, reflected[name], index)
    for place, operation in enumerate(modify_ops.ops):
        if isinstance(operation, ops.DropIndexOp):
            name = str(operation.index_name)
            actual = live.index(name)
            if actual is not None and _loses_expressions(live, reflected[name]):
                faithful = _reflected_expressions(actual, reflected[name], live_table)
                modify_ops.ops[place] = ops.DropIndexOp.from_index(faithful)


def _compare_comment(modify_ops: ops.ModifyTableOps, live: LiveTable, table: Table) -> None:
    """Correct Alembic's comparison of the table's comment, which records the metric.

    A model that does not set ``index`` accepts the mark of a table without ANN index.
    """
    metric = parse_metric(table.comment)
    if metric != live.metric:
        warn(
            f"{subject_of(table.name, table.schema)}: its metric is {live.metric}, expected "
            f"{metric}; the revision changes the scores of all searches, builds the ANN index "
            "again and locks the table until that ends, and stores with the old metric reject the "
            "table afterwards. To fill a second table while the first is in use, see "
            "docs/embedding-model.md"
        )
    without_index = has_no_index(table.comment)
    if table.info.get(INDEX_KIND) is None:
        without_index = has_no_index(live.comment)
    comment = marked_comment(table.comment, metric, "none" if without_index else "vector")
    for place, operation in enumerate(modify_ops.ops):
        if isinstance(operation, ops.CreateTableCommentOp | ops.DropTableCommentOp):
            if comment == live.comment:
                del modify_ops.ops[place]
            elif comment is not None:
                modify_ops.ops[place] = ops.CreateTableCommentOp(
                    table.name, comment, schema=table.schema, existing_comment=live.comment
                )
            return


def _keep_ann_index(
    modify_ops: ops.ModifyTableOps, live: LiveTable, live_table: Table, table: Table
) -> None:
    """Keep the kind of the live ANN index if the model does not set ``index``.

    ``cenote reindex --index`` may have changed the kind, which is no matter of the model then.
    """
    name = ann_index_name(live.name)
    index = next((index for index in table.indexes if index.name == name), None)
    changes_embedding = any(
        isinstance(operation, ops.AlterColumnOp)
        and operation.column_name == "embedding"
        and operation.modify_type is not None
        for operation in modify_ops.ops
    )
    kind = live.index_kind
    is_kept = table.info.get(INDEX_KIND) is None and kind not in (None, live.column_type)
    if not is_kept or index is None or changes_embedding:
        return
    if parse_metric(table.comment) != live.metric and kind != "none":
        return
    modify_ops.ops[:] = [op for op in modify_ops.ops if getattr(op, "index_name", None) != name]
    actual = live.index(name)
    if actual is None or not any(parameter_differences(actual, index)):
        return
    reflected = next(index for index in live_table.indexes if index.name == name)
    old, new = (_reflected_expressions(actual, reflected, live_table) for _ in range(2))
    new.dialect_kwargs["postgresql_with"] = index.dialect_kwargs["postgresql_with"]
    modify_ops.ops.append(ops.DropIndexOp.from_index(old))
    modify_ops.ops.append(ops.CreateIndexOp.from_index(new))


def _loses_expressions(live: LiveTable, reflected: Index) -> bool:
    """Return whether SQLAlchemy's reflection of an index lacks a part of its definition."""
    actual = live.index(str(reflected.name))
    return needs_the_server(reflected) or (
        actual is not None and any(" COLLATE " in definition for definition in actual.definitions)
    )


def _replace_index(modify_ops: ops.ModifyTableOps, old: Index, new: Index) -> None:
    """Drop an index and create it again, unless Alembic does so already."""
    dropped = {op.index_name for op in modify_ops.ops if isinstance(op, ops.DropIndexOp)}
    if new.name not in dropped:
        modify_ops.ops.append(ops.DropIndexOp.from_index(old))
        modify_ops.ops.append(ops.CreateIndexOp.from_index(new))


def _alter_embedding(modify_ops: ops.ModifyTableOps) -> None:
    """Warn if the type of the embedding changes, and change types while no index is in the way.

    An operator class fits one type, so an index has to be dropped before the type of its column
    changes, and created afterwards.
    """
    altered = [
        (place, op)
        for place, op in enumerate(modify_ops.ops)
        if isinstance(op, ops.AlterColumnOp) and op.modify_type is not None
    ]
    for place, operation in altered:
        if operation.column_name == "embedding":
            replacement = AlterEmbeddingOp.of(operation)
            modify_ops.ops[place] = replacement
            _warn_of_embedding(replacement)
    if altered:
        modify_ops.ops.sort(
            key=lambda op: (not isinstance(op, ops.DropIndexOp), isinstance(op, ops.CreateIndexOp))
        )


def _warn_of_embedding(operation: AlterEmbeddingOp) -> None:
    """Warn that rows have to be embedded again, or that the change locks the table."""
    actual, expected = (
        embedding_sql(_column_type(type_), getattr(type_, "dim", None))
        for type_ in (operation.existing_type, operation.modify_type)
    )
    before, after = operation.dimensions
    consequence = (
        "the revision fails on a table with rows, which have to be embedded again"
        if before != after
        else "the revision rewrites the table and builds its ANN index again, and locks the table "
        "until that ends"
    )
    warn(
        f"{subject_of(str(operation.table_name), operation.schema)}: the embedding column is "
        f"{actual}, expected {expected}; {consequence}. To fill a second table while the first is "
        "in use, see docs/embedding-model.md"
    )


def _column_type(type_: Any) -> str | None:
    if isinstance(type_, HALFVEC):
        return "halfvec"
    return "vector" if isinstance(type_, VECTOR) else None


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


def _reflected_expressions(index: LiveIndex, reflected: Index, table: Table) -> Index:
    """Return a live index with expressions as an `Index`, for Alembic to create in the downgrade.

    SQLAlchemy's reflection loses the collation, the operator class and the order of an expression.
    """
    options = {
        **reflected.dialect_kwargs,
        "postgresql_using": index.method if index.method != "btree" else None,
        "postgresql_with": dict(index.options),
        "postgresql_ops": None,  # the definitions contain the operator classes
    }
    return Index(
        index.name,
        *(
            table.c[definition] if definition in table.c else literal_column(definition)
            for definition in index.definitions
        ),
        unique=reflected.unique,
        **{name: value for name, value in options.items() if value},
        _table=table,
    )
