"""Row-level security: what the roles of a deployment can read and write."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from support import deployment
from support.commands import REPOSITORY, output_of, run
from support.database import execute, scalar
from support.deployment import GRANTS, OPTIONS, Deployment, visible_ids
from support.drivers import on_every_driver

from cenote import (
    CenoteError,
    Chunk,
    ChunkRow,
    InvalidInputError,
    PgVectorStore,
    VectorStoreError,
    meta,
)
from cenote.maintenance import set_row_security
from cenote.testing import embedded, found, stored

NEAR = [1.0, 0.0, 0.0, 0.0]

roles = deployment.roles
deployed = deployment.deployed


async def test_the_program_of_the_documentation(roles: Deployment) -> None:
    """The program of docs/row-security.md prints what the page shows."""
    page = (REPOSITORY / "docs" / "row-security.md").read_text(encoding="utf-8")
    code, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    await PgVectorStore(roles.owner, 2, row_security=True).apply_migrations()
    await execute(roles.owner, GRANTS.format("cenote_chunks"))
    url = roles.app.url.render_as_string(hide_password=False)
    printed = output_of(run(sys.executable, "-W", "error", "-c", code, DATABASE_URL=url))
    assert printed == "[]\n['Cats purr.']\n"


@on_every_driver
async def test_queries_without_a_predicate_find_no_rows(deployed: Deployment) -> None:
    """Neither the application nor the owner can read, update or delete rows without a tenant."""
    for engine in (deployed.app, deployed.owner):
        async with AsyncSession(engine) as session, session.begin():
            assert await visible_ids(session) == []
            changed: Any = await session.execute(update(ChunkRow).values(content="mine"))
            assert changed.rowcount == 0
            deleted: Any = await session.execute(text("DELETE FROM cenote_chunks"))
            assert deleted.rowcount == 0
    assert await scalar(deployed.admin, "SELECT count(*) FROM cenote_chunks") == 3


@on_every_driver
async def test_rows_of_other_tenants_cannot_be_written(deployed: Deployment) -> None:
    """Rows can be neither inserted for another tenant nor moved to another tenant."""
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


@on_every_driver
async def test_all_operations(deployed: Deployment) -> None:
    """All operations work on own connections, in the caller's transaction and as the owner."""
    for store in (deployed.store(), deployed.owner_store):
        async with AsyncSession(deployed.app) as session:
            callers_session: Any = session if store is not deployed.owner_store else None
            for options in ({}, {"session": callers_session}):
                await _every_operation(store, options)
                if options:
                    assert await visible_ids(session) == []
            await session.commit()
        assert await store.count("globex") == 1


async def test_chunks_that_a_policy_protects(deployed: Deployment) -> None:
    """`sync_document` does not wait for chunks that the role may read but not update."""
    await execute(
        deployed.owner,
        "CREATE POLICY frozen ON cenote_chunks AS RESTRICTIVE FOR UPDATE USING (id <> 'a')",
    )
    store = deployed.store()
    result = await asyncio.wait_for(store.sync_document("doc", [embedded("c")], "acme"), 10)
    assert (result.written, result.removed, result.unchanged) == (1, 1, 0)
    assert [chunk.id for chunk in await stored(store, "acme")] == ["a", "c"]


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


async def test_bulk_loads(deployed: Deployment) -> None:
    """A table whose rows are hidden from the role does not count as empty."""
    for number, store in enumerate((deployed.store(), deployed.owner_store)):
        chunks = [embedded(f"{n}", [1, n, 0, 0]) for n in range(1500)]
        assert await store.bulk_load(chunks, f"loaded{number}") == 1500
        assert await store.count(f"loaded{number}") == 1500
        assert await deployed.owner_store.check_schema() == []
    assert await deployed.store().count("globex") == 1


@on_every_driver
async def test_two_tenants_in_one_transaction(deployed: Deployment) -> None:
    """Each call sets its tenant, and restores the tenant of the surrounding block."""
    store = deployed.store()
    async with AsyncSession(deployed.app) as session, session.begin():
        assert await store.count("acme", session=session) == 2
        assert await store.count("globex", session=session) == 1
        assert await visible_ids(session) == []
        async with store.tenant(session, "acme"):
            assert await visible_ids(session) == ["a", "b"]
            assert await store.count("globex", session=session) == 1
            assert await visible_ids(session) == ["a", "b"]
            async with store.tenant(session, "globex"):
                assert await visible_ids(session) == ["x"]
            assert await visible_ids(session) == ["a", "b"]
        assert await visible_ids(session) == []


async def test_the_tenant_is_reset_after_errors(deployed: Deployment) -> None:
    """Errors of cenote and of the server, and a cancellation, reset the tenant."""
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
            assert await visible_ids(session) == []
        with pytest.raises(KeyError):
            async with store.tenant(session, "acme"):
                raise KeyError
        assert await visible_ids(session) == []
        slow = text("(SELECT true FROM pg_sleep(5))")
        task = asyncio.create_task(store.search(NEAR, "acme", where=slow))  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        await session.rollback()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await visible_ids(session) == []


@on_every_driver
async def test_the_tenant_is_reset_after_each_transaction(deployed: Deployment) -> None:
    """Calls for several tenants share one pooled connection, and none inherits a tenant."""
    store = deployed.store()
    for tenant, ids in (("acme", ["a", "b"]), ("globex", ["x"]), ("nobody", [])):
        assert await found(store, NEAR, tenant) == ids
        async with AsyncSession(deployed.app) as session:
            assert await visible_ids(session) == []


async def test_pending_objects_are_flushed_within_the_block(deployed: Deployment) -> None:
    """Changed objects are flushed at the end of the tenant's block at the latest."""
    store = deployed.store()
    async with AsyncSession(deployed.app) as session:
        async with store.tenant(session, "acme"):
            row = (await session.scalars(select(ChunkRow).where(ChunkRow.id == "a"))).one()
            row.content = "changed"
        await session.commit()
    assert (await store.get(["a"], "acme"))[0].content == "changed"


async def test_adapters(deployed: Deployment) -> None:
    """Adapters find and delete only chunks of their own tenant."""
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


@on_every_driver
async def test_search_statements(deployed: Deployment) -> None:
    """A search statement finds chunks within the tenant's block, and none outside of it."""
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
async def test_namespaces_with_sql(deployed: Deployment, name: str) -> None:
    """Namespaces that contain SQL or wildcards are plain names."""
    store = deployed.store()
    assert await found(store, NEAR, name) == []
    await store.upsert([embedded("a")], name)
    assert await found(store, NEAR, name) == ["a"]
    assert await store.count("acme") == 2


async def test_functions_in_the_search_path(deployed: Deployment) -> None:
    """The policy does not call an application's function named current_setting."""
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


async def test_partitions_policies_and_copies(deployed: Deployment) -> None:
    """Single partitions, a permissive policy of the user and a copy of the table show no rows."""
    await execute(deployed.admin, GRANTS.format("cenote_chunks_p00"))
    await execute(
        deployed.owner, "CREATE POLICY open ON cenote_chunks USING (true) WITH CHECK (true)"
    )
    for number in range(16):
        await execute(deployed.admin, GRANTS.format(f"cenote_chunks_p{number:02}"))
    async with deployed.app.connect() as connection:
        assert await visible_ids(connection) == []
        for number in range(16):
            query = text(f"SELECT id FROM cenote_chunks_p{number:02}")
            assert (await connection.execute(query)).all() == []
        copied = await connection.execute(text("CREATE TEMPORARY TABLE c AS TABLE cenote_chunks"))
        assert copied.rowcount == 0


async def test_listing_namespaces_requires_bypassrls(deployed: Deployment) -> None:
    """`list_namespaces` raises an error for a role that cannot see all rows."""
    with pytest.raises(VectorStoreError, match="BYPASSRLS"):
        await deployed.store().list_namespaces()
    as_admin = PgVectorStore(deployed.admin, 4, **OPTIONS)
    assert await as_admin.list_namespaces() == {"acme": 2, "globex": 1}


async def test_stores_with_the_wrong_setting(deployed: Deployment) -> None:
    """The error names the setting, or the command that changes the table."""
    with pytest.raises(VectorStoreError, match="create the store with row_security=True"):
        await PgVectorStore(deployed.app, 4, text_search="simple").count("acme")
    await set_row_security(deployed.owner, deployed.owner_store.config, on=False)
    with pytest.raises(VectorStoreError, match="cenote row-security on"):
        await deployed.store().count("acme")
    await set_row_security(deployed.owner, deployed.owner_store.config, on=True)
    autocommit = deployed.app.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        with pytest.raises(InvalidInputError, match="AUTOCOMMIT"):
            await deployed.store().count("acme", session=connection)
    block = deployed.store().tenant(None, "acme")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        await block.__aenter__()
