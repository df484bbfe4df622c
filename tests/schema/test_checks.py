"""Checks of the schema: each kind of finding, its hint, and the command `cenote check`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.commands import cenote
from support.database import execute

from cenote import PgVectorStore, SchemaConfig, schema
from cenote.inspection.checks.findings import Finding

HNSW = "USING hnsw (embedding vector_cosine_ops) WITH (m=16, ef_construction=64)"


DIFFERENCES: list[tuple[str, list[str], dict[str, Any], list[str]]] = [
    # kind, damage, settings, and a part each of the finding's subject, actual, expected and hint
    (
        "extension_missing",
        ["DROP EXTENSION vector CASCADE", "DROP TABLE cenote_chunks"],
        {},
        ["extension vector", "missing", "0.8", "CREATE EXTENSION vector"],
    ),
    (
        "extension_too_old",
        ["UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'"],
        {},
        ["extension vector", "0.7.4", "0.8", "ALTER EXTENSION vector UPDATE"],
    ),
    (
        "table_missing",
        ["DROP TABLE cenote_chunks"],
        {},
        ["cenote_chunks", "missing", "table", "cenote migrate -x dimensions=4 upgrade head"],
    ),
    (
        "not_a_chunk_table",
        ["ALTER TABLE cenote_chunks DROP COLUMN embedding"],
        {},
        ["cenote_chunks", "no column embedding", "revisions", "another table_name"],
    ),
    (
        "revision_missing",
        ["DELETE FROM cenote_chunks_alembic_version"],
        {},
        ["cenote_chunks", "no revision", "cenote_0004", "upgrade head"],
    ),
    (
        "revision_ahead",
        ["UPDATE cenote_chunks_alembic_version SET version_num = 'cenote_9999'"],
        {},
        ["cenote_chunks", "cenote_9999", "cenote_0004", "install"],
    ),
    (
        "dimensions",
        [],
        {"dimensions": 5},
        ["cenote_chunks", "vector(4)", "vector(5)", "table's own"],
    ),
    (
        "dimensions",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "ALTER TABLE cenote_chunks ALTER embedding TYPE vector",
        ],
        {},
        ["cenote_chunks", "vector", "vector(4)", "table's own"],
    ),
    (
        "column_type",
        [],
        {"column_type": "halfvec"},
        ["cenote_chunks", "vector(4)", "halfvec(4)", "table's own"],
    ),
    (
        "key",
        [
            "ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks,"
            " ADD CONSTRAINT pk_cenote_chunks PRIMARY KEY (namespace, document_id, id)"
        ],
        {},
        [
            "cenote_chunks",
            "(namespace, document_id, id)",
            "(namespace, id)",
            "DROP CONSTRAINT pk_cenote_chunks; ALTER TABLE cenote_chunks ADD CONSTRAINT",
        ],
    ),
    (
        "key",
        ["ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks"],
        {},
        ["cenote_chunks", "no key", "(namespace, id)", "PRIMARY KEY (namespace, id)"],
    ),
    (
        "partitions",
        [],
        {"partitions": 0},
        ["cenote_chunks", "16 partitions", "0", "cenote repartition 0"],
    ),
    (
        "partitions",
        ["ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p03"],
        {},
        [
            "cenote_chunks",
            "15 partitions",
            "all",
            "ALTER TABLE public.cenote_chunks ATTACH PARTITION public.cenote_chunks_p03"
            " FOR VALUES WITH (MODULUS 16, REMAINDER 3)",
        ],
    ),
    (
        "operator_class",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks "
            + HNSW.replace("cosine", "l2"),
        ],
        {},
        ["ix_cenote_chunks_embedding", "vector_l2_ops", "vector_cosine_ops", "cenote reindex"],
    ),
    (
        "operator_class",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks"
            " USING ivfflat (embedding vector_cosine_ops)",
        ],
        {},
        ["ix_cenote_chunks_embedding", "ivfflat", "hnsw", "cenote reindex"],
    ),
    (
        "operator_class",
        [
            "DROP INDEX ix_cenote_chunks_metadata",
            "CREATE INDEX ix_cenote_chunks_metadata ON cenote_chunks USING gin (metadata)",
        ],
        {},
        ["ix_cenote_chunks_metadata", "jsonb_ops", "jsonb_path_ops", "drop it and run CREATE"],
    ),
    (
        "hnsw_parameters",
        [],
        {"hnsw_m": 8},
        ["ix_cenote_chunks_embedding", "m=16", "m=8", "cenote reindex --m 8"],
    ),
    (
        "hnsw_parameters",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks "
            + HNSW.replace("=64", "=128"),
        ],
        {},
        ["ix_cenote_chunks_embedding", "ef_construction=128", "ef_construction=64", "reindex"],
    ),
    (
        "index_missing",
        ["DROP INDEX ix_cenote_chunks_embedding"],
        {},
        ["ix_cenote_chunks_embedding", "missing", "hnsw (embedding", "cenote reindex"],
    ),
    (
        "index_missing",
        ["DROP INDEX ix_cenote_chunks_namespace_document_id"],
        {},
        ["ix_cenote_chunks_namespace_document_id", "missing", "btree", "run CREATE INDEX"],
    ),
    (
        "index_invalid",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON ONLY cenote_chunks " + HNSW,
        ],
        {},
        ["ix_cenote_chunks_embedding", "invalid", "valid", "cenote reindex"],
    ),
    (
        "index_invalid",
        [
            f"CREATE INDEX left_over ON cenote_chunks_p03 {HNSW}",
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'left_over'::regclass",
        ],
        {},
        ["left_over", "on cenote_chunks_p03", "valid", "drop it"],
    ),
    (
        "index_left_over",
        [f"CREATE INDEX cenote_chunks_p03_embedding_idx_new ON cenote_chunks_p03 {HNSW}"],
        {},
        ["_p03_embedding_idx_new", "left (on cenote_chunks_p03)", "no such", "cenote reindex"],
    ),
    (
        "columns",
        ["ALTER TABLE cenote_chunks DROP COLUMN content_hash"],
        {},
        ["cenote_chunks", "content_hash is missing", "text not null", "by hand"],
    ),
    (
        "columns",
        [
            "ALTER TABLE cenote_chunks ALTER metadata DROP NOT NULL",
            "ALTER TABLE cenote_chunks ALTER position TYPE text",
            'ALTER TABLE cenote_chunks ALTER document_id TYPE text COLLATE "default"',
        ],
        {},
        [
            "cenote_chunks",
            "document_id is text not null, position is text not null, metadata is jsonb",
            'text collate "C" not null, bigint not null, jsonb not null',
            "by hand",
        ],
    ),
    (
        "table_missing",
        ["DROP TABLE cenote_chunks", "CREATE SCHEMA x", "CREATE TABLE x.cenote_chunks ()"],
        {},
        ["cenote_chunks", "recorded as cenote_0004", "table", "stamp base, then cenote migrate"],
    ),
    (
        "table_missing",
        [
            "DROP TABLE cenote_chunks, cenote_chunks_alembic_version",
            "CREATE SCHEMA x",
            "CREATE TABLE x.cenote_chunks ()",
        ],
        {},
        ["cenote_chunks", "missing", "table", "pass -x schema=x if that is the table"],
    ),
    (
        "not_a_chunk_table",
        ["DROP TABLE cenote_chunks", "CREATE VIEW cenote_chunks AS SELECT '[1]'::vector embedding"],
        {},
        ["cenote_chunks", "no column embedding", "revisions", "another table_name"],
    ),
    (
        "not_a_chunk_table",
        ["DROP TABLE cenote_chunks", "CREATE SEQUENCE cenote_chunks"],
        {},
        ["cenote_chunks", "no column embedding", "revisions", "another table_name"],
    ),
    (
        "partitions",
        [f"ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p{n:02}" for n in range(15)],
        {},
        ["cenote_chunks", "1 partitions", "all", "FOR VALUES WITH (MODULUS 16, REMAINDER 14)"],
    ),
    (
        "partitions",
        [f"ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p{n:02}" for n in range(16)],
        {},
        ["cenote_chunks", "0 partitions", "all", "attach"],
    ),
]


@pytest.mark.parametrize(
    ("kind", "damage", "settings", "expected_parts"), DIFFERENCES, ids=lambda value: str(value)[:30]
)
async def test_each_kind_of_difference_is_found(
    engine: AsyncEngine,
    kind: str,
    damage: list[str],
    settings: dict[str, Any],
    expected_parts: list[str],
) -> None:
    """The finding contains the actual state, the expected state and a hint."""
    store = PgVectorStore(engine, **{"dimensions": 4, **settings})
    if damage:
        assert await store.check_schema() == []
        await execute(engine, *damage)
    (finding,) = [finding for finding in await store.check_schema() if finding.kind == kind]
    attributes = [finding.subject, finding.actual, finding.expected, finding.hint]
    for attribute, words in zip(attributes, expected_parts, strict=True):
        assert words in attribute
        assert attribute in str(finding)


async def test_an_older_revision_is_found(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding names the table's revision, and the hint is the upgrade command."""
    monkeypatch.setattr("cenote.migrate.api.head_revision", lambda: "cenote_9999")
    (finding,) = await PgVectorStore(engine, 4).check_schema()
    assert finding.kind == "revision_behind"
    assert "at revision cenote_0004" in finding.actual
    assert "cenote migrate -x dimensions=4 upgrade head" in finding.hint


async def test_hints_remove_the_differences(engine: AsyncEngine, dsn: str) -> None:
    """Running the statements and commands of the hints removes the findings."""
    store = PgVectorStore(engine, 4)
    await execute(
        engine,
        "ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks,"
        " ADD CONSTRAINT mine PRIMARY KEY (id, namespace)",
        "DROP INDEX ix_cenote_chunks_namespace_document_id",
        "DROP INDEX ix_cenote_chunks_metadata",
        "DROP INDEX ix_cenote_chunks_embedding",
    )
    findings = await store.check_schema()
    assert [finding.kind for finding in findings] == ["key", *["index_missing"] * 3]
    for finding in findings:
        remedy = finding.hint.partition("run ")[2]
        if remedy.startswith("cenote "):
            result = cenote(*remedy.split()[1:], CENOTE_DATABASE_URL=dsn)
            assert result.returncode == 0, result.stderr
        else:
            await execute(engine, *remedy.split("; "))
    assert await store.check_schema() == []
    await execute(engine, "ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p07")
    (finding,) = await store.check_schema()
    await execute(engine, finding.hint.removeprefix("run "))
    assert await store.check_schema() == []
    await execute(engine, "DROP TABLE cenote_chunks")
    (finding,) = await store.check_schema()
    result = cenote("migrate", "-x", "dimensions=4", "upgrade", "head", CENOTE_DATABASE_URL=dsn)
    assert result.returncode != 0  # the version table says that the revision has run
    assert "recorded as cenote_0004" in result.stdout
    for command in finding.hint.removeprefix("run ").split(", then "):
        result = cenote(*command.split()[1:], CENOTE_DATABASE_URL=dsn)
        assert result.returncode == 0, result.stdout
    assert await store.check_schema() == []
    await execute(engine, "DELETE FROM cenote_chunks_alembic_version")
    (finding,) = await store.check_schema()
    stamp = finding.hint.rpartition("cenote migrate ")[2]
    result = cenote("migrate", *stamp.split(), CENOTE_DATABASE_URL=dsn)
    assert result.returncode == 0, result.stdout
    assert await store.check_schema() == []


async def test_findings_are_sorted_by_severity(engine: AsyncEngine, dsn: str) -> None:
    """`cenote check` prints text or JSON, and exits with 1 for findings and 2 for errors."""
    await execute(engine, "DROP INDEX ix_cenote_chunks_embedding")
    url = {"CENOTE_DATABASE_URL": dsn}
    result = cenote("check", "--json", "-x", "dimensions=5", **url)
    assert result.returncode == 1
    findings = [Finding(**finding) for finding in json.loads(result.stdout)]
    assert [finding.kind for finding in findings] == ["dimensions", "index_missing"]
    assert findings == await schema.check(engine, SchemaConfig(dimensions=5))
    result = cenote("check", **url)
    assert result.returncode == 1
    assert result.stdout.startswith("index ix_cenote_chunks_embedding: it is missing")
    assert (
        cenote("check", CENOTE_DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/d").returncode == 2
    )


async def test_check_needs_no_configuration(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """`cenote check` reads the settings from the live table; a missing table is a finding."""
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    result = cenote("check", **url)
    assert result.returncode == 1
    assert "cenote migrate -x dimensions=... upgrade head" in result.stdout
    await schema.upgrade(
        empty_engine, SchemaConfig(dimensions=3, column_type="halfvec", partitions=2)
    )
    result = cenote("check", **url)
    assert (result.returncode, result.stdout) == (0, "no differences found\n")
    result = cenote("check", "--json", **url)
    assert (result.returncode, json.loads(result.stdout)) == (0, [])


async def test_a_read_only_role_can_check(engine: AsyncEngine) -> None:
    """A check reads the catalogue and the version table, and writes nothing."""
    await execute(engine, "DROP ROLE IF EXISTS cenote_reader", "CREATE ROLE cenote_reader LOGIN")
    await execute(
        engine,
        "GRANT SELECT ON cenote_chunks_alembic_version TO cenote_reader",
    )
    async with engine.connect() as connection:
        await connection.execute(text("SET ROLE cenote_reader"))
        await connection.commit()
        assert await schema.check(connection, SchemaConfig(dimensions=4)) == []
        await connection.execute(text("RESET ROLE"))
        await connection.commit()
    await execute(engine, "DROP OWNED BY cenote_reader", "DROP ROLE cenote_reader")
