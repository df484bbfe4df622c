"""The HTTP endpoints."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from cenote import PgVectorStore
from cenote.types import Float32Array

from . import documents
from .embedding import MODEL, embed
from .limits import LimitBodies, describe_invalid_request
from .models import Document, Passage, User

MAX_BODY_BYTES = 3 * 2**20
"""Maximum size of a request's body. JSON may take 12 bytes for a character of a text."""

PAGE = Path(__file__).parent / "page.html"

UserName = Annotated[str, Header(alias="X-User", description="name of the user; not authenticated")]


class NewDocument(BaseModel):
    """Body of a request that adds a document."""

    model_config = ConfigDict(str_strip_whitespace=True)

    title: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")
    text: str = Field(min_length=1, max_length=200_000, pattern=r"^[^\x00]*$")


def create_app(engine: AsyncEngine) -> FastAPI:
    """Return the application. It disposes of the engine when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(title="Document search", lifespan=lifespan)
    app.add_middleware(LimitBodies, max_bytes=MAX_BODY_BYTES)
    app.add_exception_handler(RequestValidationError, describe_invalid_request)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    store = PgVectorStore(sessions, model=Passage, embedding_model=MODEL)

    # Each endpoint looks up its user in the transaction it works in. If a request held one
    # connection while it waited for a second, two such requests could wait for each other.
    # The transaction commits before the response is sent: a client that reads "added" can find
    # the document.

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/users")
    async def users() -> list[dict[str, str]]:
        async with sessions() as session:
            rows = await session.scalars(select(User).order_by(User.team, User.name))
            return [{"name": user.name, "team": user.team} for user in rows]

    @app.get("/documents")
    async def list_documents(user_name: UserName) -> list[dict[str, Any]]:
        async with sessions() as session:
            team = (await _user(session, user_name)).team
            query = select(Document.id, Document.title, Document.owner_name)
            query = query.where(Document.team == team).order_by(Document.title, Document.id)
            rows = await session.execute(query)
            return [{"id": row.id, "title": row.title, "owner": row.owner_name} for row in rows]

    @app.post("/documents", status_code=201)
    async def add_document(new: NewDocument, user_name: UserName) -> dict[str, Any]:
        vectors = await _embed_passages(new.text)
        async with sessions.begin() as session:
            owner = await _user(session, user_name)
            document = await documents.add(session, store, owner, new.title, new.text, vectors)
        return {"id": document.id, "passages": len(vectors)}

    @app.post("/documents/{id}/index")
    async def reindex_document(id: uuid.UUID, user_name: UserName) -> dict[str, Any]:
        async with sessions() as session:
            text = (await _document(session, user_name, id)).text
        vectors = await _embed_passages(text)
        async with sessions.begin() as session:
            document = await _document(session, user_name, id)
            return {"passages": await documents.reindex(session, store, document, vectors)}

    @app.delete("/documents/{id}", status_code=204)
    async def delete_document(id: uuid.UUID, user_name: UserName) -> None:
        async with sessions.begin() as session:
            await session.delete(await _document(session, user_name, id))

    @app.get("/search")
    async def search(
        user_name: UserName,
        q: Annotated[str, Query(min_length=1, max_length=1000)],
        mine: bool = False,
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> list[dict[str, Any]]:
        (vector,) = await asyncio.to_thread(embed, [q])
        async with sessions() as session:
            user = await _user(session, user_name)
            owner = user.name if mine else None
            results = await documents.search(
                session, store, user.team, vector, owner=owner, limit=limit
            )
            return [
                {
                    "document": passage.document_key,
                    "title": title,
                    "owner": owner_name,
                    "text": passage.content,
                    "score": score,
                }
                for passage, score, title, owner_name in results
            ]

    return app


async def _embed_passages(text: str) -> Float32Array:
    """Embed the passages of a text in a thread, so that other requests go on meanwhile."""
    passages = await asyncio.to_thread(documents.split, text)
    if len(passages) > documents.MAX_PASSAGES:
        raise HTTPException(
            422, f"the text has {len(passages):,} passages; {documents.MAX_PASSAGES:,} are allowed"
        )
    return await asyncio.to_thread(embed, passages)


async def _user(session: AsyncSession, name: str) -> User:
    user = await session.get(User, name)
    if user is None:
        raise HTTPException(401, "unknown user")
    return user


async def _document(session: AsyncSession, user_name: str, id: uuid.UUID) -> Document:
    document = await documents.find(session, await _user(session, user_name), id)
    if document is None:
        raise HTTPException(404, "document not found")
    return document
