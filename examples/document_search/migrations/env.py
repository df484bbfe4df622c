import asyncio
import os

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from cenote.autogenerate import hooks
from examples.document_search.models import Base


def run(**options: object) -> None:
    context.configure(target_metadata=Base.metadata, **options, **hooks())
    with context.begin_transaction():
        context.run_migrations()


def run_on(connection: Connection) -> None:
    run(connection=connection)


async def run_online() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        await connection.run_sync(run_on)
    await engine.dispose()


if context.is_offline_mode():
    run(dialect_name="postgresql", literal_binds=True)
elif connection := context.config.attributes.get("connection"):
    # The application passes its connection when it starts.
    run_on(connection)
else:
    asyncio.run(run_online())
