"""The wheel and the sdist. The wheel works without a checkout."""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

from support.commands import REPOSITORY, alembic, output_of, run

SCHEMA = (REPOSITORY / "docs" / "schema.md").read_text(encoding="utf-8")


def test_contents_of_the_wheel(dist: Path) -> None:
    """The wheel contains the package and the revisions, but no tests and no caches."""
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("cenote/") for name in package)
    revisions = {path.name for path in (REPOSITORY / "alembic" / "versions").glob("*.py")}
    assert {f"cenote/migrations/versions/{name}" for name in revisions} <= set(package)
    assert {
        "cenote/py.typed",
        "cenote/migrations/env.py",
        "cenote/migrations/script.py.mako",
    } <= set(package)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_contents_of_the_sdist(dist: Path) -> None:
    """The sdist contains the revisions, and everything that the tests require."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"alembic/env.py", "alembic.ini", "tests/conftest.py", "LICENSE", "README.md"} <= names
    assert not [name for name in names if "__pycache__" in name]
    folders = {"alembic", "benchmarks", "cenote", "docs", "examples", "tests"}
    assert {name.partition("/")[0] for name in names if "/" in name} == folders


def test_builds_are_reproducible(dist: Path, tmp_path: Path) -> None:
    """A build from the sdist, in a folder with other times and modes, has the same bytes."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for path in source.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.stat().st_mode & 0o100 else 0o600)
    rebuilt = tmp_path / "rebuilt"
    build = ["-m", "build", "--no-isolation", "--outdir", str(rebuilt)]
    output_of(run(sys.executable, *build, cwd=source))
    for artefact in (sdist, *dist.glob("*.whl")):
        assert (rebuilt / artefact.name).read_bytes() == artefact.read_bytes(), artefact.name


def test_the_wheel_works_in_an_empty_folder(
    installed: Path, tmp_path: Path, empty_dsn: str
) -> None:
    """`import cenote` loads no Alembic and starts no thread; the wheel's revisions run."""
    empty = tmp_path / "empty"
    empty.mkdir()
    site = installed
    script = """
import sys, threading
import cenote
assert cenote.__file__.startswith(sys.argv[1]), cenote.__file__
assert sys.modules.keys().isdisjoint({"alembic", "cenote.inspection.live_table", "cenote.migrate"})
assert threading.active_count() == 1
from cenote.migrate import versions
assert str(versions.script_location()).startswith(sys.argv[1])
import asyncio
async def main():
    async with await cenote.PgVectorStore.connect(sys.argv[2], 4) as store:
        await store.apply_migrations()
        chunk = cenote.Chunk(id="a", document_id="d", content="text")
        item = cenote.EmbeddedChunk(chunk=chunk, embedding=[1, 0, 0, 0], embedding_model="m")
        await store.upsert([item], "n")
        print([result.chunk.id for result in await store.search([1, 0, 0, 0], "n")])
asyncio.run(main())
"""
    arguments = [sys.executable, "-c", script, str(site), empty_dsn]
    output = output_of(run(*arguments, cwd=empty, PYTHONPATH=str(site)))
    assert output == "['a']\n"
    environ = {"PYTHONPATH": str(site), "CENOTE_DATABASE_URL": empty_dsn}
    for name, language in (("alembic.ini", "ini"), ("pyproject.toml", "toml")):
        block = re.findall(rf"^```{language}\n(.*?)^```$", SCHEMA, re.MULTILINE | re.DOTALL)[0]
        (empty / name).write_text(block.replace("dimensions = 384", "dimensions = 4"))
        assert output_of(alembic("current", cwd=empty, **environ)) == "cenote_0004 (head)\n"
        assert output_of(alembic("check", cwd=empty, **environ)).startswith("No new upgrade")
        (empty / name).write_text(block.replace("dimensions = 384", "dimensions = 5"))
        assert "VECTOR(dim=4), VectorType(dim=5)" in alembic("check", cwd=empty, **environ).stdout
        (empty / name).unlink()
    command = str(site / "bin" / "cenote")

    def cenote(*arguments: str) -> str:
        return output_of(run(command, *arguments, cwd=empty, **environ))

    assert cenote("check") == "no differences found\n"
    for argument in ("current", "history", "heads"):
        assert "cenote_0004" in cenote("migrate", argument)
    cenote("migrate", "downgrade", "base")
    cenote("migrate", "-x", "dimensions=4", "upgrade", "head")
    assert "CREATE TABLE cenote_chunks" in cenote(
        "migrate", "-x", "dimensions=4", "upgrade", "head", "--sql"
    )
