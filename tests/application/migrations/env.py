import asyncio
import os

from alembic import context
from app import Base
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from cenote.autogenerate import hooks


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, **hooks())
    with context.begin_transaction():
        context.run_migrations()


async def online() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        target_metadata=Base.metadata,
        **hooks(),
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(online())
