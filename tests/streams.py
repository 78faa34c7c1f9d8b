"""A reader of server-sent events, as browsers read them, over a socket of its own that can also be treated badly."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

__all__ = ["PATH", "PATIENCE_SECONDS", "Dispatched", "Ended", "Stream", "Words", "abort", "request"]

PATH = "/api/active-sessions/events"
PATIENCE_SECONDS = 40
Words = Mapping[str, str]


class Ended(Exception):
    """The server ended the stream in order."""


@dataclass(frozen=True)
class Dispatched:
    """An event as a page's listener gets it."""

    id: str
    type: str
    data: Any


def request(url: str, query: Mapping[str, Any] | None = None, headers: Words | None = None) -> bytes:
    """The request for a stream, ready to send."""
    lines = [f"GET {PATH}?{urlencode(query or {})} HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
    lines += [f"{name}: {value}" for name, value in {"Accept": "text/event-stream", **(headers or {})}.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def abort(writer: asyncio.StreamWriter) -> None:
    """Resets the connection, as a client that crashed."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Stream:
    """``last_event_id`` is what a browser would reconnect with. ``async with``: closed behind it."""

    def __init__(self, url: str, query: Mapping[str, Any] | None = None, headers: Words | None = None) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self.comments = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self._url = url
        self._request = request(url, query, headers)
        self._lines = b""

    @classmethod
    def behind(cls, url: str, event_id: str, **query: Any) -> Stream:
        return cls(url, query, {"Last-Event-ID": event_id} if event_id else {})

    async def __aenter__(self) -> Stream:
        place = urlsplit(self._url)
        self._reader, self._writer = await asyncio.open_connection(place.hostname, place.port)
        self._writer.write(self._request)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        except BaseException:  # also one who is cancelled here: nobody else could close it
            self._writer.transport.abort()
            raise
        status, *lines = head.strip().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    def abort(self) -> None:
        abort(self._writer)

    async def begun(self) -> Stream:
        """Once it has told where it begins, or its first event."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.last_event_id:
                await self._block()
        return self

    async def next(self, seconds: float = PATIENCE_SECONDS) -> Dispatched:
        """The next event. Raises Ended, or EOFError when the connection broke."""
        async with asyncio.timeout(seconds):
            while True:
                if event := await self._block():
                    return event

    async def take(self, count: int) -> list[Dispatched]:
        return [await self.next() for _ in range(count)]

    async def comment(self) -> None:
        """Until the next comment."""
        before = self.comments
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.comments == before:
                assert await self._block() is None

    async def body(self) -> Any:
        """What an answer that is no stream says."""
        return json.loads(await self._reader.readexactly(int(self.headers["content-length"])))

    async def _block(self) -> Dispatched | None:
        """Reads up to the next empty line; the event that it dispatches, if it has data."""
        while b"\n\n" not in self._lines and not self._lines.startswith(b":"):
            self._lines += await self._chunk()
        end = b"\n" if self._lines.startswith(b":") else b"\n\n"
        block, _, self._lines = self._lines.partition(end)
        kind, data = "message", []
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not name:
                self.comments += bool(line)
            elif name == "id":
                self.last_event_id = value
            elif name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            else:
                assert name == "retry", f"no field of the format: {line!r}"
                self.retry = int(value)
        return Dispatched(self.last_event_id, kind, json.loads("\n".join(data))) if data else None

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        chunk = await self._reader.readexactly(size + 2)
        if not size:
            raise Ended
        return chunk[:-2]
