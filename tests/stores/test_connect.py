"""Connection strings and arguments of `PgVectorStore.connect`, and its retries."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import QueuePool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from support.proxy import Proxy

from cenote import ConfigurationError, PgVectorStore, StoreConnectionError
from cenote.embedded import EmbeddedPostgres
from cenote.postgres.driver_errors import is_transient
from cenote.postgres.dsn import safe_dsn
from cenote.testing import embedded, found


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy that accepts TCP connections."""
    proxy = Proxy(dsn)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
async def test_connection_strings(dsn: str, proxy: Proxy, scheme: str) -> None:
    """All schemes work, over TCP and over the server's own address."""
    for string in (dsn, proxy.dsn):
        async with await PgVectorStore.connect(scheme + string[string.index("://") :], 4) as store:
            await store.upsert([embedded("a")], "n")
            assert await found(store, [1, 0, 0, 0], "n") == ["a"]


async def test_arguments_of_driver_and_dialect(dsn: str) -> None:
    """Arguments of libpq and SQLAlchemy's cache size apply to the connection."""
    url = make_url(dsn).update_query_dict(
        {"application_name": "my app", "prepared_statement_cache_size": "0"}
    )
    string = url.render_as_string(hide_password=False)
    async with (
        await PgVectorStore.connect(string, 4) as store,
        store.engine.connect() as connection,
    ):
        name = await connection.scalar(text("SELECT current_setting('application_name')"))
        assert name == "my app"
        raw = await connection.get_raw_connection()
        assert raw.dbapi_connection._prepared_statement_cache is None  # type: ignore[union-attr]


async def test_pool_sizes(dsn: str) -> None:
    """`connect` opens min_size connections, and the pool never has more than max_size."""
    async with await PgVectorStore.connect(dsn, 4, min_size=3, max_size=4) as store:
        pool = store.engine.pool
        assert isinstance(pool, QueuePool)
        assert (pool.checkedin(), pool.checkedout()) == (3, 0)
        assert (pool.size(), pool._max_overflow) == (4, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_size": 0},
        {"min_size": -1},
        {"min_size": 11},
        {"startup_retries": -1},
        {"startup_backoff_seconds": -0.1},
        {"timeout": 0},
        {"timeout": None},
        {"max_size": "3"},
        {"startup_retries": 2.5},
    ],
    ids=str,
)
async def test_invalid_arguments(dsn: str, arguments: dict[str, Any]) -> None:
    """The error names the invalid argument."""
    with pytest.raises(ConfigurationError) as error:
        await PgVectorStore.connect(dsn, 4, **arguments)
    assert error.value.setting in arguments


@pytest.mark.parametrize(
    "string",
    [
        "",
        "mysql://u:s3cret@h/d",
        "u:s3cret@h/d",
        "postgresql://u:s3cret@h:port/d",
        "postgresql://u:x@s3cret@h/d",
        "postgresql://u:s3cret@h1:1,h2:x/d",
        "postgresql://u:s3cret@h/d?statement_cache_size=x",
        None,
        7,
    ],
)
async def test_invalid_connection_strings(string: Any) -> None:
    """Invalid connection strings are rejected, and the error does not quote them."""
    with pytest.raises(ConfigurationError) as error:
        await PgVectorStore.connect(string, 4)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "password", ["a#b", "a?b=c", "a/b", "a[b", "a／b", "%C3%B1%40", "a:b", "ñ"]
)
async def test_passwords_of_all_kinds(dsn: str, proxy: Proxy, password: str) -> None:
    """Passwords may be percent-encoded or not."""
    string = proxy.dsn.replace("postgres@", f"postgres:{password}@")
    if "postgres:" not in string:
        pytest.skip("the server has another role")
    async with await PgVectorStore.connect(string, 4, startup_retries=0) as store:
        assert await found(store, [1, 0, 0, 0], "n") == []


async def test_arguments_of_libpq_and_of_the_driver(dsn: str) -> None:
    """One string may contain arguments of libpq and of the driver."""
    url = make_url(dsn).update_query_dict(
        {"connect_timeout": "5", "command_timeout": "30", "statement_cache_size": "0"}
        | {"target_session_attrs": "any", "sslmode": "prefer", "search_path": "public"}
    )
    string = url.render_as_string(hide_password=False)
    async with await PgVectorStore.connect(string, 4, startup_retries=0) as store:
        assert await found(store, [1, 0, 0, 0], "n") == []


async def test_invalid_settings_open_no_connection(proxy: Proxy) -> None:
    """Invalid settings are rejected before `connect` opens a connection."""
    with pytest.raises(ConfigurationError):
        await PgVectorStore.connect(proxy.dsn, 4, hnsw_m=1)
    assert proxy.round_trips == 0


async def test_connect_waits_for_the_server(dsn: str) -> None:
    """`connect` retries refused connections until the server is running."""
    proxy = Proxy(dsn)
    port = _free_port()

    async def start_later() -> None:
        await asyncio.sleep(0.4)
        await proxy.start(port)

    url = make_url(dsn).set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
    start = asyncio.create_task(start_later())
    store = await PgVectorStore.connect(
        url.render_as_string(hide_password=False), 4, startup_backoff_seconds=0.1
    )
    await start
    await store.upsert([embedded("a")], "n")
    await store.close()
    await proxy.stop()


async def test_connect_raises_an_error_after_the_retries() -> None:
    """The pauses grow exponentially; the error contains the attempts but not the password."""
    url = f"postgresql://u:s3cret@127.0.0.1:{_free_port()}/d"
    begin = time.monotonic()
    with pytest.raises(StoreConnectionError, match="tried 4 times") as error:
        await PgVectorStore.connect(url, 4, startup_retries=3, startup_backoff_seconds=0.1)
    assert time.monotonic() - begin >= 0.35  # at least half of 0.1 + 0.2 + 0.4
    assert error.value.attempts == 4
    assert isinstance(error.value.__cause__, OSError)
    assert "u:***@127.0.0.1" in str(error.value)
    assert "s3cret" not in str(error.value)


async def test_attempts_time_out() -> None:
    """Each attempt ends after `timeout` if the server does not answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # connections are never accepted
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/d?sslmode=disable"
        with pytest.raises(StoreConnectionError) as error:
            await PgVectorStore.connect(
                url, 4, startup_retries=1, startup_backoff_seconds=0, timeout=0.2
            )
    assert error.value.attempts == 2
    assert isinstance(error.value.__cause__, TimeoutError)


async def test_an_unknown_database_is_not_retried(server_dsn: str) -> None:
    """A missing database is not retried, because waiting would not create it."""
    url = make_url(server_dsn).set(database="no_such_database")
    with pytest.raises(StoreConnectionError) as error:
        await PgVectorStore.connect(url.render_as_string(hide_password=False), 4)
    assert error.value.attempts == 1
    assert error.value.sqlstate == "3D000"
    assert isinstance(error.value.__cause__, asyncpg.InvalidCatalogNameError)


async def test_a_wrong_password_is_not_retried(tmp_path: Path) -> None:
    """A wrong password is not retried; the right one works."""
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE EXTENSION vector")
        await connection.execute("ALTER ROLE postgres PASSWORD 'right'")
        (tmp_path / "postgres" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        url = make_url(server.dsn)
        wrong = url.set(password="wrong s3cret")  # noqa: S106
        with pytest.raises(StoreConnectionError) as error:
            await PgVectorStore.connect(wrong.render_as_string(hide_password=False), 4)
        assert error.value.attempts == 1
        assert error.value.sqlstate == "28P01"
        assert "s3cret" not in str(error.value)
        right = url.set(password="right")  # noqa: S106
        store = await PgVectorStore.connect(right.render_as_string(hide_password=False), 4)
        assert "right" not in repr(store) + repr(store.engine) + repr(store.engine.url)
        await store.close()


async def test_a_full_server_is_retried(engine: AsyncEngine, dsn: str) -> None:
    """`connect` retries while the role has all its connections in use."""
    async with engine.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS cenote_limited"))
        await connection.execute(text("CREATE ROLE cenote_limited LOGIN CONNECTION LIMIT 0"))

    async def make_room() -> None:
        await asyncio.sleep(0.3)
        async with engine.begin() as connection:
            await connection.execute(text("ALTER ROLE cenote_limited CONNECTION LIMIT 5"))

    limited = make_url(dsn).set(username="cenote_limited").render_as_string(hide_password=False)
    making_room = asyncio.create_task(make_room())
    store = await PgVectorStore.connect(limited, 4, startup_backoff_seconds=0.1)
    await making_room
    await store.close()
    async with engine.begin() as connection:
        await connection.execute(text("DROP ROLE cenote_limited"))


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionRefusedError(), True),
        (ConnectionResetError(), True),
        (FileNotFoundError(), True),
        (TimeoutError(), True),
        (socket.gaierror(socket.EAI_AGAIN, ""), True),
        (asyncpg.CannotConnectNowError(), True),
        (asyncpg.TooManyConnectionsError(), True),
        (socket.gaierror(socket.EAI_NONAME, ""), False),
        (PermissionError(), False),
        (asyncpg.InvalidPasswordError(), False),
        (asyncpg.InvalidCatalogNameError(), False),
        (asyncpg.InvalidAuthorizationSpecificationError(), False),
        (ValueError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_transient_errors(error: Exception, transient: bool) -> None:
    """Only errors that may go away count as transient."""
    assert is_transient(error) is transient


def test_connection_strings_in_messages() -> None:
    """Messages show a connection string without password and query."""
    assert safe_dsn("postgresql://u:s3cret@h/d?password=s3cret") == "postgresql://u:***@h/d"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
