"""`search_statement`: a search as a Select that the application extends."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    bindparam,
    create_engine,
    exists,
    func,
    literal,
    literal_column,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    contains_eager,
    mapped_column,
    selectinload,
)
from sqlalchemy.schema import CreateSchema
from support.database import execute
from support.drivers import on_both_stores, store_on
from support.library import Base, Document, Passage, passage
from support.plans import explain

from cenote import (
    ChunkMixin,
    ChunkRow,
    ConfigurationError,
    DimensionMismatchError,
    InvalidInputError,
    PgVectorStore,
    field,
    meta,
)
from cenote.testing import embedded, found

V = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def store(library: AsyncEngine) -> PgVectorStore[Passage]:
    """A store for the user model."""
    store: PgVectorStore[Passage] = store_on(library, model=Passage)
    return store


@pytest.fixture
async def documents(library: AsyncEngine, store: PgVectorStore[Passage]) -> list[Document]:
    """Two documents of 1,500 passages, a tenth of them in Spanish, and another tenant's chunk."""
    documents = [Document(title=title) for title in "ab"]
    vectors = np.random.default_rng(1).standard_normal((2, 1500, 4))
    async with AsyncSession(library, expire_on_commit=False) as session, session.begin():
        session.add_all(documents)
        await session.flush()
        for document, block in zip(documents, vectors, strict=True):
            batch = [
                passage(document, n, vector, language="en" if n % 10 else "es")
                for n, vector in enumerate(block)
            ]
            await store.upsert(batch, "t", session=session)
        await store.upsert([embedded("stranger", V)], "other", session=session)
    await execute(library, "ANALYZE")
    return documents


async def test_the_statement_returns_the_results_of_search(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """Results, order and scores equal those of `search`, on both paths and for any limit."""
    async with AsyncSession(library) as session:
        for arguments in (
            {"limit": 1},
            {"limit": 25},
            {"limit": 2000},
            {"limit": 5000},
            {"limit": 10, "exact": True},
            {"limit": 10, "where": Passage.language == "es"},
            {"limit": 10, "filter": {"missing": 1}},
            {"limit": 3, "filter": {}, "where": Passage.document.has(title="b")},
        ):
            expected = await store.search(V, "t", **arguments)
            statement = store.search_statement(V, "t", **arguments)
            rows = (await session.execute(statement)).all()
            assert [row.Passage.id for row in rows] == [result.chunk.id for result in expected]
            assert [row.score for row in rows] == [result.score for result in expected]
        assert (await session.execute(store.search_statement([0] * 4, "t"))).all() == []
        assert (await session.execute(store.search_statement(V, "nobody"))).all() == []


async def test_the_statement_composes_with_other_queries(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """Joins, columns, eager loading, other orders, subqueries and unions work."""
    statement = store.search_statement(V, "t", 8, where=Passage.language == "es")
    expected = await found(store, V, "t", 8, where=Passage.language == "es")
    async with AsyncSession(library) as session:
        joined = (
            statement.join(Passage.document)
            .add_columns(Document.title)
            .options(contains_eager(Passage.document), selectinload(Passage.bookmarks))
        )
        rows = (await session.execute(joined)).all()
        assert [row.Passage.id for row in rows] == expected
        for row in rows:
            assert row.Passage.document.title == row.title
            assert row.Passage.bookmarks == []

        other = aliased(Passage)
        chained = statement.join(Passage.document).join(Document.passages.of_type(other))
        chained = chained.where(other.position == 0)
        assert [row.Passage.id for row in await session.execute(chained)] == expected
        for target in (Passage.document, Document):
            named = statement.join(target).filter_by(title="a")
            assert {row.Passage.id[0] for row in await session.execute(named)} == {"a"}
        spanish = statement.filter_by(language="es")
        assert len((await session.execute(spanish)).all()) == 8

        explicit_join = statement.join(Document, Document.id == Passage.doc_id)
        ordered_by_id = (
            explicit_join.where(Document.title == "a").order_by(None).order_by(Passage.id.desc())
        )
        ids = [row.Passage.id for row in await session.execute(ordered_by_id)]
        assert ids == sorted((id for id in expected if id.startswith("a")), reverse=True)

        count = select(func.count()).select_from(statement.subquery())
        assert await session.scalar(count) == 8
        outer_join = statement.outerjoin(Passage.bookmarks).where(
            statement.selected_columns.score > -2
        )
        assert len((await session.execute(outer_join)).all()) == 8
        union = union_all(
            statement.with_only_columns(Passage.id),
            store.search_statement([0, 1, 0, 0], "t", 5).with_only_columns(Passage.id),
        )
        assert len((await session.execute(union)).all()) == 13
        page = statement.offset(5)
        assert [row.Passage.id for row in await session.execute(page)] == expected[5:]
        titles = select(Document.title).where(
            exists(statement.with_only_columns(literal(1)).where(Passage.doc_id == Document.id))
        )
        assert set(await session.scalars(titles)) <= {"a", "b"}


async def test_the_statement_runs_on_any_connection(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """The connection does not need the store's codec, and SQLAlchemy can cache the statement."""
    fresh = async_sessionmaker(library)
    statement = store.search_statement(V, "t", 5)
    await library.dispose()
    async with fresh() as session:
        first = [row.Passage.id for row in await session.execute(statement)]
        second = [row.Passage.id for row in await session.execute(statement)]
        rows = await session.run_sync(lambda session: session.execute(statement).all())
    assert first == second == [row.Passage.id for row in rows]
    spanish = store.search_statement([0, 1, 0, 0], "t", 5, where=Passage.language == "es")
    english = store.search_statement([0, 0, 1, 0], "u", 5, where=Passage.language == "en")
    keys = [search._generate_cache_key() for search in (spanish, english)]
    assert keys[0] is not None
    assert keys[0] == keys[1]


async def test_the_statement_runs_on_psycopg(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """A synchronous session executes the statement; percent signs and colons stay plain text."""
    await store.upsert([embedded("a%(b)s:c", V)], "t%:n %(x)s")
    engine = create_engine(library.url.set(drivername="postgresql+psycopg"))
    with Session(engine) as session:
        for where in (None, Passage.language == "en"):
            for namespace, limit in (("t", 20), ("t%:n %(x)s", 1)):
                expected = await found(store, V, namespace, limit, where=where)
                statement = store.search_statement(V, namespace, limit, where=where)
                assert [row.Passage.id for row in session.execute(statement)] == expected
    engine.dispose()


class OddBase(DeclarativeBase):
    """Base of a model with unusual names."""


class Odd(ChunkMixin, OddBase, dimensions=4, partitions=2):
    """A chunk model whose columns have unusual names."""

    __tablename__ = "odd_chunks"

    share: Mapped[int | None] = mapped_column("100%")
    bound: Mapped[int | None] = mapped_column("a :x")
    twice: Mapped[int | None] = mapped_column(":x:y :: %%")
    quoted: Mapped[int | None] = mapped_column('\\:z\\ "q"')


async def test_names_with_percent_signs_and_colons(empty_engine: AsyncEngine) -> None:
    """A filter may name any column, on asyncpg and on psycopg; so may its keys."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(OddBase.metadata.create_all)
    store = PgVectorStore(empty_engine, model=Odd)
    values = {"share": 1, "bound": 2, "twice": 3, "quoted": 4}
    metadata = {"%s :k": "%s :v"}
    await store.upsert([embedded("a", V), embedded("b", V, metadata=metadata)], "t")
    async with AsyncSession(empty_engine) as session, session.begin():
        await session.execute(update(Odd).where(Odd.id == "b").values(values))
    psycopg = create_engine(empty_engine.url.set(drivername="postgresql+psycopg"))
    names = [column.name for column in Odd.__table__.columns]
    unusual = [name for name in names if ":" in name or "%" in name]
    assert len(unusual) == 4
    filters: list[Any] = [~field(name).is_null() & (field(name) > 0) for name in unusual]
    filters += [meta("%s :k") >= "%s :v", {"%s :k": "%s :v"}]
    for filter in filters:
        assert await found(store, V, "t", filter=filter) == ["b"]
        for where in (None, Odd.id != "c"):
            statement = store.search_statement(V, "t", filter=filter, where=where)
            async with AsyncSession(empty_engine) as session:
                rows = (await session.execute(statement)).all()
            with Session(psycopg) as sync_session:
                sync_rows = sync_session.execute(statement).all()
            assert [row.Odd.id for row in (*rows, *sync_rows)] == ["b", "b"]
    psycopg.dispose()


async def test_long_filters_of_statements(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """A filter has at most 50 keys and values. SQLAlchemy does not keep statements of many."""
    for number, is_kept in ((24, True), (25, False), (50, False)):
        filter = meta("missing").in_([*range(20)])
        for value in range(number - 20):
            filter |= meta("missing") == value
        statement = store.search_statement(V, "t", 3, ~filter)
        assert (statement._generate_cache_key() is not None) == is_kept
        within = select(statement.subquery())
        assert (within._generate_cache_key() is not None) == is_kept
        async with AsyncSession(library) as session:
            rows = (await session.execute(statement)).all()
        assert [row.Passage.id for row in rows] == await found(store, V, "t", 3, ~filter)
    long_value = store.search_statement(V, "t", 3, meta("missing") == "x" * 20_000)
    assert long_value._generate_cache_key() is None
    with pytest.raises(InvalidInputError, match="at most 50 keys and values") as error:
        store.search_statement(V, "t", 3, filter | (meta("a") == 1))
    assert error.value.field == "filter"
    assert len(await store.search(V, "t", 3, ~(filter | (meta("a") == 1)))) == 3


async def test_schema_translate_map(library: AsyncEngine, documents: list[Document]) -> None:
    """The engine's schema_translate_map applies to all parts of the statement."""
    tenant = library.execution_options(schema_translate_map={None: "tenant"})
    async with tenant.begin() as connection:
        await connection.execute(CreateSchema("tenant"))
        await connection.run_sync(Base.metadata.create_all)
    store = PgVectorStore(tenant, model=Passage)
    await store.upsert([embedded("translated", V)], "t")
    assert await found(store, V, "t") == ["translated"]
    async with AsyncSession(tenant) as session:
        rows = (await session.execute(store.search_statement(V, "t"))).all()
    assert [row.Passage.id for row in rows] == ["translated"]
    untranslated = PgVectorStore(library, model=Passage).search_statement(V, "t")
    async with AsyncSession(tenant) as session:
        with pytest.raises(ConfigurationError, match="pass the store an engine"):
            await session.execute(untranslated)


@on_both_stores
async def test_composed_plans_use_the_ann_index(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """With joins, filters and another order, plans use the index and skip the exact branch."""
    statement = store.search_statement(V, "t", 10)
    inside = exists().where(Document.id == Passage.doc_id, Document.title == "a")
    composed: list[Any] = [
        statement,
        statement.join(Passage.document).add_columns(Document.title),
        statement.join(Passage.document).where(Document.title == "a").order_by(Document.title),
        store.search_statement(V, "t", 10, where=inside).join(Passage.document),
        store.search_statement(V, "t", 10, where=Passage.language == "en"),
    ]
    async with library.connect() as connection:
        for search, mode in product(composed, ("force_custom_plan", "force_generic_plan")):
            plan = await explain(connection, search, mode)
            executed = [line for line in plan.splitlines() if "never executed" not in line]
            assert any("_embedding_idx" in line for line in executed), plan
            assert "never executed" in plan
            scanned = {part[:3] for line in executed for part in line.split(" on passages_")[1:]}
            # Both the search and the outer join scan only the namespace's partition.
            assert len(scanned) == 1, plan
            # The statement joins the rows by their primary key.
            assert any("_pkey" in line for line in executed), plan


async def test_where_applies_before_the_limit(
    library: AsyncEngine, store: PgVectorStore[Passage], documents: list[Document]
) -> None:
    """where= filters before the limit; a condition added to the statement filters the results."""
    condition = Passage.language == "es"
    async with AsyncSession(library) as session:
        inside = store.search_statement(V, "t", 10, where=condition)
        outside = store.search_statement(V, "t", 10).where(condition)
        assert len((await session.execute(inside)).all()) == 10
        assert len((await session.execute(outside)).all()) < 10


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Document.title == "a", "where adds 'documents' to the query"),
        (Passage.doc_id == Document.id, "refer to tables other than 'passages' in exists"),
        (aliased(Passage).page == 1, "where adds an alias of 'passages' to the query: refer"),
        ([Passage.page == 1], "combine several with and_"),
        (ChunkRow.id == "a", "where adds 'cenote_chunks' to the query"),
        ("language = 'en'", "not an object of type str"),
        (7, "not an object of type int"),
    ],
)
async def test_invalid_conditions(store: PgVectorStore[Passage], where: Any, message: str) -> None:
    """Every method with where= rejects an invalid condition when it is called."""
    for call in (store.search_statement, store.get_all_chunks):
        arguments: Any = (V, "t") if call == store.search_statement else ("t",)
        with pytest.raises(InvalidInputError, match=message) as error:
            call(*arguments, where=where)
        assert error.value.field == "where"
    with pytest.raises(InvalidInputError, match=message):
        await store.search(V, "t", where=where)


async def test_text_conditions_stay_within_the_namespace(store: PgVectorStore[Passage]) -> None:
    """A condition in SQL text with OR does not find chunks of other namespaces."""
    for tenant in ("acme", "rival"):
        await store.upsert([embedded(tenant, V, columns={"page": 1})], tenant)
    either = "page = 1 OR page > 0"
    conditions: list[Any] = [text(either), literal_column(either)]
    for condition in conditions:
        for exact in (False, True):
            results = await store.search(V, "acme", where=condition, exact=exact)
            assert [result.chunk.id for result in results] == ["acme"]
            statement = store.search_statement(V, "acme", where=condition, exact=exact)
            async with AsyncSession(store.engine) as session:
                assert [row.Passage.id for row in await session.execute(statement)] == ["acme"]
        chunks = store.get_all_chunks("acme", where=condition)
        assert [chunk.id async for chunk in chunks] == ["acme"]


async def test_names_of_parameters_and_ctes_do_not_collide(
    store: PgVectorStore[Passage],
) -> None:
    """A condition may have parameters and CTEs of the same names as those of the search."""
    await store.upsert([passage(None, n, page=n) for n in range(20)], "t")
    for name in ("namespace", "limit", "query", "ef_search", "filter", "after", "page_size"):
        condition = Passage.page < bindparam(name, 3)
        expected = ["?:0", "?:1", "?:2"]
        assert await found(store, V, "t", 10, where=condition) == expected
        assert await found(store, V, "t", 10, {}, where=condition, exact=True) == expected
        assert len([chunk async for chunk in store.get_all_chunks("t", where=condition)]) == 3
    for name in ("few", "hits", "ann", "nearest"):
        cte = select(literal(3).label("page")).cte(name)
        assert await found(store, V, "t", where=Passage.page.in_(select(cte.c.page))) == ["?:3"]


async def test_names_of_several_statements_do_not_collide(store: PgVectorStore[Passage]) -> None:
    """Statements compile together. On SQLAlchemy 2.0, a reused address once repeated a name."""
    for _ in range(50):
        searches = [store.search_statement(V, "t", where=Passage.page == n) for n in range(5)]
        union_all(
            *(search.with_only_columns(Passage.id).order_by(None) for search in searches)
        ).compile(dialect=store.engine.dialect)


async def test_invalid_arguments(store: PgVectorStore[Passage]) -> None:
    """Invalid arguments are rejected when the statement is created."""
    with pytest.raises(DimensionMismatchError):
        store.search_statement([1], "t")
    for arguments in ((V, ""), (V, "t", 0), (V, "t", 10_001), (V, "t", 1, {"a": float("nan")})):
        with pytest.raises(InvalidInputError):
            store.search_statement(*arguments)


async def test_stores_without_a_user_model(engine: AsyncEngine) -> None:
    """The statement selects ChunkRow, or the class generated for another table."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a"), embedded("b", [0, 1, 0, 0])], "t")
    half = PgVectorStore(engine, 4, table_name="half", column_type="halfvec", partitions=0)
    await half.apply_migrations()
    await half.upsert([embedded("a")], "t")
    async with AsyncSession(engine) as session:
        rows = (await session.execute(store.search_statement(V, "t"))).all()
        assert [(type(row.ChunkRow), row.ChunkRow.id, row.score) for row in rows] == [
            (ChunkRow, "a", 1.0),
            (ChunkRow, "b", 0.0),
        ]
        ((row, score),) = (await session.execute(half.search_statement(V, "t"))).all()
        assert (row.id, score) == ("a", 1.0)
        assert isinstance(row, half.model)
        nearest = select(half.model.id).order_by(half.model.distance_to(V)).limit(1)
        assert await session.scalar(nearest) == "a"
