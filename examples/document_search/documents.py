"""What the application does with documents: each function works in the caller's transaction.

None of them commits. The texts are embedded before a transaction begins, so that no connection
waits for the model.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from cenote import Chunk, EmbeddedChunk, PgVectorStore
from cenote.types import Float32Array

from .embedding import MODEL
from .models import Document, Passage, User

LONGEST_PASSAGE = 400
"""Characters that a passage has at most, if its sentences allow."""


def split(text: str) -> list[str]:
    """A text in passages of whole sentences, which do not reach over paragraphs."""
    passages = []
    for paragraph in re.split(r"\n\s*\n", text):
        passage = ""
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            if passage and len(passage) + len(sentence) >= LONGEST_PASSAGE:
                passages.append(passage)
                passage = ""
            passage = f"{passage} {sentence}".strip()
        passages.append(passage)
    return [passage for passage in passages if passage]


async def add(
    session: AsyncSession,
    store: PgVectorStore[Passage],
    owner: User,
    title: str,
    text: str,
    vectors: Float32Array,
) -> Document:
    """Add a document and its passages.

    Args:
        vectors: those of the text's passages, in their order.
    """
    document = Document(owner=owner, team=owner.team, title=title, text=text)
    session.add(document)
    await session.flush()  # it gets its id, which its passages point at
    await store.upsert(_chunks(document, vectors), owner.team, session=session)
    return document


async def index_again(
    session: AsyncSession,
    store: PgVectorStore[Passage],
    document: Document,
    vectors: Float32Array,
) -> int:
    """Write a document's passages anew, and remove those that it no longer has.

    Returns:
        How many it has now.
    """
    chunks = _chunks(document, vectors)
    await store.upsert(chunks, document.team, session=session)
    current = [embedded.chunk.id for embedded in chunks]
    query = select(Passage.id).where(
        Passage.document_key == document.id, Passage.id.not_in(current)
    )
    old = await session.scalars(query)
    await store.delete(list(old), document.team, session=session)
    return len(chunks)


async def search(
    session: AsyncSession,
    store: PgVectorStore[Passage],
    team: str,
    vector: Sequence[float] | Float32Array,
    *,
    owner: str | None = None,
    limit: int = 10,
) -> list[tuple[Passage, float, str, str]]:
    """The nearest passages of a team, each with its score, its document's title and owner.

    Args:
        owner: look into this user's documents only.
    """
    where = None if owner is None else Passage.document.has(Document.owner_name == owner)
    statement = (
        store.search_statement(vector, team, limit, where=where)
        .join(Passage.document)
        .add_columns(Document.title, Document.owner_name)
    )
    rows = await session.execute(statement)
    return [(passage, score, title, owner) for passage, score, title, owner in rows]


def _chunks(document: Document, vectors: Float32Array) -> list[EmbeddedChunk]:
    key = str(document.id)
    return [
        EmbeddedChunk(
            chunk=Chunk(
                id=Chunk.make_id(key, position), document_id=key, content=text, position=position
            ),
            embedding=vector,
            embedding_model=MODEL,
            columns={"document_key": document.id},
        )
        for position, (text, vector) in enumerate(zip(split(document.text), vectors, strict=True))
    ]


async def find(session: AsyncSession, user: User, id: uuid.UUID) -> Document | None:
    """A document of the user's team, locked until the transaction ends."""
    query = select(Document).where(Document.id == id, Document.team == user.team)
    return await session.scalar(query.with_for_update())
