"""Create chunk models from settings, and read the settings of a chunk model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from types import new_class
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.orm import DeclarativeBase, Mapper

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError
from cenote.orm.mixin import ChunkMixin, ChunkRow

_CLASS_ARGUMENTS = (
    "dimensions",
    "column_type",
    "metric",
    "index",
    "hnsw_m",
    "hnsw_ef_construction",
    "partitions",
    "text_search",
    "row_security",
)


def chunk_model(base: type[DeclarativeBase], class_name: str, config: SchemaConfig) -> type[Any]:
    """Create a chunk model from settings that are known only at run time.

    If the settings are known when the code is written, write a class with `ChunkMixin` instead.

    Args:
        base: Declarative base. It can have one model per table.
        class_name: Name of the class.
        config: Settings of the table.
    """
    settings = {name: getattr(config, name) for name in _CLASS_ARGUMENTS}
    attributes = {
        "__module__": base.__module__,
        "__tablename__": config.table_name,
        "__table_args__": {"schema": config.schema},
    }
    return new_class(
        class_name, (ChunkMixin, base), settings, lambda namespace: namespace.update(attributes)
    )


@lru_cache(maxsize=64)
def _create_model(config: SchemaConfig) -> type[Any]:
    """Create a chunk model for the configured table, on a separate base; cached."""

    class _Base(DeclarativeBase):
        pass

    return chunk_model(_Base, "ChunkRow", config)


def model_for_config(config: SchemaConfig) -> type[Any]:
    """Return a mapped class for the configured table: `ChunkRow` for the default table."""
    table = (config.table_name, config.schema, config.column_type, config.metric)
    default = (ChunkRow.__tablename__, None, "vector", "cosine")
    return ChunkRow if table == default else _create_model(config)


def chunk_table(config: SchemaConfig) -> Table:
    """Return the configured chunk table."""
    table: Table = _create_model(config).__table__
    return table


def config_from_model(model: type[Any], arguments: Mapping[str, Any]) -> SchemaConfig:
    """Return the settings of a chunk model.

    Args:
        model: The chunk model.
        arguments: Settings that the caller passed in addition to the model. They must agree with
            the model. They supply `dimensions` if the model does not have it.

    Raises:
        ConfigurationError: `model` is not a chunk model, its dimensions are unknown, or it has
            other settings than `arguments`.
    """
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    table = mapper.local_table if isinstance(mapper, Mapper) else None
    if not isinstance(table, Table) or not issubclass(model, ChunkMixin):
        name = getattr(model, "__name__", type(model).__name__)
        raise ConfigurationError(
            f"model must be a mapped class with ChunkMixin, not {name}",
            setting="model",
        )
    if mapper is not None and mapper.inherits is not None:
        raise ConfigurationError(
            f"model must be {mapper.base_mapper.class_.__name__}, the class that defines the "
            f"table, not its subclass {model.__name__}",
            setting="model",
        )
    settings = model._cenote_settings | {"table_name": table.name, "schema": table.schema}
    settings.setdefault("dimensions", arguments.get("dimensions"))
    if settings["dimensions"] is None:
        raise ConfigurationError(
            f"{model.__name__} has no `dimensions`: pass it as a class argument, e.g. "
            f"class {model.__name__}(ChunkMixin, Base, dimensions=384)",
            setting="dimensions",
        )
    config = SchemaConfig(**settings)
    for field in fields(config):
        value = arguments.get(field.name)
        if value not in (None, field.default, getattr(config, field.name)):
            raise ConfigurationError(
                f"{field.name} differs from the setting of {model.__name__}: omit the argument, or "
                "change the model",
                setting=field.name,
            )
    return config
