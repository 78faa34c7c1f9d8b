"""Heartbeats: what a process has to tell of all its runs, and when. Neither thread nor task, clock nor connection.

Whoever carries it out (a thread in `thread.py`, a task in `task.py`) asks `next`, sends the errand or waits, and tells
`answered` or `failed`. Runs that are due about the same time share one call. While the server is away nothing is sent
but one probe per backoff, however many runs there are.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from tracker.client import calls
from tracker.client.errors import TrackerClientError, Unavailable, UnexpectedAnswer
from tracker.client.lease import Errand, Lease, Lost
from tracker.client.retries import backoff
from tracker.models import BATCH_TARGETS, HeartbeatBatchAnswer

__all__ = ["Heartbeats", "Loss"]

logger = logging.getLogger("tracker.client")

SHORTEST_TIMEOUT_SECONDS = 0.5
SHORTEST_BACKOFF_SECONDS = 0.2

Loss = tuple[Callable[[Lost], None], Lost]
"""Whom to tell of a loss, and of which."""


class Heartbeats:
    """The leases of one client. ``timeout``: seconds that an errand's answer may take, at most."""

    def __init__(self, timeout: float, chance: Callable[[], float] = random.random) -> None:
        self._timeout = timeout
        self._chance = chance
        self._failures = 0
        self._open_at = float("-inf")
        self._closing = False
        self._leases: dict[Lease, None] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to keep alive or to tell."""
        return bool(self._leases)

    @property
    def leases(self) -> list[Lease]:
        return list(self._leases)

    @property
    def timeout(self) -> float:
        """Seconds for the answer of the next errand: a server that is stuck must not use up a whole TTL."""
        shortest = min((lease.period for lease in self._leases), default=self._timeout)
        return min(self._timeout, max(SHORTEST_TIMEOUT_SECONDS, shortest))

    def add(self, lease: Lease) -> None:
        self._leases[lease] = None

    def close(self, now: float) -> None:
        """Ends every lease. Nobody will wait long for that to be told: tries come one upon the other."""
        self._closing = True
        self._open_at = min(self._open_at, now + SHORTEST_BACKOFF_SECONDS)
        for lease in self._leases:
            lease.end()

    def abandon(self) -> None:
        """Nothing more is to be told of any: the process is another one."""
        for lease in self._leases:
            lease.abandon()
        self._leases.clear()

    def next(self, now: float) -> Errand | float | None:
        """What to send now; else how many seconds to wait, or None until somebody says more."""
        for lease in self.leases:
            lease.expire(now)
            if lease.over and not lease.busy:
                del self._leases[lease]
        if now < self._open_at:
            return self._open_at - now if self._leases else None
        if any(lease.beats(now) and now >= lease.next_beat for lease in self._leases) and (batch := self._batch(now)):
            return batch
        # The one that was tried longest ago goes first, so that none that fails is in the way of the others.
        for lease in sorted(self._leases, key=lambda lease: lease.tried_at):
            if errand := lease.errand(now):
                return errand
        moments = [moment for lease in self._leases if (moment := lease.wake_at(now)) is not None]
        return max(0.001, min(moments) - now) if moments else None

    def answered(self, errand: Errand, answer: Any, sent_at: float) -> list[Loss]:
        """Takes an answer in; what is to be told to whom."""
        try:
            errand.answered(answer, sent_at)
        except (KeyError, TypeError, ValueError) as error:
            return self.failed(errand, UnexpectedAnswer(f"No answer of a tracker: {error!r}"), sent_at)
        if self._failures:
            logger.info("the tracker answers again")
        self._failures = 0
        return self._losses()

    def failed(self, errand: Errand, error: TrackerClientError, now: float) -> list[Loss]:
        """Takes a failure in; what is to be told to whom."""
        errand.failed(error, now)
        if not isinstance(error, errand.settled_by):
            self._failures += 1
            if self._failures == 1:
                logger.warning("%s; trying again until it does", error)
            longest = max(SHORTEST_BACKOFF_SECONDS, min((lease.ttl for lease in self._leases), default=30) / 6)
            delay = backoff(self._failures, min(longest, 5.0), self._chance)
            asked = error.retry_after if isinstance(error, Unavailable) and error.retry_after else 0
            self._open_at = now + (SHORTEST_BACKOFF_SECONDS if self._closing else max(delay, min(asked, longest)))
        return self._losses()

    def _losses(self) -> list[Loss]:
        losses = []
        for lease in self._leases:
            losses += [(lease.on_lost, lost) for lost in lease.news if lease.on_lost is not None]
            lease.news.clear()
        return losses

    def _batch(self, now: float) -> Errand | None:
        """One heartbeat for all that are due, and with them those that were not just beaten; None for less than two.

        Beats are at least three quarters of a period apart. Of two groups that keep that, one is always more than a
        third behind the other, and joins it: so all come to beat together, whenever they began.
        """
        beating = [lease for lease in self._leases if lease.beats(now) and now >= lease.beat_at + lease.period / 3]
        beating.sort(key=lambda lease: lease.next_beat)
        held = {lease.session_id: lease for lease in beating[:BATCH_TARGETS] if lease.session_id is not None}
        if len(held) < 2:
            return None

        def answered(answer: HeartbeatBatchAnswer, sent_at: float) -> None:
            missing = set(answer["missing"]["sessionIds"])
            stopping = set(answer.get("stopRequested", {}).get("sessionIds", ()))
            for session_id, lease in held.items():
                if session_id in missing:
                    lease.missing(session_id, sent_at)
                elif session_id == lease.session_id:
                    lease.renewed(sent_at)
                    lease.stop_requested = lease.stop_requested or session_id in stopping

        return Errand(calls.heartbeat_many(session_ids=held), answered, lambda error, now: None)
