"""Test row-level security with the roles of a deployment: owner, application, superuser."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from support.commands import REPOSITORY, cenote, output_of, run
from support.database import APP_ROLE, execute, scalar
from support.library import Document

from cenote import (
    CenoteError,
    Chunk,
    ChunkMixin,
    ChunkRow,
    ConfigurationError,
    InvalidInputError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
    meta,
    schema,
)
from cenote.maintenance import repartition, set_row_security
from cenote.testing import embedded, found, stored

NEAR = [1.0, 0.0, 0.0, 0.0]
OPTIONS: dict[str, Any] = {"row_security": True, "text_search": "simple"}

ROLES = [
    "DO $$ BEGIN CREATE ROLE cenote_owner LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
    APP_ROLE,
    "GRANT CREATE, USAGE ON SCHEMA public TO cenote_owner",
    "CREATE EXTENSION IF NOT EXISTS vector",
]
GRANTS = "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO cenote_app"


@dataclass
class Deployment:
    """Engines of the table's owner, the application, and the superuser who created both roles."""

    owner: AsyncEngine
    app: AsyncEngine
    admin: AsyncEngine

    def store(self, **options: Any) -> PgVectorStore:
        """Return the store of the application."""
        return PgVectorStore(self.app, 4, **OPTIONS | options)

    @property
    def owners(self) -> PgVectorStore:
        """The store of the migrations."""
        return PgVectorStore(self.owner, 4, **OPTIONS)


@pytest.fixture
async def roles(empty_dsn: str, empty_engine: AsyncEngine) -> AsyncIterator[Deployment]:
    """Create the roles of docs/reliability.md: one owns the table, the other one uses it."""
    await execute(empty_engine, *ROLES)
    url = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    owner = create_async_engine(url.set(username="cenote_owner"))
    app = create_async_engine(url.set(username="cenote_app"), pool_size=1, max_overflow=0)
    yield Deployment(owner, app, empty_engine)
    for engine in (owner, app):
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()


@pytest.fixture
async def deployed(roles: Deployment) -> Deployment:
    """Return a deployment with the table and two tenants."""
    await roles.owners.apply_migrations()
    await execute(roles.owner, GRANTS.format("cenote_chunks"))
    await roles.store().upsert([embedded("a", content="cat"), embedded("b")], "acme")
    await roles.store().upsert([embedded("x", content="cat")], "globex")
    return roles


async def rows(session: Any) -> list[str]:
    """Return the ids that a query without a predicate sees."""
    return [*await session.scalars(select(ChunkRow.id).order_by(ChunkRow.id))]


async def test_the_documentation(roles: Deployment) -> None:
    """The program of docs/reliability.md prints what the page says."""
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    code, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    await PgVectorStore(roles.owner, 2, row_security=True).apply_migrations()
    await execute(roles.owner, GRANTS.format("cenote_chunks"))
    url = roles.app.url.render_as_string(hide_password=False)
    printed = output_of(run(sys.executable, "-W", "error", "-c", code, DATABASE_URL=url))
    assert printed == "[]\n['Cats purr.']\n"


async def test_a_forgotten_predicate_sees_nothing(deployed: Deployment) -> None:
    """It changes nothing either, as the application and as the owner."""
    for engine in (deployed.app, deployed.owner):
        async with AsyncSession(engine) as session, session.begin():
            assert await rows(session) == []
            changed: Any = await session.execute(update(ChunkRow).values(content="mine"))
            assert changed.rowcount == 0
            deleted: Any = await session.execute(text("DELETE FROM cenote_chunks"))
            assert deleted.rowcount == 0
    assert await scalar(deployed.admin, "SELECT count(*) FROM cenote_chunks") == 3


async def test_nothing_can_be_written_for_others(deployed: Deployment) -> None:
    """Rows of other tenants are neither inserted nor moved there."""
    store = deployed.store()
    values = {
        **dict.fromkeys(("id", "document_id", "content", "content_hash"), "x"),
        "position": 0,
        "metadata_": {},
        "embedding": NEAR,
        "embedding_model": "m",
    }
    async with AsyncSession(deployed.app) as session:
        with pytest.raises(DBAPIError, match="row-level security"):
            await session.execute(insert(ChunkRow).values(namespace="acme", **values))
        await session.rollback()
        with pytest.raises(DBAPIError, match="row-level security"):
            async with store.tenant(session, "acme"):
                await session.execute(insert(ChunkRow).values(namespace="globex", **values))
        await session.rollback()
        with pytest.raises(DBAPIError, match="row-level security"):
            async with store.tenant(session, "acme"):
                await session.execute(update(ChunkRow).values(namespace="globex"))


async def test_every_operation_works(deployed: Deployment) -> None:
    """They work on the store's connections, in the caller's transaction, and as the owner."""
    for store in (deployed.store(), deployed.owners):
        async with AsyncSession(deployed.app) as session:
            joined: Any = session if store is not deployed.owners else None
            for options in ({}, {"session": joined}):
                await _every_operation(store, options)
                if options:
                    assert await rows(session) == []
            await session.commit()
        assert await store.count("globex") == 1


async def _every_operation(store: PgVectorStore, options: dict[str, Any]) -> None:
    await store.upsert([embedded("c", content="dog"), embedded("d")], "acme", **options)
    assert await found(store, NEAR, "acme", **options) == ["a", "b", "c", "d"]
    assert await found(store, NEAR, "acme", filter=meta("k").exists(), **options) == []
    (many,) = await store.search_many([NEAR], "acme", **options)
    assert len(many) == len(await store.search_diverse(NEAR, "acme", **options)) == 4
    assert [result.chunk.id for result in await store.search_text("cat", "acme", **options)] == [
        "a"
    ]
    hybrid = await store.search_hybrid("dog", NEAR, "acme", **options)
    assert len(hybrid) == 4
    assert [chunk.id for chunk in await stored(store, "acme", **options)] == list("abcd")
    assert len(await store.get(["a", "x"], "acme", **options)) == 1
    assert len(await store.get_embeddings(["a", "x"], "acme", **options)) == 1
    assert len(await store.list_chunks("acme", limit=2, **options)) == 2
    assert await store.count("acme", **options) == 4
    assert len(await store.neighbours("a", "acme", after=9, **options)) == 4
    missing = Chunk(id="z", document_id="doc", content="z")
    assert await store.missing([missing], "acme", **options) == [missing]
    assert await store.update_metadata({"c": {"k": 1}}, "acme", **options) == 1
    assert await store.delete_matching({"k": 1}, "acme", **options) == 1
    await store.delete(["d", "x"], "acme", **options)
    document = [embedded("e", document_id="new"), embedded("f", document_id="new")]
    assert (await store.sync_document("new", document, "acme", **options)).written == 2
    assert await store.delete_document("new", "acme", **options) == 2
    await store.upsert([embedded("g")], "gone", **options)
    await store.delete_namespace("gone", **options)
    assert await store.count("gone", **options) == 0


async def test_a_bulk_load(deployed: Deployment) -> None:
    """A table whose rows are hidden is not mistaken for an empty one, as either role."""
    for number, store in enumerate((deployed.store(), deployed.owners)):
        chunks = [embedded(f"{n}", [1, n, 0, 0]) for n in range(1500)]
        assert await store.bulk_load(chunks, f"loaded{number}") == 1500
        assert await store.count(f"loaded{number}") == 1500
        assert await deployed.owners.check_schema() == []
    assert await deployed.store().count("globex") == 1


async def test_two_tenants_in_one_transaction(deployed: Deployment) -> None:
    """Each call sets its tenant, and then restores the one of the surrounding block."""
    store = deployed.store()
    async with AsyncSession(deployed.app) as session, session.begin():
        assert await store.count("acme", session=session) == 2
        assert await store.count("globex", session=session) == 1
        assert await rows(session) == []
        async with store.tenant(session, "acme"):
            assert await rows(session) == ["a", "b"]
            assert await store.count("globex", session=session) == 1
            assert await rows(session) == ["a", "b"]
            async with store.tenant(session, "globex"):
                assert await rows(session) == ["x"]
            assert await rows(session) == ["a", "b"]
        assert await rows(session) == []


async def test_errors_leave_no_tenant_behind(deployed: Deployment) -> None:
    """The error may come from cenote, from the server or from a cancellation."""
    store = deployed.store()
    async with AsyncSession(deployed.app) as session:
        for call in (
            store.sync_document(
                "doc", [Chunk(id="?", document_id="doc", content="")], "acme", session=session
            ),
            store.search(NEAR, "acme", where=text("no_such_column = 1"), session=session),  # type: ignore[arg-type]
        ):
            async with session.begin_nested() as savepoint:
                with pytest.raises(CenoteError):
                    await call
                await savepoint.rollback()
            assert await rows(session) == []
        with pytest.raises(KeyError):
            async with store.tenant(session, "acme"):
                raise KeyError
        assert await rows(session) == []
        slow = text("(SELECT true FROM pg_sleep(5))")
        task = asyncio.create_task(store.search(NEAR, "acme", where=slow))  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        await session.rollback()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await rows(session) == []


async def test_a_pooled_connection_of_another_tenant(deployed: Deployment) -> None:
    """The pool has one connection, and the setting ends with each transaction."""
    store = deployed.store()
    for tenant, ids in (("acme", ["a", "b"]), ("globex", ["x"]), ("nobody", [])):
        assert await found(store, NEAR, tenant) == ids
        async with AsyncSession(deployed.app) as session:
            assert await rows(session) == []


async def test_pending_objects_are_flushed_as_the_tenant(deployed: Deployment) -> None:
    """They are flushed at the end of the block at the latest."""
    store = deployed.store()
    async with AsyncSession(deployed.app) as session:
        async with store.tenant(session, "acme"):
            row = (await session.scalars(select(ChunkRow).where(ChunkRow.id == "a"))).one()
            row.content = "changed"
        await session.commit()
    assert (await store.get(["a"], "acme"))[0].content == "changed"


async def test_adapters(deployed: Deployment) -> None:
    """They find and delete the chunks of their own tenant."""
    from haystack import Document as HaystackDocument
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores.types import VectorStoreQuery

    from cenote.adapters import haystack, langchain, llama_index

    store = deployed.store()
    await store.delete_namespace("acme")

    chain = langchain.CenoteVectorStore(store, DeterministicFakeEmbedding(size=4), "acme")
    await chain.aadd_texts(["dog"], ids=["a"])
    assert [document.id for document in await chain.asimilarity_search("dog", 9)] == ["a"]
    await chain.adelete(["a", "x"])

    hay = haystack.CenoteDocumentStore(store, "acme")
    await hay.write_documents_async([HaystackDocument(id="a", content="dog", embedding=NEAR)])
    assert [document.id for document in await hay.filter_documents_async()] == ["a"]
    await hay.delete_documents_async(["a", "x"])

    llama = llama_index.CenoteVectorStore(store, "acme")
    await llama.async_add([TextNode(id_="a", text="dog", embedding=NEAR)])
    answer = await llama.aquery(VectorStoreQuery(query_embedding=NEAR, similarity_top_k=9))
    assert answer.ids == ["a"]
    await llama.aclear()

    assert await scalar(deployed.admin, "SELECT string_agg(id, ' ') FROM cenote_chunks") == "x"


async def test_composed_searches(deployed: Deployment) -> None:
    """They find chunks within the block of the tenant, and nothing outside of it."""
    store = deployed.store()
    statement = store.search_statement(NEAR, "acme")
    async with AsyncSession(deployed.app) as session:
        async with store.tenant(session, "acme"):
            hits = (await session.execute(statement)).all()
            assert [row.id for row, _ in hits] == ["a", "b"]
        assert (await session.execute(statement)).all() == []


@pytest.mark.parametrize(
    "name", ["' OR true --", "acme'; DROP TABLE cenote_chunks; --", "a,b", "%"]
)
async def test_a_namespace_that_looks_like_sql(deployed: Deployment, name: str) -> None:
    """It is treated as a name."""
    store = deployed.store()
    assert await found(store, NEAR, name) == []
    await store.upsert([embedded("own")], name)
    assert await found(store, NEAR, name) == ["own"]
    assert await store.count("acme") == 2


async def test_search_path_tricks(deployed: Deployment) -> None:
    """The policy does not call a function of the application with the same name."""
    await execute(
        deployed.admin,
        "CREATE SCHEMA trick AUTHORIZATION cenote_app",
        "CREATE FUNCTION trick.current_setting(text, boolean) RETURNS text"
        " LANGUAGE sql AS 'SELECT ''acme'''",
    )
    async with deployed.app.connect() as connection:
        await connection.execute(text("SET search_path = trick, pg_catalog, public"))
        assert (await connection.execute(text("SELECT id FROM public.cenote_chunks"))).all() == []
        await connection.invalidate()


async def test_other_ways_to_the_rows(deployed: Deployment) -> None:
    """Single partitions, a permissive policy of the user and a copy show no rows."""
    await execute(deployed.admin, GRANTS.format("cenote_chunks_p00"))
    await execute(
        deployed.owner, "CREATE POLICY open ON cenote_chunks USING (true) WITH CHECK (true)"
    )
    for number in range(16):
        await execute(deployed.admin, GRANTS.format(f"cenote_chunks_p{number:02}"))
    async with deployed.app.connect() as connection:
        assert await rows(connection) == []
        for number in range(16):
            seen = text(f"SELECT id FROM cenote_chunks_p{number:02}")
            assert (await connection.execute(seen)).all() == []
        copied = await connection.execute(text("CREATE TEMPORARY TABLE c AS TABLE cenote_chunks"))
        assert copied.rowcount == 0


async def test_listing_all_tenants_needs_another_role(deployed: Deployment) -> None:
    """It raises an error instead of returning nothing."""
    with pytest.raises(VectorStoreError, match="BYPASSRLS"):
        await deployed.store().list_namespaces()
    as_admin = PgVectorStore(deployed.admin, 4, **OPTIONS)
    assert await as_admin.list_namespaces() == {"acme": 2, "globex": 1}


async def test_a_store_with_the_wrong_setting(deployed: Deployment) -> None:
    """The error names the setting, or the command."""
    with pytest.raises(VectorStoreError, match="create the store with row_security=True"):
        await PgVectorStore(deployed.app, 4, text_search="simple").count("acme")
    await set_row_security(deployed.owner, deployed.owners.config, on=False)
    with pytest.raises(VectorStoreError, match="cenote row-security on"):
        await deployed.store().count("acme")
    await set_row_security(deployed.owner, deployed.owners.config, on=True)
    autocommit = deployed.app.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as own:
        with pytest.raises(InvalidInputError, match="AUTOCOMMIT"):
            await deployed.store().count("acme", session=own)
    block = deployed.store().tenant(None, "acme")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        await block.__aenter__()


# -- the table


async def test_policies_of_the_user(deployed: Deployment) -> None:
    """They are neither widened nor disabled."""
    await execute(deployed.owner, "CREATE POLICY mine ON cenote_chunks AS RESTRICTIVE USING (true)")
    config = deployed.owners.config
    with pytest.raises(MigrationError, match="policies of your own"):
        await set_row_security(deployed.owner, config, on=False)
    await execute(deployed.owner, "DROP POLICY mine ON cenote_chunks")
    await set_row_security(deployed.owner, config, on=False)
    await execute(
        deployed.owner,
        "ALTER TABLE cenote_chunks ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON cenote_chunks USING (id = 'a')",
    )
    with pytest.raises(MigrationError, match="policies of your own"):
        await set_row_security(deployed.owner, config, on=True)


async def test_the_empty_namespace(deployed: Deployment) -> None:
    """It belongs to no tenant, even if the session had the setting before."""
    async with deployed.app.connect() as connection:
        await deployed.store().count("acme", session=connection)
        await connection.commit()
        with pytest.raises(DBAPIError, match="row-level security"):
            await connection.execute(
                text(
                    "INSERT INTO cenote_chunks (namespace, id, document_id, content, position,"
                    " metadata, content_hash, embedding, embedding_model)"
                    " VALUES ('', '', '', '', 0, '{}', '', '[1,0,0,0]', '')"
                )
            )


async def test_repartitioning(deployed: Deployment) -> None:
    """It keeps rows and policies, although they restrict the owner too."""
    config = deployed.owners.config
    for partitions in (3, 0, 16):
        assert await repartition(deployed.owner, replace(config, partitions=partitions)) is True
        assert await deployed.owners.check_schema() == []
        assert await scalar(deployed.admin, "SELECT count(*) FROM cenote_chunks") == 3
        assert await found(deployed.store(), NEAR, "acme") == ["a", "b"]
        async with AsyncSession(deployed.app) as session:
            assert await rows(session) == []
    assert await set_row_security(deployed.owner, config, on=True) is False
    assert await set_row_security(deployed.owner, config, on=False) is True
    assert await PgVectorStore(deployed.app, 4).count("acme") == 2
    (finding,) = await deployed.owners.check_schema()
    assert (finding.kind, finding.hint) == ("row_security", "run cenote row-security on")


async def test_missing_policies_are_found(deployed: Deployment) -> None:
    """`check_schema` names each partition, and turning it on restores them."""
    await execute(
        deployed.owner,
        "ALTER TABLE cenote_chunks_p03 NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE cenote_chunks_p04 DISABLE ROW LEVEL SECURITY",
        "DROP POLICY cenote_restricts ON cenote_chunks_p05",
        "ALTER POLICY cenote_restricts ON cenote_chunks_p06 USING (true)",
    )
    (finding,) = await deployed.owners.check_schema()
    assert finding.actual.endswith("but not " + ", ".join(f"cenote_chunks_p0{n}" for n in "3456"))
    assert await set_row_security(deployed.owner, deployed.owners.config, on=True) is True
    assert await deployed.owners.check_schema() == []


async def test_the_command(engine: AsyncEngine, dsn: str) -> None:
    """It turns row-level security on and off; an upgrade with the setting names the command."""
    url = {"CENOTE_DATABASE_URL": dsn}
    output = output_of(cenote("row-security", "on", **url))
    assert output == "row-level security of table cenote_chunks is on\n"
    assert "already" in output_of(cenote("row-security", "on", **url))
    output_of(cenote("check", "-x", "row_security=on", **url))
    assert cenote("check", "-x", "row_security=off", **url).returncode == 1
    output_of(cenote("row-security", "off", **url))
    result = cenote("migrate", "-x", "row_security=on", "upgrade", "head", **url)
    assert result.returncode != 0
    assert "cenote row-security on" in result.stderr + result.stdout
    assert cenote("check", "-x", "row_security=maybe", **url).returncode == 2
    with pytest.raises(ConfigurationError):
        SchemaConfig(dimensions=4, row_security="on")  # type: ignore[arg-type]


async def test_a_downgrade_while_it_is_off(engine: AsyncEngine, dsn: str) -> None:
    """A downgrade does not compare the table with the setting, which is still on."""
    url = {"CENOTE_DATABASE_URL": dsn, "CENOTE_DIMENSIONS": "4"}
    output_of(cenote("migrate", "downgrade", "cenote_0002", CENOTE_ROW_SECURITY="on", **url))
    assert await schema.current(engine, SchemaConfig(dimensions=4)) == "cenote_0002"


async def test_a_user_model(empty_engine: AsyncEngine) -> None:
    """Its metadata creates the table with row-level security."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=4, partitions=2, row_security=True):
        __tablename__ = "notes"

    await execute(empty_engine, "CREATE EXTENSION vector")
    async with empty_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    store = PgVectorStore(empty_engine, model=Note)
    assert await store.check_schema() == []
    assert store.config.row_security is True
    assert Document.__tablename__ == "documents"


async def test_an_upgrade_turns_it_on(empty_engine: AsyncEngine) -> None:
    """The revision turns it on for a table with rows."""
    config = SchemaConfig(dimensions=4, row_security=True)
    await schema.upgrade(empty_engine, config, "cenote_0002")
    await PgVectorStore(empty_engine, 4).upsert([embedded("a")], "n")
    await schema.upgrade(empty_engine, config)
    store = PgVectorStore(empty_engine, 4, row_security=True)
    assert await store.check_schema() == []
    assert await store.count("n") == 1
