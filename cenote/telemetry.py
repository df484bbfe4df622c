"""Log records, spans and metrics for store operations.

Each operation of `PgVectorStore` and `InMemoryVectorStore` on namespaces reports, when it ends:

- a log record of level DEBUG from the logger ``cenote.telemetry``, with the fields below as
  attributes (prefix ``cenote_``);
- if ``opentelemetry-api`` is installed: a span ``cenote.<operation>``, and a measurement in each of
  the histograms ``cenote.operation.duration`` (seconds) and ``cenote.operation.rows``.

============== =============================== =====================================================
field          span attribute                  meaning
============== =============================== =====================================================
operation      the span's name                 name of the method
table          ``db.collection.name``          chunk table; ``"memory"`` for an in-memory store
namespace      ``cenote.namespace``            namespace or its hash; not in metrics
rows           ``cenote.rows``                 number of chunks returned, written or deleted, if the
                                               method knows it
path           ``cenote.search.path``          for ``search`` only: ``"ann"`` or ``"exact"``
error          ``error.type``                  class of the error that ended the operation
sqlstate       ``db.response.status_code``     code of a server error
duration       the span's duration             seconds
============== =============================== =====================================================

``search_diverse`` and ``search_namespaces`` call ``search``, which reports as well: its spans are
children of theirs.

Telemetry contains nothing else: no contents, ids, vectors, metadata, filters or error messages. The
exception itself is not recorded, because its cause may quote rows. Statements are covered by the
instrumentations of SQLAlchemy and asyncpg, whose spans are children of these spans.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, Literal, TypeVar, cast, get_args

from cenote.errors import ConfigurationError, InvalidInputError, VectorStoreError
from cenote.models import SyncResult
from cenote.validation.arguments import check_namespace

__all__ = ["NamespaceInTelemetry"]

NamespaceInTelemetry = Literal["hashed", "plain"]
"""Form of namespaces in telemetry: ``"plain"``, or ``"hashed"`` as 16 hexadecimal digits of the
SHA-256. The hash distinguishes tenants, but does not hide a name from someone who can guess it."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class OperationStats:
    """Facts that an operation records about itself while it runs.

    Attributes:
        rows: Number of chunks returned, written or deleted; None if unknown.
        path: ``"ann"`` or ``"exact"`` for a search; otherwise None.
    """

    rows: int | None = None
    path: str | None = None


_current: ContextVar[OperationStats | None] = ContextVar("cenote_operation", default=None)


def record(*, rows: int | None = None, path: str | None = None) -> None:
    """Record facts about the current operation, if there is a listener."""
    if (stats := _current.get()) is not None:
        stats.rows = stats.rows if rows is None else rows
        stats.path = stats.path if path is None else path


class Telemetry:
    """Reports the operations of one store.

    Args:
        table: Name of the chunk table.
        namespaces: Form in which namespaces are reported.

    Raises:
        ConfigurationError: `namespaces` is not ``"hashed"`` or ``"plain"``.
    """

    def __init__(self, table: str, namespaces: NamespaceInTelemetry) -> None:
        if not isinstance(namespaces, str) or namespaces not in get_args(NamespaceInTelemetry):
            raise ConfigurationError(
                "namespaces_in_telemetry must be 'hashed' or 'plain'",
                setting="namespaces_in_telemetry",
            )
        self._table = table
        self._namespaces = namespaces

    @contextmanager
    def operation(self, name: str, namespace: Any) -> Iterator[OperationStats]:
        """Report the block as one operation.

        Args:
            name: Name of the operation.
            namespace: Namespace of the call. If it is not a valid namespace, it is left out.
        """
        stats = OperationStats()
        if not is_listened_to():
            yield stats
            return
        instruments = _instruments()
        reported_namespace = self._reported_namespace(namespace)
        token = _current.set(stats)
        error: BaseException | None = None
        start = time.perf_counter()
        with nullcontext() if instruments is None else instruments.span(name) as span:
            try:
                yield stats
            except BaseException as raised:
                error = raised
                raise
            finally:
                duration = time.perf_counter() - start
                _current.reset(token)
                fields = {
                    "table": self._table,
                    "namespace": reported_namespace,
                    "rows": stats.rows,
                    "path": stats.path,
                    "error": None if error is None else type(error).__name__,
                    "sqlstate": error.sqlstate if isinstance(error, VectorStoreError) else None,
                }
                _log(name, fields, duration)
                if instruments is not None:
                    instruments.report(span, name, fields, duration)

    def _reported_namespace(self, namespace: Any) -> str | None:
        try:
            check_namespace(namespace)
        except InvalidInputError:
            return None
        name: str = namespace
        if self._namespaces == "plain":
            return name
        return hashlib.sha256(name.encode()).hexdigest()[:16]


def is_listened_to() -> bool:
    """Return whether anything receives telemetry: an SDK of OpenTelemetry, or a DEBUG logger."""
    if _logger.isEnabledFor(logging.DEBUG):
        return True
    instruments = _instruments()
    return instruments is not None and instruments.are_received()


def _log(operation: str, fields: dict[str, Any], duration: float) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        known = {name: value for name, value in fields.items() if value is not None}
        extra = {"operation": operation, "duration": duration, **known}
        _logger.debug(
            "%s %s",
            operation,
            " ".join(f"{name}={value}" for name, value in known.items()),
            extra={"cenote_" + name: value for name, value in extra.items()},
        )


# -- decorator of a store's methods ----------------------------------------------------------------


Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])
"""A coroutine method of a store. A decorator that returns the same type keeps its signature."""


def reported(name: str) -> Callable[[Method], Method]:
    """Decorate a coroutine method of a store, so that each call is reported as one operation.

    The store has a `Telemetry`, ``_telemetry``.

    Args:
        name: Name of the operation.
    """

    def decorate(method: Method) -> Method:
        position = argument_position(method, "namespace")

        @wraps(method)
        async def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if not is_listened_to():
                return await method(self, *arguments, **options)
            namespace = options.get("namespace")
            if position is not None and position < len(arguments):
                namespace = arguments[position]
            with self._telemetry.operation(name, namespace) as stats:
                result = await method(self, *arguments, **options)
                if stats.rows is None:
                    stats.rows = _count_chunks(result)
                return result

        return cast(Method, call)

    return decorate


def argument_position(method: Callable[..., Any], name: str) -> int | None:
    """Return the index of a parameter among a method's arguments after ``self``, if it has it."""
    names = [*inspect.signature(method).parameters][1:]
    return names.index(name) if name in names else None


def _count_chunks(result: Any) -> int | None:
    """Return the number of chunks that a method's result stands for; None if it does not say."""
    if isinstance(result, SyncResult):
        return result.written + result.removed
    if isinstance(result, int):
        return result
    if isinstance(result, list):
        return sum(len(item) if isinstance(item, list) else 1 for item in result)
    return None


# -- OpenTelemetry ---------------------------------------------------------------------------------


class _Instruments:
    """A tracer and two histograms."""

    def __init__(self, trace: Any, metrics: Any) -> None:
        version = _cenote_version()
        self._trace, self._metrics = trace, metrics
        # Before an SDK is set up, the API returns providers that pass on calls to a later SDK.
        self._proxy_meters = getattr(metrics._internal, "_ProxyMeterProvider", None)
        self._tracer = trace.get_tracer("cenote", version)
        meter = metrics.get_meter("cenote", version or "")
        self._duration = meter.create_histogram(
            "cenote.operation.duration", "s", "Duration of a store operation."
        )
        self._rows = meter.create_histogram(
            "cenote.operation.rows",
            "{chunk}",
            "Number of chunks that a store operation read or wrote.",
        )

    def are_received(self) -> bool:
        """Return whether an SDK is set up. Without one, spans and measurements go nowhere."""
        return not (
            isinstance(self._trace.get_tracer_provider(), self._trace.ProxyTracerProvider)
            and type(self._metrics.get_meter_provider()) is self._proxy_meters
        )

    def span(self, operation: str) -> Any:
        """Start a span that does not record exceptions, because their tracebacks may quote rows."""
        return self._tracer.start_as_current_span(
            "cenote." + operation, record_exception=False, set_status_on_exception=False
        )

    def report(self, span: Any, operation: str, fields: dict[str, Any], duration: float) -> None:
        """Set the attributes of a span, and record its measurements."""
        names = {
            "table": "db.collection.name",
            "path": "cenote.search.path",
            "error": "error.type",
            "sqlstate": "db.response.status_code",
            "namespace": "cenote.namespace",
            "rows": "cenote.rows",
        }
        attributes = {names[field]: value for field, value in fields.items() if value is not None}
        span.set_attributes(attributes)
        if fields["error"] is not None:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, fields["error"]))
        # A metric needs a small number of distinct attribute values: no namespaces, no row counts.
        dimensions = {
            name: attributes[name]
            for name in attributes.keys() - {"cenote.namespace", "cenote.rows"}
        }
        dimensions["cenote.operation"] = operation
        self._duration.record(duration, dimensions)
        if fields["rows"] is not None:
            self._rows.record(fields["rows"], dimensions)


@cache
def _instruments() -> _Instruments | None:
    """Return OpenTelemetry's instruments; None without it. The first operation looks for it."""
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    return _Instruments(trace, metrics)


def _cenote_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cenote")
    except PackageNotFoundError:  # a copy that is not installed
        return None
