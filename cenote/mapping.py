"""From settings to chunk models, and back."""

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
from cenote.orm import ChunkMixin, ChunkRow

_CLASS_ARGUMENTS = (
    "dimensions",
    "column_type",
    "hnsw_m",
    "hnsw_ef_construction",
    "partitions",
    "text_search",
    "row_security",
)


def chunk_model(base: type[DeclarativeBase], class_name: str, config: SchemaConfig) -> type[Any]:
    """Make a chunk model of settings that are known at run time only; else write a class.

    Args:
        base: the declarative base, which takes one model for a table.
        class_name: the name of the class.
        config: the settings.
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
def _model_of(config: SchemaConfig) -> type[Any]:
    """A chunk model, on a base of its own, for the table that a configuration describes."""

    class _Base(DeclarativeBase):
        pass

    return chunk_model(_Base, "ChunkRow", config)


def model_of(config: SchemaConfig) -> type[Any]:
    """The mapped class of the table that a configuration describes: `ChunkRow`, if it is that."""
    names = (config.table_name, config.schema, config.column_type)
    return ChunkRow if names == (ChunkRow.__tablename__, None, "vector") else _model_of(config)


def chunk_table(config: SchemaConfig) -> Table:
    """The chunk table that a configuration describes."""
    table: Table = _model_of(config).__table__
    return table


def config_of(model: type[Any], given: Mapping[str, Any]) -> SchemaConfig:
    """The settings that a chunk model was made with.

    Args:
        model: the chunk model.
        given: the same settings, where the caller has any; the dimensions of a model without.

    Raises:
        ConfigurationError: this is no chunk model, its dimensions are not known, or it was made
            with other settings.
    """
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    table = mapper.local_table if isinstance(mapper, Mapper) else None
    if not isinstance(table, Table) or not issubclass(model, ChunkMixin):
        name = getattr(model, "__name__", type(model).__name__)
        raise ConfigurationError(
            f"model must be a mapped class made with ChunkMixin, not {name}",
            setting="model",
        )
    if mapper is not None and mapper.inherits is not None:
        raise ConfigurationError(
            f"model must be the class that has the table, {mapper.base_mapper.class_.__name__}, "
            f"not {model.__name__}, which inherits from it",
            setting="model",
        )
    settings = model._cenote_settings | {"table_name": table.name, "schema": table.schema}
    settings.setdefault("dimensions", given.get("dimensions"))
    if settings["dimensions"] is None:
        raise ConfigurationError(
            f"how many dimensions has {model.__name__}? Say so where it is made: "
            f"class {model.__name__}(ChunkMixin, ..., dimensions=384)",
            setting="dimensions",
        )
    config = SchemaConfig(**settings)
    for field in fields(config):
        value = given.get(field.name)
        if value not in (None, field.default, getattr(config, field.name)):
            raise ConfigurationError(
                f"{field.name} is that of {model.__name__}: leave it out, or change the model",
                setting=field.name,
            )
    return config
