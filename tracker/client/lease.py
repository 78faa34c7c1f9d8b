"""Lease: what is known of one run, and what is still to be told of it.

No I/O, no clock, no lock: moments are given (seconds, monotonic), and whoever owns the lease sees to it that one thing
happens at a time. It hands out errands, a call each, and learns what became of them.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tracker.client import calls
from tracker.client.calls import Call, NewSession
from tracker.client.errors import Conflict, Invalid, NotFound, Refused, TooLarge, TrackerClientError, Unavailable
from tracker.client.errors import IdempotencyMismatch as Mismatch
from tracker.models import PROGRESS_LENGTH, Deleted, HeartbeatAnswer, OneSession, Session, Updated

__all__ = ["BEATS_PER_TTL", "Errand", "Lease", "Lost"]

logger = logging.getLogger("tracker.client")

BEATS_PER_TTL = 3
PROGRESS_GAP_SECONDS = 1.0
"""Progress told faster than this is told by its latest word."""
DEFAULT_TTL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a run has no session any more.

    ``expired``: no heartbeat came through within the TTL, or ``max_silence`` held them back. ``replaced``: another
    session, ``session``, is the task's live one. ``ended``: somebody deleted it or cleaned it up, or the store lost it.
    ``refused``: the server would not register it, and ``error`` says why. ``session_id`` is the lost one's, None for a
    run that never had one.
    """

    reason: Literal["expired", "replaced", "ended", "refused"]
    session_id: str | None = None
    session: Session | None = None
    error: TrackerClientError | None = None


@dataclass(frozen=True, slots=True)
class Errand:
    """A call on behalf of a lease, and who is told what became of it, and when it was sent (monotonic seconds).

    ``settled_by``: errors that are an answer; after any other it is to be tried again, but not at once.
    """

    call: Call[Any]
    answered: Callable[[Any, float], None]
    failed: Callable[[TrackerClientError, float], None]
    settled_by: tuple[type[TrackerClientError], ...] = ()


class Lease:
    """One run's hold on its session.

    ``fields`` are what it is registered with. ``max_silence``: seconds for which the work may tell nothing before
    nothing is told of it; None for any time.
    """

    def __init__(
        self,
        fields: NewSession,
        now: float,
        *,
        reregister: bool = False,
        max_silence: float | None = None,
        on_lost: Callable[[Lost], None] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._fields = fields
        self._key = uuid.uuid4().hex
        calls.create_session(idempotency_key=self._key, **fields)  # what can never be sent is raised here
        self._reregister = reregister
        self._max_silence = max_silence
        self._chance = chance
        self._attempts = 0
        self._sent = False  # whether a registration may have arrived
        self._arrived = False  # whether one has, for all that is known: there was no answer that says what it made
        self._unconfirmed = False
        self._doubted = False
        self._provider: str | None = None
        self._provider_due = False
        self._progress: str | None = None
        self._progress_due = False
        self._progress_at = now
        self._heard_at = now
        self._silenced = False
        self._ending = False
        self._given_up = False  # lost, and not to be registered anew
        self.on_lost = on_lost
        self.ttl = fields.get("ttl_seconds") or DEFAULT_TTL_SECONDS
        self.beat_at = now
        """When the last heartbeat that came through was sent."""
        self.next_beat = now
        self.tried_at = now
        self.busy = False
        """Whether an errand of its own is under way."""
        self.session: Session | None = None
        """As it was when it was registered."""
        self.lost: Lost | None = None
        """Until it is registered anew."""
        self.stop_requested = False
        self.over = False
        """Whether nothing is left to be told."""
        self.news: list[Lost] = []
        """Losses that `on_lost` has not been told of."""

    @property
    def session_id(self) -> str | None:
        return self.session["id"] if self.session else None

    @property
    def period(self) -> float:
        return self.ttl / BEATS_PER_TTL

    # --- what the work tells ------------------------------------------------------------------------------------------

    def touch(self, now: float) -> None:
        """The work gets on."""
        self._heard_at = now
        if self._silenced:
            self._silenced = False
            self.next_beat = now
            logger.info("run %s reports again: its heartbeats go on", self.name)

    def set_progress(self, text: str, now: float) -> None:
        """Kept until it is told; a later one takes its place. What is no valid text or too long is made to fit."""
        text = text.encode("utf-8", "replace").decode()
        self._progress = text if len(text) <= PROGRESS_LENGTH else text[: PROGRESS_LENGTH - 1] + "…"
        self._progress_due = True
        self.touch(now)

    def set_provider_session(self, provider_session_id: str, now: float) -> None:
        """Kept until it is told. Raises ValueError for a run without a task: the API knows them by task only; TypeError
        or Invalid for what is no text that can be sent.
        """
        if (task_id := self._fields.get("task_id")) is None:
            raise ValueError("a run without a task_id cannot have a provider session")
        calls.set_provider_session(task_id, provider_session_id)  # what can never be sent is raised here
        self._provider = provider_session_id
        self._provider_due = True
        self.touch(now)

    def end(self) -> None:
        """The work is over."""
        self._ending = True
        if self._given_up or (self.session is None and not self._sent and not self.busy):
            self.over = True

    def cut_short(self) -> None:
        """The work is over, and so is whoever carried out its errand: nobody knows what became of that."""
        self._sent |= self.busy
        self.busy = False
        self.end()

    def expire(self, now: float) -> None:
        """At the end of a run: what the server could not be told within the TTL, it has found out by itself."""
        if self._ending and not self.busy and now - self.beat_at >= self.ttl:
            self.over = True

    def abandon(self) -> None:
        """Never tell anything again: the run is another process's."""
        self.over = True

    @property
    def name(self) -> str:
        return self._fields.get("task_id") or self.session_id or "without a task"

    @property
    def settled(self) -> bool:
        """Whether it is registered, or never will be."""
        return self.session is not None or self._given_up or self.over

    @property
    def provider_due(self) -> bool:
        """Whether the provider's session is still to be told."""
        return self._provider_due and not self.over and not self._given_up

    def told_provider(self, provider_session_id: str) -> bool:
        """Whether the session is this run's and has it."""
        told = self._provider == provider_session_id and not self._provider_due
        return told and self.session is not None and not self._given_up

    # --- what is to be told -------------------------------------------------------------------------------------------

    def silent(self, now: float) -> bool:
        """Whether the work has told nothing for too long; then nothing is told of it either."""
        silent = self._max_silence is not None and not self._ending and now - self._heard_at >= self._max_silence
        if silent and not self._silenced:
            self._silenced = True
            logger.warning("run %s has told nothing for %g s: no more heartbeats", self.name, self._max_silence)
        return silent

    def beats(self, now: float) -> bool:
        """Whether heartbeats are to be sent for it, due or not."""
        quiet = self.over or self._given_up or self._ending or self._doubted or self.session is None
        return not quiet and not self.silent(now)

    def wake_at(self, now: float) -> float | None:
        """When there will be something to tell; None while there is nothing until the work says more."""
        if self.over or self.busy or self._given_up or self.silent(now):
            return None
        if self._ending or self.session is None or self._doubted or self._provider_due or self._unconfirmed:
            return now
        return min(self.next_beat, self._progress_at) if self._progress_due else self.next_beat

    def errand(self, now: float) -> Errand | None:
        """What to tell now, other than a heartbeat with nothing to say. The caller sends it, or sets `busy` back."""
        if self.over or self.busy or self._given_up or self.silent(now):
            return None
        errand = self._next(now)
        if errand is not None:
            self.busy = True
            self.tried_at = now
        return errand

    def _next(self, now: float) -> Errand | None:
        if self.session is None:
            return self._registration()
        if self._doubted and not self._ending:
            return self._inquiry()
        if self._provider_due:
            return self._provider_report()
        if self._progress_due and (self._ending or now >= self._progress_at):
            return self._heartbeat(self._progress)
        if self._ending:
            return Errand(calls.delete_session(self.session["id"]), self._deleted, self._not_deleted)
        if self._unconfirmed or now >= self.next_beat:
            return self._heartbeat(None)
        return None

    # --- what became of it --------------------------------------------------------------------------------------------

    def _registration(self) -> Errand:
        self._attempts += 1
        late = self._attempts > 1
        # The run is over: who holds the task by now keeps it. With another body than the first one's, a mismatch tells
        # that one of those has arrived; then their body again is answered with what came of it, and changes nothing.
        asking = self._ending and not self._arrived and self._fields.get("on_conflict") != "reject"
        fields: NewSession = {**self._fields, "on_conflict": "reject"} if asking else self._fields

        def answered(answer: OneSession, sent_at: float) -> None:
            session = answer["session"]
            calls.heartbeat(session["id"])  # raises where that is no id
            self.ttl = float(session["ttlSeconds"])
            self._settle()
            self.session = session
            self.lost = None
            # A repeated registration answers with what the first one made, long as it may be gone.
            self._unconfirmed = late
            self._provider_due = self._provider is not None
            self._progress_due = self._progress is not None
            self._renew(sent_at)

        def failed(error: TrackerClientError, now: float) -> None:
            self._settle()
            self._sent |= error.sent if isinstance(error, Unavailable) else not isinstance(error, Refused)
            if asking and isinstance(error, Mismatch):
                self._arrived = True
            elif isinstance(error, Conflict):
                self._lose(Lost("replaced", None, error.session, error))
            elif isinstance(error, Invalid | TooLarge | Mismatch):
                self._lose(Lost("refused", error=error))
            else:
                self._give_up_after_ttl(error, now)

        call = calls.create_session(idempotency_key=self._key, **fields)
        return Errand(call, answered, failed, (Conflict, Invalid, TooLarge, Mismatch))

    def _heartbeat(self, progress: str | None) -> Errand:
        session_id = self._held

        def answered(answer: HeartbeatAnswer, sent_at: float) -> None:
            self._settle()
            if progress is not None:
                self._progress_at = sent_at + PROGRESS_GAP_SECONDS
                self._progress_due = progress != self._progress
            if answer["updated"]:
                self.stop_requested = self.stop_requested or answer.get("stopRequested", False)
                self.renewed(sent_at)
            else:
                self.missing(session_id, sent_at)

        def failed(error: TrackerClientError, now: float) -> None:
            self._settle()
            if progress is not None and self._hopeless(error):
                self._drop(f"progress {progress!r}", error)
                self._progress_due = False
            self._give_up_after_ttl(error, now)

        settled_by = () if progress is None else (Invalid, TooLarge)
        return Errand(calls.heartbeat(session_id, progress=progress), answered, failed, settled_by)

    def _provider_report(self) -> Errand:
        provider, task_id, session_id = self._provider or "", self._fields.get("task_id") or "", self._held

        def answered(answer: Updated, now: float) -> None:
            self._settle()
            if provider == self._provider:
                self._provider_due = False
            if not answer["updated"]:
                self._provider_due = False
                self.missing(session_id, now)

        def failed(error: TrackerClientError, now: float) -> None:
            self._settle()
            if isinstance(error, Conflict):
                self._provider_due = False
                self._replaced(error.session)
            elif self._hopeless(error):
                self._drop("provider session", error)
                self._provider_due = False
            self._give_up_after_ttl(error, now)

        call = calls.set_provider_session(task_id, provider, session_id=session_id)
        return Errand(call, answered, failed, (Conflict, Invalid, TooLarge))

    def _inquiry(self) -> Errand:
        """Who holds the task now?"""
        task_id = self._fields.get("task_id") or ""

        def answered(answer: OneSession, now: float) -> None:
            self._settle()
            self._doubted = False
            if answer["session"]["id"] != self.session_id:
                self._replaced(answer["session"])
            else:
                self.next_beat = now

        def failed(error: TrackerClientError, now: float) -> None:
            self._settle()
            if isinstance(error, NotFound):
                self._doubted = False
                self._gone(now)

        return Errand(calls.read_by_task(task_id), answered, failed, (NotFound,))

    def _deleted(self, answer: Deleted, now: float) -> None:
        self._settle()
        self.over = True

    def _not_deleted(self, error: TrackerClientError, now: float) -> None:
        self._settle()
        if not isinstance(error, Unavailable):
            self._drop("end", error)
            self.over = True
        self._give_up_after_ttl(error, now)

    def renewed(self, sent_at: float) -> None:
        """A heartbeat sent then came through."""
        self._unconfirmed = False
        self._renew(sent_at)

    def _renew(self, sent_at: float) -> None:
        self.beat_at = max(self.beat_at, sent_at)
        # Up to a quarter earlier than a third of the TTL, never later.
        self.next_beat = sent_at + self.period * (0.75 + self._chance() / 4)

    def missing(self, session_id: str, now: float) -> None:
        """No live session has that id (which may be an earlier one of this run's)."""
        if session_id != self.session_id or self.over or self._given_up:
            return
        if self._ending:
            self.over = True
        elif self._fields.get("task_id") is None:
            self._gone(now)
        else:
            self._doubted = True

    def _gone(self, now: float) -> None:
        """The session is, and nobody else holds the task."""
        if self._unconfirmed:
            self._begin_anew()  # what an unanswered registration made had ended before the run knew of it
            return
        overdue = now - self.beat_at >= self.ttl
        self._lose(Lost("expired" if overdue else "ended", self.session_id))
        if self._reregister:
            self._begin_anew()

    def _begin_anew(self) -> None:
        # Whoever took the task meanwhile keeps it.
        self._fields = {**self._fields, "on_conflict": "reject"}
        self._key = uuid.uuid4().hex
        self._attempts = 0
        self._sent = self._arrived = self._unconfirmed = self._given_up = False
        self.session = None

    def _replaced(self, session: Session) -> None:
        self._lose(Lost("replaced", self.session_id, session))

    def _lose(self, lost: Lost) -> None:
        if self.over:
            return
        self.lost = lost
        self._given_up = True
        if self._ending:
            self.over = True
            return
        self.news.append(lost)
        logger.warning("run %s lost its session: %s", self.name, lost.reason)

    def _settle(self) -> None:
        self.busy = False

    def _give_up_after_ttl(self, error: TrackerClientError, now: float) -> None:
        self.expire(now)
        if self._ending and not (self.session or self._sent):
            self.over = True

    def _hopeless(self, error: TrackerClientError) -> bool:
        """Whether the server will never take it. At the end of a run nothing may keep it from being ended."""
        return isinstance(error, Invalid | TooLarge) or (self._ending and not isinstance(error, Unavailable))

    @property
    def _held(self) -> str:
        assert self.session is not None
        return self.session["id"]

    def _drop(self, what: str, error: TrackerClientError) -> None:
        logger.warning("run %s: its %s is not told: %s", self.name, what, error)
