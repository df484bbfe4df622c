"""LangChain's `VectorStore` over a store of cenote's. Needs the extra ``cenote[langchain]``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore as LangChainVectorStore
from pydantic import ValidationError

from cenote.adapters.checks import as_many, check_share, check_whole, document_id, objects
from cenote.adapters.loops import LoopThread
from cenote.errors import ConfigurationError, InvalidInputError
from cenote.filters import FilterLike
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.stores import VectorStore
from cenote.validation import listed

__all__ = ["CenoteVectorStore"]

_CANDIDATES = 20
"""What LangChain takes for ``fetch_k`` where nobody says."""


class CenoteVectorStore(LangChainVectorStore):
    """One namespace of a store, as LangChain's vector store.

    Asynchronous methods run in the caller's event loop, on the store's own engine; synchronous ones
    in a thread with connections of its own, which `close` closes. A document's id is the chunk's
    id, and one is made where there is none. Scores are cosine similarities, -1 to 1. Filters are
    cenote's: dicts or expressions.

    Args:
        store: the store.
        embedding: makes the embeddings.
        namespace: whose documents these are.
        embedding_model: the name of what `embedding` is, which is stored beside each chunk.
        document_id_key: the key of the metadata that names the document which a chunk was cut from;
            it is the chunk's own id where the metadata lack it.

    Raises:
        ConfigurationError: `document_id_key` is no text.
    """

    def __init__(
        self,
        store: VectorStore,
        embedding: Embeddings,
        namespace: str,
        *,
        embedding_model: str = "langchain",
        document_id_key: str = "document_id",
    ) -> None:
        if not isinstance(document_id_key, str):
            raise ConfigurationError(
                f"document_id_key must be text, not {type(document_id_key).__name__}",
                setting="document_id_key",
            )
        self._store = store
        self._embedding = embedding
        self._namespace = namespace
        self._embedding_model = embedding_model
        self._document_id_key = document_id_key
        self._thread = LoopThread(store)

    @property
    def embeddings(self) -> Embeddings:
        """What makes the embeddings."""
        return self._embedding

    def close(self) -> None:
        """Close the connections that synchronous calls opened; the store stays as it is."""
        self._thread.close()

    # -- writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts; returns their ids."""
        return self.add_documents(_documents(texts, metadatas, ids))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts; returns their ids."""
        return await self.aadd_documents(_documents(texts, metadatas, ids))

    def add_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Write documents, replacing those whose id is stored; returns their ids."""
        documents = objects(documents, Document, field="documents")
        vectors = self._embedding.embed_documents([one.page_content for one in documents])
        chunks = self._chunks(documents, ids, vectors)
        self._thread.run(self._thread.store.upsert(chunks, self._namespace))
        return [one.chunk.id for one in chunks]

    async def aadd_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Write documents, replacing those whose id is stored; returns their ids."""
        documents = objects(documents, Document, field="documents")
        vectors = await self._embedding.aembed_documents([one.page_content for one in documents])
        chunks = self._chunks(documents, ids, vectors)
        await self._store.upsert(chunks, self._namespace)
        return [one.chunk.id for one in chunks]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents by id; see :meth:`adelete`."""
        return self._thread.run(self._deleted(self._thread.store, ids, **kwargs))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents by id.

        Args:
            ids: which; those that are not there are passed over.
            **kwargs: ``filter``, of what to remove instead.
        """
        return await self._deleted(self._store, ids, **kwargs)

    async def _deleted(
        self, store: VectorStore, ids: list[str] | None, *, filter: Any = None, **kwargs: Any
    ) -> bool:
        if ids is None:
            await store.delete_matching(filter, self._namespace)
        else:
            await store.delete(ids, self._namespace)
        return True

    # -- reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Read documents by id; those that are not there are left out."""
        chunks = self._thread.run(self._thread.store.get(ids, self._namespace))
        return [_document(chunk) for chunk in chunks]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Read documents by id; those that are not there are left out."""
        return [_document(chunk) for chunk in await self._store.get(ids, self._namespace)]

    # -- searching

    def similarity_search(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a text."""
        return [one for one, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a text."""
        found = await self.asimilarity_search_with_score(query, k, filter, **kwargs)
        return [one for one, _ in found]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The documents nearest to a text, with their scores; the keywords are the store's."""
        vector = self._embedding.embed_query(query)
        return self._found(vector, k, filter, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The documents nearest to a text, with their scores; the keywords are the store's."""
        vector = await self._embedding.aembed_query(query)
        return await self._afound(vector, k, filter, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a vector."""
        return [one for one, _ in self._found(embedding, k, filter, **kwargs)]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterLike = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a vector."""
        return [one for one, _ in await self._afound(embedding, k, filter, **kwargs)]

    def _found(
        self, vector: list[float], k: int, filter: FilterLike, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        store = self._thread.store
        found = self._thread.run(store.search(vector, self._namespace, k, filter, **kwargs))
        return _scored(found)

    async def _afound(
        self, vector: list[float], k: int, filter: FilterLike, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return _scored(await self._store.search(vector, self._namespace, k, filter, **kwargs))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """From -1 to 1 to LangChain's relevance, 0 to 1."""
        return lambda score: (score + 1) / 2

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = _CANDIDATES,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are near to a text, and unlike one another."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **kwargs
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = _CANDIDATES,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are near to a text, and unlike one another."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = _CANDIDATES,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are near to a vector, and unlike one another."""
        store = self._thread.store
        found = self._diverse(store, embedding, k, fetch_k, lambda_mult, filter, **kwargs)
        return self._thread.run(found)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = _CANDIDATES,
        lambda_mult: float = 0.5,
        filter: FilterLike = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are near to a vector, and unlike one another."""
        return await self._diverse(
            self._store, embedding, k, fetch_k, lambda_mult, filter, **kwargs
        )

    async def _diverse(
        self,
        store: VectorStore,
        vector: list[float],
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: FilterLike,
        **kwargs: Any,
    ) -> list[Document]:
        check_whole(k, least=1, field="k")
        check_whole(fetch_k, least=1, field="fetch_k")
        check_share(lambda_mult, field="lambda_mult")
        found = await store.search_diverse(
            vector,
            self._namespace,
            k,
            filter,
            diversity=1 - lambda_mult,
            candidates=max(fetch_k, k),
            **kwargs,
        )
        return [_document(result.chunk) for result in found]

    # -- made of texts

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
        """Write texts into ``store=`` and its ``namespace=``."""
        made = cls(embedding=embedding, **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made

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
        """Write texts into ``store=`` and its ``namespace=``."""
        made = cls(embedding=embedding, **kwargs)
        await made.aadd_texts(texts, metadatas, ids=ids)
        return made

    def _chunks(
        self,
        documents: Sequence[Document],
        ids: Sequence[str | None] | None,
        vectors: Sequence[list[float]],
    ) -> list[EmbeddedChunk]:
        count = len(documents)
        chosen = [one.id for one in documents] if ids is None else as_many(ids, count, field="ids")
        vectors = as_many(vectors, count, field="embedding")
        return [
            self._chunk(document, _id(chosen_id), vector)
            for document, chosen_id, vector in zip(documents, chosen, vectors, strict=True)
        ]

    def _chunk(self, document: Document, chunk_id: str, vector: list[float]) -> EmbeddedChunk:
        chunk = Chunk(
            id=chunk_id,
            document_id=document_id(document.metadata, self._document_id_key, chunk_id),
            content=document.page_content,
            metadata=document.metadata,
        )
        return EmbeddedChunk(chunk=chunk, embedding=vector, embedding_model=self._embedding_model)


def _documents(
    texts: Iterable[str],
    metadatas: list[dict[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> list[Document]:
    contents = listed(texts, "texts must be a list of texts", field="texts")
    several = zip(
        contents,
        _each(metadatas, {}, len(contents), field="metadatas"),
        _each(ids, None, len(contents), field="ids"),
        strict=True,
    )
    try:
        return [
            Document(id=one_id, page_content=content, metadata=metadata)
            for content, metadata, one_id in several
        ]
    except ValidationError as error:
        culprit = str(error.errors(include_input=False, include_context=False)[0]["loc"][0])
    # Here, where the other error, which quotes the text, is no context of this one.
    raise InvalidInputError(
        f"LangChain takes no such {culprit}: it must be {_MUST_BE[culprit]}", field=culprit
    )


_MUST_BE = {"page_content": "text", "metadata": "a dict", "id": "text or None"}
"""What a document's fields are, without lone surrogates."""


def _each(values: Any, otherwise: Any, count: int, *, field: str) -> list[Any]:
    """One for each text; the same for all where nothing is given, as LangChain has it."""
    if values is None or (isinstance(values, list | tuple) and not values):
        return [otherwise] * count
    return as_many(values, count, field=field)


def _id(chosen: Any) -> Any:
    """An id, made where there is none; what cannot be one is left for the store to refuse."""
    none = chosen is None or (isinstance(chosen, str) and not chosen)
    return str(uuid.uuid4()) if none else chosen


def _document(chunk: Chunk) -> Document:
    return Document(id=chunk.id, page_content=chunk.content, metadata=chunk.metadata)


def _scored(found: list[RetrievalResult]) -> list[tuple[Document, float]]:
    return [(_document(result.chunk), result.score) for result in found]
