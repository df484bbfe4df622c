"""Distributed tables: errors without a cluster, and operations on a cluster.

The tests marked ``citus`` run if ``CENOTE_TEST_CITUS_URL`` names a coordinator's database, and are
deselected otherwise. The database needs the extensions ``citus`` and ``vector``, a node in addition
to the coordinator (``SELECT citus_add_node(...)``), and a role that may create tables and schemas.
``tests/citus/up.sh`` starts a cluster in containers.
"""

from __future__ import annotations

import enum
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Date,
    DateTime,
    Double,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Uuid,
    and_,
    column,
    delete,
    event,
    exists,
    false,
    literal,
    make_url,
    null,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.commands import alembic, cenote, output_of
from support.database import execute, scalar, tables
from support.operations import OPERATIONS, QUERY, batch

from cenote import (
    Chunk,
    ChunkMixin,
    ConfigurationError,
    EmbeddedChunk,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
    schema,
)
from cenote.filters import Filter, field
from cenote.inspection.checks.table import shard_findings
from cenote.inspection.citus import Shard
from cenote.maintenance import distribute, reindex, repartition
from cenote.maintenance.reindexing import drop_ann_index_of_empty_table
from cenote.migrate import versions
from cenote.models import SyncResult
from cenote.orm.factory import chunk_table
from cenote.postgres.ann_index import marked_comment
from cenote.postgres.dsn import CITUS_SETTINGS, create_engine
from cenote.postgres.vector import VectorType
from cenote.stores.pgvector import executor
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import (
    MakeStore,
    VectorStoreContract,
    embedded,
    expected_score,
    found,
)

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
    """The script of --sql distributes the table after everything else, and undistributes it.

    Citus loses the table's comment then, so the script of the downgrade restores it.
    """
    arguments = ["-xdimensions=4", "-xdistribution=citus", "-xcolocate_with=app.documents"]
    arguments.append("-xmetric=l2")
    script = output_of(alembic(*arguments, "upgrade", "head", "--sql"))
    assert "PARTITION" not in script
    call = "create_distributed_table(CAST('cenote_chunks' AS REGCLASS), 'namespace', 'hash', "
    assert script.index("USING hnsw") < script.index(call + "'app.documents', NULL)")
    script = output_of(alembic(*arguments, "downgrade", "head:base", "--sql"))
    call = "undistribute_table(CAST('cenote_chunks' AS REGCLASS))"
    assert call in script
    comment = "COMMENT ON TABLE cenote_chunks IS 'cenote: metric=l2'"
    assert script.index(call) < script.index(comment)


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
    assert "isolate_tenant_to_new_shard('cenote_chunks', '<namespace>', 'CASCADE')" in finding.hint
    even = [replace(shard, size=2**31) for shard in small]
    assert [*shard_findings(even, DISTRIBUTED)] == []


def test_findings_about_indexes_of_shards() -> None:
    """Findings report the shards that an interrupted rebuild left with other indexes."""
    index = "ix_cenote_chunks_embedding"
    whole = [
        Shard(number=n, size=1, invalid_indexes=None, indexes=frozenset({index, "pk"}))
        for n in range(4)
    ]
    assert [*shard_findings(whole, DISTRIBUTED)] == []
    left = replace(whole[3], indexes=frozenset({index, index + "_new"}))
    (finding,) = shard_findings([*whole[:3], left], DISTRIBUTED)
    assert (finding.kind, finding.subject) == ("index_left_over", f"index {index}_new of shard 3")
    assert finding.hint == "run cenote reindex --m 16 --ef-construction 64"
    lacking = [replace(shard, indexes=frozenset({"pk"})) for shard in whole]
    (finding,) = shard_findings([*whole[:2], *lacking[2:]], DISTRIBUTED)
    assert (finding.kind, finding.subject) == ("index_missing", f"index {index} of shards 2, 3")
    # A finding about the coordinator's index reports an index that all shards lack.
    assert [*shard_findings(lacking, DISTRIBUTED)] == []
    silent = Shard(number=4, size=0, invalid_indexes=None, reachable=False)
    kinds = [finding.kind for finding in shard_findings([*whole, silent], DISTRIBUTED)]
    assert kinds == ["shard_unreachable"]


@pytest.mark.parametrize("distributed", [False, True])
def test_settings_of_engines(distributed: bool) -> None:
    """Only engines for a distributed table have Citus' setting, which poolers do not know."""
    engine = create_engine("postgresql://host/database", distributed=distributed)
    settings: list[Any] = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, arguments: dict[str, Any]) -> None:
        settings.append(arguments["server_settings"])
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        engine.sync_engine.raw_connection()
    assert settings == [{"jit": "off", **(CITUS_SETTINGS if distributed else {})}]


# -- on a cluster

TABLE = "cenote_distributed"


def citus_engine(**settings: str) -> AsyncEngine:
    """Return an engine on the coordinator's database, with settings for its connections."""
    url = make_url(os.environ["CENOTE_TEST_CITUS_URL"]).set(drivername="postgresql+asyncpg")
    server_settings = {**CITUS_SETTINGS, **settings}
    return create_async_engine(url, connect_args={"server_settings": server_settings})


@pytest.fixture
async def cluster() -> AsyncIterator[AsyncEngine]:
    """Yield an engine on the coordinator."""
    engine = citus_engine()
    yield engine
    await engine.dispose()


@pytest.fixture
async def one_node() -> AsyncIterator[AsyncEngine]:
    """Yield an engine on whose connections Citus rejects statements that read several shards."""
    engine = citus_engine(**{"citus.multi_task_query_log_level": "error"})
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
async def test_operations_use_one_node(
    cluster: AsyncEngine, one_node: AsyncEngine, name: str, operation: str
) -> None:
    """Operations work where Citus rejects every statement that involves several shards."""
    filled = await distributed_store(cluster, name, text_search="simple")
    for namespace in ("n", "m"):
        await filled.upsert(batch(1, 3), namespace)
    store = PgVectorStore(one_node, 4, table_name=name, text_search="simple")
    with pytest.raises(VectorStoreError):
        await store.list_namespaces()  # Citus rejects it, because it reads all shards
    await OPERATIONS[operation](store)


@pytest.mark.citus
@pytest.mark.parametrize("ann_index", ["auto", "rebuild", "keep"])
async def test_bulk_loads_use_one_node(
    cluster: AsyncEngine,
    one_node: AsyncEngine,
    name: str,
    ann_index: Literal["auto", "rebuild", "keep"],
) -> None:
    """Bulk loads work there, too, into an empty table and into one with rows."""
    config = replace(DISTRIBUTED, table_name=name)
    await distributed_store(cluster, name)
    store = PgVectorStore(one_node, 4, table_name=name)
    for namespace in ("n", "m"):
        assert await store.bulk_load(batch(1, 50), namespace, ann_index=ann_index) == 50
        assert await schema.check(one_node, config) == []
    async with store.deferred_ann_index():
        assert await store.bulk_load(batch(1, 50), "l") == 50
    assert await schema.check(one_node, config) == []
    assert await store.count("n") == await store.count("m") == await store.count("l") == 50


@pytest.mark.citus
async def test_bulk_load_into_an_empty_table(cluster: AsyncEngine, name: str) -> None:
    """The load drops the index of an empty table only, and builds it afterwards."""
    store = await distributed_store(cluster, name)
    config = replace(DISTRIBUTED, table_name=name)
    assert await drop_ann_index_of_empty_table(cluster, config) is True
    kinds = [finding.kind for finding in await schema.check(cluster, config)]
    assert kinds == ["index_missing"]
    await store.bulk_load(batch(1, 5), "n")  # builds the missing index
    assert await schema.check(cluster, config) == []
    assert await drop_ann_index_of_empty_table(cluster, config) is False
    assert await schema.check(cluster, config) == []


NEVER: dict[str, Callable[[Any], ColumnElement[bool]]] = {
    "false": lambda model: false(),
    "constants": lambda model: literal(1) == literal(2),
    "no values": lambda model: model.id.in_([]),
    "null": lambda model: null() == literal(1),
    "another namespace": lambda model: model.namespace == "other",
    "two namespaces": lambda model: and_(model.namespace == "n", model.namespace == "m"),
}
"""SQL conditions that are false for every chunk of the namespace ``n``."""

NEVER_FILTERS: dict[str, Filter | dict[str, Any]] = {
    "no values": {"acl": {"$in": []}},
    "nested": {"$and": [{"a": 1}, {"acl": {"$in": []}}]},
    "negated": {"$not": {"acl": {"$nin": []}}},
    "a field": field("id").in_([]),
}
"""Filters that match no chunk."""


async def rows_of(engine: AsyncEngine, statement: Any) -> list[Any]:
    async with AsyncSession(engine) as session:
        return [*(await session.execute(statement)).all()]


@pytest.fixture
async def searched(cluster: AsyncEngine, name: str) -> PgVectorStore:
    """A distributed store with a namespace that a search compares exactly, and a large one."""
    store = await distributed_store(cluster, name, text_search="simple")
    await store.upsert(batch(1, 5), "m")
    await store.upsert(batch(1, 1200), "n")
    return store


@pytest.mark.citus
async def test_conditions_that_are_never_true(
    cluster: AsyncEngine, searched: PgVectorStore
) -> None:
    """Searches return nothing, although Citus then reads no shard."""
    for label, never in NEVER.items():
        where = never(searched.model)
        for options in ({}, {"exact": True}, {"per_document": 1}, {"filter": {"a": 1}}):
            assert await searched.search(QUERY, "n", where=where, **options) == [], label
        assert await searched.search_text("by", "n", where=where) == [], label
        assert await searched.search_hybrid("by", QUERY, "n", where=where) == [], label
        for exact in (False, True):
            statement = searched.search_statement(QUERY, "n", where=where, exact=exact)
            assert await rows_of(cluster, statement) == [], label
    assert len(await searched.search(QUERY, "n")) == 10


@pytest.mark.citus
async def test_filters_that_never_match(cluster: AsyncEngine, searched: PgVectorStore) -> None:
    """Every operation with a filter that matches nothing returns nothing."""
    for label, never in NEVER_FILTERS.items():
        assert await searched.search(QUERY, "n", filter=never) == [], label
        assert await searched.search_many([QUERY, QUERY], "n", filter=never) == [[], []], label
        assert await searched.search_diverse(QUERY, "n", filter=never) == [], label
        assert await searched.search_namespaces(QUERY, ["n", "m"], filter=never) == [], label
        assert await searched.search_text("by", "n", filter=never) == [], label
        assert await searched.search_hybrid("by", QUERY, "n", filter=never) == [], label
        assert await searched.list_chunks("n", filter=never) == [], label
        assert await searched.count("n", never) == 0, label
        assert await searched.delete_matching(never, "n") == 0, label
        for exact in (False, True):
            statement = searched.search_statement(QUERY, "n", filter=never, exact=exact)
            assert await rows_of(cluster, statement) == [], label
    assert await searched.count("n") == 1200


@pytest.mark.citus
async def test_filters_that_a_constraint_excludes(
    cluster: AsyncEngine, searched: PgVectorStore
) -> None:
    """Postgres 18 knows from NOT NULL that this filter is never true; Citus reads no shard."""
    never = field("created_at").is_null()
    for namespace in ("n", "m"):
        for exact in (False, True):
            assert await searched.search(QUERY, namespace, filter=never, exact=exact) == []
    await reindex(cluster, replace(searched.config, index="none"))  # every search is exact
    store = PgVectorStore(cluster, 4, table_name=searched.config.table_name)
    assert await store.search(QUERY, "n", filter=never) == []
    assert len(await store.search(QUERY, "n")) == 10


@pytest.mark.citus
async def test_sync_document_counts_written_chunks(cluster: AsyncEngine, name: str) -> None:
    """A chunk that is stored already counts as unchanged, as on one machine."""
    store = await distributed_store(cluster, name)
    chunks = [embedded(str(n), document_id="doc") for n in range(3)]
    first = SyncResult(written=3, removed=0, unchanged=0)
    assert await store.sync_document("doc", chunks, "n") == first
    second = SyncResult(written=0, removed=0, unchanged=3)
    assert await store.sync_document("doc", chunks, "n") == second
    changed = [embedded("0", document_id="doc", content="new"), chunks[1]]
    third = SyncResult(written=1, removed=1, unchanged=1)
    assert await store.sync_document("doc", changed, "n") == third
    kept: list[Chunk | EmbeddedChunk] = [changed[0].chunk, embedded("4", document_id="doc")]
    fourth = SyncResult(written=1, removed=1, unchanged=1)
    assert await store.sync_document("doc", kept, "n") == fourth


class OnUpdate(DeclarativeBase):
    """Base of a model whose columns have an ``onupdate``."""


class Color(enum.Enum):
    RED = "r"


MOMENT = datetime(2026, 11, 28, 12, 30, 15, 250_000, tzinfo=UTC)
ON_UPDATE: dict[str, tuple[Any, Any]] = {
    "a_text": (Text(), "it's 100 % \\ :new"),
    "a_varchar": (String(40), "x"),
    "an_integer": (Integer(), -7),
    "a_float": (Double(), 1.5),
    "a_numeric": (Numeric(12, 3), Decimal("12.345")),
    "a_boolean": (Boolean(), True),
    "a_moment": (DateTime(timezone=True), MOMENT),
    "a_date": (Date(), MOMENT.date()),
    "a_uuid": (Uuid(), uuid.UUID(int=7)),
    "some_bytes": (LargeBinary(), b"\x00'\xff"),
    "an_interval": (Interval(), timedelta(days=2, microseconds=5)),
    "a_vector": (VectorType(3), [1.0, 2.5, 0.0]),
    "some_json": (JSONB(), {"a": ["it's", None, 1.5]}),
    "a_color": (Enum(Color, name="on_update_color"), Color.RED),
    "nothing": (Text(), None),
}
"""Types of columns with a function as ``onupdate``, and the values that it returns."""


class Versioned(ChunkMixin, OnUpdate, dimensions=4, partitions=0):
    """A model whose other columns change with every update of a row."""

    __tablename__ = "distributed_on_update"

    constant: Mapped[str | None] = mapped_column(onupdate="constant")
    expression: Mapped[str | None] = mapped_column(onupdate=literal("a") + literal("b"))
    given: Mapped[str | None] = mapped_column(onupdate=lambda: "not given")


for column_name, (column_type, column_value) in ON_UPDATE.items():
    setattr(
        Versioned,
        column_name,
        mapped_column(
            column_type, nullable=True, onupdate=partial(lambda value: value, column_value)
        ),
    )


@pytest.fixture
async def versioned(cluster: AsyncEngine) -> AsyncIterator[PgVectorStore[Versioned]]:
    """Yield a store on a distributed table whose columns have an ``onupdate``."""
    table = Versioned.__tablename__
    async with cluster.begin() as connection:
        await connection.run_sync(OnUpdate.metadata.create_all)
    await execute(
        cluster, f"SELECT create_distributed_table('{table}', 'namespace', shard_count => 4)"
    )
    yield PgVectorStore(cluster, model=Versioned)
    await execute(cluster, f"DROP TABLE {table}", "DROP TYPE on_update_color")


@pytest.mark.citus
async def test_values_of_onupdate(
    cluster: AsyncEngine, versioned: PgVectorStore[Versioned]
) -> None:
    """Functions, constants and expressions change only the rows that an upsert updates."""
    columns = {"given": "first"}
    await versioned.upsert([embedded(name, columns=columns) for name in ("a", "b", "c")], "n")
    await versioned.upsert(
        [embedded("a", content="new", columns={"given": "second"}), embedded("b", columns=columns)],
        "n",
    )
    assert await versioned.update_metadata({"c": {"a": 1}}, "n") == 1
    async with AsyncSession(cluster) as session:
        query: Any = select(Versioned).where(Versioned.namespace == "n").order_by(Versioned.id)
        updated, unchanged, annotated = await session.scalars(query)
    expected = {name: value for name, (_, value) in ON_UPDATE.items()}
    expected |= {"constant": "constant", "expression": "ab"}
    for row in (updated, annotated):
        row.a_vector = row.a_vector.tolist()
        assert {name: getattr(row, name) for name in expected} == expected
    assert {getattr(unchanged, name) for name in expected} == {None}
    assert (updated.given, unchanged.given, annotated.given) == ("second", "first", "not given")


@pytest.mark.citus
async def test_sync_document_with_onupdate(versioned: PgVectorStore[Versioned]) -> None:
    """`sync_document` accepts a model with ``onupdate``, and counts its rows."""
    chunks = [embedded("a", document_id="d"), embedded("b", document_id="d")]
    await versioned.sync_document("d", chunks, "n")
    chunks[0] = embedded("a", document_id="d", content="new")
    result = await versioned.sync_document("d", chunks, "n")
    assert result == SyncResult(written=1, removed=0, unchanged=1)


@pytest.mark.citus
async def test_settings_of_the_connections(cluster: AsyncEngine, name: str) -> None:
    """`connect` sets what makes the first operation fast, for a distributed table only."""
    dsn = os.environ["CENOTE_TEST_CITUS_URL"]
    query = "SELECT current_setting('citus.override_table_visibility')"
    await distributed_store(cluster, name)
    async with await PgVectorStore.connect(dsn, 4, table_name=name) as store:
        assert await scalar(store.engine, query) == "off"
        await store.upsert(batch(1, 3), "n")
        assert await store.count("n") == 3
        other = store.with_own_pool()
        assert await scalar(other.engine, query) == "off"
        await other.engine.dispose()
    plain = name + "_plain"
    for options in ({"table_name": plain}, {"table_name": name, "min_size": 0}):
        async with await PgVectorStore.connect(dsn, 4, **options) as store:
            assert await scalar(store.engine, query) == "on"


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
    store = await distributed_store(cluster, name)
    await store.bulk_load(batch(1, 300), "n", ann_index="rebuild")
    config = replace(DISTRIBUTED, table_name=name, hnsw_m=8, hnsw_ef_construction=32)
    await reindex(cluster, config)
    assert await schema.check(cluster, config) == []
    assert len(await store.search(QUERY, "n", limit=100)) == 100


INTERRUPTED: dict[str, list[str]] = {
    "a node lacks the new index": [
        "CREATE INDEX CONCURRENTLY {index}_new ON {table} USING hnsw (embedding vector_cosine_ops)",
        "SELECT run_command_on_shards('{table}', 'DROP INDEX IF EXISTS {index}_new_{shard}')",
    ],
    "only the coordinator has the new index": [
        "SET citus.enable_ddl_propagation TO off",
        "CREATE INDEX {index}_new ON {table} USING hnsw (embedding vector_cosine_ops)",
    ],
    "only the nodes have the new index": [
        "CREATE INDEX CONCURRENTLY {index}_new ON {table} USING hnsw (embedding vector_cosine_ops)",
        "SET citus.enable_ddl_propagation TO off",
        "DROP INDEX {index}_new",
    ],
    "only the nodes have the old index": [
        "CREATE INDEX {index}_old ON {table} USING hnsw (embedding vector_cosine_ops)",
        "SET citus.enable_ddl_propagation TO off",
        "DROP INDEX {index}_old",
    ],
    "a node lacks the index": [
        "SELECT run_command_on_shards('{table}', 'DROP INDEX IF EXISTS {index}_{shard}')",
    ],
    "only the nodes have the index": [
        "SET citus.enable_ddl_propagation TO off",
        "DROP INDEX {index}",
    ],
}
"""States in which an interrupted rebuild may leave a table."""


@pytest.mark.citus
@pytest.mark.parametrize("state", INTERRUPTED)
@pytest.mark.parametrize("repair", ["reindex", "bulk_load"])
async def test_interrupted_rebuilds(
    cluster: AsyncEngine, name: str, state: str, repair: str
) -> None:
    """The check reports each state, and what its hint says mends it at once."""
    store = await distributed_store(cluster, name)
    await store.upsert(batch(1, 100), "n")
    config = replace(DISTRIBUTED, table_name=name)
    shard = await scalar(
        cluster, f"SELECT min(shardid) FROM pg_dist_shard WHERE logicalrelid = '{name}'::regclass"
    )
    names = {"index": f"ix_{name}_embedding", "table": name, "shard": shard}
    async with cluster.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in INTERRUPTED[state]:
            await connection.exec_driver_sql(statement.format(**names))
        await connection.invalidate()  # it has other settings now
    found_kinds = {finding.kind for finding in await schema.check(cluster, config)}
    assert found_kinds & {"index_left_over", "index_missing"}, found_kinds
    if repair == "reindex":
        await reindex(cluster, config)
    else:
        await store.bulk_load(batch(1, 10), "m", ann_index="rebuild")
    assert await schema.check(cluster, config) == []
    assert len(await store.search(QUERY, "n", limit=50)) == 50


@pytest.mark.citus
async def test_isolated_namespaces(cluster: AsyncEngine, name: str) -> None:
    """The check accepts the shards that the hint about uneven shards splits off."""
    store = await distributed_store(cluster, name)
    for namespace in ("a", "b"):
        await store.upsert(batch(1, 30), namespace)
    config = replace(DISTRIBUTED, table_name=name, shard_count=8)
    for namespace in ("a", "b"):
        isolate = f"SELECT isolate_tenant_to_new_shard('{name}', '{namespace}', 'CASCADE')"
        await execute(cluster, isolate)
    count = f"SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = '{name}'::regclass"
    assert await scalar(cluster, count) == 12
    assert await schema.check(cluster, config) == []
    (finding,) = await schema.check(cluster, replace(config, shard_count=12))
    assert (finding.kind, finding.actual) == ("distribution", "it has 8 shards")
    assert await store.list_namespaces() == {"a": 30, "b": 30}
    assert len(await store.search(QUERY, "a", limit=30)) == 30


@pytest.mark.citus
async def test_downgrade_to_a_plain_table(cluster: AsyncEngine, name: str) -> None:
    """The downgrade brings the rows back into a plain table, without partitions."""
    store = await distributed_store(cluster, name)
    await store.upsert(batch(1, 20), "n")
    dsn = cluster.url.render_as_string(hide_password=False)
    settings = ["-xdimensions=4", "-xdistribution=citus", f"-xtable_name={name}"]
    arguments = ["migrate", *settings, "downgrade", "cenote_0003"]
    output_of(cenote(*arguments, CENOTE_DATABASE_URL=dsn))
    assert await scalar(cluster, f"SELECT count(*) FROM {name}") == 20
    kind = f"SELECT relkind::text FROM pg_class WHERE oid = '{name}'::regclass"
    assert await scalar(cluster, kind) == "r"
    distributed = f"SELECT count(*) FROM pg_dist_partition WHERE logicalrelid = '{name}'::regclass"
    assert await scalar(cluster, distributed) == 0
    assert len(await store.search(QUERY, "n", limit=20)) == 20


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
        rows: Any = table(documents, column("tenant"), column("id"))
        model: Any = store.model
        in_documents = exists().where(rows.c.id == model.document_id)
        by_name = in_documents.where(rows.c.tenant == "acme")
        assert len(await store.search(QUERY, "acme", where=by_name)) == 3
        by_column = in_documents.where(rows.c.tenant == model.namespace)
        with pytest.raises(VectorStoreError):  # as docs/citus.md says
            await store.search(QUERY, "acme", where=by_column)
    finally:
        await execute(cluster, f"DROP TABLE IF EXISTS {name}, {documents} CASCADE")


# -- metrics and kinds of ANN index on a cluster

DIMENSIONS = 64
ROWS = EXACT_UP_TO + 500
WORD = "gardens"

_random = np.random.default_rng(7)
_centres = _random.standard_normal((20, DIMENSIONS))
VECTORS = (
    _centres[_random.integers(0, 20, ROWS)] + 0.7 * _random.standard_normal((ROWS, DIMENSIONS))
).astype(np.float32)
QUERIES = (VECTORS[:5] + 0.3 * _random.standard_normal((5, DIMENSIONS))).astype(np.float32)

KINDS: list[dict[str, Any]] = [
    {"metric": "cosine", "index": "vector"},
    {"metric": "cosine", "index": "halfvec"},
    {"metric": "cosine", "index": "bit"},
    {"metric": "cosine", "index": "bit", "column_type": "halfvec"},
    {"metric": "cosine", "index": "none"},
    {"metric": "inner_product", "index": "vector"},
    {"metric": "inner_product", "index": "halfvec", "column_type": "halfvec"},
    {"metric": "inner_product", "index": "none"},
    {"metric": "l2", "index": "vector"},
    {"metric": "l2", "index": "halfvec"},
    {"metric": "l2", "index": "none"},
]
"""Every metric with every kind of index that it works with."""

PREFER_THE_INDEX = (
    "SET LOCAL citus.propagate_set_commands = 'local'",
    "SET LOCAL enable_sort = off",
)
"""Settings of a transaction, on the node too: of so few rows, Postgres may prefer to sort all."""


def rows_of_kinds() -> list[EmbeddedChunk]:
    """Return chunks that a search does not compare exactly without trying the ANN index."""
    return [
        embedded(
            f"{n:05}",
            vector,
            document_id=f"d{n // 3}",
            content=WORD if n % 2 else "some text",
            metadata={"most": n % 10 > 0, "few": n % 100 == 0},
        )
        for n, vector in enumerate(VECTORS)
    ]


async def table_comment(engine: AsyncEngine, name: str) -> str:
    query = f"SELECT coalesce(obj_description('{name}'::regclass, 'pg_class'), '')"
    return str(await scalar(engine, query))


async def of_ann_indexes(engine: AsyncEngine, name: str, expression: str) -> list[str]:
    """Return the value of an aggregate over the ANN indexes of each shard."""
    query = (
        f"SELECT {expression} FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' AND i.indrelid = '%s'::regclass"
    )
    answers = text("SELECT success, result FROM run_command_on_shards(:name, :query)")
    async with engine.connect() as connection:
        rows = (await connection.execute(answers, {"name": name, "query": query})).all()
    assert all(row.success for row in rows)
    return [row.result for row in rows]


async def index_scans(engine: AsyncEngine, name: str) -> int:
    """Return how often the ANN indexes of a table's shards were scanned."""
    scans = "coalesce(sum(pg_stat_get_numscans(i.indexrelid)), 0)"
    return sum(map(int, await of_ann_indexes(engine, name, scans)))


@pytest.mark.citus
@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(settings.values()))
async def test_kinds_of_index(
    cluster: AsyncEngine, one_node: AsyncEngine, name: str, settings: dict[str, Any]
) -> None:
    """Searches scan the index of one shard, and return all results with exact scores."""
    config = SchemaConfig(
        dimensions=DIMENSIONS,
        table_name=name,
        distribution="citus",
        shard_count=2,
        text_search="simple",
        **settings,
    )
    await schema.upgrade(cluster, config)
    kind, metric = config.index_kind, config.metric
    options: dict[str, Any] = {"metric": metric, "column_type": config.column_type}
    store = PgVectorStore(  # it reads the kind from the coordinator's catalogue
        one_node, DIMENSIONS, table_name=name, text_search="simple", **options
    )
    assert await store.bulk_load(rows_of_kinds(), "n") == ROWS
    for expected in (config, replace(config, index=None)):
        assert await schema.check(cluster, expected) == []
    assert await table_comment(cluster, name) == (marked_comment(None, metric, kind) or "")
    await execute(cluster, f"ANALYZE {name}")

    searches: dict[str, Callable[[Any, AsyncConnection], Any]] = {
        "search": lambda q, c: store.search(q, "n", session=c),
        "filter": lambda q, c: store.search(q, "n", 10, {"most": True}, session=c),
        "where": lambda q, c: store.search(q, "n", where=store.model.position == 0, session=c),
        "per_document": lambda q, c: store.search(q, "n", per_document=1, session=c),
        "many": lambda q, c: store.search_many([q], "n", session=c),
        "hybrid": lambda q, c: store.search_hybrid(WORD, q, "n", session=c),
        "statement": lambda q, c: c.execute(store.search_statement(q, "n")),
    }
    for label, search in searches.items():
        before = await index_scans(cluster, name)
        async with one_node.connect() as connection:
            for statement in PREFER_THE_INDEX:
                await connection.exec_driver_sql(statement)
            found = await search(QUERIES[0], connection)
            # The node's session sends its counters with the next statement, not after a second.
            flush = f"SELECT pg_stat_force_next_flush() FROM {name} WHERE namespace = 'n' LIMIT 1"
            await connection.exec_driver_sql(flush)
            await connection.commit()
        assert len([*found]) == (1 if label == "many" else 10), label
        scans = await index_scans(cluster, name) - before
        assert (scans > 0) is (kind != "none"), label

    accuracy = 2e-3 if config.column_type == "halfvec" else 1e-5
    hits = 0
    for query in QUERIES:
        exact = await store.search(query, "n", exact=True)
        results = await store.search(query, "n")
        hits += len({r.chunk.id for r in results} & {r.chunk.id for r in exact})
        for result in results:
            score = expected_score(metric, query, VECTORS[int(result.chunk.id)])
            assert result.score == pytest.approx(score, rel=accuracy, abs=1e-6)
        least = exact[4].score
        above = await store.search(query, "n", min_score=least)
        assert len(above) in (4, 5)
        assert all(result.score >= least for result in above)
    assert hits >= 0.9 * 10 * len(QUERIES)
    few = await store.search(QUERIES[0], "n", 100, {"few": True})
    assert few == await store.search(QUERIES[0], "n", 100, {"few": True}, exact=True)
    assert len(few) == ROWS // 100
    assert len(await store.search(QUERIES[0], "n", ROWS)) == ROWS
    (many,) = await store.search_many([QUERIES[0]], "n", ROWS)
    assert len(many) == ROWS

    if kind == "none":
        with pytest.raises(VectorStoreError, match="index='none', every search is exact"):
            await store.measure_recall(["n"])
    else:
        report = await store.measure_recall(["n"], queries=QUERIES)
        assert report.kind == kind
        assert max(point.recall for point in report.worst()) >= 0.98
        reading_all_shards = PgVectorStore(cluster, DIMENSIONS, table_name=name, **options)
        await reading_all_shards.apply_recall(report, target=0.9)


@pytest.mark.citus
async def test_reindex_as_another_kind(
    cluster: AsyncEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards get the index of the new kind, and a store that is in use notices."""
    monkeypatch.setattr(executor, "_CHECK_SECONDS", 0.0)
    config = SchemaConfig(
        dimensions=DIMENSIONS, table_name=name, distribution="citus", shard_count=2
    )
    await schema.upgrade(cluster, config)
    store = PgVectorStore(cluster, DIMENSIONS, table_name=name)
    await store.upsert(rows_of_kinds()[:1000], "n")
    definitions = {
        "bit": f"((binary_quantize(embedding))::bit({DIMENSIONS})) bit_hamming_ops",
        "halfvec": f"((embedding)::halfvec({DIMENSIONS})) halfvec_cosine_ops",
        "none": "",
    }
    kinds: list[Any] = ["bit", "none", "halfvec"]
    dsn = cluster.url.render_as_string(hide_password=False)
    for turn, kind in enumerate(kinds):
        if turn == 0:
            settings = {"CENOTE_TABLE_NAME": name, "CENOTE_DATABASE_URL": dsn}
            output = output_of(cenote("reindex", "--index", kind, **settings))
            assert "index of kind bit rebuilt" in output
        else:
            await reindex(cluster, replace(config, index=kind))
        assert len(await store.search(QUERIES[0], "n", 30)) == 30
        assert store._searches.vectors.kind == kind
        assert await schema.check(cluster, config) == []
        assert await table_comment(cluster, name) == (
            "cenote: index=none" if kind == "none" else ""
        )
        built = "coalesce(string_agg(pg_get_indexdef(i.indexrelid), ';'), '')"
        for definition in await of_ann_indexes(cluster, name, built):
            assert definitions[kind] in definition
            assert definition.count("hnsw") == (kind != "none")
        await store.bulk_load(rows_of_kinds()[:20], "m", ann_index="rebuild")  # keeps the kind
        assert await schema.check(cluster, replace(config, index=kind)) == []


@pytest.mark.citus
@pytest.mark.parametrize(
    "settings",
    [{"metric": "l2", "index": "none"}, {"metric": "cosine", "index": "bit"}],
    ids=lambda settings: "-".join(settings.values()),
)
async def test_distribute_and_downgrade_keep_metric_and_kind(
    cluster: AsyncEngine, name: str, settings: dict[str, Any]
) -> None:
    """So does a new table that Citus puts in place of the old one, if its comment is restored."""
    config = SchemaConfig(dimensions=DIMENSIONS, table_name=name, partitions=2, **settings)
    await schema.upgrade(cluster, config)
    store = PgVectorStore(cluster, DIMENSIONS, table_name=name, metric=config.metric)
    await store.upsert(rows_of_kinds()[:1000], "n")
    exact = await store.search(QUERIES[0], "n", 5)
    target = replace(config, partitions=None, distribution="citus", shard_count=4)
    assert await distribute(cluster, target) is True
    assert await schema.check(cluster, target) == []
    assert await store.search(QUERIES[0], "n", 5) == exact

    await execute(cluster, f"SELECT alter_distributed_table('{name}', shard_count := 2)")
    target = replace(target, shard_count=2)
    if config.metric != "cosine":
        lost = PgVectorStore(cluster, DIMENSIONS, table_name=name, metric=config.metric)
        comment = f"COMMENT ON TABLE {name} IS 'cenote: metric={config.metric}'"
        with pytest.raises(VectorStoreError, match=comment):
            await lost.search(QUERIES[0], "n", 5)
        await execute(cluster, comment)
        await reindex(cluster, target)  # records that the index is meant to be missing
    assert await schema.check(cluster, target) == []

    dsn = cluster.url.render_as_string(hide_password=False)
    options = ["-xdistribution=citus", f"-xdimensions={DIMENSIONS}", f"-xtable_name={name}"]
    arguments = ["migrate", *options, "downgrade", "cenote_0003"]
    output_of(cenote(*arguments, CENOTE_DATABASE_URL=dsn))
    findings = await schema.check(cluster, replace(config, partitions=0))
    assert [finding.kind for finding in findings] == ["revision_behind"]
    store = PgVectorStore(cluster, DIMENSIONS, table_name=name, metric=config.metric)
    assert await store.search(QUERIES[0], "n", 5) == exact
