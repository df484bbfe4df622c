"""Checks of the schema: each kind of finding, its hint, and the command `cenote check`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, get_args

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.commands import REPOSITORY, cenote
from support.database import execute

from cenote import ChunkMixin, PgVectorStore, SchemaConfig, schema
from cenote.inspection.checks.findings import Finding, FindingKind
from cenote.maintenance import set_row_security
from cenote.testing import embedded

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
        ["cenote_chunks", "missing", "chunk table", "cenote migrate -x dimensions=4 upgrade head"],
    ),
    (
        "not_a_chunk_table",
        ["ALTER TABLE cenote_chunks DROP COLUMN embedding"],
        {},
        ["cenote_chunks", "no column embedding", "a chunk table", "another table name"],
    ),
    (
        "revision_missing",
        ["DELETE FROM cenote_chunks_alembic_version"],
        {},
        ["cenote_chunks", "no revision", "cenote_0004", "cenote migrate stamp cenote_0004"],
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
            "ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks, ADD CONSTRAINT"
            " pk_cenote_chunks PRIMARY KEY (namespace, id)",
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
        ["ix_cenote_chunks_metadata", "jsonb_ops", "jsonb_path_ops", "run DROP INDEX"],
    ),
    (
        "hnsw_parameters",
        [],
        {"hnsw_m": 8},
        ["ix_cenote_chunks_embedding", "m=16", "m=8", "set hnsw_m=16 if that is what you want, or"],
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
        ["cenote_chunks", "no column embedding", "a chunk table", "another table name"],
    ),
    (
        "not_a_chunk_table",
        ["DROP TABLE cenote_chunks", "CREATE SEQUENCE cenote_chunks"],
        {},
        ["cenote_chunks", "no column embedding", "a chunk table", "another table name"],
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


# -- hints

KEPT = [embedded("a", [1, 0, 0, 0]), embedded("b", [0, 1, 0, 0], document_id="e")]
"""Chunks that no command of a hint may lose."""

TOO_OLD = [
    *(
        statement
        for type_ in ("integer", "real", "double precision", "numeric")
        for statement in (
            f"ALTER EXTENSION vector DROP CAST ({type_}[] AS sparsevec)",
            f"DROP CAST ({type_}[] AS sparsevec)",
            f"ALTER EXTENSION vector DROP FUNCTION array_to_sparsevec({type_}[], integer, boolean)",
            f"DROP FUNCTION array_to_sparsevec({type_}[], integer, boolean)",
        )
    ),
    "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'",
]
"""Statements that undo pgvector's update from 0.7.4 to 0.8.0; later ones contain no statement."""

HINTS: list[tuple[str, list[str], dict[str, Any], bool]] = [
    # kind, damage, settings, and whether the rows survive the damage
    ("extension_missing", ["DROP EXTENSION vector CASCADE", "DROP TABLE cenote_chunks"], {}, False),
    ("extension_too_old", TOO_OLD, {}, True),
    ("table_missing", ["DROP TABLE cenote_chunks"], {}, False),
    (
        "table_missing",
        ["DROP TABLE cenote_chunks", "DROP TABLE cenote_chunks_alembic_version"],
        {},
        False,
    ),
    ("revision_missing", ["DELETE FROM cenote_chunks_alembic_version"], {}, True),
    (
        "revision_behind",
        ["UPDATE cenote_chunks_alembic_version SET version_num = 'cenote_0002'"],
        {},
        True,
    ),
    (
        "key",
        [
            "ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks,"
            " ADD CONSTRAINT mine PRIMARY KEY (id, namespace)"
        ],
        {},
        True,
    ),
    ("key", ["ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks"], {}, True),
    ("partitions", [], {"partitions": 4}, True),
    ("partitions", [], {"partitions": 0}, True),
    ("partitions", ["ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p07"], {}, True),
    ("partitions", ["DROP TABLE cenote_chunks_p07, cenote_chunks_p09"], {}, False),
    (
        "partitions",
        [
            "ALTER TABLE cenote_chunks DETACH PARTITION cenote_chunks_p01",
            "DROP TABLE cenote_chunks_p02",
        ],
        {},
        False,
    ),
    ("text_search", [], {"text_search": "spanish, english"}, True),
    ("row_security", [], {"row_security": True}, True),
    (
        "operator_class",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks "
            + HNSW.replace("cosine", "l2"),
        ],
        {},
        True,
    ),
    (
        "operator_class",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks"
            " USING ivfflat (embedding vector_cosine_ops)",
        ],
        {},
        True,
    ),
    (
        "operator_class",
        [
            "DROP INDEX ix_cenote_chunks_metadata",
            "CREATE INDEX ix_cenote_chunks_metadata ON cenote_chunks USING gin (metadata)",
        ],
        {},
        True,
    ),
    ("metric", ["COMMENT ON TABLE cenote_chunks IS 'ours; cenote: metric=l2'"], {}, True),
    (
        "operator_class",
        ["COMMENT ON TABLE cenote_chunks IS 'ours'"],
        {"index": "none"},
        True,
    ),
    ("hnsw_parameters", [], {"hnsw_m": 8, "hnsw_ef_construction": 32}, True),
    ("index_missing", ["DROP INDEX ix_cenote_chunks_embedding"], {}, True),
    ("index_missing", ["DROP INDEX ix_cenote_chunks_metadata"], {}, True),
    ("index_missing", ["DROP INDEX ix_cenote_chunks_namespace_document_id"], {}, True),
    (
        "index_invalid",
        [
            "DROP INDEX ix_cenote_chunks_embedding",
            "CREATE INDEX ix_cenote_chunks_embedding ON ONLY cenote_chunks " + HNSW,
        ],
        {},
        True,
    ),
    (
        "index_left_over",
        [f"CREATE INDEX cenote_chunks_p03_embedding_idx_new ON cenote_chunks_p03 {HNSW}"],
        {},
        True,
    ),
    (
        "recall_outdated",
        [
            "INSERT INTO cenote_chunks SELECT 'large', 'c' || n, 'd', '', 0, '{}', '',"
            " ARRAY[random(), random(), random(), random()]::real[]::vector, 'm'"
            " FROM generate_series(1, 1500) n",
            "COMMENT ON INDEX ix_cenote_chunks_embedding IS 'cenote recall: "
            + json.dumps({"ef_search": 100, "recall": 1.0, "rows": 0, "date": "2026-01-01"})
            + "'",
            "ANALYZE cenote_chunks",
        ],
        {},
        True,
    ),
]

WITHOUT_COMMAND = {
    "not_a_chunk_table": "the other table has to be renamed by hand",
    "revision_ahead": "a newer cenote has to be installed",
    "dimensions": "a setting has to change",
    "column_type": "a setting has to change",
    "columns": "the columns have to be altered by hand",
    "distribution": "needs a cluster: tests/maintenance/test_citus.py",
    "shards_uneven": "needs a cluster",
    "shard_unreachable": "needs a cluster",
}
"""Kinds of findings whose hints have no command that runs here."""


def commands_of(hint: str) -> list[str]:
    """Return the commands of a hint, in order. Of alternatives, it returns the last."""
    _, _, alternative = hint.partition("; or, if a revision of your application")
    hint = hint.removesuffix("; or, if a revision of your application" + alternative)
    sentences = hint.split(". run " if ". run " in hint else ". ")
    parts = [part.rpartition("run ")[2] for part in sentences]
    return [command for part in parts for command in re.split(r"; |, then ", part)]


def run_command(command: str, dsn: str, settings: dict[str, Any]) -> None:
    """Run a cenote command of a hint as a shell would."""
    arguments = shlex.split(command.replace("dimensions=...", "dimensions=4"))
    assert arguments[0] == "cenote", command
    result = cenote(*arguments[1:], CENOTE_DATABASE_URL=dsn)
    assert result.returncode == 0, command + result.stdout + result.stderr


def test_every_kind_of_finding_has_its_hint_tested() -> None:
    """Each kind is in `HINTS`, or `WITHOUT_COMMAND` says why not."""
    assert {case[0] for case in HINTS} | WITHOUT_COMMAND.keys() == set(get_args(FindingKind))


@pytest.mark.parametrize(
    ("kind", "damage", "settings", "keeps_rows"), HINTS, ids=lambda value: str(value)[:30]
)
async def test_every_hint_mends_its_state(
    engine: AsyncEngine,
    dsn: str,
    kind: str,
    damage: list[str],
    settings: dict[str, Any],
    keeps_rows: bool,
) -> None:
    """Every command of a hint runs, the finding disappears, and no row is lost."""
    await PgVectorStore(engine, 4).upsert(KEPT, "n")
    await execute(engine, *damage)
    store = PgVectorStore(engine, 4, **settings)
    findings = await store.check_schema()
    assert kind in {finding.kind for finding in findings}
    for finding in findings:
        for command in commands_of(finding.hint):
            if command.startswith("cenote "):
                run_command(command, dsn, settings)
            else:
                await execute(engine, command)
    assert await store.check_schema() == []
    rows = [row async for row in store.get_all_chunks("n")]
    assert len(rows) == (len(KEPT) if keeps_rows else 0) or kind == "partitions"


async def test_a_key_that_cannot_be_mended_is_kept(engine: AsyncEngine) -> None:
    """With duplicate keys, the statement fails and leaves the present key in place."""
    await execute(
        engine,
        "ALTER TABLE cenote_chunks DROP CONSTRAINT pk_cenote_chunks,"
        " ADD CONSTRAINT mine PRIMARY KEY (namespace, id, position)",
    )
    store = PgVectorStore(engine, 4)
    await execute(
        engine,
        *(
            "INSERT INTO cenote_chunks VALUES"
            f" ('n', 'a', 'd', '', {position}, '{{}}', '', '[1,0,0,0]', 'm')"
            for position in (0, 1)
        ),
    )
    (finding,) = await store.check_schema()
    with pytest.raises(IntegrityError):
        await execute(engine, *commands_of(finding.hint))
    assert await store.check_schema() == [finding]


async def test_row_security_is_not_taken_away_carelessly(engine: AsyncEngine) -> None:
    """If a setting is off and the table is secured, the first advice is to change the setting."""
    await set_row_security(engine, SchemaConfig(dimensions=4), on=True)
    (finding,) = await PgVectorStore(engine, 4, row_security=False).check_schema()
    assert finding.hint.startswith("set row_security=on, or, if nothing relies on it any more, run")


async def test_partitions_that_are_not_hash_partitions(engine: AsyncEngine) -> None:
    """A table that is partitioned otherwise is reported without a statement."""
    await execute(
        engine,
        "CREATE TABLE other (LIKE cenote_chunks) PARTITION BY LIST (namespace)",
        "CREATE TABLE other_a PARTITION OF other FOR VALUES IN ('a')",
        "CREATE TABLE other_rest PARTITION OF other DEFAULT",
    )
    findings = await PgVectorStore(engine, 4, table_name="other").check_schema()
    assert {finding.kind: finding.hint for finding in findings}["partitions"] == (
        "attach its partitions"
    )


async def test_partitions_of_several_moduli(engine: AsyncEngine) -> None:
    """Only the statement for what is missing is printed."""
    config = SchemaConfig(dimensions=4, table_name="other", partitions=4)
    await schema.upgrade(engine, config)
    await execute(
        engine,
        "DROP TABLE other_p01, other_p03",
        "CREATE TABLE other_odd PARTITION OF other FOR VALUES WITH (MODULUS 8, REMAINDER 1)",
        "CREATE TABLE other_p03 PARTITION OF other FOR VALUES WITH (MODULUS 4, REMAINDER 3)",
    )
    store = PgVectorStore(engine, 4, table_name="other")
    (finding,) = [item for item in await store.check_schema() if item.kind == "partitions"]
    await execute(engine, *commands_of(finding.hint))
    assert [item.kind for item in await store.check_schema()] == []


# -- tables of an application


class Base(DeclarativeBase):
    pass


class Passage(ChunkMixin, Base, dimensions=4, partitions=2, hnsw_m=8):
    __tablename__ = "passages"
    language: Mapped[str] = mapped_column(server_default="en")


class Wider(ChunkMixin, Base, dimensions=5, partitions=2, text_search="english"):
    __tablename__ = "wider"


HARMFUL = ("upgrade head", "stamp", "downgrade", "cenote migrate", "reindex --m 16")


@pytest.mark.parametrize("history", [True, False])
async def test_a_table_of_the_applications_history(
    empty_engine: AsyncEngine, empty_dsn: str, history: bool
) -> None:
    """Without a model, nothing is found and a note says why; no command would take it over."""
    await _create_passages(empty_engine, history=history)
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    result = cenote("check", "-x", "table_name=passages", **url)
    assert (result.returncode, result.stdout) == (0, "no differences found\n"), result.stderr
    assert "table passages belongs to your application" in result.stderr
    assert "--model" in result.stderr
    result = cenote("check", "--json", "-x", "table_name=passages", **url)
    assert json.loads(result.stdout) == []
    store = PgVectorStore(empty_engine, 4, table_name="passages", hnsw_m=8, partitions=2)
    assert await store.check_schema() == []
    await execute(
        empty_engine,
        "DROP INDEX ix_passages_embedding",
        "ALTER TABLE passages DETACH PARTITION passages_p01",
    )
    result = cenote("check", "-x", "table_name=passages", "-x", "text_search=english", **url)
    assert result.returncode == 1
    assert "index_missing" not in result.stderr
    assert "your own migrations" in result.stdout  # for full text
    for words in ("upgrade head", "stamp", "downgrade", "cenote migrate"):
        assert words not in result.stdout.replace("alembic upgrade head", "")


async def test_commands_that_name_the_table(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """An error names a command for this table, not for the default one; no note on other tables."""
    await _create_passages(empty_engine, history=False)
    await execute(empty_engine, "CREATE TABLE numbers (n int)")
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    result = cenote("migrate", "-x", "table_name=passages", "upgrade", "head", **url)
    assert result.returncode != 0
    assert "cenote migrate -x table_name=passages stamp head" in result.stdout + result.stderr
    result = cenote("check", "-x", "table_name=numbers", **url)
    assert "it has no column embedding of a fixed length" in result.stdout
    assert "belongs to your application" not in result.stderr


async def test_a_check_without_the_tables_name(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """If the table has another name or schema, the hint says which, before any command."""
    await _create_passages(empty_engine, history=False)
    (finding,) = await PgVectorStore(empty_engine, 4).check_schema()
    assert finding.hint.startswith("pass -x table_name=passages if that is the table; otherwise")
    await execute(empty_engine, "CREATE SCHEMA app", "ALTER TABLE passages SET SCHEMA app")
    (finding,) = await PgVectorStore(empty_engine, 4).check_schema()
    assert finding.hint.startswith("pass -x table_name=passages -x schema=app if that is the table")


async def _create_passages(engine: AsyncEngine, *, history: bool) -> None:
    passages = [Base.metadata.tables["passages"]]
    async with engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all, tables=passages)
    if history:
        await execute(engine, "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)")


async def test_check_with_a_model(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """--model reads the settings from the model; every hint leaves the table to the application."""
    url = {"CENOTE_DATABASE_URL": empty_dsn, "PYTHONPATH": str(REPOSITORY / "tests")}

    def check(name: str, *arguments: str) -> CompletedProcess[str]:
        model = f"schema.test_checks:{name}"
        return cenote("check", "--model", model, *arguments, cwd=REPOSITORY / "tests", **url)

    result = check("Passage")
    assert result.returncode == 1
    assert "table passages: it is missing" in result.stdout
    assert "your own migrations" in result.stdout
    await _create_passages(empty_engine, history=True)
    result = check("Passage")
    assert (result.returncode, result.stdout) == (0, "no differences found\n"), result.stderr
    assert result.stderr == ""
    await execute(empty_engine, "DROP INDEX ix_passages_embedding")
    result = check("Passage")
    assert "cenote reindex -x table_name=passages --m 8" in result.stdout
    await execute(empty_engine, "ALTER TABLE passages RENAME TO wider")
    result = check("Wider", "--json")
    kinds = {finding["kind"]: finding["hint"] for finding in json.loads(result.stdout)}
    assert {"dimensions", "text_search"} <= kinds.keys()
    assert "your own migrations" in kinds["text_search"]
    result = check("Passage", "-x", "table_name=other")
    assert result.returncode == 2
    assert "table_name differs from the setting of Passage" in result.stderr


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("passages", "must be a module and a class"),
        ("nowhere.at.all:Passage", "there is no module 'nowhere'"),
        ("json:Passage", "has no class 'Passage'"),
        ("json:JSONEncoder", "must be a mapped class with ChunkMixin"),
        ("broken:Passage", "importing broken raised ValueError"),
    ],
)
def test_models_that_cannot_be_checked(tmp_path: Path, dsn: str, model: str, message: str) -> None:
    """The error is one line, exits with 2, and does not quote the module's error."""
    (tmp_path / "broken.py").write_text("raise ValueError('s3cret')")
    result = cenote("check", "--model", model, cwd=tmp_path, CENOTE_DATABASE_URL=dsn)
    assert result.returncode == 2
    assert message in result.stderr
    assert "s3cret" not in result.stderr
    assert "Traceback" not in result.stderr


async def test_an_empty_version_table_beside_an_application(engine: AsyncEngine) -> None:
    """After a downgrade, the table may be the application's: no command would take it over."""
    await execute(
        engine,
        "DELETE FROM cenote_chunks_alembic_version",
        "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)",
    )
    store = PgVectorStore(engine, 4)
    (finding,) = await store.check_schema()
    assert finding.kind == "revision_missing"
    assert not any(words in finding.hint for words in HARMFUL)
    await execute(
        engine, "DROP TABLE alembic_version", "ALTER TABLE cenote_chunks ADD COLUMN mine text"
    )
    assert await store.check_schema() == [finding]


async def test_a_missing_table_beside_an_application(empty_engine: AsyncEngine) -> None:
    """The application's own migrations are named before the command that creates a table."""
    await execute(
        empty_engine,
        "CREATE EXTENSION vector",
        "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)",
    )
    (finding,) = await PgVectorStore(empty_engine, 4).check_schema()
    assert finding.hint.startswith("if a model of your application has this table, run your own")
    assert finding.hint.endswith("otherwise run cenote migrate -x dimensions=4 upgrade head")


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
