"""An application with its own base and migrations.

Two tests use cenote from an installed wheel, in processes of their own. The others use forks, which
take less than half the time.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from support import commands
from support.commands import output_of, run
from support.database import run_script, tables

from cenote import PgVectorStore, SchemaConfig, schema
from cenote.testing import embedded, found

Command = Callable[..., str]


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """Copy the sample application of tests/application into a new folder."""
    folder = tmp_path / "application"
    shutil.copytree(
        Path(__file__).parents[1] / "application",
        folder,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return folder


@pytest.fixture
def environ(empty_dsn: str) -> dict[str, str]:
    """Return the environment variables with the database URLs."""
    url = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    return {
        "CENOTE_DATABASE_URL": empty_dsn,
        "DATABASE_URL": url.render_as_string(hide_password=False),
    }


@pytest.fixture
def alembic(application: Path, environ: dict[str, str]) -> Command:
    """Return a function that runs Alembic in the application's folder."""

    def command(*arguments: str) -> str:
        return output_of(commands.alembic(*arguments, cwd=application, **environ))

    return command


@pytest.fixture
def cenote(application: Path, environ: dict[str, str]) -> Command:
    """Return a function that runs the command `cenote` in the application's folder."""

    def command(*arguments: str) -> str:
        return output_of(commands.cenote(*arguments, cwd=application, **environ))

    return command


@pytest.fixture
def installed_alembic(application: Path, environ: dict[str, str], installed: Path) -> Command:
    """Return a function that runs Alembic with the installed wheel."""

    def command(*arguments: str) -> str:
        program = [sys.executable, "-m", "alembic", *arguments]
        return output_of(run(*program, cwd=application, PYTHONPATH=str(installed), **environ))

    return command


@pytest.fixture
def installed_cenote(application: Path, environ: dict[str, str], installed: Path) -> Command:
    """Return a function that runs the command `cenote` of the installed wheel."""

    def command(*arguments: str) -> str:
        program = [str(installed / "bin" / "cenote"), *arguments]
        return output_of(run(*program, cwd=application, PYTHONPATH=str(installed), **environ))

    return command


def new_revision(application: Path, before: set[Path]) -> str:
    """Return the text of the only revision that is not among `before`."""
    (file,) = revisions(application) - before
    return file.read_text()


def revisions(application: Path) -> set[Path]:
    """Return the files of the application's revisions."""
    return set((application / "migrations" / "versions").glob("*.py"))


def run_failing(command: Command, *arguments: str) -> str:
    """Return the output of a command that must fail."""
    with pytest.raises(AssertionError) as error:
        command(*arguments)
    return str(error.value)


ALL_TABLES = ["alembic_version", "cenote_chunks", "cenote_chunks_alembic_version"]
ALL_TABLES += ["documents", "notes"]


async def test_a_chunk_table_in_the_applications_history(
    application: Path,
    installed_alembic: Command,
    installed_cenote: Command,
    empty_engine: AsyncEngine,
) -> None:
    """Upgrade, check, autogenerate, downgrade and --sql work with a generated revision."""
    alembic, cenote = installed_alembic, installed_cenote
    before = revisions(application)
    cenote("host-revision", "-x", "dimensions=4")
    written = new_revision(application, before)
    assert "dimensions=4," in written
    assert "partitions=16," in written
    alembic("upgrade", "head")
    before = revisions(application)
    alembic("revision", "--autogenerate", "-m", "notes")
    notes = new_revision(application, before)
    assert "'notes'" in notes
    assert notes.count("op.create") == 1
    assert "op.drop_table('notes')" in notes
    assert notes.count("op.drop") == 1
    alembic("upgrade", "head")
    assert "No new upgrade operations" in alembic("check")
    assert len(alembic("heads").splitlines()) == 1
    assert cenote("check", "-x", "dimensions=4", "-x", "partitions=16") == "no differences found\n"
    assert cenote("migrate", "current") == "cenote_0004 (head)\n"
    cenote("migrate", "upgrade", "head")  # skips the revisions that the application ran
    assert await tables(empty_engine) == ALL_TABLES

    up = alembic("upgrade", "base:head", "--sql")
    down = alembic("downgrade", "head:base", "--sql")
    alembic("downgrade", "base")
    assert await tables(empty_engine) == ["alembic_version"]
    await run_script(empty_engine, "DROP TABLE alembic_version;" + up)
    assert "No new upgrade operations" in alembic("check")
    assert cenote("check") == "no differences found\n"
    await run_script(empty_engine, down)
    assert await tables(empty_engine) == ["alembic_version"]


async def test_an_existing_table_is_kept(
    application: Path, alembic: Command, cenote: Command, empty_engine: AsyncEngine
) -> None:
    """The application's revision keeps a table that `cenote migrate` has created."""
    cenote("migrate", "-x", "dimensions=4", "upgrade", "head")
    await PgVectorStore(empty_engine, 4).upsert([embedded("a")], "n")
    cenote("host-revision", "-x", "dimensions=4")
    alembic("upgrade", "head")
    assert await found(PgVectorStore(empty_engine, 4), [1, 0, 0, 0], "n") == ["a"]
    assert cenote("check") == "no differences found\n"


async def test_a_later_release_needs_one_more_revision(
    application: Path, alembic: Command, cenote: Command, empty_engine: AsyncEngine
) -> None:
    """With `--from`, `host-revision` writes a revision for the newer revisions of cenote only."""
    cenote("host-revision", "-x", "dimensions=4", "--to", "cenote_0001")
    alembic("upgrade", "head")
    assert cenote("migrate", "current") == "cenote_0001\n"
    before = revisions(application)
    cenote("host-revision", "--from", "cenote_0001", "-x", "text_search=spanish")
    written = new_revision(application, before)
    assert 'upgrade_chunks(CHUNKS, start="cenote_0001", to="cenote_0004")' in written
    alembic("upgrade", "head")
    assert cenote("migrate", "current") == "cenote_0004 (head)\n"
    await PgVectorStore(empty_engine, 4, text_search="spanish").search_text("gatos", "n")


async def test_existing_tables_with_other_dimensions_are_rejected(
    application: Path, alembic: Command, cenote: Command, environ: dict[str, str]
) -> None:
    """The upgrade fails, and Alembic does not record the application's revision."""
    cenote("migrate", "-x", "dimensions=5", "upgrade", "head")
    cenote("host-revision", "-x", "dimensions=4")
    result = commands.alembic("upgrade", "head", cwd=application, **environ)
    assert result.returncode != 0
    assert "is vector(5), expected vector(4)" in result.stdout
    assert "Traceback" not in result.stderr
    assert alembic("current") == ""  # all revisions ran in one transaction


def test_dimensions_and_an_ini_file_are_required(
    application: Path, environ: dict[str, str]
) -> None:
    """Without dimensions or ini file, the error names the option or the missing file."""
    result = commands.cenote("host-revision", cwd=application, **environ)
    assert result.returncode == 2
    assert "-x dimensions=384" in result.stderr
    arguments = ["host-revision", "-x", "dimensions=4", "-c", "nowhere.ini"]
    result = commands.cenote(*arguments, cwd=application, **environ)
    assert result.returncode == 2
    assert "there is no file nowhere.ini" in result.stderr


def test_a_second_revision_for_a_table_is_rejected(application: Path, cenote: Command) -> None:
    """The downgrade of a second revision for the same table would drop the table too early."""
    cenote("host-revision", "-x", "dimensions=4")
    output = run_failing(cenote, "host-revision", "-x", "dimensions=4")
    assert "creates table 'cenote_chunks' already" in output
    cenote("host-revision", "-x", "dimensions=4", "-x", "table_name=other")
    assert len(revisions(application)) == 3
    for option in ("--from", "--to"):
        output = run_failing(cenote, "host-revision", "-x", "dimensions=4", option, "cenote_9")
        assert "cenote's revisions: " in output
        assert "Traceback" not in output


def test_no_revision_is_written_into_cenotes_folder(application: Path, cenote: Command) -> None:
    """`host-revision` rejects an ini file whose script_location is cenote's own folder."""
    (application / "alembic.ini").write_text("[alembic]\nscript_location = cenote:migrations\n")
    output = run_failing(cenote, "host-revision", "-x", "dimensions=4")
    assert "script_location of this configuration is cenote's own" in output


def test_settings_come_from_the_ini_file_and_the_live_table(
    application: Path, cenote: Command
) -> None:
    """`host-revision` finds its settings in the same places as all other commands."""
    cenote("migrate", "-x", "dimensions=4", "-x", "partitions=0", "upgrade", "head")
    with (application / "alembic.ini").open("a") as file:
        file.write("[cenote]\nhnsw_m = 8\n")
    before = revisions(application)
    cenote("host-revision")
    written = new_revision(application, before)
    for line in ("dimensions=4,", "partitions=0,", "hnsw_m=8,"):
        assert line in written


def test_a_distributed_table_in_the_applications_history(
    application: Path, alembic: Command, cenote: Command
) -> None:
    """The revision contains the settings and distributes the table; the extension is required."""
    before = revisions(application)
    settings = ["dimensions=4", "distribution=citus", "colocate_with=documents"]
    cenote("host-revision", *(word for setting in settings for word in ("-x", setting)))
    frozen = new_revision(application, before)
    assert all(setting in frozen for setting in ('distribution="citus"', "colocate_with="))
    script = alembic("upgrade", "head", "--sql")
    assert "create_distributed_table(CAST('cenote_chunks' AS REGCLASS), 'namespace'" in script
    assert "CREATE EXTENSION citus" in run_failing(alembic, "upgrade", "head")


async def test_autogenerate_with_another_schema(
    application: Path, alembic: Command, cenote: Command, empty_engine: AsyncEngine
) -> None:
    """Autogenerate works with include_schemas, even if a foreign key lists columns in reverse."""
    app = (application / "app.py").read_text()
    name = '__tablename__ = "cenote_chunks"'
    app = app.replace(name, name + '\n    __table_args__ = {"schema": "vec"}')
    app = app.replace(
        '["namespace", "chunk_id"],\n            ["cenote_chunks.namespace", "cenote_chunks.id"]',
        '["chunk_id", "namespace"],\n'
        '            ["vec.cenote_chunks.id", "vec.cenote_chunks.namespace"]',
    )
    assert app.count("vec.") == 2
    (application / "app.py").write_text(app)
    env = (application / "migrations" / "env.py").read_text()
    assert env.count("**hooks()") == 2
    env = env.replace("**hooks()", "include_schemas=True, **hooks()")
    (application / "migrations" / "env.py").write_text(env)
    cenote("host-revision", "-x", "dimensions=4", "-x", "schema=vec")
    alembic("upgrade", "head")
    before = revisions(application)
    alembic("revision", "--autogenerate", "-m", "notes")
    assert new_revision(application, before).count("op.create") == 1
    alembic("upgrade", "head")
    assert "No new upgrade operations" in alembic("check")
    assert cenote("check", "-x", "schema=vec") == "no differences found\n"
    assert cenote("migrate", "-x", "schema=vec", "check").startswith("No new upgrade")
    alembic("downgrade", "base")
    assert await tables(empty_engine) == ["alembic_version"]


async def test_cenotes_folder_in_version_locations_is_rejected(
    application: Path, installed_alembic: Command, empty_engine: AsyncEngine
) -> None:
    """The error says to remove the folder, online and offline, and no table is created."""
    ini = application / "alembic.ini"
    folders = "%(here)s/migrations/versions cenote:migrations/versions"
    ini.write_text(ini.read_text() + f"version_locations = {folders}\npath_separator = space\n")
    for sql in ([], ["--sql"]):
        output = run_failing(installed_alembic, "upgrade", "heads", *sql)
        assert "remove cenote's folder from version_locations" in output
        assert "Traceback" not in output
    assert "cenote_chunks" not in await tables(empty_engine)


async def test_autogenerate_detects_changed_indexes(
    application: Path, alembic: Command, cenote: Command, empty_engine: AsyncEngine
) -> None:
    """Autogenerate compares HNSW parameters and operator classes, which Alembic alone ignores."""
    cenote("host-revision", "-x", "dimensions=4", "-x", "hnsw_m=8")
    alembic("upgrade", "head")
    async with empty_engine.begin() as connection:
        await connection.execute(text("DROP INDEX ix_cenote_chunks_metadata"))
        await connection.execute(
            text("CREATE INDEX ix_cenote_chunks_metadata ON cenote_chunks USING gin (metadata)")
        )
    before = revisions(application)
    alembic("revision", "--autogenerate", "-m", "notes and indexes")
    written = new_revision(application, before)
    assert written.count("op.create_index") == 4  # two in upgrade(), two in downgrade()
    assert "'m': 16" in written
    alembic("upgrade", "head")
    assert "No new upgrade operations" in alembic("check")
    assert cenote("check") == "no differences found\n"
    alembic("downgrade", "-1")
    assert "m=8" in run_failing(cenote, "check")


async def test_autogenerate_warns_of_changed_languages(
    application: Path, alembic: Command, environ: dict[str, str], empty_engine: AsyncEngine
) -> None:
    """No revision can change the languages, so the warning names `cenote text-search`."""
    alembic("upgrade", "head")
    await schema.upgrade(empty_engine, SchemaConfig(dimensions=4, text_search="spanish"))
    app = application / "app.py"
    english = app.read_text().replace("dimensions=4", 'dimensions=4, text_search="english"')
    app.write_text(english)
    result = commands.alembic("check", cwd=application, **environ)
    assert "its full text is spanish, expected english; run cenote text-search" in result.stderr


def test_vector_types_render_with_their_import(
    application: Path, alembic: Command, cenote: Command
) -> None:
    """An autogenerated revision with a vector column imports the type and runs unchanged."""
    with (application / "app.py").open("a") as file:
        file.write(
            "\n\nfrom cenote.orm import VectorType\n"
            "Base.metadata.tables['documents'].append_column("
            "__import__('sqlalchemy').Column('summary', VectorType(3)))\n"
        )
    cenote("host-revision", "-x", "dimensions=4")
    alembic("upgrade", "head")
    before = revisions(application)
    alembic("revision", "--autogenerate", "-m", "summary")
    written = new_revision(application, before)
    assert "from pgvector.sqlalchemy import VECTOR\n" in written
    assert "sa.Column('summary', VECTOR(3), nullable=True)" in written
    alembic("upgrade", "head")
    assert "No new upgrade operations" in alembic("check")


async def test_autogenerate_creates_a_chunk_table(
    application: Path, alembic: Command, cenote: Command, empty_engine: AsyncEngine
) -> None:
    """Autogenerate creates a user model's table with extension, partitions, indexes and keys."""
    models = """

class Excerpt(
    ChunkMixin, Base, dimensions=4, partitions=4, hnsw_m=8, text_search="spanish", row_security=True
):
    __tablename__ = "excerpts"
    source: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("documents.id", ondelete="CASCADE"), index=True
    )
    page: Mapped[int | None]


class Album(Base):
    __tablename__ = "albums"
    id: Mapped[int] = mapped_column(primary_key=True)
    cover: Mapped[list[float]] = mapped_column(HALFVEC(3))


class Half(ChunkMixin, Base, dimensions=3000, column_type="halfvec", partitions=0):
    __tablename__ = "halves"
"""
    app = (application / "app.py").read_text()
    start, end = app.index("class Passage"), app.index("class Note")
    app = app[:start] + models.lstrip() + "\n\n" + app[end:].replace("cenote_chunks", "excerpts")
    app = app.replace("import ForeignKeyC", "import ForeignKey, ForeignKeyC")
    app = app.replace(
        "from sqlalchemy.orm", "from pgvector.sqlalchemy import HALFVEC\nfrom sqlalchemy.orm"
    )
    (application / "app.py").write_text(app)
    alembic("upgrade", "head")
    before = revisions(application)
    alembic("revision", "--autogenerate", "-m", "excerpts")
    written = new_revision(application, before)
    assert "store_inline('excerpts')\n    create_partitions('excerpts', 4)\n" in written
    assert written.count("create_partitions(") == 1
    assert written.count("    ensure_extension()\n") == 1
    # The albums table also has a vector column.
    assert written.index("ensure_extension()") < written.index("'albums'")
    assert "info=" not in written
    alembic("upgrade", "head")
    assert "No new upgrade operations" in alembic("check")
    store = PgVectorStore(empty_engine, 4, table_name="excerpts", hnsw_m=8, partitions=4)
    assert await store.check_schema() == []  # the application's history owns the table
    everything = [*ALL_TABLES, "albums", "excerpts", "halves"]
    expected = sorted(name for name in everything if not name.startswith("cenote_"))
    assert await tables(empty_engine) == expected

    up = alembic("upgrade", "base:head", "--sql")
    down = alembic("downgrade", "head:base", "--sql")
    alembic("downgrade", "base")
    assert await tables(empty_engine) == ["alembic_version"]
    await run_script(empty_engine, "DROP TABLE alembic_version;" + up)
    assert "No new upgrade operations" in alembic("check")
    await run_script(empty_engine, down)
    assert await tables(empty_engine) == ["alembic_version"]
