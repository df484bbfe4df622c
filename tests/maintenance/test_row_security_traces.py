"""What a tenant can learn about other tenants from the work that its calls cause.

Times depend on the rows that the server touches. These tests count rows instead of measuring times:
a call touches as many rows whether or not another tenant has what it names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from support import deployment
from support.database import execute, scalar
from support.deployment import GRANTS, Deployment
from support.driver import insert

from cenote import PgVectorStore
from cenote.testing import embedded

roles = deployment.roles

V = [1.0, 0.5, 0.25, 0.125]
TOUCHED = text(
    "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))"
    " FROM pg_stat_xact_user_tables WHERE relname LIKE 'cenote_chunks%'"
)
READS: dict[str, Callable[..., Awaitable[Any]]] = {
    "get": lambda store, own, words, **o: store.get([words.id], own, **o),
    "get_embeddings": lambda store, own, words, **o: store.get_embeddings([words.id], own, **o),
    "list_chunks": lambda store, own, words, **o: store.list_chunks(own, after=words.id, **o),
    "delete": lambda store, own, words, **o: store.delete([words.id], own, **o),
    "delete_document": lambda store, own, words, **o: store.delete_document(
        words.document, own, **o
    ),
    "update_metadata": lambda store, own, words, **o: store.update_metadata(
        {words.id: {}}, own, **o
    ),
    "upsert": lambda store, own, words, **o: store.upsert([embedded(words.id, V)], own, **o),
}
"""Operations that name an id or a document."""

FILTERS: dict[str, Callable[..., Awaitable[Any]]] = {
    "count": lambda store, own, words, **o: store.count(own, {"who": words.value}, **o),
    "search": lambda store, own, words, **o: store.search(V, own, 5, {"who": words.value}, **o),
    "search_many": lambda store, own, words, **o: store.search_many(
        [V], own, 5, {"who": words.value}, **o
    ),
    "delete_matching": lambda store, own, words, **o: store.delete_matching(
        {"who": words.value}, own, **o
    ),
    "search_text": lambda store, own, words, **o: store.search_text(words.value, own, **o),
}
"""Operations with a filter or with words, for which there are indexes over all tenants."""


@dataclass(frozen=True)
class Words:
    """Arguments that match nothing of the caller's tenant."""

    id: str
    document: str
    value: str


FOREIGN = Words(id="100500", document="d10050", value="smith")
"""Another tenant in the same partition has these."""
NOBODY = Words(id="900000", document="d90000", value="jones")


@dataclass
class Tenants:
    store: PgVectorStore[Any]
    session: AsyncSession
    own: str
    foreign: str
    empty: str

    async def touched(self, call: Awaitable[Any]) -> int:
        """Return the number of rows that a call reads in the session's transaction."""
        before = await self.session.scalar(TOUCHED)
        await call
        after = await self.session.scalar(TOUCHED)
        return int((after or 0) - (before or 0))


async def _tenants(roles: Deployment, session: AsyncSession, *, secured: bool) -> Tenants:
    """Create three tenants of one partition: a small one, a large one, and one without rows."""
    options: Any = {"row_security": secured, "text_search": "simple", "partitions": 2}
    await PgVectorStore(roles.owner, 4, **options).apply_migrations()
    await execute(roles.owner, GRANTS.format("cenote_chunks"))
    query = (
        "SELECT string_agg(name, ',') FROM (SELECT 't' || n AS name FROM generate_series(1, 20) n)"
        " t WHERE satisfies_hash_partition('cenote_chunks'::regclass, 2, 0, name)"
    )
    own, foreign, empty, *_ = str(await scalar(roles.admin, query)).split(",")
    await insert(roles.admin, own, 2000)
    await insert(roles.admin, foreign, 3000, first=100_000)
    await execute(
        roles.admin,
        "UPDATE cenote_chunks SET metadata = '{\"who\": \"smith\"}', content = 'smith'"
        f" WHERE namespace = '{foreign}' AND position % 6 = 0",
        "ANALYZE cenote_chunks",
    )
    return Tenants(PgVectorStore(roles.app, 4, **options), session, own, foreign, empty)


@pytest.fixture
async def session(roles: Deployment) -> Any:
    async with AsyncSession(roles.app) as session:
        yield session


@pytest.mark.parametrize("secured", [False, True])
async def test_ids_and_documents_of_others(
    roles: Deployment, session: AsyncSession, secured: bool
) -> None:
    """A call by id or document touches as many rows if another tenant has it as if nobody has."""
    tenants = await _tenants(roles, session, secured=secured)
    own = tenants.store.get(["000001"], tenants.own, session=session)
    assert await tenants.touched(own) > 0
    for name, read in READS.items():
        counts = []
        for words in (NOBODY, FOREIGN, NOBODY):
            call = read(tenants.store, tenants.own, words, session=session)
            async with session.begin_nested() as savepoint:
                counts.append(await tenants.touched(call))
                await savepoint.rollback()
        assert len({*counts}) == 1, (name, counts)


async def test_values_of_others(roles: Deployment, session: AsyncSession) -> None:
    """With row-level security, a filter touches as many rows if another tenant's rows match it.

    Without, a call reads 2,000 rows here instead of none: an index over all tenants of the
    partition, and the planner's statistics, know of the other tenant's rows.
    """
    tenants = await _tenants(roles, session, secured=True)
    for name, search in FILTERS.items():
        counts = []
        for words in (NOBODY, FOREIGN, NOBODY):
            call = search(tenants.store, tenants.own, words, session=session)
            counts.append(await tenants.touched(call))
        assert len({*counts}) == 1, (name, counts)


async def test_foreign_and_empty_namespaces(roles: Deployment, session: AsyncSession) -> None:
    """A statement about another tenant touches no row, whether or not that tenant exists."""
    tenants = await _tenants(roles, session, secured=True)
    for namespace in (tenants.foreign, tenants.empty):
        async with tenants.store.tenant(session, tenants.own):
            for statement in (
                tenants.store.search_statement(V, namespace),
                tenants.store.search_statement(V, namespace, exact=True),
                text(f"SELECT count(*) FROM cenote_chunks WHERE namespace = '{namespace}'"),
                text(f"DELETE FROM cenote_chunks WHERE namespace = '{namespace}'"),
            ):
                assert await tenants.touched(session.execute(statement)) == 0
    await session.rollback()
