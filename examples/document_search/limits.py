"""Answers to requests that are too large or invalid."""

from __future__ import annotations

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LimitBodies:
    """Middleware that answers 413 to requests whose body is too large.

    Args:
        app: Application.
        max_bytes: Maximum size of a body in bytes.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Request(scope).headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            await _too_large(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:  # a body without content-length
                raise HTTPException(413, "the request is too large")
            return message

        await self._app(scope, receive_limited, send)


_too_large = JSONResponse({"detail": "the request is too large"}, 413)


async def describe_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 with the errors, without the invalid values.

    FastAPI's own handler quotes the values. That fails for those that JSON cannot express, such as
    NaN and lone surrogates, and it would send a large body back.
    """
    assert isinstance(error, RequestValidationError)
    fields = ("type", "loc", "msg")
    details = [{field: item[field] for field in fields} for item in error.errors()]
    return JSONResponse({"detail": details}, 422)
