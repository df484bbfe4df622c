"""From a text to chunks, over any `VectorStore`: by vectors, by words, or by both.

A store with full text does the last in one statement, by its ``search_hybrid``.

::

    by_vector = VectorRetriever(store, embed)
    by_words = BM25Retriever(store)
    both = HybridRetriever([by_vector, by_words])
    results = await both.retrieve("what a reader asks", "acme", 5)
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from cenote import validation
from cenote.bm25 import Tokenize, WordIndex, imported, words
from cenote.errors import ConfigurationError
from cenote.filters import And, FilterLike, as_filter, field
from cenote.models import RetrievalResult
from cenote.ranking import DEPTH, fused
from cenote.stores.base import VectorStore
from cenote.types import Vector

__all__ = [
    "BM25Retriever",
    "Embed",
    "HybridRetriever",
    "Retriever",
    "TextRetriever",
    "VectorRetriever",
]

Embed = Callable[[str], Vector | Awaitable[Vector]]
"""Makes the embedding of a query, at once or to be awaited."""

_PAGE = 100
"""Ids that are asked for at a time, best first, until there are enough."""


class Retriever(Protocol):
    """Finds the chunks of a namespace that answer a text."""

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks.

        Args:
            text: what is asked.
            namespace: where to look.
            limit: the most results to return, 1 or more.
            filter: what the chunks must match.

        Returns:
            At most `limit` results, the best first, whose `RetrievalResult.retriever` says how they
            were found and so what their score means.

        Raises:
            InvalidInputError: an argument cannot work.
            VectorStoreError: the store failed.
        """
        ...


class VectorRetriever:
    """By the embedding of the text; the score is the cosine similarity.

    Args:
        store: where to search.
        embed: makes the embedding, by the model that embedded the chunks.
        **options: further arguments of the store's ``search``.
    """

    def __init__(self, store: VectorStore, embed: Embed, **options: Any) -> None:
        self._store = store
        self._embed = embed
        self._options = options

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks; see `Retriever.retrieve`."""
        validation.check_text(text, field="text")
        vector = self._embed(text)
        if inspect.isawaitable(vector):
            vector = await vector
        return await self._store.search(vector, namespace, limit, filter, **self._options)


class TextRetriever:
    """By the words of the text, in the store; the score is that of ``search_text``.

    Args:
        store: where to search, which has full text.
        **options: further arguments of the store's ``search_text``.
    """

    def __init__(self, store: VectorStore, **options: Any) -> None:
        self._store = store
        self._options = options

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks; see `Retriever.retrieve`."""
        return await self._store.search_text(text, namespace, limit, filter, **self._options)


class BM25Retriever:
    """By the words of the text; the score is that of BM25, 0 or more.

    Needs the extra ``cenote[bm25]``. An index of a namespace's words is made in memory at the first
    question, from ``get_all_chunks``, and holds no contents; the chunks are read from the store
    again when they are found. What is written afterwards is found after :meth:`refresh`.

    Args:
        store: where the chunks are.
        tokenize: takes texts apart; `cenote.bm25.words` unless given. One that knows the language
            finds more: ``tokenize=cenote.bm25.stems("spanish")``.
        namespaces: how many indexes to keep; the one that was asked least recently goes first.

    Raises:
        ConfigurationError: namespaces is no integer of 1 or more, or the extra is missing.
    """

    def __init__(
        self, store: VectorStore, *, tokenize: Tokenize = words, namespaces: int = 100
    ) -> None:
        validation.check_whole("namespaces", namespaces)
        imported("bm25s")
        self._store = store
        self._tokenize = tokenize
        self._most = namespaces
        self._indexes: OrderedDict[str, asyncio.Task[WordIndex]] = OrderedDict()

    async def refresh(self, namespace: str) -> int:
        """Index the words of a namespace as it is now; returns how many chunks there are."""
        validation.check_namespace(namespace)
        self._indexes.pop(namespace, None)
        return len((await self._index(namespace)).ids)

    def forget(self, namespace: str) -> None:
        """Drop the index of a namespace, such as one that was deleted."""
        self._indexes.pop(namespace, None)

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks; see `Retriever.retrieve`. All of them have a word of the text."""
        validation.check_text(text, field="text")
        validation.check_namespace(namespace)
        validation.check_limit(limit)
        wanted = as_filter(filter)
        index = await self._index(namespace)
        ranked = index.ranked(self._tokenize(text))
        results: list[RetrievalResult] = []
        for start in range(0, len(ranked), _PAGE):
            scores = dict(ranked[start : start + _PAGE])
            among = field("id").in_(list(scores))
            condition = among if wanted is None else And((among, wanted))
            page = await self._store.list_chunks(namespace, condition, limit=len(scores))
            found = {chunk.id: chunk for chunk in page}
            results += [
                RetrievalResult(chunk=found[one], score=score, retriever="bm25")
                for one, score in scores.items()
                if one in found
            ]
            if len(results) >= limit:
                break
        return results[:limit]

    async def _index(self, namespace: str) -> WordIndex:
        """The index of a namespace, which is made once, however many ask for it at a time."""
        task = self._indexes.get(namespace)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(self._made(namespace))
            self._indexes[namespace] = task
            if len(self._indexes) > self._most:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(namespace)
        return await asyncio.shield(task)

    async def _made(self, namespace: str) -> WordIndex:
        ids: list[str] = []
        tokens: list[list[str]] = []
        async for chunk in self._store.get_all_chunks(namespace):
            ids.append(chunk.id)
            tokens.append([*self._tokenize(chunk.content)])
        return await asyncio.to_thread(WordIndex.of, ids, tokens)


class HybridRetriever:
    """By several retrievers, whose rankings are fused.

    The score is that of reciprocal rank fusion (`cenote.ranking.reciprocal_rank_fusion`): what
    several retrievers place high comes first, whatever their scores mean.

    Args:
        retrievers: whom to ask, at once.
        weights: of their rankings; 1 each when None.
        depth: how many results of each to fuse, at least; a limit that is larger counts instead.

    Raises:
        ConfigurationError: there are no retrievers, or not as many weights, which must be from 0 to
            1e9, and one of them more than 0; or the depth is no integer of 1 or more.
    """

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        *,
        weights: Sequence[float] | None = None,
        depth: int = DEPTH,
    ) -> None:
        if not isinstance(retrievers, Sequence) or not retrievers:
            raise ConfigurationError(
                "retrievers must be a list of one retriever or more", setting="retrievers"
            )
        for one in retrievers:
            if not hasattr(one, "retrieve"):
                raise ConfigurationError(
                    f"retrievers holds an object of type {type(one).__name__}, which is none",
                    setting="retrievers",
                )
        validation.check_weights(weights, len(retrievers))
        validation.check_whole("depth", depth)
        self._retrievers = list(retrievers)
        self._weights = weights
        self._depth = depth

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks; see `Retriever.retrieve`."""
        validation.check_limit(limit)
        depth = max(limit, self._depth)
        answers = await asyncio.gather(
            *(one.retrieve(text, namespace, depth, filter) for one in self._retrievers)
        )
        return fused(answers, self._weights, limit)
