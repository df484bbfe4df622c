"""Start the application: prepare its database, add sample documents and serve it over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import alembic.command
import uvicorn
from alembic.config import Config
from sqlalchemy import URL, Connection, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from cenote.embedded import EmbeddedPostgres

from .app import create_app
from .sample import add_sample_documents

HERE = Path(__file__).parent


def migrate(connection: Connection) -> None:
    """Run the application's migrations."""
    config = Config(str(HERE / "alembic.ini"), attributes={"connection": connection})
    alembic.command.upgrade(config, "head")


async def serve(url: URL, port: int) -> None:
    """Migrate the database, add the sample documents and serve until interrupted."""
    engine = create_async_engine(url, pool_size=5, max_overflow=0)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await add_sample_documents(engine)
    config = uvicorn.Config(
        create_app(engine), port=port, ws="none", log_level="warning", timeout_graceful_shutdown=5
    )
    print(f"Open http://127.0.0.1:{port} in a browser. Press Ctrl-C to stop.", flush=True)
    await uvicorn.Server(config).serve()


def main() -> None:
    """Parse the command line, start a database unless a URL is passed, and run the application."""
    parser = argparse.ArgumentParser(prog="python -m examples.document_search")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--database-url",
        help="postgresql+asyncpg://... URL of the database to create the tables in "
        "(default: an embedded server with its data in .demo)",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # lets the embedded server stop
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if arguments.database_url:
            url = make_url(arguments.database_url)
        else:
            folder = HERE.parents[1] / ".demo" / "document_search"
            url = stack.enter_context(EmbeddedPostgres(folder)).url
        asyncio.run(serve(url, arguments.port))


if __name__ == "__main__":
    main()
