"""The revisions: from code, from alembic's command line, offline; what they make and refuse."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from commands import alembic
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import MigrationError, PgVectorStore, SchemaConfig, locks, schema
from cenote.connections import create_engine
from cenote.orm import chunk_table
from cenote.settings import gather, resolve
from cenote.testing import embedded, found

CONFIGS = [
    SchemaConfig(dimensions=4),
    SchemaConfig(dimensions=2000, partitions=0, hnsw_m=5, hnsw_ef_construction=10),
    SchemaConfig(dimensions=4000, column_type="halfvec", schema="Select", table_name="User"),
    SchemaConfig(dimensions=3, table_name="t" * 38, schema="s", partitions=128),
]


async def objects(engine: AsyncEngine, config: SchemaConfig) -> Any:
    """Columns, constraints and indexes of the chunk table and its partitions, as SQL says them."""
    name = chunk_table(config).name
    where = "n.nspname = coalesce(:schema, 'public') AND starts_with(c.relname, :name)"
    from_ = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    queries = [
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        f" a.attcollation, pg_get_expr(d.adbin, d.adrelid) {from_}"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        " LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum"
        f" WHERE {where} AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%version'"
        " ORDER BY c.relname, a.attnum",
        f"SELECT pg_get_indexdef(i.indexrelid) {from_} JOIN pg_index i ON i.indrelid = c.oid"
        f" WHERE {where} AND c.relname NOT LIKE '%version' ORDER BY 1",
        f"SELECT pg_get_constraintdef(k.oid) {from_} JOIN pg_constraint k ON k.conrelid = c.oid"
        f" WHERE {where} AND c.relname NOT LIKE '%version' ORDER BY 1",
        f"SELECT c.relname, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid) {from_}"
        f" WHERE {where} AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%version' ORDER BY 1",
    ]
    parameters = {"schema": config.schema, "name": name}
    async with engine.connect() as connection:
        return [(await connection.execute(text(query), parameters)).all() for query in queries]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.table_name[:12]}")
async def test_the_revisions_make_what_the_model_says(
    empty_engine: AsyncEngine, config: SchemaConfig
) -> None:
    """Down to index parameters and partitions; downgrading leaves the extension only."""
    await schema.upgrade(empty_engine, config)
    migrated = await objects(empty_engine, config)
    assert len(migrated[3]) == config.new_partitions + 1
    await schema.upgrade(empty_engine, config)  # nothing to do
    assert await objects(empty_engine, config) == migrated
    async with empty_engine.begin() as connection:
        await connection.run_sync(chunk_table(config).drop)
        assert await _tables(connection) == [schema.version_table(config.table_name)]
        await connection.run_sync(chunk_table(config).create)
    assert await objects(empty_engine, config) == migrated


async def _tables(connection: Any) -> list[str]:
    query = text(
        "SELECT tablename FROM pg_tables WHERE schemaname !~ '^pg_' AND "
        "schemaname <> 'information_schema' ORDER BY 1"
    )
    return [row[0] for row in (await connection.execute(query)).all()]


async def test_many_callers_at_once(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """Tasks for one table and for others, and threads with loops of their own."""
    errors: list[BaseException] = []

    def in_thread() -> None:
        async def run() -> None:
            engine = create_engine(empty_dsn)
            await schema.upgrade(engine, SchemaConfig(dimensions=4))
            await engine.dispose()

        try:
            asyncio.run(run())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=in_thread) for _ in range(3)]
    for thread in threads:
        thread.start()
    stores = [PgVectorStore(empty_engine, 4) for _ in range(3)]
    stores += [PgVectorStore(empty_engine, 4, table_name=f"other_{n}") for n in range(2)]
    await asyncio.gather(*(store.apply_migrations() for store in stores))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert errors == []
    for store in stores:
        await store.upsert([embedded("a")], "n")
        assert await found(store, [1, 0, 0, 0], "n") == ["a"]
    async with empty_engine.connect() as connection:
        locks = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert await connection.scalar(locks) == 0


async def test_processes_at_once(empty_dsn: str, empty_engine: AsyncEngine) -> None:
    """For several tables of one database that has neither extension nor schema."""
    commands = [
        asyncio.to_thread(
            alembic,
            *("-x", "dimensions=4", "-x", f"table_name=t{n % 3}", "-x", "partitions=0"),
            *("-x", "schema=app", "upgrade", "head"),
            CENOTE_DATABASE_URL=empty_dsn,
        )
        for n in range(6)
    ]
    for result in await asyncio.gather(*commands):
        assert result.returncode == 0, result.stderr
    async with empty_engine.connect() as connection:
        tables = await _tables(connection)
    assert tables == [f"t{n}{end}" for n in range(3) for end in ("", "_alembic_version")]


async def test_a_cancelled_upgrade_leaves_no_lock(empty_engine: AsyncEngine) -> None:
    """And the next one succeeds."""
    store = PgVectorStore(empty_engine, 4)
    for delay in (0.01, 0.05, 0.2):
        task = asyncio.create_task(store.apply_migrations())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(store.apply_migrations(), 30)
    await store.upsert([embedded("a")], "n")


async def test_waiting_for_a_lock_ends(
    empty_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With an error that says what was waited for, after a log line that does."""
    caplog.set_level("INFO", "cenote.locks")
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.5)
    config = SchemaConfig(dimensions=4)
    async with empty_engine.connect() as holder:
        await holder.execute(select(func.pg_advisory_lock(locks.LOCK_KEY)))
        with pytest.raises(MigrationError, match="cenote_chunks"):
            await schema.upgrade(empty_engine, config)
    assert "waiting to migrate table cenote_chunks" in caplog.text


async def test_another_table_of_that_name_is_refused(empty_engine: AsyncEngine) -> None:
    """And left as it is."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE TABLE cenote_chunks (mine int)"))
    with pytest.raises(MigrationError, match=r"cenote_chunks.*exists already"):
        await PgVectorStore(empty_engine, 4).apply_migrations()
    async with empty_engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(mine) FROM cenote_chunks")) == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dimensions": 5}, r"is vector\(4\), expected vector\(5\)"),
        ({"column_type": "halfvec"}, r"expected halfvec\(4\)"),
        ({"partitions": 0}, "has 16 partitions, expected 0"),
    ],
    ids=str,
)
async def test_a_table_of_another_shape_is_named(
    engine: AsyncEngine, settings: dict[str, Any], says: str
) -> None:
    """By an upgrade that has nothing else to do, instead of silence."""
    with pytest.raises(MigrationError, match=says):
        await schema.upgrade(engine, SchemaConfig(**{"dimensions": 4, **settings}))


async def test_an_extension_out_of_sight_is_refused(empty_engine: AsyncEngine) -> None:
    """With the cure."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA ext"))
        await connection.execute(text("CREATE EXTENSION vector SCHEMA ext"))
    with pytest.raises(MigrationError, match="search_path"):
        await PgVectorStore(empty_engine, 4).apply_migrations()


async def test_an_old_extension_is_refused(engine: AsyncEngine) -> None:
    """With the cure, too."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        )
    with pytest.raises(MigrationError, match="ALTER EXTENSION vector UPDATE"):
        await PgVectorStore(engine, 4, table_name="other").apply_migrations()


async def test_what_the_server_refuses_is_a_migration_error(empty_engine: AsyncEngine) -> None:
    """Here a role that may not create anything."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA locked"))
        await connection.execute(text("DROP ROLE IF EXISTS nobody_special"))
        await connection.execute(text("CREATE ROLE nobody_special LOGIN"))
    url = empty_engine.url.set(username="nobody_special", password="")
    weak = create_engine(url.render_as_string(hide_password=False))
    with pytest.raises(MigrationError, match="permission denied"):
        await PgVectorStore(weak, 4, schema="locked").apply_migrations()
    await weak.dispose()
    async with empty_engine.begin() as connection:
        await connection.execute(text("DROP ROLE nobody_special"))


# -- alembic's command line ------------------------------------------------------------------------


async def test_the_command_line_of_a_checkout(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """Settings from -x and from the environment; up, down and up again."""
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    result = alembic("-x", "dimensions=4", "-x", "partitions=0", "upgrade", "head", **url)
    assert result.returncode == 0, result.stderr
    assert "Running upgrade  -> cenote_0001" in result.stderr
    assert "(head)" in alembic("current", CENOTE_DIMENSIONS="4", **url).stdout
    store = PgVectorStore(empty_engine, 4, partitions=0)
    await store.upsert([embedded("a")], "n")
    result = alembic("downgrade", "base", CENOTE_DIMENSIONS="4", **url)
    assert result.returncode == 0, result.stderr
    async with empty_engine.connect() as connection:
        assert await _tables(connection) == ["cenote_chunks_alembic_version"]
        extensions = text("SELECT count(*) FROM pg_extension WHERE extname = 'vector'")
        assert await connection.scalar(extensions) == 1
    result = alembic("upgrade", "head", CENOTE_DIMENSIONS="4", CENOTE_SCHEMA="S", **url)
    assert result.returncode == 0, result.stderr
    await PgVectorStore(empty_engine, 4, schema="S").upsert([embedded("a")], "n")


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["-x", "table_name=a b"], {}, "table_name"),
        (["-x", "dimensions=4"], {}, "CENOTE_DATABASE_URL"),
        (["-x", "dimension=4"], {}, "-x dimension is none of cenote's settings"),
        (["-x", "dimensions=many"], {}, "dimensions must be an integer"),
        (["-x", "dimensions=9999"], {}, "halfvec"),
        (["-x", "dimensions=4", "-x", "table_name=a b"], {}, "table_name"),
        (["-x", "dimensions=4"], {"CENOTE_DATABASE_URL": "mysql://u:s3cret@h/d"}, "postgresql://"),
        (
            ["-x", "dimensions=4"],
            {"CENOTE_DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d"},
            "cannot connect to Postgres: ConnectionRefusedError",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], environ: dict[str, str], says: str) -> None:
    """With the cure in it, and no password."""
    result = alembic(*arguments, "upgrade", "head", **environ)
    assert result.returncode != 0
    assert says in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


async def test_without_dimensions_nothing_is_made(
    empty_engine: AsyncEngine, empty_dsn: str
) -> None:
    """The error says how to set them; where the table is there, they are the table's."""
    for arguments in (["upgrade", "head"], ["upgrade", "head", "--sql"]):
        result = alembic(*arguments, CENOTE_DATABASE_URL=empty_dsn)
        assert result.returncode != 0
        assert "-x dimensions=384" in result.stdout
        assert "CENOTE_DIMENSIONS=384" in result.stdout
    async with empty_engine.connect() as connection:
        assert await _tables(connection) == []
    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, column_type="halfvec"))
    for arguments in (["upgrade", "head"], ["check"], ["current"], ["downgrade", "base"]):
        result = alembic(*arguments, CENOTE_DATABASE_URL=empty_dsn)
        assert result.returncode == 0, result.stdout + result.stderr


async def test_check_finds_nothing(engine: AsyncEngine, dsn: str) -> None:
    """After an upgrade, and beside tables of others: nothing to create, nothing to drop."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (id int)"))
    result = alembic("-x", "dimensions=4", "check", CENOTE_DATABASE_URL=dsn)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No new upgrade operations detected" in result.stdout


@pytest.mark.parametrize("settings", [{}, {"schema": "s", "table_name": "T", "partitions": "0"}])
async def test_sql_for_a_dba(empty_engine: AsyncEngine, settings: dict[str, str]) -> None:
    """Printed without a database, it makes what the online upgrade makes."""
    arguments = [part for name, value in settings.items() for part in ("-x", f"{name}={value}")]
    result = alembic("-x", "dimensions=4", *arguments, "upgrade", "head", "--sql")
    assert result.returncode == 0, result.stderr
    config = resolve(gather({"dimensions": "4", **settings}, {}, {}), None)
    assert config is not None
    async with empty_engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(result.stdout)
    scripted = await objects(empty_engine, config)
    await schema.upgrade(empty_engine, config)  # at head already
    async with empty_engine.begin() as connection:
        await connection.run_sync(chunk_table(config).drop)
        await connection.run_sync(chunk_table(config).create)
    assert await objects(empty_engine, config) == scripted
