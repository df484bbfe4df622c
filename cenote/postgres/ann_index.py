"""Metrics, and the ANN indexes that serve them.

This module alone knows how a metric maps to pgvector's operators, operator classes and scores, and
what an ANN index of each kind is defined on. Source: the README of pgvector 0.8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from pgvector.sqlalchemy import BIT, HALFVEC
from sqlalchemy import ColumnElement, Double, cast, func, literal_column

from cenote.types import ColumnType, IndexKind, Metric

MAX_INDEXED_DIMENSIONS: dict[IndexKind, int] = {
    "vector": 2_000,
    "halfvec": 4_000,
    "bit": 16_000,
    "none": 16_000,
}
"""Maximum number of dimensions by kind of index.

An index page of 8 kB must hold what the index stores of a vector. A column holds 16,000 dimensions.
"""

METRICS_OF_BIT: tuple[Metric, ...] = ("cosine",)
"""Metrics that an index of signs serves: signs keep the direction of a vector, not its length."""

_SUFFIXES: dict[Metric, str] = {"cosine": "cosine", "inner_product": "ip", "l2": "l2"}
"""The part of an operator class's name that names the metric."""

_COMPARATORS: dict[Metric, str] = {
    "cosine": "cosine_distance",
    "inner_product": "max_inner_product",
    "l2": "l2_distance",
}
"""Method of pgvector's column types, by metric: ``<=>``, ``<#>`` (the negative inner product) and
``<->``."""

_HAMMING = "bit_hamming_ops"

_MARK = re.compile(r"(?:^|; )cenote: (\w+=\w+(?:, \w+=\w+)*)$")
"""End of a table's comment that records its metric, and that it has no ANN index.

An operator class tells the metric, too, but not while the index is missing.
"""


# -- expressions -----------------------------------------------------------------------------------


def distance(
    metric: Metric, embedding: ColumnElement[Any], query: ColumnElement[Any] | Any
) -> ColumnElement[float]:
    """Return the distance of an embedding and a query vector. Lower is nearer."""
    comparator: Callable[[Any], ColumnElement[float]] = getattr(embedding, _COMPARATORS[metric])
    return comparator(query)


def score(metric: Metric, distance: ColumnElement[float]) -> ColumnElement[float]:
    """Return the score of a distance: see `VectorStore`."""
    # Not the negative distance, because the negative of 0.0 is -0.0.
    nearest: ColumnElement[float] = literal_column("1" if metric == "cosine" else "0", Double())
    return nearest - distance


def max_distance(metric: Metric) -> int | None:
    """Return the maximum of the distance; None if it has none.

    The cosine distance of a zero vector is NaN, which is greater than every number in Postgres.
    """
    return 2 if metric == "cosine" else None


def index_distance(
    metric: Metric,
    kind: IndexKind,
    embedding: ColumnElement[Any],
    query: ColumnElement[Any],
    column_type: ColumnType,
    dimensions: int,
) -> ColumnElement[float]:
    """Return the distance that an ANN index of this kind orders by.

    Args:
        metric: Metric of the table.
        kind: Kind of the index.
        embedding: The embedding column.
        query: Query vector of the column's type.
        column_type: Type of the column.
        dimensions: Number of dimensions.
    """
    if kind == "bit":
        signs = BIT(dimensions)
        binary: Any = cast(func.binary_quantize(embedding), signs)
        hamming: ColumnElement[float] = binary.op("<~>", return_type=Double())(
            cast(func.binary_quantize(query), signs)
        )
        return hamming
    if kind == "halfvec" and column_type == "vector":
        half = HALFVEC(dimensions)
        return distance(metric, cast(embedding, half), cast(query, half))
    return distance(metric, embedding, query)


# -- definitions -----------------------------------------------------------------------------------


def operator_class(metric: Metric, kind: IndexKind) -> str:
    """Return the operator class of an ANN index."""
    return _HAMMING if kind == "bit" else f"{kind}_{_SUFFIXES[metric]}_ops"


def index_expression(kind: IndexKind, column_type: ColumnType, dimensions: int) -> str | None:
    """Return the expression that an ANN index is defined on; None for the embedding column."""
    if kind == "bit":
        return f"(binary_quantize(embedding)::bit({dimensions}))"
    if kind != column_type:
        return f"(embedding::{kind}({dimensions}))"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnIndex:
    """An ANN index of a live table.

    Attributes:
        oid: Object identifier.
        name: Name of the index.
        metric: Metric that it serves.
        kind: What it stores of each vector.
        comment: Comment on the index.
    """

    oid: int
    name: str
    metric: Metric
    kind: IndexKind
    comment: str | None


def parse_ann_index(
    *,
    oid: int,
    name: str,
    definition: str | None,
    operator_class: str,
    comment: str | None,
    column_type: str | None,
) -> AnnIndex | None:
    """Return the metric and the kind of a live HNSW index; None if cenote cannot search it.

    Args:
        oid, name, comment: See `AnnIndex`.
        definition: What the index is defined on, as ``pg_get_indexdef`` prints it. It prints None
            for an index that another transaction drops meanwhile, as `cenote reindex` does.
        operator_class: Its operator class.
        column_type: Type of the embedding column.
    """
    kind = None if definition is None else _kind_of(definition, column_type)
    if kind == "bit" and operator_class == _HAMMING:
        return AnnIndex(oid=oid, name=name, metric="cosine", kind="bit", comment=comment)
    for metric, suffix in _SUFFIXES.items():
        if kind is not None and operator_class == f"{kind}_{suffix}_ops":
            return AnnIndex(oid=oid, name=name, metric=metric, kind=kind, comment=comment)
    return None


def _kind_of(definition: str, column_type: str | None) -> IndexKind | None:
    words = re.sub(r"[()\"\s]", " ", definition).replace("::", " ").split()
    # A type or function in a schema off the search_path is printed with its schema.
    match [word.rpartition(".")[2] for word in words]:
        case ["embedding"]:
            return "halfvec" if column_type == "halfvec" else "vector"
        case ["embedding", "halfvec", _]:
            return "halfvec"
        case ["binary_quantize", "embedding", "bit", _]:
            return "bit"
    return None


def parse_ann_indexes(rows: str | None, column_type: str | None) -> list[AnnIndex]:
    """Return the ANN indexes that a query has aggregated as JSON.

    Args:
        rows: JSON array of ``[oid, name, definition, operator class, comment]``; None for none.
        column_type: Type of the embedding column.
    """
    keys = ("oid", "name", "definition", "operator_class", "comment")
    parsed = (
        parse_ann_index(**dict(zip(keys, row, strict=True)), column_type=column_type)
        for row in json.loads(rows or "[]")
    )
    return [index for index in parsed if index is not None]


def choose_index(
    indexes: Iterable[AnnIndex], metric: Metric, preferred_name: str
) -> AnnIndex | None:
    """Return the index that searches use: the one with the preferred name, or else the oldest."""
    serving = [index for index in indexes if index.metric == metric]
    return min(serving, key=lambda index: (index.name != preferred_name, index.oid), default=None)


# -- a table's comment -----------------------------------------------------------------------------


def marked_comment(comment: str | None, metric: Metric, kind: IndexKind) -> str | None:
    """Return a table's comment that records its metric, and that it has no ANN index.

    Without an ANN index, no operator class tells the metric, and the index might have been dropped
    for a bulk load that was interrupted. The default, cosine with an index, is not recorded.

    Args:
        comment: Present comment; None if the table has none.
        metric: Metric of the table.
        kind: Kind of its ANN index.
    """
    marks = [f"metric={metric}"] if metric != "cosine" else []
    if kind == "none":
        marks.append("index=none")
    parts = [_MARK.sub("", comment or "")]
    if marks:
        parts.append("cenote: " + ", ".join(marks))
    return "; ".join(part for part in parts if part) or None


def parse_metric(comment: str | None) -> Metric:
    """Return the metric of a table from its comment."""
    metric: Any = _marks(comment).get("metric")
    return metric if metric in get_args(Metric) else "cosine"


def has_no_index(comment: str | None) -> bool:
    """Return whether a table's comment records that it has no ANN index."""
    return _marks(comment).get("index") == "none"


def _marks(comment: str | None) -> dict[str, str]:
    found = _MARK.search(comment or "")
    return dict(mark.split("=") for mark in found[1].split(", ")) if found else {}
