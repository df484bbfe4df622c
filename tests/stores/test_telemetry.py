"""Log records, spans and metrics of store operations."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote import (
    CenoteError,
    Chunk,
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
    SyncVectorStore,
    VectorStore,
    VectorStoreError,
)
from cenote.testing import embedded, stored

MARKERS = ["tenant-acme", "secret content", "secret-key", "secret-value", "secret-id", "0.8125"]
HASH = hashlib.sha256(b"tenant-acme").hexdigest()[:16]


@pytest.fixture(scope="module")
def exported() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """Exporters of OpenTelemetry's SDK, whose provider can be set only once per process."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader


@pytest.fixture
def spans(exported: tuple[InMemorySpanExporter, Any]) -> InMemorySpanExporter:
    """Exporter with the spans of this test only."""
    exported[0].clear()
    return exported[0]


@pytest.fixture(params=["memory", "postgres"])
def make_store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Factory for a store of each kind."""
    engine = None if request.param == "memory" else request.getfixturevalue("engine")

    def make(**options: Any) -> Any:
        if engine is None:
            return InMemoryVectorStore(4, **options)
        return PgVectorStore(engine, 4, **options)

    return make  # type: ignore[return-value]


def secret(chunk_id: str = "secret-id", number: float = 0.8125) -> Any:
    """Return a chunk that must not appear in telemetry."""
    metadata = {"secret-key": "secret-value"}
    return embedded(chunk_id, [number, 1, 0, 0], content="secret content", metadata=metadata)


async def every_operation(store: VectorStore) -> list[str]:
    """Call each operation of a store once, and return their names in order."""
    name, query = "tenant-acme", [0.8125, 1, 0, 0]
    filter = {"secret-key": "secret-value"}
    chunk = Chunk(id="secret-id", document_id="doc", content="secret content")
    await store.upsert([secret(), secret("two")], name)
    await store.search(query, name, 5, filter)
    await store.search_many([query, query], name, 1)
    await store.search_diverse(query, name, 2)
    await store.search_namespaces(query, [name])
    await store.get(["secret-id"], name)
    await store.get_embeddings(["secret-id"], name)
    await store.list_chunks(name, filter)
    await store.count(name, filter)
    await store.list_namespaces()
    await store.neighbours("secret-id", name)
    await store.missing([chunk], name)
    await stored(store, name)
    await store.update_metadata({"secret-id": {"secret-key": 1}}, name)
    await store.sync_document("doc", [secret()], name)
    await store.delete(["secret-id"], name)
    await store.delete_document("doc", name)
    await store.delete_matching(filter, name)
    await store.bulk_load([secret()], name)  # type: ignore[attr-defined]
    await store.delete_namespace(name)
    return [
        *("upsert", "search", "search_many", "search_diverse", "search_namespaces", "get"),
        *(
            "get_embeddings",
            "list_chunks",
            "count",
            "list_namespaces",
            "neighbours",
            "missing",
            "get_all_chunks",
        ),
        *("update_metadata", "sync_document", "delete", "delete_document", "delete_matching"),
        *("bulk_load", "delete_namespace"),
    ]


async def test_spans_and_log_records(
    make_store: Any, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Each operation reports a span and a log record, without ids, contents or metadata."""
    caplog.set_level(logging.DEBUG, "cenote.telemetry")
    store = make_store()
    operations = await every_operation(store)
    outer = [span for span in spans.get_finished_spans() if span.parent is None]
    assert [span.name for span in outer] == ["cenote." + name for name in operations]
    table = "memory" if isinstance(store, InMemoryVectorStore) else "cenote_chunks"
    reported = {span.name: dict(span.attributes or {}) for span in outer}
    common = {"db.collection.name": table, "cenote.namespace": HASH}
    assert reported["cenote.search"] == {**common, "cenote.rows": 2, "cenote.search.path": "exact"}
    rows = {
        name.removeprefix("cenote."): attributes.get("cenote.rows")
        for name, attributes in reported.items()
    }
    assert rows["upsert"] == rows["search_many"] == rows["get_all_chunks"] == rows["count"] == 2
    assert rows["delete_document"] == 0
    assert rows["sync_document"] == 2  # one chunk written and one removed
    assert rows["delete"] is None  # the method does not know which of the ids existed
    assert reported["cenote.list_namespaces"] == {"db.collection.name": table}
    inner = {span.name for span in spans.get_finished_spans() if span.parent is not None}
    assert inner >= {"cenote.search"}  # in search_diverse and search_namespaces

    records = [record for record in caplog.records if record.name == "cenote.telemetry"]
    search = next(record for record in records if vars(record)["cenote_operation"] == "search")
    fields = {key: value for key, value in vars(search).items() if key.startswith("cenote_")}
    assert fields.pop("cenote_duration") > 0
    assert fields == {
        "cenote_operation": "search",
        "cenote_table": table,
        "cenote_namespace": HASH,
        "cenote_rows": 2,
        "cenote_path": "exact",
    }
    assert search.getMessage() == f"search table={table} namespace={HASH} rows=2 path=exact"
    telemetry = "".join(span.to_json() for span in spans.get_finished_spans()) + caplog.text
    telemetry += json.dumps([vars(record) for record in records], default=str)
    assert [marker for marker in MARKERS if marker in telemetry] == []


STORES = [
    InMemoryVectorStore(4),
    PgVectorStore(create_async_engine("postgresql+asyncpg://nobody@nowhere/nothing"), 4),
    SyncInMemoryVectorStore(4),
    SyncPgVectorStore(create_engine("postgresql+psycopg://nobody@nowhere/nothing"), 4),
]


@pytest.mark.parametrize("store", STORES, ids=repr)
async def test_every_operation_is_reported(
    store: VectorStore | SyncVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Each public method with a namespace, but no iterator, reports an operation of its name."""
    caplog.set_level(logging.DEBUG, "cenote.telemetry")
    called = 0
    is_synchronous = isinstance(store, SyncVectorStore)
    for name, _ in inspect.getmembers(PgVectorStore, inspect.iscoroutinefunction):
        method = getattr(store, name, None)
        if method is None:
            continue
        parameters = inspect.signature(method).parameters
        concerns_namespaces = {"namespace", "namespaces"} & parameters.keys()
        if name.startswith("_") or not (concerns_namespaces or name == "list_namespaces"):
            continue
        required = [p for p in parameters.values() if p.default is p.empty]
        invalid = [object() for _ in required]
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            invalid.pop()
        # A synchronous store rejects the session before the operation begins.
        options = {"session": object()} if "session" in parameters and not is_synchronous else {}
        with suppress(CenoteError):  # raised before the store connects
            result = method(*invalid, **options)
            if not is_synchronous:
                await result
        called += 1
        assert caplog.records, name
        assert vars(caplog.records[-1])["cenote_operation"] == name
        caplog.clear()
    measures_recall = isinstance(store, PgVectorStore | SyncPgVectorStore)
    assert called == 21 + measures_recall


async def test_spans_of_errors(
    engine: AsyncEngine, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """An error is reported by its class and SQLSTATE, without message, traceback or cause."""
    caplog.set_level(logging.DEBUG, "cenote.telemetry")
    store = PgVectorStore(engine, 4)
    async with engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE cenote_chunks ADD CHECK (content <> 'secret content')")
        )
    with pytest.raises(VectorStoreError):
        await store.upsert([secret()], "tenant-acme")
    with pytest.raises(InvalidInputError):
        await store.search([1, 2], "tenant-acme")
    with pytest.raises(InvalidInputError):
        await store.count(7)  # type: ignore[arg-type]
    failed, rejected, without_namespace = spans.get_finished_spans()
    reported = dict(failed.attributes or {})
    assert reported["error.type"] == "VectorStoreError"
    assert reported["db.response.status_code"] == "23514"
    assert (failed.status.status_code, failed.status.description) == (
        trace.StatusCode.ERROR,
        "VectorStoreError",
    )
    assert failed.events == ()
    assert dict(rejected.attributes or {})["error.type"] == "DimensionMismatchError"
    assert "cenote.namespace" not in dict(without_namespace.attributes or {})
    telemetry = "".join(span.to_json() for span in spans.get_finished_spans()) + caplog.text
    assert [marker for marker in MARKERS if marker in telemetry] == []


async def test_the_path_of_a_search(store: PgVectorStore, spans: InMemorySpanExporter) -> None:
    """A search reports whether the index or the exact branch found the results."""
    chunks = [embedded(f"{n:04}", [1, n % 37, n % 41, n % 43]) for n in range(3000)]
    await store.bulk_load(chunks, "n")
    spans.clear()
    await store.search([1, 2, 3, 4], "n")
    await store.search([1, 2, 3, 4], "n", exact=True)
    await store.search([1, 2, 3, 4], "n", filter={"no": "such"})
    await store.search([1, 2, 3, 4], "nobody")
    paths = [
        dict(span.attributes or {})["cenote.search.path"] for span in spans.get_finished_spans()
    ]
    assert paths == ["ann", "exact", "exact", "exact"]


async def test_plain_namespaces(make_store: Any, spans: InMemorySpanExporter) -> None:
    """namespaces_in_telemetry='plain' reports namespaces instead of their hashes."""
    await make_store(namespaces_in_telemetry="plain").count("tenant-acme")
    (span,) = spans.get_finished_spans()
    assert dict(span.attributes or {})["cenote.namespace"] == "tenant-acme"
    with pytest.raises(ConfigurationError) as error:
        make_store(namespaces_in_telemetry="no")
    assert error.value.setting == "namespaces_in_telemetry"


async def test_metrics(exported: tuple[Any, InMemoryMetricReader]) -> None:
    """Metrics of durations and rows are labelled with the operation, never with the namespace."""
    store = InMemoryVectorStore(4)
    await store.upsert([embedded("a")], "metered")
    await store.search([1, 0, 0, 0], "metered")
    data = exported[1].get_metrics_data()
    assert data is not None
    metrics_by_name = {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    duration = metrics_by_name["cenote.operation.duration"]
    assert duration.unit == "s"
    points = [dict(point.attributes or {}) for point in duration.data.data_points]
    assert {
        "cenote.operation": "search",
        "db.collection.name": "memory",
        "cenote.search.path": "exact",
    } in points
    assert all("cenote.namespace" not in point for point in points)
    assert metrics_by_name["cenote.operation.rows"].unit == "{chunk}"


WITHOUT = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from cenote import InMemoryVectorStore
assert asyncio.run(InMemoryVectorStore(4).count("n")) == 0
assert "opentelemetry.trace" not in sys.modules
"""


async def test_other_errors_are_not_quoted(spans: InMemorySpanExporter) -> None:
    """Telemetry contains neither attributes of the caller's errors nor invalid namespaces."""

    class ForeignError(Exception):
        sqlstate = "secret content"

    def chunks() -> Iterator[Any]:
        yield secret()
        raise ForeignError

    store = InMemoryVectorStore(4, namespaces_in_telemetry="plain")
    with pytest.raises(ForeignError):
        await store.bulk_load(chunks(), "n")
    with pytest.raises(InvalidInputError):
        await store.count("secret content" * 1000)
    telemetry = "".join(span.to_json() for span in spans.get_finished_spans())
    assert [marker for marker in MARKERS if marker in telemetry] == []


def test_another_package_named_opentelemetry() -> None:
    """A package with the name of OpenTelemetry, but without its API, is ignored."""
    empty_package = 'import types; sys.modules["opentelemetry"] = types.ModuleType("opentelemetry")'
    code = WITHOUT.replace('sys.modules["opentelemetry"] = None', empty_package)
    assert empty_package in code
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_opentelemetry() -> None:
    """cenote works without OpenTelemetry, and `import cenote` does not import it."""
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)
    code = "import cenote, sys; assert not any(name.startswith('opentele') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
