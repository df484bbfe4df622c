"""Compare a plain search with one that joins the application's documents.

python -m benchmarks.joined
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from sqlalchemy import ForeignKey, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cenote import Chunk, ChunkMixin, EmbeddedChunk, PgVectorStore
from cenote.embedded import EmbeddedPostgres

ROWS, DIMENSIONS, QUERIES, WARM_UP = 20_000, 384, 300, 50


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "documents"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str]


class Passage(ChunkMixin, Base, dimensions=DIMENSIONS):
    __tablename__ = "passages"

    doc_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), index=True
    )
    document: Mapped[Document] = relationship()


async def load(engine: AsyncEngine, store: PgVectorStore[Passage], vectors: Any) -> None:
    """Load ten passages for each document; three quarters of the rows belong to one tenant."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        documents = [Document(title=f"document {n}") for n in range(ROWS // 10)]
        session.add_all(documents)
        await session.flush()
        for start in range(0, ROWS, 1000):
            batch = [
                EmbeddedChunk(
                    chunk=Chunk(id=f"{n:05}", document_id=f"{n // 10}", content="some words " * 40),
                    embedding=vectors[n],
                    embedding_model="model",
                    columns={"doc_id": documents[n // 10].id},
                )
                for n in range(start, start + 1000)
            ]
            tenant = "large" if start < ROWS * 3 // 4 else f"small {start}"
            await store.upsert(batch, tenant, session=session)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE"))


async def measure(engine: AsyncEngine, store: PgVectorStore[Passage], queries: Any) -> None:
    """Measure the kinds of searches in turn for each query, and print their medians."""

    async def plain(session: AsyncSession | None, query: Any) -> None:
        await store.search(query, "large", session=session)

    async def statement(session: AsyncSession, query: Any) -> None:
        (await session.execute(store.search_statement(query, "large"))).all()

    async def joined(session: AsyncSession, query: Any) -> None:
        select = store.search_statement(query, "large").join(Passage.document)
        (await session.execute(select.add_columns(Document.title))).all()

    async def columns(session: AsyncSession, query: Any) -> None:
        select = store.search_statement(query, "large").join(Passage.document)
        (await session.execute(select.with_only_columns(Passage.content, Document.title))).all()

    def in_new_session(call: Callable[..., Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def run(query: Any) -> None:
            async with AsyncSession(engine) as session:
                await call(session, query)

        return run

    async with AsyncSession(engine) as open_session:

        def in_open_session(call: Callable[..., Awaitable[None]]) -> Any:
            return lambda query: call(open_session, query)

        kinds = {
            "plain": plain,
            "statement": statement,
            "joined": joined,
            "joined, columns": columns,
        }
        runs: dict[str, Callable[[Any], Awaitable[None]]] = {}
        for name, call in kinds.items():
            runs[name + " (new session)"] = in_new_session(call)
            runs[name + " (open session)"] = in_open_session(call)
        runs["plain (no session)"] = lambda query: plain(None, query)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for query in queries:
            for name, run in runs.items():
                begin = time.perf_counter()
                await run(query)
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    print(f"{ROWS:,} x {DIMENSIONS}, limit 10: medians relative to the plain search")
    for name, median in medians.items():
        session = "new session" if name.endswith("(new session)") else "open session"
        ratio = median / medians[f"plain ({session})"]
        print(f"  {name:42} {ratio:5.2f}")


async def main() -> None:
    """Generate the rows and run the measurement on an embedded server."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((50, DIMENSIONS))
    vectors = centres[np.arange(ROWS) % 50] + random.standard_normal((ROWS, DIMENSIONS))
    queries = centres[np.arange(QUERIES) % 50] + random.standard_normal((QUERIES, DIMENSIONS))
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        store = PgVectorStore(engine, model=Passage)
        await load(engine, store, vectors)
        await measure(engine, store, queries)
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
