"""The demo's questions, the searches that answer them, and an ORM query over the results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from cenote import PgVectorStore, RetrievalResult

from .corpus import PRIVATE, PUBLIC
from .embedding import Embedder
from .report import Report

BY_MODULE = f"""\
module = ChunkRow.metadata_["module"].astext
select(module, func.count())
    .where(ChunkRow.namespace == "{PUBLIC}", ChunkRow.id.in_(ids))
    .group_by(module)
    .order_by(func.count().desc(), module)
    .limit(10)"""
"""Source of the query in `Asker.count_by_module`, as a user would write it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and the arguments of the search that answers it.

    Attributes:
        text: Text of the question.
        remark: Remark to print beside the question.
        namespace, filter, limit: Arguments of the search.
    """

    text: str
    remark: str = ""
    namespace: str = PUBLIC
    filter: dict[str, Any] | None = None
    limit: int = 3

    @property
    def call(self) -> str:
        """Source of the search that answers the question, as a user would write it."""
        filter = f", filter={self.filter}" if self.filter else ""
        return f'store.search(vector, "{self.namespace}", limit={self.limit}{filter})'


QUESTIONS = [
    Question(text="split a string into words"),
    Question(text="start a process and wait for it"),
    Question(text="compress a file"),
    Question(text="compress a file", remark="functions only", filter={"kind": "function"}),
    Question(text="round a number"),
    Question(text="round a number", remark="in another tenant", namespace=PRIVATE),
]

QUESTION_TO_COUNT = Question(text="read and write compressed archives", limit=40)


@dataclass(frozen=True)
class Asker:
    """Searches the store for questions and reports the results.

    Attributes:
        store: Store to search in.
        embedder: Model that embeds the questions.
        report: Report that prints the results.
    """

    store: PgVectorStore
    embedder: Embedder
    report: Report

    async def ask_all(self) -> None:
        """Ask the demo's questions."""
        for question in QUESTIONS:
            self.report.answers(await self._ask(question))
        results = await self._ask(QUESTION_TO_COUNT)
        await self._report_modules(results)

    async def ask(self, text: str) -> None:
        """Ask one question and show more lines of each result."""
        results = await self._ask(Question(text=text, limit=30))
        self.report.answers(results[:6], lines=6)
        if results:
            await self._report_modules(results)

    async def _ask(self, question: Question) -> list[RetrievalResult]:
        vector = self.embedder.embed_question(question.text)
        started = time.perf_counter()
        results = await self.store.search(
            vector, question.namespace, limit=question.limit, filter=question.filter
        )
        seconds = time.perf_counter() - started
        self.report.question(question.text, question.remark, question.call, seconds)
        return results

    async def _report_modules(self, results: list[RetrievalResult]) -> None:
        self.report.text(f"The {len(results)} results by module:")
        self.report.code(BY_MODULE)
        self.report.counts(await self.count_by_module([result.chunk.id for result in results]))

    async def count_by_module(self, ids: list[str]) -> list[tuple[str, int]]:
        """Count these chunks by module, with an ORM query on the store's table."""
        row: Any = self.store.model
        module = row.metadata_["module"].astext
        query = (
            select(module, func.count())
            .where(row.namespace == PUBLIC, row.id.in_(ids))
            .group_by(module)
            .order_by(func.count().desc(), module)
            .limit(10)
        )
        async with AsyncSession(self.store.engine) as session:
            return [(name, count) for name, count in await session.execute(query)]
