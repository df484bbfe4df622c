"""Upgrades from code, by Alembic's command line and offline; the lock on migrations."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from asyncio.subprocess import PIPE, Process
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from support.commands import alembic, cenote, clean_environment
from support.database import objects, run_script, scalar, tables

from cenote import MigrationError, PgVectorStore, SchemaConfig, schema
from cenote.inspection.settings import gather, resolve
from cenote.migrate import versions
from cenote.orm.factory import chunk_table
from cenote.postgres import locks
from cenote.postgres.dsn import create_engine
from cenote.testing import embedded, found

CONFIGS = [
    SchemaConfig(dimensions=4),
    SchemaConfig(dimensions=2000, partitions=0, hnsw_m=5, hnsw_ef_construction=10),
    SchemaConfig(dimensions=4000, column_type="halfvec", schema="Select", table_name="User"),
    SchemaConfig(dimensions=3, table_name="t" * 38, schema="s", partitions=128),
    SchemaConfig(dimensions=4000, index="halfvec", metric="l2", table_name="l2", partitions=0),
    SchemaConfig(dimensions=16_000, index="bit", table_name="signs", partitions=2),
    SchemaConfig(dimensions=3, index="none", metric="inner_product", table_name="no_index"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.table_name[:12]}")
async def test_the_revisions_create_the_models_table(
    empty_engine: AsyncEngine, config: SchemaConfig
) -> None:
    """Revisions and model create the same objects, down to index parameters and partitions."""
    await schema.upgrade(empty_engine, config)
    migrated = await objects(empty_engine, config)
    assert len(migrated[3]) == config.new_partitions + 1
    await schema.upgrade(empty_engine, config)  # a second upgrade changes nothing
    assert await objects(empty_engine, config) == migrated
    async with empty_engine.begin() as connection:
        await connection.run_sync(chunk_table(config).drop)
    assert await tables(empty_engine) == [versions.version_table(config.table_name)]
    async with empty_engine.begin() as connection:
        await connection.run_sync(chunk_table(config).create)
    assert await objects(empty_engine, config) == migrated


async def test_concurrent_upgrades_in_one_process(
    empty_engine: AsyncEngine, empty_dsn: str
) -> None:
    """Tasks for several tables, and threads with their own event loops, upgrade concurrently."""
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


async def test_concurrent_upgrades_of_several_tables(
    empty_dsn: str, empty_engine: AsyncEngine
) -> None:
    """Six processes upgrade three tables of a database without extension and schema."""
    commands = [
        asyncio.to_thread(
            cenote,
            *("migrate", "-x", "dimensions=4", "-x", f"table_name=t{n % 3}", "-x", "partitions=0"),
            *("-x", "schema=app", "upgrade", "head"),
            CENOTE_DATABASE_URL=empty_dsn,
        )
        for n in range(6)
    ]
    for result in await asyncio.gather(*commands):
        assert result.returncode == 0, result.stderr
    created = await tables(empty_engine)
    assert created == [f"t{n}{end}" for n in range(3) for end in ("", "_alembic_version")]


@pytest.mark.parametrize("kill", [False, True], ids=["all live", "one is killed"])
async def test_concurrent_upgrades_of_one_database(
    empty_dsn: str, empty_engine: AsyncEngine, kill: bool
) -> None:
    """Eight processes upgrade one empty database; the process with the lock may be killed."""
    processes = [await start_upgrade(empty_dsn, name=str(number)) for number in range(8)]
    killed = await kill_the_holder(empty_engine, processes) if kill else None
    for number, process in enumerate(processes):
        _, stderr = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == (-signal.SIGKILL if number == killed else 0), stderr.decode()
    assert await tables(empty_engine) == ["cenote_chunks", "cenote_chunks_alembic_version"]
    versions = "SELECT string_agg(version_num, ',') FROM cenote_chunks_alembic_version"
    assert await scalar(empty_engine, versions) == "cenote_0004"
    assert await PgVectorStore(empty_engine, 4).check_schema() == []
    locked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert await scalar(empty_engine, locked) == 0


async def start_upgrade(dsn: str, name: str) -> Process:
    """Start an upgrade in a process, with `name` as its application_name on the server."""
    url = make_url(dsn).update_query_dict({"application_name": name})
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cenote", "migrate", "-x", "dimensions=4", "upgrade", "head"),
        env={**clean_environment(), "CENOTE_DATABASE_URL": url.render_as_string(False)},
        stdout=PIPE,
        stderr=PIPE,
    )


async def kill_the_holder(engine: AsyncEngine, processes: list[Process]) -> int:
    """Kill the process that holds the lock, while a table of the same name blocks it."""
    holder = (
        "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND wait_event_type = 'Lock'"
    )
    async with engine.begin() as connection:
        # The CREATE TABLE of the process waits for this transaction.
        await connection.execute(text("CREATE TABLE cenote_chunks ()"))
        async with asyncio.timeout(30):
            while (name := await scalar(engine, holder)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        number = int(name)
        processes[number].kill()
        await processes[number].wait()
        await connection.rollback()
    return number


async def test_waiting_for_the_lock_is_logged(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """The command's log names the table and the server process that holds the lock."""
    async with empty_engine.connect() as holder:
        pid = await holder.scalar(select(func.pg_backend_pid()))
        await holder.execute(select(func.pg_advisory_lock(locks.LOCK_KEY)))
        command = (
            sys.executable,
            "-m",
            "cenote",
            "migrate",
            "-x",
            "dimensions=4",
            "upgrade",
            "head",
        )
        process = await asyncio.create_subprocess_exec(
            *command, env={**clean_environment(), "CENOTE_DATABASE_URL": empty_dsn}, stderr=PIPE
        )
        assert process.stderr is not None
        log = await asyncio.wait_for(process.stderr.readuntil(b"server process "), 30)
        assert b"waiting to change table cenote_chunks" in log
        assert await asyncio.wait_for(process.stderr.readuntil(b")"), 30) == f"{pid})".encode()
        await holder.execute(select(func.pg_advisory_unlock(locks.LOCK_KEY)))
        await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


async def test_read_only_commands_take_no_lock(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """`current` and `check` do not wait for a migration, and create no schema and no table."""
    async with empty_engine.connect() as holder:
        await holder.execute(select(func.pg_advisory_lock(locks.LOCK_KEY)))
        for command in (["migrate", "-x", "schema=s", "current"], ["check", "-x", "schema=s"]):
            result = await asyncio.wait_for(
                asyncio.to_thread(cenote, *command, CENOTE_DATABASE_URL=empty_dsn), 20
            )
            assert result.returncode in (0, 1), result.stderr
        await holder.execute(select(func.pg_advisory_unlock(locks.LOCK_KEY)))
    assert await tables(empty_engine) == []
    assert await scalar(empty_engine, "SELECT to_regnamespace('s')") is None


async def test_the_callers_connection(empty_engine: AsyncEngine) -> None:
    """A connection's isolation level is restored; one with an open transaction is rejected."""
    config = SchemaConfig(dimensions=4)
    async with empty_engine.connect() as connection:
        await connection.execution_options(isolation_level="SERIALIZABLE")
        assert await schema.current(connection, config) is None
        await schema.upgrade(connection, config)
        assert await schema.current(connection, config) == "cenote_0004"
        assert await schema.check(connection, config) == []
        level = text("SHOW transaction_isolation")
        assert await connection.scalar(level) == "serializable"
        for call in (schema.upgrade, schema.current, schema.check):
            with pytest.raises(MigrationError, match="open transaction"):
                await call(connection, config)
        await connection.rollback()
    assert await schema.current(empty_engine, config) == "cenote_0004"


async def test_a_cancelled_upgrade_leaves_no_lock(empty_engine: AsyncEngine) -> None:
    """An upgrade succeeds after upgrades that were cancelled at different times."""
    store = PgVectorStore(empty_engine, 4)
    for delay in (0.01, 0.05, 0.2):
        task = asyncio.create_task(store.apply_migrations())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(store.apply_migrations(), 30)
    await store.upsert([embedded("a")], "n")


async def test_lock_timeout(
    empty_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting for the lock ends with an error; error and log name the table."""
    caplog.set_level("INFO", "cenote.postgres.locks")
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.5)
    config = SchemaConfig(dimensions=4)
    async with empty_engine.connect() as holder:
        await holder.execute(select(func.pg_advisory_lock(locks.LOCK_KEY)))
        with pytest.raises(MigrationError, match="cenote_chunks"):
            await schema.upgrade(empty_engine, config)
    assert "waiting to change table cenote_chunks" in caplog.text


async def test_an_unrelated_table_of_the_same_name_is_rejected(empty_engine: AsyncEngine) -> None:
    """An upgrade raises an error and leaves the other table unchanged."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE TABLE cenote_chunks (mine int)"))
    with pytest.raises(MigrationError, match=r"cenote_chunks.*exists already"):
        await PgVectorStore(empty_engine, 4).apply_migrations()
    async with empty_engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(mine) FROM cenote_chunks")) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": 5}, r"is vector\(4\), expected vector\(5\)"),
        ({"column_type": "halfvec"}, r"expected halfvec\(4\)"),
        ({"partitions": 0}, "has 16 partitions, expected 0"),
    ],
    ids=str,
)
async def test_settings_that_contradict_the_table_are_rejected(
    engine: AsyncEngine, settings: dict[str, Any], message: str
) -> None:
    """An upgrade raises an error even if no revision is pending."""
    with pytest.raises(MigrationError, match=message):
        await schema.upgrade(engine, SchemaConfig(**{"dimensions": 4, **settings}))


async def test_an_extension_outside_the_search_path_is_rejected(empty_engine: AsyncEngine) -> None:
    """The error names the search_path, which has to be changed."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA ext"))
        await connection.execute(text("CREATE EXTENSION vector SCHEMA ext"))
    with pytest.raises(MigrationError, match="search_path"):
        await PgVectorStore(empty_engine, 4).apply_migrations()


async def test_an_old_extension_is_rejected(engine: AsyncEngine) -> None:
    """The error names the command that updates the extension."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        )
    with pytest.raises(MigrationError, match="ALTER EXTENSION vector UPDATE"):
        await PgVectorStore(engine, 4, table_name="other").apply_migrations()


async def test_server_errors_become_migration_errors(empty_engine: AsyncEngine) -> None:
    """An upgrade by a role without the privilege to create objects raises MigrationError."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA locked"))
        await connection.execute(text("DROP ROLE IF EXISTS cenote_unprivileged"))
        await connection.execute(text("CREATE ROLE cenote_unprivileged LOGIN"))
    url = empty_engine.url.set(username="cenote_unprivileged", password="")
    unprivileged = create_engine(url.render_as_string(hide_password=False))
    with pytest.raises(MigrationError, match="permission denied"):
        await PgVectorStore(unprivileged, 4, schema="locked").apply_migrations()
    await unprivileged.dispose()
    async with empty_engine.begin() as connection:
        await connection.execute(text("DROP ROLE cenote_unprivileged"))


# -- alembic's command line ------------------------------------------------------------------------


async def test_the_alembic_command_in_a_checkout(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """Upgrade, downgrade and upgrade again, with settings from -x and from the environment."""
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    result = alembic("-x", "dimensions=4", "-x", "partitions=0", "upgrade", "head", **url)
    assert result.returncode == 0, result.stderr
    assert "Running upgrade  -> cenote_0001" in result.stderr
    assert "(head)" in alembic("current", CENOTE_DIMENSIONS="4", **url).stdout
    store = PgVectorStore(empty_engine, 4, partitions=0)
    await store.upsert([embedded("a")], "n")
    result = alembic("downgrade", "base", CENOTE_DIMENSIONS="4", **url)
    assert result.returncode == 0, result.stderr
    assert await tables(empty_engine) == ["cenote_chunks_alembic_version"]
    extensions = "SELECT count(*) FROM pg_extension WHERE extname = 'vector'"
    assert await scalar(empty_engine, extensions) == 1
    result = alembic("upgrade", "head", CENOTE_DIMENSIONS="4", CENOTE_SCHEMA="S", **url)
    assert result.returncode == 0, result.stderr
    await PgVectorStore(empty_engine, 4, schema="S").upsert([embedded("a")], "n")


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["-x", "table_name=a b"], {}, "table_name"),
        (["-x", "dimensions=4"], {}, "CENOTE_DATABASE_URL"),
        (["-x", "dimension=4"], {}, "-x dimension is not a setting of cenote"),
        (["-x", "dimensions=many"], {}, "dimensions must be an integer"),
        (["-x", "dimensions=9999"], {}, "halfvec"),
        (["-x", "dimensions=4", "-x", "table_name=a b"], {}, "table_name"),
        (["-x", "dimensions=4"], {"CENOTE_DATABASE_URL": "mysql://u:s3cret@h/d"}, "postgresql://"),
        (
            ["-x", "dimensions=4"],
            {"CENOTE_DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d"},
            "cannot connect to postgresql+asyncpg://u:***@127.0.0.1:1/d: ConnectionRefusedError",
        ),
    ],
)
def test_invalid_arguments_of_alembic(
    arguments: list[str], environ: dict[str, str], message: str
) -> None:
    """The error is one line with a hint and without a password."""
    result = alembic(*arguments, "upgrade", "head", **environ)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


async def test_dimensions_are_required(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """The error says how to set the dimensions. For an existing table, they are not required."""
    for arguments in (["upgrade", "head"], ["upgrade", "head", "--sql"]):
        result = alembic(*arguments, CENOTE_DATABASE_URL=empty_dsn)
        assert result.returncode != 0
        assert "-x dimensions=384" in result.stdout
        assert "CENOTE_DIMENSIONS=384" in result.stdout
    assert await tables(empty_engine) == []
    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, column_type="halfvec"))
    for arguments in (["upgrade", "head"], ["check"], ["current"], ["downgrade", "base"]):
        result = alembic(*arguments, CENOTE_DATABASE_URL=empty_dsn)
        assert result.returncode == 0, result.stdout + result.stderr


async def test_alembic_check_after_an_upgrade(engine: AsyncEngine, dsn: str) -> None:
    """Autogenerate finds no operations, and does not drop other tables."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (id int)"))
    result = alembic("-x", "dimensions=4", "check", CENOTE_DATABASE_URL=dsn)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No new upgrade operations detected" in result.stdout


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schema": "s", "table_name": "T", "partitions": "0"},
        {"index": "bit", "partitions": "0"},
        {"index": "none", "metric": "l2", "partitions": "2"},
    ],
    ids=str,
)
async def test_sql_scripts(empty_engine: AsyncEngine, settings: dict[str, str]) -> None:
    """A script printed without a database creates the same objects as an online upgrade."""
    arguments = [part for name, value in settings.items() for part in ("-x", f"{name}={value}")]
    result = alembic("-x", "dimensions=4", *arguments, "upgrade", "head", "--sql")
    assert result.returncode == 0, result.stderr
    config = resolve(gather({"dimensions": "4", **settings}, {}, {}), None)
    assert config is not None
    await run_script(empty_engine, result.stdout)
    scripted = await objects(empty_engine, config)
    await schema.upgrade(empty_engine, config)  # the script has recorded the latest revision
    async with empty_engine.begin() as connection:
        await connection.run_sync(chunk_table(config).drop)
        await connection.run_sync(chunk_table(config).create)
    assert await objects(empty_engine, config) == scripted
