"""Coalescing: calls that arrive while one is in flight go out together in the next.

A round trip through the driver costs several times what Redis does for it, so one carries up to 128 operations. A lone
call waits for nothing: it takes off at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from tracker.errors import StoreError, StoreUnavailable

__all__ = ["Batcher", "Operation", "Reply", "within"]

T = TypeVar("T")

Operation = Sequence[str | bytes | int]
Reply = list[Any]

BATCH = 128
"""Most operations in one call: some 0.5 ms of Redis's time."""
CAPACITY = 8192
"""Most operations that wait; beyond, callers are refused at once instead of being kept until they give up."""


async def within(seconds: float, answer: Awaitable[T]) -> T:
    """The answer, or StoreUnavailable when it takes longer. Only this caller gives up: the flight goes on."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise StoreUnavailable(f"the store did not answer within {seconds:g} s") from None


class Batcher:
    """Carries operations of one kind to one shard, in the order of their arrival, each with a reply of its own.

    ``send`` gets a list of operations and gives as many replies. If it raises, all of them fail alike. Operations whose
    caller has given up before take-off are not sent.
    """

    def __init__(self, send: Callable[[list[Operation]], Awaitable[list[Reply]]]) -> None:
        self._send = send
        self._waiting: deque[tuple[Operation, asyncio.Future[Reply]]] = deque()
        self._flights: asyncio.Task[None] | None = None

    def submit(self, operation: Operation) -> asyncio.Future[Reply]:
        """The reply to come. Cancel it to give up. Raises StoreUnavailable when too many wait already."""
        if len(self._waiting) >= CAPACITY:
            raise StoreUnavailable("too many requests are waiting for the store")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        if self._flights is None:
            self._flights = asyncio.create_task(self._fly())
        return future

    async def close(self) -> None:
        """Fails what still waits, and lets the flight under way come home."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable("the tracker is stopping"))
        if self._flights is not None:
            await self._flights

    async def _fly(self) -> None:
        try:
            while batch := self._board():
                try:
                    replies = await self._send([operation for operation, _ in batch])
                except StoreError as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(type(error)(*error.args))
                except BaseException:
                    for _, future in batch:
                        future.cancel()
                    raise
                else:
                    for (_, future), reply in zip(batch, replies, strict=True):
                        if not future.done():
                            future.set_result(reply)
        finally:
            self._flights = None

    def _board(self) -> list[tuple[Operation, asyncio.Future[Reply]]]:
        batch: list[tuple[Operation, asyncio.Future[Reply]]] = []
        while self._waiting and len(batch) < BATCH:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch
