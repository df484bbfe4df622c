"""Haystack's documents in a store: what becomes of them, and what is done with them."""

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

from cenote.adapters.checks import check_whole, document_id, is_whole
from cenote.adapters.haystack_filters import NO_CONTENT, RESERVED, is_empty, wanted
from cenote.errors import InvalidInputError
from cenote.models import Chunk, EmbeddedChunk
from cenote.stores import VectorStore
from cenote.types import Vector
from cenote.validation import check_query_vector, check_text, listed, shown

PAGE_SIZE = 500
"""Documents that are read or changed at a time."""

_SOURCE = "source_id"
"""Where Haystack's splitters put the id of the document that they cut."""

_ZERO = "zero_embedding"
"""Says, within the reserved key, that the embedding is zero; alone, a zero vector means none."""


# -- documents and chunks --------------------------------------------------------------------------


def embedded_chunk(document: Document, dimensions: int, embedding_model: str) -> EmbeddedChunk:
    """A document as it is stored.

    Raises:
        InvalidInputError: its metadata are no dict, or have the reserved key, or another part of it
            is none of Haystack's.
    """
    _check_meta(document.meta, document.id)
    extra: dict[str, Any] = {}
    if document.content is None:
        extra[NO_CONTENT] = True
    if document.embedding is not None and _is_zero(document.embedding, dimensions):
        extra[_ZERO] = True
    if (blob := document.blob) is not None:
        if not isinstance(blob, ByteStream) or not isinstance(blob.data, bytes | bytearray):
            raise _bad_part(document, "blob", "a ByteStream of bytes")
        data = base64.b64encode(blob.data).decode()
        extra["blob"] = {"data": data, "meta": blob.meta, "mime_type": blob.mime_type}
    if (sparse := document.sparse_embedding) is not None:
        if not isinstance(sparse, SparseEmbedding):
            raise _bad_part(document, "sparse_embedding", "a SparseEmbedding")
        extra["sparse_embedding"] = {"indices": sparse.indices, "values": sparse.values}
    chunk = Chunk(
        id=document.id,
        document_id=document_id(document.meta, _SOURCE, document.id),
        content="" if document.content is None else document.content,
        metadata=document.meta | {RESERVED: extra} if extra else document.meta,
    )
    vector = [0.0] * dimensions if document.embedding is None else document.embedding
    return EmbeddedChunk(chunk=chunk, embedding=vector, embedding_model=embedding_model)


def document_of(
    chunk: Chunk, embedding: Vector | None = None, score: float | None = None
) -> Document:
    """A document as it was written."""
    meta = dict(chunk.metadata)
    extra = meta.pop(RESERVED, {})
    blob, sparse = extra.get("blob"), extra.get("sparse_embedding")
    vector = None if embedding is None else [float(one) for one in embedding]
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
    """Whether an embedding is zero; what is no vector is left for the store to refuse."""
    try:
        return not check_query_vector(embedding, dimensions, "vector").any()
    except InvalidInputError:
        return False


def _bad_part(document: Document, name: str, kind: str) -> InvalidInputError:
    return InvalidInputError(
        f"the {name} of document {shown(document.id)} must be {kind}",
        field=name,
        chunk_id=document.id,
    )


def _check_meta(meta: Any, document_id: str | None = None) -> None:
    of = "meta" if document_id is None else f"the meta of document {shown(document_id)}"
    if not isinstance(meta, dict):
        raise InvalidInputError(
            f"{of} must be a dict, not {type(meta).__name__}", field="meta", chunk_id=document_id
        )
    if RESERVED in meta:
        raise InvalidInputError(
            f"{of} has the key {RESERVED!r}, which cenote keeps for itself; rename it",
            field="meta",
            chunk_id=document_id,
        )


# -- a namespace of them ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Documents:
    """The documents of a namespace; see `cenote.adapters.haystack.CenoteDocumentStore`."""

    store: VectorStore
    namespace: str
    embedding_model: str

    async def count(self, filters: dict[str, Any] | None = None) -> int:
        asked = wanted(filters)
        if asked.exact:
            return await self.store.count(self.namespace, asked.filter)
        return len([chunk.id async for chunk in self._chunks(filters)])

    async def read(self, filters: dict[str, Any] | None) -> list[Document]:
        found: list[Document] = []
        async for page in self._pages(filters):
            vectors = await self.store.get_embeddings([one.id for one in page], self.namespace)
            # What has gone between the two reads is gone.
            found += [document_of(one, vectors[one.id]) for one in page if one.id in vectors]
        return found

    async def nearest(
        self, query: list[float], filters: dict[str, Any] | None, top_k: int
    ) -> list[Document]:
        asked = wanted(filters)
        if not is_whole(top_k, least=0):
            raise ValueError(f"top_k must be an integer of 0 or more, not {shown(top_k)}")
        if top_k == 0:
            return []
        limit = top_k if asked.exact else 2 * top_k
        while True:
            results = await self.store.search(query, self.namespace, limit, asked.filter)
            found = [document_of(one.chunk, score=one.score) for one in results]
            if not asked.exact:
                found = [one for one in found if asked.holds(one)]
            if len(found) >= top_k or len(results) < limit:
                return found[:top_k]
            limit *= 4

    async def write(self, documents: list[Document], policy: DuplicatePolicy) -> int:
        if not isinstance(documents, Iterable) or isinstance(documents, str):
            raise ValueError(f"documents must be a list, not {type(documents).__name__}")
        documents = list(documents)
        for one in documents:
            if not isinstance(one, Document):
                raise ValueError(f"documents must be of Documents, not of {type(one).__name__}")
        new = documents
        if policy is not DuplicatePolicy.OVERWRITE:
            known = await self._stored([one.id for one in documents])  # which checks them
            counts = Counter(one.id for one in documents)
            twice = {one for one, count in counts.items() if count > 1}
            if policy is not DuplicatePolicy.SKIP and (known or twice):
                raise _duplicates(known | twice)
            first = {one.id: one for one in reversed(documents)}
            new = [one for one in first.values() if one.id not in known]
        dimensions = self.store.dimensions
        chunks = [embedded_chunk(one, dimensions, self.embedding_model) for one in new]
        await self.store.upsert(chunks, self.namespace)
        return len(new)

    async def delete(self, document_ids: list[str]) -> None:
        await self.store.delete(document_ids, self.namespace)

    async def delete_all(self) -> None:
        await self.store.delete_namespace(self.namespace)

    async def delete_matching(self, filters: dict[str, Any]) -> int:
        asked = wanted(_narrowing(filters))
        if asked.exact and asked.filter is not None:
            return await self.store.delete_matching(asked.filter, self.namespace)
        deleted = 0
        async for page in self._pages(filters):
            await self.store.delete([one.id for one in page], self.namespace)
            deleted += len(page)
        return deleted

    async def update(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        _check_meta(meta)
        updated = 0
        async for page in self._pages(_narrowing(filters)):
            changes = {one.id: meta for one in page}
            await self.store.update_metadata(changes, self.namespace, merge=True)
            updated += len(page)
        return updated

    # -- about the metadata

    async def count_unique(
        self, filters: dict[str, Any] | None, metadata_fields: Sequence[str]
    ) -> dict[str, int]:
        rule = "metadata_fields must be a list of keys"
        names = listed(metadata_fields, rule, field="metadata_fields")
        seen: dict[str, set[tuple[str, str]]] = {_key(one): set() for one in names}
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
        key, ends = _key(metadata_field), list[Any]()
        async for chunk in self._chunks(None):
            value = chunk.metadata.get(key)
            if not isinstance(value, int | float | str):
                continue
            if ends and isinstance(value, str) is not isinstance(ends[0], str):
                return {"min": None, "max": None}
            ends = [min([value, *ends[:1]]), max([value, *ends[1:]])]
        return {"min": ends[0], "max": ends[1]} if ends else {"min": None, "max": None}

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
        check_whole(from_, least=0, field="from_")
        check_whole(size, least=0, field="size")
        key, part = _key(metadata_field), (search_term or "").lower()
        found: dict[tuple[str, str], Any] = {}
        async for chunk in self._chunks(filters):
            value = chunk.metadata.get(key)
            if value is not None and part in str(value).lower():
                found.setdefault(_token(value), value)
        ordered = sorted(found, key=lambda token: (str(found[token]), token))
        return [found[token] for token in ordered[from_ : from_ + size]], len(found)

    # -- pieces

    async def _chunks(self, filters: dict[str, Any] | None) -> AsyncIterator[Chunk]:
        """The chunks of matching documents, by id."""
        asked = wanted(filters)
        async for chunk in self.store.get_all_chunks(self.namespace, asked.filter):
            if asked.exact or asked.holds(document_of(chunk)):
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
        """Which ids are stored."""
        found: set[str] = set()
        for start in range(0, len(ids), PAGE_SIZE):
            page = await self.store.get(ids[start : start + PAGE_SIZE], self.namespace)
            found.update(chunk.id for chunk in page)
        return found


_TYPES = {bool: "boolean", int: "int", float: "float"}


def _key(metadata_field: str) -> str:
    check_text(metadata_field, field="metadata_field")
    return metadata_field.removeprefix("meta.")


def _token(value: Any) -> tuple[str, str]:
    """Tells values apart, those of different types too."""
    return type(value).__name__, json.dumps(value, sort_keys=True)


def _narrowing(filters: dict[str, Any]) -> dict[str, Any]:
    if is_empty(filters):
        raise FilterError("the filters are empty; for all documents: delete_all_documents()")
    return filters


def _duplicates(ids: set[str]) -> DuplicateDocumentError:
    some = ", ".join(map(repr, sorted(ids)[:5]))
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return DuplicateDocumentError(
        f"already stored, or twice among the documents: {some}{more}; nothing was written. To "
        "leave or to replace what is stored: DuplicatePolicy.SKIP or OVERWRITE"
    )
