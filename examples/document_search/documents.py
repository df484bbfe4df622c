"""Operations on documents and their passages.

Each function works in the caller's transaction and does not commit. The caller embeds the texts
before it begins the transaction, so no connection waits for the embedding model.
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

MAX_PASSAGE_LENGTH = 400
"""Maximum number of characters in a passage, unless a single sentence is longer."""


MAX_PASSAGES = 2_000
"""Maximum number of passages in a document: a transaction writes them in about a second."""


def split(text: str) -> list[str]:
    """Split a text into passages of whole sentences; a passage never spans two paragraphs."""
    passages = []
    for paragraph in re.split(r"\n\s*\n", text):
        passage = ""
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            if passage and len(passage) + len(sentence) >= MAX_PASSAGE_LENGTH:
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
        session: Session to write in.
        store: Store of the passages.
        owner: User who owns the document.
        title: Title of the document.
        text: Text of the document.
        vectors: Embeddings of the text's passages, in the order of `split`.
    """
    document = Document(owner=owner, team=owner.team, title=title, text=text)
    session.add(document)
    await session.flush()  # assigns the id that the passages refer to
    await store.upsert(_chunks(document, vectors), owner.team, session=session)
    return document


async def reindex(
    session: AsyncSession,
    store: PgVectorStore[Passage],
    document: Document,
    vectors: Float32Array,
) -> int:
    """Write all passages of a document again and delete the passages that it no longer has.

    Returns:
        Number of passages the document has now.
    """
    chunks = _chunks(document, vectors)
    await store.upsert(chunks, document.team, session=session)
    current_ids = [embedded.chunk.id for embedded in chunks]
    query = select(Passage.id).where(
        Passage.document_key == document.id, Passage.id.not_in(current_ids)
    )
    obsolete_ids = await session.scalars(query)
    await store.delete(list(obsolete_ids), document.team, session=session)
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
    """Return a team's nearest passages, each with its score and its document's title and owner.

    Args:
        session: Session to read in.
        store: Store of the passages.
        team: Team whose passages are searched.
        vector: Embedding of the query.
        owner: User whose documents are searched. None searches the documents of the whole team.
        limit: Maximum number of passages.
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
    """Return a document of the user's team, and lock its row until the transaction ends.

    Returns None if the team has no document with this id.
    """
    query = select(Document).where(Document.id == id, Document.team == user.team)
    return await session.scalar(query.with_for_update())
