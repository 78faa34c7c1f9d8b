"""How answers are written, and which error becomes which: the one table."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tracker.api.metrics import NO_ROUTE
from tracker.api.requests import BodyTooLarge
from tracker.api.routing import MethodNotAllowed, NoSuchPath
from tracker.api.watch import REQUEST_ID
from tracker.errors import (
    Conflict,
    IdempotencyMismatch,
    Invalid,
    PositionLost,
    SchemaMismatch,
    StoreFault,
    StoreUnavailable,
    TooManyReaders,
)

__all__ = ["ERRORS", "Answer", "Errors", "NotFound", "answer", "page_of_sessions", "stream_sessions"]

logger = logging.getLogger("tracker.api")

JSON = b"application/json"
RETRY_AFTER_SECONDS = "1"


class NotFound(Exception):
    """There is no such session."""


class Answer:
    """A JSON answer, and no more than that: what Starlette's Response does besides costs as much as a heartbeat."""

    __slots__ = ("body", "headers", "status_code")

    def __init__(self, body: bytes, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.body = body
        self.status_code = status_code
        self.headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(self.body))]
        if headers:
            self.headers += ((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def answer(body: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return Answer(to_json(body), status_code, headers)


def page_of_sessions(sessions: list[bytes], cursor: str | None) -> Answer:
    """A page of sessions, which are JSON already."""
    return Answer(b'{"sessions":[%b],"nextCursor":%b}' % (b",".join(sessions), to_json(cursor)))


async def stream_sessions(chunks: AsyncGenerator[list[bytes], None]) -> Answer | StreamingResponse:
    """All sessions as one JSON object, written chunk by chunk: memory stays flat however many there are.

    The first chunk is read before the answer begins, so a store that is away is an honest 503. If it goes away later,
    the connection is cut: a list that looks whole is whole.
    """
    first: list[bytes] = await anext(chunks, [])
    second = await anext(chunks, None)
    if second is None:
        return Answer(b'{"sessions":[%b]}' % b",".join(first))

    async def written() -> AsyncIterator[bytes]:
        async with aclosing(chunks):
            yield b'{"sessions":[' + b",".join(first)
            yield b"," + b",".join(second)
            async for chunk in chunks:
                yield b"," + b",".join(chunk)
            yield b"]}"

    return StreamingResponse(written(), media_type=JSON.decode())


def _invalid(request: Request, error: Invalid) -> Answer:
    return answer({"error": str(error), "details": error.details}, 400)


def _no_such_path(request: Request, error: NoSuchPath) -> Answer:
    return answer({"error": "Not found"}, 404)


def _not_found(request: Request, error: NotFound) -> Answer:
    return answer({"error": "No such session"}, 404)


def _method_not_allowed(request: Request, error: MethodNotAllowed) -> Answer:
    return answer({"error": f"Method not allowed: use {error.allow}"}, 405, {"Allow": error.allow})


def _conflict(request: Request, error: Conflict) -> Answer:
    return answer({"error": str(error), "session": error.session}, 409)


def _position_lost(request: Request, error: PositionLost) -> Answer:
    return answer({"error": str(error)}, 410)


def _body_too_large(request: Request, error: BodyTooLarge) -> Answer:
    return answer({"error": str(error)}, 413, {"Connection": "close"})


def _idempotency_mismatch(request: Request, error: IdempotencyMismatch) -> Answer:
    return answer({"error": str(error)}, 422)


def _store_fault(request: Request, error: StoreFault) -> Answer:
    _tell(logging.ERROR, request, error)
    return answer({"error": "The store holds something that the tracker did not write: see the log"}, 500)


def _store_unavailable(request: Request, error: StoreUnavailable | SchemaMismatch) -> Answer:
    _tell(logging.WARNING, request, error)
    text = str(error) if isinstance(error, SchemaMismatch) else "The store cannot answer now, try again"
    return answer({"error": text}, 503, {"Retry-After": RETRY_AFTER_SECONDS})


def _too_many_readers(request: Request, error: TooManyReaders) -> Answer:
    return answer({"error": str(error)}, 503, {"Retry-After": RETRY_AFTER_SECONDS})


def _client_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


def _anything_else(request: Request, error: Exception) -> Answer:
    _tell(logging.ERROR, request, f"{type(error).__name__}, which nobody foresaw: the server logs it next")
    return answer({"error": "Internal server error"}, 500)


def _tell(level: int, request: Request, what: object) -> None:
    method, route = request.method, request.scope.get("route", NO_ROUTE)
    request_id = request.scope.get(REQUEST_ID, "")
    fields = {"method": method, "route": route, "requestId": request_id}
    logger.log(level, "%s %s: %s (request %s)", method, route, what, request_id, extra={"fields": fields})


ERRORS: dict[type[Exception], Callable[[Request, Any], ASGIApp]] = {
    Invalid: _invalid,
    NoSuchPath: _no_such_path,
    NotFound: _not_found,
    MethodNotAllowed: _method_not_allowed,
    Conflict: _conflict,
    PositionLost: _position_lost,
    BodyTooLarge: _body_too_large,
    IdempotencyMismatch: _idempotency_mismatch,
    StoreFault: _store_fault,
    StoreUnavailable: _store_unavailable,
    SchemaMismatch: _store_unavailable,
    TooManyReaders: _too_many_readers,
    ClientDisconnect: _client_disconnect,
    Exception: _anything_else,
}


class Errors:
    """ASGI middleware: turns what is raised below into answers, by the table.

    What is not in it is a bug: it answers 500 and goes on to the server, which logs it. So does all that is raised
    after an answer has begun: the server then cuts the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal begun
            begun = True
            return send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if begun:
                raise
            kind = next(kind for kind in type(error).__mro__ if kind in ERRORS)
            await ERRORS[kind](Request(scope), error)(scope, receive, send)
            if kind is Exception:
                raise
