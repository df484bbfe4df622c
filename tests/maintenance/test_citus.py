"""Distributed tables: errors without a cluster, and operations on a cluster.

The tests marked ``citus`` run if ``CENOTE_TEST_CITUS_URL`` names a coordinator's database, and are
deselected otherwise. The database needs the extensions ``citus`` and ``vector``, a node in addition
to the coordinator (``SELECT citus_add_node(...)``), and a role that may create tables and schemas.
``tests/citus/up.sh`` starts a cluster in containers.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from support.commands import alembic, cenote, output_of
from support.database import execute, scalar, tables
from support.operations import OPERATIONS, QUERY, batch

from cenote import (
    ConfigurationError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
    schema,
)
from cenote.inspection.checks.table import shard_findings
from cenote.inspection.citus import Shard
from cenote.maintenance import distribute, repartition
from cenote.migrate import versions
from cenote.orm.factory import chunk_table
from cenote.testing import MakeStore, VectorStoreContract, embedded, found

DISTRIBUTED = SchemaConfig(dimensions=4, distribution="citus")

# -- without a cluster


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"distribution": "sharded"}, "distribution"),
        ({"shard_count": 8}, "shard_count"),
        ({"colocate_with": "documents"}, "colocate_with"),
        ({"distribution": "citus", "partitions": 16}, "partitions"),
        ({"distribution": "citus", "row_security": True}, "row_security"),
        ({"distribution": "citus", "shard_count": 0}, "shard_count"),
        ({"distribution": "citus", "colocate_with": "a b"}, "colocate_with"),
        ({"distribution": "citus", "colocate_with": 1}, "colocate_with"),
        ({"distribution": "citus", "colocate_with": "a", "shard_count": 8}, "shard_count"),
    ],
)
def test_invalid_settings(options: dict[str, Any], setting: str) -> None:
    """The error names the invalid setting."""
    with pytest.raises(ConfigurationError) as error:
        SchemaConfig(dimensions=4, **options)
    assert error.value.setting == setting


def test_distributed_tables_have_no_partitions() -> None:
    """A distributed table has shards instead of partitions."""
    assert DISTRIBUTED.new_partitions == 0
    assert replace(DISTRIBUTED, partitions=0, colocate_with="app.documents").new_partitions == 0


async def test_upgrade_without_the_extension(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """The API and the command raise an error before they create anything."""
    with pytest.raises(MigrationError, match="CREATE EXTENSION citus"):
        await schema.upgrade(empty_engine, replace(DISTRIBUTED, schema="app"))
    settings = ["-xdimensions=4", "-xdistribution=citus"]
    result = cenote("migrate", *settings, "upgrade", "head", CENOTE_DATABASE_URL=empty_dsn)
    assert result.returncode != 0
    assert "CREATE EXTENSION citus" in result.stdout + result.stderr
    assert await tables(empty_engine) == []
    assert not await scalar(empty_engine, "SELECT to_regnamespace('app')")


async def test_distribute_without_the_extension(engine: AsyncEngine, dsn: str) -> None:
    """The check reports that the table is not distributed; `distribute` changes nothing."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    (finding,) = await schema.check(engine, DISTRIBUTED)
    assert (finding.kind, finding.hint) == ("distribution", "run cenote distribute")
    with pytest.raises(MigrationError, match="CREATE EXTENSION citus"):
        await distribute(engine, DISTRIBUTED)
    with pytest.raises(ConfigurationError):
        await distribute(engine, SchemaConfig(dimensions=4))
    result = cenote("distribute", "--shards", "8", CENOTE_DATABASE_URL=dsn)
    assert (result.returncode, "CREATE EXTENSION citus" in result.stderr) == (2, True), result
    assert await found(store, [1, 0, 0, 0], "n") == ["a"]
    assert await store.check_schema() == []


async def test_downgrade_of_a_table_that_is_not_distributed(
    empty_engine: AsyncEngine, empty_dsn: str
) -> None:
    """The downgrade works although the settings say that the table is distributed."""
    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, partitions=0))
    settings = {"CENOTE_DIMENSIONS": "4", "CENOTE_DISTRIBUTION": "citus"}
    output_of(cenote("migrate", "downgrade", "base", CENOTE_DATABASE_URL=empty_dsn, **settings))
    assert await tables(empty_engine) == ["cenote_chunks_alembic_version"]


def test_sql_scripts() -> None:
    """The script of --sql distributes the table after everything else, and undistributes it."""
    arguments = ["-xdimensions=4", "-xdistribution=citus", "-xcolocate_with=app.documents"]
    script = output_of(alembic(*arguments, "upgrade", "head", "--sql"))
    assert "PARTITION" not in script
    call = "create_distributed_table(CAST('cenote_chunks' AS REGCLASS), 'namespace', 'hash', "
    assert script.index("USING hnsw") < script.index(call + "'app.documents', NULL)")
    script = output_of(alembic(*arguments, "downgrade", "head:base", "--sql"))
    assert "undistribute_table(CAST('cenote_chunks' AS REGCLASS))" in script


def test_findings_about_shards() -> None:
    """Findings report invalid indexes, unreachable shards and a shard of uneven size."""
    small = [Shard(number=n, size=2**20, invalid_indexes=None) for n in range(9)]
    assert [*shard_findings(small, DISTRIBUTED)] == []
    broken = Shard(number=9, size=2**20, invalid_indexes="ix_embedding_9")
    (finding,) = shard_findings([*small, broken], DISTRIBUTED)
    assert (finding.kind, finding.subject) == ("index_invalid", "shard 9")
    unreachable = Shard(number=9, size=0, invalid_indexes=None, reachable=False)
    (finding,) = shard_findings([*small, unreachable], DISTRIBUTED)
    assert finding.kind == "shard_unreachable"
    large = Shard(number=9, size=2**31, invalid_indexes=None)
    (finding,) = shard_findings([*small, large], DISTRIBUTED)
    assert (finding.kind, finding.actual) == (
        "shards_uneven",
        "10.0 times the size of the average shard",
    )
    even = [replace(shard, size=2**31) for shard in small]
    assert [*shard_findings(even, DISTRIBUTED)] == []


# -- on a cluster

TABLE = "cenote_distributed"


def citus_url() -> Any:
    """Return the URL of the coordinator's database."""
    url = make_url(os.environ["CENOTE_TEST_CITUS_URL"])
    return url.set(drivername="postgresql+asyncpg")


@pytest.fixture
async def cluster() -> AsyncIterator[AsyncEngine]:
    """Yield an engine on the coordinator."""
    engine = create_async_engine(citus_url())
    yield engine
    await engine.dispose()


@pytest.fixture
async def name(cluster: AsyncEngine) -> AsyncIterator[str]:
    """Yield a table's name, and drop that table and its dependent objects afterwards."""
    name = "distributed_" + uuid.uuid4().hex[:8]
    yield name
    await execute(
        cluster,
        f"DROP TABLE IF EXISTS {name} CASCADE",
        f"DROP TABLE IF EXISTS {versions.version_table(name)}",
    )


async def distributed_store(engine: AsyncEngine, name: str, **options: Any) -> PgVectorStore:
    """Create a distributed table and return a store on it."""
    config = replace(DISTRIBUTED, table_name=name, shard_count=8, **options)
    await schema.upgrade(engine, config)
    assert await schema.check(engine, config) == []
    return PgVectorStore(engine, 4, table_name=name, text_search=config.text_search)


@pytest.mark.citus
class TestDistributed(VectorStoreContract):
    """The unchanged contract suite on distributed tables."""

    @pytest.fixture
    def make_store(self, cluster: AsyncEngine) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            languages = options.get("text_search", "").replace(", ", "_")
            name = "_".join(filter(None, (TABLE, str(dimensions), languages)))
            config = SchemaConfig(
                dimensions=dimensions,
                table_name=name,
                distribution="citus",
                shard_count=8,
                text_search=options.get("text_search"),
            )
            await schema.upgrade(cluster, config)
            async with cluster.begin() as connection:
                await connection.execute(delete(chunk_table(config)))
            return PgVectorStore(cluster, dimensions, table_name=name, **options)

        return make


@pytest.mark.citus
@pytest.mark.parametrize("operation", sorted(OPERATIONS.keys() - {"list_namespaces"}))
async def test_operations_use_one_node(cluster: AsyncEngine, name: str, operation: str) -> None:
    """Operations work where Citus rejects every statement that involves several shards."""
    await (await distributed_store(cluster, name, text_search="simple")).upsert(batch(1, 3), "n")
    strict = create_async_engine(
        citus_url(),
        connect_args={"server_settings": {"citus.multi_task_query_log_level": "error"}},
    )
    store = PgVectorStore(strict, 4, table_name=name, text_search="simple")
    with pytest.raises(VectorStoreError):
        await store.list_namespaces()  # Citus rejects it, because it reads all shards
    await OPERATIONS[operation](store)
    await strict.dispose()


@pytest.mark.citus
async def test_results_are_complete(cluster: AsyncEngine, name: str) -> None:
    """Each tenant gets all results, because the settings of a search reach the nodes."""
    store = await distributed_store(cluster, name)
    for number in range(20):
        size = 400 if number == 0 else 30
        items = [embedded(f"{n}", [1, n % 7, n % 11, number]) for n in range(size)]
        await store.upsert(items, f"t{number}")
    for number in range(20):
        assert len(await store.search(QUERY, f"t{number}", limit=30)) == 30


@pytest.mark.citus
async def test_distribute_a_partitioned_table(cluster: AsyncEngine, name: str) -> None:
    """`distribute` keeps the rows of all partitions; a second call changes nothing."""
    config = SchemaConfig(dimensions=4, table_name=name)
    await schema.upgrade(cluster, config)
    store = PgVectorStore(cluster, 4, table_name=name)
    for tenant in ("acme", "globex"):
        await store.upsert(batch(1, 50), tenant)
    target = replace(config, distribution="citus", shard_count=8)
    assert await distribute(cluster, target) is True
    assert await distribute(cluster, target) is False
    assert await schema.check(cluster, target) == []
    assert await store.list_namespaces() == {"acme": 50, "globex": 50}
    assert len(await store.search(QUERY, "acme", limit=50)) == 50
    with pytest.raises(MigrationError, match="distributed by Citus"):
        await repartition(cluster, replace(config, partitions=4))


@pytest.mark.citus
async def test_rebuilding_the_indexes(cluster: AsyncEngine, name: str) -> None:
    """`reindex` and a bulk load with ann_index='rebuild' build the indexes on the nodes."""
    from cenote.maintenance import reindex

    store = await distributed_store(cluster, name)
    await store.bulk_load(batch(1, 300), "n", ann_index="rebuild")
    config = replace(DISTRIBUTED, table_name=name, hnsw_m=8, hnsw_ef_construction=32)
    await reindex(cluster, config)
    assert await schema.check(cluster, config) == []
    assert len(await store.search(QUERY, "n", limit=100)) == 100


@pytest.mark.citus
async def test_colocate_with_an_application_table(cluster: AsyncEngine, name: str) -> None:
    """One transaction writes both tables, and one query joins them, on the same node."""
    documents = name + "_documents"
    await execute(
        cluster,
        f'CREATE TABLE {documents} (tenant text COLLATE "C", id text, PRIMARY KEY (tenant, id))',
        f"SELECT create_distributed_table('{documents}', 'tenant', shard_count => 8)",
    )
    try:
        config = replace(DISTRIBUTED, table_name=name, colocate_with=documents)
        await schema.upgrade(cluster, config)
        store = PgVectorStore(cluster, 4, table_name=name)
        async with AsyncSession(cluster) as session, session.begin():
            connection = await session.connection()
            await connection.exec_driver_sql(f"INSERT INTO {documents} VALUES ('acme', 'doc')")
            await store.upsert(batch(1, 3), "acme", session=session)
        joined = (
            f"SELECT count(*) FROM {documents} d JOIN {name} c"
            " ON c.namespace = d.tenant AND c.document_id = d.id WHERE d.tenant = 'acme'"
        )
        assert await scalar(cluster, joined) == 3
    finally:
        await execute(cluster, f"DROP TABLE IF EXISTS {name}, {documents} CASCADE")
