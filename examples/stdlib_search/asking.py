"""Questions, what answers them, and an ORM query over what was found."""

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
    .where(ChunkRow.namespace == "{PUBLIC}", ChunkRow.id.in_(found))
    .group_by(module)
    .order_by(func.count().desc(), module)
    .limit(10)"""
"""The query of `Asker.count_by_module`, as the reader would write it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and of whom.

    Attributes:
        text: the question.
        remark: what the reader should notice.
        namespace, filter, limit: the arguments of the search.
    """

    text: str
    remark: str = ""
    namespace: str = PUBLIC
    filter: dict[str, Any] | None = None
    limit: int = 3

    @property
    def call(self) -> str:
        """The call that answers it, as the reader would write it."""
        filtered = f", filter={self.filter}" if self.filter else ""
        return f'store.search(vector, "{self.namespace}", limit={self.limit}{filtered})'


QUESTIONS = [
    Question(text="split a string into words"),
    Question(text="start a process and wait for it"),
    Question(text="compress a file"),
    Question(
        text="compress a file", remark="the same, functions only", filter={"kind": "function"}
    ),
    Question(text="round a number"),
    Question(text="round a number", remark="the same, of another tenant", namespace=PRIVATE),
]

QUESTION_TO_COUNT = Question(text="read and write compressed archives", limit=40)


@dataclass(frozen=True)
class Asker:
    """Asks the store and reports the answers.

    Attributes:
        store: the store.
        row: the mapped class of its table.
        embedder: what embeds the questions.
        report: where the answers go.
    """

    store: PgVectorStore
    row: Any
    embedder: Embedder
    report: Report

    async def ask_all(self) -> None:
        """Ask the demo's own questions."""
        for question in QUESTIONS:
            self.report.answers(await self._ask(question))
        found = await self._ask(QUESTION_TO_COUNT)
        await self._report_modules(found)

    async def ask(self, text: str) -> None:
        """Ask one question, and show more of what was found."""
        found = await self._ask(Question(text=text, limit=30))
        self.report.answers(found[:6], lines=6)
        if found:
            await self._report_modules(found)

    async def _ask(self, question: Question) -> list[RetrievalResult]:
        vector = self.embedder.embed_question(question.text)
        started = time.perf_counter()
        found = await self.store.search(
            vector, question.namespace, limit=question.limit, filter=question.filter
        )
        seconds = time.perf_counter() - started
        self.report.question(question.text, question.remark, question.call, seconds)
        return found

    async def _report_modules(self, found: list[RetrievalResult]) -> None:
        self.report.text(f"The {len(found)} found, by module:")
        self.report.code(BY_MODULE)
        self.report.counts(await self.count_by_module([result.chunk.id for result in found]))

    async def count_by_module(self, ids: list[str]) -> list[tuple[str, int]]:
        """How many of these chunks each module has: an ORM query on the store's table."""
        module = self.row.metadata_["module"].astext
        query = (
            select(module, func.count())
            .where(self.row.namespace == PUBLIC, self.row.id.in_(ids))
            .group_by(module)
            .order_by(func.count().desc(), module)
            .limit(10)
        )
        async with AsyncSession(self.store.engine) as session:
            return [(name, count) for name, count in await session.execute(query)]
