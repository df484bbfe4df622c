"""Upgrades of legacy tables, which the migrations of the first cenote created."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.commands import alembic, cenote, output_of
from support.database import execute, scalar
from support.legacy import VERSIONS, create_legacy_table

from cenote import MigrationError, PgVectorStore, SchemaConfig, VectorStoreError, schema
from cenote.maintenance import repartition
from cenote.testing import embedded, found

CHECKSUM = "SELECT count(*) || md5(string_agg(t::text, '|' ORDER BY id)) FROM cenote_chunks t"
# Position and xmin of all rows. They change when a row is rewritten.
PLACES = "SELECT md5(string_agg(concat(ctid, xmin), '|' ORDER BY id)) FROM cenote_chunks"
# File of the HNSW index. It changes when the index is rebuilt, which is expensive.
HNSW = (
    "SELECT relfilenode FROM pg_class JOIN pg_index ON indexrelid = oid"
    " WHERE indrelid = 'cenote_chunks'::regclass"
    " AND relam = (SELECT oid FROM pg_am WHERE amname = 'hnsw')"
)


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_tables_of_each_version_are_upgraded(
    empty_engine: AsyncEngine, empty_dsn: str, version: int
) -> None:
    """The upgrade loses and rewrites no row, and the table equals a new one."""
    engine = empty_engine
    await create_legacy_table(engine, version)
    before = [await scalar(engine, query) for query in (CHECKSUM, PLACES, HNSW)]
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    result = cenote("check", **url)
    assert result.returncode == 1
    # Hints for other differences would get in the way of the upgrade, which mends them.
    assert result.stdout == (
        "table cenote_chunks: it is a legacy table, expected cenote_0004; run cenote migrate "
        "upgrade head\n"
    )
    output_of(cenote("migrate", "upgrade", "head", **url))  # the dimensions come from the table
    assert [await scalar(engine, query) for query in (CHECKSUM, PLACES, HNSW)] == before
    assert output_of(cenote("check", **url)) == "no differences found\n"
    assert "No new upgrade operations" in output_of(alembic("check", **url))
    store = PgVectorStore(engine, 4)
    await store.apply_migrations()  # a second upgrade, from code and with the default settings
    assert await store.check_schema() == []

    results = await store.search([1, 0, 0, 0], "tenant 3", limit=100)
    assert len(results) == 72  # the numbers up to 500 with n % 7 == 3
    await store.upsert([embedded("chunk 3", position=1)], "tenant 3")
    await store.upsert([embedded("chunk 3")], "tenant 4")  # the same id in another namespace
    assert await scalar(engine, "SELECT count(*) FROM cenote_chunks") == 501
    async with engine.connect() as connection:
        collations = text(
            "SELECT string_agg(attname || '.' || collname, ',' ORDER BY attname) FROM pg_attribute"
            " JOIN pg_collation c ON c.oid = attcollation"
            " WHERE attrelid = 'cenote_chunks'::regclass AND collname = 'C'"
        )
        assert await connection.scalar(collations) == "document_id.C,id.C,namespace.C"
    output_of(alembic("downgrade", "base", **url))
    assert await scalar(engine, "SELECT to_regclass('cenote_chunks')") is None


async def test_large_positions_need_repartition(empty_engine: AsyncEngine) -> None:
    """Positions have 32 bits until `cenote repartition` rewrites the table."""
    await create_legacy_table(empty_engine)
    store = PgVectorStore(empty_engine, 4)
    await store.apply_migrations()
    far = embedded("far", position=2**40)
    with pytest.raises(VectorStoreError, match="32 bits: run cenote repartition"):
        await store.upsert([far], "n")
    await repartition(empty_engine, SchemaConfig(dimensions=4, partitions=16))
    await store.upsert([far], "n")
    assert await found(store, [1, 0, 0, 0], "n") == ["far"]
    assert await store.check_schema() == []
    await repartition(empty_engine, SchemaConfig(dimensions=4, partitions=0))
    assert await scalar(empty_engine, "SELECT count(*) FROM cenote_chunks") == 501
    assert await store.check_schema() == []


# Statements of the upgrade, by the version of the legacy table.
COLLATIONS = tuple(
    f'ALTER TABLE public.cenote_chunks ALTER COLUMN {name} TYPE TEXT COLLATE "C"'
    for name in ("namespace", "id", "document_id")
)
OTHER_CHANGES = (
    "ALTER TABLE public.cenote_chunks ALTER COLUMN namespace SET STORAGE MAIN,"
    " ALTER COLUMN id SET STORAGE MAIN, ALTER COLUMN document_id SET STORAGE MAIN,"
    " ALTER COLUMN metadata SET STORAGE MAIN, ALTER COLUMN content_hash SET STORAGE MAIN,"
    " ALTER COLUMN embedding SET STORAGE MAIN, ALTER COLUMN embedding_model SET STORAGE MAIN",
    "ALTER TABLE public.cenote_chunks ALTER COLUMN metadata DROP DEFAULT",
    "ALTER INDEX IF EXISTS public.cenote_chunks_namespace_doc_idx"
    " RENAME TO ix_cenote_chunks_namespace_document_id",
    "ALTER INDEX IF EXISTS public.cenote_chunks_embedding_hnsw_idx"
    " RENAME TO ix_cenote_chunks_embedding",
    "DROP INDEX IF EXISTS public.cenote_chunks_metadata_gin_idx",
    "CREATE INDEX ix_cenote_chunks_metadata ON public.cenote_chunks"
    " USING gin (metadata jsonb_path_ops)",
)
LOCK = "LOCK TABLE public.cenote_chunks IN ACCESS EXCLUSIVE MODE"
RENAME = "ALTER INDEX public.cenote_chunks_pkey RENAME TO pk_cenote_chunks"
STATEMENTS = {
    1: (
        LOCK,
        "ALTER TABLE public.cenote_chunks DROP CONSTRAINT cenote_chunks_pkey",
        *COLLATIONS,
        "ALTER TABLE public.cenote_chunks"
        " ADD CONSTRAINT pk_cenote_chunks PRIMARY KEY (namespace, id)",
        *OTHER_CHANGES,
    ),
    2: (LOCK, *COLLATIONS, RENAME, *OTHER_CHANGES),
    3: (LOCK, *COLLATIONS, RENAME, *OTHER_CHANGES),
}


@pytest.mark.parametrize("version", STATEMENTS)
async def test_the_statements_of_the_upgrade_are_frozen(
    empty_engine: AsyncEngine, version: int
) -> None:
    """The upgrade is part of revision cenote_0001, and frozen with it."""
    await create_legacy_table(empty_engine, version)
    statements: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        words = " ".join(statement.split())
        if words.startswith(("ALTER", "CREATE", "DROP", "LOCK")) and "_version" not in words:
            statements.append(words)

    event.listen(empty_engine.sync_engine, "before_cursor_execute", record)
    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4), "cenote_0001")
    assert statements == [*STATEMENTS[version]]


REJECTED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "another dimension": ([], {"dimensions": 5}, r"is vector\(4\), expected vector\(5\)"),
    "another type": ([], {"column_type": "halfvec"}, r"expected halfvec\(4\)"),
    "partitions": ([], {"partitions": 16}, "repartition afterwards"),
    "an unknown version": (
        ["INSERT INTO cenote_schema_migrations VALUES ('004_more.sql')"],
        {},
        "lists 004_more.sql",
    ),
    "a version left out": (
        ["DELETE FROM cenote_schema_migrations WHERE version LIKE '002%'"],
        {},
        "out of order",
    ),
    "no version": (["DELETE FROM cenote_schema_migrations"], {}, "out of order"),
    "no marker": (["DROP TABLE cenote_schema_migrations"], {}, "not created by these revisions"),
    "another column": (
        ["ALTER TABLE cenote_chunks ADD COLUMN mine int"],
        {},
        "its columns mine differ from",
    ),
    "a column of another type": (
        ["ALTER TABLE cenote_chunks ALTER position TYPE bigint"],
        {},
        "its columns position differ from",
    ),
    "another key": (
        [
            "ALTER TABLE cenote_chunks DROP CONSTRAINT cenote_chunks_pkey",
            "ALTER TABLE cenote_chunks ADD PRIMARY KEY (id)",
        ],
        {},
        r"primary key is not \(namespace, id\)",
    ),
}

STATE = (
    CHECKSUM,
    PLACES,
    HNSW,
    "SELECT string_agg(concat(attname, atttypid, attcollation), ',' ORDER BY attnum)"
    " FROM pg_attribute WHERE attrelid = 'cenote_chunks'::regclass",
    "SELECT string_agg(indexdef, ';' ORDER BY indexname) FROM pg_indexes"
    " WHERE tablename = 'cenote_chunks'",
    "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind = 'r'",
)


@pytest.mark.parametrize("name", REJECTED)
async def test_tables_that_differ_from_legacy_tables_are_rejected(
    empty_engine: AsyncEngine, name: str
) -> None:
    """The error names the difference, and the table is unchanged."""
    damage, settings, message = REJECTED[name]
    await create_legacy_table(empty_engine)
    await execute(empty_engine, *damage)
    before = [await scalar(empty_engine, query) for query in STATE]
    config = SchemaConfig(**{"dimensions": 4, **settings})
    with pytest.raises(MigrationError, match=message):
        await schema.upgrade(empty_engine, config)
    assert [await scalar(empty_engine, query) for query in STATE] == before
    assert await schema.current(empty_engine, config) is None


async def test_another_metric_is_rejected(empty_engine: AsyncEngine) -> None:
    """Legacy tables are searched by cosine similarity, and the metric of a table cannot change."""
    await create_legacy_table(empty_engine)
    with pytest.raises(MigrationError, match="its metric is cosine, expected l2"):
        await PgVectorStore(empty_engine, 4, metric="l2").apply_migrations()
    assert await scalar(empty_engine, "SELECT obj_description('cenote_chunks'::regclass)") is None


async def test_foreign_keys_to_a_legacy_table(empty_engine: AsyncEngine) -> None:
    """A foreign key to (namespace, id) is kept; a foreign key to (id) prevents the upgrade."""
    await create_legacy_table(empty_engine, 1)
    await execute(
        empty_engine,
        "CREATE TABLE mine (chunk_id text CONSTRAINT points REFERENCES cenote_chunks)",
    )
    before = [await scalar(empty_engine, query) for query in STATE]
    with pytest.raises(MigrationError, match="other objects depend on it"):
        await schema.upgrade(empty_engine, SchemaConfig(dimensions=4))
    assert [await scalar(empty_engine, query) for query in STATE] == before
    await execute(
        empty_engine,
        "DROP TABLE mine",
        *VERSIONS["002_namespace_id_pk.sql"],
        "INSERT INTO cenote_schema_migrations VALUES ('002_namespace_id_pk.sql')",
        "CREATE TABLE mine (namespace text, chunk_id text,"
        " FOREIGN KEY (namespace, chunk_id) REFERENCES cenote_chunks ON DELETE CASCADE)",
        "INSERT INTO mine VALUES ('tenant 1', 'chunk 1')",
    )
    store = PgVectorStore(empty_engine, 4)
    await store.apply_migrations()
    assert await store.check_schema() == []
    await store.delete(["chunk 1"], "tenant 1")
    assert await scalar(empty_engine, "SELECT count(*) FROM mine") == 0


async def test_tables_of_another_name_are_rejected(empty_engine: AsyncEngine) -> None:
    """An upgrade rejects a legacy table that has been copied to another name."""
    await create_legacy_table(empty_engine)
    await execute(empty_engine, "CREATE TABLE other AS SELECT * FROM cenote_chunks")
    with pytest.raises(MigrationError, match="table 'other' exists already"):
        await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, table_name="other"))
    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, table_name="third"))
