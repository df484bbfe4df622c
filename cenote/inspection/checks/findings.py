"""Findings: differences between a live table and a configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import ExecutableDDLElement

from cenote.postgres.ddl import qualified

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
    "metric",
    "key",
    "partitions",
    "columns",
    "text_search",
    "row_security",
    "distribution",
    "shards_uneven",
    "shard_unreachable",
    "index_missing",
    "index_invalid",
    "index_left_over",
    "operator_class",
    "hnsw_parameters",
    "recall_outdated",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A difference between the database and the configuration.

    Attributes:
        kind: Kind of difference.
        subject: Object that differs, for example ``"table cenote_chunks"``.
        actual: State of the object.
        expected: State that the configuration requires.
        hint: Command or setting that removes the difference.
    """

    kind: FindingKind
    subject: str
    actual: str
    expected: str
    hint: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.actual}, expected {self.expected}; {self.hint}"

    def as_dict(self) -> dict[str, str]:
        """Return the attributes as a dict, for JSON."""
        return asdict(self)


def subject_of(table_name: str, schema: str | None) -> str:
    """Return the name that findings use for a table."""
    return "table " + qualified(table_name, schema)


def ddl_sql(statement: ExecutableDDLElement) -> str:
    """Return a DDL statement as SQL, for a hint."""
    return str(statement.compile(dialect=PGDialect())).strip()  # type: ignore[no-untyped-call]
