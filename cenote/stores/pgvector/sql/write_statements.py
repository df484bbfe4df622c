"""Statements that write and delete chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Delete,
    Dialect,
    Select,
    Table,
    Text,
    Update,
    any_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TypeEngine, UserDefinedType

from cenote.filters.compiler import Conditions
from cenote.orm.user_columns import UserColumns
from cenote.postgres.vector import WireVector, WireVectorArray
from cenote.stores.pgvector.sql.statement_cache import StatementCache, parameter
from cenote.types import ColumnType


class WriteStatements:
    """Statements that write and delete chunks of one table.

    Args:
        table: Chunk table.
        column_type: Type of its embedding column.
        user_columns: Columns that the user model adds.
        cache: Cache of the store for its statements.
    """

    def __init__(
        self,
        table: Table,
        column_type: ColumnType,
        user_columns: UserColumns,
        cache: StatementCache,
    ) -> None:
        self._table = table
        self._column_type: ColumnType = column_type
        self._user_columns = user_columns
        self._upserts: dict[tuple[tuple[str, ...], bool], Insert] = {}
        self._counting_upserts: dict[tuple[tuple[str, ...], bool], ReturningInsert[Any]] = {}
        by_id = self._by_id()
        self.delete = self._build_delete(by_id)
        self.delete_namespace = self._build_delete()
        self.delete_matching = cache.by_shape(self._build_delete_matching)
        self.ids_matching = cache.by_shape(self._build_ids_matching)
        self.ids = select(self._locked(by_id).c.id)
        """Select and lock the ids of the parameter ids that exist, in ascending order."""
        self.ids_of_namespace = select(self._locked().c.id)
        """Select and lock all ids of a namespace, in ascending order."""
        of_document = (table.c.document_id == bindparam("document_id", type_=Text), ~by_id)
        self.ids_of_document = select(table.c.id).where(
            table.c.namespace == bindparam("namespace", type_=Text), *of_document
        )
        """Select the ids of a document, except the parameter ids."""
        self.lock_rows_of_document = self._build_lock_rows(*of_document)
        """Lock a document's rows, except the rows of the parameter ids, without waiting.

        The statement skips rows that other transactions hold.
        """
        self.lock_rows = self._build_lock_rows(by_id)
        """Lock the rows of the parameter ids without waiting; see `lock_rows_of_document`."""
        self.update_metadata = self._build_update_metadata()
        self.update_without_embeddings = self._build_update_without_embeddings()
        self.lock_document = select(
            func.pg_advisory_xact_lock(
                func.hashtextextended(
                    bindparam("document_id", type_=Text),
                    func.hashtextextended(bindparam("namespace", type_=Text), 0),
                )
            ),
            func.current_setting(literal_column("'transaction_isolation'")).label("isolation"),
        )
        """Lock a document until the transaction ends, so that its changes run one after another."""

    def upsert(self, names: tuple[str, ...], *, has_citus: bool) -> Insert:
        """Return the upsert of many rows, whose parameters are one list per column.

        Stored rows that equal the new ones are not rewritten.

        Args:
            names: User columns for which the caller passes values.
            has_citus: True if the table may be distributed.
        """
        key = (names, has_citus)
        if key not in self._upserts:
            self._upserts[key] = self._build_upsert(names, has_citus=has_citus)
        return self._upserts[key]

    def counting_upsert(self, names: tuple[str, ...], *, has_citus: bool) -> ReturningInsert[Any]:
        """Return an upsert that returns a row for each row that it writes.

        For an INSERT with a SELECT, the command tag of Citus counts unchanged rows, too.
        """
        key = (names, has_citus)
        if key not in self._counting_upserts:
            upsert = self.upsert(names, has_citus=has_citus)
            self._counting_upserts[key] = upsert.returning(literal_column("1"))
        return self._counting_upserts[key]

    def _build_upsert(self, names: tuple[str, ...], *, has_citus: bool) -> Insert:
        """Build one INSERT over unnest().

        It replaces the driver's executemany, because a task that is cancelled in asyncpg's
        executemany may never return (github.com/MagicStack/asyncpg, issues 873, 1265).
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
        list_types: dict[str, TypeEngine[Any]] = {
            name: ARRAY(type_) for name, type_ in types.items()
        }
        list_types["embedding"] = WireVectorArray(self._column_type)
        user_columns = list(self._user_columns.written(names))
        lists = [bindparam(name + "_list", type_=type_) for name, type_ in list_types.items()]
        lists += [
            bindparam(user_column.name + "_list", type_=user_column.list_type)
            for user_column in user_columns
        ]
        fields = [*types, *(user_column.column.name for user_column in user_columns)]
        new = func.unnest(*lists).table_valued(*fields).render_derived(name="new")
        values: dict[str, ColumnElement[Any]] = {name: new.c[name] for name in types}
        values["metadata"] = cast(new.c.metadata, JSONB)
        values |= {
            user_column.column.key: user_column.value(new.c[user_column.column.name])
            for user_column in user_columns
        }
        statement = insert(self._table).from_select(
            ["namespace", *values],
            select(bindparam("namespace", type_=Text), *values.values()),
        )
        excluded = statement.excluded
        comparable = {
            user_column.column.key: user_column.comparable
            for user_column in user_columns
            if user_column.name in names
        }
        changing = [name for name in types if name != "id"] + list(comparable)
        on_update = self._user_columns.on_update(names)
        if has_citus:
            on_update = {name: _with_literals(value) for name, value in on_update.items()}

        def compared(columns: Any) -> Any:
            return tuple_(
                *(
                    comparable[name](columns[name]) if name in comparable else columns[name]
                    for name in changing
                )
            )

        return statement.on_conflict_do_update(
            index_elements=["namespace", "id"],
            set_={name: excluded[name] for name in changing} | on_update,
            where=compared(self._table.c).is_distinct_from(compared(excluded)),
        )

    def _build_delete(self, *conditions: ColumnElement[bool]) -> Delete:
        table = self._table
        locked = self._locked(*conditions)
        return delete(table).where(
            table.c.namespace == bindparam("namespace", type_=Text),
            table.c.id.in_(select(locked.c.id)),
        )

    def _build_delete_matching(self, filter: Conditions) -> Delete:
        return self._build_delete(*filter.sql(self._table.c, parameter))

    def _build_ids_matching(self, filter: Conditions) -> Select[Any]:
        return select(self._locked(*filter.sql(self._table.c, parameter)).c.id)

    def _build_lock_rows(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        names = ("id", "content_hash", "embedding_model")
        return select(*self._locked(*conditions, columns=names, skip_locked=True).c)

    def _build_update_metadata(self) -> Update:
        """Build the update of metadata by id, which merges or replaces.

        Rows whose metadata would stay the same are skipped.
        """
        columns = self._table.c
        lists = [bindparam(name, type_=ARRAY(Text)) for name in ("cenote_ids", "cenote_metadata")]
        new = func.unnest(*lists).table_valued("id", "metadata").render_derived(name="new")
        given = cast(new.c.metadata, JSONB)
        merged = columns.metadata.op("||", return_type=JSONB())(given)
        metadata = case((bindparam("cenote_merge", type_=Boolean), merged), else_=given)
        return self._update(
            new, {"metadata": metadata}, columns.metadata.is_distinct_from(metadata)
        )

    def _build_update_without_embeddings(self) -> Update:
        """Build the update of chunks that keeps their embeddings."""
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
        """Build an update of rows by id.

        SQLAlchemy takes a parameter of an UPDATE that has the name of a column for the column's
        value. The names of the parameters therefore start with "cenote\\_".
        """
        columns = self._table.c
        by_id = columns.id == any_(bindparam("cenote_ids", type_=ARRAY(Text)))
        locked = self._locked(by_id, namespace="cenote_namespace")
        return (
            update(self._table)
            .values(values | self._user_columns.on_update(()))
            .where(
                columns.namespace == bindparam("cenote_namespace", type_=Text),
                columns.id.in_(select(locked.c.id)),
                columns.id == new.c.id,
                differs,
            )
        )

    def _by_id(self) -> ColumnElement[bool]:
        return self._table.c.id == any_(bindparam("ids", type_=ARRAY(Text)))

    def _locked(
        self,
        *conditions: ColumnElement[bool],
        namespace: str = "namespace",
        columns: Sequence[str] = ("id",),
        skip_locked: bool = False,
    ) -> CTE:
        """Select and lock rows in ascending order of id.

        An upsert locks its rows in the same order, so two writers cannot deadlock.

        Args:
            conditions: Conditions of the rows.
            namespace: Name of the parameter for the namespace.
            columns: Columns to select.
            skip_locked: Skip rows that other transactions hold, instead of waiting for them.
        """
        table = self._table
        return (
            select(*(table.c[name] for name in columns))
            .where(table.c.namespace == bindparam(namespace, type_=Text), *conditions)
            .order_by(table.c.id)
            .with_for_update(skip_locked=skip_locked)
            .cte("locked")
        )


class _Literal(UserDefinedType[Any]):
    """Type that also renders the literals that SQLAlchemy's types do not: of bytes and of JSON."""

    cache_ok = True

    def __init__(self, column_type: TypeEngine[Any]) -> None:
        self.column_type = column_type

    def literal_processor(self, dialect: Dialect) -> Any:
        implementation = self.column_type.dialect_impl(dialect)
        bind = implementation.bind_processor(dialect)
        literal = implementation.literal_processor(dialect)

        def process(value: Any) -> Any:
            bound = value if bind is None else bind(value)
            if isinstance(bound, bytes | bytearray | memoryview):
                return "'\\x" + bytes(bound).hex() + "'::bytea"
            if literal is not None:
                return literal(value)
            return "'" + str(bound).replace("'", "''") + "'"

        return process


def _with_literals(expression: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return an expression whose parameters are rendered as literals when it is executed.

    Citus does not pass parameters to the nodes that only the DO UPDATE of an INSERT with a SELECT
    uses: the nodes report "could not determine data type of parameter".
    """

    def replace(element: Any, **_: Any) -> Any:
        if not isinstance(element, BindParameter):
            return None
        parameter = element.render_literal_execute()
        if element.type.bind_expression(element) is None:
            parameter.type = _Literal(element.type)
        return parameter

    literals: ColumnElement[Any] = replacement_traverse(expression, {}, replace)
    return literals
