"""`with_loader_criteria()` on a search statement: SQLAlchemy's recipe for soft deletion."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, func, literal, literal_column, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session, aliased, with_loader_criteria
from support.library import Base, Document, Passage, passage

from cenote import InvalidInputError, PgVectorStore
from cenote.testing import found

V = [1.0, 0.0, 0.0, 0.0]
LIVE = ["?:40", "?:41"]


@pytest.fixture
async def store(library: AsyncEngine) -> PgVectorStore[Passage]:
    """A store in which the nearest 40 chunks are deleted: their page is 0."""
    store = PgVectorStore(library, model=Passage)
    await store.upsert([passage(None, n, page=int(n >= 40)) for n in range(42)], "t")
    return store


async def ids(library: AsyncEngine, statement: Any) -> list[str]:
    async with AsyncSession(library) as session:
        return [row[0].id for row in await session.execute(statement)]


@pytest.mark.parametrize(
    "criteria",
    [
        with_loader_criteria(Passage, Passage.page == 1),
        with_loader_criteria(Passage, lambda cls: cls.page == 1),
        with_loader_criteria(Base, literal_column("passages.page") == 1, include_aliases=True),
        with_loader_criteria(Passage, Passage.bookmarks.any() | (Passage.page == 1)),
        with_loader_criteria(
            Passage,
            Passage.id.in_(select(aliased(Passage, name="p").id).where(Passage.page == 1)),
        ),
    ],
    ids=["expression", "lambda", "mixin", "exists", "subquery"],
)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"exact": True},
        {"where": Passage.language == "en"},
        {"filter": {"lang": {"$exists": False}}},
    ],
    ids=["ann", "exact", "where", "filter"],
)
async def test_criteria_apply_before_the_limit(
    library: AsyncEngine, store: PgVectorStore[Passage], criteria: Any, arguments: dict[str, Any]
) -> None:
    """A search statement returns `limit` chunks that meet the criteria."""
    statement = store.search_statement(V, "t", 2, **arguments)
    assert await ids(library, statement) == ["?:0", "?:1"]
    assert await ids(library, statement.options(criteria)) == LIVE
    assert await ids(library, statement) == ["?:0", "?:1"]


async def test_several_criteria(library: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """All criteria apply, and criteria for other classes do not."""
    statement = store.search_statement(V, "t", 2).options(
        with_loader_criteria(Passage, Passage.page == 1),
        with_loader_criteria(Passage, (Passage.position == 41) | (Passage.position == 3)),
        with_loader_criteria(Document, Document.title == "nobody"),
        with_loader_criteria(aliased(Passage), lambda cls: cls.position == 3),
    )
    assert await ids(library, statement) == ["?:41"]


async def test_values_of_criteria_change(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """SQLAlchemy's cache of compiled statements does not keep a value."""

    def options(position: int) -> list[Any]:
        return [
            with_loader_criteria(Passage, Passage.position == position),
            with_loader_criteria(Passage, lambda cls: cls.position == position),
        ]

    for vector in (V, [0.9, 0.1, 0.0, 0.0]):
        for position in (3, 30, 41):
            statement = store.search_statement(vector, "t", 2)
            for option in options(position):
                assert await ids(library, statement.options(option)) == [f"?:{position}"]
            assert len(await ids(library, statement)) == 2


async def test_a_session_that_adds_criteria(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """Criteria of a `do_orm_execute` handler apply before the limit; `where=` does for methods."""

    class Application(Session):
        pass

    @event.listens_for(Application, "do_orm_execute")
    def hide_deleted(state: ORMExecuteState) -> None:
        if state.is_select:
            state.statement = state.statement.options(
                with_loader_criteria(Passage, lambda cls: cls.page == 1)
            )

    async with AsyncSession(library, sync_session_class=Application) as session:
        statement = store.search_statement(V, "t", 2)
        assert [row[0].id for row in await session.execute(statement)] == LIVE
        joined = statement.outerjoin(Passage.document).add_columns(Document.title)
        assert [row[0].id for row in await session.execute(joined)] == LIVE
        nearest = statement.with_only_columns(Passage.id).subquery()
        assert await session.scalar(select(func.count()).select_from(nearest)) == 2
        where = Passage.page == 1
        assert await found(store, V, "t", 2, where=where, session=session) == LIVE
        counted = select(func.count()).select_from(Passage).where(Passage.namespace == "t")
        assert await session.scalar(counted) == 2
        assert await store.count("t", session=session) == 42


async def test_two_searches_in_one_statement(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """Criteria apply to every search of a statement."""
    first, second = (
        store.search_statement(V, "t", n).with_only_columns(Passage.id) for n in (1, 2)
    )
    statement = select(literal(1), Passage.id).where(
        Passage.id.in_(first.order_by(None)) | Passage.id.in_(second.order_by(None))
    )
    statement = statement.options(with_loader_criteria(Passage, Passage.page == 1))
    async with AsyncSession(library) as session:
        rows = (await session.execute(statement.order_by(Passage.id))).all()
    assert [row.id for row in rows] == LIVE


async def test_criteria_with_another_table(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """Criteria that need a join are rejected by name, as `where` is."""
    statement = store.search_statement(V, "t", 2).options(
        with_loader_criteria(Passage, Passage.doc_id == Document.id)
    )
    with pytest.raises(InvalidInputError, match="with_loader_criteria adds 'documents'") as error:
        await ids(library, statement)
    assert error.value.field == "with_loader_criteria"


async def test_schemas_are_translated(library: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """Criteria apply to the statement of a store with a schema_translate_map."""
    translated = PgVectorStore(
        library.execution_options(schema_translate_map={"x": "y"}), model=Passage
    )
    statement = translated.search_statement(V, "t", 2)
    assert await ids(library, statement) == ["?:0", "?:1"]
    criteria = with_loader_criteria(Passage, Passage.page == 1)
    assert await ids(library, statement.options(criteria)) == LIVE
