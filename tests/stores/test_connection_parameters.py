"""Parameters in connection strings: libpq's, those of other clients, and several hosts."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from support.proxy import Proxy

from cenote import (
    ConfigurationError,
    PgVectorStore,
    SchemaConfig,
    StoreConnectionError,
    schema,
)
from cenote.postgres.connection_parameters import ConnectionParameters
from cenote.postgres.dsn import create_engine, safe_dsn

CONFIG = SchemaConfig(dimensions=4)

LIBPQ = {
    "application_name": "app",
    "channel_binding": "require",
    "client_encoding": "latin1",
    "connect_timeout": "0",
    "dbname": "",
    "fallback_application_name": "fallback",
    "gssdelegation": "0",
    "gssencmode": "disable",
    "gsslib": "gssapi",
    "hostaddr": "127.0.0.1",
    "keepalives": "1",
    "keepalives_count": "3",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "krbsrvname": "postgres",
    "load_balance_hosts": "random",
    "max_protocol_version": "latest",
    "min_protocol_version": "3.0",
    "options": "-c search_path=public -c statement_timeout=50000",
    "passfile": "/nowhere",
    "replication": "false",
    "requiressl": "0",
    "sslcertmode": "allow",
    "sslcompression": "0",
    "sslkeylogfile": "/nowhere",
    "sslmode": "prefer",
    "sslnegotiation": "postgres",
    "sslpassword": "x",
    "sslsni": "1",
    "ssl_max_protocol_version": "TLSv1.3",
    "ssl_min_protocol_version": "TLSv1.2",
    "target_session_attrs": "read-write",
    "tcp_user_timeout": "20000",
}


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy that accepts TCP connections."""
    proxy = Proxy(dsn)
    await proxy.start()
    yield proxy
    await proxy.stop()


def with_parameters(dsn: str, parameters: dict[str, str]) -> str:
    return make_url(dsn).update_query_dict(parameters).render_as_string(hide_password=False)


async def scalar(dsn: str, sql: str) -> Any:
    async with (
        await PgVectorStore.connect(dsn, 4, startup_retries=0) as store,
        store.engine.connect() as connection,
    ):
        return await connection.scalar(text(sql))


@pytest.mark.parametrize("name", LIBPQ)
async def test_parameters_of_libpq(proxy: Proxy, name: str) -> None:
    """Each parameter of libpq is accepted."""
    value = LIBPQ[name] or make_url(proxy.dsn).database
    assert value is not None
    assert await scalar(with_parameters(proxy.dsn, {name: value}), "SELECT 1") == 1


async def test_all_parameters_of_libpq_at_once(proxy: Proxy) -> None:
    """Parameters have the same effects as in libpq."""
    dsn = with_parameters(proxy.dsn, {**LIBPQ, "dbname": make_url(proxy.dsn).database or ""})
    async with await PgVectorStore.connect(dsn, 4, startup_retries=0) as store:
        async with store.engine.connect() as connection:
            for name, value in (
                ("application_name", "app"),
                ("statement_timeout", "50s"),
                ("search_path", "public"),
                ("client_encoding", "UTF8"),
                ("jit", "off"),
            ):
                sql = text(f"SELECT current_setting('{name}')")
                assert await connection.scalar(sql) == value
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            options = driver._transport.get_extra_info("socket").getsockopt
            assert options(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert options(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert options(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
            assert options(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert options(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20000
        copy = store.with_own_pool()
        async with copy.engine.connect() as connection:  # with the same parameters
            assert await connection.scalar(text("SHOW application_name")) == "app"
        await copy.engine.dispose()


async def test_other_effects(dsn: str) -> None:
    """A fallback name, the application's own jit, and keepalives without a network."""
    name = "SHOW application_name"
    assert await scalar(with_parameters(dsn, {"fallback_application_name": "f"}), name) == "f"
    assert await scalar(with_parameters(dsn, {"jit": "on"}), "SHOW jit") == "on"
    assert await scalar(with_parameters(dsn, {"keepalives_idle": "3"}), "SELECT 1") == 1
    url = make_url(dsn)
    moved = {"user": url.username or "", "dbname": url.database or "", "password": "x"}
    string = (
        with_parameters(dsn, moved)
        .replace(f"{url.username}@", "")
        .replace(f"/{url.database}?", "/?")
    )
    assert await scalar(string, "SELECT current_database()") == url.database


@pytest.mark.parametrize(
    ("parameters", "kept_alive"),
    [("keepalives=0&keepalives_idle=9", [0]), ("keepalives_idle=9", [1, 9]), ("jit=on", [])],
)
def test_socket_options(parameters: str, kept_alive: list[int]) -> None:
    """`keepalives=0` turns the others off, and without parameters the socket is left alone."""
    query = dict(part.split("=") for part in parameters.split("&"))
    options = ConnectionParameters.read(query).socket_options
    assert [value for _, _, value in options] == kept_alive


@pytest.mark.parametrize(
    "parameters",
    [
        *("require_auth=scram-sha-256", "requirepeer=postgres", "sslcrldir=/x"),
        *("scram_client_key=s3cret", "oauth_client_secret=s3cret", "gssencmode=require"),
        *("replication=database", "sslcertmode=require", "min_protocol_version=3.2"),
        *("channel_binding=s3cret", "sslmode=no-verify", "ssl=s3cret", "gsslib=x"),
        *("target_session_attrs=primary-ish", "sslnegotiation=x", "load_balance_hosts=s3cret"),
        *("ssl_min_protocol_version=SSLv3", "connect_timeout=s3cret", "keepalives_idle=-1"),
        *("statement_cache_size=-1", "tcp_user_timeout=x", "keepalives=yes"),
        *("sslrootcert=/s3cret", "sslcert=/s3cret", "sslkey=/s3cret", "sslcrl=/s3cret"),
        "sslmode=require&sslrootcert=system",
        # other clients
        *("pgbouncer=true", "connection_limit=1", "pool_timeout=0", "schema=public"),
        *("sslaccept=strict", "currentSchema=x", "ApplicationName=s3cret", "prepareThreshold=0"),
        *("pool_max_conns=3", "default_query_exec_mode=exec", "uselibpqcompat=true"),
        *("prepared_statements=false", "encoding=utf8", "socket_timeout=3", "serverVersion=16"),
        *("sslMode=s3cret", "SSLROOTCERT=s3cret", "Connect_Timeout=3", "search_path=s3cret%00"),
    ],
)
async def test_rejected_parameters(dsn: str, parameters: str) -> None:
    """The error names the parameter, and never quotes its value; nothing connects."""
    name = parameters.partition("=")[0]
    with pytest.raises(ConfigurationError, match=f"'{name}'") as error:
        create_engine(f"postgresql://u:s3cret@h/d?{parameters}")
    assert error.value.setting == "dsn"
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("frobnicate", "s3cret", "no setting of the server"),
        ("work_mem", "s3cret", "its value is invalid"),
        ("shared_buffers", "1GB", "cannot set it"),
        ("options", "-c frobnicate=s3cret", "no setting of the server"),
        ("datestyle", "s3cret", "its value is invalid"),  # the server writes DateStyle
        ("options", "endpoint=s3cret", "'options': its value is invalid"),
    ],
)
async def test_settings_that_the_server_rejects(
    dsn: str, name: str, value: str, reason: str
) -> None:
    """The error names the setting; `connect`, the methods of a store, and migrations raise it."""
    string = with_parameters(dsn, {name: value})
    with pytest.raises(ConfigurationError, match=reason) as error:
        await PgVectorStore.connect(string, 4)
    assert ("frobnicate" if "frobnicate" in value else name) in str(error.value)
    assert "s3cret" not in str(error.value) + repr(error.value.__context__)
    engine = create_engine(string)
    with pytest.raises(ConfigurationError, match=reason):
        await PgVectorStore(engine, 4).count("n")
    with pytest.raises(ConfigurationError, match=reason):
        await schema.current(engine, CONFIG)
    await engine.dispose()


async def test_channel_binding_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """`channel_binding=require` has no effect, which matters unless the certificate is verified."""
    caplog.set_level(logging.WARNING, "cenote")
    for more in ("&sslmode=verify-full", "&sslrootcert=system", "&ssl=true"):
        create_engine("postgresql://u@h/d?channel_binding=require" + more)
    assert not caplog.messages
    create_engine("postgresql://u@h/d?sslmode=require&channel_binding=require")
    assert "channel_binding=require has no effect" in caplog.text


async def test_the_systems_authorities() -> None:
    """`sslrootcert=system` verifies the certificate and the host's name."""
    parameters = ConnectionParameters.read(
        {"sslrootcert": "system", "ssl_min_protocol_version": "TLSv1.3"}
    )
    context = parameters.driver["ssl"]
    assert (context.check_hostname, context.verify_mode.name) == (True, "CERT_REQUIRED")
    assert context.minimum_version.name == "TLSv1_3"
    assert not parameters.in_string


async def test_a_missing_root_certificate(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file that the driver looks for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    string = with_parameters(proxy.dsn.partition("?")[0], {"sslmode": "verify-full"})
    with pytest.raises(ConfigurationError, match=r"root\.crt"):
        await PgVectorStore.connect(string, 4)


async def test_several_hosts(proxy: Proxy) -> None:
    """Hosts are tried in their order, in all forms that libpq and SQLAlchemy accept."""
    url = make_url(proxy.dsn)
    port, user = url.port, url.username
    closed = _free_port()
    for string in (
        f"postgresql://{user}@127.0.0.1:{closed},127.0.0.1:{port}/{url.database}?sslmode=disable",
        f"postgresql://{user}@[::1]:{closed},localhost:{port}/{url.database}?sslmode=disable",
        f"postgresql://{user}:pass,word@127.0.0.1:{closed},127.0.0.1:{port}/{url.database}",
        f"postgres://{user}@/{url.database}?host=127.0.0.1,127.0.0.1&port={closed},{port}",
        f"postgres://{user}@/{url.database}?host=127.0.0.1:{closed}&host=127.0.0.1:{port}",
        f"postgres://{user}@/{url.database}?host=127.0.0.1:{closed},127.0.0.1:{port}"
        "&load_balance_hosts=random",
        f"postgresql+asyncpg://{user}@localhost,127.0.0.1/{url.database}?port={port}"
        "&target_session_attrs=primary",
    ):
        assert await scalar(string, "SELECT 1") == 1


async def test_no_host_has_the_role(dsn: str) -> None:
    """The error says that no host matches; it is retried, because a failover may be under way."""
    string = with_parameters(dsn, {"target_session_attrs": "standby"})
    with pytest.raises(StoreConnectionError, match="target attribute") as error:
        await PgVectorStore.connect(string, 4, startup_retries=1, startup_backoff_seconds=0)
    assert error.value.attempts == 2


@pytest.mark.parametrize(
    ("string", "problem"),
    [
        ("postgresql://u:s3cret@a:1,b:x/d", "host that cannot be read"),
        ("postgresql://u:s3cret@a,/d", "host that cannot be read"),
        ("postgresql://u:s3cret@a,b/d?port=1,2,3", "2 hosts, but 3 ports"),
        ("postgresql://u:s3cret@a:1,b:2/d?port=1,2", "port of a host twice"),
        ("postgresql://u:s3cret@a,b/d?port=x,y", "not a number"),
        ("postgresql://u:s3cret@a/d?port=1,2", "not several hosts"),
        ("postgresql://u:p@s3cret,x@h/d", "percent-encode"),
        ("postgresql://u:s3cret@a:0/d", "from 1 to 65535"),
        ("postgresql://u:s3cret@a:65536/d", "from 1 to 65535"),
        ("postgresql://u:s3cret@a/d?port=99999", "from 1 to 65535"),
        ("postgresql://u:s3cret@a:5432,b:99999/d", "from 1 to 65535"),
    ],
)
def test_invalid_hosts(string: str, problem: str) -> None:
    """The error says what is wrong with the hosts."""
    with pytest.raises(ConfigurationError, match=problem) as error:
        create_engine(string)
    assert "s3cret" not in str(error.value)


def test_several_hosts_in_messages() -> None:
    """Messages show the hosts, and neither password nor other parameters."""
    string = "postgresql://u:s3cret@a:1,[::1]/d?sslpassword=s3cret"
    assert safe_dsn(string) == "postgresql://u:***@/d?host=a:1,[::1]:5432"


async def test_percent_encoded_folder(dsn: str) -> None:
    """A folder may stand in place of the host, percent-encoded, as libpq documents it."""
    url = make_url(dsn)
    folder = url.query.get("host")
    if not isinstance(folder, str):
        pytest.skip("the server does not listen on a socket in the file system")
    string = f"postgresql://{url.username}:s%2Fx@{quote(folder, safe='')}{{}}/{url.database}"
    assert await scalar(string.format(""), "SELECT 1") == 1
    assert await scalar(string.format(":5432"), "SELECT 1") == 1


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("%2Fcloudsql%2Fproject:region:instance", ("/cloudsql/project:region:instance", None)),
        ("%2Fvar%2Frun:6432", ("/var/run", "6432")),
        ("[fe80::1%25eth0]:6432", ("fe80::1%eth0", "6432")),
    ],
)
def test_percent_encoded_hosts(host: str, address: tuple[str, str | None]) -> None:
    """A host is decoded after its port was split off."""
    query = create_engine(f"postgresql://u:p%40ss@{host}/d").url.query
    assert (query["host"], query.get("port")) == address


async def test_an_applications_engine(dsn: str) -> None:
    """An engine whose URL has a parameter of libpq: the error names it and what to do."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    for name, remedy in (("sslmode", "write ssl="), ("channel_binding", "remove it")):
        engine = create_async_engine(url.update_query_dict({name: "require"}))
        store = PgVectorStore(engine, 4)
        with pytest.raises(ConfigurationError, match=f"'{name}'.*{remedy}"):
            await store.count("n")
        with pytest.raises(ConfigurationError, match=f"'{name}'.*{remedy}"):
            await schema.current(engine, CONFIG)
        await engine.dispose()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
