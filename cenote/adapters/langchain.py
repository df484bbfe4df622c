"""LangChain vector store backed by a cenote store. Needs the extra ``cenote[langchain]``."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore as LangChainVectorStore
from pydantic import ValidationError

from cenote.adapters._arguments import (
    check_share,
    document_id,
    list_of,
    list_of_length,
    reject_unknown,
)
from cenote.adapters._sync import StoreRunner
from cenote.adapters.metadata import json_filter, json_metadata
from cenote.errors import ConfigurationError, InvalidInputError
from cenote.filters.language import FilterLike
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.stores import SyncVectorStore, VectorStore
from cenote.types import Metric
from cenote.validation.arguments import MAX_LIMIT, as_list, check_integer_argument, safe_repr

__all__ = ["CenoteVectorStore"]

_FETCH_K = 20
"""LangChain's default for ``fetch_k``."""


class CenoteVectorStore(LangChainVectorStore):
    """LangChain vector store for one namespace of a cenote store.

    With a `VectorStore`, asynchronous methods run in the caller's event loop and use the store's
    engine. Synchronous methods run in a background thread with its own connections, which `close`
    closes.

    With a `SyncVectorStore`, synchronous methods run in the caller's thread, without an event loop.
    With ``store.in_session(session)`` they join the transaction of a session. Asynchronous methods
    run in another thread.

    A document's id is the chunk's id; documents without an id get a random one. Scores are those
    of the store's metric; see `VectorStore`. Filters are cenote filters: dicts or expressions.

    Metadata and dicts as filters may contain dates, UUIDs and other objects of document loaders;
    see `cenote.adapters.metadata`. Searches return their JSON.

    Args:
        store: Store that holds the documents.
        embedding: LangChain embeddings.
        namespace: Namespace to read and write.
        embedding_model: Name of the embedding model, stored with each chunk.
        document_id_key: Metadata key with the id of the document that the chunk was cut from.
            Without that key, the chunk's own id is used.

    Raises:
        ConfigurationError: `document_id_key` is not a string.
    """

    def __init__(
        self,
        store: VectorStore | SyncVectorStore,
        embedding: Embeddings,
        namespace: str,
        *,
        embedding_model: str = "langchain",
        document_id_key: str = "document_id",
    ) -> None:
        if not isinstance(document_id_key, str):
            raise ConfigurationError(
                f"document_id_key must be a string, not {type(document_id_key).__name__}",
                setting="document_id_key",
            )
        self._embedding = embedding
        self._namespace = namespace
        self._embedding_model = embedding_model
        self._document_id_key = document_id_key
        self._metric: Metric = store.metric
        self._runner = StoreRunner(store)

    @property
    def embeddings(self) -> Embeddings:
        """LangChain embeddings of this store."""
        return self._embedding

    def close(self) -> None:
        """Close the connections of the background thread. The store itself stays open."""
        self._runner.close()

    # -- writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts and return their ids."""
        return self.add_documents(_documents(texts, metadatas, ids), **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts and return their ids."""
        return await self.aadd_documents(_documents(texts, metadatas, ids), **kwargs)

    def add_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Write documents, replace stored ones with the same id, and return the ids.

        LangChain's indexing passes ``batch_size``, which has no effect: all documents are written
        in one transaction.

        Raises:
            InvalidInputError: A document cannot be stored, or there is an unknown keyword argument.
        """
        _reject_unknown_options(kwargs)
        documents = list_of(documents, Document, field="documents")
        chunks = self._chunks(documents, ids)
        vectors = self._embedding.embed_documents(_contents(documents))
        embedded_chunks = self._embedded(chunks, vectors)
        self._runner.run(lambda store: store.upsert(embedded_chunks, self._namespace))
        return [chunk.id for chunk in chunks]

    async def aadd_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Write documents, replace stored ones with the same id, and return the ids.

        LangChain's indexing passes ``batch_size``, which has no effect: all documents are written
        in one transaction.

        Raises:
            InvalidInputError: A document cannot be stored, or there is an unknown keyword argument.
        """
        _reject_unknown_options(kwargs)
        documents = list_of(documents, Document, field="documents")
        chunks = self._chunks(documents, ids)
        vectors = await self._embedding.aembed_documents(_contents(documents))
        embedded_chunks = self._embedded(chunks, vectors)
        await self._runner.run_async(lambda store: store.upsert(embedded_chunks, self._namespace))
        return [chunk.id for chunk in chunks]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents; see :meth:`adelete`."""
        return self._runner.run(lambda store: self._delete(store, ids, **kwargs))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id or by filter.

        Args:
            ids: Ids of the documents to delete. Unknown ids are ignored.
            **kwargs: ``filter`` deletes the matching documents. Pass it without `ids`.

        Raises:
            InvalidInputError: There are neither ids nor a filter, or both, or there is another
                keyword argument.
        """
        return await self._runner.run_async(lambda store: self._delete(store, ids, **kwargs))

    async def _delete(
        self, store: VectorStore, ids: list[str] | None, *, filter: Any = None, **kwargs: Any
    ) -> bool:
        reject_unknown(kwargs, "delete")
        if ids is None:
            await store.delete_matching(json_filter(filter), self._namespace)
        elif filter is not None:
            raise InvalidInputError("delete() accepts ids or a filter, not both", field="filter")
        else:
            await store.delete(ids, self._namespace)
        return True

    # -- reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents by id, in the order of `ids`. Unknown ids are ignored."""
        chunks = self._runner.run(lambda store: store.get(ids, self._namespace))
        return [_document(chunk) for chunk in chunks]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents by id, in the order of `ids`. Unknown ids are ignored."""
        chunks = await self._runner.run_async(lambda store: store.get(ids, self._namespace))
        return [_document(chunk) for chunk in chunks]

    # -- searching

    def similarity_search(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents most similar to a text."""
        found = self.similarity_search_with_score(query, k, filter, **kwargs)
        return [document for document, _ in found]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents most similar to a text."""
        found = await self.asimilarity_search_with_score(query, k, filter, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the documents most similar to a text, with their scores.

        Additional keyword arguments are passed to the store's ``search``.
        """
        vector = self._embedding.embed_query(query)
        return self._search(vector, k, filter, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the documents most similar to a text, with their scores.

        Additional keyword arguments are passed to the store's ``search``.
        """
        vector = await self._embedding.aembed_query(query)
        return await self._asearch(vector, k, filter, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents most similar to a vector."""
        return [document for document, _ in self._search(embedding, k, filter, **kwargs)]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents most similar to a vector."""
        return [document for document, _ in await self._asearch(embedding, k, filter, **kwargs)]

    def _search(
        self, vector: list[float], k: int, filter: FilterLike, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        condition = json_filter(filter)
        results = self._runner.run(
            lambda store: store.search(vector, self._namespace, k, condition, **kwargs)
        )
        return _with_scores(results)

    async def _asearch(
        self, vector: list[float], k: int, filter: FilterLike, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        condition = json_filter(filter)
        results = await self._runner.run_async(
            lambda store: store.search(vector, self._namespace, k, condition, **kwargs)
        )
        return _with_scores(results)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return the function that maps a score of the metric to LangChain's relevance, 0 to 1.

        Scores range from -1 to 1 with cosine, are any number with inner_product, and are negative
        distances with l2.
        """
        return _RELEVANCE[self._metric]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are similar to a text and different from each other."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **kwargs
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are similar to a text and different from each other."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are similar to a vector and different from each other."""
        return self._runner.run(
            lambda store: self._search_diverse(
                store, embedding, k, fetch_k, lambda_mult, filter, **kwargs
            )
        )

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are similar to a vector and different from each other."""
        return await self._runner.run_async(
            lambda store: self._search_diverse(
                store, embedding, k, fetch_k, lambda_mult, filter, **kwargs
            )
        )

    async def _search_diverse(
        self,
        store: VectorStore,
        vector: list[float],
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: FilterLike,
        **kwargs: Any,
    ) -> list[Document]:
        check_integer_argument(k, field="k", least=1, most=MAX_LIMIT)
        check_integer_argument(fetch_k, field="fetch_k", least=1, most=MAX_LIMIT)
        check_share(lambda_mult, field="lambda_mult")
        results = await store.search_diverse(
            vector,
            self._namespace,
            k,
            json_filter(filter),
            diversity=1 - lambda_mult,
            candidates=max(fetch_k, k),
            **kwargs,
        )
        return [_document(result.chunk) for result in results]

    # -- constructors

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a vector store and write texts into it.

        Keyword arguments are those of the constructor, including ``store`` and ``namespace``.
        """
        vector_store = cls(embedding=embedding, **kwargs)
        vector_store.add_texts(texts, metadatas, ids=ids)
        return vector_store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a vector store and write texts into it.

        Keyword arguments are those of the constructor, including ``store`` and ``namespace``.
        """
        vector_store = cls(embedding=embedding, **kwargs)
        await vector_store.aadd_texts(texts, metadatas, ids=ids)
        return vector_store

    def _chunks(
        self, documents: Sequence[Document], ids: Sequence[str | None] | None
    ) -> list[Chunk]:
        """Convert documents to chunks, before they are embedded: embedding may cost money."""
        given_ids = (
            [document.id for document in documents]
            if ids is None
            else list_of_length(ids, len(documents), field="ids")
        )
        return [
            self._chunk(document, given_id, position)
            for position, (document, given_id) in enumerate(zip(documents, given_ids, strict=True))
        ]

    def _chunk(self, document: Document, given_id: Any, position: int) -> Chunk:
        chunk_id = _id_or_new(given_id)
        given = chunk_id is given_id
        metadata = json_metadata(
            document.metadata,
            f"document {safe_repr(chunk_id)}" if given else f"documents[{position}]",
            chunk_id if given else None,
        )
        return Chunk(
            id=chunk_id,
            document_id=document_id(metadata, self._document_id_key, chunk_id),
            content=document.page_content,
            metadata=metadata,
        )

    def _embedded(
        self, chunks: Sequence[Chunk], vectors: Sequence[list[float]]
    ) -> list[EmbeddedChunk]:
        vectors = list_of_length(vectors, len(chunks), field="embedding")
        return [
            EmbeddedChunk(chunk=chunk, embedding=vector, embedding_model=self._embedding_model)
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]


def _reject_unknown_options(options: dict[str, Any]) -> None:
    reject_unknown({name: options[name] for name in options if name != "batch_size"}, "add")


def _documents(
    texts: Iterable[str],
    metadatas: list[dict[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> list[Document]:
    contents = as_list(texts, "texts must be a list of texts", field="texts")
    fields = zip(
        contents,
        _one_per_text(metadatas, {}, len(contents), field="metadatas"),
        _one_per_text(ids, None, len(contents), field="ids"),
        strict=True,
    )
    try:
        return [
            Document(id=given_id, page_content=content, metadata=metadata)
            for content, metadata, given_id in fields
        ]
    except ValidationError as error:
        name = str(error.errors(include_input=False, include_context=False)[0]["loc"][0])
    # Raised outside the except block: the pydantic error quotes the text, so it must not become
    # the context of this one.
    raise InvalidInputError(
        f"LangChain rejects the {name} of a document: it must be {_FIELD_TYPES[name]}", field=name
    )


_FIELD_TYPES = {
    "page_content": "a string without lone surrogates",
    "metadata": "a dict",
    "id": "a string without lone surrogates, or None",
}
"""Values that a document's fields accept, by field name."""


def _one_per_text(values: Any, default: Any, count: int, *, field: str) -> list[Any]:
    """Return one value per text. Without values, repeat `default`, as LangChain does."""
    if values is None or (isinstance(values, list | tuple) and not values):
        return [default] * count
    return list_of_length(values, count, field=field)


def _id_or_new(given_id: Any) -> Any:
    """Return the id, or a random one if there is none. The store rejects invalid ids."""
    missing = given_id is None or (isinstance(given_id, str) and not given_id)
    return str(uuid.uuid4()) if missing else given_id


def _contents(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _document(chunk: Chunk) -> Document:
    return Document(id=chunk.id, page_content=chunk.content, metadata=chunk.metadata)


def _logistic(score: float) -> float:
    """Return ``1 / (1 + exp(-score))``, without an overflow for large scores."""
    return 0.5 * (1 + math.tanh(score / 2))


_RELEVANCE: dict[Metric, Callable[[float], float]] = {
    "cosine": lambda score: (score + 1) / 2,
    "inner_product": _logistic,
    "l2": lambda score: 1 / (1 - score),
}
"""Function that maps a score to a relevance from 0 to 1, by metric."""


def _with_scores(results: list[RetrievalResult]) -> list[tuple[Document, float]]:
    return [(_document(result.chunk), result.score) for result in results]
