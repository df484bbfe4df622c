"""Searches of large namespaces through an ANN index of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from sqlalchemy import and_, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import aliased
from support.database import APP_ROLE, execute, scalar
from support.driver import watch

from cenote import InvalidInputError, PgVectorStore
from cenote.ranking.fusion import DEPTH
from cenote.stores.pgvector.sql import vector_search
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


def chunks(count: int = ROWS, prefix: str = "") -> list[Any]:
    return [
        embedded(
            f"{prefix}{n:05}",
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
            await admin.upsert(chunks(300, "other"), "other")
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

    async def test_results_through_the_index(self, store: PgVectorStore) -> None:
        """All searches return results of the same scan, with the scores of the stored vectors.

        The table holds the nearest vectors a second time for another tenant.
        """
        options: list[dict[str, Any]] = [{}, {"filter": {"most": True}}]
        scanned = await scans(store.engine)
        for query, filtered in zip(QUERIES[:8], cycle(options), strict=False):
            found = await store.search(query, "large", **filtered)
            exact = await store.search(query, "large", ROWS, exact=True, **filtered)
            scores = {result.chunk.id: result.score for result in exact}
            assert {result.chunk.id for result in found} <= scores.keys()
            assert [result.score for result in found] == [scores[r.chunk.id] for r in found]
            if filtered:
                assert all(result.chunk.metadata["most"] for result in found)
            # A score equal to the minimum matches.
            least = found[4].score
            assert await store.search(query, "large", min_score=least, **filtered) == found[:5]
            many = await store.search_many([query, -query], "large", **filtered)
            assert many[0] == found
            (near, _) = await store.search_many([query, -query], "large", min_score=least)
            assert found[4] in near
            # With the same number of candidates, the order by vector alone is that of a search.
            deep = await store.search(query, "large", DEPTH, **filtered)
            hybrid = await store.search_hybrid(WORD, query, "large", text_weight=0, **filtered)
            assert [result.chunk for result in hybrid] == [result.chunk for result in deep[:10]]
            candidates = await store.search(query, "large", 50, **filtered)
            alike = await store.search_diverse(
                query, "large", diversity=0, candidates=50, **filtered
            )
            assert [r.chunk.id for r in alike] == [r.chunk.id for r in candidates[:10]]
            diverse = await store.search_diverse(query, "large", candidates=50, **filtered)
            assert len(diverse) == 10
            assert all(result in candidates for result in diverse)
            best = await store.search(query, "large", per_document=1, **filtered)
            documents = [result.chunk.document_id for result in best]
            assert len({*documents}) == 10
            assert best[0] == found[0]
            assert all(scores[result.chunk.id] == result.score for result in best)
        assert await scans(store.engine) >= scanned + 8 * 8

    async def test_statements_of_the_application(self, store: PgVectorStore) -> None:
        """A search that is joined with other tables finds what `search` finds."""
        sibling = aliased(store.model)
        for query in QUERIES[:4]:
            expected = await store.search(query, "large")
            statement = store.search_statement(query, "large")
            joined = statement.join(
                sibling,
                and_(
                    sibling.namespace == "large",
                    sibling.document_id == store.model.document_id,
                    sibling.id != store.model.id,
                ),
            ).add_columns(sibling.id)
            before = await scans(store.engine)
            async with AsyncSession(store.engine) as session, session.begin():
                secured = store.tenant(session, "large")
                async with secured if store.config.row_security else nullcontext():
                    rows = [(c.id, score) for c, score in await session.execute(statement)]
                    ids = [chunk.id for chunk, _, _ in await session.execute(joined)]
            assert await scans(store.engine) >= before + 2
            assert rows == [(result.chunk.id, result.score) for result in expected]
            assert len(ids) == 2 * len(rows)  # a document has three chunks
            assert {*ids} == {id for id, _ in rows}

    async def test_queries_that_the_index_cannot_serve_beside_others(
        self, store: PgVectorStore
    ) -> None:
        """Only they are answered exactly: the others find what single searches find."""
        queries = [*QUERIES[:3], np.zeros(DIMENSIONS), *QUERIES[3:5]]
        if store.config.column_type != "halfvec":
            queries.insert(1, QUERIES[0] * np.float32(1e-9))
        expected = [await store.search(query, "large") for query in queries]
        before = await scans(store.engine)
        assert await store.search_many(queries, "large") == expected
        # A lateral join scans the index once for each query.
        assert await scans(store.engine) >= before + 5
        assert await store.search_many(queries[3:4], "large") == expected[3:4]
        async with store.engine.begin() as connection:
            assert await store.search_many(queries, "large", session=connection) == expected
        least = expected[0][4].score
        assert [len(r) for r in await store.search_many(queries, "large", min_score=least)] == [
            sum(result.score >= least for result in results) for results in expected
        ]

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


async def test_round_trips_of_several_queries(class_engine: AsyncEngine) -> None:
    """All queries take one round trip, and those that the index cannot serve a second one."""
    engine = create_async_engine(class_engine.url)
    sent = watch(engine)
    store = PgVectorStore(engine, 2, table_name="several", metric="inner_product", partitions=0)
    await store.apply_migrations()
    await store.upsert([embedded("a", [1.0, 0.5])], "n")
    near, zero = [1.0, 0.0], [0.0, 0.0]
    for queries, round_trips in (([near, near], 1), ([near, zero, near], 2), ([zero, zero], 1)):
        await store.search_many(queries, "n")
        before = len(sent)
        assert [len(results) for results in await store.search_many(queries, "n")] == [1] * len(
            queries
        )
        await scalar(engine, "SELECT 1")  # the driver's loggers have run
        assert len([sql for sql in sent[before:] if "several" in sql]) == round_trips
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


@pytest.mark.parametrize("partitions", [0, 2])
async def test_vectors_in_the_toast_table(one_connection: AsyncEngine, partitions: int) -> None:
    """The planner knows that it would be slow to read all vectors, and uses the index."""
    engine, rows, dimensions = one_connection, EXACT_UP_TO + 500, 2048
    store = PgVectorStore(
        engine,
        dimensions,
        table_name=f"wide_{partitions}",
        text_search="simple",
        index="bit",
        partitions=partitions,
    )
    await store.apply_migrations()
    vectors = np.random.default_rng(1).standard_normal((rows, dimensions)).astype(np.float32)
    items = [
        embedded(f"{n:04}", vector, document_id=f"d{n // 2}", metadata={"most": n % 10 > 0})
        for n, vector in enumerate(vectors)
    ]
    await store.upsert(items, "n")
    await execute(engine, f"ANALYZE wide_{partitions}")

    async def by_statement(query: Any) -> list[Any]:
        statement = store.search_statement(query, "n", filter={"most": True})
        async with store.engine.connect() as connection:
            return [*(await connection.execute(statement))]

    searches: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "search": lambda q: store.search(q, "n"),
        "limit": lambda q: store.search(q, "n", 100),
        "filter": lambda q: store.search(q, "n", 10, {"most": True}),
        "where": lambda q: store.search(q, "n", where=store.model.position == 0),
        "per_document": lambda q: store.search(q, "n", per_document=1),
        "many": lambda q: store.search_many([q, q], "n"),
        "hybrid": lambda q: store.search_hybrid("text", q, "n"),
        "statement": by_statement,
    }
    for name, search in searches.items():
        for turn in range(1, 7):  # the last plan may be a generic one
            before = await scans(engine)
            found = await search(vectors[turn])
            assert await scans(engine) > before, f"{name}, execution {turn}"
            if name not in ("hybrid", "statement"):
                nearest = found[0][0] if name == "many" else found[0]
                assert nearest.chunk.id == f"{turn:04}"
            assert len(found) == {"limit": 100, "many": 2}.get(name, 10)


async def test_candidates_that_run_out(
    one_connection: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the graph finds too few rows of a tenant, all its rows are compared.

    The nearest rows in the graph belong to another tenant, or were deleted.
    """
    engine = one_connection
    store = PgVectorStore(engine, DIMENSIONS, table_name="far", index="bit", partitions=0)
    await store.apply_migrations()
    await store.upsert(chunks(), "near")
    opposite = VECTORS[: EXACT_UP_TO + 100] * np.float32(0.3) - VECTORS[0]
    await store.upsert([embedded(f"f{n:04}", vector) for n, vector in enumerate(opposite)], "far")
    # Of few rows, Postgres may prefer to sort them all.
    await execute(engine, "ANALYZE far", "SET enable_sort = off", "SET enable_seqscan = off")

    # In a large table, the scan would end after more visits, which find only the other tenant.
    with monkeypatch.context() as fewer_visits:
        fewer_visits.setattr(vector_search, "_MIN_VISITS_PER_ROW", 1)
        patched = PgVectorStore(engine, DIMENSIONS, table_name="far", partitions=0)
        query = VECTORS[0]
        exact = await patched.search(query, "far", 20, exact=True)
        before = await scans(engine)
        assert await patched.search(query, "far", 20) == exact
        assert await patched.search_many([query, query], "far", 20) == [exact, exact]
        async with engine.connect() as connection:
            assert await patched.search(query, "far", 20, session=connection) == exact
        diverse = await patched.search_diverse(query, "far", 20, diversity=0, candidates=20)
        assert {r.chunk.id for r in diverse} == {r.chunk.id for r in exact}
        assert await scans(engine) >= before + 4

    # Rows that were deleted are not found again, and others take their places.
    nearest = await store.search(query, "near", 500, exact=True)
    gone = [result.chunk.id for result in nearest]
    await store.delete(gone, "near")
    before = await scans(engine)
    left = await store.search(query, "near", 20)
    (many,) = await store.search_many([query], "near", 20)
    assert await scans(engine) >= before + 2
    for found in (left, many):
        assert len(found) == 20
        assert not {result.chunk.id for result in found} & {*gone}
    assert len(await store.search(query, "near", ROWS)) == ROWS - 500

    # Of equal vectors, those with the smallest ids are found.
    ids = [f"tie{n:02}" for n in range(30)]
    await store.upsert([embedded(id, query) for id in reversed(ids)], "near")
    before = await scans(engine)
    ties = await store.search(query, "near", 10)
    assert [result.chunk.id for result in ties] == ids[:10]
    assert await store.search_many([query], "near", 10) == [ties]
    least = ties[0].score
    all_ties = await store.search(query, "near", 40, min_score=least)
    assert [result.chunk.id for result in all_ties] == ids
    assert await scans(engine) >= before + 3


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


async def test_an_index_that_is_dropped_meanwhile(engine: AsyncEngine) -> None:
    """A search is exact if its snapshot contains an index that no longer exists."""
    await PgVectorStore(engine, 4).upsert([embedded("a", [1.0, 0.0, 0.0, 0.0])], "n")
    store = PgVectorStore(engine, 4)  # reads the index with its first search
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        await connection.execute(text("SELECT 1"))  # takes the snapshot
        async with engine.begin() as other:
            await other.execute(text("DROP INDEX ix_cenote_chunks_embedding"))
        (result,) = await store.search([1.0, 0.0, 0.0, 0.0], "n", session=connection)
    assert result.chunk.id == "a"
