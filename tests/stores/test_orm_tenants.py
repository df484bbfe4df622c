"""Relationships, joins and sessions across tenants, with and without row-level security.

Two tenants have the same documents and the same chunk ids. Store methods never cross the border.
Relationships are the application's own queries: without row-level security they follow the foreign
key alone, and with it they load the rows of the tenant that the transaction has set.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, Text, exists, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    contains_eager,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)
from support import deployment
from support.database import execute
from support.deployment import Deployment

from cenote import ChunkMixin, PgVectorStore
from cenote.testing import embedded, found

V = [1.0, 0.0, 0.0, 0.0]

roles = deployment.roles


def models(*, row_security: bool) -> Any:
    """Return the models of an application whose documents do not know their tenant.

    Papers are shared by all tenants, and remarks refer to a tenant's chunk.
    """

    class Base(DeclarativeBase):
        pass

    class Paper(Base):
        __tablename__ = "papers"

        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]

    class Part(ChunkMixin, Base, dimensions=4, partitions=2, row_security=row_security):
        __tablename__ = "parts"

        paper_id: Mapped[int | None] = mapped_column(
            ForeignKey("papers.id", ondelete="CASCADE"), index=True
        )

    class Remark(Base):
        __tablename__ = "remarks"
        __table_args__ = (
            ForeignKeyConstraint(
                ["namespace", "part_id"], ["parts.namespace", "parts.id"], ondelete="CASCADE"
            ),
            Index("ix_remarks_part", "namespace", "part_id"),
        )

        key: Mapped[int] = mapped_column(primary_key=True)
        namespace: Mapped[str] = mapped_column(Text(collation="C"))
        part_id: Mapped[str] = mapped_column(Text(collation="C"))

    Paper.parts = relationship(
        Part, back_populates="paper", passive_deletes="all", order_by=[Part.namespace, Part.id]
    )
    Part.paper = relationship(Paper, back_populates="parts")
    Part.remarks = relationship(
        Remark, back_populates="part", passive_deletes="all", order_by=Remark.key
    )
    Remark.part = relationship(Part, back_populates="remarks")
    return SimpleNamespace(Base=Base, Paper=Paper, Part=Part, Remark=Remark)


@dataclass
class Application:
    """An application with two tenants.

    Attributes:
        engine: Engine of the application's role.
        admin: Engine of the superuser.
        store: Store for the chunk model.
        secured: True if the table has row-level security.
        Paper, Part, Remark: The models.
    """

    engine: AsyncEngine
    admin: AsyncEngine
    store: PgVectorStore[Any]
    secured: bool
    Paper: Any
    Part: Any
    Remark: Any


@pytest.fixture(params=[False, True], ids=["plain", "secured"])
async def app(request: pytest.FixtureRequest, roles: Deployment) -> Application:
    """Two tenants with chunks of the same ids, of one shared paper, each with a remark."""
    types = models(row_security=request.param)
    async with roles.owner.begin() as connection:
        await connection.run_sync(types.Base.metadata.create_all)
    tables = "papers, parts, remarks"
    await execute(roles.owner, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO cenote_app")
    store: PgVectorStore[Any] = PgVectorStore(roles.app, model=types.Part)
    await execute(roles.admin, "INSERT INTO papers VALUES (1, 'shared')")
    for tenant in ("acme", "globex"):
        parts = [
            embedded(id, V, content=f"{id} of {tenant}", columns={"paper_id": 1}) for id in "ab"
        ]
        await store.upsert(parts, tenant)
    await execute(roles.admin, "INSERT INTO remarks VALUES (1, 'acme', 'a'), (2, 'globex', 'a')")
    return Application(
        roles.app, roles.admin, store, request.param, types.Paper, types.Part, types.Remark
    )


def keys(parts: Any) -> list[str]:
    """Return tenants and ids of chunks, e.g. ``acme/a``."""
    return [f"{part.namespace}/{part.id}" for part in parts]


ACME = ["acme/a", "acme/b"]
EVERYONE = [*ACME, "globex/a", "globex/b"]


@pytest.mark.parametrize("load", [selectinload, subqueryload, joinedload])
async def test_eager_loads_from_search_results(app: Application, load: Any) -> None:
    """The search finds the tenant's chunks; the relationship loads what the foreign key names."""
    statement = app.store.search_statement(V, "acme").options(
        load(app.Part.paper).options(load(app.Paper.parts)), load(app.Part.remarks)
    )
    async with AsyncSession(app.engine) as session, app.store.tenant(session, "acme"):
        rows = (await session.execute(statement)).unique().all()
        assert keys(row.Part for row in rows) == ACME
        assert [[remark.key for remark in row.Part.remarks] for row in rows] == [[1], []]
        assert keys(rows[0].Part.paper.parts) == (ACME if app.secured else EVERYONE)


async def test_lazy_loads_from_search_results(app: Application) -> None:
    """A lazy load follows the foreign key, and sees the tenant that is set when it runs."""
    async with AsyncSession(app.engine) as session:
        async with app.store.tenant(session, "acme"):
            row, *_ = (await session.execute(app.store.search_statement(V, "acme"))).all()
            paper = await session.run_sync(lambda _: row.Part.paper)
            within = await session.run_sync(lambda _: keys(paper.parts))
        assert within == (ACME if app.secured else EVERYONE)
        session.expire(paper)
        after = await session.run_sync(lambda _: keys(paper.parts))
        assert after == ([] if app.secured else EVERYONE)


async def test_joins_to_chunks_of_the_same_document(app: Application) -> None:
    """The search limits its own chunks; a second join of the chunk table needs its own limit."""
    other = aliased(app.Part)
    statement = (
        app.store.search_statement(V, "acme", 1)
        .join(app.Part.paper)
        .join(app.Paper.parts.of_type(other))
        .options(contains_eager(app.Part.paper))
        .add_columns(other)
        .order_by(None)
        .order_by(other.namespace, other.id)
    )
    limited = statement.where(other.namespace == app.Part.namespace)
    async with AsyncSession(app.engine) as session, app.store.tenant(session, "acme"):
        rows = (await session.execute(statement)).all()
        assert {row.Part.namespace for row in rows} == {"acme"}
        assert keys(row[2] for row in rows) == (ACME if app.secured else EVERYONE)
        assert keys(row[2] for row in await session.execute(limited)) == ACME


async def test_conditions_through_relationships(app: Application) -> None:
    """A condition may look at any row that the role can read; results are the tenant's chunks."""
    other = aliased(app.Part)
    of_globex = app.Part.paper.has(app.Paper.parts.any(app.Part.content == "a of globex"))
    by_hand = exists().where(other.paper_id == app.Part.paper_id, other.namespace == "globex")
    everything = app.Part.paper.has() | (app.Part.namespace == "globex")
    for condition, secured_result in ((of_globex, []), (by_hand, []), (everything, ACME)):
        expected = secured_result if app.secured else ACME
        results = await app.store.search(V, "acme", where=condition)
        assert [f"acme/{result.chunk.id}" for result in results] == expected
        assert all(result.chunk.content.endswith("acme") for result in results)
        statement = app.store.search_statement(V, "acme", where=condition)
        async with AsyncSession(app.engine) as session, app.store.tenant(session, "acme"):
            rows = (await session.execute(statement)).all()
            assert keys(row.Part for row in rows) == expected


async def test_a_search_of_another_tenant_within_a_tenants_block(app: Application) -> None:
    """With row-level security, the block decides about a statement; store methods set their own."""
    async with AsyncSession(app.engine) as session, app.store.tenant(session, "acme"):
        rows = (await session.execute(app.store.search_statement(V, "globex"))).all()
        assert len(rows) == (0 if app.secured else 2)
        assert await found(app.store, V, "globex", session=session) == ["a", "b"]
        visible = await session.scalars(select(app.Part).order_by(app.Part.namespace, app.Part.id))
        assert keys(visible) == (ACME if app.secured else EVERYONE)


async def test_a_session_of_two_tenants(app: Application) -> None:
    """A session keeps what it has loaded; `expire_all` or another session forgets it."""
    async with AsyncSession(app.engine) as session:
        async with app.store.tenant(session, "acme"):
            part = await session.get_one(app.Part, ("acme", "a"))
            paper = await session.get_one(app.Paper, 1, options=[selectinload(app.Paper.parts)])
            assert keys(paper.parts) == (ACME if app.secured else EVERYONE)
        async with app.store.tenant(session, "globex"):
            # From the identity map, without a query.
            assert await session.get(app.Part, ("acme", "a")) is part
            assert keys(paper.parts) == (ACME if app.secured else EVERYONE)
            session.expire_all()
            loaded = await session.run_sync(lambda _: keys(paper.parts))
            assert loaded == (EVERYONE[2:] if app.secured else EVERYONE)
            if app.secured:
                assert await session.get(app.Part, ("acme", "b")) is None
    async with AsyncSession(app.engine) as session, app.store.tenant(session, "globex"):
        assert (await session.get(app.Part, ("acme", "a")) is None) is app.secured


async def test_writes_touch_the_objects_of_one_tenant(app: Application) -> None:
    """Upserts and deletions change objects of their namespace, not those with the same id."""
    async with AsyncSession(app.engine) as session, session.begin():
        held = {}
        for tenant in ("acme", "globex"):
            async with app.store.tenant(session, tenant):
                key = (tenant, "a")
                held[tenant] = await session.get_one(
                    app.Part, key, options=[selectinload(app.Part.remarks)]
                )
        await app.store.upsert([embedded("a", V, content="new")], "acme", session=session)
        await app.store.update_metadata({"a": {"k": 1}}, "acme", session=session)
        assert [part.content for part in held.values()] == ["new", "a of globex"]
        assert [part.metadata_ for part in held.values()] == [{"k": 1}, {}]
        await app.store.delete(["a"], "acme", session=session)
        await app.store.delete_document("doc", "acme", session=session)
        await app.store.delete_matching({"k": 1}, "acme", session=session)
        await app.store.delete_namespace("acme", session=session)
        assert held["acme"] not in session
        assert held["globex"] in session
        assert [remark.key for remark in held["globex"].remarks] == [2]
        async with app.store.tenant(session, "globex"):
            await session.refresh(held["globex"])
            assert held["globex"].content == "a of globex"
    assert await app.store.count("acme") == 0
    assert await app.store.count("globex") == 2
    async with AsyncSession(app.engine) as session:
        # The foreign key of both columns deleted the remark of one tenant's chunk.
        assert [*await session.scalars(select(app.Remark.key))] == [2]


async def test_objects_cannot_be_moved_to_another_tenant(app: Application) -> None:
    """With row-level security, neither the key nor a collection moves a chunk across tenants."""
    async with AsyncSession(app.engine) as session:
        async with app.store.tenant(session, "acme"):
            remark = await session.get_one(
                app.Remark, 2, options=[selectinload(app.Remark.part)]
            )  # refers to a chunk of globex
            assert (remark.part is None) is app.secured
        await session.rollback()
        if not app.secured:
            return
        async with app.store.tenant(session, "acme"):
            part = await session.get_one(app.Part, ("acme", "a"))
            part.namespace = "globex"
            part.id = "stolen"
            with pytest.raises(DBAPIError, match="row-level security"):
                await session.flush()
            await session.rollback()
    assert await app.store.count("globex") == 2


async def test_a_cascade_passes_row_security(app: Application) -> None:
    """Deleting a shared document deletes all tenants' chunks, as docs/row-security.md says."""
    async with AsyncSession(app.engine) as session:
        async with app.store.tenant(session, "acme"):
            await session.delete(await session.get_one(app.Paper, 1))
        await session.commit()
    query = select(func.count()).select_from(app.Part)
    async with AsyncSession(app.admin) as session:
        assert await session.scalar(query) == 0


async def test_a_foreign_key_of_both_columns(app: Application) -> None:
    """It accepts remarks on a chunk of the named tenant only; its check passes row security."""
    await app.store.delete(["b"], "acme")
    async with AsyncSession(app.engine) as session:
        async with app.store.tenant(session, "acme"):
            session.add(app.Remark(key=3, namespace="globex", part_id="b"))
        with pytest.raises(IntegrityError):
            async with app.store.tenant(session, "acme"):
                session.add(app.Remark(key=4, namespace="acme", part_id="b"))
        await session.rollback()
