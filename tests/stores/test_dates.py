"""Dates in filters: rejected for metadata, where UTC text sorts by instant; timestamp columns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import DateTime
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.database import execute

from cenote import ChunkMixin, InMemoryVectorStore, InvalidInputError, PgVectorStore, field, meta
from cenote.filters.checks import as_filter
from cenote.testing import embedded, stored


class Base(DeclarativeBase):
    pass


class Event(ChunkMixin, Base, dimensions=4):
    __tablename__ = "events"

    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def _zone(hours: float) -> timezone:
    return timezone(timedelta(hours=hours))


INSTANTS = [
    datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=_zone(14)),
    datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC),
    datetime(2024, 3, 1, 1, 59, 59, 1, tzinfo=_zone(2)),
    datetime(2024, 2, 29, 18, 59, 59, 500_000, tzinfo=_zone(-5)),
    datetime(2024, 3, 1, 5, 30, tzinfo=_zone(5.5)),
    datetime(2024, 3, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(2024, 3, 1, 12, tzinfo=_zone(11)),
]
"""Instants in ascending order, in several time zones, with and without microseconds."""

COMPARISONS: list[tuple[Callable[[Any, Any], Any], Callable[[datetime, datetime], bool]]] = [
    (lambda key, value: key < value, lambda stored, value: stored < value),
    (lambda key, value: key <= value, lambda stored, value: stored <= value),
    (lambda key, value: key > value, lambda stored, value: stored > value),
    (lambda key, value: key >= value, lambda stored, value: stored >= value),
    (lambda key, value: key == value, lambda stored, value: stored == value),
    (lambda key, value: key != value, lambda stored, value: stored != value),
    (lambda key, value: key.in_([value] * 30), lambda stored, value: stored == value),
]


def _utc_text(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()


def test_instants_are_in_order() -> None:
    assert sorted(INSTANTS) == INSTANTS


MAKE_FILTERS: dict[str, Callable[[Any], Any]] = {
    "==": lambda value: meta("at") == value,
    "!=": lambda value: meta("at") != value,
    ">=": lambda value: meta("at") >= value,
    "between": lambda value: meta("at").between("2024", value),
    "in_": lambda value: meta("at").in_([1, value]),
    "long in_": lambda value: meta("at").in_([*range(30), value]),
    "not_in": lambda value: meta("event", "at").not_in([value]),
    "contains": lambda value: meta("at").contains(value),
    "any_of": lambda value: meta("at").any_of([value]),
    "all_of": lambda value: meta("at").all_of([*range(30), [value]]),
    "dict": lambda value: {"at": value},
    "nested": lambda value: {"event": {"at": [value]}},
    "$gte": lambda value: {"at": {"$gte": value}},
    "$lt": lambda value: {"$not": {"at": {"$lt": value}}},
    "$in": lambda value: {"at": {"$in": [value]}},
    "$any": lambda value: {"at": {"$any": [{"x": value}]}},
}


@pytest.mark.parametrize("name", MAKE_FILTERS)
def test_dates_are_rejected_in_metadata(name: str) -> None:
    """Comparing metadata with a date raises an error that names the two ways that work."""
    for value, conversion in (
        (datetime(2024, 3, 1, tzinfo=UTC), r"value\.astimezone\(timezone\.utc\)\.isoformat\(\)"),
        (datetime(2024, 3, 1), r"value\.astimezone\(timezone\.utc\)\.isoformat\(\)"),
        (date(2024, 3, 1), r"value\.isoformat\(\)"),
    ):
        pattern = conversion + r".*timestamp column in your model.*field\(\"at\"\)"
        with pytest.raises(InvalidInputError, match=pattern) as error:
            as_filter(MAKE_FILTERS[name](value))
        assert error.value.field == "filter"
        assert "2024" not in str(error.value)


async def test_utc_text_compares_by_instant(engine: AsyncEngine) -> None:
    """UTC text in ISO format sorts by instant in both stores, with and without microseconds."""
    chunks = [
        embedded(str(n), metadata={"at": _utc_text(value)}) for n, value in enumerate(INSTANTS)
    ]
    for store in (InMemoryVectorStore(4), PgVectorStore(engine, 4)):
        await store.upsert(chunks, "n")
        for value in INSTANTS:
            for make, matches in COMPARISONS:
                found = await stored(store, "n", make(meta("at"), _utc_text(value)))
                expected = [str(n) for n, at in enumerate(INSTANTS) if matches(at, value)]
                assert [chunk.id for chunk in found] == expected
            day = await stored(store, "n", meta("at") >= date(2024, 3, 1).isoformat())
            assert [chunk.id for chunk in day] == ["4", "5", "6"]


async def test_timestamp_columns_compare_by_instant(empty_engine: AsyncEngine) -> None:
    """A mapped timestamp column compares with datetimes of any time zone, in both stores."""
    await execute(empty_engine, "CREATE EXTENSION vector")
    async with empty_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    chunks = [embedded(str(n), columns={"at": value}) for n, value in enumerate(INSTANTS)]
    stores: list[Any] = [InMemoryVectorStore(4), InMemoryVectorStore(model=Event)]
    for store in [*stores, PgVectorStore(empty_engine, model=Event)]:
        await store.upsert(chunks, "n")
        for instant in INSTANTS:
            value = instant.astimezone(_zone(-9.5))
            for make, matches in COMPARISONS:
                found = await stored(store, "n", make(field("at"), value))
                expected = [str(n) for n, at in enumerate(INSTANTS) if matches(at, value)]
                assert [chunk.id for chunk in found] == expected
