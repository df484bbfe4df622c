"""Settings: their ranges, their sources, and errors that name the setting."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from cenote import ConfigurationError, InMemoryVectorStore, PgVectorStore, SchemaConfig
from cenote.inspection.hints import upgrade_command
from cenote.inspection.live_table import LiveTable
from cenote.inspection.settings import explicit_settings, gather, resolve
from cenote.validation.arguments import is_integer, is_number


@pytest.mark.parametrize(
    "settings",
    [
        {"dimensions": 1},
        {"dimensions": 2000},
        {"dimensions": 4000, "column_type": "halfvec"},
        {"hnsw_m": 2, "hnsw_ef_construction": 4},
        {"hnsw_m": 100, "hnsw_ef_construction": 1000},
        {"partitions": 0},
        {"partitions": None},
        {"partitions": 1024},
        {"table_name": "Índice_2", "schema": "select", "extension_schema": "Extensions"},
        {"table_name": "t" * 38},
    ],
    ids=str,
)
def test_valid_settings(settings: dict[str, Any]) -> None:
    """The lowest and the highest value of each range are accepted."""
    assert SchemaConfig(**{"dimensions": 3, **settings}).hnsw_m <= 100


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("dimensions", value) for value in (0, -1, 2001, 3.0, "3", None, True)),
        *(("column_type", value) for value in ("bit", "sparsevec", "VECTOR", None)),
        *(("hnsw_m", value) for value in (1, 101, 16.0, None, True)),
        *(("hnsw_ef_construction", value) for value in (3, 31, 1001, "64", None)),
        *(("partitions", value) for value in (1, -1, 1025, 2.0, False, True)),
        *(
            (name, value)
            for name in ("table_name", "schema", "extension_schema")
            for value in (
                "",
                "a b",
                "a-b",
                "1a",
                'a"; DROP TABLE users; --',
                "a.b",
                "a\x00",
                "ñ" * 32,
                7,
            )
        ),
        ("table_name", None),
        ("table_name", "t" * 39),
        ("schema", "pg_temp"),
    ],
    ids=str,
)
def test_invalid_settings(setting: str, value: Any) -> None:
    """The error's message and its attribute name the setting."""
    with pytest.raises(ConfigurationError) as error:
        SchemaConfig(**{"dimensions": 3, setting: value})
    assert error.value.setting == setting
    assert setting in str(error.value)


@pytest.mark.parametrize(
    ("settings", "setting", "named"),
    [
        ({"dimensions": 3072}, "dimensions", ["'halfvec' supports", "4,000", "'bit'", "16,000"]),
        ({"dimensions": 3072, "metric": "l2"}, "dimensions", ["'halfvec' supports", "'none'"]),
        (
            {"dimensions": 4001, "column_type": "halfvec"},
            "dimensions",
            ["4,000", "'bit'", "'none'"],
        ),
        ({"dimensions": 4001, "index": "halfvec", "metric": "l2"}, "dimensions", ["'none'"]),
        ({"dimensions": 16_001, "index": "bit"}, "dimensions", ["16,000", "shorten"]),
        ({"column_type": "halfvec", "index": "vector"}, "index", ["32 bits", "omit `index`"]),
        ({"index": "bit", "metric": "l2"}, "index", ["only the signs", "'cosine'", "'halfvec'"]),
        ({"index": "ivfflat"}, "index", ["'vector', 'halfvec', 'bit' or 'none'"]),
        ({"metric": "hamming"}, "metric", ["'cosine', 'inner_product' or 'l2'"]),
    ],
)
def test_a_kind_of_index_and_its_limits(
    settings: dict[str, Any], setting: str, named: list[str]
) -> None:
    """The error names the setting, the reason, and the kinds that would work."""
    with pytest.raises(ConfigurationError) as error:
        SchemaConfig(**({"dimensions": 3} | settings))
    assert error.value.setting == setting
    for words in named:
        assert words in str(error.value)
    assert ("'bit' supports" in str(error.value)) is ("'bit'" in named)


@pytest.mark.parametrize("dimensions", [0, -3, 1.5, None, True])
def test_invalid_dimensions_in_memory(dimensions: Any) -> None:
    """The in-memory store rejects the same dimensions as SchemaConfig."""
    with pytest.raises(ConfigurationError):
        InMemoryVectorStore(dimensions)


def test_invalid_column_type_in_memory() -> None:
    """The in-memory store rejects an unknown column type."""
    with pytest.raises(ConfigurationError) as error:
        InMemoryVectorStore(3, column_type="half")  # type: ignore[arg-type]
    assert error.value.setting == "column_type"


@pytest.mark.parametrize("engine", [None, "postgresql://localhost/x", object()])
def test_stores_require_an_engine(engine: Any) -> None:
    """A connection string is rejected, because it belongs to `connect`."""
    with pytest.raises(ConfigurationError):
        PgVectorStore(engine, 3)


def test_settings_in_the_upgrade_command() -> None:
    """The command contains all settings that differ from their defaults, and no others."""
    config = SchemaConfig(dimensions=4000, column_type="halfvec", schema="s", partitions=0)
    command = upgrade_command(explicit_settings(config))
    assert command.startswith("cenote migrate -x dimensions=4000 ")
    assert command.endswith(" upgrade head")
    arguments = dict(re.findall(r"-x (\w+)=(\S+)", command))
    assert set(arguments) == {"dimensions", "column_type", "schema", "partitions"}
    assert resolve(gather(arguments, {}, {}), None) == config


def test_priority_of_sources() -> None:
    """The command line comes before the ini file, the environment and the live table."""
    arguments = {"dimensions": "3"}
    section = {"dimensions": "4", "partitions": "0"}
    environ = {"CENOTE_DIMENSIONS": "5", "CENOTE_PARTITIONS": "2", "CENOTE_SCHEMA": "s"}
    given = gather(arguments, section, environ)
    assert given == {"dimensions": 3, "partitions": 0, "schema": "s"}
    assert resolve(given, None) == SchemaConfig(dimensions=3, partitions=0, schema="s")
    live = LiveTable(
        text_search=None,
        configurations={},
        row_security=False,
        unsecured=(),
        shards=None,
        other_policies=False,
        oid=1,
        schema="s",
        name="cenote_chunks",
        comment=None,
        column_type="halfvec",
        dimensions=7,
        partitioned=True,
        detached=(),
        bounds={"a": (2, 0), "b": (2, 1)},
        columns={},
        key=("namespace", "id"),
        key_name="pk",
        indexes=(),
        rows=0,
    )
    assert resolve({"schema": "s"}, live) == SchemaConfig(
        dimensions=7, column_type="halfvec", partitions=2, schema="s"
    )
    assert resolve({}, None) is None


def test_errors_name_setting_and_source() -> None:
    """The error names the setting and where it was set."""
    with pytest.raises(ConfigurationError, match="-x dimension is not a setting"):
        gather({"dimension": "3"}, {}, {})
    with pytest.raises(ConfigurationError, match=r"\[cenote\] dimension is not a setting"):
        gather({}, {"dimension": "3"}, {})
    with pytest.raises(ConfigurationError, match="must be an integer") as error:
        gather({}, {}, {"CENOTE_HNSW_M": "many"})
    assert error.value.setting == "hnsw_m"


@pytest.mark.parametrize("value", [True, False, np.int64(3), np.float32(1), "3", None, 1j])
def test_values_that_are_not_numbers(value: Any) -> None:
    """Booleans, texts and most numbers of numpy count neither as integers nor as numbers."""
    assert not is_integer(value)
    assert not is_number(value)


def test_ranges_of_numbers() -> None:
    """Ranges include both limits, and NaN is in no range."""
    assert [number for number in range(5) if is_integer(number, 1, 3)] == [1, 2, 3]
    assert is_number(0.5, 0, 0.5)
    assert is_number(np.float64(0.5), 0, 1)  # np.float64 is a subclass of float
    assert not is_integer(1.0)
    assert not is_number(float("nan"), 0, 1)
    assert not is_integer(10**400, 1, 10)
