"""The change feed as server-sent events, and as a page that waits for its first event.

Both are ASGI callables that hold a reader of the hub for exactly as long as they run: however a client leaves, its slot
is free when the call ends. Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import random

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from tracker.api.requests import on_leaving
from tracker.api.responses import answer
from tracker.errors import PositionLost, StoreError
from tracker.models import EVENTS_DEFAULT_LIMIT, EventPage, ListEvents
from tracker.store.feed import Found
from tracker.store.hub import Hub, Reader

__all__ = ["EVENT_STREAM", "EventStream", "WaitingPage"]

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_SECONDS = 10.0
"""Silence after which a comment is sent: 15 s are promised, and machines under load are late."""
RETRY_MS = (1000, 3000)
"""When to reconnect. A different time for each, so that those of a pod that ends do not all come at once."""
OUTAGE_SECONDS = 0.5
"""Between two attempts to read on while the store is away."""
CHUNK = 100
"""Events written at once."""

HEADERS = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-store"),
    (b"vary", b"Accept"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Events behind a position, None for those that are yet to come, until the client leaves or the server stops.

    A store that is away at the start is an honest 503. If it goes away later, the stream stays and goes on after it.
    ``field`` is what to blame for a position that is none.
    """

    def __init__(self, hub: Hub, query: ListEvents, after: str | None, field: str) -> None:
        self._hub = hub
        self._query = query
        self._after = after
        self._field = field

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            self._hub.feed.parse(self._after, self._field)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body"})
            return
        with self._hub.reader(self._query) as reader:
            await reader.begin(self._after, self._field)
            opening = b"retry: %d\n" % random.randint(*RETRY_MS)  # noqa: S311 - spreads clients, keeps no secret
            position = _id(reader)
            try:
                first = _written(await reader.read(CHUNK, 0))
            except PositionLost as lost:
                opening += b"\n" + _reset(lost)
            else:
                # An id alone is no event, but is remembered: who loses the connection now knows where to go on.
                opening += position + b"\n" + first
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            async with on_leaving(receive, reader.end):
                await _write(opening, send)
                await _follow(reader, send)
            await send({"type": "http.response.body"})


class WaitingPage:
    """A page of what comes first behind a position, as soon as there is something, or empty after ``query.wait``."""

    def __init__(self, hub: Hub, query: ListEvents, after: str) -> None:
        self._hub = hub
        self._query = query
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._query.limit or self._query.last or EVENTS_DEFAULT_LIMIT
        with self._hub.reader(self._query) as reader:
            await reader.begin(self._after)
            async with on_leaving(receive, reader.end):
                found = await _first(reader, limit, self._query.wait or 0)
            events = [change.event(event_id) for event_id, change in found]
            page = EventPage(events=events, next=reader.position)
        await answer(page)(scope, receive, send)


async def _first(reader: Reader, limit: int, seconds: float) -> list[Found]:
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    found: list[Found] = []
    while not found and not reader.ended and (left := deadline - now()) > 0:
        found = await reader.read(limit, left)
    return found


async def _follow(reader: Reader, send: Send) -> None:
    now = asyncio.get_running_loop().time
    told = _id(reader)
    due = now() + KEEP_ALIVE_SECONDS
    while not reader.ended:
        body = b""
        try:
            body = _written(await reader.read(CHUNK, due - now()))
        except PositionLost as lost:
            body = _reset(lost)
        except StoreError:
            await reader.pause(OUTAGE_SECONDS)
        if not body and now() >= due:
            # Past events that were filtered out the position moves on too, or the feed would lose it some day.
            body = b":\n" if _id(reader) == told else b":\n" + _id(reader) + b"\n"
        if body and not reader.ended:
            told = _id(reader)
            await _write(body, send)
            due = now() + KEEP_ALIVE_SECONDS


async def _write(body: bytes, send: Send) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _id(reader: Reader) -> bytes:
    return b"id: %s\n" % reader.position.encode()


def _written(found: list[Found]) -> bytes:
    return b"".join(
        b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), change.type.encode(), change.encode(event_id))
        for event_id, change in found
    )


def _reset(lost: PositionLost) -> bytes:
    data = to_json({"id": lost.onward, "error": str(lost)})
    return b"id: %s\nevent: reset\ndata: %s\n\n" % (lost.onward.encode(), data)
