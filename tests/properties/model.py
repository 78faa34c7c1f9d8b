"""The tracker as one reads its contract: dictionaries and a few lines of plain Python, no Redis, no concurrency.

Time is the model's own, in seconds, and moves only when it is told to. What a call answers is said in short: an outcome
and, where the answer tells a session, its id.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tracker.models import IDEMPOTENCY_SECONDS, Cleanup, CreateSession, EndReason, EventType, ListSessions, Target

__all__ = ["Answer", "Model", "Run", "Told"]

PATIENCE = 3.0
"""Without a pulse for longer (s), there was an outage."""

Answer = tuple[str, str | None]
"""What came of a call, and the id of the session that its answer tells, if it tells one."""
Told = tuple[EventType, EndReason | None, str | None, str | None, bool]
"""An event: type, reason, and of the session as it was then: provider session, progress, whether asked to stop."""


@dataclass
class Run:
    """A session, live or not yet swept."""

    id: str
    request: CreateSession
    ttl: float
    started: float
    beat: float
    provider: str | None = None
    progress: str | None = None
    stop: float | None = None

    @property
    def due(self) -> float:
        return self.beat + self.ttl


@dataclass
class Promise:
    """What an Idempotency-Key stands for."""

    request: CreateSession
    run: Run
    until: float


@dataclass
class Model:
    """``default_ttl`` (s) is also the longest hold. ``told``: each session's events, in order."""

    default_ttl: float
    now: float = 0
    pulse: float | None = None
    held: float = 0
    resumed: float = 0
    hold_end: float = 0
    runs: dict[str, Run] = field(default_factory=dict)
    promises: dict[str, Promise] = field(default_factory=dict)
    told: defaultdict[str, list[Told]] = field(default_factory=lambda: defaultdict(list))

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def silence(self) -> bool:
        """Whether an outage is not over yet, or nobody has said so."""
        return self.pulse is not None and self.now - self.pulse > PATIENCE

    @property
    def cutoff(self) -> float:
        """Who was due by then is dead."""
        moment = self.pulse if self.pulse is not None and self.silence else self.now
        return self.held if moment < self.hold_end else moment

    def say_pulse(self) -> None:
        if self.pulse is not None and self.silence:
            left = self.hold_end - self.pulse
            if left <= 0:
                self.held = self.pulse
            self.hold_end = self.now + max(min(self.now - self.pulse, self.default_ttl), left)
            self.resumed = self.now
        self.pulse = self.now

    def advance(self, seconds: float) -> None:
        """With pods that are there: once there was a pulse, there is one at any time."""
        if self.pulse is not None:
            self.say_pulse()
            self.pulse += seconds
        self.now += seconds

    def outage(self, seconds: float) -> None:
        self.now += seconds

    # --- who lives ----------------------------------------------------------------------------------------------------

    def lives(self, run: Run) -> bool:
        return run.due > self.cutoff

    def live(self) -> list[Run]:
        return [run for run in self.runs.values() if self.lives(run)]

    def find(self, target: Target) -> Run | None:
        """The live session meant."""
        for run in self.live():
            if target.value == (run.id if target.kind == "id" else run.request.task_id):
                return run
        return None

    def silent_for(self, run: Run) -> float:
        """How long a session was silent (s), not counting an outage that a hold makes good, nor the hold."""
        if self.cutoff == self.now or (not self.silence and run.beat >= self.resumed):
            return self.now - run.beat
        return max(0, self.cutoff - run.beat)

    # --- calls --------------------------------------------------------------------------------------------------------

    def create(self, request: CreateSession, key: str | None, new_id: Callable[[], str]) -> Answer:
        """``new_id``: how the store called what it made, asked for only when it must have made something."""
        promise = self.promises.get(key or "")
        if promise and promise.until > self.now:
            if promise.request != request:
                return "mismatch", None
            return "repeated", promise.run.id
        other = next((run for run in self.runs.values() if run.request.task_id == request.task_id is not None), None)
        if other and self.lives(other):
            match request.on_conflict or "supersede":
                case "reuse":
                    other.beat = self.now
                    self._promise(key, request, other)
                    return "reused", other.id
                case "supersede" if other.request.agent_id == request.agent_id:
                    self._end(other, "replaced")
                case "replace":
                    self._end(other, "replaced")
                case _:
                    return "conflict", other.id
        elif other:
            self._end(other, "expired")
        run = Run(new_id(), request, request.ttl_seconds or self.default_ttl, self.now, self.now)

        self.runs[run.id] = run
        self._tell(run, "session.created")
        self._promise(key, request, run)
        return "created", run.id

    def heartbeat(self, target: Target, guard: str | None = None, progress: str | None = None) -> Answer:
        run = self.find(target)
        if run is None or guard not in (None, run.id):
            return ("conflict", run.id) if run else ("missing", None)
        run.beat = self.now
        if progress is not None:
            run.progress = progress
        return "renewed", run.id

    def set_provider_session(self, target: Target, provider: str, guard: str | None) -> Answer:
        run = self.find(target)
        if run is None or guard not in (None, run.id):
            return ("conflict", run.id) if run else ("missing", None)
        if run.provider != provider:
            run.provider = provider
            self._tell(run, "session.updated")
        return "done", None

    def request_stop(self, target: Target) -> Answer:
        run = self.find(target)
        if run is None:
            return "missing", None
        if run.stop is None:
            run.stop = self.now
            self._tell(run, "session.updated")
        return "done", None

    def delete(self, target: Target, guard: str | None) -> Answer:
        run = self.find(target)
        if run is None or guard not in (None, run.id):
            return ("conflict", run.id) if run else ("missing", None)
        self._end(run, "deleted")
        return "done", None

    def sweep(self) -> int:
        """How many it ended."""
        self.say_pulse()
        dead = [run for run in self.runs.values() if not self.lives(run)]
        for run in dead:
            self._end(run, "expired")
        return len(dead)

    def cleanup(self, request: Cleanup, *, spare_siblings: bool) -> int:
        """How many it ended."""
        age = None if request.max_age_minutes is None else request.max_age_minutes * 60
        swept = 0
        if not request.agent_id and (age is not None or not request.runtime_instance_id):
            swept = self.sweep()
            if age is None:
                return swept
        chosen = [
            run
            for run in self.runs.values()
            if request.agent_id in (None, run.request.agent_id)
            and request.runtime_instance_id in (None, run.request.runtime_instance_id)
            and (age is None or self.silent_for(run) >= age)
        ]
        if spare_siblings and age is None and request.runtime_instance_id is None:
            chosen = [run for run in chosen if not self.lives(run)]
        for run in chosen:
            self._end(run, "cleaned" if self.lives(run) else "expired")
        return swept + len(chosen)

    def listed(self, query: ListSessions) -> set[str]:
        wanted = query.model_dump(include={"agent_id", "task_id", "trigger_type", "runtime_instance_id"})
        return {
            run.id
            for run in self.live()
            if all(value is None or value == getattr(run.request, name) for name, value in wanted.items())
        }

    # --- sums ---------------------------------------------------------------------------------------------------------

    def created(self) -> int:
        return len(self.told)

    def ended(self) -> Counter[str]:
        return Counter(reason for events in self.told.values() for _, reason, *_ in events if reason)

    def _end(self, run: Run, reason: EndReason) -> None:
        del self.runs[run.id]
        self._tell(run, "session.ended", reason)

    def _tell(self, run: Run, kind: EventType, reason: EndReason | None = None) -> None:
        self.told[run.id].append((kind, reason, run.provider, run.progress, run.stop is not None))

    def _promise(self, key: str | None, request: CreateSession, run: Run) -> None:
        if key:
            self.promises[key] = Promise(request, run, self.now + IDEMPOTENCY_SECONDS)
