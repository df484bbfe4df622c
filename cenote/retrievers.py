"""Retrievers: find chunks for a text by embedding, by words, or by both, in any `VectorStore`.

::

    vectors = VectorRetriever(store, embed)
    words = BM25Retriever(store)
    hybrid = HybridRetriever([vectors, words])
    results = await hybrid.retrieve("how do I reset my password", "acme", 5)

If the store has full-text search, its ``search_hybrid`` combines both in one statement.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from cenote.errors import ConfigurationError
from cenote.filters.checks import as_filter
from cenote.filters.language import And, FilterLike, field
from cenote.models import RetrievalResult
from cenote.ranking.bm25 import Tokenize, WordIndex, imported, stems, words
from cenote.ranking.fusion import DEPTH, fused, maximal_marginal_relevance, reciprocal_rank_fusion
from cenote.responsive import Pauses, run, run_in_thread
from cenote.stores.protocol import VectorStore
from cenote.types import Vector
from cenote.validation.arguments import (
    MAX_LIMIT,
    check_integer_setting,
    check_limit,
    check_namespace,
    check_text,
    check_weights,
)

__all__ = [
    "BM25Retriever",
    "Embed",
    "HybridRetriever",
    "Retriever",
    "TextRetriever",
    "Tokenize",
    "VectorRetriever",
    "maximal_marginal_relevance",
    "reciprocal_rank_fusion",
    "stems",
    "words",
]

Embed = Callable[[str], Vector | Awaitable[Vector]]
"""Function that returns the embedding of a query text, or an awaitable of it."""

_PAGE = 100
"""Number of ranked ids read from the store at a time, until there are enough results."""


_SECONDS_PER_RANK = 2e-6
"""Duration of ranking or fusing one chunk."""


class Retriever(Protocol):
    """Interface of an object that finds the chunks of a namespace that match a text."""

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks.

        Args:
            text: Query text.
            namespace: Namespace to search in.
            limit: Maximum number of results, from 1 to 10,000.
            filter: Filter that the chunks must match.

        Returns:
            At most `limit` results, best first. `RetrievalResult.retriever` names the kind of
            retriever, which determines the meaning of the score.

        Raises:
            InvalidInputError: An argument is invalid.
            VectorStoreError: The store failed.
        """
        ...


class VectorRetriever:
    """Retriever that compares embeddings. The score is the cosine similarity.

    Args:
        store: Store to search.
        embed: Embedding function. It must use the model that embedded the chunks.
        **options: Additional arguments for the store's ``search``.
    """

    def __init__(self, store: VectorStore, embed: Embed, **options: Any) -> None:
        self._store = store
        self._embed = embed
        self._options = options

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks; see `Retriever.retrieve`."""
        check_text(text, field="text")
        vector = self._embed(text)
        if inspect.isawaitable(vector):
            vector = await vector
        return await self._store.search(vector, namespace, limit, filter, **self._options)


class TextRetriever:
    """Retriever that uses the store's full-text search. The score is that of ``search_text``.

    Args:
        store: Store to search, with full-text search enabled.
        **options: Additional arguments for the store's ``search_text``.
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
    """Retriever that ranks chunks by the words of the text. The score is BM25's, more than 0.

    Needs the extra ``cenote[bm25]``. The first query in a namespace reads it with
    ``get_all_chunks`` and builds a word index in memory. The index holds no content: matching
    chunks are read from the store for each query. Deleted chunks disappear from the results at
    once; new and changed text is found after :meth:`refresh`.

    Args:
        store: Store to search.
        tokenize: Function that splits a text into words; `words` by default. A
            tokenizer for the language finds more: ``tokenize=stems("spanish")``.
        namespaces: Maximum number of indexes to keep. The least recently used one is dropped first.

    Raises:
        ConfigurationError: `namespaces` is not an integer of 1 or more, or the extra is not
            installed.
    """

    def __init__(
        self, store: VectorStore, *, tokenize: Tokenize = words, namespaces: int = 100
    ) -> None:
        check_integer_setting(namespaces, setting="namespaces", least=1)
        imported("bm25s")
        self._store = store
        self._tokenize = tokenize
        self._max_indexes = namespaces
        self._indexes: OrderedDict[str, asyncio.Task[WordIndex]] = OrderedDict()

    async def refresh(self, namespace: str) -> int:
        """Rebuild the index of a namespace and return the number of chunks in it."""
        check_namespace(namespace)
        self._indexes.pop(namespace, None)
        return len((await self._index(namespace)).ids)

    def forget(self, namespace: str) -> None:
        """Drop the index of a namespace, for example after the namespace was deleted."""
        self._indexes.pop(namespace, None)

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks that contain a word of the text; see `Retriever.retrieve`."""
        check_text(text, field="text")
        check_namespace(namespace)
        check_limit(limit)
        condition = as_filter(filter)
        index = await self._index(namespace)
        seconds = len(index.ids) * _SECONDS_PER_RANK
        ranked = await run(seconds, index.ranked, self._tokenize(text))
        results: list[RetrievalResult] = []
        for start in range(0, len(ranked), _PAGE):
            scores = dict(ranked[start : start + _PAGE])
            ranked_ids = field("id").in_(list(scores))
            matching = ranked_ids if condition is None else And((ranked_ids, condition))
            page = await self._store.list_chunks(namespace, matching, limit=len(scores))
            chunks = {chunk.id: chunk for chunk in page}
            results += [
                RetrievalResult(chunk=chunks[chunk_id], score=score, retriever="bm25")
                for chunk_id, score in scores.items()
                if chunk_id in chunks
            ]
            if len(results) >= limit:
                break
        return results[:limit]

    async def _index(self, namespace: str) -> WordIndex:
        """Return the index of a namespace; concurrent callers share one build."""
        task = self._indexes.get(namespace)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(self._build_index(namespace))
            self._indexes[namespace] = task
            if len(self._indexes) > self._max_indexes:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(namespace)
        return await asyncio.shield(task)

    async def _build_index(self, namespace: str) -> WordIndex:
        ids: list[str] = []
        tokens: list[list[str]] = []
        pauses = Pauses()
        async for chunk in self._store.get_all_chunks(namespace):
            ids.append(chunk.id)
            tokens.append([*self._tokenize(chunk.content)])
            await pauses()
        return await run_in_thread(WordIndex.of, ids, tokens)


class HybridRetriever:
    """Retriever that fuses the rankings of several retrievers, which run concurrently.

    The score is that of reciprocal rank fusion (`reciprocal_rank_fusion`), which
    uses ranks only: chunks that several retrievers rank high come first, whatever the retrievers'
    own scores mean.

    Args:
        retrievers: Retrievers to combine.
        weights: One weight per retriever, from 0 to 1e9; 1 each if None.
        depth: Number of results of each retriever to fuse. A larger `limit` takes precedence.

    Raises:
        ConfigurationError: `retrievers` is empty or contains an object without ``retrieve``; the
            number of weights differs from that of the retrievers, a weight is out of range or all
            are 0; or `depth` is not an integer from 1 to 10,000.
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
                "retrievers must be a list of at least one retriever", setting="retrievers"
            )
        for retriever in retrievers:
            if not hasattr(retriever, "retrieve"):
                raise ConfigurationError(
                    f"retrievers contains an object of type {type(retriever).__name__}, which has "
                    "no method `retrieve`",
                    setting="retrievers",
                )
        check_weights(weights, len(retrievers))
        check_integer_setting(depth, setting="depth", least=1, most=MAX_LIMIT)
        self._retrievers = list(retrievers)
        self._weights = weights
        self._depth = depth

    async def retrieve(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find chunks; see `Retriever.retrieve`."""
        check_limit(limit)
        depth = max(limit, self._depth)
        rankings = await asyncio.gather(
            *(retriever.retrieve(text, namespace, depth, filter) for retriever in self._retrievers)
        )
        seconds = sum(map(len, rankings)) * _SECONDS_PER_RANK
        return await run(seconds, fused, rankings, self._weights, limit)
