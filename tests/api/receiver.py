"""A receiver of webhooks that does as the test says: takes them, fails, hangs, lies, or breaks off."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["SECRET", "Call", "Receiver", "receiving"]

SECRET = bytes(range(32))


class Call(NamedTuple):
    """A request that came: path, headers (lower case), body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verify(self) -> None:
        """Asserts the signature, worked out anew from https://www.standardwebhooks.com."""
        signed = b".".join((self.headers["webhook-id"].encode(), self.headers["webhook-timestamp"].encode(), self.body))
        digest = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        assert self.headers["webhook-signature"] == f"v1,{digest}"


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@dataclass
class Receiver:
    """``answer`` gets each call and says what to send back: bytes; None to hang; b"" to break off."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    answer: Callable[[Call], bytes | None] = lambda call: OK
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                call = await _read(reader)
                self.calls.append(call)
                reply = self.answer(call)
                if reply is None:
                    await self.released.wait()
                    break
                writer.write(reply)
                await writer.drain()
                if not reply.startswith(b"HTTP/1.1 ") or b"content-length: 0" not in reply:
                    break
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    return Call(head[0].split(" ")[1], headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?token=t"
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.close()
        await server.wait_closed()
