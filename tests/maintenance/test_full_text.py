"""Full text in Postgres: changes of the table, plans, and use by an application."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import column, exists, insert, select, table, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, undefer
from support.commands import cenote, output_of
from support.database import execute, scalar
from support.library import Document
from support.plans import explain

from cenote import (
    ChunkMixin,
    ConfigurationError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
    schema,
)
from cenote.filters.compiler import Conditions
from cenote.maintenance import repartition, set_text_search
from cenote.postgres.ddl import vacuum_analyze
from cenote.retrievers import HybridRetriever, TextRetriever, VectorRetriever
from cenote.testing import embedded, found

NEAR = [1.0, 0.0, 0.0, 0.0]
ENGLISH = SchemaConfig(dimensions=4, text_search="english")

texts = {"a": "The cat sleeps.", "b": "Dogs are running.", "c": "Un gato y dos perros."}


async def ids(store: PgVectorStore, text: str, namespace: str = "n", **options: Any) -> list[str]:
    """Return the ids that a text search finds."""
    return [result.chunk.id for result in await store.search_text(text, namespace, **options)]


def store_of(engine: AsyncEngine, config: SchemaConfig) -> PgVectorStore:
    """Return a store with the table name and text search configurations of `config`."""
    return PgVectorStore(
        engine,
        4,
        text_search=config.text_search,
        table_name=config.table_name,
        schema=config.schema,
    )


@pytest.fixture
async def filled(store: PgVectorStore) -> PgVectorStore:
    """A store with chunks and without full text."""
    await store.upsert([embedded(id, content=content) for id, content in texts.items()], "n")
    return store


@pytest.fixture
async def worded(engine: AsyncEngine, filled: PgVectorStore) -> PgVectorStore:
    """A store with chunks and English full text."""
    await set_text_search(engine, filled.config, "english")
    return store_of(engine, ENGLISH)


# -- the table


@pytest.mark.parametrize("partitions", [16, 0])
async def test_changing_the_full_text(
    filled: PgVectorStore, engine: AsyncEngine, partitions: int
) -> None:
    """`set_text_search` adds, changes and removes the full text of a table with rows."""
    await repartition(engine, replace(filled.config, partitions=partitions))
    assert await set_text_search(engine, filled.config, "english") is True
    assert await set_text_search(engine, filled.config, " english,") is False
    english = store_of(engine, ENGLISH)
    assert await english.check_schema() == []
    assert await ids(english, "run dog") == ["b"]
    assert await set_text_search(engine, filled.config, "spanish,english") is True
    assert await set_text_search(engine, filled.config, "english, spanish") is True
    assert await set_text_search(engine, filled.config, "spanish") is True
    spanish = store_of(engine, replace(ENGLISH, text_search="spanish"))
    assert await ids(spanish, "perro") == ["c"]
    await repartition(engine, replace(filled.config, partitions=4))
    assert await spanish.check_schema() == []
    assert await filled.check_schema() == []  # a store without the setting accepts full text
    assert await ids(spanish, "gatos") == ["c"]
    assert await set_text_search(engine, filled.config, None) is True
    assert await set_text_search(engine, filled.config, None) is False
    assert await filled.check_schema() == []
    assert await found(filled, NEAR, "n") == ["a", "b", "c"]


async def test_columns_of_another_expression_are_found(
    worded: PgVectorStore, engine: AsyncEngine
) -> None:
    """A column that parses contents without the replacements is not taken for cenote's own."""
    await execute(
        engine,
        "ALTER TABLE cenote_chunks DROP content_tsv",
        "ALTER TABLE cenote_chunks ADD content_tsv tsvector NOT NULL GENERATED ALWAYS AS"
        " (to_tsvector('english'::regconfig, left(content, 130000))) STORED",
        "CREATE INDEX ix_cenote_chunks_content_tsv ON cenote_chunks USING gin (content_tsv)",
    )
    other = store_of(engine, ENGLISH)
    (finding,) = await other.check_schema()
    assert finding.kind == "text_search"
    with pytest.raises(VectorStoreError, match="expected english"):
        await ids(other, "run dog")
    with pytest.raises(MigrationError, match="did not create"):
        await set_text_search(engine, worded.config, "english")
    await execute(engine, "ALTER TABLE cenote_chunks DROP content_tsv")
    assert await set_text_search(engine, worded.config, "english") is True
    assert await other.check_schema() == []


async def test_configurations_of_the_application(
    filled: PgVectorStore, engine: AsyncEngine
) -> None:
    """A text search configuration of the application is named with or without its schema."""
    await execute(
        engine,
        "CREATE SCHEMA mine",
        "CREATE TEXT SEARCH CONFIGURATION mine.exactly (COPY = simple)",
        "CREATE TEXT SEARCH CONFIGURATION public.here (COPY = english)",
    )
    for name, query in (
        ("mine.exactly", "RUNNING"),
        ("public.here", "run"),
        ("here", "run"),
    ):
        await set_text_search(engine, filled.config, name)
        store = store_of(engine, replace(ENGLISH, text_search=name))
        assert await store.check_schema() == []
        assert await ids(store, query) == ["b"]


async def test_equal_names_in_several_schemas(filled: PgVectorStore, engine: AsyncEngine) -> None:
    """Configurations with the same name in different schemas are distinguished."""
    await execute(engine, "CREATE TEXT SEARCH CONFIGURATION public.english (COPY = simple)")
    assert await set_text_search(engine, filled.config, "english") is True
    public_english = store_of(engine, replace(ENGLISH, text_search="public.english"))
    (finding,) = await public_english.check_schema()
    assert finding.kind == "text_search"
    with pytest.raises(VectorStoreError, match=r"expected public\.english"):
        await ids(public_english, "running")
    assert await set_text_search(engine, filled.config, "public.english") is True
    assert await set_text_search(engine, filled.config, "public.english") is False
    assert await ids(public_english, "running") == ["b"]
    assert await ids(public_english, "run") == []


async def test_names_are_case_insensitive(filled: PgVectorStore, engine: AsyncEngine) -> None:
    """Names are folded to lower case, as in Postgres."""
    assert await set_text_search(engine, filled.config, "English") is True
    store = store_of(engine, replace(ENGLISH, text_search="ENGLISH"))
    assert await store.check_schema() == []
    assert await ids(store, "run") == ["b"]


async def test_columns_and_indexes_of_the_application_are_kept(
    filled: PgVectorStore, engine: AsyncEngine
) -> None:
    """A column content_tsv that cenote did not create, or other indexes on it, raise an error."""
    await execute(engine, "ALTER TABLE cenote_chunks ADD content_tsv tsvector DEFAULT 'mine'")
    for languages in ("english", None):
        with pytest.raises(MigrationError, match="did not create; rename it"):
            await set_text_search(engine, filled.config, languages)
    with pytest.raises(MigrationError):
        await schema.upgrade(engine, ENGLISH)
    await execute(engine, "UPDATE cenote_chunks_alembic_version SET version_num = 'cenote_0001'")
    with pytest.raises(MigrationError, match="already exists"):
        await schema.upgrade(engine, ENGLISH)
    assert (
        await scalar(engine, "SELECT count(*) FROM cenote_chunks WHERE content_tsv = 'mine'") == 3
    )
    await execute(engine, "ALTER TABLE cenote_chunks DROP content_tsv")
    await set_text_search(engine, filled.config, "english")
    await execute(
        engine,
        "CREATE INDEX mine ON cenote_chunks USING gin (content_tsv) WHERE namespace = 'n'",
        "GRANT SELECT (content_tsv) ON cenote_chunks TO PUBLIC",
    )
    with pytest.raises(MigrationError, match="index mine, column privileges"):
        await set_text_search(engine, filled.config, "spanish")


async def test_upgrade_of_a_table_with_another_language(empty_engine: AsyncEngine) -> None:
    """The upgrade raises an error before it records the revision."""
    config = SchemaConfig(dimensions=4)
    await schema.upgrade(empty_engine, config, "cenote_0001")
    await set_text_search(empty_engine, config, "spanish")
    with pytest.raises(MigrationError, match="its full text is spanish, expected english"):
        await schema.upgrade(empty_engine, ENGLISH)
    assert await schema.current(empty_engine, config) == "cenote_0001"
    await schema.upgrade(empty_engine, config)
    assert await store_of(empty_engine, config).check_schema() == []


async def test_unknown_configurations(filled: PgVectorStore, engine: AsyncEngine) -> None:
    """The error names the configuration, and the table is unchanged."""
    await set_text_search(engine, filled.config, "english")
    with pytest.raises(MigrationError, match='"klingon" does not exist'):
        await set_text_search(engine, filled.config, "klingon")
    assert await ids(store_of(engine, ENGLISH), "dog") == ["b"]
    with pytest.raises(MigrationError, match='"klingon" does not exist'):
        await schema.upgrade(
            engine, SchemaConfig(dimensions=4, table_name="other", text_search="klingon")
        )
    with pytest.raises(ConfigurationError, match="text_search"):
        await set_text_search(engine, filled.config, "it's")


@pytest.mark.parametrize(
    "value", ["", ", ", "a b", "1st", "a.b.c", "a-b", 7, ["english"], "x" * 64]
)
def test_invalid_settings(value: Any) -> None:
    """`SchemaConfig` rejects values that are not lists of identifiers."""
    with pytest.raises(ConfigurationError) as error:
        SchemaConfig(dimensions=4, text_search=value)
    assert error.value.setting == "text_search"


async def test_upgrade_of_a_table_with_rows(empty_engine: AsyncEngine) -> None:
    """The revision adds full text to a table with rows if the setting is present."""
    config = SchemaConfig(dimensions=4)
    await schema.upgrade(empty_engine, config, "cenote_0001")
    store = store_of(empty_engine, config)
    await store.upsert([embedded("a", content="Cats")], "n")
    worded = store_of(empty_engine, ENGLISH)
    with pytest.raises(VectorStoreError, match="cenote text-search english"):
        await worded.search_text("cat", "n")
    await worded.apply_migrations()
    assert await ids(worded, "cat") == ["a"]
    await worded.apply_migrations()
    assert await worded.check_schema() == []


async def test_upgrade_with_a_new_setting(store: PgVectorStore, engine: AsyncEngine) -> None:
    """If the revision has already run, the upgrade raises an error that names the command."""
    with pytest.raises(MigrationError, match="cenote text-search english"):
        await schema.upgrade(engine, ENGLISH)
    with pytest.raises(VectorStoreError, match="it has no full text, expected english"):
        await store_of(engine, ENGLISH).count("n")
    (finding,) = await store_of(engine, ENGLISH).check_schema()
    assert finding.kind == "text_search"
    await set_text_search(engine, store.config, "spanish")
    (finding,) = await store_of(engine, ENGLISH).check_schema()
    assert (finding.actual, finding.expected) == ("its full text is spanish", "english")


async def test_the_command(store: PgVectorStore, engine: AsyncEngine, dsn: str) -> None:
    """`cenote text-search` adds and removes full text, and restores a missing index."""
    url = {"CENOTE_DATABASE_URL": dsn}
    output = output_of(cenote("text-search", "spanish,english", **url))
    assert output == "table cenote_chunks has full text: spanish,english\n"
    output = output_of(cenote("text-search", "spanish,english", **url))
    assert output == "table cenote_chunks has full text: spanish,english already\n"
    assert output_of(cenote("check", "-x", "text_search=spanish, english", **url)).startswith("no")
    await execute(engine, "DROP INDEX ix_cenote_chunks_content_tsv")
    result = cenote("check", **url)
    assert result.returncode == 1
    assert (
        "ix_cenote_chunks_content_tsv: it is missing, expected gin (content_tsv)" in result.stdout
    )
    output_of(cenote("text-search", "spanish,english", **url))
    output_of(cenote("check", **url))
    assert "no full text" in output_of(cenote("text-search", "none", **url))
    result = cenote("text-search", "klingon", **url)
    assert result.returncode == 2
    assert '"klingon" does not exist' in result.stderr


async def test_bulk_loads(engine: AsyncEngine, worded: PgVectorStore) -> None:
    """Loaded chunks are found by their words."""
    await worded.bulk_load(
        [embedded(f"{number}", content=f"loaded word{number}") for number in range(50)], "other"
    )
    assert await ids(worded, "word7", "other") == ["7"]
    assert len(await ids(worded, "loading", "other", limit=99)) == 50
    assert await worded.check_schema() == []


# -- the search


def executed(plan: str) -> str:
    """Return the lines of a plan that were executed."""
    return "\n".join(line for line in plan.splitlines() if "never executed" not in line)


async def test_plans_use_the_indexes(engine: AsyncEngine, worded: PgVectorStore) -> None:
    """Plans use the indexes of words and vectors, and read the results by the primary key.

    The chunks of a small tenant are read one by one, because the index of words would read the
    words of all tenants.
    """
    rows = [
        embedded(f"{n:05}", [1, n % 97, n % 89, 1], content=f"word{n} even{n % 2}")
        for n in range(6000)
    ]
    await worded.bulk_load(rows, "large")
    await worded.upsert(rows[:20], "small")
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(vacuum_analyze("cenote_chunks", None))
        values = {"namespace": "large", "text": "word17 word18", "limit": 10}
        by_words, _ = worded._searches.text_search(Conditions(None), None, values)
        for namespace, by_index in (("large", True), ("small", False)):
            values["namespace"] = namespace
            plan = executed(await explain(connection, by_words, "auto", values, after=12))
            assert ("_content_tsv_idx" in plan) is by_index
            assert ("_pkey" in plan) is by_index  # the 20 rows of the small tenant are one page
        values |= {"namespace": "large", **worded._searches.search_parameters(200)}
        values |= {"depth": 200, "limit": 10, "query": str(NEAR), "custom": True}
        values |= {"vector_weight": 1.0, "text_weight": 1.0}
        hybrid, _ = worded._searches.hybrid_search(Conditions(None), 200, None, values)
        plan = executed(await explain(connection, hybrid, "force_custom_plan", values))
        assert "_content_tsv_idx" in plan
        assert "_embedding_idx" in plan
    assert await ids(worded, "word17", "large") == ["00017"]
    assert len(await ids(worded, "even1", "small")) == 10


async def test_searches_in_the_callers_transaction(
    engine: AsyncEngine, worded: PgVectorStore
) -> None:
    """A search finds uncommitted chunks of the transaction, and restores its settings."""
    async with async_sessionmaker(engine)() as session:
        await worded.upsert([embedded("new", content="A cat")], "n", session=session)
        results = await worded.search_text("cat", "n", session=session)
        assert {result.chunk.id for result in results} == {"a", "new"}
        before = await session.scalar(text("SELECT current_setting('hnsw.ef_search', true)"))
        both = await worded.search_hybrid("cat", NEAR, "n", session=session)
        assert {result.chunk.id for result in both} == {"a", "b", "c", "new"}
        after = await session.scalar(text("SELECT current_setting('hnsw.ef_search', true)"))
        assert after == before
        assert await ids(worded, "cat") == ["a"]


async def test_conditions_apply_before_the_limit(
    engine: AsyncEngine, worded: PgVectorStore
) -> None:
    """where= restricts both rankings before the limit applies."""
    chunk = worded.model
    async with engine.begin() as connection:
        await connection.run_sync(Document.metadata.tables["documents"].create)
        await connection.execute(insert(Document).values(title="b"))
    readable = exists().where(Document.title == chunk.id)
    assert await ids(worded, "cat dog", where=readable) == ["b"]
    both = await worded.search_hybrid(
        "cat dog", NEAR, "n", 1, {"x": {"$exists": False}}, where=readable
    )
    assert [result.chunk.id for result in both] == ["b"]


async def test_names_do_not_collide(engine: AsyncEngine, worded: PgVectorStore) -> None:
    """Tables and CTEs of the application may be named like those inside the statement."""
    await execute(engine, "CREATE TABLE asked (id text)", "INSERT INTO asked VALUES ('b')")
    chunk = worded.model
    cte = select(text("id FROM asked")).cte("few")
    for condition in (
        exists().where(table("asked", column("id")).c.id == chunk.id),
        chunk.id.in_(select(column("id")).select_from(cte)),
    ):
        assert await ids(worded, "cat dog", where=condition) == ["b"]
        both = await worded.search_hybrid("cat dog", NEAR, "n", where=condition)
        assert [result.chunk.id for result in both] == ["b"]
    for name in ("few", "by_words", "fused", "asked_"):
        store = store_of(engine, replace(ENGLISH, table_name=name))
        await store.apply_migrations()
        await store.upsert([embedded("a", content="cat")], "n")
        assert await ids(store, "cat") == ["a"]
        assert len(await store.search_hybrid("cat", NEAR, "n")) == len(
            await found(store, NEAR, "n")
        )


async def test_user_models(empty_engine: AsyncEngine) -> None:
    """A user model has the generated column as an attribute, for the application's queries."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=4, partitions=2, text_search="english"):
        __tablename__ = "notes"

        stars: Mapped[int] = mapped_column(default=0)

    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    store = PgVectorStore(empty_engine, model=Note)
    await store.upsert([embedded("a", content="Running", columns={"stars": 3})], "n")
    assert [result.chunk.id for result in await store.search_hybrid("runs", NEAR, "n")] == ["a"]
    assert await store.check_schema() == []
    async with async_sessionmaker(empty_engine)() as session:
        matching = Note.content_tsv.bool_op("@@")(text("to_tsquery('english', 'run')"))
        note = (await session.scalars(select(Note).where(matching))).one()
        assert note.stars == 3
        loaded = (await session.scalars(select(Note).options(undefer(Note.content_tsv)))).one()
        assert loaded.content_tsv == "'run':1"
        await store.upsert(
            [embedded("a", content="Sleeping", columns={"stars": 3})], "n", session=session
        )
        assert loaded.content_tsv == "'sleep':1"
    other = PgVectorStore(empty_engine, 4, table_name="notes", text_search="spanish")
    with pytest.raises(VectorStoreError, match="its full text is english, expected spanish"):
        await other.search_text("x", "n")


async def test_user_models_that_contradict_their_table(empty_engine: AsyncEngine) -> None:
    """The error names the command of the application's own migrations."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=4, text_search="english"):
        __tablename__ = "notes"

    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, table_name="notes"))
    with pytest.raises(VectorStoreError, match="alembic revision --autogenerate"):
        await PgVectorStore(empty_engine, model=Note).count("n")


async def test_large_contents(worded: PgVectorStore, engine: AsyncEngine) -> None:
    """Contents of millions of characters are stored, and the indexed part is limited."""
    marks = [chr(0x20000 + n) for n in range(500)]
    pairs = " ".join(f"{a}-{b}" for a in marks for b in marks)
    parts = [a + b for a in marks for b in marks]
    chains = " ".join("-".join(parts[n : n + 60]) for n in range(0, 130_000, 60))
    paths = " ".join(f"http://a.b/{n:x}/y" for n in range(20_000))
    for number, content in enumerate((pairs, paths, chains, "x" * 3_000_000, "a " * 1_000_000)):
        await worded.upsert([embedded("long", content=content)], f"bounds{number}")
    assert await ids(worded, "http://a.b/77/y", "bounds1") == ["long"]
    # Words after the first 2,000 characters of a query are ignored.
    assert await ids(worded, " ".join(["filler"] * 1_000) + " cat", "n") == []
    assert await scalar(engine, "SELECT max(pg_column_size(content_tsv)) FROM cenote_chunks") > 1000


async def test_retrievers(worded: PgVectorStore) -> None:
    """`TextRetriever` works alone and within `HybridRetriever`."""
    by_words = TextRetriever(worded)
    assert [result.chunk.id for result in await by_words.retrieve("dogs", "n")] == ["b"]
    both = HybridRetriever([VectorRetriever(worded, lambda _: NEAR), by_words])
    results = await both.retrieve("dog", "n")
    assert results == await worded.search_hybrid("dog", NEAR, "n")
