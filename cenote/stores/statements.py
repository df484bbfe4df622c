"""The statements of `PgVectorStore` over its table, built once and then reused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from sqlalchemy import (
    REAL,
    BigInteger,
    BindParameter,
    ColumnElement,
    Delete,
    Double,
    MetaData,
    Select,
    Table,
    Text,
    TextClause,
    TextualSelect,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, Insert, insert
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError
from cenote.filters import Bind, FilterShape, filter_conditions, filter_parameters, filter_shape
from cenote.sqltypes import WireVector, embedding_type
from cenote.stores.columns import OwnColumns
from cenote.stores.rows import CHUNK_FIELDS
from cenote.stores.search import (
    LARGEST_LIMIT,
    Search,
    as_sent,
    materialized,
    rows_to_fetch,
    search_parameters,
)
from cenote.types import ColumnType, Float32Array
from cenote.validation import ef_search_rule

_dialect = PGDialect()  # type: ignore[no-untyped-call]


class _Found(TextualSelect):
    """SQL that was compiled beforehand, and derives from no table that the host may join to."""

    inherit_cache = True

    def is_derived_from(self, fromclause: Any) -> bool:
        return False


@compiles(_Found)
def _compile_found(element: _Found, compiler: Any, **kw: Any) -> str:
    if getattr(compiler, "schema_translate_map", None):
        raise ConfigurationError(
            "a schema_translate_map of a session or a connection does not reach into a search "
            "statement; give the store an engine with execution_options(schema_translate_map=...)",
            setting="schema",
        )
    sql: str = compiler.visit_textual_select(element, **kw)
    return sql


_FOUND = (column("id", Text), column("distance", Double), column("score", Double))


class ChunkStatements:
    """The statements over one chunk table.

    Args:
        model: the chunk model.
        config: what its table is expected to look like.
        own: its further columns.
        schemas_translated: whether the engine has a ``schema_translate_map``, which SQL that is
            compiled beforehand would not heed.
        ef_search: `hnsw.ef_search`, at least.

    Raises:
        ConfigurationError: ef_search is no integer from 1 to 1,000.
    """

    def __init__(
        self,
        model: type[Any],
        config: SchemaConfig,
        own: OwnColumns,
        ef_search: int,
        *,
        schemas_translated: bool,
    ) -> None:
        if rule := ef_search_rule(ef_search):
            raise ConfigurationError(f"hnsw_ef_search {rule}", setting="hnsw_ef_search")
        self._ef_search = ef_search
        self._row_bytes = config.dimensions * (2 if config.column_type == "halfvec" else 4) + 600
        self._model = model
        self._table = model.__table__
        self._column_type: ColumnType = config.column_type
        self._dimensions = config.dimensions
        self._own = own
        self._schemas_translated = schemas_translated
        self._searches: dict[tuple[FilterShape, int | None], Select[Any]] = {}
        self._pages: dict[tuple[FilterShape, bool], Select[Any]] = {}
        self._upserts: dict[tuple[tuple[str, ...], str | None], Insert] = {}
        self._template = lru_cache(maxsize=256)(self._build_template)
        self.delete = self._build_delete(
            self._table.c.id == any_(bindparam("ids", type_=ARRAY(Text)))
        )
        self.delete_namespace = self._build_delete()

    # -- writing

    def upsert(self, names: tuple[str, ...], partition: str | None = None) -> Insert:
        """Many rows, a list for each column; rows that are stored exactly so are left alone.

        Args:
            names: the host's own columns that are written besides the chunk's.
            partition: write into this one, which may be set aside.
        """
        if (names, partition) not in self._upserts:
            table = self._table
            if partition is not None:
                table = table.to_metadata(MetaData(), name=partition)
            self._upserts[names, partition] = self._build_upsert(table, names)
        return self._upserts[names, partition]

    def _build_upsert(self, table: Table, names: tuple[str, ...]) -> Insert:
        """One INSERT over unnest() and not the driver's executemany.

        A task that is cancelled in asyncpg's executemany may never return
        (github.com/MagicStack/asyncpg, issues 873, 1265).
        """
        types: dict[str, TypeEngine[Any]] = {
            "id": Text(),
            "document_id": Text(),
            "content": Text(),
            "position": BigInteger(),
            "metadata": Text(),
            "content_hash": Text(),
            "embedding": WireVector(self._column_type),
            "embedding_model": Text(),
        }
        own = list(self._own.written(names))
        lists = [bindparam(name + "_list", type_=ARRAY(type_)) for name, type_ in types.items()]
        lists += [bindparam(one.name + "_list", type_=one.list_type) for one in own]
        fields = [*types, *(one.column.name for one in own)]
        new = func.unnest(*lists).table_valued(*fields).render_derived(name="new")
        values: dict[str, ColumnElement[Any]] = {name: new.c[name] for name in types}
        values["metadata"] = cast(new.c.metadata, JSONB)
        values |= {one.column.key: one.value(new.c[one.column.name]) for one in own}
        statement = insert(table).from_select(
            ["namespace", *values],
            select(bindparam("namespace", type_=Text), *values.values()),
        )
        excluded = statement.excluded
        comparable = {one.column.key: one.comparable for one in own if one.name in names}
        changing = [name for name in types if name != "id"] + list(comparable)

        def compared(columns: Any) -> Any:
            return tuple_(
                *(
                    comparable[name](columns[name]) if name in comparable else columns[name]
                    for name in changing
                )
            )

        return statement.on_conflict_do_update(
            index_elements=["namespace", "id"],
            set_={name: excluded[name] for name in changing} | self._own.on_update(names),
            where=compared(table.c).is_distinct_from(compared(excluded)),
        )

    def _build_delete(self, *conditions: ColumnElement[bool]) -> Delete:
        """Rows are locked in the order of their ids, as `upsert` takes them: no deadlocks."""
        table = self._table
        namespace = bindparam("namespace", type_=Text)
        doomed = (
            select(table.c.id)
            .where(table.c.namespace == namespace, *conditions)
            .order_by(table.c.id)
            .with_for_update()
            .cte("doomed")
        )
        return delete(table).where(
            table.c.namespace == namespace, table.c.id.in_(select(doomed.c.id))
        )

    # -- reading

    def page(self, shape: FilterShape, *, first: bool) -> Select[Any]:
        """The chunks that follow an id, or the first ones."""
        if (shape, first) not in self._pages:
            self._pages[shape, first] = self._build_page(shape, _parameter, first=first)
        return self._pages[shape, first]

    def page_where(
        self,
        where: ColumnElement[bool],
        shape: FilterShape,
        values: Mapping[str, Any],
        *,
        first: bool,
    ) -> Select[Any]:
        """The same under a condition of the host's, with all values: its own may have our names."""
        return self._build_page(shape, partial(_value, values), where, first=first)

    def _build_page(
        self, shape: FilterShape, bind: Bind, *where: ColumnElement[bool], first: bool
    ) -> Select[Any]:
        columns = self._table.c
        fields = [as_sent(columns[name]) for name in CHUNK_FIELDS]
        statement = select(*fields).where(
            columns.namespace == bind("namespace", Text()),
            *filter_conditions(columns.metadata, shape, bind),
            *where,
        )
        if not first:
            statement = statement.where(columns.id > bind("after", Text()))
        return statement.order_by(columns.id).limit(bind("page_size", BigInteger()))

    def search(self, shape: FilterShape, limit: int, *, exact: bool) -> Select[Any]:
        """The nearest chunks, with their score; for connections that have the codec."""
        fetch = None if exact else rows_to_fetch(limit)
        if (shape, fetch) not in self._searches:
            self._searches[shape, fetch] = self._build_search(shape, fetch, _parameter)
        return self._searches[shape, fetch]

    def search_where(
        self,
        where: ColumnElement[bool],
        shape: FilterShape,
        limit: int,
        values: Mapping[str, Any],
        *,
        exact: bool,
    ) -> Select[Any]:
        """The same under a condition of the host's, with all values: its own may have our names."""
        fetch = None if exact else rows_to_fetch(limit)
        return self._build_search(shape, fetch, partial(_value, values), where)

    def search_parameters(self, limit: int, ef_search: int | None = None) -> dict[str, Any]:
        """What :meth:`search` binds for a limit, and an ef_search other than the store's."""
        return search_parameters(limit, ef_search or self._ef_search)

    def _build_search(
        self, shape: FilterShape, fetch: int | None, bind: Bind, *where: ColumnElement[bool]
    ) -> Select[Any]:
        return Search(
            table=self._table,
            columns=[self._table.c[name] for name in CHUNK_FIELDS],
            query=bind("query", WireVector(self._column_type)),
            bind=bind,
            shape=shape,
            where=where,
            fetch=fetch,
            row_bytes=self._row_bytes,
            named=not where,
        ).statement()

    def composable_search(
        self,
        query: Float32Array,
        namespace: str,
        limit: int,
        filter: dict[str, Any],
        *,
        exact: bool,
        ef_search: int | None,
        where: ColumnElement[bool] | None,
    ) -> Any:
        """The mapped class and the score, for any connection and for the host to go on with."""
        shape = filter_shape(filter)
        fetch = None if exact else rows_to_fetch(limit)
        values = filter_parameters(filter) | self.search_parameters(limit, ef_search)
        values |= {"namespace": namespace, "query": query.tolist()}
        found: Any
        if where is None and not self._schemas_translated:
            template, names = self._template(shape, fetch, limit)
            template = template.bindparams(**{name: values[name] for name in names})
            found = _Found(template, list(_FOUND))
        else:
            conditions = () if where is None else (where,)
            found = self._nearest_ids(shape, fetch, limit, partial(_value, values), *conditions)
        hits = materialized(found)
        model = self._model
        statement = (
            select(model, hits.c.score)
            # No join: of that, filter_by() would take the wrong side, in 2.0 or in 2.1.
            .where(model.namespace == literal(namespace, Text()), model.id == hits.c.id)
            .order_by(hits.c.distance, model.id)
        )
        if np.any(query):
            return statement
        # Not false(), which would swallow the other conditions and leave a cartesian product.
        return statement.where(literal_column("1") == literal_column("0"))

    def _build_template(
        self, shape: FilterShape, fetch: int | None, limit: int
    ) -> tuple[TextClause, list[str]]:
        """What is found, as SQL: making it anew of expressions takes as long as the search itself.

        The SQL is that of the expressions, compiled once. Its parameters get names of their own,
        which do not meet those of the host.
        """
        binds: dict[str, BindParameter[Any]] = {}

        def slot(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
            binds[name] = bindparam(name, None, type_, unique=True)
            return literal_column(":" + name, type_)

        statement = self._nearest_ids(shape, fetch, limit, slot)
        sql = statement.compile(dialect=_dialect, compile_kwargs={"literal_binds": True})
        return text(str(sql)).bindparams(*binds.values()), list(binds)

    def _nearest_ids(
        self,
        shape: FilterShape,
        fetch: int | None,
        limit: int,
        bind: Bind,
        *where: ColumnElement[bool],
    ) -> Select[Any]:
        # The planner is told how few rows the host's joins begin with.
        number: Any = literal_column(str(min(limit, LARGEST_LIMIT)), BigInteger)
        type_ = embedding_type(self._column_type, self._dimensions)
        vector: Any = cast(bind("query", ARRAY(REAL)), type_)
        if fetch is None:  # of any number of rows: cast once, and not for each
            vector = select(vector).scalar_subquery()
        return Search(
            table=self._table,
            columns=[self._table.c.id],
            query=vector,
            bind=lambda name, type_: number if name == "limit" else bind(name, type_),
            shape=shape,
            where=where,
            fetch=fetch,
            row_bytes=self._row_bytes,
            named=False,
        ).statement()


def _parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A parameter to be bound at each call."""
    return bindparam(name, type_=type_)


def _value(values: Mapping[str, Any], name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A parameter with its value."""
    return literal(values[name], type_)
