"""Pipe: one connection that carries the hot path, call after call without waiting for replies in between.

redis-py opens it (TLS, credentials, database), then its bytes go straight to hiredis: through redis-py's own layers a
call costs more than twice as much. Replies come in the order of the calls. What cannot be matched to a call, or comes
too late, closes the connection, so that no caller ever gets another's reply.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection

from tracker.errors import StoreUnavailable
from tracker.store.connection import translated

__all__ = ["NO_REPLY", "Landing", "Pipe"]

NO_REPLY = "the store sent what is no reply to what was asked"

Landing = Callable[[Any], None]
"""Gets a reply: bytes, int, list or None; a ``hiredis.ReplyError``; or a StoreUnavailable when none will come."""


class Pipe:
    """Connects with the first ``open`` and again after each loss; ``call`` only while it is ``ready``.

    Replies come as bytes, or as text if there is an ``encoding``; what is no text in it has U+FFFD in its place.
    """

    def __init__(self, pool: BlockingConnectionPool, encoding: str | None = None) -> None:
        self._pool = pool
        self._encoding = encoding
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._line: _Line | None = None

    @property
    def ready(self) -> bool:
        return self._line is not None and self._line.open and not self._line.retiring

    async def open(self) -> None:
        """Connects if need be. Raises StoreUnavailable."""
        async with self._opening:
            if self.ready:
                return
            if self._line is not None:
                await self._line.over.wait()
            await self._give_back()
            with translated():
                self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            # Taking the socket over is not part of redis-py's promise: a test holds it to the pinned release.
            writer = cast("asyncio.StreamWriter", self._connection._writer)
            self._line = _Line(cast("asyncio.Transport", writer.transport), self._encoding)

    def call(self, words: tuple[str | bytes | int, ...], landing: Landing) -> None:
        """Sends a command; ``landing`` is called once, with the reply or with why there is none.

        Raises TypeError or ValueError for what cannot be sent, and then calls nobody.
        """
        if self._line is None:
            landing(StoreUnavailable("the store cannot be reached: no connection"))
        else:
            self._line.call(words, landing)

    def call_many(
        self, packed: bytes, count: int, fits: Callable[[Any], bool], landing: Callable[[list[Any]], None]
    ) -> None:
        """Sends commands that are packed already; ``landing`` is called once, with a list of what ``call`` gives.

        A reply that does not fit is none: the true one may still come, and ends with the connection.
        """
        replies: list[Any] = []

        def take(reply: Any) -> None:
            if not isinstance(reply, (hiredis.ReplyError, StoreUnavailable)) and not fits(reply):
                self.abort(NO_REPLY)  # which lands all others that are still to come
                reply = StoreUnavailable(NO_REPLY)
            replies.append(reply)
            if len(replies) == count:
                landing(replies)

        if self._line is None:
            landing([StoreUnavailable("the store cannot be reached: no connection")])
        else:
            self._line.call_packed(packed, [take] * count)

    def abort(self, why: str) -> None:
        """Gives the connection up, and with it every call under way."""
        if self._line is not None:
            self._line.abort(why)

    def retire(self, why: str) -> None:
        """Gives the connection up as soon as every call under way has its reply; new ones wait for the next."""
        if self._line is not None:
            self._line.retire(why)

    async def close(self) -> None:
        self.abort("the tracker is stopping")
        await self._give_back()

    async def _give_back(self) -> None:
        self._line = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)


class _Line(asyncio.Protocol):
    """One connection's bytes and the calls under way on it: what comes late from an earlier one touches nobody."""

    def __init__(self, transport: asyncio.Transport, encoding: str | None) -> None:
        self.open = True
        self.retiring: str | None = None
        self.over = asyncio.Event()
        self._transport = transport
        self._before = transport.get_protocol()
        self._reader = hiredis.Reader(encoding=encoding, errors="replace") if encoding else hiredis.Reader()
        self._landings: deque[Landing] = deque()
        transport.set_protocol(self)

    def call(self, words: tuple[str | bytes | int, ...], landing: Landing) -> None:
        self.call_packed(hiredis.pack_command(words), (landing,))  # type: ignore[arg-type]

    def call_packed(self, packed: bytes, landings: Sequence[Landing]) -> None:
        if not self.open or self._transport.is_closing():
            for landing in landings:
                landing(StoreUnavailable("the store cannot be reached: the connection is gone"))
            return
        self._landings.extend(landings)
        self._transport.write(packed)

    def abort(self, why: str) -> None:
        if self.open:
            self.open = False
            self.over.set()
            self._transport.abort()
        landings, self._landings = self._landings, deque()
        for landing in landings:
            landing(StoreUnavailable(why))

    def retire(self, why: str) -> None:
        self.retiring = why
        if not self._landings:
            self.abort(why)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self.open and (reply := self._reader.gets()) is not False:
                if not self._landings:
                    self.abort("the store sent a reply that nobody asked for")
                    return
                self._landings.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"the store sent what is no reply: {error}")
        if self.retiring and not self._landings:
            self.abort(self.retiring)

    def eof_received(self) -> None:
        self.abort("the store closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)  # redis-py's: its disconnect waits for it
        self.abort("the store closed the connection")
