"""What a store's operations tell: log records, and spans and metrics of OpenTelemetry.

Every operation of `PgVectorStore` and `InMemoryVectorStore` on namespaces leaves, when it ends,

- a record of level DEBUG of the logger ``cenote.telemetry``, whose attributes are the fields below
  with ``cenote_`` before them;
- with ``opentelemetry-api`` installed, a span ``cenote.<operation>`` and a point of the histograms
  ``cenote.operation.duration`` (seconds) and ``cenote.operation.rows``.

============== =============================== =====================================================
field          of the span                     what it is
============== =============================== =====================================================
operation      the name                        the method
table          ``db.collection.name``          the chunk table; ``"memory"`` without one
namespace      ``cenote.namespace``            of the call, or its hash; not in the metrics
rows           ``cenote.rows``                 chunks that came back, were written or removed, where
                                               the method knows
path           ``cenote.search.path``          of ``search``: ``"ann"``, or ``"exact"``
error          ``error.type``                  the class of the error that ended it
sqlstate       ``db.response.status_code``     of an error of the server
duration       its own                         seconds
============== =============================== =====================================================

``search_diverse`` and ``search_namespaces`` search, and tell of that, too: below their spans are
those of the searches.

Nothing else of a call is told: no contents, ids, vectors, metadata or filters, and no message of an
error. Nor is the error itself recorded, since what caused it may quote rows. Statements are for the
instrumentations of SQLAlchemy and asyncpg to tell, whose spans come to stand below these.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, Literal, TypeVar, get_args

from cenote.errors import ConfigurationError, InvalidInputError, VectorStoreError
from cenote.models import SyncResult
from cenote.validation import check_namespace

__all__ = ["NamespaceInTelemetry"]

NamespaceInTelemetry = Literal["hashed", "plain"]
"""How telemetry names a namespace: by 16 hexadecimal digits of its SHA-256, which tells tenants
apart and hides no name from whoever can guess it; or as it is."""

_logger = logging.getLogger(__name__)

Store = TypeVar("Store", bound=type)


@dataclass(slots=True)
class Seen:
    """What an operation notes of itself while it runs."""

    rows: int | None = None
    path: str | None = None


_running: ContextVar[Seen | None] = ContextVar("cenote_operation", default=None)


def note(*, rows: int | None = None, path: str | None = None) -> None:
    """Note something of the operation that runs, if anybody listens."""
    if (seen := _running.get()) is not None:
        seen.rows = seen.rows if rows is None else rows
        seen.path = seen.path if path is None else path


class Telemetry:
    """What the operations of one store tell.

    Args:
        table: the chunk table's name.
        namespaces: how to name namespaces.

    Raises:
        ConfigurationError: there is no such way.
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
    def operation(self, name: str, namespace: Any) -> Iterator[Seen]:
        """Tell of what runs inside."""
        instruments = _instruments()
        if instruments is None and not _logger.isEnabledFor(logging.DEBUG):
            yield Seen()
            return
        told = self._named(namespace)
        seen = Seen()
        token = _running.set(seen)
        error: BaseException | None = None
        start = time.perf_counter()
        with nullcontext() if instruments is None else instruments.span(name) as span:
            try:
                yield seen
            except BaseException as raised:
                error = raised
                raise
            finally:
                duration = time.perf_counter() - start
                _running.reset(token)
                fields = {
                    "table": self._table,
                    "namespace": told,
                    "rows": seen.rows,
                    "path": seen.path,
                    "error": None if error is None else type(error).__name__,
                    "sqlstate": error.sqlstate if isinstance(error, VectorStoreError) else None,
                }
                _log(name, fields, duration)
                if instruments is not None:
                    instruments.tell(span, name, fields, duration)

    def _named(self, namespace: Any) -> str | None:
        try:
            check_namespace(namespace)
        except InvalidInputError:
            return None
        name: str = namespace
        if self._namespaces == "plain":
            return name
        return hashlib.sha256(name.encode()).hexdigest()[:16]


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


# -- around a store's methods ----------------------------------------------------------------------


def observed(store: Store) -> Store:
    """Have the operations of a store class told: all that are awaited and concern a namespace.

    Its instances have a `Telemetry`, ``_telemetry``. Of ``get_all_chunks``, which is iterated over,
    the store tells page by page.
    """
    for name in dir(store):
        method = getattr(store, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(method):
            continue
        names = [*inspect.signature(method).parameters]
        if not {"namespace", "namespaces"}.isdisjoint(names) or name == "list_namespaces":
            setattr(store, name, _told(method, names))
    return store


def _told(method: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    @wraps(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        namespace = _argument("namespace", names, arguments, options)
        with self._telemetry.operation(method.__name__, namespace) as seen:
            result = await method(self, *arguments, **options)
            if seen.rows is None:
                seen.rows = _rows(result)
            return result

    return call


def _argument(
    name: str, names: list[str], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """An argument of a call; None where it has none of that name."""
    if name in options or name not in names:
        return options.get(name)
    place = names.index(name) - 1  # without self
    return arguments[place] if place < len(arguments) else None


def _rows(result: Any) -> int | None:
    """Chunks in what a method returns."""
    if isinstance(result, SyncResult):
        return result.written + result.removed
    if isinstance(result, int):
        return result
    if isinstance(result, list):
        return sum(len(one) if isinstance(one, list) else 1 for one in result)
    return None


# -- OpenTelemetry ---------------------------------------------------------------------------------


class _Instruments:
    """The tracer, and what is measured."""

    def __init__(self, trace: Any, metrics: Any) -> None:
        own = _own_version()
        self._trace = trace
        self._tracer = trace.get_tracer("cenote", own)
        meter = metrics.get_meter("cenote", own or "")
        self._duration = meter.create_histogram(
            "cenote.operation.duration", "s", "Time that an operation of a store takes."
        )
        self._rows = meter.create_histogram(
            "cenote.operation.rows", "{chunk}", "Chunks that an operation read or wrote."
        )

    def span(self, operation: str) -> Any:
        """A span that records no error by itself: its traceback would quote rows."""
        return self._tracer.start_as_current_span(
            "cenote." + operation, record_exception=False, set_status_on_exception=False
        )

    def tell(self, span: Any, operation: str, fields: dict[str, Any], duration: float) -> None:
        names = {
            "table": "db.collection.name",
            "path": "cenote.search.path",
            "error": "error.type",
            "sqlstate": "db.response.status_code",
            "namespace": "cenote.namespace",
            "rows": "cenote.rows",
        }
        told = {names[one]: value for one, value in fields.items() if value is not None}
        span.set_attributes(told)
        if fields["error"] is not None:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, fields["error"]))
        few = {name: told[name] for name in told.keys() - {"cenote.namespace", "cenote.rows"}}
        few["cenote.operation"] = operation
        self._duration.record(duration, few)
        if fields["rows"] is not None:
            self._rows.record(fields["rows"], few)


@cache
def _instruments() -> _Instruments | None:
    """OpenTelemetry's, if that is installed; looked for at the first operation."""
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    return _Instruments(trace, metrics)


def _own_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cenote")
    except PackageNotFoundError:  # a copy that was not installed
        return None
