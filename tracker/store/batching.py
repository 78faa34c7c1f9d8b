"""Coalescing: calls that arrive while one is in flight go out together in the next.

A round trip costs several times what Redis does for one operation, so it carries up to 128. A lone call waits for
nothing: it takes off with the next turn of the event loop, together with all that came in the same turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tracker.errors import StoreError, StoreFault, StoreUnavailable

__all__ = ["Batcher", "Carrier", "Landed", "Operation", "Reply"]

Operation = Sequence[str | bytes | int]
Reply = list[Any]
Landed = Callable[[float, int, list[Reply] | StoreError], None]
"""Is told of each batch: seconds in flight, operations, and the replies or why there are none."""

BATCH = 128
"""Most operations in one call: some 1 ms of Redis's time."""
CAPACITY = 8192
"""Most operations that wait; beyond, callers are refused at once instead of being kept until they give up."""


class Carrier(Protocol):
    """Takes batches to the store, one at a time."""

    def carry(self, operations: list[Operation], landing: Callable[[list[Reply] | StoreError], None]) -> None:
        """Sends a batch; calls ``landing`` once, with as many replies, or with why there are none."""

    def abort(self, why: str) -> None:
        """Gives the batch under way up: ``landing`` gets a StoreUnavailable."""

    async def close(self) -> None: ...


def _nobody(seconds: float, size: int, outcome: list[Reply] | StoreError) -> None:
    pass


class Batcher:
    """Carries operations of one kind to one shard, in the order of their arrival, each with a reply of its own.

    Operations whose caller gave up before take-off are not sent. One timer watches over all: ``timeout`` seconds after
    an operation came its caller gets StoreUnavailable, and a flight that is out for that long is given up.
    """

    def __init__(self, carrier: Carrier, timeout: float, landed: Landed = _nobody) -> None:
        self._carrier = carrier
        self._timeout = timeout
        self._landed = landed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Operation, asyncio.Future[Reply]]] = deque()
        self._due: deque[tuple[float, asyncio.Future[Reply]]] = deque()
        self._flight: list[tuple[Operation, asyncio.Future[Reply]]] = []
        self._took_off = 0.0
        self._boarding = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, operation: Operation) -> asyncio.Future[Reply]:
        """The reply to come; it raises StoreUnavailable when time is up. Cancel it to give up.

        Raises StoreUnavailable at once when too many wait already.
        """
        if len(self._waiting) >= CAPACITY:
            raise StoreUnavailable("too many requests are waiting for the store")
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append((operation, future))
        deadline = self._loop.time() + self._timeout
        self._due.append((deadline, future))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._check_time)
        if not self._boarding and not self._flight:
            self._boarding = True
            self._loop.call_soon(self._take_off)
        return future

    async def close(self) -> None:
        """Fails what still waits, and lets the flight under way come home or run out of time."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable("the tracker is stopping"))
        if flying := [future for _, future in self._flight if not future.done()]:
            await asyncio.wait(flying, timeout=self._timeout)
        if self._timer is not None:
            self._timer.cancel()
        await self._carrier.close()

    def _take_off(self) -> None:
        self._boarding = False
        waiting, flight = self._waiting, self._flight
        while waiting and len(flight) < BATCH:
            entry = waiting.popleft()
            if not entry[1].done():
                flight.append(entry)
        if flight:
            self._took_off = self._loop.time()
            try:
                self._carrier.carry([operation for operation, _ in flight], self._land)
            except (TypeError, ValueError) as error:
                self._land(StoreFault(f"what is no text cannot be sent to the store: {error}"))

    def _land(self, outcome: list[Reply] | StoreError) -> None:
        flight, self._flight = self._flight, []
        self._landed(self._loop.time() - self._took_off, len(flight), outcome)
        if isinstance(outcome, StoreError):
            for _, future in flight:
                if not future.done():
                    future.set_exception(type(outcome)(*outcome.args))
        else:
            for (_, future), reply in zip(flight, outcome, strict=True):
                if not future.done():
                    future.set_result(reply)
        due = self._due
        while due and due[0][1].done():
            due.popleft()
        if self._waiting and not self._boarding:
            self._take_off()

    def _check_time(self) -> None:
        now, due = self._loop.time(), self._due
        why = f"the store did not answer within {self._timeout:g} s"
        while due and (due[0][1].done() or due[0][0] <= now):
            _, future = due.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable(why))
        self._timer = self._loop.call_at(due[0][0], self._check_time) if due else None
        if self._flight and self._took_off + self._timeout <= now:
            self._carrier.abort(why)
        elif self._flight and self._timer is None:
            self._timer = self._loop.call_at(self._took_off + self._timeout, self._check_time)
