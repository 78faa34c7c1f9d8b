"""A proxy between a pod and its Redis that does to replies what networks do: delay, drop, cut, reset, garble."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator

import hiredis

from tests.patience import until

__all__ = ["FAULTS", "NOISE", "FaultProxy", "running_proxy"]

FAULTS = ("delay", "drop", "half-close", "reset", "garbage")
READ_BYTES = 64 * 1024
DELAY_SECONDS = 0.02
NOISE = (b"\0\xff\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n")
"""What no script replies: some of it is nothing that Redis says, some it says to others."""


class FaultProxy:
    """Forwards what the pod says as it is; what Redis answers suffers.

    ``to`` is the port that new connections lead to. ``delay`` (s) holds back each piece of every reply. ``rate`` is the
    chance that a piece suffers one of FAULTS, drawn from ``chance``; ``next`` names the fault of the very next piece.
    ``open`` counts the connections that neither side has closed, ``done`` the faults.
    A connection that drops one says nothing any more, but stays open, as one that a firewall has forgotten.
    """

    def __init__(self, to: int, chance: random.Random) -> None:
        self.to = to
        self.port = 0
        self.delay = 0.0
        self.rate = 0.0
        self.next: str | None = None
        self.accepted = 0
        self.open = 0
        self.done: Counter[str] = Counter()
        self._chance = chance
        self._pumps: set[asyncio.Task[None]] = set()
        self._silent = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def mute(self) -> None:
        """The connections that there are now drop all that comes; new ones do not."""
        self._silent = self.accepted

    async def serve(self, pod: asyncio.StreamReader, to_pod: asyncio.StreamWriter) -> None:
        number = self.accepted = self.accepted + 1
        self.open += 1
        writers = [to_pod]
        try:
            with contextlib.suppress(OSError):
                redis, to_redis = await asyncio.open_connection("127.0.0.1", self.to, limit=READ_BYTES)
                writers.append(to_redis)
                directions = (self._ask(pod, to_redis), self._tell(redis, to_pod, number))
                await self._either([asyncio.create_task(direction) for direction in directions])
        finally:
            for writer in writers:
                writer.transport.abort()
            self.open -= 1

    async def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()

        async def all_closed() -> bool:
            return self.open == 0

        await until(all_closed)

    async def _either(self, pumps: list[asyncio.Task[None]]) -> None:
        """Until one of them ends, and then the other must."""
        self._pumps.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._pumps.difference_update(pumps)

    async def _ask(self, pod: asyncio.StreamReader, to_redis: asyncio.StreamWriter) -> None:
        while piece := await pod.read(READ_BYTES):
            to_redis.write(piece)
            await to_redis.drain()

    async def _tell(self, redis: asyncio.StreamReader, to_pod: asyncio.StreamWriter, number: int) -> None:
        begun = b""
        while piece := await redis.read(READ_BYTES):
            fault = self._fault(between=not begun)
            begun = _unfinished(begun + piece)
            if self.delay:
                await asyncio.sleep(self.delay)
            if number <= self._silent:
                fault = "drop"
            match fault:
                case "delay":
                    await asyncio.sleep(self._chance.random() * DELAY_SECONDS)
                case "drop":
                    await asyncio.Event().wait()
                case "half-close":
                    to_pod.write_eof()
                    await asyncio.Event().wait()
                case "reset":
                    to_pod.write(piece[: self._chance.randrange(len(piece))])
                    return
                case "garbage":
                    to_pod.write(self._chance.choice(NOISE))
            to_pod.write(piece)
            await to_pod.drain()

    def _fault(self, between: bool) -> str | None:
        """What befalls a piece; garbage only between two replies: inside of one it may look like content."""
        fault, self.next = self.next, None
        if fault is None and self._chance.random() < self.rate:
            fault = self._chance.choice(FAULTS)
        if fault == "garbage" and not between:
            fault = None
        if fault is not None:
            self.done[fault] += 1
        return fault


def _unfinished(replies: bytes) -> bytes:
    """The same, or nothing if the last reply is whole: then what follows is read as a reply of its own."""
    reader = hiredis.Reader()
    reader.feed(replies + b"+next\r\n")
    last: object = None
    with contextlib.suppress(hiredis.ProtocolError):
        while (reply := reader.gets()) is not False:
            last = reply
    return b"" if last == b"next" else replies


@contextlib.asynccontextmanager
async def running_proxy(to: int, chance: random.Random | None = None) -> AsyncIterator[FaultProxy]:
    """A proxy on a free port to the Redis on port ``to`` of this machine."""
    proxy = FaultProxy(to, chance or random.Random(0))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=READ_BYTES)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
