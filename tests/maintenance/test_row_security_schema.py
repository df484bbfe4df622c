"""Turning row-level security on and off, by code, command and revision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase
from support import deployment
from support.commands import cenote, output_of
from support.database import execute, scalar
from support.deployment import Deployment, visible_ids
from support.library import Document

from cenote import (
    ChunkMixin,
    ConfigurationError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    schema,
)
from cenote.maintenance import repartition, set_row_security
from cenote.testing import embedded, found

NEAR = [1.0, 0.0, 0.0, 0.0]

roles = deployment.roles
deployed = deployment.deployed


async def test_policies_of_the_application(deployed: Deployment) -> None:
    """Turning row-level security on or off is rejected if the table has other policies."""
    await execute(deployed.owner, "CREATE POLICY mine ON cenote_chunks AS RESTRICTIVE USING (true)")
    config = deployed.owner_store.config
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
    """Rows of namespace '' are rejected, although the setting is '' after a transaction."""
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
    """Repartitioning keeps rows and policies, although the policies also restrict the owner."""
    config = deployed.owner_store.config
    for partitions in (3, 0, 16):
        assert await repartition(deployed.owner, replace(config, partitions=partitions)) is True
        assert await deployed.owner_store.check_schema() == []
        assert await scalar(deployed.admin, "SELECT count(*) FROM cenote_chunks") == 3
        assert await found(deployed.store(), NEAR, "acme") == ["a", "b"]
        async with AsyncSession(deployed.app) as session:
            assert await visible_ids(session) == []
    assert await set_row_security(deployed.owner, config, on=True) is False
    assert await set_row_security(deployed.owner, config, on=False) is True
    assert await PgVectorStore(deployed.app, 4).count("acme") == 2
    (finding,) = await deployed.owner_store.check_schema()
    assert (finding.kind, finding.hint) == ("row_security", "run cenote row-security on")


async def test_missing_policies_are_found_and_restored(deployed: Deployment) -> None:
    """The finding names each partition, and turning row-level security on repairs them."""
    await execute(
        deployed.owner,
        "ALTER TABLE cenote_chunks_p03 NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE cenote_chunks_p04 DISABLE ROW LEVEL SECURITY",
        "DROP POLICY cenote_restricts ON cenote_chunks_p05",
        "ALTER POLICY cenote_restricts ON cenote_chunks_p06 USING (true)",
    )
    (finding,) = await deployed.owner_store.check_schema()
    assert finding.actual.endswith("but not " + ", ".join(f"cenote_chunks_p0{n}" for n in "3456"))
    assert await set_row_security(deployed.owner, deployed.owner_store.config, on=True) is True
    assert await deployed.owner_store.check_schema() == []


async def test_the_command(engine: AsyncEngine, dsn: str) -> None:
    """`cenote row-security` turns it on and off; an upgrade with the setting names the command."""
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


async def test_downgrade_with_contradicting_setting(engine: AsyncEngine, dsn: str) -> None:
    """A downgrade works if row-level security is on in the settings but off in the table."""
    url = {"CENOTE_DATABASE_URL": dsn, "CENOTE_DIMENSIONS": "4"}
    output_of(cenote("migrate", "downgrade", "cenote_0002", CENOTE_ROW_SECURITY="on", **url))
    assert await schema.current(engine, SchemaConfig(dimensions=4)) == "cenote_0002"


async def test_create_all_of_a_user_model(empty_engine: AsyncEngine) -> None:
    """A user model's metadata create the table with row-level security."""

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


async def test_upgrade_of_a_table_with_rows(empty_engine: AsyncEngine) -> None:
    """The revision turns row-level security on for a table with rows."""
    config = SchemaConfig(dimensions=4, row_security=True)
    await schema.upgrade(empty_engine, config, "cenote_0002")
    await PgVectorStore(empty_engine, 4).upsert([embedded("a")], "n")
    await schema.upgrade(empty_engine, config)
    store = PgVectorStore(empty_engine, 4, row_security=True)
    assert await store.check_schema() == []
    assert await store.count("n") == 1
