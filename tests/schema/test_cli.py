"""The command `cenote`: the sources of its settings, and its errors."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.commands import cenote, output_of
from support.database import execute, scalar, tables

from cenote import ConfigurationError, PgVectorStore, SchemaConfig, schema
from cenote.maintenance import reindex


async def test_settings_in_any_position(empty_engine: AsyncEngine, empty_dsn: str) -> None:
    """-x is accepted before the command, after it, and after its arguments."""
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    output_of(cenote("migrate", "upgrade", "head", "-x", "dimensions=4", "-xpartitions=2", **url))
    output_of(cenote("-x", "partitions=2", "check", **url))
    output_of(cenote("check", "-x", "partitions=2", **url))
    assert cenote("-x", "partitions=3", "check", **url).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["migrate", "-x", "table_name", "downgrade", "base"],
            "-x table_name has no value; write table_name=",
        ),
        (["check", "-x", "table_name"], "-x table_name has no value; write -x table_name="),
        (["migrate", "-x", "dimension=4", "upgrade", "head"], "-x dimension is not a setting"),
        (["migrate"], "a command is required: one of"),
        (["migrate", "revision", "-m", "mine"], "the revisions are cenote's own"),
        (["check", "-c", "nowhere.ini"], "there is no file nowhere.ini"),
        (["repartition", "1"], "partitions must be an integer from 2 to 1,024"),
        (["reindex", "--m", "1"], "hnsw_m must be an integer"),
        ([], "the following arguments are required: command"),
    ],
)
def test_invalid_command_lines(arguments: list[str], message: str, dsn: str) -> None:
    """The error is one line with a hint, and the table is unchanged."""
    result = cenote(*arguments, CENOTE_DATABASE_URL=dsn)
    assert result.returncode not in (0, 1)
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    output_of(cenote("check", CENOTE_DATABASE_URL=dsn))


@pytest.mark.parametrize("command", [["check"], ["migrate", "current"]])
@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        (
            "a.ini",
            b"[cenote]\ndatabase_url = postgresql://u:s3cr%40et@localhost:1/db\n",
            "write % as %%",
        ),
        (
            "a.ini",
            b"[alembic]\nsqlalchemy.url = postgresql://u:s3cr%40et@localhost:1/db\n",
            "write % as %%",
        ),
        ("a.ini", b"postgresql://u:s3cret@localhost:1/db\n", "check its syntax"),
        (
            "pyproject.toml",
            b"[tool.alembic]\ncenote = { database_url = 's3cret\n",
            "check its syntax",
        ),
        ("pyproject.toml", b"[tool.alembic]\ncenote = 's3cret\xff'\n", "save it as UTF-8"),
    ],
)
def test_invalid_configuration_files(
    tmp_path: Path, name: str, text: bytes, hint: str, command: list[str]
) -> None:
    """The error is one line with the file and a hint, and without any part of a password."""
    (tmp_path / name).write_bytes(text)
    result = cenote(*command, "-c", name, cwd=tmp_path)
    output = result.stdout + result.stderr
    assert result.returncode not in (0, 1)
    assert f"{name} cannot be read" in output
    assert output.rstrip().endswith(hint)
    assert "Traceback" not in output
    assert "s3cr" not in output


async def test_settings_in_configuration_files(
    tmp_path: Path, empty_engine: AsyncEngine, empty_dsn: str
) -> None:
    """0 is a value of a setting, and so is a value that equals one in [DEFAULT]."""
    (tmp_path / "pyproject.toml").write_text(
        "[tool.alembic.cenote]\ndimensions = 4\npartitions = 0\n"
    )
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    command = ["migrate", "upgrade", "head"]
    output_of(cenote(*command, "-c", "pyproject.toml", cwd=tmp_path, **url))
    plain = "SELECT relkind = 'r' FROM pg_class WHERE relname = 'cenote_chunks'"
    assert await scalar(empty_engine, plain)
    (tmp_path / "a.ini").write_text(
        "[DEFAULT]\ntable_name = other\n[cenote]\ndimensions = 4\ntable_name = other\n"
    )
    output_of(cenote(*command, "-c", "a.ini", cwd=tmp_path, **url))
    assert "other" in await tables(empty_engine)


def test_a_misspelt_environment_variable(dsn: str) -> None:
    """A warning suggests the correct name; variables unlike any setting are ignored."""
    environ = {"CENOTE_PARTITION": "4", "CENOTE_COLOUR": "blue"}
    result = cenote("check", CENOTE_DATABASE_URL=dsn, **environ)
    assert "CENOTE_PARTITION is not a setting; did you mean CENOTE_PARTITIONS?" in result.stderr
    assert "COLOUR" not in result.stderr


async def test_settings_that_contradict_the_table(engine: AsyncEngine, dsn: str) -> None:
    """The settings are rejected before a version table or a schema is changed."""
    url = {"CENOTE_DATABASE_URL": dsn}
    result = cenote("migrate", "-x", "dimensions=9", "upgrade", "head", **url)
    assert result.returncode != 0
    assert "is vector(4), expected vector(9)" in result.stdout
    result = cenote("migrate", "-x", "schema=typo", "downgrade", "base", **url)
    assert result.returncode != 0
    assert "there is no schema 'typo'" in result.stdout
    assert await scalar(engine, "SELECT to_regnamespace('typo')") is None
    assert cenote("migrate", "-x", "schema=typo", "check", **url).returncode != 0
    assert await scalar(engine, "SELECT to_regnamespace('typo')") is None
    assert await schema.current(engine, SchemaConfig(dimensions=4)) == "cenote_0004"


async def test_a_schema_translate_map(engine: AsyncEngine) -> None:
    """Checks read the schema that the map translates to; changes through a map are rejected."""
    await schema.upgrade(engine, SchemaConfig(dimensions=4, schema="tenant", partitions=2))
    translated = create_async_engine(
        engine.url, execution_options={"schema_translate_map": {None: "tenant", "x": None}}
    )
    config = SchemaConfig(dimensions=4)
    store = PgVectorStore(translated, 4, partitions=2)
    assert await store.check_schema() == []
    assert await schema.current(translated, config) == "cenote_0004"
    assert await schema.check(translated, SchemaConfig(dimensions=4, schema="x")) == []
    await execute(engine, "DROP INDEX tenant.ix_cenote_chunks_embedding")
    (finding,) = await store.check_schema()
    assert "cenote reindex -x schema=tenant" in finding.hint
    async with engine.connect() as connection:
        await connection.execution_options(schema_translate_map={None: "tenant"})
        assert await schema.check(connection, config) == [finding]
        options = connection.sync_connection.get_execution_options()  # type: ignore[union-attr]
        assert options["schema_translate_map"] == {None: "tenant"}
    for call in (schema.upgrade, reindex):
        with pytest.raises(ConfigurationError, match="changed through a schema_translate_map"):
            await call(translated, config)
    await translated.dispose()


async def test_a_connection_in_autocommit_mode(dsn: str, engine: AsyncEngine) -> None:
    """After a check, a connection of an AUTOCOMMIT engine still commits each statement."""
    autocommit = create_async_engine(engine.url, isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        assert await schema.check(connection, SchemaConfig(dimensions=4)) == []
        await connection.execute(text("CREATE TABLE mine ()"))
    await autocommit.dispose()
    assert "mine" in await tables(engine)


def test_an_invalid_argument_of_the_driver(dsn: str) -> None:
    """The error is one line that names the connection string."""
    url = make_url(dsn).update_query_dict({"statement_cache_size": "-4"})
    for command in (["check"], ["migrate", "current"]):
        result = cenote(*command, CENOTE_DATABASE_URL=url.render_as_string(False))
        assert result.returncode not in (0, 1)
        assert "parameter 'statement_cache_size' must be a number" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_version() -> None:
    """--version prints the version of the installed package."""
    assert output_of(cenote("--version")) == f"cenote {version('cenote')}\n"
