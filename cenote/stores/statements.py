"""The statements of `PgVectorStore` over its table, built once and then reused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import (
    CTE,
    REAL,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Delete,
    Double,
    MetaData,
    Select,
    Table,
    Text,
    TextClause,
    TextualSelect,
    Update,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal,
    literal_column,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, Insert, insert
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError
from cenote.filters import Bind, Conditions
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
from cenote.stores.search_many import SearchMany
from cenote.stores.text import TextSearch
from cenote.types import ColumnType, Float32Array
from cenote.validation import ef_search_rule

_SHAPES = 256
"""Shapes of filters of which statements are kept."""

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


def _parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A parameter to be bound at each call."""
    return bindparam(name, type_=type_)


def _value(values: Mapping[str, Any], name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A parameter with its value."""
    return literal(values[name], type_)


def _by_shape(build: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a filter that keeps what it made of the last shapes, and none of the values."""
    kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(filter: Conditions, *arguments: Any, **options: Any) -> Any:
        key = (filter.shape, arguments, *options.items())
        if key not in kept:
            kept[key] = build(filter, *arguments, **options)
            if len(kept) > _SHAPES:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return get


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
        self._upserts: dict[tuple[tuple[str, ...], str | None], Insert] = {}
        self._template = _by_shape(self._build_template)
        self._search = _by_shape(partial(self._build_search, bind=_parameter))
        self._search_many = _by_shape(self._build_search_many)
        self._languages = config.languages
        self._text_search = _by_shape(partial(self._build_text_search, bind=_parameter))
        self._hybrid_search = _by_shape(partial(self._build_hybrid_search, bind=_parameter))
        self.page = _by_shape(partial(self._build_page, bind=_parameter))
        """The chunks of a namespace that follow an id, or the first ones."""
        columns = self._table.c
        by_id = columns.id == any_(bindparam("ids", type_=ARRAY(Text)))
        of_document = columns.document_id == bindparam("document_id", type_=Text)
        self.delete = self._build_delete(by_id)
        self.delete_namespace = self._build_delete()
        self.ids_of_document = select(self._locked(of_document, ~by_id).c.id)
        """The ids of all of a document's chunks but some, locked."""
        self.ids_matching = _by_shape(self._build_ids_matching)
        self.delete_matching = _by_shape(self._build_delete_matching)
        self.get = self._read().where(by_id)
        self.embeddings = select(columns.id, columns.embedding).where(
            columns.namespace == bindparam("namespace", type_=Text), by_id
        )
        self.hashes = select(columns.id, columns.content_hash, columns.embedding_model).where(
            columns.namespace == bindparam("namespace", type_=Text), by_id
        )
        self.count = _by_shape(self._build_count)
        self.namespaces = (
            select(columns.namespace, func.count().label("chunks"))
            .group_by(columns.namespace)
            .order_by(columns.namespace)
        )
        self.neighbours = self._build_neighbours()
        self.update_metadata = self._build_update_metadata()
        self.hashes_locked = self.hashes.order_by(columns.id).with_for_update()
        self.keep = self._build_keep()
        self.lock_document = select(
            func.pg_advisory_xact_lock(
                func.hashtextextended(
                    bindparam("document_id", type_=Text),
                    func.hashtextextended(bindparam("namespace", type_=Text), 0),
                )
            ),
            func.current_setting(literal_column("'transaction_isolation'")).label("isolation"),
        )
        """Makes changes of one document wait for one another, until the transaction ends."""

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
        table = self._table
        doomed = self._locked(*conditions)
        return delete(table).where(
            table.c.namespace == bindparam("namespace", type_=Text),
            table.c.id.in_(select(doomed.c.id)),
        )

    def _build_delete_matching(self, filter: Conditions) -> Delete:
        return self._build_delete(*filter.sql(self._table.c, _parameter))

    def _build_ids_matching(self, filter: Conditions) -> Select[Any]:
        return select(self._locked(*filter.sql(self._table.c, _parameter)).c.id)

    def _build_update_metadata(self) -> Update:
        """Metadata of rows by id, where they differ; merged into what is there or instead of it."""
        columns = self._table.c
        lists = [bindparam(name, type_=ARRAY(Text)) for name in ("cenote_ids", "cenote_metadata")]
        new = func.unnest(*lists).table_valued("id", "metadata").render_derived(name="new")
        given = cast(new.c.metadata, JSONB)
        merged = columns.metadata.op("||", return_type=JSONB())(given)
        metadata = case((bindparam("cenote_merge", type_=Boolean), merged), else_=given)
        return self._update(
            new, {"metadata": metadata}, columns.metadata.is_distinct_from(metadata)
        )

    def _build_keep(self) -> Update:
        """All that is known of chunks but their embeddings, which stay."""
        columns = self._table.c
        types: dict[str, TypeEngine[Any]] = {
            "id": Text(),
            "content": Text(),
            "position": BigInteger(),
            "metadata": Text(),
        }
        lists = [
            bindparam("cenote_ids" if name == "id" else "cenote_" + name, type_=ARRAY(type_))
            for name, type_ in types.items()
        ]
        new = func.unnest(*lists).table_valued(*types).render_derived(name="new")
        values: dict[str, Any] = {name: new.c[name] for name in types if name != "id"}
        values["metadata"] = cast(new.c.metadata, JSONB)
        values["document_id"] = bindparam("cenote_document", type_=Text)
        live = tuple_(*(columns[name] for name in values))
        return self._update(new, values, live.is_distinct_from(tuple_(*values.values())))

    def _update(self, new: Any, values: dict[str, Any], differs: ColumnElement[bool]) -> Update:
        """An update of rows by id. Names of columns are no names for parameters in an UPDATE."""
        columns = self._table.c
        by_id = columns.id == any_(bindparam("cenote_ids", type_=ARRAY(Text)))
        locked = self._locked(by_id, namespace="cenote_namespace")
        return (
            update(self._table)
            .values(values | self._own.on_update(()))
            .where(
                columns.namespace == bindparam("cenote_namespace", type_=Text),
                columns.id.in_(select(locked.c.id)),
                columns.id == new.c.id,
                differs,
            )
        )

    def _locked(self, *conditions: ColumnElement[bool], namespace: str = "namespace") -> CTE:
        """The ids of rows, locked in their order, as `upsert` takes them: no deadlocks."""
        columns = self._table.c
        return (
            select(columns.id)
            .where(columns.namespace == bindparam(namespace, type_=Text), *conditions)
            .order_by(columns.id)
            .with_for_update()
            .cte("locked")
        )

    # -- reading

    def _read(self, bind: Bind = _parameter) -> Select[Any]:
        """The chunks of a namespace."""
        columns = self._table.c
        fields = [as_sent(columns[name]) for name in CHUNK_FIELDS]
        return select(*fields).where(columns.namespace == bind("namespace", Text()))

    def _build_neighbours(self) -> Select[Any]:
        """A chunk and those around it in its document, in its order."""
        columns = self._table.c
        namespace = bindparam("namespace", type_=Text)
        own = (
            select(columns.document_id, columns.position, columns.id)
            .where(columns.namespace == namespace, columns.id == bindparam("id", type_=Text))
            .cte("own")
        )
        fields = [as_sent(columns[name]) for name in CHUNK_FIELDS]
        place = tuple_(columns.position, columns.id)
        here = tuple_(own.c.position, own.c.id)
        of_document = (
            select(*fields)
            .select_from(self._table)
            .join(own, columns.document_id == own.c.document_id)
            .where(columns.namespace == namespace)
        )
        earlier = (
            of_document.where(place < here)
            .order_by(columns.position.desc(), columns.id.desc())
            .limit(bindparam("before", type_=BigInteger))
            .subquery("earlier")
        )
        later = (
            of_document.where(place >= here)
            .order_by(columns.position, columns.id)
            .limit(bindparam("after", type_=BigInteger) + 1)
            .subquery("later")
        )
        found = union_all(select(*earlier.c), select(*later.c)).subquery("found")
        return select(*found.c).order_by(found.c.position, found.c.id)

    def _build_count(self, filter: Conditions) -> Select[Any]:
        columns = self._table.c
        return (
            select(func.count())
            .select_from(self._table)
            .where(
                columns.namespace == bindparam("namespace", type_=Text),
                *filter.sql(columns, _parameter),
            )
        )

    def page_where(
        self,
        where: ColumnElement[bool],
        filter: Conditions,
        values: Mapping[str, Any],
        *,
        first: bool,
    ) -> Select[Any]:
        """The same under a condition of the host's, with all values: its own may have our names."""
        return self._build_page(filter, where, first=first, bind=partial(_value, values))

    def _build_page(
        self, filter: Conditions, *where: ColumnElement[bool], first: bool, bind: Bind
    ) -> Select[Any]:
        columns = self._table.c
        statement = self._read(bind).where(*filter.sql(columns, bind), *where)
        if not first:
            statement = statement.where(columns.id > bind("after", Text()))
        return statement.order_by(columns.id).limit(bind("page_size", BigInteger()))

    def search(
        self, filter: Conditions, limit: int, *, exact: bool, per_document: int | None = None
    ) -> Select[Any]:
        """The nearest chunks, with their score; for connections that have the codec."""
        several = per_document is not None
        fetch = None if exact else rows_to_fetch(limit, per_document=several)
        statement: Select[Any] = self._search(filter, fetch, per_document=per_document)
        return statement

    def search_many(self, filter: Conditions, limit: int, *, exact: bool) -> Select[Any]:
        """The nearest chunks of each query vector, after its number from 1."""
        fetch = None if exact else rows_to_fetch(limit)
        statement: Select[Any] = self._search_many(filter, fetch)
        return statement

    def _build_search_many(self, filter: Conditions, fetch: int | None) -> Select[Any]:
        vectors = bindparam("query_list", type_=ARRAY(WireVector(self._column_type)))
        queries = (
            func.unnest(vectors)
            .table_valued(column("vector", WireVector(self._column_type)), with_ordinality="number")
            .render_derived(name="queries")
        )
        return SearchMany(
            table=self._table,
            columns=[self._table.c[name] for name in CHUNK_FIELDS],
            query=queries.c.vector,
            queries=queries,
            bind=_parameter,
            filter=filter,
            fetch=fetch,
            row_bytes=self._row_bytes,
        ).statement()

    def search_where(
        self,
        where: ColumnElement[bool],
        filter: Conditions,
        limit: int,
        values: Mapping[str, Any],
        *,
        exact: bool,
        per_document: int | None = None,
    ) -> Select[Any]:
        """The same under a condition of the host's, with all values: its own may have our names."""
        several = per_document is not None
        fetch = None if exact else rows_to_fetch(limit, per_document=several)
        return self._build_search(
            filter, fetch, where, per_document=per_document, bind=partial(_value, values)
        )

    def text_search(
        self, filter: Conditions, where: ColumnElement[bool] | None, values: Mapping[str, Any]
    ) -> tuple[Select[Any], Mapping[str, Any]]:
        """The best chunks by words, and what to bind; under a condition of the host's nothing."""
        if where is None:
            return self._text_search(filter), values
        return self._build_text_search(filter, where, bind=partial(_value, values)), {}

    def _build_text_search(
        self, filter: Conditions, *where: ColumnElement[bool], bind: Bind
    ) -> Select[Any]:
        return self._by_words(filter, where, bind).statement()

    def hybrid_search(
        self,
        filter: Conditions,
        depth: int,
        where: ColumnElement[bool] | None,
        values: Mapping[str, Any],
    ) -> tuple[Select[Any], Mapping[str, Any]]:
        """The best chunks by vector and words, and what to bind; likewise."""
        fetch = rows_to_fetch(depth)
        if where is None:
            return self._hybrid_search(filter, fetch), values
        return self._build_hybrid_search(filter, fetch, where, bind=partial(_value, values)), {}

    def _build_hybrid_search(
        self, filter: Conditions, fetch: int, *where: ColumnElement[bool], bind: Bind
    ) -> Select[Any]:
        search = Search(
            table=self._table,
            columns=[self._table.c.id],
            query=bind("query", WireVector(self._column_type)),
            bind=lambda name, type_: bind("depth" if name == "limit" else name, type_),
            filter=filter,
            where=where,
            fetch=fetch,
            row_bytes=self._row_bytes,
            named=False,
        )
        return self._by_words(filter, where, bind).fused_with(search)

    def _by_words(
        self, filter: Conditions, where: tuple[ColumnElement[bool], ...], bind: Bind
    ) -> TextSearch:
        return TextSearch(
            table=self._table,
            columns=[self._table.c[name] for name in CHUNK_FIELDS],
            languages=self._languages,
            bind=bind,
            filter=filter,
            where=where,
        )

    def search_parameters(self, limit: int, ef_search: int | None = None) -> dict[str, Any]:
        """What :meth:`search` binds for a limit, and an ef_search other than the store's."""
        return search_parameters(limit, ef_search or self._ef_search)

    def _build_search(
        self,
        filter: Conditions,
        fetch: int | None,
        *where: ColumnElement[bool],
        per_document: int | None,
        bind: Bind,
    ) -> Select[Any]:
        return Search(
            table=self._table,
            columns=[self._table.c[name] for name in CHUNK_FIELDS],
            query=bind("query", WireVector(self._column_type)),
            bind=bind,
            filter=filter,
            where=where,
            fetch=fetch,
            row_bytes=self._row_bytes,
            per_document=per_document,
            named=not where,
        ).statement()

    def composable_search(
        self,
        query: Float32Array,
        namespace: str,
        limit: int,
        filter: Conditions,
        *,
        exact: bool,
        ef_search: int | None,
        where: ColumnElement[bool] | None,
    ) -> Any:
        """The mapped class and the score, for any connection and for the host to go on with."""
        fetch = None if exact else rows_to_fetch(limit)
        values = filter.parameters | self.search_parameters(limit, ef_search)
        values |= {"namespace": namespace, "query": query.tolist()}
        found: Any
        if where is None and not self._schemas_translated:
            template, names = self._template(filter, fetch, limit)
            template = template.bindparams(**{name: values[name] for name in names})
            found = _Found(template, list(_FOUND))
        else:
            conditions = () if where is None else (where,)
            found = self._nearest_ids(filter, fetch, limit, partial(_value, values), *conditions)
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
        self, filter: Conditions, fetch: int | None, limit: int
    ) -> tuple[TextClause, list[str]]:
        """What is found, as SQL: making it anew of expressions takes as long as the search itself.

        The SQL is that of the expressions, compiled once. Its parameters get names of their own,
        which do not meet those of the host.
        """
        binds: dict[str, BindParameter[Any]] = {}

        def slot(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
            binds[name] = bindparam(name, None, type_, unique=True)
            return literal_column(":" + name, type_)

        statement = self._nearest_ids(filter, fetch, limit, slot)
        sql = statement.compile(dialect=_dialect, compile_kwargs={"literal_binds": True})
        return text(str(sql)).bindparams(*binds.values()), list(binds)

    def _nearest_ids(
        self,
        filter: Conditions,
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
            filter=filter,
            where=where,
            fetch=fetch,
            row_bytes=self._row_bytes,
            named=False,
        ).statement()
