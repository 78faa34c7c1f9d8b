"""What a handler takes from a request: the body, the query string, a header; checked, or refused as Invalid.

And whether there is still somebody who waits for the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict, TypeVar, cast
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from tracker.api.drain import Drain
from tracker.api.metrics import Metrics
from tracker.errors import Invalid
from tracker.models import FieldError, Idempotency, Resumption
from tracker.settings import Settings
from tracker.store.store import Store

__all__ = [
    "BodyTooLarge",
    "State",
    "drain_of",
    "idempotency_key",
    "last_event_id",
    "metrics_of",
    "on_leaving",
    "read_body",
    "read_query",
    "store_of",
    "while_there",
]

DETAILS = 20
"""Breaches named in one answer."""
SHOWN_LOCATION = 128
"""Characters of a field's name in an answer: keys of metadata are the client's."""
DRAINED_BYTES = 1024 * 1024
"""How much more of a body that is too large is read away, so that the client gets to see the answer."""
QUERY_FIELDS = 100
IDEMPOTENCY_KEY = "Idempotency-Key"
LAST_EVENT_ID = "Last-Event-ID"
NOTHING = b"{}"

Model = TypeVar("Model", bound=BaseModel)


class State(TypedDict):
    """What lives as long as the server, made by the lifespan."""

    store: Store
    settings: Settings
    metrics: Metrics
    drain: Drain


class BodyTooLarge(Exception):
    """The body has more bytes than the setting allows."""


def store_of(request: Request) -> Store:
    return cast("State", request.scope["state"])["store"]


def metrics_of(request: Request) -> Metrics:
    return cast("State", request.scope["state"])["metrics"]


def drain_of(request: Request) -> Drain:
    return cast("State", request.scope["state"])["drain"]


async def read_body(request: Request, model: type[Model]) -> Model:
    """The body as JSON, whatever Content-Type says; an empty one as ``{}``. Raises Invalid, BodyTooLarge."""
    body = await _read(request, cast("State", request.scope["state"])["settings"].max_body_bytes)
    try:
        if b"NaN" in body or b"Infinity" in body:
            from_json(body, allow_inf_nan=False)  # no JSON, but where a field is ignored the model would let it pass
        return model.model_validate_json(body or NOTHING)
    except ValidationError as error:
        raise _invalid(error) from None
    except ValueError as error:
        raise Invalid([{"field": "body", "message": f"Invalid JSON: {error}"}]) from None


def read_query(request: Request, model: type[Model]) -> Model:
    """The query string; an empty value means absent, of several with one name the last counts. Raises Invalid."""
    try:
        pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), errors="strict", max_num_fields=QUERY_FIELDS)
    except ValueError as error:
        message = "Not valid UTF-8" if isinstance(error, UnicodeError) else "Too many parameters"
        raise Invalid([{"field": "query", "message": message}]) from None
    try:
        return model.model_validate(dict(pairs))
    except ValidationError as error:
        raise _invalid(error) from None


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header, if there is one. Raises Invalid for a repeated one, or what is no printable text."""
    return _header(request, IDEMPOTENCY_KEY, Idempotency).idempotency_key


def last_event_id(request: Request) -> str | None:
    """The Last-Event-ID header, if there is one that is not empty. Raises Invalid for a repeated one."""
    return _header(request, LAST_EVENT_ID, Resumption).last_event_id or None


@asynccontextmanager
async def on_leaving(receive: Receive, act: Callable[[], None]) -> AsyncIterator[None]:
    """Acts when the client leaves meanwhile; for a request without a body that is still to be read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        act()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@asynccontextmanager
async def while_there(receive: Receive) -> AsyncIterator[None]:
    """Cuts short what is inside when the client leaves, and raises ClientDisconnect: work that may take long."""
    try:
        async with (
            asyncio.timeout(None) as presence,
            on_leaving(receive, lambda: presence.reschedule(asyncio.get_running_loop().time())),
        ):
            yield
    except TimeoutError:
        if presence.expired():
            raise ClientDisconnect from None
        raise


def _header(request: Request, name: str, model: type[Model]) -> Model:
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise Invalid([{"field": name, "message": "One header at most"}])
    try:
        return model.model_validate({name: values[0]} if values else {})
    except ValidationError as error:
        raise _invalid(error) from None


async def _read(request: Request, limit: int) -> bytes:
    message = await request.receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body") and len(body) <= limit:
        return body  # nearly always: a small body comes in one piece
    chunks = [body]
    size = len(body)
    while message["type"] == "http.request" and message.get("more_body") and size <= limit + DRAINED_BYTES:
        message = await request.receive()
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if size > limit:
        raise BodyTooLarge(f"The body may have {limit} bytes at most")
    return b"".join(chunks)


def _invalid(error: ValidationError) -> Invalid:
    return Invalid([_breach(cast("dict[str, Any]", breach)) for breach in error.errors(include_url=False)[:DETAILS]])


def _breach(breach: dict[str, Any]) -> FieldError:
    # null means absent, so a null for a required field is a missing field; within one it is no text.
    missing = breach["input"] is None and breach["type"].endswith("_type") and len(breach["loc"]) == 1
    field = ".".join(str(part) for part in breach["loc"] if part != "[key]")
    message = breach["msg"].removeprefix("Value error, ")
    return {"field": field[:SHOWN_LOCATION] or "body", "message": "Field required" if missing else message}
