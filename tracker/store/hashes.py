"""Hashes: reads the hashes of many sessions at once.

On a Redis the commands go out ready packed through a pipe of their own, so that heartbeats never queue behind a chunk
of a listing; the embedded store gets them as a pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import ReplyError

from tracker.errors import StoreError, StoreUnavailable
from tracker.store.connection import fault_of, translated
from tracker.store.keys import Shard
from tracker.store.pipe import Pipe
from tracker.store.scripts import MOVING_SECONDS, Scripts, is_moving
from tracker.store.snapshot import FIELDS, Values

__all__ = ["Hashes"]

ID_LENGTH = 36
LATE = "the store did not answer in time"
_TAIL = b"".join(b"\r\n$%d\r\n%s" % (len(field), field.encode()) for field in FIELDS) + b"\r\n"


class Hashes:
    """Raises StoreUnavailable when replies do not come within the deadline, StoreFault for a key of a wrong type."""

    def __init__(self, scripts: Scripts, *, embedded: bool) -> None:
        self._scripts = scripts
        self._embedded = embedded

    async def read(self, shard: Shard, ids: Sequence[bytes]) -> list[Values]:
        """The values of each session's hash, in the order of the ids."""
        if not ids:
            return []
        with self._scripts.observer.watching("hashes"):
            replies = await (self._read_embedded if self._embedded else self._read_piped)(shard, ids)
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise fault_of(str(reply))
                if isinstance(reply, StoreError):
                    self._scripts.servers.doubt()
                    raise reply
            return replies

    async def _read_piped(self, shard: Shard, ids: Sequence[bytes]) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + self._scripts.timeout
        servers = self._scripts.servers
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    pipe = (await servers.holder(shard)).bulk
                    await pipe.open()
                    replies = await self._arrival(pipe, shard, ids, deadline)
                    astray = [
                        text for reply in replies if isinstance(reply, ReplyError) and is_moving(text := str(reply))
                    ]
                    if not astray or not servers.several:
                        return replies
                    if astray[-1].startswith("MOVED"):
                        servers.moved(shard, astray[-1])
                    await asyncio.sleep(MOVING_SECONDS)
        except TimeoutError:
            servers.doubt()
            raise StoreUnavailable(LATE) from None

    async def _arrival(self, pipe: Pipe, shard: Shard, ids: Sequence[bytes], deadline: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[list[Any]] = loop.create_future()
        # Not the caller's own time-out: one who leaves earlier would leave a silent connection to the next.
        watch = loop.call_at(deadline, pipe.abort, LATE)

        def land(replies: list[Any]) -> None:
            watch.cancel()
            if not arrived.done():
                arrived.set_result(replies)

        prefix = f"{shard.prefix}session:"
        head = f"*{len(FIELDS) + 2}\r\n$5\r\nHMGET\r\n${len(prefix) + ID_LENGTH}\r\n{prefix}".encode()
        commands = head + (_TAIL + head).join(ids) + _TAIL
        pipe.call_many(commands, len(ids), _is_row, land)
        return await arrived

    async def _read_embedded(self, shard: Shard, ids: Sequence[bytes]) -> list[Any]:
        pipeline = self._scripts.client.pipeline(transaction=False)
        for session_id in ids:
            pipeline.hmget(f"{shard.prefix}session:{session_id.decode()}", FIELDS)
        with translated():
            return await pipeline.execute()


def _is_row(reply: Any) -> bool:
    return isinstance(reply, list) and len(reply) == len(FIELDS)
