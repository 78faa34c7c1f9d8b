"""How batches get to the store: over the pipe to a Redis, through the client to the embedded store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hiredis import ReplyError

from tracker.errors import StoreError, StoreUnavailable
from tracker.store.batching import Operation, Reply
from tracker.store.keys import Shard
from tracker.store.pipe import NO_REPLY, Pipe
from tracker.store.scripts import MOVING_SECONDS, Argument, Scripts, is_moving, is_reply

__all__ = ["ClientCarrier", "PipeCarrier"]

Landing = Callable[[list[Reply] | StoreError], None]


def _flat(operations: list[Operation]) -> list[Argument]:
    """Operations as the scripts take them: each as a count and as many arguments."""
    arguments: list[Argument] = []
    for operation in operations:
        arguments.append(len(operation))
        arguments += operation
    return arguments


class ClientCarrier:
    """Calls the script as any other: a task per batch."""

    def __init__(self, scripts: Scripts, script: str, shard: Shard) -> None:
        self._scripts = scripts
        self._script = script
        self._shard = shard
        self._task: asyncio.Task[None] | None = None

    def carry(self, operations: list[Operation], landing: Landing) -> None:
        self._task = asyncio.get_running_loop().create_task(self._carry(operations, landing))

    def abort(self, why: str) -> None:
        """The script's own deadline is as long as the batch's, and lands it."""

    async def close(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _carry(self, operations: list[Operation], landing: Landing) -> None:
        try:
            replies = await self._scripts.call(self._script, self._shard, *_flat(operations))
        except StoreError as error:
            landing(error)
        except BaseException:
            landing(StoreUnavailable("the call to the store was interrupted"))
            raise
        else:
            landing(replies)


class PipeCarrier:
    """Writes the call straight into the pipe; only to open it, and to enroll before the first call, takes a task.

    While the shard moves to another node of a cluster the same batch is sent again, until it is given up.
    """

    def __init__(self, scripts: Scripts, script: str, shard: Shard) -> None:
        self._scripts = scripts
        self._pipe: Pipe | None = None
        self._script = script
        self._shard = shard
        self._landing: Landing | None = None
        self._arguments: list[Argument] = []
        self._count = 0
        self._by_source = False
        self._redirected = False
        self._opening: asyncio.Task[None] | None = None

    def carry(self, operations: list[Operation], landing: Landing) -> None:
        self._landing = landing
        self._arguments = _flat(operations)
        self._count = len(operations)
        self._by_source = self._redirected = False
        server = self._scripts.servers.known(self._shard)
        if server is not None and server.hot.ready and self._scripts.is_enrolled(self._shard):
            self._pipe = server.hot
            self._send(server.hot)
        else:
            self._pipe = None
            self._opening = asyncio.get_running_loop().create_task(self._open())

    def abort(self, why: str) -> None:
        self._scripts.servers.doubt()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            self._land(StoreUnavailable(why))
        elif self._pipe is not None:
            self._pipe.abort(why)

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])

    async def _open(self, pause: float = 0) -> None:
        failure: StoreError | None = None
        pipe: Pipe | None = None
        try:
            if pause:
                await asyncio.sleep(pause)
            await self._scripts.ensure_enrolled(self._shard)
            pipe = (await self._scripts.servers.holder(self._shard)).hot
            await pipe.open()
        except StoreError as error:
            failure = error
        if self._opening is not asyncio.current_task():
            return  # given up, and another batch is under way: before Python 3.12 drivers may swallow a cancellation
        self._opening = None
        if failure is not None or pipe is None:
            self._scripts.servers.doubt()
            self._land(failure or StoreUnavailable(NO_REPLY))
        else:
            self._pipe = pipe
            self._send(pipe)

    def _send(self, pipe: Pipe) -> None:
        make = self._scripts.by_source if self._by_source else self._scripts.by_digest
        pipe.call(make(self._script, self._shard, self._arguments), self._arrive)

    def _arrive(self, reply: Any) -> None:
        if isinstance(reply, StoreError):
            self._scripts.servers.doubt()
            self._land(reply)
        elif not isinstance(reply, ReplyError):
            self._take(reply)
        else:
            self._refused(str(reply))

    def _refused(self, text: str) -> None:
        if text.startswith("NOSCRIPT") and not self._by_source and self._pipe is not None:
            # Nothing ran: the cache was flushed, or this is another server than before. EVAL fills it again.
            self._by_source = True
            self._send(self._pipe)
        elif is_moving(text) and self._scripts.servers.several:
            pause = MOVING_SECONDS
            if text.startswith("MOVED"):
                self._scripts.servers.moved(self._shard, text)
                pause, self._redirected = pause if self._redirected else 0, True
            self._opening = asyncio.get_running_loop().create_task(self._open(pause))
        else:
            self._land(self._scripts.refused(text))

    def _take(self, replies: Any) -> None:
        if not is_reply(replies) or len(replies) != self._count or not all(map(is_reply, replies)):
            if self._pipe is not None:
                self._pipe.abort(NO_REPLY)  # the true one may still come, and is nobody's
            self._land(StoreUnavailable(NO_REPLY))
            return
        if any(reply[0] == b"error" and b"READONLY" in reply[1] for reply in replies):
            self._scripts.leave()
        self._land(replies)

    def _land(self, outcome: list[Reply] | StoreError) -> None:
        landing, self._landing = self._landing, None
        if landing is not None:
            landing(outcome)
