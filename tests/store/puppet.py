"""A server that speaks Redis's protocol and answers scripts as the test says: late, twice, wrongly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

__all__ = ["Answer", "Puppet", "echo", "read_command", "resp", "running_puppet"]

Answer = Callable[[list[bytes], asyncio.StreamWriter], Awaitable[bytes]]


class Puppet:
    """``heard``: every script call's name and own arguments. ``answer``: from those to the bytes to send back.

    By default a call is answered with its own arguments. Enrolling succeeds in one shard. ``role`` is what it says of
    itself. While ``greets`` is not set, what a driver sends before its first call (name, password, database, role)
    stays without reply.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, list[bytes]]] = []
        self.answer: Answer = echo
        self.greets = asyncio.Event()
        self.greets.set()
        self.role = b"master"
        self.connections = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                if reply := await self._reply(await read_command(reader), writer):
                    writer.write(reply)
                    await writer.drain()
        writer.close()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _reply(self, words: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if words[0].upper() not in (b"EVALSHA", b"EVAL"):
            await self.greets.wait()
            return resp([self.role, b"0", []]) if words[0].upper() == b"ROLE" else b"+OK\r\n"
        own = words[3 + int(words[2]) + 3 :]
        if len(own) == 2 and own[0] == b"1":
            return resp([b"1", b"1", b"", b"0", b""])
        self.heard.append((words[0].upper(), own))
        return await self.answer(own, writer)


async def echo(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
    return resp(own)


def resp(reply: Any) -> bytes:
    """A reply on the wire: bytes, or a list of replies."""
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(resp, reply))
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    count = int((await reader.readuntil(b"\r\n"))[1:])
    words = []
    for _ in range(count):
        length = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(length + 2))[:-2])
    return words


@contextlib.asynccontextmanager
async def running_puppet(tls: ssl.SSLContext | None = None) -> AsyncIterator[Puppet]:
    puppet = Puppet()
    server = await asyncio.start_server(puppet.serve, "127.0.0.1", 0, ssl=tls)
    puppet.port = server.sockets[0].getsockname()[1]
    try:
        yield puppet
    finally:
        server.close()
        puppet.hang_up()
        await server.wait_closed()
