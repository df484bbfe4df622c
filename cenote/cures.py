"""The commands of `cenote` that messages name as cures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cenote.config import SchemaConfig


def upgrade_command(given: Mapping[str, Any]) -> str:
    """The command that makes the table of some settings."""
    dimensions = "" if "dimensions" in given else "-x dimensions=... "
    return f"cenote migrate {dimensions}{arguments_for(given)}upgrade head"


def reindex_command(config: SchemaConfig) -> str:
    parameters = f"--m {config.hnsw_m} --ef-construction {config.hnsw_ef_construction}"
    return f"cenote reindex {arguments_for(_names(config))}{parameters}"


def repartition_command(config: SchemaConfig) -> str:
    return f"cenote repartition {arguments_for(_names(config))}{config.partitions}"


def _names(config: SchemaConfig) -> dict[str, Any]:
    return {"table_name": config.table_name, "schema": config.schema}


def arguments_for(given: Mapping[str, Any]) -> str:
    """Those settings that differ from their defaults, for a command line."""
    return "".join(
        f"-x {field.name}={given[field.name]} "
        for field in fields(SchemaConfig)
        if given.get(field.name, field.default) != field.default
    )
