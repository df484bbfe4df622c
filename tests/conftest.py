"""Fixtures with a real Postgres: a given server, else a container, else the embedded server.

One database is migrated, then cloned for each test. Every test must end with all connections back
in the pool.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import QueuePool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

pytest.register_assert_rewrite("cenote.testing", "support")
# Haystack's telemetry would write into the home folder and send data.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from support import attacks  # noqa: E402
from support.commands import output_of, run  # noqa: E402
from support.drivers import ASYNCPG, engine_on, store_on  # noqa: E402
from support.library import Base  # noqa: E402

from cenote import PgVectorStore, SchemaConfig, schema  # noqa: E402
from cenote.embedded import EmbeddedPostgres  # noqa: E402
from cenote.postgres.dsn import create_engine  # noqa: E402

MEMORY_FOR_SERVERS = 8 * 2**30
"""Bytes for four servers, each with 1 GB of WAL (max_wal_size) and 1 GB of other data."""

attacked = attacks.attacked
pytest_terminal_summary = attacks.pytest_terminal_summary


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the Citus tests if no cluster is configured."""
    if "CENOTE_TEST_CITUS_URL" not in os.environ:
        citus_tests = [item for item in items if item.get_closest_marker("citus")]
        config.hook.pytest_deselected(items=citus_tests)
        items[:] = [item for item in items if not item.get_closest_marker("citus")]


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """Connection string of a server on which the tests may create databases."""
    if dsn := os.environ.get("CENOTE_TEST_DATABASE_URL"):
        yield dsn
    elif _docker_answers():
        from testcontainers.postgres import PostgresContainer

        image = os.environ.get("CENOTE_TEST_IMAGE", "pgvector/pgvector:pg18")
        with PostgresContainer(image, driver=None) as container:
            yield container.get_connection_url()
    else:
        version = int(os.environ.get("CENOTE_TEST_POSTGRES_VERSION", "18"))
        with _data_folder() as folder, EmbeddedPostgres(folder, postgres_version=version) as server:
            yield server.dsn


@contextmanager
def _data_folder() -> Iterator[Path | None]:
    """Yield a folder in memory, or None if memory is short.

    Creating a database on disk may take 20 times as long.
    """
    memory = Path("/dev/shm")  # noqa: S108
    if memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_FOR_SERVERS:
        with tempfile.TemporaryDirectory(dir=memory, prefix="cenote-") as folder:
            yield Path(folder) / "postgres"
    else:
        yield None


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """Folder with an sdist and a wheel built from it, which the processes of a run share."""
    folder = tmp_path_factory.getbasetemp().parent / f"dist-{testrun_uid}"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            output_of(run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)))
    return folder


@pytest.fixture(scope="session")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for PYTHONPATH that contains the installed wheel and nothing from the checkout."""
    site = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    output_of(run(sys.executable, *install, str(wheel), cwd=site))
    return site


def _docker_answers() -> bool:
    import docker
    from docker.errors import DockerException

    with warnings.catch_warnings():
        # docker leaves a socket open if no engine answers.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            docker.from_env(timeout=2).close()
        except DockerException:
            return False
        finally:
            gc.collect()
    return True


@pytest.fixture(scope="session")
def template(server_dsn: str) -> Iterator[str]:
    """Name of a migrated database with four dimensions and without connections, for cloning."""
    name = _new_name("template")

    async def migrate() -> None:
        engine = create_engine(dsn_of(server_dsn, name), pool_size=1)
        await schema.upgrade(engine, SchemaConfig(dimensions=4))
        await engine.dispose()

    _on_server(server_dsn, f'CREATE DATABASE "{name}"')
    asyncio.run(migrate())
    yield name
    _on_server(server_dsn, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def dsn(server_dsn: str, template: str) -> Iterator[str]:
    """Connection string of a new, migrated database."""
    yield from _database(server_dsn, template)


@pytest.fixture(scope="class")
def class_dsn(server_dsn: str, template: str) -> Iterator[str]:
    """Connection string of a migrated database shared by a class: cloning takes 0.4 s."""
    yield from _database(server_dsn, template)


@pytest.fixture(scope="module")
def module_dsn(server_dsn: str, template: str) -> Iterator[str]:
    """Connection string of a migrated database shared by a module."""
    yield from _database(server_dsn, template)


@pytest.fixture
def empty_dsn(server_dsn: str) -> Iterator[str]:
    """Connection string of a new, empty database."""
    yield from _database(server_dsn, "template0")


def _database(server_dsn: str, template: str) -> Iterator[str]:
    name = _new_name("test")
    _on_server(server_dsn, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield dsn_of(server_dsn, name)
    _on_server(server_dsn, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """Driver of the engines; see `support.drivers`."""
    return getattr(request, "param", ASYNCPG)


@pytest.fixture
async def engine(dsn: str, driver: str) -> AsyncIterator[AsyncEngine]:
    """An engine as an application would create it."""
    async for engine in _engine(dsn, driver):
        yield engine


@pytest.fixture(scope="class")
async def class_engine(class_dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the class's database."""
    async for engine in _engine(class_dsn):
        yield engine


@pytest.fixture
async def empty_engine(empty_dsn: str, driver: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    async for engine in _engine(empty_dsn, driver):
        yield engine


async def _engine(dsn: str, driver: str = ASYNCPG) -> AsyncIterator[AsyncEngine]:
    engine = engine_on(driver, dsn)
    yield engine
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0, "a connection was not returned to the pool"
    await engine.dispose()


@pytest.fixture
async def library(empty_engine: AsyncEngine) -> AsyncEngine:
    """An engine on an application's database, with all tables of `library.Base`."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    return empty_engine


@pytest.fixture
async def store(engine: AsyncEngine) -> PgVectorStore:
    """A store with four dimensions."""
    store: PgVectorStore = store_on(engine, 4)
    return store


def dsn_of(server_dsn: str, database: str) -> str:
    """Return the connection string of another database on the server."""
    return make_url(server_dsn).set(database=database).render_as_string(hide_password=False)


def _new_name(kind: str) -> str:
    return f"cenote_{kind}_{uuid.uuid4().hex[:12]}"


def _on_server(server_dsn: str, statement: str) -> None:
    async def run() -> None:
        engine = create_engine(server_dsn, pool_size=1)
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text(statement))
        await engine.dispose()

    asyncio.run(run())
