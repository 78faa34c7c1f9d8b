"""Ending what died: the sweep that every pod runs every few seconds, and the cleanup that callers ask for.

And the pulse, by which all tell an outage: that nobody could heartbeat must kill nobody.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple

from tracker.errors import StoreError, StoreFault
from tracker.models import Cleanup
from tracker.settings import Settings
from tracker.store.keys import Shard
from tracker.store.lanes import Lanes
from tracker.store.scripts import Argument, Scripts, together
from tracker.store.snapshot import timestamp

__all__ = ["Sweeper"]

logger = logging.getLogger(__name__)

BATCH = 100
"""Sessions ended per script call: some 2 ms of Redis's time, so that heartbeats get in between."""
PULSE_SECONDS = 1.0
PULSES_PER_SECOND = 256
"""What a pod may send: beyond so many shards pulses are further apart, and patience is longer."""
PATIENCE_PULSES = 3
"""How many pulses must fail to come until that is an outage: a busy machine pauses for a second now and then."""
SAME_OUTAGE_MS = 2000
CLEANUPS = 8
"""Cleanups at once. Each asks all shards, and a fleet that boots sends thousands of them in the same second."""
CLEANUP_PATIENCE_SECONDS = 45.0
"""Longest wait of a cleanup for its turn: less than proxies wait for an answer."""


class _Swept(NamedTuple):
    """What one sweep of a shard ended, and what it could not end, with the reason for the first."""

    ended: int
    failed: int
    why: str


class Sweeper:
    """Sweeps all shards, once by ``sweep``, for ever by ``run``, which also sends the pulse."""

    def __init__(self, settings: Settings, scripts: Scripts) -> None:
        self._scripts = scripts
        self._interval = settings.sweep_interval_seconds
        self._pulse_interval = max(PULSE_SECONDS, len(scripts.shards) / PULSES_PER_SECOND)
        self._longest_hold = round(settings.ttl_seconds * 1000)
        self._lost: set[Shard] = set()
        self._held_until = 0
        self._spare_siblings = settings.agent_cleanup == "expired"
        self._cleanups = Lanes(CLEANUPS, CLEANUP_PATIENCE_SECONDS)

    async def run(self) -> None:
        """Pulses and sweeps until cancelled. An unreachable store is waited out, and logged once per outage."""
        # Not one after the other: neither a sweep with much to end nor a shard that is lost must hold up a pulse.
        await together(
            self._repeat(work, shard, interval)
            for shard in self._scripts.shards
            for work, interval in ((self._pulse_in_turn, self._pulse_interval), (self._sweep_in_turn, self._interval))
        )

    async def pulse(self) -> None:
        """Says that a pod is there to take heartbeats. After an outage this begins the hold; each pod logs it once."""
        await self._pulse_some(self._scripts.shards, skip_if_younger_ms=0)

    async def sweep(self) -> int:
        """Ends every session whose TTL has run out; how many.

        Raises StoreUnavailable, or StoreFault when some could not be ended; the others are, then.
        """
        return self._total(await together(map(self._sweep_after_pulse, self._scripts.shards)))

    async def cleanup(self, request: Cleanup) -> int:
        """Ends the sessions that a cleanup asks for, but for those made after it came; how many this very call ended.

        Waits for its turn first, then works in batches, each with its own deadline. Raises StoreUnavailable when no
        turn comes, or when the store goes away in between or refuses to write, and StoreFault when some sessions could
        not be ended; the others are, then.
        """
        came = monotonic()
        async with self._cleanups.turn():
            return self._total(await together(self._clean(shard, request, came) for shard in self._scripts.shards))

    async def _clean(self, shard: Shard, request: Cleanup, came: float) -> _Swept:
        filtered = request.agent_id or request.runtime_instance_id or request.max_age_minutes is not None
        if not filtered:
            return await self._sweep_after_pulse(shard)
        if request.max_age_minutes is None or request.agent_id:
            return await self._walk(shard, request, came)
        swept = await self._sweep_after_pulse(shard)
        walked = await self._walk(shard, request, came)
        # What one could not end the other could hardly either.
        return _Swept(swept.ended + walked.ended, max(swept.failed, walked.failed), swept.why or walked.why)

    async def _repeat(self, work: Callable[[Shard], Awaitable[None]], shard: Shard, interval: float) -> None:
        while True:
            try:
                await work(shard)
                self._found(shard)
            except StoreFault as error:
                logger.error("sweep: %s", error)
            except StoreError as error:
                self._miss(shard, error)
            except Exception:
                logger.exception("sweep failed")
            await asyncio.sleep(interval * random.uniform(0.9, 1.0))  # noqa: S311 - spreads pods, keeps no secret

    def _miss(self, shard: Shard, error: StoreError) -> None:
        """One line when the first shard is lost."""
        if not self._lost:
            logger.error("sweep: %s", error)
        self._lost.add(shard)

    def _found(self, shard: Shard) -> None:
        """One line when the last is back."""
        if shard in self._lost:
            self._lost.remove(shard)
            if not self._lost:
                logger.info("the store is back")

    async def _pulse_in_turn(self, shard: Shard) -> None:
        await self._pulse_some([shard], skip_if_younger_ms=round(self._pulse_interval * 500))

    async def _sweep_in_turn(self, shard: Shard) -> None:
        # Also notices a store that was emptied or replaced meanwhile.
        await self._scripts.enroll_one(shard)
        self._total([await self._sweep(shard, skip_if_younger_ms=round(self._interval * 500))])

    async def _sweep_after_pulse(self, shard: Shard) -> _Swept:
        await self._pulse_some([shard], skip_if_younger_ms=0)
        return await self._sweep(shard, skip_if_younger_ms=0)

    async def _pulse_some(self, shards: Sequence[Shard], skip_if_younger_ms: int) -> None:
        patience = round(self._pulse_interval * 1000 * PATIENCE_PULSES)
        replies = await together(
            self._batch("pulse", shard, skip_if_younger_ms, patience, self._longest_hold) for shard in shards
        )
        # Not only whoever began the hold tells of it: its reply may have come too late, as from a store that froze.
        holds = [tuple(map(int, reply)) for reply in replies if reply[0]]
        # Of an outage that several shards had one line is enough: their holds end within moments of each other.
        if holds and max(holds)[0] > self._held_until + SAME_OUTAGE_MS:
            self._held_until, began, ended = max(holds)
            logger.warning(
                "there was an outage from %s to %s: nobody who was alive then expires before %s",
                *map(timestamp, (began, ended, self._held_until)),
            )

    async def _sweep(self, shard: Shard, skip_if_younger_ms: int) -> _Swept:
        ended = failed = 0
        why = ""
        while True:
            reply = await self._batch("sweep", shard, BATCH, skip_if_younger_ms, failed)
            if reply[0] == b"skipped":
                break
            skip_if_younger_ms = 0
            looked_at, stuck = int(reply[2]), int(reply[3])
            ended += int(reply[1])
            failed += stuck
            why = why or reply[4].decode(errors="replace")
            if looked_at < BATCH:
                self._scripts.observer.swept(ended)
                if ended:
                    logger.info("swept %d expired sessions", ended)
                break
        return _Swept(ended, failed, why)

    async def _batch(self, script: str, shard: Shard, *arguments: Argument) -> Any:
        async with self._lane(script, shard):
            return await self._scripts.run(script, shard, *arguments)

    @asynccontextmanager
    async def _lane(self, script: str, shard: Shard) -> AsyncIterator[None]:
        """Around one script call. The wait for a lane does not count towards its deadline."""
        async with self._scripts.one_deadline():
            # Of the server, so that one that hangs keeps nobody from the others.
            server = await self._scripts.servers.holder(shard)
        async with (server.pulses if script == "pulse" else server.lanes).turn():
            yield
        self._cleanups.answered()

    async def _walk(self, shard: Shard, request: Cleanup, came: float) -> _Swept:
        only_agent = request.max_age_minutes is None and request.runtime_instance_id is None
        minutes = request.max_age_minutes
        filters = (
            "" if minutes is None else min(minutes, 10**9) * 60_000,
            request.runtime_instance_id or "",
            "expired" if self._spare_siblings and only_agent else "any",
        )
        place: tuple[str | bytes, str | bytes] = ("", "")
        last_started: str | bytes = ""
        ended = failed = 0
        why = ""
        while True:
            async with self._lane("cleanup", shard):
                waited = int((monotonic() - came) * 1000)
                state, started, session_id, last_started, n, stuck, problem = await self._scripts.run(
                    "cleanup", shard, request.agent_id or "", *place, BATCH, last_started, waited, *filters
                )
            ended += int(n)
            failed += int(stuck)
            why = why or problem.decode(errors="replace")
            if state == b"done":
                return _Swept(ended, failed, why)
            place = (started, session_id)

    def _total(self, shards: Sequence[_Swept]) -> int:
        """How many were ended. Raises when some could not be."""
        if failures := [shard for shard in shards if shard.failed]:
            count = sum(shard.failed for shard in failures)
            kind = type(self._scripts.refused(failures[0].why))
            raise kind(f"{count} sessions could not be ended: {failures[0].why}")
        return sum(shard.ended for shard in shards)
