"""Conversion of Haystack documents to chunks, and asynchronous operations on them."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError

from cenote.adapters._arguments import document_id
from cenote.adapters.haystack.filters import NO_CONTENT, RESERVED, is_empty, translate
from cenote.adapters.metadata import json_metadata
from cenote.errors import InvalidInputError
from cenote.filters.language import Filter, field, meta
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.stores import VectorStore
from cenote.types import Metric, Vector
from cenote.validation.arguments import (
    MAX_LIMIT,
    as_list,
    check_integer_argument,
    check_text,
    is_integer,
    safe_repr,
)
from cenote.validation.vectors import check_query_vector

PAGE_SIZE = 500
"""Number of documents read or changed at a time."""

_SOURCE = "source_id"
"""Meta key in which Haystack's splitters store the id of the source document."""

_ZERO = "zero_embedding"
"""Flag under the reserved key: the embedding is zero. Otherwise a zero vector stands for no
embedding."""


_MISSING = "no_embedding"
"""Flag under the reserved key: the document has no embedding. Written if the metric of the store is
not cosine, because its searches find zero vectors."""

# -- conversion --------------------------------------------------------------------------


def embedded_chunk(
    document: Document, dimensions: int, embedding_model: str, metric: Metric
) -> EmbeddedChunk:
    """Convert a document to the chunk that is stored.

    Raises:
        InvalidInputError: The meta is not a dict, contains the reserved key or a value without a
            JSON form, or the blob or the sparse embedding is not of Haystack's class.
    """
    _check_meta(document.meta, document.id)
    item = f"document {safe_repr(document.id)}"
    meta = json_metadata(document.meta, item, document.id)
    extra: dict[str, Any] = {}
    if document.content is None:
        extra[NO_CONTENT] = True
    if document.embedding is not None and _is_zero(document.embedding, dimensions):
        extra[_ZERO] = True
    if document.embedding is None and metric != "cosine":
        extra[_MISSING] = True
    if (blob := document.blob) is not None:
        if not isinstance(blob, ByteStream) or not isinstance(blob.data, bytes | bytearray):
            raise _invalid_part(document, "blob", "a ByteStream of bytes")
        data = base64.b64encode(blob.data).decode()
        extra["blob"] = {"data": data, "meta": blob.meta, "mime_type": blob.mime_type}
    if (sparse := document.sparse_embedding) is not None:
        if not isinstance(sparse, SparseEmbedding):
            raise _invalid_part(document, "sparse_embedding", "a SparseEmbedding")
        extra["sparse_embedding"] = {"indices": sparse.indices, "values": sparse.values}
    extra = json_metadata(extra, item, document.id)
    chunk = Chunk(
        id=document.id,
        document_id=document_id(meta, _SOURCE, document.id),
        content="" if document.content is None else document.content,
        metadata=meta | {RESERVED: extra} if extra else meta,
    )
    vector = [0.0] * dimensions if document.embedding is None else document.embedding
    return EmbeddedChunk(chunk=chunk, embedding=vector, embedding_model=embedding_model)


def document_of(
    chunk: Chunk, embedding: Vector | None = None, score: float | None = None
) -> Document:
    """Convert a chunk back to the document that was written."""
    meta = dict(chunk.metadata)
    extra = meta.pop(RESERVED, {})
    blob, sparse = extra.get("blob"), extra.get("sparse_embedding")
    vector = None if embedding is None else [float(number) for number in embedding]
    if vector is not None and not any(vector) and not extra.get(_ZERO):
        vector = None
    return Document(
        id=chunk.id,
        content=None if extra.get(NO_CONTENT) else chunk.content,
        blob=blob and ByteStream(base64.b64decode(blob["data"]), blob["meta"], blob["mime_type"]),
        meta=meta,
        score=score,
        embedding=vector,
        sparse_embedding=sparse and SparseEmbedding.from_dict(sparse),
    )


def _is_zero(embedding: Any, dimensions: int) -> bool:
    """Return True if an embedding is a zero vector. The store rejects invalid embeddings."""
    try:
        return not check_query_vector(embedding, dimensions, "vector").any()
    except InvalidInputError:
        return False


def _invalid_part(document: Document, name: str, kind: str) -> InvalidInputError:
    return InvalidInputError(
        f"the {name} of document {safe_repr(document.id)} must be {kind}",
        field=name,
        chunk_id=document.id,
    )


def _check_meta(meta: Any, document_id: str | None = None) -> None:
    subject = "meta" if document_id is None else f"the meta of document {safe_repr(document_id)}"
    if not isinstance(meta, dict):
        raise InvalidInputError(
            f"{subject} must be a dict, not {type(meta).__name__}",
            field="meta",
            chunk_id=document_id,
        )
    if RESERVED in meta:
        raise InvalidInputError(
            f"{subject} contains the key {RESERVED!r}, which cenote reserves: rename the key",
            field="meta",
            chunk_id=document_id,
        )


# -- operations ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Documents:
    """Documents of a namespace; see `cenote.adapters.haystack.CenoteDocumentStore`."""

    store: VectorStore
    namespace: str
    embedding_model: str

    async def count(self, filters: dict[str, Any] | None = None) -> int:
        translated = translate(filters)
        if translated.exact:
            return await self.store.count(self.namespace, translated.filter)
        return len([chunk.id async for chunk in self._chunks(filters)])

    async def read(self, filters: dict[str, Any] | None) -> list[Document]:
        found: list[Document] = []
        async for page in self._pages(filters):
            vectors = await self.store.get_embeddings([chunk.id for chunk in page], self.namespace)
            # Skips chunks that were deleted between the two reads.
            found += [
                document_of(chunk, vectors[chunk.id]) for chunk in page if chunk.id in vectors
            ]
        return found

    async def nearest(
        self, query: list[float], filters: dict[str, Any] | None, top_k: int
    ) -> list[Document]:
        translated = translate(filters)
        if not is_integer(top_k, least=0, most=MAX_LIMIT):
            raise ValueError(
                f"top_k must be an integer from 0 to {MAX_LIMIT:,}, not {safe_repr(top_k)}"
            )
        if top_k == 0:
            return []
        limit = top_k if translated.exact else min(2 * top_k, MAX_LIMIT)
        condition = self._with_embedding(translated.filter)
        while True:
            results = await self.store.search(query, self.namespace, limit, condition)
            found = [document_of(result.chunk, score=result.score) for result in results]
            if not translated.exact:
                found = [document for document in found if translated.matches(document)]
            if len(found) >= top_k or len(results) < limit:
                return found[:top_k]
            if limit == MAX_LIMIT:
                return await self._nearest_of_all(query, filters, top_k)
            limit = min(4 * limit, MAX_LIMIT)

    def _with_embedding(self, condition: Filter | None) -> Filter | None:
        """Return a filter for documents that a search by vector may return."""
        if self.store.metric == "cosine":
            return condition
        has_embedding = ~meta(RESERVED, _MISSING).exists()
        return has_embedding if condition is None else has_embedding & condition

    async def _nearest_of_all(
        self, query: list[float], filters: dict[str, Any] | None, top_k: int
    ) -> list[Document]:
        """Search all matching documents, page by page.

        For filters with dates that match few of the nearest `MAX_LIMIT` documents.
        """
        best: list[RetrievalResult] = []
        async for page in self._pages(filters):
            condition = self._with_embedding(field("id").in_([chunk.id for chunk in page]))
            best += await self.store.search(query, self.namespace, top_k, condition)
            best.sort(key=lambda result: (-result.score, result.chunk.id))
            del best[top_k:]
        return [document_of(result.chunk, score=result.score) for result in best]

    async def write(self, documents: list[Document], policy: DuplicatePolicy) -> int:
        if not isinstance(documents, Iterable) or isinstance(documents, str):
            raise ValueError(f"documents must be a list, not {type(documents).__name__}")
        documents = list(documents)
        for document in documents:
            if not isinstance(document, Document):
                raise ValueError(
                    "documents must be a list of Documents, but it contains an object of type "
                    f"{type(document).__name__}"
                )
        new = documents
        if policy is not DuplicatePolicy.OVERWRITE:
            ids = [document.id for document in documents]
            stored = await self._stored(ids)  # the store checks the ids
            repeated = {document_id for document_id, count in Counter(ids).items() if count > 1}
            if policy is not DuplicatePolicy.SKIP and (stored or repeated):
                raise _duplicates(stored | repeated)
            first = {document.id: document for document in reversed(documents)}
            new = [document for document in first.values() if document.id not in stored]
        dimensions = self.store.dimensions
        chunks = [
            embedded_chunk(document, dimensions, self.embedding_model, self.store.metric)
            for document in new
        ]
        await self.store.upsert(chunks, self.namespace)
        return len(new)

    async def delete(self, document_ids: list[str]) -> None:
        await self.store.delete(document_ids, self.namespace)

    async def delete_all(self) -> None:
        await self.store.delete_namespace(self.namespace)

    async def delete_matching(self, filters: dict[str, Any]) -> int:
        translated = translate(_not_empty(filters))
        if translated.exact and translated.filter is not None:
            return await self.store.delete_matching(translated.filter, self.namespace)
        deleted = 0
        async for page in self._pages(filters):
            await self.store.delete([chunk.id for chunk in page], self.namespace)
            deleted += len(page)
        return deleted

    async def update(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        _check_meta(meta)
        meta = json_metadata(meta, "the new meta")
        updated = 0
        async for page in self._pages(_not_empty(filters)):
            changes = {chunk.id: meta for chunk in page}
            await self.store.update_metadata(changes, self.namespace, merge=True)
            updated += len(page)
        return updated

    # -- statistics of the metadata

    async def count_unique(
        self, filters: dict[str, Any] | None, metadata_fields: Sequence[str]
    ) -> dict[str, int]:
        rule = "metadata_fields must be a list of meta keys"
        names = as_list(metadata_fields, rule, field="metadata_fields")
        seen: dict[str, set[tuple[str, str]]] = {_key(name): set() for name in names}
        async for chunk in self._chunks(filters):
            for key, values in seen.items():
                if chunk.metadata.get(key) is not None:
                    values.add(_token(chunk.metadata[key]))
        return {key: len(values) for key, values in seen.items()}

    async def fields_info(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        async for chunk in self._chunks(None):
            for key, value in chunk.metadata.items():
                if value is not None and key != RESERVED:
                    found[key] = {"type": _TYPES.get(type(value), "keyword")}
        return found

    async def min_max(self, metadata_field: str) -> dict[str, Any]:
        key = _key(metadata_field)
        least: Any = None
        greatest: Any = None
        async for chunk in self._chunks(None):
            value = chunk.metadata.get(key)
            if not isinstance(value, int | float | str):
                continue
            if least is None:
                least = greatest = value
            elif isinstance(value, str) is not isinstance(least, str):
                return {"min": None, "max": None}
            else:
                least, greatest = min(value, least), max(value, greatest)
        return {"min": least, "max": greatest}

    async def unique_values(
        self,
        metadata_field: str,
        search_term: str | None,
        from_: int,
        size: int,
        filters: dict[str, Any] | None,
    ) -> tuple[list[Any], int]:
        if search_term is not None:
            check_text(search_term, field="search_term")
        check_integer_argument(from_, field="from_", least=0)
        check_integer_argument(size, field="size", least=0)
        key, term = _key(metadata_field), (search_term or "").lower()
        distinct: dict[tuple[str, str], Any] = {}
        async for chunk in self._chunks(filters):
            value = chunk.metadata.get(key)
            if value is not None and term in str(value).lower():
                distinct.setdefault(_token(value), value)
        tokens = sorted(distinct, key=lambda token: (str(distinct[token]), token))
        return [distinct[token] for token in tokens[from_ : from_ + size]], len(distinct)

    # -- reading

    async def _chunks(self, filters: dict[str, Any] | None) -> AsyncIterator[Chunk]:
        """Iterate over the chunks of the matching documents, in ascending order of id."""
        translated = translate(filters)
        async for chunk in self.store.get_all_chunks(self.namespace, translated.filter):
            if translated.exact or translated.matches(document_of(chunk)):
                yield chunk

    async def _pages(self, filters: dict[str, Any] | None) -> AsyncIterator[list[Chunk]]:
        page: list[Chunk] = []
        async for chunk in self._chunks(filters):
            page.append(chunk)
            if len(page) == PAGE_SIZE:
                yield page
                page = []
        if page:
            yield page

    async def _stored(self, ids: list[str]) -> set[str]:
        """Return the ids that are stored."""
        found: set[str] = set()
        for start in range(0, len(ids), PAGE_SIZE):
            page = await self.store.get(ids[start : start + PAGE_SIZE], self.namespace)
            found.update(chunk.id for chunk in page)
        return found


_TYPES = {bool: "boolean", int: "int", float: "float"}
"""Haystack's names for the types of meta values; all others are ``keyword``."""


def _key(metadata_field: str) -> str:
    check_text(metadata_field, field="metadata_field")
    return metadata_field.removeprefix("meta.")


def _token(value: Any) -> tuple[str, str]:
    """Return a hashable key that differs for distinct values, such as 1, 1.0 and True."""
    return type(value).__name__, json.dumps(value, sort_keys=True)


def _not_empty(filters: dict[str, Any]) -> dict[str, Any]:
    if is_empty(filters):
        raise FilterError(
            "the filters are empty: pass filters, or call delete_all_documents() to delete all "
            "documents"
        )
    return filters


def _duplicates(ids: set[str]) -> DuplicateDocumentError:
    some = ", ".join(map(repr, sorted(ids)[:5]))
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return DuplicateDocumentError(
        f"ids that are already stored or appear twice: {some}{more}; nothing was written. Pass "
        "DuplicatePolicy.SKIP to keep the stored documents, or OVERWRITE to replace them"
    )
