"""Deliveries: what a webhook is to be told of, shared out among the pods. Who sends it is not known here.

Each event is taken by one pod at a time, for a lease; a pod that dies lets go of it when the lease runs out. So each is
told at least once, as long as the feed still held it when its turn came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tracker.errors import StoreUnavailable
from tracker.models import Event
from tracker.store.connection import fault_of
from tracker.store.feed import event_of
from tracker.store.keys import Shard
from tracker.store.scripts import Scripts, together

__all__ = ["Deliveries", "Delivery", "Outcome"]

logger = logging.getLogger(__name__)

WAITING = 100_000
"""Events that wait in a shard at most; further ones stay in the feed, which keeps a bounded number."""
KEPT_MS = 2 * 86_400_000
"""How long the copy of an event is kept after it was taken last: longer than anybody waits to try again."""
PARKED_MS = 7 * 86_400_000
"""How long one that was given up is kept for people to look at."""


class Delivery(NamedTuple):
    """An event to tell, which is ours until the lease ends. The first ``attempt`` is 1."""

    shard: int
    id: str
    attempt: int
    flat: Sequence[bytes]

    @property
    def event(self) -> Event:
        """What to tell. Its id is the same at every attempt, and no other event's."""
        fields = dict(zip(self.flat[::2], self.flat[1::2], strict=True))
        return event_of(f"evt_{self.shard}_{self.id}", fields)


class Outcome(NamedTuple):
    """What came of one: told; to be tried again ``later``, after so many seconds; or ``parked``: given up."""

    delivery: Delivery
    kind: Literal["told", "later", "parked"]
    seconds: float = 0


class Deliveries:
    """Raises StoreUnavailable or StoreFault; a change may then still have happened."""

    def __init__(self, scripts: Scripts, types: Sequence[str], lease_seconds: float) -> None:
        self._scripts = scripts
        self._types = tuple(types)
        self._lease_ms = round(lease_seconds * 1000)
        self._begun: set[Shard] = set()
        self._faulty: set[Shard] = set()

    async def take(self, most: int) -> tuple[list[Delivery], bool]:
        """Some that are due, ``most`` of them per shard, and whether there is more to look at.

        What happened before the very first call is not told. Shards that cannot be reached, or are at fault, are left
        out as long as others are not: what is taken of those is ours already. A fault is logged once.
        """
        results = await asyncio.gather(
            *(self._take(shard, most) for shard in self._scripts.shards), return_exceptions=True
        )
        deliveries: list[Delivery] = []
        more = False
        errors: list[BaseException] = []
        for shard, result in zip(self._scripts.shards, results, strict=True):
            if isinstance(result, BaseException):
                errors.append(result)
                self._note(shard, result)
            else:
                deliveries += result[0]
                more = more or result[1]
                self._faulty.discard(shard)
        if len(errors) == len(results):
            raise errors[0]
        return deliveries, more

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Notes what came of them."""
        by_shard: dict[int, list[Outcome]] = {}
        for outcome in outcomes:
            by_shard.setdefault(outcome.delivery.shard, []).append(outcome)
        await together(self._settle(self._scripts.shards[shard], group) for shard, group in by_shard.items())

    async def _take(self, shard: Shard, most: int) -> tuple[list[Delivery], bool]:
        # A group that is missing later on went with the store's content: all that it holds then is new.
        start = "0" if shard in self._begun else "$"
        state, gone, *rows = await self._scripts.run(
            "take", shard, most, self._lease_ms, WAITING, KEPT_MS, start, *self._types
        )
        self._begun.add(shard)
        if gone:
            logger.error(
                "webhooks: %d events of shard %d were given up untold: nobody tried in time, or the store dropped them",
                gone,
                shard.number,
            )
        taken = [Delivery(shard.number, row[0].decode(), int(row[1]), row[2:]) for row in rows]
        return taken, state == b"more"

    def _note(self, shard: Shard, error: BaseException) -> None:
        """One line when a shard begins to be at fault; one that is away is told of by the sweeper."""
        if isinstance(error, StoreUnavailable):
            return
        if shard not in self._faulty:
            logger.error("webhooks: cannot take the events of shard %d: %s", shard.number, error)
        self._faulty.add(shard)

    async def _settle(self, shard: Shard, outcomes: Sequence[Outcome]) -> None:
        arguments: list[str | int] = []
        for delivery, kind, seconds in outcomes:
            duration = PARKED_MS if kind == "parked" else round(seconds * 1000)
            arguments += (3, delivery.id, kind, duration)
        for reply in await self._scripts.run("settle", shard, *arguments):
            if reply[0] == b"error":
                raise fault_of(reply[1].decode(errors="replace"))
