"""The live chunk table compared with what was expected of it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sqlalchemy import Index, PrimaryKeyConstraint
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import AddConstraint, CreateIndex, ExecutableDDLElement

from cenote.catalog import LiveIndex, LiveTable, embedding_sql, qualified
from cenote.config import SchemaConfig
from cenote.connections import OLDEST_PGVECTOR, parse_version
from cenote.orm import KEY, chunk_table

FindingKind = Literal[
    "extension_missing",
    "extension_too_old",
    "table_missing",
    "not_a_chunk_table",
    "revision_missing",
    "revision_behind",
    "revision_ahead",
    "dimensions",
    "column_type",
    "key",
    "partitions",
    "index_missing",
    "index_invalid",
    "operator_class",
    "hnsw_parameters",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A difference between the database and what is expected of it.

    Attributes:
        kind: which one.
        subject: what differs, such as ``"table cenote_chunks"``.
        actual: what is.
        expected: what was expected.
        cure: the command or setting that mends it.
    """

    kind: FindingKind
    subject: str
    actual: str
    expected: str
    cure: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.actual}, expected {self.expected}; {self.cure}"

    def as_dict(self) -> dict[str, str]:
        """The attributes, for machines."""
        return asdict(self)


def findings(live: LiveTable, config: SchemaConfig) -> list[Finding]:
    """What differs between a live chunk table and a configuration, the gravest first."""
    subject = subject_of(config.table_name, config.schema)
    found = [
        embedding_finding(subject, live.column_type, live.dimensions, config),
        _key_finding(subject, live, config),
        partitions_finding(subject, live, config),
    ]
    return [finding for finding in found if finding is not None] + [*_of_indexes(live, config)]


def subject_of(table_name: str, schema: str | None) -> str:
    """How findings name a table."""
    return "table " + qualified(table_name, schema)


def extension_finding(version: str | None) -> Finding | None:
    """Whether the vector extension is missing or too old."""
    if version is not None and parse_version(version) >= OLDEST_PGVECTOR:
        return None
    return Finding(
        kind="extension_missing" if version is None else "extension_too_old",
        subject="extension vector",
        actual="it is missing" if version is None else f"it is {version}",
        expected=".".join(str(part) for part in OLDEST_PGVECTOR) + " or newer",
        cure="run CREATE EXTENSION vector, or cenote migrate, which does"
        if version is None
        else "install it on the server, then run ALTER EXTENSION vector UPDATE",
    )


def table_finding(subject: str, live: LiveTable | None, given: Mapping[str, Any]) -> Finding:
    """That the table is missing, or another one."""
    if live is None:
        return Finding(
            kind="table_missing",
            subject=subject,
            actual="it is missing",
            expected="a table made by cenote's revisions",
            cure="run " + upgrade_command(given),
        )
    return Finding(
        kind="not_a_chunk_table",
        subject=subject,
        actual="it has no column embedding of a fixed length",
        expected="a table made by cenote's revisions",
        cure="choose another table_name, or move it away",
    )


def revision_finding(
    subject: str, recorded: str | None, known: Container[str], head: str, given: Mapping[str, Any]
) -> Finding | None:
    """Whether the recorded revision is not the newest known one."""
    if recorded == head:
        return None
    kind: FindingKind = "revision_behind"
    actual, cure = f"it is at revision {recorded}", "run " + upgrade_command(given)
    if recorded is None:
        kind, actual = "revision_missing", "no revision is recorded"
        cure += ", which says if it cannot take the table over"
    elif recorded not in known:
        kind, cure = "revision_ahead", "install the cenote that made it, or a newer one"
    return Finding(kind=kind, subject=subject, actual=actual, expected=head, cure=cure)


def embedding_finding(
    subject: str, column_type: str | None, dimensions: int | None, config: SchemaConfig
) -> Finding | None:
    """Whether the embedding column has another type or length."""
    if (column_type, dimensions) == (config.column_type, config.dimensions):
        return None
    return Finding(
        kind="dimensions" if column_type == config.column_type else "column_type",
        subject=subject,
        actual="the embedding column is " + embedding_sql(column_type, dimensions),
        expected=embedding_sql(config.column_type, config.dimensions),
        cure="use the table's own, or another table_name",
    )


def partitions_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    """Whether partitions are missing, or are others than the configuration insists on."""
    number = len(live.partitions)
    if not live.complete:
        return Finding(
            kind="partitions",
            subject=subject,
            actual=f"its {number} partitions do not take every namespace",
            expected="all partitions of one modulus",
            cure="ATTACH the detached partition again",
        )
    if config.partitions in (None, number):
        return None
    return Finding(
        kind="partitions",
        subject=subject,
        actual=f"it has {number} partitions",
        expected=str(config.partitions),
        cure=f"set partitions={number}, or run {_repartition_command(config)}",
    )


def _key_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    if live.key == KEY:
        return None
    table = chunk_table(config)
    key = PrimaryKeyConstraint(*(table.c[name] for name in KEY), name=str(table.primary_key.name))
    return Finding(
        kind="key",
        subject=subject,
        actual=f"its primary key is ({', '.join(live.key)})" if live.key else "it has no key",
        expected=f"({', '.join(KEY)})",
        cure="drop it and run " + _sql(AddConstraint(key)),
    )


# -- indexes ---------------------------------------------------------------------------------------


def _of_indexes(live: LiveTable, config: SchemaConfig) -> Iterator[Finding]:
    expected = {str(index.name): index for index in chunk_table(config).indexes}
    for name, index in sorted(expected.items()):
        actual = live.index(name)
        if actual is None:
            yield Finding(
                kind="index_missing",
                subject=f"index {name}",
                actual="it is missing",
                expected=_sql(CreateIndex(index)),
                cure="run " + _make(index, config),
            )
        else:
            yield from _differences(actual, index, config)
    for actual in live.indexes:
        seen = actual.table == live.name and actual.name in expected
        if not actual.valid and not seen:
            yield _invalid(actual, config)


def _differences(actual: LiveIndex, index: Index, config: SchemaConfig) -> Iterator[Finding]:
    if not actual.valid:
        yield _invalid(actual, config)
    for kind, is_, expected in index_differences(actual, index):
        drop_first = "" if _is_ann(index) else "drop it and "
        yield Finding(
            kind=kind,
            subject=f"index {actual.name}",
            actual=is_,
            expected=expected,
            cure=f"{drop_first}run {_make(index, config)}",
        )


def index_differences(
    actual: LiveIndex, index: Index
) -> Iterator[tuple[Literal["operator_class", "hnsw_parameters"], str, str]]:
    """How a live index differs from a model's: what, what it is, and what was expected."""
    method = index.dialect_kwargs.get("postgresql_using") or "btree"
    columns = tuple(column.name for column in index.columns)
    operator_classes = tuple((index.dialect_kwargs.get("postgresql_ops") or {}).values())
    same_operators = not operator_classes or actual.operator_classes == operator_classes
    if (actual.method, actual.columns) != (method, columns) or not same_operators:
        yield (
            "operator_class",
            "it is " + _described(actual.method, actual.columns, actual.operator_classes),
            _described(method, columns, operator_classes),
        )
    options = index.dialect_kwargs.get("postgresql_with") or {}
    if actual.method == "hnsw" and (differing := _other_options(actual.options, options)):
        yield (
            "hnsw_parameters",
            "it has " + ", ".join(f"{name}={value}" for name, value in differing.items()),
            ", ".join(f"{name}={options[name]}" for name in differing),
        )


def _invalid(actual: LiveIndex, config: SchemaConfig) -> Finding:
    cure = "drop it, and build it again"
    if actual.method == "hnsw":
        cure = "run " + _reindex_command(config)
    return Finding(
        kind="index_invalid",
        subject=f"index {actual.name}",
        actual=f"it is invalid (on {actual.table}): its build did not end",
        expected="a valid index",
        cure=cure,
    )


def _other_options(actual: Mapping[str, str], expected: Mapping[str, Any]) -> dict[str, str]:
    """The options that differ; pgvector's own defaults stand for those that are not there."""
    defaults = {"m": "16", "ef_construction": "64"}
    live = {**defaults, **actual}
    return {name: live[name] for name in expected if live.get(name) != str(expected[name])}


def _described(method: str, columns: tuple[str, ...], operator_classes: tuple[str, ...]) -> str:
    parts = [
        " ".join(pair)
        for pair in (zip(columns, operator_classes, strict=True) if operator_classes else [columns])
    ]
    return f"{method} ({', '.join(parts)})"


def _is_ann(index: Index) -> bool:
    return index.dialect_kwargs.get("postgresql_using") == "hnsw"


def _make(index: Index, config: SchemaConfig) -> str:
    return _reindex_command(config) if _is_ann(index) else _sql(CreateIndex(index))


def _sql(statement: ExecutableDDLElement) -> str:
    return str(statement.compile(dialect=PGDialect())).strip()  # type: ignore[no-untyped-call]


# -- commands --------------------------------------------------------------------------------------


def upgrade_command(given: Mapping[str, Any]) -> str:
    """The command that makes the table of some settings."""
    dimensions = "" if "dimensions" in given else "-x dimensions=... "
    return f"cenote migrate {dimensions}{_arguments(given)}upgrade head"


def _reindex_command(config: SchemaConfig) -> str:
    parameters = f"--m {config.hnsw_m} --ef-construction {config.hnsw_ef_construction}"
    return f"cenote reindex {_arguments(_names(config))}{parameters}"


def _repartition_command(config: SchemaConfig) -> str:
    return f"cenote repartition {_arguments(_names(config))}{config.partitions}"


def _names(config: SchemaConfig) -> dict[str, Any]:
    return {"table_name": config.table_name, "schema": config.schema}


def _arguments(given: Mapping[str, Any]) -> str:
    """Those settings that differ from their defaults, for a command line."""
    return "".join(
        f"-x {field.name}={given[field.name]} "
        for field in fields(SchemaConfig)
        if given.get(field.name, field.default) != field.default
    )
