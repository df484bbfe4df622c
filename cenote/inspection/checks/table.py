"""Check the columns, key, partitions and settings of a live table."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Column
from sqlalchemy.dialects.postgresql.base import PGDialect

from cenote.config import SchemaConfig, languages
from cenote.errors import MigrationError
from cenote.inspection.checks.findings import Finding, FindingKind, ddl_sql, subject_of
from cenote.inspection.checks.indexes import NEW, OLD, index_findings
from cenote.inspection.citus import Shard
from cenote.inspection.hints import (
    APPLICATION_MIGRATIONS,
    arguments_for,
    distribute_command,
    reindex_command,
    repartition_command,
    row_security_command,
    text_search_command,
    upgrade_command,
)
from cenote.inspection.live_table import LiveTable, embedding_sql
from cenote.orm.factory import chunk_table
from cenote.orm.mixin import KEY, ann_index_name
from cenote.postgres.ann_index import has_no_index, marked_comment, parse_metric
from cenote.postgres.ddl import (
    attach_partition,
    comment_on_table,
    create_extension,
    create_hash_partition,
    partition_name,
    qualified,
    replace_primary_key,
)
from cenote.postgres.extension import OLDEST_PGVECTOR, parse_version
from cenote.postgres.full_text import COLUMN as TEXT_COLUMN

_UNEVEN = 4
"""Maximum size of a shard, as a multiple of the average size.

Citus moves whole shards between nodes, so it cannot balance the nodes if one shard is much larger.
"""

_SMALL_SHARD = 2**30
"""Maximum size in bytes of a shard that is not worth moving."""


def findings(
    live: LiveTable, config: SchemaConfig, *, is_applications: bool = False
) -> list[Finding]:
    """Return the differences between a live chunk table and a configuration, most severe first.

    Args:
        live: Live table.
        config: Expected settings.
        is_applications: True if the migrations of the application create and change the table.
    """
    subject = subject_of(config.table_name, config.schema)
    found = [
        embedding_finding(subject, live.column_type, live.dimensions, config),
        metric_finding(subject, live.comment, config),
        _columns_finding(subject, live, config),
        _key_finding(subject, live, config),
        partitions_finding(subject, live, config),
        _full_text_finding(subject, live, config, is_applications=is_applications),
        row_security_finding(subject, live, config),
        distribution_finding(subject, live, config),
    ]
    return [finding for finding in found if finding is not None] + [*index_findings(live, config)]


def _full_text_finding(
    subject: str, live: LiveTable, config: SchemaConfig, *, is_applications: bool
) -> Finding | None:
    finding = text_search_finding(subject, live.text_search, config, live.configurations)
    if finding is not None and is_applications and live.text_search is None:
        # The application's next revision adds the column, and would find it there.
        return replace(finding, hint="run " + APPLICATION_MIGRATIONS)
    return finding


def extension_finding(version: str | None, given: Mapping[str, Any]) -> Finding | None:
    """Check that the vector extension is installed and recent enough."""
    if version is not None and parse_version(version) >= OLDEST_PGVECTOR:
        return None
    return Finding(
        kind="extension_missing" if version is None else "extension_too_old",
        subject="extension vector",
        actual="it is missing" if version is None else f"it is {version}",
        expected=".".join(str(part) for part in OLDEST_PGVECTOR) + " or newer",
        hint="run "
        + ddl_sql(create_extension(given.get("extension_schema"))).replace(" IF NOT EXISTS", "")
        if version is None
        else "install it on the server, then run ALTER EXTENSION vector UPDATE",
    )


def table_finding(
    subject: str,
    live: LiveTable | None,
    recorded: str | None,
    given: Mapping[str, Any],
    elsewhere: Sequence[str] = (),
    others: Sequence[Mapping[str, str | None]] = (),
    *,
    user_model: bool = False,
    has_application: bool = False,
) -> Finding:
    """Return the finding for a missing table, or for one that is not a chunk table.

    Args:
        subject: Name of the table in findings.
        live: Live table, None if it is missing.
        recorded: Revision that the database records for the table.
        given: Explicit settings.
        elsewhere: Other schemas that have a table of this name.
        others: Settings `table_name` and `schema` of other chunk tables.
        user_model: True if the table belongs to a user model.
        has_application: True if the database has an Alembic history that is not cenote's.
    """
    if live is not None:
        return Finding(
            kind="not_a_chunk_table",
            subject=subject,
            actual="it has no column embedding of a fixed length",
            expected="a chunk table",
            hint="choose another table name, or rename the existing table",
        )
    actual = "it is missing"
    if recorded is not None and not user_model:
        actual += f", and recorded as {recorded}"
    hint = create = _creation_hint(
        recorded, given, user_model=user_model, has_application=has_application
    )
    if elsewhere:
        table = (
            f'set __table_args__ = {{"schema": "{elsewhere[0]}"}}'
            if user_model
            else f"pass -x schema={elsewhere[0]}"
        )
        hint = f"{table} if that is the table; otherwise {create}"
    elif others:
        arguments = " or ".join(
            f"-x table_name={other['table_name']}"
            + (f" -x schema={other['schema']}" if other["schema"] else "")
            for other in others[:3]
        )
        hint = f"pass {arguments} if that is the table; otherwise {create}"
    return Finding(
        kind="table_missing", subject=subject, actual=actual, expected="a chunk table", hint=hint
    )


def _creation_hint(
    recorded: str | None, given: Mapping[str, Any], *, user_model: bool, has_application: bool
) -> str:
    """Return the command that creates a missing table."""
    if user_model:
        return "run " + APPLICATION_MIGRATIONS
    command = upgrade_command(given)
    if recorded is not None:
        return f"run cenote migrate {arguments_for(given)}stamp base, then {command}"
    if has_application:
        return (
            f"if a model of your application has this table, run {APPLICATION_MIGRATIONS}; "
            f"otherwise run {command}"
        )
    return "run " + command


def revision_finding(
    subject: str, recorded: str, known: Container[str], head: str, given: Mapping[str, Any]
) -> Finding | None:
    """Check that the recorded revision is the newest known one."""
    if recorded == head:
        return None
    if recorded in known:
        kind: FindingKind = "revision_behind"
        hint = (
            f"run {upgrade_command(given, has_table=True)}; or, if a revision of your application "
            f"has created the table, cenote host-revision {arguments_for(given)}--from {recorded}"
        )
    else:
        kind = "revision_ahead"
        hint = "install the version of cenote that created it, or a newer one"
    return Finding(
        kind=kind,
        subject=subject,
        actual=f"it is at revision {recorded}",
        expected=head,
        hint=hint,
    )


def legacy_finding(subject: str, head: str, given: Mapping[str, Any]) -> Finding:
    """Return the finding for a legacy table that was not upgraded yet."""
    return Finding(
        kind="revision_missing",
        subject=subject,
        actual="it is a legacy table",
        expected=head,
        hint="run " + upgrade_command(given, has_table=True),
    )


def unrecorded_finding(
    subject: str, live: LiveTable, head: str, given: Mapping[str, Any], *, has_application: bool
) -> Finding:
    """Return the finding for an empty version table.

    Either the record is lost, or the revisions were downgraded, which leaves the version table, and
    the application created the table afterwards. To record a revision of cenote would then give the
    table two owners, and ``cenote migrate downgrade base`` would drop it.

    Args:
        subject: Name of the table in findings.
        live: Live table.
        head: Newest revision.
        given: Explicit settings.
        has_application: True if the database has an Alembic history that is not cenote's.
    """
    if has_application or live.users_columns:
        hint = (
            f"if your application's migrations create the table, drop the empty table "
            f"{live.name}_alembic_version; otherwise restore its row from a backup"
        )
    else:
        names = {name: given[name] for name in ("table_name", "schema") if name in given}
        hint = f"run cenote migrate {arguments_for(names)}stamp {head}"
    return Finding(
        kind="revision_missing",
        subject=subject,
        actual=f"no revision is recorded in {live.name}_alembic_version",
        expected=head,
        hint=hint,
    )


def embedding_finding(
    subject: str, column_type: str | None, dimensions: int | None, config: SchemaConfig
) -> Finding | None:
    """Check the type and the dimensions of the embedding column."""
    if (column_type, dimensions) == (config.column_type, config.dimensions):
        return None
    return Finding(
        kind="dimensions" if column_type == config.column_type else "column_type",
        subject=subject,
        actual="the embedding column is " + embedding_sql(column_type, dimensions),
        expected=embedding_sql(config.column_type, config.dimensions),
        hint="use the table's own type and dimensions, or choose another table_name",
    )


def partitions_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    """Check that the partitions cover every namespace and have the configured number."""
    number = len(live.bounds)
    if not live.complete:
        return Finding(
            kind="partitions",
            subject=subject,
            actual=f"its {number} partitions do not cover every namespace",
            expected="all partitions of one modulus",
            hint=_attach_hint(live),
        )
    if config.partitions in (None, number):
        return None
    return Finding(
        kind="partitions",
        subject=subject,
        actual=f"it has {number} partitions",
        expected=str(config.partitions),
        hint=f"set partitions={number}, or run {repartition_command(config)}",
    )


def text_search_finding(
    subject: str,
    text_search: str | None,
    config: SchemaConfig,
    configurations: Mapping[str, str],
) -> Finding | None:
    """Check that full text has the configured text search configurations."""
    actual, expected = (
        [configurations.get(name, name) for name in names]
        for names in (languages(text_search), config.languages)
    )
    if not expected or (actual[:1], set(actual)) == (expected[:1], set(expected)):
        return None
    return Finding(
        kind="text_search",
        subject=subject,
        actual=f"its full text is {text_search}" if text_search else "it has no full text",
        expected=", ".join(config.languages),
        hint="run " + text_search_command(config),
    )


def row_security_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    """Check that row-level security is on or off as configured, for every partition."""
    wanted = live.row_security if config.row_security is None else config.row_security
    if wanted is live.row_security and not (wanted and live.unsecured):
        return None
    actual = "it has no row-level security from cenote"
    hint = "run " + row_security_command(config, on=wanted)
    if live.row_security:
        missing = ", ".join(live.unsecured)
        actual = "it has row-level security" + (f", but not {missing}" if missing else "")
    if not wanted:  # the command removes the separation of the tenants
        hint = "set row_security=on, or, if nothing relies on it any more, " + hint
    return Finding(
        kind="row_security",
        subject=subject,
        actual=actual,
        expected="row-level security on the table and every partition" if wanted else "none",
        hint=hint,
    )


def distribution_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    """Check that the table is distributed as configured."""
    if config.distribution is None:
        return None
    if live.shards is None:
        return Finding(
            kind="distribution",
            subject=subject,
            actual="it is on one machine",
            expected="a table distributed by Citus",
            hint="run " + distribute_command(config),
        )
    if config.shard_count in (None, live.shards):
        return None
    return Finding(
        kind="distribution",
        subject=subject,
        actual=f"it has {live.shards} shards",
        expected=str(config.shard_count),
        hint=f"set shard_count={live.shards}, or run Citus' alter_distributed_table",
    )


def shard_findings(shards: Sequence[Shard], config: SchemaConfig) -> Iterator[Finding]:
    """Check that all nodes answer, the shards have their indexes, and no shard is much too large.

    The indexes that other checks know from the coordinator are not reported again.
    """
    for shard in shards:
        if not shard.reachable:
            yield Finding(
                kind="shard_unreachable",
                subject=f"shard {shard.number}",
                actual="its node did not answer",
                expected="an answer",
                hint="check the nodes: SELECT * FROM citus_check_cluster_node_health()",
            )
        elif shard.invalid_indexes:
            yield Finding(
                kind="index_invalid",
                subject=f"shard {shard.number}",
                actual=f"invalid: {shard.invalid_indexes}",
                expected="valid indexes",
                hint="run " + reindex_command(config),
            )
    yield from _shard_index_findings([shard for shard in shards if shard.reachable], config)
    largest = max(shards, key=lambda shard: shard.size, default=None)
    if largest is None or largest.size < _SMALL_SHARD:
        return
    average = sum(shard.size for shard in shards) / len(shards)
    if largest.size > _UNEVEN * average:
        yield Finding(
            kind="shards_uneven",
            subject=f"shard {largest.number}",
            actual=f"{largest.size / average:.1f} times the size of the average shard",
            expected=f"at most {_UNEVEN} times",
            hint="move its largest namespace to a separate shard: SELECT "
            f"isolate_tenant_to_new_shard('{qualified(config.table_name, config.schema)}', "
            "'<namespace>', 'CASCADE'), which splits the shards of all co-located tables, too, "
            "then SELECT citus_rebalance_start()",
        )


def _shard_index_findings(shards: Sequence[Shard], config: SchemaConfig) -> Iterator[Finding]:
    """Check that interrupted rebuilds left all shards the same ANN index, and no other."""
    name = ann_index_name(config.table_name)
    for suffix in (NEW, OLD):
        numbers = [shard.number for shard in shards if name + suffix in shard.indexes]
        if numbers:
            yield Finding(
                kind="index_left_over",
                subject=f"index {name}{suffix} of {_shards(numbers)}",
                actual="it is left by a rebuild, interrupted or still running",
                expected="no such index",
                hint="run " + reindex_command(config),
            )
    numbers = [shard.number for shard in shards if name not in shard.indexes]
    if 0 < len(numbers) < len(shards):
        yield Finding(
            kind="index_missing",
            subject=f"index {name} of {_shards(numbers)}",
            actual="it is missing",
            expected="the index on every shard",
            hint="run " + reindex_command(config),
        )


def _shards(numbers: Sequence[int]) -> str:
    return ("shard " if len(numbers) == 1 else "shards ") + ", ".join(map(str, numbers))


def check_can_secure(live: LiveTable) -> None:
    """Check that turning row-level security on or off affects only cenote's policies.

    Raises:
        MigrationError: The table has policies that cenote did not create, or it is distributed.
    """
    if live.shards is not None and not live.row_security:
        raise MigrationError(
            f"table {live.name!r} is distributed by Citus, which does not pass the setting that "
            "row-level security needs to the nodes"
        )
    if live.other_policies:
        raise MigrationError(
            f"table {live.name!r} has row-level security or policies of your own: cenote's "
            "policies would widen yours, and turning row-level security off would disable them; "
            "drop your policies first"
        )


def _attach_hint(live: LiveTable) -> str:
    """Return the statements that attach missing partitions, or create those that are gone."""
    attach, create, gone = [], [], []
    for modulus, remainder in live.missing_partitions:
        name = partition_name(live.name, remainder)
        arguments = (live.name, live.schema, modulus, remainder)
        if name in live.detached:
            attach.append(ddl_sql(attach_partition(*arguments)))
        else:
            gone.append(name)
            create.append(ddl_sql(create_hash_partition(*arguments)))
    hints = []
    if attach:
        hints.append("run " + "; ".join(attach))
    if gone:
        hints.append(
            f"{', '.join(gone)} is missing with its rows: restore it from a backup and attach it, "
            f"or, to go on with an empty one, run {'; '.join(create)}"
        )
    return ". ".join(hints) or "attach its partitions"


def metric_finding(subject: str, comment: str | None, config: SchemaConfig) -> Finding | None:
    """Check the metric of the table, which its comment records."""
    metric = parse_metric(comment)
    if metric == config.metric:
        return None
    marked = marked_comment(comment, config.metric, "none" if has_no_index(comment) else "vector")
    statement = ddl_sql(comment_on_table(config.table_name, config.schema, marked))
    return Finding(
        kind="metric",
        subject=subject,
        actual=f"its metric is {metric}",
        expected=config.metric,
        hint=f"set metric={metric}, or use a new table for {config.metric}; if the table's comment "
        f"was lost, run {statement}",
    )


def _columns_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    """Check the types of cenote's columns. The application may have added others."""
    expected = {
        column.name: _column_sql(column)
        for column in chunk_table(config).columns
        if column.name not in ("embedding", TEXT_COLUMN)
    }
    actual = {name: live.columns.get(name, "missing") for name in expected}
    if actual["position"] == "integer not null":  # in a legacy table
        expected["position"] = actual["position"]
    differing = [name for name in expected if actual[name] != expected[name]]
    if not differing:
        return None
    return Finding(
        kind="columns",
        subject=subject,
        actual=", ".join(f"{name} is {actual[name]}" for name in differing),
        expected=", ".join(expected[name] for name in differing),
        hint="alter them by hand, or rename the table and create it again",
    )


def _column_sql(column: Column[Any]) -> str:
    """Return a column's type in the format of `LiveTable.columns`."""
    sql = str(column.type.compile(dialect=PGDialect()))  # type: ignore[no-untyped-call]
    kind, _, collation = sql.partition(" COLLATE ")
    return kind.lower() + (f" collate {collation}" if collation else "") + " not null"


def _key_finding(subject: str, live: LiveTable, config: SchemaConfig) -> Finding | None:
    if live.key == KEY:
        return None
    # One statement, so that a duplicate key leaves the present constraint in place.
    name = config.table_name
    columns = ", ".join(KEY)
    statement = replace_primary_key(name, config.schema, live.key_name, "pk_" + name, columns)
    return Finding(
        kind="key",
        subject=subject,
        actual=f"its primary key is ({', '.join(live.key)})" if live.key else "it has no key",
        expected=f"({columns})",
        hint="run " + ddl_sql(statement),
    )
