"""The data of a comparison: rows of many tenants, queries, and the exact results.

Generated rows are a mixture of overlapping clusters in few dimensions, embedded in many dimensions.
Embeddings of text have this structure, and it is harder for an index than evenly spread vectors.
Tenants share the clusters and differ in size, from about half of all rows down to a handful.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Filter: TypeAlias = dict[str, Any] | None

SHARES = (47.0, 25.0, 12.0, 6.0, 3.0, 1.8, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
"""Percentages of the rows that the searched tenants hold, roughly following Zipf's law."""

SMALL_TENANT = 20
"""Number of rows of each of the many tenants that hold the remaining rows."""

INTRINSIC_DIMENSIONS = 30
TOPICS = 40

FILTERS = ("none", "half", "tenth", "hundredth", "thousandth", "topic")
"""Kinds of filters, named after the share of the rows that match.

Matches of a topic depend on the vectors; matches of the others do not.
"""

_PARTS = {"half": 2, "tenth": 10, "hundredth": 100, "thousandth": 1000}
_SCORE_TOLERANCE = 1e-6

_SYLLABLES = tuple(a + b for a in "bdfgklmnprstvz" for b in "aeiou")
_VOCABULARY = 5000


@dataclass(frozen=True, slots=True)
class Collection:
    """Rows and queries.

    Attributes:
        vectors: Vectors of the rows, of unit length.
        queries: Query vectors, of unit length. None of them is a row's vector.
        tenants: Tenant of each row. Rows of a tenant are adjacent.
        metadata, contents: Metadata and content of each row.
        query_topics: For each query, a topic other than the query's.
        size: Number of rows in the collection. The rows after these are for later writes.
    """

    vectors: Floats
    queries: Floats
    tenants: list[str]
    metadata: list[dict[str, Any]]
    contents: list[str]
    query_topics: list[int]
    size: int

    def write(self, folder: Path) -> None:
        """Write the collection to files, from which the workers read it."""
        np.save(folder / "vectors.npy", self.vectors)
        np.save(folder / "queries.npy", self.queries)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for tenant, metadata, content in zip(
                self.tenants, self.metadata, self.contents, strict=True
            ):
                line = {"tenant": tenant, "metadata": metadata, "content": content}
                file.write(json.dumps(line) + "\n")

    def filter_of(self, kind: str, query: int) -> Filter:
        """Return the filter of this kind for a query, given by its number."""
        if kind == "none":
            return None
        if kind == "topic":
            return {"topic": self.query_topics[query]}
        return {kind: query % _PARTS[kind]}

    def tenant_sizes(self) -> dict[str, int]:
        """Return the number of rows of each tenant in `SHARES`, largest first."""
        return {name_of(share): self.tenants[: self.size].count(name_of(share)) for share in SHARES}


class Truth:
    """Results of an exact search: products of all unit vectors, in 32 bits as on the server.

    Args:
        collection: Rows and queries.
        one_tenant: True if all rows were loaded as a single tenant.
    """

    def __init__(self, collection: Collection, *, one_tenant: bool = False) -> None:
        self._scores = collection.queries @ collection.vectors[: collection.size].T
        self._tenants = None if one_tenant else np.array(collection.tenants[: collection.size])
        metadata = collection.metadata[: collection.size]
        self._columns = {key: np.array([row[key] for row in metadata]) for key in metadata[0]}

    def judge(
        self, query: int, tenant: str, filter: Filter, limit: int, found: Sequence[int]
    ) -> Judgement:
        """Compare the rows that a search found with the exact results."""
        matching = self._matching(tenant, filter)
        scores = self._scores[query]
        expected = min(limit, int(matching.sum()))
        rows = np.array(sorted(set(found)), dtype=np.int64)
        returned = rows[matching[rows]]
        if expected == 0:
            return Judgement(0, len(returned), 0, len(rows) - len(returned))
        candidates = scores[matching]
        last = np.partition(candidates, len(candidates) - expected)[len(candidates) - expected]
        hits = int((scores[returned] >= last - _SCORE_TOLERANCE).sum())
        foreign = len(rows) - len(returned)
        return Judgement(expected, len(returned), min(hits, expected), foreign)

    def _matching(self, tenant: str, filter: Filter) -> NDArray[np.bool_]:
        matching = np.ones(self._scores.shape[1], dtype=np.bool_)
        if self._tenants is not None:
            matching &= self._tenants == tenant
        for key, value in (filter or {}).items():
            matching &= self._columns[key] == value
        return matching


@dataclass(frozen=True, slots=True)
class Judgement:
    """Counts of a search's results.

    Attributes:
        expected: Number of results that an exact search returns.
        returned: Number of returned rows that match the tenant and the filter.
        hits: Number of returned rows that are among the nearest.
        foreign: Number of returned rows that do not match the tenant or the filter.
    """

    expected: int
    returned: int
    hits: int
    foreign: int


def name_of(share: float) -> str:
    """Return the name of the tenant that holds a share."""
    return f"share-{share:g}"


def id_of(row: int) -> str:
    """Return a row's id, a UUID because langchain-postgres accepts nothing else by default."""
    return str(uuid.UUID(int=row))


def row_of(id: str) -> int:
    """Return the number of the row with an id."""
    return uuid.UUID(id).int


def generate(
    rows: int, *, dimensions: int, queries: int, extra: int, words: int = 85, seed: int = 0
) -> Collection:
    """Generate rows in overlapping clusters of different sizes.

    Args:
        rows: Number of rows of the collection.
        dimensions: Number of dimensions of the vectors.
        queries: Number of queries.
        extra: Number of additional rows for later writes.
        words: Number of words in each row's content.
        seed: Seed of the random generator.
    """
    random = np.random.default_rng(seed)
    total = rows + extra
    clusters = max(20, min(1000, rows // 250))
    centres = random.standard_normal((clusters, INTRINSIC_DIMENSIONS))
    weights = random.dirichlet(np.ones(clusters))
    basis = np.linalg.qr(random.standard_normal((dimensions, INTRINSIC_DIMENSIONS)))[0].T

    def draw(count: int) -> Floats:
        centre = centres[random.choice(clusters, count, p=weights)]
        inner = centre + 0.7 * random.standard_normal(centre.shape)
        noise = 0.03 * random.standard_normal((count, dimensions), dtype=np.float32)
        return _unit((inner @ basis).astype(np.float32) + noise)

    vectors = draw(total)
    contents = list(_texts(total, words, random))
    return _with_tenants(vectors, draw(queries), contents, rows, random)


def read(folder: Path, *, rows: int | None, queries: int, extra: int, seed: int = 0) -> Collection:
    """Read the rows of a folder with docs.jsonl, docs.npy and queries.npy, in random order."""
    random = np.random.default_rng(seed)
    vectors = np.load(folder / "docs.npy").astype(np.float32)
    query_vectors = np.load(folder / "queries.npy").astype(np.float32)[:queries]
    lines = (folder / "docs.jsonl").read_text(encoding="utf-8").splitlines()
    order = random.permutation(len(lines))
    size = min(rows or len(lines), len(lines) - extra)
    order = order[: size + extra]
    contents = [json.loads(lines[row])["text"] for row in order]
    return _with_tenants(_unit(vectors[order]), _unit(query_vectors), contents, size, random)


def _texts(count: int, words: int, random: np.random.Generator) -> Iterator[str]:
    """Yield texts whose word frequencies follow Zipf's law, so they compress about like prose."""
    lengths = random.integers(1, 5, _VOCABULARY)
    vocabulary = np.array(["".join(random.choice(_SYLLABLES, length)) for length in lengths])
    frequency = 1 / np.arange(1, _VOCABULARY + 1)
    for _ in range(count):
        yield " ".join(random.choice(vocabulary, words, p=frequency / frequency.sum()))


def _with_tenants(
    vectors: Floats, queries: Floats, contents: list[str], size: int, random: np.random.Generator
) -> Collection:
    tenants = list(_tenants(size))
    tenants += [tenants[0]] * (len(vectors) - size)
    anchors = vectors[random.choice(len(vectors), TOPICS, replace=False)]
    topics = np.argmax(vectors @ anchors.T, axis=1)
    numbers = {name: random.integers(0, parts, len(vectors)) for name, parts in _PARTS.items()}
    numbers["year"] = random.integers(1990, 2026, len(vectors))
    numbers["topic"] = topics
    metadata = [
        {name: int(values[row]) for name, values in numbers.items()} for row in range(len(vectors))
    ]
    nearest_topics = np.argmax(queries @ anchors.T, axis=1)
    query_topics = [int(topic + TOPICS // 2) % TOPICS for topic in nearest_topics]
    return Collection(vectors, queries, tenants, metadata, contents, query_topics, size)


def _tenants(size: int) -> Iterator[str]:
    remaining = size
    for share in SHARES:
        count = min(remaining, max(1, round(size * share / 100)))
        yield from [name_of(share)] * count
        remaining -= count
    for number in range(remaining):
        yield f"small-{number // SMALL_TENANT}"


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
