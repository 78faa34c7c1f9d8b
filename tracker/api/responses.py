"""How answers are written, and which error becomes which: the one table."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from tracker.api.requests import BodyTooLarge
from tracker.api.routing import MethodNotAllowed, NoSuchPath
from tracker.errors import (
    Conflict,
    IdempotencyMismatch,
    Invalid,
    PositionLost,
    SchemaMismatch,
    StoreFault,
    StoreUnavailable,
)
from tracker.models import Session

__all__ = ["ERRORS", "NotFound", "answer", "stream_sessions"]

logger = logging.getLogger("tracker.api")

JSON = "application/json"
RETRY_AFTER_SECONDS = "1"


class NotFound(Exception):
    """There is no such session."""


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(to_json(body), status, headers, media_type=JSON)


async def stream_sessions(chunks: AsyncIterator[list[Session]]) -> Response:
    """All sessions as one JSON object, written chunk by chunk: memory stays flat however many there are.

    The first chunk is read before the answer begins, so a store that is away is an honest 503. If it goes away later,
    the connection is cut: a list that looks whole is whole.
    """
    first: list[Session] = await anext(chunks, [])
    second = await anext(chunks, None)
    if second is None:
        return answer({"sessions": first})

    async def written() -> AsyncIterator[bytes]:
        yield b'{"sessions":' + to_json(first)[:-1]
        yield b"," + to_json(second)[1:-1]
        async for chunk in chunks:
            yield b"," + to_json(chunk)[1:-1]
        yield b"]}"

    return StreamingResponse(written(), media_type=JSON)


def _invalid(request: Request, error: Invalid) -> Response:
    return answer({"error": str(error), "details": error.details}, 400)


def _no_such_path(request: Request, error: NoSuchPath) -> Response:
    return answer({"error": "Not found"}, 404)


def _not_found(request: Request, error: NotFound) -> Response:
    return answer({"error": "No such session"}, 404)


def _method_not_allowed(request: Request, error: MethodNotAllowed) -> Response:
    return answer({"error": f"Method not allowed: use {error.allow}"}, 405, {"Allow": error.allow})


def _conflict(request: Request, error: Conflict) -> Response:
    return answer({"error": str(error), "session": error.session}, 409)


def _position_lost(request: Request, error: PositionLost) -> Response:
    return answer({"error": str(error)}, 410)


def _body_too_large(request: Request, error: BodyTooLarge) -> Response:
    return answer({"error": str(error)}, 413, {"Connection": "close"})


def _idempotency_mismatch(request: Request, error: IdempotencyMismatch) -> Response:
    return answer({"error": str(error)}, 422)


def _store_fault(request: Request, error: StoreFault) -> Response:
    logger.error("%s %s: %s", request.method, request.scope.get("route", "?"), error)
    return answer({"error": "The store holds something that the tracker did not write: see the log"}, 500)


def _store_unavailable(request: Request, error: StoreUnavailable | SchemaMismatch) -> Response:
    logger.warning("%s %s: %s", request.method, request.scope.get("route", "?"), error)
    text = str(error) if isinstance(error, SchemaMismatch) else "The store cannot answer now, try again"
    return answer({"error": text}, 503, {"Retry-After": RETRY_AFTER_SECONDS})


def _client_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


def _anything_else(request: Request, error: Exception) -> Response:
    return answer({"error": "Internal server error"}, 500)


ERRORS: dict[type[Exception], Callable[[Request, Any], Response]] = {
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
    ClientDisconnect: _client_disconnect,
    Exception: _anything_else,
}
