"""SchemaConfig: everything that shapes the chunk table, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cenote.errors import ConfigurationError
from cenote.types import ColumnType
from cenote.validation import check_column_type, shown

DEFAULT_TABLE_NAME = "cenote_chunks"
DEFAULT_HNSW_M = 16
DEFAULT_HNSW_EF_CONSTRUCTION = 64

DEFAULT_PARTITIONS = 16
"""Hash partitions by namespace, each with an HNSW index of its own.

One index over all tenants loses a small tenant's results among everybody else's rows. Measured on
50,000 abstracts in 7 tenants (384 dimensions, ef_search 100, iterative scan), 16 partitions raised
the lowest recall from 0.83 to 0.96 and lowered the slowest median search from 38 to 1.3 ms, since
each graph holds fewer rows of other tenants. More partitions mean more relations to plan over
and to migrate (each has five).
"""

MAX_DIMENSIONS: dict[str, int] = {"vector": 2000, "halfvec": 4000}
"""What pgvector's HNSW can index: an index page of 8 kB must hold one vector."""

_MAX_SHARDS = 64_000
"""Of Citus' ``citus.shard_count``."""

_MAX_IDENTIFIER_BYTES = 63
_LONGEST_AFFIX = "ix__namespace_document_id"  # of the names that cenote.orm derives


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaConfig:
    """What the chunk table looks like. The revisions and the stores read it.

    Attributes:
        dimensions: length of every vector, 1 to 2,000 (``vector``) or 4,000 (``halfvec``).
        column_type: ``"vector"`` keeps 32 bits for each dimension, ``"halfvec"`` 16.
        table_name: a Python identifier of at most 38 bytes, so that the names of its indexes fit
            Postgres' 63.
        schema: the schema of the table; the connection's default one when None.
        hnsw_m: links of a node in the HNSW graph, 2 to 100.
        hnsw_ef_construction: candidates considered while building it, 4 to 1,000 and at least
            2 * hnsw_m.
        partitions: hash partitions by namespace, 2 to 1,024, or 0 for a plain table. None means
            `DEFAULT_PARTITIONS` for a table that is made, and whatever one has that is there.
        extension_schema: where the revision creates the ``vector`` extension if it is missing; it
            must be on the search_path. Postgres' own choice when None.
        text_search: for full text, the text search configuration of the contents, such as
            ``"spanish"`` or one of your own; several, as ``"spanish, english"``, for a table in
            which a chunk's metadata may name one by the key ``language`` (the first where they do
            not). None means no full text for a table that is made, and for commands whatever one
            has that is there; a store searches by words only if it is told.
        row_security: whether the database itself keeps tenants apart, by row-level security. None
            means no for a table that is made, and whatever one has that is there.
        distribution: ``"citus"`` distributes the table, a plain one, by namespace over the nodes of
            a Citus cluster, so that every namespace is whole on one of them. None means one machine
            for a table that is made, and whatever one has that is there.
        shard_count: in how many shards a distributed table is made, 1 to 64,000; the cluster's
            ``citus.shard_count`` when None.
        colocate_with: the table, with its schema if need be, whose shards those of a distributed
            table shall be beside: one of your own that is distributed by the tenant's name as text,
            so that joins and foreign keys stay on one node. Citus' own choice when None.

    Raises:
        ConfigurationError: a value cannot work; the error names the setting.
    """

    dimensions: int
    column_type: ColumnType = "vector"
    table_name: str = DEFAULT_TABLE_NAME
    schema: str | None = None
    hnsw_m: int = DEFAULT_HNSW_M
    hnsw_ef_construction: int = DEFAULT_HNSW_EF_CONSTRUCTION
    partitions: int | None = None
    extension_schema: str | None = None
    text_search: str | None = None
    row_security: bool | None = None
    distribution: Literal["citus"] | None = None
    shard_count: int | None = None
    colocate_with: str | None = None

    def __post_init__(self) -> None:
        self._check_dimensions()
        self._check_names()
        check_text_search(self.text_search)
        if not isinstance(self.row_security, bool | None):
            raise ConfigurationError(
                f"row_security must be True or False, not {shown(self.row_security)}",
                setting="row_security",
            )
        _check_integer("hnsw_m", self.hnsw_m, 2, 100)
        _check_integer("hnsw_ef_construction", self.hnsw_ef_construction, 4, 1000)
        if self.hnsw_ef_construction < 2 * self.hnsw_m:
            raise ConfigurationError(
                f"hnsw_ef_construction is {self.hnsw_ef_construction}; pgvector needs at least "
                f"2 * hnsw_m = {2 * self.hnsw_m}",
                setting="hnsw_ef_construction",
            )
        if self.partitions is not None and not _is_zero(self.partitions):
            _check_integer("partitions", self.partitions, 2, 1024, or_else="0 for a plain table")
        self._check_distribution()

    @property
    def new_partitions(self) -> int:
        """The partitions of a table that is made with these settings."""
        if self.partitions is None:
            return 0 if self.distribution else DEFAULT_PARTITIONS
        return self.partitions

    @property
    def languages(self) -> tuple[str, ...]:
        """The text search configurations; none without full text."""
        return languages(self.text_search)

    def _check_dimensions(self) -> None:
        check_column_type(self.column_type)
        most = MAX_DIMENSIONS[self.column_type]
        if self.column_type == "vector":
            cure = "column_type='halfvec' takes up to 4,000"
        else:
            cure = "pgvector's HNSW cannot index more; shorten the vectors"
        _check_integer("dimensions", self.dimensions, 1, most, or_else=cure)

    def _check_distribution(self) -> None:
        if self.distribution not in (None, "citus"):
            raise ConfigurationError(
                f"distribution must be 'citus', or left out, not {shown(self.distribution)}",
                setting="distribution",
            )
        if self.distribution is None:
            for setting in ("shard_count", "colocate_with"):
                if getattr(self, setting) is not None:
                    raise ConfigurationError(
                        f"{setting} is about a distributed table: say distribution='citus', too",
                        setting=setting,
                    )
            return
        if self.partitions:
            raise ConfigurationError(
                "a distributed table has shards instead of partitions: leave partitions out",
                setting="partitions",
            )
        if self.row_security:
            raise ConfigurationError(
                "row_security needs a setting of the transaction, which Citus does not hand on to "
                "the nodes with the rows; leave out one of row_security and distribution",
                setting="row_security",
            )
        if self.shard_count is not None:
            _check_integer("shard_count", self.shard_count, 1, _MAX_SHARDS)
        if self.colocate_with is not None:
            self._check_colocation()

    def _check_colocation(self) -> None:
        if not isinstance(self.colocate_with, str):
            raise ConfigurationError(
                f"colocate_with must name a table, not {shown(self.colocate_with)}",
                setting="colocate_with",
            )
        for part in self.colocate_with.split(".", 1):
            check_identifier("colocate_with", part, _MAX_IDENTIFIER_BYTES)
        if self.shard_count is not None:
            raise ConfigurationError(
                "a table beside another one has as many shards as that: leave out shard_count or "
                "colocate_with",
                setting="shard_count",
            )

    def _check_names(self) -> None:
        most = _MAX_IDENTIFIER_BYTES - len(_LONGEST_AFFIX)
        check_identifier("table_name", self.table_name, most)
        for setting in ("schema", "extension_schema"):
            name = getattr(self, setting)
            if name is not None:
                check_identifier(setting, name, _MAX_IDENTIFIER_BYTES)
                if name.startswith("pg_"):
                    raise ConfigurationError(
                        f"{setting} {name!r}: names with pg_ belong to Postgres", setting=setting
                    )


def languages(text_search: str | None) -> tuple[str, ...]:
    """The text search configurations that a setting names, of which each counts once.

    In lower case, to which Postgres folds them.
    """
    named = (text_search or "").lower().split(",")
    return tuple(dict.fromkeys(name.strip() for name in named if name.strip()))


def check_text_search(text_search: Any) -> None:
    """Refuse what names no text search configurations, with or without their schemas."""
    if text_search is None:
        return
    if not isinstance(text_search, str) or not languages(text_search):
        raise ConfigurationError(
            "text_search must name a text search configuration, such as 'spanish', or several, "
            f"not {shown(text_search)}",
            setting="text_search",
        )
    for name in languages(text_search):
        schema, _, own = name.rpartition(".")
        for part in (schema, own) if schema else (own,):
            check_identifier("text_search", part, _MAX_IDENTIFIER_BYTES)


def check_identifier(setting: str, name: Any, most_bytes: int) -> None:
    """Refuse what is no plain identifier: letters, digits and underscores, no digit first."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigurationError(
            f"{setting} must be letters, digits and underscores, not starting with a digit; "
            f"it is {shown(name)}",
            setting=setting,
        )
    if len(name.encode()) > most_bytes:
        raise ConfigurationError(
            f"{setting} has {len(name.encode())} bytes; at most {most_bytes} fit",
            setting=setting,
        )


def _is_zero(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 0


def _check_integer(
    setting: str, value: Any, least: int, most: int, *, or_else: str | None = None
) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        hint = "" if or_else is None else f" ({or_else})"
        raise ConfigurationError(
            f"{setting} must be an integer from {least:,} to {most:,}{hint}, not {shown(value)}",
            setting=setting,
        )
