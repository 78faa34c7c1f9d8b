"""AsyncBeater: the task that carries out the errands of `Heartbeats`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from tracker.client.calls import Call
from tracker.client.errors import TrackerClientError, Unavailable, UnexpectedAnswer
from tracker.client.heartbeats import Heartbeats, Loss
from tracker.client.lease import Errand, Lease

__all__ = ["AsyncBeater"]


class AsyncBeater:
    """As `Beater`, on the event loop. The task is there while a lease is, and `close` awaits it."""

    def __init__(
        self,
        send: Callable[[Call[Any], float], Awaitable[Any]],
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._timeout = timeout
        self._clock = clock
        self.heartbeats = Heartbeats(timeout)
        self.lock = contextlib.nullcontext()  # on one loop, nothing happens between two awaits
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        _EVERY.add(self)

    def forget(self) -> None:
        """In a forked child, where the loop that ran is not."""
        self.heartbeats.abandon()
        self.heartbeats = Heartbeats(self._timeout)
        self._changed = asyncio.Event()
        self._task = None

    def add(self, lease: Lease) -> None:
        """Keep it alive from now on."""
        self.heartbeats.add(lease)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._beat(), name="tracker-heartbeats")
        self.wake()

    def wake(self) -> None:
        """There may be something to tell."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def drop(self, lease: Lease) -> None:
        """As `Beater.drop`."""
        lease.cut_short()
        self.add(lease)

    async def close(self, patience: float) -> None:
        """Ends every lease, waits as long as that (seconds) for all to be told, and then tells nothing more."""
        self.heartbeats.close(self._clock())
        self.wake()
        task, self._task = self._task, None
        if task is not None and not task.done():
            await asyncio.wait([task], timeout=patience)
        self.heartbeats.abandon()
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)

    async def settle(self, lease: Lease, seconds: float, *, until: Callable[[], bool]) -> TrackerClientError | None:
        """As `Beater.settle`."""
        deadline = self._clock() + seconds
        while (left := deadline - self._clock()) > 0:
            if until():
                return None
            errand = lease.errand(self._clock())
            if errand is None:
                if not lease.busy:
                    return None
                await self._wait(left)
            elif error := await self._carry_out(errand, min(left, self._timeout)):
                return error
        return None

    async def _beat(self) -> None:
        while True:
            step = self.heartbeats.next(self._clock())
            if not self.heartbeats:
                return
            if isinstance(step, Errand):
                await self._carry_out(step, self.heartbeats.timeout)
            else:
                await self._wait(step)

    async def _wait(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _carry_out(self, errand: Errand, timeout: float) -> TrackerClientError | None:  # noqa: ASYNC109 - httpx's
        try:
            failure, losses = await self._attempt(errand, timeout)
        except BaseException:  # a cancellation above all: it may or may not have arrived
            errand.failed(Unavailable("The call was cut short"), self._clock())
            self.wake()
            raise
        for loss in losses:
            _tell(loss)
        return failure

    async def _attempt(
        self,
        errand: Errand,
        timeout: float,  # noqa: ASYNC109 - httpx's
    ) -> tuple[TrackerClientError | None, list[Loss]]:
        sent_at = self._clock()
        failure: TrackerClientError | None = None
        answer: Any = None
        try:
            answer = await self._send(errand.call, timeout)
        except TrackerClientError as error:
            failure = error
        except Exception as error:
            # Nobody's plan, a client that was closed maybe: for the runs it is one more reason to try again.
            failure = UnexpectedAnswer(f"The call could not be sent: {error!r}")
        if failure is None:
            losses = self.heartbeats.answered(errand, answer, sent_at)
        else:
            losses = self.heartbeats.failed(errand, failure, self._clock())
        self.wake()
        return failure, losses


def _tell(loss: Loss) -> None:
    """On the loop, but not within the heartbeats: what others raise is theirs."""
    callback, lost = loss
    asyncio.get_running_loop().call_soon(callback, lost)


_EVERY: weakref.WeakSet[AsyncBeater] = weakref.WeakSet()


def _forget_the_parents() -> None:
    for beater in list(_EVERY):
        beater.forget()


os.register_at_fork(after_in_child=_forget_the_parents)
