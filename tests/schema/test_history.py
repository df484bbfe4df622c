"""Released revisions never change, and an upgrade from each of them leads to the models.

``tests/schema/frozen/`` contains the SQL of each revision on the day of its release, as printed by
``upgrade base:<revision> --sql``, for a partitioned table, for a plain one, and for one with full
text and row-level security. A new revision adds its files; existing files never change.
"""

from __future__ import annotations

import ast
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine
from support.commands import alembic, cenote, output_of, run
from support.database import VERSION, execute, objects, programs, run_script, scalar, tables

from cenote import MigrationError, PgVectorStore, SchemaConfig, schema
from cenote.migrate import versions
from cenote.orm.factory import chunk_table
from cenote.testing import embedded, found

FROZEN = Path(__file__).parent / "frozen"

CONFIGS = {
    "partitioned": SchemaConfig(dimensions=4),
    "plain": SchemaConfig(
        dimensions=5,
        column_type="halfvec",
        partitions=0,
        schema="app",
        table_name="Passages",
        hnsw_m=8,
        hnsw_ef_construction=32,
    ),
    "worded": SchemaConfig(
        dimensions=4, partitions=2, text_search="spanish, english", row_security=True
    ),
}

REVISIONS = [
    script.revision for script in ScriptDirectory(str(versions.script_location())).walk_revisions()
]

each = pytest.mark.parametrize(
    ("revision", "shape"), [(revision, shape) for revision in REVISIONS for shape in CONFIGS]
)


def frozen(revision: str, shape: str) -> str:
    """Return the SQL of a revision on the day of its release."""
    return (FROZEN / f"{revision}.{shape}.sql").read_text(encoding="utf-8")


def store_of(engine: AsyncEngine, config: SchemaConfig) -> PgVectorStore:
    """Return a store for a configuration."""
    return PgVectorStore(
        engine,
        config.dimensions,
        column_type=config.column_type,
        partitions=config.partitions,
        schema=config.schema,
        table_name=config.table_name,
        hnsw_m=config.hnsw_m,
        hnsw_ef_construction=config.hnsw_ef_construction,
        text_search=config.text_search,
        row_security=config.row_security,
    )


@each
async def test_released_revisions_create_the_same_objects(
    empty_engine: AsyncEngine, revision: str, shape: str
) -> None:
    """Each revision creates the same objects as on the day of its release."""
    config = CONFIGS[shape]
    await run_script(empty_engine, frozen(revision, shape))
    objects_at_release = await objects(empty_engine, config)
    assert await schema.current(empty_engine, config) == revision
    before = await tables(empty_engine)
    name = '"app"."Passages"' if shape == "plain" else "cenote_chunks"
    version = f'{config.schema or "public"}."{versions.version_table(config.table_name)}"'
    await execute(empty_engine, f"DROP TABLE {name}", f"DROP TABLE {version}")
    await schema.upgrade(empty_engine, config, revision)
    assert await objects(empty_engine, config) == objects_at_release
    assert await tables(empty_engine) == before


@each
async def test_upgrades_from_each_release_lead_to_the_models(
    empty_engine: AsyncEngine, revision: str, shape: str
) -> None:
    """An upgraded table keeps its rows and equals a table created from the models."""
    config = CONFIGS[shape]
    await run_script(empty_engine, frozen(revision, shape))
    store = store_of(empty_engine, config)
    vector = [1.0] + [0.0] * (config.dimensions - 1)
    await store_of(empty_engine, replace(config, text_search=None, row_security=None)).upsert(
        [embedded("a", vector)], "n"
    )
    await store.apply_migrations()
    assert await store.check_schema() == []
    assert await found(store, vector, "n") == ["a"]
    migrated = await objects(empty_engine, config)
    async with empty_engine.begin() as connection:
        await connection.run_sync(chunk_table(config).drop)
        await connection.run_sync(chunk_table(config).create)
    assert await objects(empty_engine, config) == migrated


@pytest.mark.parametrize(
    ("revision", "shape"),
    [(REVISIONS[-1], shape) for shape in CONFIGS] + [(REVISIONS[1], "worded")],
)
async def test_a_restored_dump_can_be_upgraded(
    empty_engine: AsyncEngine, empty_dsn: str, tmp_path: Path, revision: str, shape: str
) -> None:
    """A table with rows is upgraded after pg_dump and pg_restore."""
    config = CONFIGS[shape]
    await run_script(empty_engine, frozen(revision, shape))
    vector = [1.0] + [0.0] * (config.dimensions - 1)
    items = [embedded(str(number), vector) for number in range(50)]
    old = store_of(empty_engine, replace(config, text_search=None, row_security=None))
    await old.upsert(items, "n")
    binaries = programs(int(await scalar(empty_engine, VERSION)))
    dump = str(tmp_path / "dump")
    output_of(run(str(binaries / "pg_dump"), "--format=custom", "--file", dump, empty_dsn))
    await execute(
        empty_engine,
        "DROP SCHEMA public CASCADE",
        "DROP SCHEMA IF EXISTS app CASCADE",
        "CREATE SCHEMA public",
    )
    await empty_engine.dispose()
    restore = ["--exit-on-error", "--single-transaction", "--dbname", empty_dsn, dump]
    output_of(run(str(binaries / "pg_restore"), *restore))

    store = store_of(empty_engine, config)
    assert await schema.current(empty_engine, config) == revision
    await store.apply_migrations()
    assert await store.check_schema() == []
    assert await store.count("n") == 50
    assert len(await store.search(vector, "n", limit=50)) == 50


@pytest.mark.parametrize("shape", CONFIGS)
async def test_upgrade_downgrade_and_upgrade(
    empty_engine: AsyncEngine, empty_dsn: str, shape: str
) -> None:
    """A downgrade leaves the version table, the schema and the extension."""
    config = CONFIGS[shape]
    arguments = [f"-xtable_name={config.table_name}", f"-xdimensions={config.dimensions}"]
    arguments += [f"-xcolumn_type={config.column_type}", f"-xhnsw_m={config.hnsw_m}"]
    arguments += [f"-xhnsw_ef_construction={config.hnsw_ef_construction}"]
    if config.text_search:
        arguments += [f"-xtext_search={config.text_search}", "-xpartitions=2"]
        arguments += ["-xrow_security=on"]
    if config.schema:
        arguments += [f"-xschema={config.schema}", "-xpartitions=0"]
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    stepwise = shape == "worded"  # every revision changes this table
    for step in ["+1"] * len(REVISIONS) if stepwise else ["head"]:
        output_of(alembic(*arguments, "upgrade", step, **url))
    first = await objects(empty_engine, config)
    for step in ["-1"] * len(REVISIONS) if stepwise else ["base"]:
        output_of(alembic(*arguments, "downgrade", step, **url))
    assert await tables(empty_engine) == [versions.version_table(config.table_name)]
    output_of(alembic(*arguments, "upgrade", "head", **url))
    assert await objects(empty_engine, config) == first


async def test_a_revision_of_a_newer_cenote(engine: AsyncEngine, dsn: str) -> None:
    """Upgrades and downgrades raise an error that names the unknown revision."""
    config = SchemaConfig(dimensions=4)
    await execute(engine, "UPDATE cenote_chunks_alembic_version SET version_num = 'cenote_0999'")
    for revision in ("head", REVISIONS[0]):
        with pytest.raises(MigrationError, match="cenote_0999"):
            await schema.upgrade(engine, config, revision)
    result = cenote("migrate", "downgrade", REVISIONS[1], CENOTE_DATABASE_URL=dsn)
    assert "cenote_0999" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert await schema.current(engine, config) == "cenote_0999"


def test_a_downgrade_ignores_contradicting_settings(dsn: str) -> None:
    """Settings that contradict the table do not prevent a downgrade."""
    url = {"CENOTE_DATABASE_URL": dsn, "CENOTE_DIMENSIONS": "4", "CENOTE_PARTITIONS": "3"}
    output_of(cenote("migrate", "downgrade", REVISIONS[1], **url))
    result = cenote("migrate", "upgrade", "head", **url)
    assert "it has 16 partitions, expected 3" in result.stdout + result.stderr


# All functions of cenote that revisions may call, as listed in CONTRIBUTING. A change to one of
# these functions changes what released revisions do.
FUNCTIONS = {
    "given_config",
    "live_config",
    "table_names",
    "has_extension",
    "check_extension",
    "has_text_search",
    "check_row_security_allowed",
    "live_partitions",
    "is_distributed",
}
IMPORTS = {f"cenote.migrate.revision_context.{name}" for name in FUNCTIONS} | {
    "cenote.SchemaConfig"
}
LIBRARIES = {"alembic", "sqlalchemy", "pgvector"}


@pytest.mark.parametrize(
    "file",
    sorted((versions.script_location() / "versions").glob("*.py")),
    ids=lambda file: file.stem,
)
def test_a_revision_contains_its_own_ddl(file: Path) -> None:
    """A revision imports only settings and facts from cenote, none of which affect its DDL."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    allowed = IMPORTS
    if file.stem.startswith("cenote_0001_"):  # test_legacy.py pins its statements
        allowed = IMPORTS | {"cenote.migrate.legacy.upgrade_legacy_table"}
    of_cenote = {name for name in imported if name.partition(".")[0] not in LIBRARIES}
    assert of_cenote <= allowed


NEXT_REVISION = '''
"""A future revision."""

import sqlalchemy as sa
from alembic import op

from cenote.migrate.revision_context import live_config, table_names
from cenote.postgres.vector import embedding_type

revision = "cenote_0005"
down_revision = "cenote_0004"


def upgrade():
    config = live_config()
    op.add_column(
        config.table_name,
        sa.Column("summary", embedding_type(config.column_type, config.dimensions)),
        schema=config.schema,
    )
    op.create_table_comment(config.table_name, repr(config), schema=config.schema)


def downgrade():
    name, schema = table_names()
    op.drop_column(name, "summary", schema=schema)
'''


@pytest.mark.parametrize(
    "given", [{}, {"CENOTE_HNSW_M": "40", "CENOTE_HNSW_EF_CONSTRUCTION": "80"}]
)
async def test_later_revisions_read_the_live_table(
    empty_engine: AsyncEngine, empty_dsn: str, tmp_path: Path, given: dict[str, str]
) -> None:
    """A future revision sees the table's settings, even if the configuration has changed."""
    config = SchemaConfig(dimensions=3, column_type="halfvec", partitions=2, hnsw_m=7)
    await schema.upgrade(empty_engine, config)
    folder = tmp_path / "alembic"
    shutil.copytree(versions.script_location(), folder)
    (folder / "versions" / "cenote_0005_summary.py").write_text(NEXT_REVISION)
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/alembic\n")
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    output_of(run(*command, cwd=tmp_path, CENOTE_DATABASE_URL=empty_dsn, **given))
    column = (
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attname = 'summary' AND attrelid = 'cenote_chunks'::regclass"
    )
    assert await scalar(empty_engine, column) == "halfvec(3)"
    assert await scalar(empty_engine, "SELECT obj_description('cenote_chunks'::regclass)") == repr(
        config
    )
