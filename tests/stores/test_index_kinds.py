"""Searches of large namespaces through an ANN index of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.database import APP_ROLE, execute, scalar
from support.driver import watch

from cenote import InvalidInputError, PgVectorStore
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded, expected_score
from cenote.types import Metric

DIMENSIONS = 128
ROWS = 3 * EXACT_UP_TO
FEW = 10

_random = np.random.default_rng(5)
_centres = _random.standard_normal((30, DIMENSIONS))
VECTORS = (
    _centres[_random.integers(0, 30, ROWS)] + 0.7 * _random.standard_normal((ROWS, DIMENSIONS))
).astype(np.float32)
QUERIES = (VECTORS[:20] + 0.3 * _random.standard_normal((20, DIMENSIONS))).astype(np.float32)
WORD = "gardens"

SCANS = """
    SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes s
    JOIN pg_class i ON i.oid = s.indexrelid JOIN pg_am a ON a.oid = i.relam WHERE a.amname = 'hnsw'
"""


def chunks(count: int = ROWS) -> list[Any]:
    return [
        embedded(
            f"{n:05}",
            vector,
            document_id=f"d{n // 3}",
            content=WORD if n % 2 else "some text",
            metadata={"most": n % 10 > 0, "few": n % (ROWS // FEW) == 0},
        )
        for n, vector in enumerate(VECTORS[:count])
    ]


CONFIGURATIONS: list[dict[str, Any]] = [
    {"index": "halfvec", "partitions": 0},
    {"index": "halfvec", "metric": "inner_product"},
    {"index": "bit", "partitions": 0},
    {"index": "bit", "row_security": True},
    {"index": "bit", "column_type": "halfvec", "partitions": 2},
]


@pytest.fixture(scope="class")
def filled() -> set[str]:
    """Names of the tables that exist and are filled."""
    return set()


@pytest.fixture
async def one_connection(class_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection, for `scans`."""
    engine = create_async_engine(class_engine.url, pool_size=1, max_overflow=0)
    yield engine
    await engine.dispose()


async def scans(engine: AsyncEngine) -> int:
    """Return how often the engine's only connection has scanned an ANN index."""
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_stat_force_next_flush()"))
        await connection.commit()
        return int(await connection.scalar(text(SCANS)) or 0)


@pytest.mark.parametrize(
    "settings", CONFIGURATIONS, ids=lambda s: "-".join(map(str, s.values())), scope="class"
)
class TestLargeNamespaces:
    @pytest.fixture
    async def store(
        self, one_connection: AsyncEngine, filled: set[str], settings: dict[str, Any]
    ) -> AsyncIterator[PgVectorStore]:
        name = f"table_{CONFIGURATIONS.index(settings)}"
        options = {"table_name": name, "text_search": "english", **settings}
        engine = one_connection
        if name not in filled:
            admin = PgVectorStore(engine, DIMENSIONS, **options)
            await admin.apply_migrations()
            await admin.upsert(chunks(), "large")
            await admin.upsert(chunks(300), "other")
            await execute(engine, APP_ROLE, f"ANALYZE {name}", f"GRANT ALL ON {name} TO cenote_app")
            filled.add(name)
        if not settings.get("row_security"):
            yield PgVectorStore(engine, DIMENSIONS, **options)
            return
        url = engine.url.set(username="cenote_app")
        app = create_async_engine(url, pool_size=1, max_overflow=0)
        yield PgVectorStore(app, DIMENSIONS, **options)
        await app.dispose()

    @pytest.fixture
    def metric(self, store: PgVectorStore) -> Metric:
        return store.metric

    async def test_every_search_scans_the_index(
        self, store: PgVectorStore, settings: dict[str, Any]
    ) -> None:
        """Also with a filter, a condition, and in the generic plans that Postgres may choose."""

        async def by_statement(query: Any) -> list[Any]:
            statement = store.search_statement(query, "large")
            async with store.engine.connect() as connection:
                return [*(await connection.execute(statement))]

        async def in_transaction(query: Any) -> list[Any]:
            async with store.engine.connect() as connection:
                return await store.search(query, "large", session=connection)

        searches: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "search": lambda q: store.search(q, "large"),
            "transaction": in_transaction,
            "filter": lambda q: store.search(q, "large", 10, {"most": True}),
            "where": lambda q: store.search(q, "large", where=store.model.position == 0),
            "per_document": lambda q: store.search(q, "large", per_document=1),
            "many": lambda q: store.search_many([q, q], "large"),
            "hybrid": lambda q: store.search_hybrid(WORD, q, "large"),
        }
        if not settings.get("row_security"):
            searches["statement"] = by_statement
        for name, search in searches.items():
            if name == "hybrid":  # of 3,000 rows, Postgres may prefer to sort them all
                await execute(store.engine, "SET enable_sort = off", "SET enable_seqscan = off")
            for turn in range(8):
                before = await scans(store.engine)
                found = await search(QUERIES[turn])
                assert await scans(store.engine) > before, f"{name}, execution {turn}"
                if name == "many":
                    assert [len(results) for results in found] == [10, 10]
                else:
                    assert len(found) == 10, name

    async def test_scores_are_exact_and_most_neighbours_are_found(
        self, store: PgVectorStore
    ) -> None:
        """The scores are those of the stored vectors, whatever the index stores."""
        hits = 0
        for query in QUERIES:
            found = await store.search(query, "large")
            exact = {r.chunk.id: r.score for r in await store.search(query, "large", exact=True)}
            hits += len(exact.keys() & {result.chunk.id for result in found})
            scores = [result.score for result in found]
            assert scores == sorted(scores, reverse=True)
            for result in found:
                assert result.score == exact.get(result.chunk.id, result.score)
                expected = expected_score(store.metric, query, VECTORS[int(result.chunk.id)])
                accuracy = 1e-3 if store.config.column_type == "halfvec" else 1e-6
                assert result.score == pytest.approx(expected, abs=1e-6, rel=accuracy)
        assert hits >= 0.97 * 10 * len(QUERIES)

    async def test_results_are_complete(self, store: PgVectorStore) -> None:
        """With filters that few rows match, and for limits up to all rows."""
        for limit in (1, 100, 1000, ROWS - 1, ROWS + 1, 10_000):
            found = await store.search(QUERIES[0], "large", limit)
            assert len({result.chunk.id for result in found}) == min(limit, ROWS)
            (many,) = await store.search_many([QUERIES[0]], "large", limit)
            assert len(many) == min(limit, ROWS)
        few = {"few": True}
        exact = await store.search(QUERIES[0], "large", 100, few, exact=True)
        assert len(exact) == FEW
        for _ in range(3):
            assert await store.search(QUERIES[0], "large", 100, few) == exact
        most = await store.search(QUERIES[0], "large", ROWS, {"most": True})
        assert len(most) == ROWS * 9 // 10
        where = store.model.content == WORD
        assert len(await store.search(QUERIES[0], "large", ROWS, where=where)) == ROWS // 2

    async def test_extreme_queries(self, store: PgVectorStore) -> None:
        """Queries that 16 bits cannot hold, and zero vectors, are answered exactly if at all."""
        large = np.full(DIMENSIONS, 1e5, dtype=np.float32) * np.sign(QUERIES[0])
        tiny = QUERIES[0] * np.float32(1e-9)
        for query in (large, tiny, np.zeros(DIMENSIONS)):
            if store.config.column_type == "halfvec" and query.any():
                with pytest.raises(InvalidInputError):
                    await store.search(query, "large")
                continue
            exact = await store.search(query, "large", exact=True)
            assert len(exact) == (10 if store.metric != "cosine" or query.any() else 0)
            found = await store.search(query, "large")
            assert len(found) == len(exact)
            (many,) = await store.search_many([query], "large")
            assert many == found
            if store.config.index_kind == "halfvec" or not query.any():
                assert found == exact


async def test_a_search_is_one_statement(class_engine: AsyncEngine) -> None:
    """Candidates of the signs are compared again in the statement that finds them."""
    engine = create_async_engine(class_engine.url)
    sent = watch(engine)
    store = PgVectorStore(engine, DIMENSIONS, table_name="round_trips", index="bit", rerank=100)
    await store.apply_migrations()
    await store.upsert(chunks(), "n")
    for turn, rerank in enumerate((None, None, 300, 20)):
        found = await store.search(QUERIES[turn], "n", rerank=rerank)
        assert len(found) == 10
        before = len(sent)
        await store.search(QUERIES[turn], "n", rerank=rerank)
        await scalar(engine, "SELECT 1")  # the driver's loggers have run
        (statement, *_) = sent[before:]
        fetched = {None: 100, 300: 500, 20: 50}[rerank]
        assert f"LIMIT {fetched}" in statement
        assert "binary_quantize" in statement
        assert len([sql for sql in sent[before:] if "round_trips" in sql]) == 1
    await engine.dispose()


async def test_zero_vectors_do_not_displace_others(class_engine: AsyncEngine) -> None:
    """The signs of a zero vector equal those of a negative query, but it has no score."""
    store = PgVectorStore(class_engine, DIMENSIONS, table_name="zeros", index="bit", partitions=0)
    await store.apply_migrations()
    zeros = [embedded(f"z{n:04}", np.zeros(DIMENSIONS)) for n in range(EXACT_UP_TO)]
    await store.upsert(zeros + chunks(300), "n")
    for query in (-np.ones(DIMENSIONS), QUERIES[0]):
        exact = await store.search(query, "n", 10, exact=True)
        for _ in range(2):
            found = await store.search(query, "n", 10)
            assert len(found) == 10
            assert {r.chunk.id for r in found} == {r.chunk.id for r in exact}
        (many,) = await store.search_many([query], "n", 10)
        assert len(many) == 10


@pytest.mark.parametrize("element", [65_520.0, -1e15])
async def test_elements_beyond_16_bits(class_engine: AsyncEngine, element: float) -> None:
    """The error names the chunk, also if the store does not know the kind of the index yet."""
    table: dict[str, Any] = {"table_name": "beyond", "partitions": 0}
    await PgVectorStore(class_engine, 3, index="halfvec", **table).apply_migrations()
    batch = [embedded("good", [65_504.0, 0, 1]), embedded("bad", [0, element, 1])]
    store = PgVectorStore(class_engine, 3, **table)
    for _ in range(2):  # the second time, nothing is sent
        with pytest.raises(InvalidInputError) as error:
            await store.upsert(batch, "n")
        assert (error.value.chunk_id, error.value.field) == ("bad", "embedding")
        assert "65504, the maximum of an index of kind halfvec" in str(error.value)
        assert await store.count("n") == 0
    assert error.value.__cause__ is None
    with pytest.raises(InvalidInputError, match="'tiny' is so small"):
        await store.upsert([embedded("tiny", [1e-9, 0, 0])], "n")
    await store.upsert([batch[0], embedded("zero", [0.0] * 3)], "n")
    assert await store.count("n") == 2
