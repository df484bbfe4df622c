"""Search a namespace in its partition, as far as the store remembers where it is."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import REGCLASS

from cenote.errors import VectorStoreError
from cenote.filters.compiler import Conditions
from cenote.inspection.citus import is_distributed_query
from cenote.postgres.ddl import qualified
from cenote.postgres.pg_catalog import pg_class, pg_inherits, pg_policy
from cenote.postgres.row_security import PERMITS, RESTRICTS
from cenote.stores.pgvector.executor import StatementExecutor
from cenote.stores.pgvector.search_hints import Place, SearchHints
from cenote.stores.pgvector.sql import rows
from cenote.stores.pgvector.sql.partition_search import Scope, Strategy
from cenote.stores.pgvector.sql.search_statements import SearchStatements
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO

Row: TypeAlias = Sequence[Any]

_MAX_TEXTS = 64
"""Maximum number of statements that name a partition, of the 100 that asyncpg keeps prepared on
each connection. More would be prepared again and again; they name the chunk table instead."""

_UNUSED_SECONDS = 60.0
"""Seconds after which an unused statement may make room for another."""

_RELOAD_SECONDS = 60.0
"""Minimum seconds between two looks at the partitions."""

_MAX_SECONDS = 600.0
"""Maximum seconds between two looks, after which the role may have been granted privileges."""

_BY_NAMESPACE = r"^[A-Z]+ \(namespace\)$"
"""Pattern of partition keys with which all rows of a namespace are in one partition."""

_GONE = ("42P01", "42501", "3F000")
"""SQLSTATEs of a partition that cannot be read any more: undefined table, insufficient privilege,
undefined schema."""


class PartitionSearches:
    """Searches with hints, and without them if there are none or if they are wrong.

    Args:
        executor: Executor of the store.
        searches: Statements of the store.
        row_security: True if the table has row-level security.
    """

    def __init__(
        self, executor: StatementExecutor, searches: SearchStatements, *, row_security: bool
    ) -> None:
        self._executor = executor
        self._searches = searches
        self._row_security = row_security
        self._table = executor.table
        self._parent = qualified(self._table.name, self._table.schema)
        self.hints = SearchHints()
        self._names: dict[int, str] = {}
        self._readable: set[str] = set()
        self._loaded: float | None = None
        self._texts: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = threading.RLock()  # threads share a synchronous store

    async def search(
        self,
        namespace: str,
        conditions: Conditions,
        fetch: int | None,
        parameters: Mapping[str, Any],
        *,
        per_document: int | None,
    ) -> Sequence[Row]:
        """Search outside a caller's transaction.

        Args:
            namespace: Tenant to search in.
            conditions: Filter for the chunks.
            fetch: Number of rows for the ANN scan to find; None for an exact search.
            parameters: Parameters of the statement.
            per_document: Maximum number of chunks per document; unlimited if None.

        Returns:
            Rows for `rows.to_results`.
        """
        request = _Request(namespace, conditions, fetch, parameters, per_document)
        place = self.hints.places.get(namespace)
        if place is not None:
            found = await self._search_place(request, place)
            if found is not None:
                return found
        return await self._search_everywhere(request)

    async def _search_place(self, request: _Request, place: Place) -> Sequence[Row] | None:
        """Search with a hint.

        Returns:
            The rows; None if they may be incomplete.
        """
        strategy = self.hints.strategy(
            place,
            request.filter_key,
            fetch=request.fetch,
            per_document=request.per_document is not None,
        )
        statement = self._statement(request, place, strategy)
        names = {
            "partition": qualified(place.partition, self._table.schema),
            "parent": self._parent,
        }
        try:
            found = await self._executor.fetch(
                "search",
                None,
                request.namespace,
                statement,
                {**request.parameters, **names},
                sets_tenant=self._row_security,
            )
        except VectorStoreError as error:
            if error.sqlstate not in _GONE:
                raise
            self._loaded = None
            self.hints.places.forget(request.namespace)
            return None
        return self._proven(request, place, strategy, found)

    def _proven(
        self,
        request: _Request,
        place: Place,
        strategy: Strategy,
        found: Sequence[Row],
    ) -> Sequence[Row] | None:
        """Return the rows if they are complete, and remember what they tell."""
        first = found[0]
        has_rows = first[0] is not None
        present = first[rows.PRESENT]
        # A tenant that was set too late would look like an empty namespace.
        if not first[rows.ATTACHED] or not present or (self._row_security and not has_rows):
            self.hints.places.forget(request.namespace)
            return None
        if strategy == "ann" and request.fetch is not None and first[rows.FOUND] < request.fetch:
            self._remember_short_index(request, place, request.fetch)
            return None
        if strategy == "small":
            self.hints.places.refresh(request.namespace, replace(place, rows=present))
        elif strategy == "either":
            self._remember_strategy(request, place, by_ann=bool(first[rows.BY_ANN]))
        return found if has_rows else []

    def _remember_short_index(self, request: _Request, place: Place, fetch: int) -> None:
        if request.filter_key is None:
            short = replace(place, falls_short_at=min(fetch, place.falls_short_at or fetch))
            self.hints.places.put(request.namespace, short)
        else:
            self.hints.filters.put(request.filter_key, "exact")

    def _remember_strategy(self, request: _Request, place: Place, *, by_ann: bool) -> None:
        if request.filter_key is not None:
            if request.per_document is None:
                self.hints.filters.put(request.filter_key, "ann" if by_ann else "exact")
        elif place.rows is None and place.falls_short_at is None:
            rows_seen = EXACT_UP_TO + 1 if by_ann else EXACT_UP_TO
            self.hints.places.put(request.namespace, Place(place.partition, rows_seen))

    def _statement(self, request: _Request, place: Place, strategy: Strategy) -> Select[Any]:
        partition: str | None = place.partition
        scope: Scope = "partition"
        to_find = request.fetch if strategy in ("ann", "either") else None
        kind = self._searches.vectors.kind
        text = (partition, strategy, to_find, kind, request.per_document, request.conditions.shape)
        if partition == self._table.name:
            partition, scope = None, "plain"
        elif partition not in self._readable or (
            request.conditions.is_kept and not self._keeps(text)
        ):
            partition, scope = None, "partitioned"
        return self._searches.partition_search(
            partition,
            scope,
            strategy,
            request.conditions,
            to_find,
            per_document=request.per_document,
        )

    def _keeps(self, text: Hashable) -> bool:
        """Return whether there is room for a statement that names a partition."""
        now = time.monotonic()
        with self._lock:
            if text not in self._texts and len(self._texts) >= _MAX_TEXTS:
                oldest, used = next(iter(self._texts.items()))
                if now - used < _UNUSED_SECONDS:
                    return False
                del self._texts[oldest]
            self._texts[text] = now
            self._texts.move_to_end(text)
            return True

    async def _search_everywhere(self, request: _Request) -> Sequence[Row]:
        """Search without a hint, and remember where the namespace is."""
        if self._loaded is None or time.monotonic() - self._loaded > _MAX_SECONDS:
            await self._load_partitions()
        locate = bool(self._names)
        statement = self._searches.search(
            request.conditions,
            request.fetch,
            per_document=request.per_document,
            locate=locate,
        )
        found = await self._executor.fetch(
            "search", None, request.namespace, statement, request.parameters
        )
        if locate and found:
            self._remember_place(request, found[0])
        return found

    def _remember_place(self, request: _Request, row: Row) -> None:
        partition = self._names.get(row[rows.PARTITION])
        if partition is None:  # created after the last look
            if self._loaded is not None and time.monotonic() - self._loaded > _RELOAD_SECONDS:
                self._loaded = None
            return
        by_ann = bool(row[rows.BY_ANN])
        known = self.hints.places.get(request.namespace)
        if known is not None and known.partition == partition and known.falls_short_at:
            return
        rows_seen = EXACT_UP_TO + 1 if by_ann else None
        if not by_ann and request.filter_key is None and not request.exact:
            rows_seen = EXACT_UP_TO
        place = Place(partition, rows_seen)
        self.hints.places.put(request.namespace, place)
        if not request.exact:
            self._remember_strategy(request, place, by_ann=by_ann)

    async def _load_partitions(self) -> None:
        """Read the names of the partitions, and whether the connection's role may read them."""
        found = await self._executor.fetch(
            "search", None, "", _PARTITIONS, {"parent": self._parent}, sets_tenant=True
        )
        if self._executor.has_citus and await self._is_distributed():
            # The nodes have the rows. Citus cannot read `tableoid` if the conditions are constantly
            # false: it puts an empty subquery in place of the table.
            found = []
        self._names = {oid: name for oid, name, _ in found}
        self._readable = {name for _, name, readable in found if readable}
        self._loaded = time.monotonic()

    async def _is_distributed(self) -> bool:
        found = await self._executor.fetch(
            "search", None, "", _IS_DISTRIBUTED, {"parent": self._parent}, sets_tenant=True
        )
        return bool(found[0][0])


@dataclass(slots=True)
class _Request:
    """Arguments of a search."""

    namespace: str
    conditions: Conditions
    fetch: int | None
    parameters: Mapping[str, Any]
    per_document: int | None

    @property
    def exact(self) -> bool:
        return self.fetch is None

    @property
    def filter_key(self) -> Hashable | None:
        """Key of the filter in `SearchHints.filters`; None without a filter."""
        if not self.conditions:
            return None
        return self.namespace, self.conditions.fingerprint


_PARENT = cast(bindparam("parent", type_=Text), REGCLASS)


def _build_partitions_query() -> Select[Any]:
    """Select the tables that hold rows of the chunk table ``:parent``, in its schema.

    Partitions by other columns than the namespace, and tables that inherit, are left out: several
    of them may hold rows of one namespace.
    """
    parent = pg_class.alias("parent")
    attached = select(pg_inherits.c.inhrelid).where(
        pg_inherits.c.inhparent == parent.c.oid,
        ~pg_inherits.c.inhdetachpending,
        func.pg_get_partkeydef(parent.c.oid).regexp_match(_BY_NAMESPACE),
    )
    # The application's own policies may be on the chunk table alone.
    has_other_policies = exists().where(
        pg_policy.c.polrelid == parent.c.oid, pg_policy.c.polname.not_in([PERMITS, RESTRICTS])
    )
    is_part = or_(pg_class.c.oid == parent.c.oid, pg_class.c.oid.in_(attached))
    tables: Any = (
        select(
            cast(pg_class.c.oid, BigInteger).label("oid"),
            cast(pg_class.c.relname, Text).label("name"),
            and_(func.has_table_privilege(pg_class.c.oid, "SELECT"), ~has_other_policies).label(
                "readable"
            ),
        )
        .select_from(parent)
        .join(pg_class, is_part)
    )
    query: Select[Any] = tables.where(
        parent.c.oid == _PARENT,
        pg_class.c.relkind == "r",
        pg_class.c.relnamespace == parent.c.relnamespace,
    )
    return query


_PARTITIONS = _build_partitions_query()
_IS_DISTRIBUTED = is_distributed_query(_PARENT)
