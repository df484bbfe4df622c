"""Where the settings of a schema come from, other than from code.

In this order: ``-x name=value`` of the command line, the section ``[cenote]`` of the ini file (or
``[tool.alembic.cenote]`` of pyproject.toml), the environment as ``CENOTE_<NAME>``, and, for what
none of them says, the live table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cenote.catalog import LiveTable
from cenote.config import DEFAULT_TABLE_NAME, SchemaConfig
from cenote.errors import ConfigurationError

HOW_TO_SET_DIMENSIONS = (
    "how many dimensions have the vectors? Say -x dimensions=384, write dimensions = 384 in the "
    "section [cenote] of the ini file, set CENOTE_DIMENSIONS=384, or, in an env.py of your own, "
    "context.configure(..., cenote=SchemaConfig(dimensions=384))"
)

_INTEGERS = {"dimensions", "hnsw_m", "hnsw_ef_construction", "partitions"}
_NAMES = [field.name for field in fields(SchemaConfig)] + ["database_url"]


def gather(
    arguments: Mapping[str, Any], section: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, Any]:
    """The settings that are given anywhere, `database_url` among them.

    Args:
        arguments: those of ``-x``.
        section: those of the ini file.
        environ: the environment.

    Raises:
        ConfigurationError: a name is unknown, or a number is none.
    """
    for source, names in (("-x ", arguments), ("[cenote] ", section)):
        if unknown := sorted(set(names) - set(_NAMES)):
            raise ConfigurationError(
                f"{source}{unknown[0]} is none of cenote's settings, which are {', '.join(_NAMES)}",
                setting=unknown[0],
            )
    given: dict[str, Any] = {}
    for name in _NAMES:
        value = arguments.get(name) or section.get(name) or environ.get("CENOTE_" + name.upper())
        if value:
            given[name] = _number(name, str(value)) if name in _INTEGERS else str(value)
    return given


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigurationError(
            f"{name} must be an integer, not {value!r}", setting=name
        ) from None


def given_in_code(config: SchemaConfig) -> dict[str, Any]:
    """A configuration as settings; what it leaves open is not given."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def table_of_settings(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """Name and schema of the chunk table, checked.

    Raises:
        ConfigurationError: a name cannot work.
    """
    name = given.get("table_name", DEFAULT_TABLE_NAME)
    config = SchemaConfig(dimensions=1, table_name=name, schema=given.get("schema"))
    return config.table_name, config.schema


def resolve(given: Mapping[str, Any], live: LiveTable | None) -> SchemaConfig | None:
    """The configuration that the settings make, with the live table's where they say nothing.

    None where the dimensions are not known at all.

    Raises:
        ConfigurationError: a value cannot work.
    """
    known = {} if live is None or live.dimensions is None else live.settings
    values = {**known, **{name: given[name] for name in given if name != "database_url"}}
    table_of_settings(given)
    return SchemaConfig(**values) if "dimensions" in values else None
