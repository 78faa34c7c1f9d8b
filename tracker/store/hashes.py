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
from tracker.store.scripts import Scripts
from tracker.store.snapshot import FIELDS, Values

__all__ = ["Hashes"]

ID_LENGTH = 36
_TAIL = b"".join(b"\r\n$%d\r\n%s" % (len(field), field.encode()) for field in FIELDS) + b"\r\n"


class Hashes:
    """Raises StoreUnavailable when replies do not come within the deadline, StoreFault for a key of a wrong type."""

    def __init__(self, scripts: Scripts, *, embedded: bool) -> None:
        self._scripts = scripts
        self._pipe = None if embedded else scripts.pipe()

    async def read(self, shard: Shard, ids: Sequence[bytes]) -> list[Values]:
        """The values of each session's hash, in the order of the ids."""
        if not ids:
            return []
        with self._scripts.observer.watching("hashes"):
            if self._pipe is None:
                replies = await self._read_embedded(shard, ids)
            else:
                replies = await self._read_piped(self._pipe, shard, ids)
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise fault_of(str(reply))
                if isinstance(reply, StoreError):
                    raise reply
            return replies

    async def close(self) -> None:
        if self._pipe is not None:
            await self._pipe.close()

    async def _read_piped(self, pipe: Pipe, shard: Shard, ids: Sequence[bytes]) -> list[Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._scripts.timeout
        why = "the store did not answer in time"
        try:
            async with asyncio.timeout_at(deadline):
                await pipe.open()
        except TimeoutError:
            raise StoreUnavailable(why) from None
        arrived: asyncio.Future[list[Any]] = loop.create_future()
        # Not the caller's own time-out: one who leaves earlier would leave a silent connection to the next.
        watch = loop.call_at(deadline, pipe.abort, why)

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
