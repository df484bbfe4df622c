"""Sources of the schema's settings on the command line.

The sources, by priority: ``-x name=value`` of the command line, the section ``[cenote]`` of the ini
file (or ``[tool.alembic.cenote]`` of pyproject.toml), the environment as ``CENOTE_<NAME>``, and the
live table for all settings that remain.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from cenote.config import DEFAULT_TABLE_NAME, SchemaConfig
from cenote.errors import ConfigurationError

if TYPE_CHECKING:
    from cenote.inspection.live_table import LiveTable

HOW_TO_SET_DIMENSIONS = (
    "`dimensions` is required: pass -x dimensions=384, write dimensions = 384 in the section "
    "[cenote] of the ini file, or set CENOTE_DIMENSIONS=384"
)

_logger = logging.getLogger(__name__)

_INTEGERS = {"dimensions", "hnsw_m", "hnsw_ef_construction", "partitions", "shard_count"}
_SWITCHES = {"row_security"}
_NAMES = [field.name for field in fields(SchemaConfig)] + ["database_url"]


def gather(
    arguments: Mapping[str, Any], section: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings that any source sets, including `database_url`.

    Args:
        arguments: Settings given with ``-x``.
        section: Settings in the ini file.
        environ: Environment variables.

    Raises:
        ConfigurationError: A name is unknown, or a value has the wrong type.
    """
    for source, values in (("-x ", arguments), ("[cenote] ", section)):
        for name, value in values.items():
            if name not in _NAMES:
                raise ConfigurationError(
                    f"{source}{name} is not a setting of cenote; "
                    f"the settings are {', '.join(_NAMES)}",
                    setting=name,
                )
            if value in (None, ""):
                raise ConfigurationError(
                    f"{source}{name} has no value; write {name}=value", setting=name
                )
    _warn_of_mistakes(environ)
    from_environ = {name: environ.get("CENOTE_" + name.upper()) or None for name in _NAMES}
    given: dict[str, Any] = {}
    for name in _NAMES:
        value = arguments.get(name, section.get(name, from_environ[name]))
        if value is not None:
            given[name] = _parsed(name, str(value))
    if "database_url" in given:
        # The URL of a synchronous application; the commands connect with asyncpg.
        url = given["database_url"]
        given["database_url"] = re.sub(r"^postgresql\+psycopg://", "postgresql://", url)
    return given


def _warn_of_mistakes(environ: Mapping[str, str]) -> None:
    """Log a warning for each variable whose name resembles the name of a cenote variable."""
    known = {"CENOTE_" + name.upper() for name in _NAMES}
    for name in environ:
        if name.startswith("CENOTE_") and name not in known:
            for close_match in get_close_matches(name, known, n=1, cutoff=0.85):
                _logger.warning("%s is not a setting; did you mean %s?", name, close_match)


def _parsed(name: str, value: str) -> Any:
    if name in _INTEGERS:
        return _number(name, value)
    return _switch(name, value) if name in _SWITCHES else value


def _switch(name: str, value: str) -> bool:
    meanings = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if value.lower() not in meanings:
        raise ConfigurationError(f"{name} must be on or off, not {value!r}", setting=name)
    return meanings[value.lower()]


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigurationError(
            f"{name} must be an integer, not {value!r}", setting=name
        ) from None


def explicit_settings(config: SchemaConfig) -> dict[str, Any]:
    """Return the settings of a configuration that are not None."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def table_name_and_schema(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the name and the schema of the chunk table.

    Raises:
        ConfigurationError: A name is invalid.
    """
    name = given.get("table_name", DEFAULT_TABLE_NAME)
    config = SchemaConfig(dimensions=1, table_name=name, schema=given.get("schema"))
    return config.table_name, config.schema


def resolve(given: Mapping[str, Any], live: LiveTable | None) -> SchemaConfig | None:
    """Return the configuration from the settings, completed by settings of the live table.

    Returns:
        None if neither the settings nor the live table has the dimensions.

    Raises:
        ConfigurationError: A value is invalid.
    """
    live_settings = {} if live is None or live.dimensions is None else live.settings
    values = {**live_settings, **{name: given[name] for name in given if name != "database_url"}}
    table_name_and_schema(given)  # raises an error for invalid names even without dimensions
    if values.get("distribution") and "partitions" not in given:
        values.pop("partitions", None)  # the live table is not distributed yet
    return SchemaConfig(**values) if "dimensions" in values else None
