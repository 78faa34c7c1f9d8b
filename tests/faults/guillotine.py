"""Guillotine: stands between a pod and Redis, and kills the pod at a chosen moment of a chosen script call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Literal, get_args

__all__ = ["MOMENTS", "Guillotine", "Moment", "running_guillotine"]

Moment = Literal["before", "halfway", "executed", "answered"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
"""The call is not sent; only half of it is; it is, and the reply is kept back; the reply has been passed on."""


class Guillotine:
    """Falls once, at the ``nth`` call of the script with that digest. ``kill`` ends the pod; ``fallen`` tells."""

    def __init__(self, redis_port: int, digest: bytes, nth: int, moment: Moment, kill: Callable[[], None]) -> None:
        self.fallen = asyncio.Event()
        self.port = 0
        self._redis_port = redis_port
        self._digest = digest
        self._ahead = nth
        self._moment = moment
        self._kill = kill

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, pod_reads: asyncio.StreamReader, pod: asyncio.StreamWriter) -> None:
        replies, redis = await asyncio.open_connection("127.0.0.1", self._redis_port)
        pumping = asyncio.create_task(_pump(replies, pod))
        try:
            while not self.fallen.is_set():
                command = await _read_command(pod_reads)
                if self._digest in command:
                    self._ahead -= 1
                    if self._ahead == 0:
                        # From here on this call is ours alone: nothing else is under way on its connection.
                        pumping.cancel()
                        await asyncio.wait([pumping])
                        await self._fall(command, replies, redis, pod)
                        return
                redis.write(command)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the pod has closed a connection, or is dead
        finally:
            pumping.cancel()
            redis.close()
            pod.close()
            await asyncio.wait([pumping])

    async def _fall(
        self, command: bytes, replies: asyncio.StreamReader, redis: asyncio.StreamWriter, pod: asyncio.StreamWriter
    ) -> None:
        if self._moment == "halfway":
            redis.write(command[: len(command) // 2])
        elif self._moment != "before":
            redis.write(command)
            reply = await replies.read(1 << 20)
            if self._moment == "answered":
                pod.write(reply)
                await pod.drain()
        self._kill()
        self.fallen.set()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            sink.write(data)


async def _read_command(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n")
    words = [head]
    for _ in range(int(head[1:])):
        length = await reader.readuntil(b"\r\n")
        words += [length, await reader.readexactly(int(length[1:]) + 2)]
    return b"".join(words)


@contextlib.asynccontextmanager
async def running_guillotine(
    redis_port: int, digest: bytes, nth: int, moment: Moment, kill: Callable[[], None]
) -> AsyncIterator[Guillotine]:
    guillotine = Guillotine(redis_port, digest, nth, moment, kill)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await guillotine.serve(reader, writer)
        finally:
            writer.close()  # also of one that has not got through to Redis by then

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    guillotine.port = server.sockets[0].getsockname()[1]
    try:
        yield guillotine
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
