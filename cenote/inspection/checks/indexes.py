"""Check the indexes of a live table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Index
from sqlalchemy.schema import CreateIndex, DropIndex

from cenote.config import SchemaConfig
from cenote.inspection.checks.findings import Finding, ddl_sql
from cenote.inspection.hints import recall_command, reindex_command
from cenote.inspection.live_table import LiveIndex, LiveTable
from cenote.orm.factory import chunk_table
from cenote.orm.mixin import ann_index_name

NEW, OLD = "_new", "_old"
"""Suffixes that a rebuild gives to the new index and, for a moment, to the old one."""

_GROWTH = 10
"""Growth of a table after which its ``ef_search`` or `rerank` should be measured again."""


# -- indexes ---------------------------------------------------------------------------------------


def left_over_names(live: LiveTable) -> set[str]:
    """Return the names of indexes that an interrupted rebuild of the ANN index may leave behind."""
    ann = ann_index_name(live.name)
    return {ann + NEW, ann + OLD, *(part_name(name) + NEW for name in live.partitions)}


def part_name(partition: str) -> str:
    """Return the name that Postgres gives to a partition's part of the ANN index."""
    return partition + "_embedding_idx"


def index_findings(live: LiveTable, config: SchemaConfig) -> Iterator[Finding]:
    """Check that the expected indexes exist, and that no index is invalid or left over."""
    config = _with_live_kind(config, live)
    expected = {str(index.name): index for index in chunk_table(config).indexes}
    unexpected = live.index(ann_index_name(live.name))
    if config.index_kind == "none" and unexpected is not None:
        yield Finding(
            kind="operator_class",
            subject=f"index {unexpected.name}",
            actual="it is "
            + _describe(unexpected.method, unexpected.columns, unexpected.operator_classes),
            expected="no ANN index",
            hint="omit the setting index, or set it to the kind of the index, or run "
            f"{reindex_command(config)} --index none",
        )
    for name, index in sorted(expected.items()):
        actual = live.index(name)
        if actual is None and not set(index.columns.keys()) <= live.columns.keys():
            continue  # the index's column is missing, which is a separate finding
        if actual is None:
            yield Finding(
                kind="index_missing",
                subject=f"index {name}",
                actual="it is missing",
                expected=_describe(*_definition(index)),
                hint="run " + _creation_command(index, config),
            )
        else:
            yield from _differing_index_findings(live, actual, index, config)
    left_over = left_over_names(live)
    for actual in live.indexes:
        if actual.name in left_over:
            yield Finding(
                kind="index_left_over",
                subject=f"index {actual.name}",
                actual=f"it is left (on {actual.table}) by a rebuild, interrupted or still running",
                expected="no such index",
                hint="run " + reindex_command(config),
            )
        elif not actual.valid and (actual.table != live.name or actual.name not in expected):
            yield _invalid_index_finding(actual, live, config)
    yield from _recall_findings(live, config)


def _recall_findings(live: LiveTable, config: SchemaConfig) -> Iterator[Finding]:
    """Check that the table has not outgrown the measured setting of its ANN index.

    The number of rows is an estimate, and too low rather than too high.
    """
    measured = live.measured_recall
    if measured is None or live.search_index is None or live.rows < _GROWTH * measured.rows:
        return
    if live.rows:
        yield Finding(
            kind="recall_outdated",
            subject=f"index {live.search_index.name}",
            actual=f"its {measured.setting} was measured with {measured.rows:,} rows, and the "
            f"table has about {live.rows:,}",
            expected=f"less than {_GROWTH} times the rows",
            hint="run " + recall_command(config),
        )


def _with_live_kind(config: SchemaConfig, live: LiveTable) -> SchemaConfig:
    """Return a configuration that accepts the kind of the live ANN index, unless it sets one.

    The kind says nothing if the embedding column or the metric is another: that is a finding.
    """
    column = (live.column_type, live.dimensions, live.metric)
    expected = (config.column_type, config.dimensions, config.metric)
    if config.index or column != expected or live.index_kind in (None, config.index_kind):
        return config
    return replace(config, index=live.index_kind)


def _differing_index_findings(
    live: LiveTable, actual: LiveIndex, index: Index, config: SchemaConfig
) -> Iterator[Finding]:
    if not actual.valid:
        yield _invalid_index_finding(actual, None, config)
    differences = index_differences(actual, index)
    parsed = live.ann_index(actual) if _is_ann(index) else None
    if parsed is not None and (parsed.metric, parsed.kind) == (config.metric, config.index_kind):
        differences = parameter_differences(actual, index)
    for kind, state, expected in differences:
        hint = "run " + _creation_command(index, config)
        if kind == "hnsw_parameters":
            settings = _differing_settings(actual, index)
            hint = f"set {settings} if that is what you want, or {hint}"
        elif not _is_ann(index):
            hint = f"run {ddl_sql(DropIndex(index))}; {_creation_command(index, config)}"
        yield Finding(
            kind=kind,
            subject=f"index {actual.name}",
            actual=state,
            expected=expected,
            hint=hint,
        )


def _differing_settings(actual: LiveIndex, index: Index) -> str:
    """Return the settings that the live index was built with, where the model has others."""
    options = index.dialect_kwargs.get("postgresql_with") or {}
    return " and ".join(
        f"hnsw_{name}={value}" for name, value in _other_options(actual.options, options).items()
    )


def index_differences(
    actual: LiveIndex, index: Index
) -> Iterator[tuple[Literal["operator_class", "hnsw_parameters"], str, str]]:
    """Yield the differences between a live index and a model's: kind, actual and expected state."""
    method, columns, operator_classes = _definition(index)
    same_operators = not operator_classes or actual.operator_classes == operator_classes
    if (actual.method, actual.columns) != (method, columns) or not same_operators:
        yield (
            "operator_class",
            "it is " + _describe(actual.method, actual.columns, actual.operator_classes),
            _describe(method, columns, operator_classes),
        )
    yield from parameter_differences(actual, index)


def parameter_differences(
    actual: LiveIndex, index: Index
) -> Iterator[tuple[Literal["hnsw_parameters"], str, str]]:
    """Yield the differing parameters of an HNSW index: kind, actual and expected state."""
    options = index.dialect_kwargs.get("postgresql_with") or {}
    if actual.method == "hnsw" and (differing := _other_options(actual.options, options)):
        yield (
            "hnsw_parameters",
            "it has " + ", ".join(f"{name}={value}" for name, value in differing.items()),
            ", ".join(f"{name}={options[name]}" for name in differing),
        )


def _definition(index: Index) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the method, columns and operator classes of a model's index."""
    options = index.dialect_kwargs
    columns = tuple(column.name for column in index.columns)
    return (
        options.get("postgresql_using") or "btree",
        columns or tuple(str(expression) for expression in index.expressions),
        tuple((options.get("postgresql_ops") or {}).values()),
    )


def _invalid_index_finding(
    actual: LiveIndex, live: LiveTable | None, config: SchemaConfig
) -> Finding:
    """Return the finding for an invalid index.

    The hint for the ANN index, or a part of it, is to rebuild the whole ANN index.

    Args:
        actual: The invalid index.
        live: The table, if the index may be the application's; None if the index is cenote's.
        config: Configuration of the table.
    """
    is_cenotes = live is None or actual.name == part_name(actual.table)
    rebuild = is_cenotes and actual.method == "hnsw"
    return Finding(
        kind="index_invalid",
        subject=f"index {actual.name}",
        actual=f"it is invalid (on {actual.table}): its build was interrupted",
        expected="a valid index",
        hint="run " + reindex_command(config)
        if rebuild
        else "drop it, and create it again if it is needed",
    )


def _other_options(actual: Mapping[str, str], expected: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that differ, with pgvector's defaults for missing ones."""
    defaults = {"m": "16", "ef_construction": "64"}
    live = {**defaults, **actual}
    return {name: live[name] for name in expected if live.get(name) != str(expected[name])}


def _describe(method: str, columns: tuple[str, ...], operator_classes: tuple[str, ...]) -> str:
    parts = [
        " ".join(pair)
        for pair in (zip(columns, operator_classes, strict=True) if operator_classes else [columns])
    ]
    return f"{method} ({', '.join(parts)})"


def _is_ann(index: Index) -> bool:
    return index.dialect_kwargs.get("postgresql_using") == "hnsw"


def _creation_command(index: Index, config: SchemaConfig) -> str:
    if not _is_ann(index):
        return ddl_sql(CreateIndex(index))
    kind = f" --index {config.index}" if config.index else ""
    return reindex_command(config) + kind
