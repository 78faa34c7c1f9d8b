"""Pipe: one connection that carries the hot path, call after call without waiting for replies in between.

redis-py opens it (TLS, credentials, database), then its bytes go straight to hiredis: through redis-py's own layers a
call costs more than twice as much. Replies come in the order of the calls. What cannot be matched to a call, or comes
too late, closes the connection, so that no caller ever gets another's reply.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection

from tracker.errors import StoreUnavailable
from tracker.store.connection import translated

__all__ = ["Landing", "Pipe"]

Landing = Callable[[Any], None]
"""Gets a reply: bytes, int, list or None; a ``hiredis.ReplyError``; or a StoreUnavailable when none will come."""


class Pipe(asyncio.Protocol):
    """Opened by the first ``open`` and again after each loss; ``call`` only while it is ``ready``."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._pool = pool
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._reader_protocol: asyncio.BaseProtocol | None = None
        self._reader = hiredis.Reader()
        self._landings: deque[Landing] = deque()

    @property
    def ready(self) -> bool:
        return self._transport is not None

    async def open(self) -> None:
        """Connects if need be. Raises StoreUnavailable."""
        async with self._opening:
            if self.ready:
                return
            await self._give_back()
            with translated():
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            # Taking the socket over is not part of redis-py's promise: a test holds it to the pinned release.
            writer = cast("asyncio.StreamWriter", connection._writer)
            transport = cast("asyncio.Transport", writer.transport)
            self._connection = connection
            self._reader = hiredis.Reader()
            self._reader_protocol = transport.get_protocol()
            transport.set_protocol(self)
            self._transport = transport

    def call(self, words: tuple[str | bytes | int, ...], landing: Landing) -> None:
        """Sends a command; ``landing`` is called once, with the reply or with why there is none."""
        if self._transport is None:
            landing(StoreUnavailable("the store cannot be reached: no connection"))
            return
        self._landings.append(landing)
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]

    def abort(self, why: str) -> None:
        """Gives the connection up, and with it every call under way."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        landings, self._landings = self._landings, deque()
        for landing in landings:
            landing(StoreUnavailable(why))

    async def close(self) -> None:
        self.abort("the tracker is stopping")
        await self._give_back()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                if not self._landings:
                    self.abort("the store sent a reply that nobody asked for")
                    return
                self._landings.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"the store sent what is no reply: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reader_protocol is not None:
            self._reader_protocol.connection_lost(exc)
            self._reader_protocol = None
        self.abort("the store closed the connection")

    async def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
