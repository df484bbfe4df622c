"""Hints in messages: the commands that solve a problem."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cenote.config import SchemaConfig
from cenote.inspection.settings import explicit_settings

APPLICATION_MIGRATIONS = (
    "your own migrations (alembic revision --autogenerate, with cenote.autogenerate.hooks() in "
    "env.py; then alembic upgrade head)"
)
"""Hint for the table of a user model, which the application's own migrations create and change."""


def upgrade_command(given: Mapping[str, Any], *, has_table: bool = False) -> str:
    """Return the command that creates or upgrades the table.

    Args:
        given: Explicit settings.
        has_table: True if there is a chunk table, from which the command takes its dimensions.
    """
    dimensions = "" if has_table or "dimensions" in given else "-x dimensions=... "
    return f"cenote migrate {dimensions}{arguments_for(given)}upgrade head"


def migration_hint(config: SchemaConfig, *, user_model: bool, synchronous: bool) -> str:
    """Return the hint that says how to create or upgrade the table of a store."""
    if user_model:
        return APPLICATION_MIGRATIONS
    call = _call("apply_migrations", synchronous)
    return f"{call}, or " + upgrade_command(explicit_settings(config))


def _call(method: str, synchronous: bool) -> str:
    return f"{'' if synchronous else 'await '}store.{method}()"


def check_model_command(given: Mapping[str, Any]) -> str:
    """Return the command that checks the table of a user model."""
    return f"cenote check {arguments_for(given)}--model app.models:Passage"


def reindex_command(config: SchemaConfig) -> str:
    parameters = f"--m {config.hnsw_m} --ef-construction {config.hnsw_ef_construction}"
    return f"cenote reindex {arguments_for(_names(config))}{parameters}"


def recall_command(config: SchemaConfig) -> str:
    return f"cenote recall {arguments_for(_names(config))}--apply"


def repartition_command(config: SchemaConfig) -> str:
    return f"cenote repartition {arguments_for(_names(config))}{config.partitions}"


def row_security_command(config: SchemaConfig, *, on: bool) -> str:
    return f"cenote row-security {arguments_for(_names(config))}{'on' if on else 'off'}"


def distribute_command(config: SchemaConfig) -> str:
    return f"cenote distribute {arguments_for(_names(config))}".rstrip()


def text_search_command(config: SchemaConfig) -> str:
    languages = ",".join(config.languages)
    return f"cenote text-search {arguments_for(_names(config))}{languages}"


def _names(config: SchemaConfig) -> dict[str, Any]:
    return {"table_name": config.table_name, "schema": config.schema}


def arguments_for(given: Mapping[str, Any]) -> str:
    """Return the settings that differ from their defaults, as arguments of a command line."""
    return "".join(
        f"-x {shlex.quote(f'{field.name}={given[field.name]}')} "
        for field in fields(SchemaConfig)
        if given.get(field.name, field.default) != field.default
    )


def error_hint(
    sqlstate: str | None,
    config: SchemaConfig,
    *,
    user_model: bool,
    driver: str,
    synchronous: bool,
) -> str:
    """Return the hint for an error of the server, to be appended to a store's message.

    Args:
        sqlstate: Code of the error. Source: PostgreSQL manual, appendix A.
        config: Settings of the store.
        user_model: True if the store has a model of the application.
        driver: Name of the driver, ``asyncpg`` or ``psycopg``.
        synchronous: True for a `SyncPgVectorStore`, whose methods are not awaited.
    """
    match sqlstate:
        case "42P01" | "42703" if user_model:
            return "; the table does not match the model: run " + APPLICATION_MIGRATIONS
        case "42P01":
            return "; the table does not exist: run " + migration_hint(
                config, user_model=False, synchronous=synchronous
            )
        case "42703" if config.languages:
            return "; the table may have lost its full text: run " + text_search_command(config)
        case "42703":
            return "; the table was not created by cenote's revisions: choose another table_name"
        case "22003":
            return (
                "; positions in a legacy table have 32 bits: run cenote repartition to widen them"
            )
        case "23503":
            return (
                "; a foreign key rejects the change: add and flush the row that the chunks refer "
                "to, and pass session= if your transaction is still open; or first delete the rows "
                "that refer to the chunks"
            )
        case "23514":
            return (
                "; a check constraint of the table rejects a row, or a partition is missing: call "
                + _call("check_schema", synchronous)
            )
        case "25P02":
            return "; an earlier statement failed: roll back the transaction, or its savepoint"
        case "42501":
            return "; the role lacks a privilege: GRANT it on the table"
        case "26000" | "42P05":
            remedy = (
                "statement_cache_size=0 and prepared_statement_cache_size=0 in connect_args, or in "
                "the connection string"
            )
            if driver == "psycopg":
                remedy = 'connect_args={"prepare_threshold": None}'
            return (
                "; a pooler such as PgBouncer may assign server connections for one transaction "
                "only: create the engine with " + remedy
            )
        case "53100":
            return "; the server's disk is full: free some space there and retry"
    return ""
