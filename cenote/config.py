"""`SchemaConfig`: validated settings of the chunk table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cenote.errors import ConfigurationError
from cenote.postgres.ann_index import MAX_INDEXED_DIMENSIONS, METRICS_OF_BIT
from cenote.types import ColumnType, IndexKind, Metric
from cenote.validation.arguments import (
    check_choice,
    check_column_type,
    check_integer_setting,
    is_integer,
    safe_repr,
)

DEFAULT_TABLE_NAME = "cenote_chunks"
DEFAULT_HNSW_M = 16
DEFAULT_HNSW_EF_CONSTRUCTION = 64

DEFAULT_PARTITIONS = 16
"""Number of hash partitions by namespace. Each partition has its own HNSW index.

With one index for all tenants, the rows of other tenants crowd out the results of a small tenant.
Measured on 50,000 abstracts in 7 tenants (384 dimensions, ef_search 100, iterative scan): 16
partitions raised the lowest recall from 0.83 to 0.96 and lowered the slowest median search from 38
to 1.3 ms, because each graph holds fewer rows of other tenants. More partitions mean more relations
to plan and migrate (five per partition).
"""

_MAX_SHARDS = 64_000
"""Maximum of Citus' setting ``citus.shard_count``."""

_MAX_IDENTIFIER_BYTES = 63
_LONGEST_AFFIX = "ix__namespace_document_id"  # of the index names that cenote.orm derives


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaConfig:
    """Settings of the chunk table, for the revisions, the commands and the stores.

    For an existing table, None as `index`, `partitions`, `text_search`, `row_security` or
    `distribution` means the value that the table has. Below is what None means for a new table.

    Attributes:
        dimensions: Number of dimensions of every vector, 1 to 16,000. The ANN index limits it to
            2,000 (``index="vector"``) or 4,000 (``"halfvec"``).
        column_type: ``"vector"`` stores 32 bits per dimension, ``"halfvec"`` 16.
        metric: ``"cosine"``, ``"inner_product"`` or ``"l2"`` (Euclidean distance). It determines
            the scores; see `VectorStore`. The metric of an existing table cannot change.
        index: What the ANN index stores of each vector. ``"vector"``: 32 bits per dimension.
            ``"halfvec"``: 16 bits, for up to 4,000 dimensions. ``"bit"``: the signs, 1 bit, for
            cosine only; a search compares the candidates that it finds again with their stored
            vectors. ``"none"``: no ANN index, so every search is exact. None means the type of the
            column.
        table_name: A Python identifier of at most 38 bytes, because the names of its indexes must
            fit into Postgres' limit of 63 bytes.
        schema: Schema of the table. None means the default schema of the connection.
        hnsw_m: Number of links per node of the HNSW graph, 2 to 100.
        hnsw_ef_construction: Number of candidates considered while the graph is built, 4 to 1,000
            and at least 2 * hnsw_m.
        partitions: Number of hash partitions by namespace, 2 to 1,024, or 0 for a plain table. None
            means `DEFAULT_PARTITIONS`, or 0 if the table is distributed.
        extension_schema: Schema in which the revision creates the ``vector`` extension if it is
            missing. It must be on the search_path. None lets Postgres choose.
        text_search: Text search configuration of the contents for full text search, for example
            ``"spanish"`` or a custom one. For a table with several languages, list several:
            ``"spanish, english"``. A chunk then selects one of them with the metadata key
            ``language``; the first applies to chunks that select none. None means no full text. A
            store searches by text only if this is set, whatever the table has.
        row_security: True if row-level security in the database separates the tenants. None means
            False.
        distribution: ``"citus"`` distributes a plain table by namespace over the nodes of a Citus
            cluster, with each namespace entirely on one node. None means a single server.
        shard_count: Number of shards of a distributed table, 1 to 64,000. None means the cluster's
            ``citus.shard_count``.
        colocate_with: Table to co-locate the shards with, optionally with its schema. It must be
            distributed by the name of the tenant as text. Joins and foreign keys between both
            tables then stay on one node. None lets Citus choose.

    Raises:
        ConfigurationError: A value is invalid. The error names the setting.
    """

    dimensions: int
    column_type: ColumnType = "vector"
    metric: Metric = "cosine"
    index: IndexKind | None = None
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
                f"row_security must be True or False, not {safe_repr(self.row_security)}",
                setting="row_security",
            )
        check_integer_setting(self.hnsw_m, setting="hnsw_m", least=2, most=100)
        check_integer_setting(
            self.hnsw_ef_construction, setting="hnsw_ef_construction", least=4, most=1000
        )
        if self.hnsw_ef_construction < 2 * self.hnsw_m:
            raise ConfigurationError(
                f"hnsw_ef_construction is {self.hnsw_ef_construction}; pgvector needs at least "
                f"2 * hnsw_m = {2 * self.hnsw_m}",
                setting="hnsw_ef_construction",
            )
        if self.partitions is not None and not is_integer(self.partitions, 0, 0):
            check_integer_setting(
                self.partitions,
                setting="partitions",
                least=2,
                most=1024,
                hint="0 for a plain table",
            )
        self._check_distribution()

    @property
    def index_kind(self) -> IndexKind:
        """Kind of the ANN index of a new table with these settings."""
        return self.column_type if self.index is None else self.index

    @property
    def new_partitions(self) -> int:
        """Number of partitions of a new table with these settings."""
        if self.partitions is None:
            return 0 if self.distribution else DEFAULT_PARTITIONS
        return self.partitions

    @property
    def languages(self) -> tuple[str, ...]:
        """Text search configurations; empty without full text."""
        return languages(self.text_search)

    def _check_dimensions(self) -> None:
        check_column_type(self.column_type)
        check_choice(self.metric, Metric, setting="metric")
        if self.index is not None:
            check_choice(self.index, IndexKind, setting="index")
        kind = self.index_kind
        if kind == "vector" and self.column_type == "halfvec":
            raise ConfigurationError(
                "index='vector' needs 32 bits per dimension, and column_type='halfvec' stores 16; "
                "omit `index`, or set column_type='vector'",
                setting="index",
            )
        if kind == "bit" and self.metric not in METRICS_OF_BIT:
            raise ConfigurationError(
                f"index='bit' stores only the signs, which do not tell {self.metric}; set "
                "metric='cosine', or choose index='halfvec' or 'vector'",
                setting="index",
            )
        check_integer_setting(
            self.dimensions,
            setting="dimensions",
            least=1,
            most=MAX_INDEXED_DIMENSIONS[kind],
            hint=self._larger_kinds(),
        )

    def _larger_kinds(self) -> str:
        """Return a hint to the kinds of index that support more dimensions."""
        most = MAX_INDEXED_DIMENSIONS[self.index_kind]
        larger = [
            f"index={kind!r} supports up to {maximum:,}"
            for kind, maximum in MAX_INDEXED_DIMENSIONS.items()
            if maximum > most and (kind != "bit" or self.metric in METRICS_OF_BIT)
        ]
        return ", ".join(larger) or "a column cannot store more; shorten the vectors"

    def _check_distribution(self) -> None:
        if self.distribution not in (None, "citus"):
            raise ConfigurationError(
                f"distribution must be 'citus' or None, not {safe_repr(self.distribution)}",
                setting="distribution",
            )
        if self.distribution is None:
            for setting in ("shard_count", "colocate_with"):
                if getattr(self, setting) is not None:
                    raise ConfigurationError(
                        f"{setting} requires a distributed table: set distribution='citus' as well",
                        setting=setting,
                    )
            return
        if self.partitions:
            raise ConfigurationError(
                "a distributed table has shards instead of partitions: omit `partitions`",
                setting="partitions",
            )
        if self.row_security:
            raise ConfigurationError(
                "row_security depends on a setting of the transaction, which Citus does not pass "
                "on to the nodes with the rows; omit `row_security` or `distribution`",
                setting="row_security",
            )
        if self.shard_count is not None:
            check_integer_setting(
                self.shard_count, setting="shard_count", least=1, most=_MAX_SHARDS
            )
        if self.colocate_with is not None:
            self._check_colocation()

    def _check_colocation(self) -> None:
        if not isinstance(self.colocate_with, str):
            raise ConfigurationError(
                f"colocate_with must be the name of a table, not {safe_repr(self.colocate_with)}",
                setting="colocate_with",
            )
        for part in self.colocate_with.split(".", 1):
            check_identifier("colocate_with", part, _MAX_IDENTIFIER_BYTES)
        if self.shard_count is not None:
            raise ConfigurationError(
                "a co-located table has the same number of shards as the other table: omit "
                "`shard_count` or `colocate_with`",
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
                        f"{setting} must not start with pg_, which Postgres reserves; it is "
                        f"{name!r}",
                        setting=setting,
                    )


def languages(text_search: str | None) -> tuple[str, ...]:
    """Split a `text_search` setting into its text search configurations, without duplicates.

    The names are in lower case, because Postgres folds them.
    """
    names = (text_search or "").lower().split(",")
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def check_text_search(text_search: Any) -> None:
    """Check that a value lists text search configurations, with or without their schemas.

    Raises:
        ConfigurationError: It lists none, or a name is not an identifier.
    """
    if text_search is None:
        return
    if not isinstance(text_search, str) or not languages(text_search):
        raise ConfigurationError(
            "text_search must name one or more text search configurations, for example 'spanish' "
            f"or 'spanish, english', not {safe_repr(text_search)}",
            setting="text_search",
        )
    for name in languages(text_search):
        schema, _, configuration = name.rpartition(".")
        for part in (schema, configuration) if schema else (configuration,):
            check_identifier("text_search", part, _MAX_IDENTIFIER_BYTES)


def check_identifier(setting: str, name: Any, most_bytes: int) -> None:
    """Check that a name is an identifier: letters, digits and underscores, no digit first.

    Args:
        setting: Name of the setting, for the error.
        name: The name to check.
        most_bytes: Maximum number of bytes in UTF-8.

    Raises:
        ConfigurationError: It is not an identifier, or it is too long.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigurationError(
            f"{setting} must consist of letters, digits and underscores and not start with a "
            f"digit; it is {safe_repr(name)}",
            setting=setting,
        )
    if len(name.encode()) > most_bytes:
        raise ConfigurationError(
            f"{setting} must have at most {most_bytes} bytes; it has {len(name.encode())}",
            setting=setting,
        )
