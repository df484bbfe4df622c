"""Schema changes that are killed at each statement.

Afterwards the table is as it was before or as it should be after the change, or ``cenote check``
names the difference and its hint repairs it. No row is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.attacks import Recorded
from support.commands import cenote, output_of
from support.database import execute, objects, scalar, tables
from support.kills import How, is_concurrent, run_and_kill, statements_of, writes_of
from support.legacy import create_legacy_table

from cenote import PgVectorStore, SchemaConfig, schema
from cenote.stores.pgvector import executor
from cenote.testing import embedded

HOW: tuple[How, ...] = ("process", "backend")

EVERY_STATEMENT = int(os.environ.get("CENOTE_TORTURE", "1")) >= 20

CONFIG = SchemaConfig(dimensions=4)

FULL = ["-x", "dimensions=4", "-x", "text_search=simple", "-x", "row_security=on"]
PLAIN = ["-x", "partitions=0"]
PARTITIONED = ["-x", "partitions=2"]

ROWS = (
    "INSERT INTO cenote_chunks SELECT 'tenant ' || greatest(n - 1100, 0) % 7, 'chunk ' || n,"
    " 'doc ' || n / 10,"
    " 'text ' || n, n % 10, jsonb_build_object('n', n), md5(n::text),"
    " ARRAY[sin(n), cos(n), sin(2 * n), cos(3 * n)]::real[]::vector, 'm', '2026-01-01'::timestamptz"
    " FROM generate_series(1, 1300) n"
)
CHECKSUM = (
    "SELECT count(*) || ' ' || coalesce(md5(string_agg(concat_ws(' ', namespace, id, document_id,"
    " content, position, metadata, content_hash, embedding, embedding_model), '|'"
    " ORDER BY namespace, id)), '') FROM cenote_chunks"
)
COMMENT = "SELECT obj_description('cenote_chunks'::regclass)"
INDEXES = (
    "SELECT string_agg(concat_ws(' ', relname, indisvalid, indisready, indislive,"
    # Recall is measured with rows that are chosen at random.
    """ regexp_replace(obj_description(oid), '"recall": [0-9.]+, (.*), "date": "[0-9-]+"',"""
    " '\\1')),"
    " ', ' ORDER BY relname) FROM pg_index JOIN pg_class ON indexrelid = oid"
    " WHERE starts_with(relname, 'ix_cenote') OR starts_with(relname, 'cenote_chunks_p')"
)


@dataclass(frozen=True)
class Change:
    """A command that changes the table.

    Attributes:
        command: Arguments of the command.
        settings: Settings of the table before; the settings that a new table is created with.
        after: Settings to check afterwards.
        legacy: True if the table before is a legacy table.
        rows: False if the table before does not exist.
        is_undone: True if the hints of ``cenote check`` lead back to the state before.
    """

    command: list[str]
    settings: list[str] = field(default_factory=lambda: [*FULL, *PARTITIONED])
    after: list[str] = field(default_factory=list)
    legacy: bool = False
    rows: bool = True
    is_undone: bool = False


MIGRATE = ["migrate", *FULL, *PARTITIONED]

CHANGES = {
    "upgrade": Change([*MIGRATE, "upgrade", "head"], after=[*FULL, *PARTITIONED], rows=False),
    "upgrade a plain table": Change(
        ["migrate", "-x", "dimensions=4", *PLAIN, "upgrade", "head"],
        after=["-x", "dimensions=4", *PLAIN],
        rows=False,
    ),
    "upgrade a legacy table": Change(["migrate", "upgrade", "head"], legacy=True),
    "downgrade": Change(
        [*MIGRATE, "downgrade", "base"], after=[*FULL, *PARTITIONED], is_undone=True
    ),
    "downgrade one revision": Change(
        [*MIGRATE, "downgrade", "cenote_0002"], after=[*FULL, *PARTITIONED], is_undone=True
    ),
    "reindex": Change(["reindex", "--m", "8"], after=["-x", "hnsw_m=8"]),
    "reindex a plain table": Change(
        ["reindex", "--m", "8"], [*FULL, *PLAIN], after=["-x", "hnsw_m=8"]
    ),
    "reindex as another kind": Change(["reindex", "--index", "bit"], after=["-x", "index=bit"]),
    "drop the ANN index of a plain table": Change(
        ["reindex", "--index", "none"],
        [*FULL, *PLAIN, "-x", "index=bit"],
        after=["-x", "index=none"],
    ),
    "repartition": Change(["repartition", "3"], after=["-x", "partitions=3"]),
    "repartition to a plain table": Change(["repartition", "0"], after=PLAIN),
    "repartition a plain table": Change(["repartition", "2"], [*FULL, *PLAIN], after=PARTITIONED),
    "add full text": Change(
        ["text-search", "english"],
        ["-x", "dimensions=4", *PARTITIONED],
        after=["-x", "text_search=english"],
    ),
    "change full text": Change(
        ["text-search", "spanish,english"], after=["-x", "text_search=spanish,english"]
    ),
    "remove full text": Change(["text-search", "none"]),
    "turn row security on": Change(
        ["row-security", "on"],
        ["-x", "dimensions=4", *PARTITIONED],
        after=["-x", "row_security=on"],
    ),
    "turn row security off": Change(["row-security", "off"], after=["-x", "row_security=off"]),
    "apply recall": Change(
        ["recall", "--apply", "--target", "0.1", "--ef-search", "40", "--namespace", "tenant 0"]
    ),
}


class Databases:
    """Databases in the state before a change.

    Args:
        template: Name of the database that the others are copies of.
        server_dsn: Connection string of the server.
    """

    def __init__(self, template: str, server_dsn: str) -> None:
        self._template, self._server_dsn = template, server_dsn
        self._name = template + "_copy"
        self.dsn = ""

    def _dsn(self, name: str) -> str:
        return make_url(self._server_dsn).set(database=name).render_as_string(hide_password=False)

    async def prepare(self, change: Change) -> None:
        """Create the state before a change in the template."""
        dsn = self._dsn(self._template)
        async with _engine(dsn) as engine:
            if change.legacy:
                await create_legacy_table(engine)
            elif change.rows:
                arguments = ["migrate", *change.settings, "upgrade", "head"]
                output_of(cenote(*arguments, CENOTE_DATABASE_URL=dsn))
                await execute(engine, ROWS)
        self.copy()

    def copy(self) -> None:
        """Replace the database by a new copy of the template."""
        self.drop()
        with psycopg.connect(self._server_dsn, autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{self._name}" TEMPLATE "{self._template}"')
        self.dsn = self._dsn(self._name)

    def drop(self) -> None:
        with psycopg.connect(self._server_dsn, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{self._name}" WITH (FORCE)')

    async def state(self) -> list[Any]:
        """Return all that a change may change: objects, indexes, the revision, and the rows."""
        async with _engine(self.dsn) as engine:
            return await state_of(engine)


@pytest.fixture
def databases(empty_dsn: str, server_dsn: str) -> Iterator[Databases]:
    """Databases for one change."""
    database = make_url(empty_dsn).database
    assert database is not None
    databases = Databases(database, server_dsn)
    yield databases
    databases.drop()


@asynccontextmanager
async def _engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    """Open an engine that keeps no connection."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    yield engine
    await engine.dispose()


async def state_of(engine: AsyncEngine) -> list[Any]:
    names = await tables(engine)
    exists = "cenote_chunks" in names
    rows = await scalar(engine, CHECKSUM) if exists else None
    comment = await scalar(engine, COMMENT) if exists else None
    revision = await schema.current(engine, CONFIG)
    definitions = [repr(row) for part in await objects(engine, CONFIG) for row in part]
    definitions = [row for row in definitions if "pg.dropped" not in row]
    return [*names, revision, *definitions, await scalar(engine, INDEXES), comment, rows]


def check(dsn: str, settings: list[str]) -> list[dict[str, str]]:
    """Return the findings of ``cenote check``."""
    result = cenote("check", "--json", *settings, CENOTE_DATABASE_URL=dsn)
    assert result.returncode in (0, 1), result.stderr
    findings: list[dict[str, str]] = json.loads(result.stdout)
    return findings


def repair(dsn: str, settings: list[str]) -> None:
    """Run the commands that ``cenote check`` prints, until it finds nothing."""
    for _ in range(5):
        findings = check(dsn, settings)
        if not findings:
            return
        # Hints for applications in other situations may come before and after the command.
        found = re.search(r"\brun cenote (.*?)(?:[,;] (?:which|or)\b.*)?$", findings[0]["hint"])
        assert found, findings[0]
        output_of(cenote(*shlex.split(found[1]), CENOTE_DATABASE_URL=dsn))
    pytest.fail(f"not repaired: {check(dsn, settings)}")


@pytest.mark.parametrize("name", CHANGES)
async def test_killed_at_each_statement(
    databases: Databases, name: str, attacked: Recorded
) -> None:
    """The state is the one before or the one after, or `cenote check` leads to the one after.

    The command and its server process are killed in turn: by ``make torture`` at each statement,
    otherwise at those that may leave different states.
    """
    change = CHANGES[name]
    await databases.prepare(change)
    before = await databases.state()
    statements = statements_of(change.command, databases.dsn)
    after = await databases.state()
    assert after != before
    numbers = range(len(statements)) if EVERY_STATEMENT else writes_of(statements)
    outcomes: Counter[str] = Counter()
    state = after
    for at, how in zip(numbers, cycle(HOW), strict=False):
        if state != before:
            databases.copy()
        result = run_and_kill(change.command, databases.dsn, at, how)
        assert "Traceback" not in result.stderr, result.stderr
        state = await databases.state()
        if state == before:
            outcomes["before"] += 1
        elif state == after:
            outcomes["after"] += 1
            assert change.is_undone or check(databases.dsn, change.after) == []
        else:
            outcomes["named by check"] += 1
            repair(databases.dsn, change.after)
            state = await databases.state()
            assert state == (before if change.is_undone else after)
    assert outcomes["before"] > 0
    assert outcomes["after"] + outcomes["named by check"] > 0
    # Nothing that the kills left behind is in the way of the change.
    if state != before:
        databases.copy()
        run_and_kill(change.command, databases.dsn, writes_of(statements)[0], "process")
    output_of(cenote(*change.command, CENOTE_DATABASE_URL=databases.dsn))
    assert await databases.state() == after
    states = ", ".join(f"{state}: {count}" for state, count in outcomes.items())
    attacked(f"{name} killed", outcomes.total(), f"no row lost; state {states}")


@pytest.mark.parametrize("waits", [1, 2, 3])
@pytest.mark.parametrize("name", ["reindex", "reindex a plain table"])
async def test_killed_during_a_concurrent_statement(
    databases: Databases, name: str, waits: int
) -> None:
    """`cenote reindex` repairs each state that an interrupted concurrent statement leaves.

    A concurrent build waits three times: before it builds, before it validates, and before the
    index is valid. A concurrent DROP waits twice: before the index is dead, and before it is gone.
    """
    change = CHANGES[name]
    await databases.prepare(change)
    before = await databases.state()
    statements = statements_of(change.command, databases.dsn)
    after = await databases.state()
    numbers = [number for number, sql in enumerate(statements) if is_concurrent(sql)]
    assert len(numbers) == 2  # two builds, or a build and a DROP
    killed = 0
    for number in numbers:
        databases.copy()
        result = run_and_kill(change.command, databases.dsn, number, "waiting", waits=waits)
        if result.returncode == 0:
            assert "DROP INDEX" in statements[number]
            assert waits == 3
            continue
        killed += 1
        assert "Traceback" not in result.stderr, result.stderr
        assert await databases.state() not in (before, after)
        # The leftovers of a run that was killed are dropped by the next one, which is killed, too.
        clearing = statements_of([*change.command, "--dry-run"], databases.dsn)
        assert clearing
        result = run_and_kill(change.command, databases.dsn, number, "waiting", waits=waits)
        repair(databases.dsn, change.after)
        assert await databases.state() == after
    assert killed >= 1


SCANS_BY_KIND = (
    "SELECT coalesce(sum(idx_scan) FILTER (WHERE NOT is_bit), 0) AS vector,"
    " coalesce(sum(idx_scan) FILTER (WHERE is_bit), 0) AS bit FROM"
    " (SELECT idx_scan, pg_get_indexdef(indexrelid) LIKE '%binary_quantize%' AS is_bit"
    " FROM pg_stat_user_indexes WHERE pg_get_indexdef(indexrelid) LIKE '%USING hnsw%') AS ann"
)
UNFINISHED = (
    "SELECT count(*) FROM pg_index JOIN pg_class ON oid = indexrelid"
    " WHERE relname LIKE '%embedding%'"
    " AND (relname ~ '(_new|_old)$' OR NOT (indisvalid AND indisready AND indislive))"
)


@pytest.mark.parametrize("shape", [PLAIN, PARTITIONED], ids=lambda shape: shape[1])
async def test_killed_while_the_kind_changes_in_use(
    databases: Databases, shape: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old index serves searches until the next run, which finishes the change."""
    monkeypatch.setattr(executor, "_CHECK_SECONDS", 0)
    await databases.prepare(Change([], ["-x", "dimensions=4", *shape]))
    builds = {}
    for kinds in (("vector", "bit"), ("bit", "vector")):
        statements = statements_of(["reindex", "--index", kinds[1]], databases.dsn)
        builds[kinds] = next(n for n, sql in enumerate(statements) if is_concurrent(sql))
    databases.copy()
    query = [0.1, 0.2, 0.3, 0.4]
    async with _engine(databases.dsn) as engine:
        # In a small table, the planner could prefer to sort all rows.
        name = make_url(databases.dsn).database
        await execute(engine, f'ALTER DATABASE "{name}" SET enable_sort = off', "ANALYZE")
        store = PgVectorStore(engine, 4, partitions=int(shape[1][-1]))
        done = asyncio.Event()

        async def use() -> int:
            turns = 0
            while not done.is_set():
                assert len(await store.search(query, "tenant 0", 30)) == 30
                await store.upsert([embedded(f"new {turns % 20}", query)], "tenant 0")
                await asyncio.sleep(0.02)
                turns += 1
            return turns

        async def scans() -> dict[str, int]:
            async with engine.connect() as connection:
                return dict((await connection.execute(text(SCANS_BY_KIND))).mappings().one())

        task = asyncio.create_task(use())
        for (old, new), build in builds.items():
            command = ["reindex", "--index", new]
            kills: list[tuple[How, int]] = [("waiting", 2), ("process", 1)]
            for how, waits in kills:
                kill = partial(run_and_kill, command, databases.dsn, build, how, waits=waits)
                assert (await asyncio.to_thread(kill)).returncode != 0
                before = await scans()
                for _ in range(3):
                    assert len(await store.search(query, "tenant 0", 40)) == 40
                after = await scans()
                assert after[old] > before[old]
                assert after[new] == before[new]
                assert store._searches.vectors.kind == old
                if how == "waiting":
                    assert await scalar(engine, UNFINISHED) > 0
            output_of(await asyncio.to_thread(cenote, *command, CENOTE_DATABASE_URL=databases.dsn))
            assert await scalar(engine, UNFINISHED) == 0
            before = await scans()
            assert len(await store.search(query, "tenant 0", 40)) == 40
            assert (await scans())[new] > before[new]
            assert store._searches.vectors.kind == new
            assert check(databases.dsn, ["-x", f"index={new}"]) == []
        done.set()
        assert await task > 0
