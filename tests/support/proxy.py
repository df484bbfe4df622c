"""A loopback proxy in front of the real server, which observes and disturbs the network traffic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.engine import make_url


class Proxy:
    """A proxy that forwards bytes and counts round trips.

    Attributes:
        dsn: Connection string of the database through the proxy.
        round_trips: Number of times the client started to send after receiving.
        open: Event that stops all forwarding while it is cleared, like a network that has gone
            silent.
    """

    def __init__(self, dsn: str) -> None:
        url = make_url(dsn)
        self._folder = url.query.get("host")
        self._host, self._port = url.host or "localhost", url.port or 5432
        self._url = url
        self.round_trips = 0
        self.open = asyncio.Event()
        self.open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        port = self._server.sockets[0].getsockname()[1]
        url = self._url.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
        self.dsn = url.render_as_string(hide_password=False)

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Abort every connection, as a failing network does, without telling either side."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._folder is not None:
            upstream = await asyncio.open_unix_connection(f"{self._folder}/.s.PGSQL.{self._port}")
        else:
            upstream = await asyncio.open_connection(self._host, self._port)
        turn = {"client": False}
        self._writers |= {writer, upstream[1]}
        for source, sink, is_client in (
            (reader, upstream[1], True),
            (upstream[0], writer, False),
        ):
            task = asyncio.create_task(self._forward(source, sink, is_client, turn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        is_client: bool,
        turn: dict[str, bool],
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if is_client and not turn["client"]:
                    self.round_trips += 1
                turn["client"] = is_client
                await self.open.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


@asynccontextmanager
async def running_proxy(dsn: str) -> AsyncIterator[Proxy]:
    """Run a proxy to the database until the block ends."""
    proxy = Proxy(dsn)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
