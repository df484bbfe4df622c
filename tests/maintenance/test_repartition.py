"""Rewriting a plain table into partitions, and back."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.commands import cenote, output_of
from support.database import execute, scalar

from cenote import (
    ConfigurationError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
)
from cenote.maintenance import reindex, repartition
from cenote.testing import embedded, found

APPLICATION_DDL = [
    'CREATE TABLE documents (id text COLLATE "C" PRIMARY KEY)',
    "INSERT INTO documents VALUES ('doc')",
    "ALTER TABLE cenote_chunks ADD COLUMN lang text DEFAULT 'en'",
    "ALTER TABLE cenote_chunks ADD COLUMN twice bigint GENERATED ALWAYS AS (position * 2) STORED",
    "ALTER TABLE cenote_chunks ADD CONSTRAINT positive CHECK (position >= 0)",
    "ALTER TABLE cenote_chunks ADD CONSTRAINT one_each UNIQUE (namespace, document_id, id)",
    "ALTER TABLE cenote_chunks ADD CONSTRAINT of_document FOREIGN KEY (document_id)"
    " REFERENCES documents (id) ON DELETE CASCADE",
    "CREATE INDEX hot ON cenote_chunks ((metadata ->> 'year')) WHERE lang <> 'xx'",
    "CREATE TABLE notes (namespace text, chunk_id text, CONSTRAINT on_chunk"
    " FOREIGN KEY (namespace, chunk_id) REFERENCES cenote_chunks ON DELETE CASCADE)",
    "INSERT INTO notes VALUES ('n', 'a')",
    "COMMENT ON TABLE cenote_chunks IS 'it''s searched'",
    "COMMENT ON COLUMN cenote_chunks.lang IS 'of the text'",
    "DROP ROLE IF EXISTS serves",
    "DROP ROLE IF EXISTS owns",
    "CREATE ROLE serves",
    "CREATE ROLE owns",
    "GRANT SELECT, INSERT ON cenote_chunks TO serves WITH GRANT OPTION",
    "GRANT SELECT ON cenote_chunks TO PUBLIC",
    "ALTER TABLE cenote_chunks OWNER TO owns",
]

STATE = {
    "rows": "SELECT count(*) || md5(string_agg(t::text, '|' ORDER BY namespace, id))"
    " FROM cenote_chunks t",
    "grants": "SELECT relacl::text FROM pg_class WHERE oid = 'cenote_chunks'::regclass",
    "owner": "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'cenote_chunks'::regclass",
    "comment": "SELECT obj_description('cenote_chunks'::regclass)",
    "column comments": "SELECT string_agg(col_description(attrelid, attnum), ',') FROM pg_attribute"
    " WHERE attrelid = 'cenote_chunks'::regclass",
    "columns": "SELECT string_agg(concat(column_name, data_type, collation_name, is_nullable,"
    " column_default, generation_expression), ';' ORDER BY ordinal_position)"
    " FROM information_schema.columns WHERE table_name = 'cenote_chunks'",
    "constraints": "SELECT string_agg(concat(conname, ' ', pg_get_constraintdef(oid)), ';'"
    " ORDER BY conname) FROM pg_constraint WHERE conparentid = 0 AND contype <> 'n'"
    " AND 'cenote_chunks'::regclass IN (conrelid, confrelid)",
    "indexes": "SELECT string_agg(replace(indexdef, 'ON ONLY', 'ON'), ';' ORDER BY indexname)"
    " FROM pg_indexes WHERE tablename = 'cenote_chunks'",
    "notes": "SELECT string_agg(concat(namespace, chunk_id), ';') FROM notes",
    "relations": "SELECT string_agg(relname, ',') FROM pg_class WHERE relname LIKE '%\\_new%'",
}


async def state(engine: AsyncEngine) -> dict[str, Any]:
    """Return everything that a rewrite must not change."""
    async with engine.connect() as connection:
        return {name: await connection.scalar(text(query)) for name, query in STATE.items()}


async def partitions(engine: AsyncEngine) -> list[str]:
    """Return the names of the partitions."""
    query = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"
    async with engine.connect() as connection:
        return [*await connection.scalars(text(query))]


async def test_objects_of_the_application_are_kept(empty_engine: AsyncEngine) -> None:
    """A rewrite keeps columns, constraints, indexes, comments, privileges and references."""
    engine = empty_engine
    store = PgVectorStore(engine, 4, partitions=0)
    await store.apply_migrations()
    items = [embedded(id, position=n) for n, id in enumerate("abc")]
    await store.upsert(items, "n")
    await store.upsert(items, "m")
    await execute(engine, *APPLICATION_DDL)
    before = await state(engine)
    assert before["relations"] is None
    for number in (4, 16, 0):
        config = SchemaConfig(dimensions=4, partitions=number)
        await repartition(engine, config)
        names = await partitions(engine)
        assert names == [f"cenote_chunks_p{n:02}" for n in range(number)]
        assert await state(engine) == before
        store = PgVectorStore(engine, 4, partitions=number)
        assert await store.check_schema() == []
        assert await found(store, [1, 0, 0, 0], "n") == ["a", "b", "c"]
        await repartition(engine, config)  # a second call changes nothing
        assert await state(engine) == before
    await execute(engine, "DELETE FROM documents")
    assert (await state(engine))["notes"] is None
    await execute(engine, "REASSIGN OWNED BY owns TO CURRENT_USER", "DROP OWNED BY serves, owns")
    await execute(engine, "DROP ROLE serves", "DROP ROLE owns")


LOST_OBJECTS = {
    "triggers": "CREATE TRIGGER t BEFORE UPDATE ON cenote_chunks FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "row security policies": "CREATE POLICY mine ON cenote_chunks USING (true)",
    "row level security": "ALTER TABLE cenote_chunks ENABLE ROW LEVEL SECURITY",
    "rules": "CREATE RULE r AS ON DELETE TO cenote_chunks DO ALSO NOTIFY gone",
    "views": "CREATE VIEW v AS SELECT id FROM cenote_chunks",
    "publications": "CREATE PUBLICATION p FOR TABLE cenote_chunks",
    "column privileges": "GRANT SELECT (id) ON cenote_chunks TO PUBLIC",
    "identity columns": "ALTER TABLE cenote_chunks ADD n int GENERATED ALWAYS AS IDENTITY",
    "sequences of its own": "ALTER TABLE cenote_chunks ADD COLUMN n serial",
    "storage parameters": "ALTER TABLE cenote_chunks SET (autovacuum_vacuum_scale_factor = 0.01)",
    "statistics targets": "ALTER TABLE cenote_chunks ALTER document_id SET STATISTICS 500",
    "unlogged storage": "ALTER TABLE cenote_chunks SET UNLOGGED",
    "a parent table": 'CREATE TABLE parent (namespace text COLLATE "C" NOT NULL);'
    "ALTER TABLE cenote_chunks INHERIT parent",
    "a cluster order": "ALTER TABLE cenote_chunks CLUSTER ON pk_cenote_chunks",
    "extended statistics": "CREATE STATISTICS st ON document_id, position FROM cenote_chunks",
    "comments on indexes": "COMMENT ON INDEX pk_cenote_chunks IS 'mine'",
    "a replica identity": "ALTER TABLE cenote_chunks REPLICA IDENTITY FULL",
}


@pytest.mark.parametrize("kind", LOST_OBJECTS)
async def test_tables_with_objects_that_would_be_lost_are_rejected(
    empty_engine: AsyncEngine, kind: str
) -> None:
    """The error lists the objects that a rewrite would lose, and the table is unchanged."""
    store = PgVectorStore(empty_engine, 4, partitions=0)
    await store.apply_migrations()
    await store.upsert([embedded("a")], "n")
    await execute(empty_engine, *LOST_OBJECTS[kind].split(";"))
    with pytest.raises(MigrationError, match=f"has (.*, )?{kind}"):
        await repartition(empty_engine, SchemaConfig(dimensions=4, partitions=2))
    assert await partitions(empty_engine) == []
    assert await found(store, [1, 0, 0, 0], "n") == ["a"]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("GRANT SELECT ON cenote_chunks_p03 TO PUBLIC", "privileges on single partitions"),
        ("CREATE INDEX ON cenote_chunks_p03 (content)", "of single partitions"),
        ("ALTER TABLE cenote_chunks_p03 ADD CHECK (position > 0)", "of single partitions"),
        ("COMMENT ON TABLE cenote_chunks_p03 IS 'mine'", "comments on"),
        ("ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p03", "ATTACH PARTITION"),
        ("CREATE TABLE cenote_chunks_new ()", "needs its name"),
        ("CREATE PUBLICATION p FOR ALL TABLES", "subscribers have no table"),
        ("CREATE PUBLICATION p FOR TABLES IN SCHEMA public", "subscribers have no table"),
    ],
)
async def test_partitions_with_objects_that_would_be_lost_are_rejected(
    engine: AsyncEngine, statement: str, message: str
) -> None:
    """Objects on single partitions, and a detached partition, prevent a rewrite."""
    await execute(engine, statement)
    before = await partitions(engine)
    with pytest.raises(MigrationError, match=message):
        await repartition(engine, SchemaConfig(dimensions=4, partitions=0))
    assert await partitions(engine) == before


async def test_privileges_are_kept(engine: AsyncEngine) -> None:
    """A rewrite adds no default privileges, and does not restore the owner's revoked ones."""
    await execute(
        engine,
        "DROP ROLE IF EXISTS serves",
        "CREATE ROLE serves",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO serves",
        "REVOKE DELETE ON cenote_chunks FROM CURRENT_USER",
    )
    grants = STATE["grants"]
    before = await scalar(engine, grants)
    for number in (0, 3):
        await repartition(engine, SchemaConfig(dimensions=4, partitions=number))
        assert await scalar(engine, grants) == before
    for name in ("cenote_chunks", "cenote_chunks_p01"):
        query = f"SELECT has_table_privilege('serves', '{name}', 'SELECT')"
        assert await scalar(engine, query) is False
    await execute(engine, "DROP OWNED BY serves", "DROP ROLE serves")


async def test_indexes_are_kept(engine: AsyncEngine) -> None:
    """Valid indexes keep their names, however unusual, and invalid indexes are dropped."""
    await execute(
        engine,
        'CREATE INDEX "x ON ONLY y" ON cenote_chunks (content)',
        "CREATE INDEX a_first ON cenote_chunks USING hnsw (embedding vector_l2_ops)",
        "CREATE INDEX gone_ccnew ON ONLY cenote_chunks (position)",
    )
    for number in (0, 2):
        config = SchemaConfig(dimensions=4, partitions=number)
        await repartition(engine, config)
        names = "SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes"
        names += " WHERE tablename = 'cenote_chunks'"
        found = await scalar(engine, names)
        assert "x ON ONLY y" in found
        assert "a_first" in found
        assert "gone_ccnew" not in found
    await reindex(engine, SchemaConfig(dimensions=4, hnsw_m=8))
    assert await PgVectorStore(engine, 4, hnsw_m=8).check_schema() == []


async def test_concurrent_writes_to_chunks_and_documents(engine: AsyncEngine) -> None:
    """Transactions that write documents and then chunks do not deadlock with a rewrite."""
    await execute(
        engine,
        'CREATE TABLE documents (id text COLLATE "C" PRIMARY KEY)',
        "ALTER TABLE cenote_chunks ADD FOREIGN KEY (document_id) REFERENCES documents",
    )
    rows = (
        "INSERT INTO cenote_chunks SELECT 'n', :id, :id, '', 0, '{}', '', '[1,0,0,0]', 'm', now()"
    )
    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            async with engine.begin() as connection:
                insert = text("INSERT INTO documents VALUES (:id)")
                await connection.execute(insert, {"id": str(number)})
                await asyncio.sleep(0.01)
                await connection.execute(text(rows), {"id": str(number)})
        return number

    task = asyncio.create_task(write())
    for number in (0, 4, 0, 16):
        await repartition(engine, SchemaConfig(dimensions=4, partitions=number))
        await asyncio.sleep(0.05)
    stop.set()
    written = await task
    assert await scalar(engine, "SELECT count(*) FROM cenote_chunks") == written


async def test_concurrent_searches(engine: AsyncEngine) -> None:
    """Searches during a rewrite succeed, and prepared statements find the new table."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded(id) for id in "abc"], "n")
    stop = asyncio.Event()

    async def search() -> int:
        calls = 0
        while not stop.is_set():
            assert await found(store, [1, 0, 0, 0], "n") == ["a", "b", "c"]
            calls += 1
        return calls

    task = asyncio.create_task(search())
    for number in (0, 4):
        await repartition(engine, SchemaConfig(dimensions=4, partitions=number))
        await asyncio.sleep(0.05)
    stop.set()
    assert await task > 0


async def test_a_cancelled_rewrite_changes_nothing(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A rewrite can be cancelled while rows are copied and while indexes are built."""
    caplog.set_level("INFO", "cenote.maintenance.repartitioning")
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded(id) for id in "abc"], "n")
    config = SchemaConfig(dimensions=4, partitions=2)
    for step in ("copying all rows", "building keys and indexes"):
        task: asyncio.Task[bool] = asyncio.create_task(repartition(engine, config))

        class CancelAt(logging.Handler):
            def emit(self, record: logging.LogRecord, step: str = step, task: Any = task) -> None:
                if step in record.getMessage():
                    task.cancel()

        handler = CancelAt()
        logging.getLogger("cenote.maintenance.repartitioning").addHandler(handler)
        with pytest.raises(asyncio.CancelledError):
            await task
        logging.getLogger("cenote.maintenance.repartitioning").removeHandler(handler)
        assert len(await partitions(engine)) == 16
        assert await found(store, [1, 0, 0, 0], "n") == ["a", "b", "c"]
        assert [
            finding for finding in await store.check_schema() if finding.kind != "partitions"
        ] == []


async def test_the_number_of_partitions_is_required(engine: AsyncEngine) -> None:
    """A configuration without a number of partitions raises an error."""
    with pytest.raises(ConfigurationError, match="number of partitions is required"):
        await repartition(engine, SchemaConfig(dimensions=4))


async def test_the_command(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """`cenote repartition` reads its settings from the live table, and removes the finding."""
    store = PgVectorStore(
        empty_engine, 4, table_name="t", schema="s", column_type="halfvec", partitions=0
    )
    await store.apply_migrations()
    await store.upsert([embedded("a")], "n")
    settings = ["-x", "table_name=t", "-x", "schema=s"]
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    output = cenote("check", *settings, "-x", "partitions=3", **url).stdout
    assert "cenote repartition -x table_name=t -x schema=s 3" in output
    output_of(cenote("repartition", *settings, "3", **url))
    assert await partitions(empty_engine) == ["t_p00", "t_p01", "t_p02"]
    output_of(cenote("check", *settings, "-x", "partitions=3", **url))
    assert await found(store, [1, 0, 0, 0], "n") == ["a"]
    result = cenote("repartition", "3", **url)
    assert result.returncode == 2
    assert "no chunk table 'cenote_chunks'" in result.stderr


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_transactions_that_are_older_than_a_rewrite(engine: AsyncEngine, level: str) -> None:
    """Their snapshot has none of the rows, so every operation raises an error, until they end."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    chunk = embedded("a").chunk
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        await connection.execute(text("SELECT count(*) FROM pg_class"))  # takes the snapshot
        await repartition(engine, SchemaConfig(dimensions=4, partitions=3))
        for call in (
            store.count("n", session=connection),
            store.missing([chunk], "n", session=connection),
            store.search([1, 0, 0, 0], "n", session=connection),
            store.upsert([embedded("b")], "n", session=connection),
            store.delete_namespace("n", session=connection),
        ):
            with pytest.raises(VectorStoreError, match="rewritten into other partitions"):
                await call
        await connection.rollback()
        assert await store.count("n", session=connection) == 1
        assert await store.missing([chunk], "n", session=connection) == []
        await store.upsert([embedded("b")], "n", session=connection)
        await connection.commit()
    assert await found(store, [1, 0, 0, 0], "n") == ["a", "b"]


async def test_rewrites_wait_for_transactions_that_have_used_the_table(
    engine: AsyncEngine,
) -> None:
    """The check locks the table, so that no rewrite comes between it and the operation."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        assert await store.count("n", session=connection) == 1
        rewriting = asyncio.create_task(
            repartition(engine, SchemaConfig(dimensions=4, partitions=3))
        )
        await asyncio.sleep(0.3)
        assert not rewriting.done()
        assert await store.count("n", session=connection) == 1
        await connection.rollback()
    assert await rewriting is True


async def test_isolation_levels_that_the_store_does_not_know(engine: AsyncEngine) -> None:
    """After SET TRANSACTION by hand, an older transaction sees an empty table; see the manual.

    At READ COMMITTED, each statement has its own snapshot and sees all rows.
    """
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    counts = []
    for statement, partitions in (
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", 3),
        ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", 4),
    ):
        async with engine.connect() as connection:
            await connection.execute(text(statement))
            await connection.execute(text("SELECT count(*) FROM pg_class"))
            await repartition(engine, SchemaConfig(dimensions=4, partitions=partitions))
            counts.append(await store.count("n", session=connection))
    assert counts == [0, 1]
