"""The revisions of cenote for each metric and each kind of ANN index."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase
from support.autogenerate import autogenerate
from support.commands import cenote, output_of
from support.database import execute, scalar, tables

from cenote import ChunkMixin, ConfigurationError, SchemaConfig, schema
from cenote.types import ColumnType, IndexKind, Metric


def configurations(metric: Metric) -> list[SchemaConfig]:
    """Return all valid combinations with a metric, every third one partitioned."""
    valid: list[SchemaConfig] = []
    for column_type in get_args(ColumnType):
        for kind in get_args(IndexKind):
            name = f"{column_type}_{kind}"
            partitions = 0 if len(valid) % 3 else 2
            settings: dict[str, Any] = {"table_name": name, "partitions": partitions}
            settings |= {"column_type": column_type, "index": kind, "metric": metric}
            try:
                valid.append(SchemaConfig(dimensions=3, **settings))
            except ConfigurationError:
                assert kind == "bit" or (column_type, kind) == ("halfvec", "vector")
    return valid


def model_of(config: SchemaConfig) -> Any:
    """Return a model, on a base of its own, of an application that does not run the revisions."""

    class Base(DeclarativeBase):
        pass

    names = ("dimensions", "column_type", "partitions", "index", "metric")

    class Passage(ChunkMixin, Base, **{name: getattr(config, name) for name in names}):
        __tablename__ = config.table_name

    return Passage


@pytest.mark.parametrize("metric", get_args(Metric))
async def test_upgrade_and_downgrade(
    empty_engine: AsyncEngine, empty_dsn: str, metric: Metric
) -> None:
    """`schema.check` and autogenerate find nothing after an upgrade; a downgrade leaves nothing."""
    await execute(empty_engine, "CREATE EXTENSION vector")
    configs = configurations(metric)
    assert len(configs) == (7 if metric == "cosine" else 5)
    for config in configs:
        names = ("dimensions", "table_name", "column_type", "partitions", "index", "metric")
        settings = [f"-x{name}={getattr(config, name)}" for name in names]
        await schema.upgrade(empty_engine, config)
        assert await schema.check(empty_engine, config) == []
        difference = await autogenerate(empty_engine, model_of(config).metadata)
        assert difference.is_empty, difference.upgrade
        migrate = ["migrate", *settings, "downgrade", "base"]
        output_of(cenote(*migrate, CENOTE_DATABASE_URL=empty_dsn))
        version_table = f"{config.table_name}_alembic_version"
        assert await tables(empty_engine) == [version_table]
        await execute(empty_engine, f"DROP TABLE {version_table}")
        left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert await scalar(empty_engine, left) == 0
