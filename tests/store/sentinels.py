"""Sentinels that say what the test wants: who the master is, at which epoch; or nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.store.puppet import read_command, resp

__all__ = ["MASTER", "ScriptedSentinel", "running_sentinels"]

MASTER = "fleet"


class ScriptedSentinel:
    """``asked``: how often it was asked for the epoch. ``heard``: the first words of everything it was told."""

    def __init__(self) -> None:
        self.epoch = 0
        self.master = 1
        self.mute = False
        self.ignorant = False
        self.asked = 0
        self.heard: list[list[bytes]] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def names(self, port: int, epoch: int) -> None:
        self.master, self.epoch = port, epoch

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                words = await read_command(reader)
                self.heard.append(words)
                writer.write(self._reply(words))
                await writer.drain()
        writer.close()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _reply(self, words: list[bytes]) -> bytes:
        if words[0] != b"SENTINEL":
            return b"+OK\r\n"
        assert words[2] == MASTER.encode()
        if self.mute:
            return b""
        if words[1] == b"MASTER":
            self.asked += 1
            if self.ignorant:
                return b"-ERR No such master with that name\r\n"
            return resp([b"name", words[2], b"port", b"0", b"config-epoch", b"%d" % self.epoch])
        return resp([b"127.0.0.1", b"%d" % self.master])


@contextlib.asynccontextmanager
async def running_sentinels(count: int = 3) -> AsyncIterator[list[ScriptedSentinel]]:
    sentinels = [ScriptedSentinel() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for sentinel in sentinels:
            server = await asyncio.start_server(sentinel.serve, "127.0.0.1", 0)
            sentinel.port = server.sockets[0].getsockname()[1]
            stack.push_async_callback(server.wait_closed)
            stack.callback(sentinel.hang_up)
            stack.callback(server.close)
        yield sentinels
