"""Server: one Redis as we reach it, alone or as a node of a cluster; what happens to it touches no other's calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ReadOnlyError, ResponseError

from tracker.errors import StoreUnavailable
from tracker.store.lanes import Lanes
from tracker.store.pipe import NO_REPLY, Pipe
from tracker.store.sentinel import cut

__all__ = ["Argument", "Server"]

Argument = str | bytes | int

LEAVE_SECONDS = 1.0
"""Least time between two times that a read-only server is left: connecting again and again would use up the ports."""
LANES = 4
"""Batches under way at once. Shards take turns batch by batch: with much to end in one, the others are swept too."""
TURNS = 8
"""Reads of the feed under way at once, however many ask: enough to keep a server busy, and few of the connections."""


class Server:
    """``hot`` carries what is coalesced, ``bulk`` what listings read, so that heartbeats never queue behind a chunk of
    one. Everything else takes a connection of the pool. ``lanes`` are for the sweeper's batches; its pulses have lanes
    of their own, so that no batch keeps them until they are too old. ``turns``: the same for reads of the feed.
    """

    def __init__(self, client: Redis, name: str = "", *, embedded: bool = False) -> None:
        self.client = client
        self.name = name
        self.lanes = Lanes(LANES)
        self.pulses = Lanes(LANES)
        self.turns = asyncio.Semaphore(TURNS)
        self._pool = cast("BlockingConnectionPool", client.connection_pool)
        self.hot = Pipe(self._pool)
        self.bulk = Pipe(self._pool)
        self.embedded = embedded
        self._left = -LEAVE_SECONDS

    async def execute(self, words: Sequence[Argument], fits: Callable[[Any], bool]) -> Any:
        """The reply to a command. If it cannot be the true one, that may still come: nobody gets that connection.

        Raises the driver's errors, and StoreUnavailable for what is no reply.
        """
        pool = self._pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        left, trusted = self._left, False
        try:
            await connection.send_command(*words)
            reply = await self.client.parse_response(connection, words[0])  # type: ignore[arg-type]
            trusted = fits(reply)
        except ResponseError as error:
            trusted = True
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
                self.leave()
            raise
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise StoreUnavailable(NO_REPLY) from error  # the driver could make nothing of it
        finally:
            if not trusted or left != self._left:
                await connection.disconnect(nowait=True)
            await pool.release(connection)
        if not trusted:
            raise StoreUnavailable(NO_REPLY)
        return reply

    def leave(self) -> None:
        """Leaves a server that only reads, for it was a master once: where it is reached there may be another by now.

        What is under way gets its reply. Once a second at most, should there be no other.
        """
        now = asyncio.get_running_loop().time()
        if now - self._left >= LEAVE_SECONDS:
            self._left = now
            cut(self._pool._available_connections)
            for pipe in (self.hot, self.bulk):
                pipe.retire("the store became read-only")

    def cut(self, why: str) -> None:
        """Ends all connections as a crash would: calls under way get StoreUnavailable."""
        for pipe in (self.hot, self.bulk):
            pipe.abort(why)
        cut([*self._pool._available_connections, *self._pool._in_use_connections])

    async def close(self) -> None:
        if not self.embedded:
            await self.hot.close()
            await self.bulk.close()
            # A server that reads no more would not let them be closed in order.
            self.cut("the tracker is stopping")
        await self.client.aclose()
