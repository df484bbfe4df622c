"""Constructors for test_fuzz.py: records, configurations, stores, engines and retrievers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from hypothesis import strategies as st
from support.fuzzing import values
from support.fuzzing.calls import Argument, some_odd
from support.fuzzing.values import MARKER, Strategy, anything

from cenote import Chunk, EmbeddedChunk, InMemoryVectorStore, PgVectorStore, SchemaConfig
from cenote.postgres.dsn import create_engine
from cenote.retrievers import BM25Retriever, HybridRetriever, TextRetriever

_STORE = InMemoryVectorStore(values.DIMENSIONS, text_search="simple")
_ENGINE = create_engine("postgresql://127.0.0.1:1/nowhere")

# -- settings

_identifiers = st.sampled_from(["t", "Ünder_score", "select", "T", "é" * 19, values.Word("t")])
_odd_identifiers = values.odd_keys | st.sampled_from(
    ["a b", 'a"b', "1a", "a.b", "x" * 39, "é" * 32, "pg_x", "a\n", "a;--", "ª", "ﬁ"]
)
_languages = st.sampled_from([None, "simple", "spanish, english", "English", "my.own", " simple "])
_odd_languages = values.odd_keys | st.sampled_from([",", "a;b", "a.b.c", "'", "İ", "x" * 64])
_switches = st.sampled_from([None, True, False])
_optional_identifiers = st.none() | _identifiers

_SETTINGS = {
    "dimensions": Argument(st.integers(1, 2000), anything),
    "column_type": Argument(st.sampled_from(["vector", "halfvec"]), anything),
    "table_name": Argument(_identifiers, _odd_identifiers),
    "schema": Argument(_optional_identifiers, _odd_identifiers),
    "hnsw_m": Argument(st.integers(2, 32), anything),
    "hnsw_ef_construction": Argument(st.integers(64, 1000), anything),
    "partitions": Argument(st.sampled_from([None, 0, 2, 1024]), anything),
    "extension_schema": Argument(_optional_identifiers, _odd_identifiers),
    "text_search": Argument(_languages, _odd_languages),
    "row_security": Argument(_switches, anything),
}
_models = Argument(st.none() | values.good_texts, values.odd_keys)
_telemetry = Argument(st.sampled_from(["hashed", "plain"]), anything)

# -- connection strings, none of which leads beyond this machine

_ADDRESS = f"://user:{MARKER}@127.0.0.1:1/db"
_schemes = st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg"])
_arguments = st.sampled_from(
    [
        *("connect_timeout=1", "command_timeout=1.5", "sslmode=disable", "ssl=false"),
        *("statement_cache_size=0", "prepared_statement_cache_size=10", "application_name=é"),
        *("target_session_attrs=any", "a=b&a=c", "search_path=a,b", ""),
    ]
)
_odd_arguments = st.builds(
    "{}={}".format,
    st.sampled_from(
        [
            *("connect_timeout", "command_timeout", "statement_cache_size", "ssl", "sslmode"),
            *("max_cached_statement_lifetime", "prepared_statement_cache_size", "sslrootcert"),
            *("max_cacheable_statement_size", "target_session_attrs", "async_fallback", "\ud800"),
            *("gsslib", "krbsrvname", "sslcert", "passfile", "direct_tls", "x", "", "%00"),
        ]
    ),
    st.sampled_from(
        [
            *("x", "-1", "nan", "inf", "1e400", "9" * 30, "", "true", "\ud800", "%00", "%ff", "0"),
            *("verify-full", "\x00", "a&ssl=b", "1&connect_timeout=2", "/nowhere", "require"),
        ]
    ),
)
_odd_dsns = values.odd_keys | st.sampled_from(
    [
        *(f"postgresql://u:{MARKER}@h:x/d", f"postgresql://u:{MARKER}@h:99999999/d"),
        *(f"postgresql://u:{MARKER}@[::1/d", f"postgresql://u:{MARKER}@:/", "postgresql://"),
        *(f"postgresql://u:{MARKER}@a@b/d", f"postgresql://u:{MARKER}/x@h/d", "postgresql:"),
        *(f"mysql://u:{MARKER}@h/d", f"postgresql+psycopg://u:{MARKER}@h/d", "sqlite://"),
        *(f"postgresql://u:{MARKER}%ff%00@h/\ud800", f"postgresql://u:{MARKER}@h\x00/d"),
        *("postgresql:///d?host=a:1&host=b:x", "postgresql:///d?host=a,b&port=1,x"),
        *("postgresql:///d?host=/a&port=1&port=2", "postgresql:///d?port=x", "postgres://?host="),
    ]
)
_local = st.builds(lambda scheme, query: f"{scheme}{_ADDRESS}?{query}", _schemes, _arguments)
_odd_local = st.builds(
    lambda scheme, query: f"{scheme}{_ADDRESS}?{query}", _schemes, _odd_arguments
)

_RETRIEVERS = [TextRetriever(_STORE), TextRetriever(_STORE)]


@dataclass(frozen=True)
class Construction:
    """Constructor with its arguments.

    Attributes:
        make: Function that calls the constructor.
        arguments: Strategies for the arguments.
        rejects: True if the constructor itself rejects invalid arguments.
    """

    make: Callable[..., Any]
    arguments: dict[str, Argument]
    rejects: bool = True

    def drawn(self) -> Strategy:
        return some_odd(self.arguments)


def _engine(**arguments: Any) -> None:
    create_engine(**arguments).sync_engine.dispose(close=False)


def _config(**arguments: Any) -> None:
    """Check that a configuration keeps its arguments."""
    config = SchemaConfig(**arguments)
    for config_field in fields(config):
        name = config_field.name
        if name in arguments:
            value = getattr(config, name)
            assert value == arguments[name]
            assert isinstance(value, int | str | None), name


def _store(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that creates a store and checks the types of accepted arguments."""

    def make(**arguments: Any) -> None:
        kind(**arguments)
        assert isinstance(arguments["embedding_model"], str | None)
        assert isinstance(arguments["dimensions"], int)
        assert isinstance(arguments.get("operation_timeout"), int | float | None)

    return make


CONSTRUCTIONS = {
    "Chunk": Construction(
        Chunk,
        {
            "id": Argument(values.good_keys, values.odd_keys),
            "document_id": Argument(values.good_keys, values.odd_keys),
            "content": Argument(values.good_texts, values.odd_contents),
            "position": Argument(st.integers(), anything),
            "metadata": Argument(values.good_metadata, values.odd_metadata),
            "content_hash": Argument(values.good_texts, anything),
        },
        rejects=False,  # the store rejects invalid chunks, because it knows the operation
    ),
    "EmbeddedChunk": Construction(
        EmbeddedChunk,
        {
            "chunk": Argument(anything, anything),
            "embedding": Argument(values.good_vectors, values.odd_vectors),
            "embedding_model": _models,
            "columns": Argument(st.just({}), anything),
        },
        rejects=False,
    ),
    "SchemaConfig": Construction(_config, _SETTINGS),
    "InMemoryVectorStore": Construction(
        _store(InMemoryVectorStore),
        {
            "dimensions": _SETTINGS["dimensions"],
            "column_type": _SETTINGS["column_type"],
            "embedding_model": _models,
            "text_search": Argument(st.sampled_from([None, "simple", "english"]), _odd_languages),
            "namespaces_in_telemetry": _telemetry,
        },
    ),
    "PgVectorStore": Construction(
        _store(PgVectorStore),
        {
            "engine": Argument(st.just(_ENGINE), anything),
            **_SETTINGS,
            "hnsw_ef_search": Argument(st.integers(1, 1000), anything),
            "embedding_model": _models,
            "operation_timeout": Argument(st.sampled_from([None, 1, 0.5]), anything),
            "namespaces_in_telemetry": _telemetry,
        },
    ),
    "create_engine": Construction(_engine, {"dsn": Argument(_local, _odd_local | _odd_dsns)}),
    "HybridRetriever": Construction(
        HybridRetriever,
        {
            "retrievers": Argument(st.just(_RETRIEVERS), anything),
            "weights": Argument(st.sampled_from([None, [1, 0.5], (0, 1)]), anything),
            "depth": Argument(st.integers(1, 500), anything),
        },
    ),
    "BM25Retriever": Construction(
        BM25Retriever,
        {
            "store": Argument(st.just(_STORE), st.just(_STORE)),
            "namespaces": Argument(st.integers(1, 100), anything),
        },
    ),
}

CONNECTING = {
    "dsn": Argument(_local, _odd_local),
    "dimensions": Argument(st.just(4), anything),
    "min_size": Argument(st.integers(1, 2), anything),
    "max_size": Argument(st.integers(2, 10), anything),
    "startup_retries": Argument(st.just(0), st.sampled_from([-1, True, None, "1", 1.0, 1j, 0.5])),
    "startup_backoff_seconds": Argument(st.sampled_from([0, 1.5]), anything),
    "timeout": Argument(st.sampled_from([1, 0.5]), anything),
}
"""Arguments of `PgVectorStore.connect`. No server listens at the connection strings' addresses."""


def connecting() -> Strategy:
    return some_odd(CONNECTING)
