"""History: what a run left behind, and the questions that every judgement asks of it.

A call without a definite answer (503, time-out, cut connection) may have happened, until everything that was broken
meanwhile had been whole again for a while, or not at all. So two bounds are kept for each session: how long it lived at
least, by what was acknowledged, and how long at most, by everything that may have been. Times are ms since 1970.

A cluster may lose what a master acknowledged in its last moments. What is in the store in the end is what has happened,
so an answer of those moments, on a shard of that master, is as good as none: the call may have happened, or not.
"""

from __future__ import annotations

import bisect
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tests.torture.journal import read_journal
from tests.torture.plan import Plan
from tracker.store.ids import shard_of_id, shard_of_text

__all__ = ["LAG_MS", "MARGIN_MS", "Call", "Clock", "Fault", "History", "Life"]

LAG_MS = 1000
"""A replica that its master has not been cut off from has what that acknowledged so long ago."""

MARGIN_MS = 20
"""Clocks are read to the ms, and a call's times a little before and after it."""
USUAL_LOAD = 3
"""Processes per core that a run alone stays below, on two cores."""
SETTLE_MS = 2000
"""Within so long a call that reached a pod has reached the store too, or never will: twice the store's deadline."""


@dataclass(frozen=True)
class Call:
    """``asked``: what for, by the names of ``client.py``. ``lost``: why the answer cannot be used, or ''."""

    kind: str
    asked: Mapping[str, Any]
    began: float
    ended: float
    status: int | None = 200
    answer: Any = None
    pod: int = 0
    client: int = 0
    lost: str = ""
    mono: float = 0

    @property
    def definite(self) -> bool:
        return self.status is not None and self.status < 500

    @property
    def sent(self) -> bool:
        return self.lost not in ("ConnectError", "ConnectTimeout")

    @property
    def unsure(self) -> bool:
        return self.sent and not self.definite

    @property
    def done(self) -> bool:
        """Whether it did what it asked for."""
        return self.status == 200 and any(self.answer.get(word) for word in ("updated", "deleted", "session"))

    @property
    def named(self) -> str | None:
        """The session that it names, if it does."""
        name: str | None = self.asked.get("guard") or self.asked.get("id")
        return name

    def __str__(self) -> str:
        asked = {name: value for name, value in self.asked.items() if value is not None}
        return f"{self.kind} {asked} of client {self.client} at {self.began:.0f}-{self.ended:.0f}"


@dataclass(frozen=True)
class Fault:
    """``hits``: pods by name, redis, or a node of the cluster. ``down``: when certainly nobody could be served.

    ``load``: how many processes wanted each of the machine's cores, in the minute before. ``shards``: those of a master
    that was hit; then nobody else's were down. ``losses``: (from, to) when it may have acknowledged what its successor
    has never heard of.
    """

    kind: str
    hits: Sequence[str]
    began: float
    ended: float
    down: Sequence[float] | None = None
    load: float = 0
    shards: Sequence[int] | None = None
    losses: Sequence[Sequence[float]] = ()

    def concerns(self, shard: int) -> bool:
        """Whether it may have kept a shard from being served."""
        return self.shards is None or shard in self.shards


@dataclass(frozen=True)
class Clock:
    """A shard's clock as the witness saw it."""

    shard: int
    pulse: float
    held: float | None = None
    hold_end: float | None = None
    swept: float | None = None


@dataclass(eq=False)
class Life:
    """A session by the feed. ``renewals``: (began, ended) of calls that certainly renewed it; ``chances`` also of those
    that may have, with the latest time at which."""

    id: str
    shard: int
    agent: str
    task: str | None
    tag: str | None
    runtime: str | None
    ttl: float
    created: float
    ended: float = math.inf
    reason: str = ""
    renewals: list[tuple[float, float]] = field(default_factory=list)
    chances: list[tuple[float, float, Call]] = field(default_factory=list)

    def exists(self, began: float, ended: float) -> bool:
        """Whether it was there, live or not, at some moment in between."""
        return self.created <= ended + MARGIN_MS and self.ended >= began - MARGIN_MS

    @property
    def least_deadline(self) -> float:
        """Its deadline by all that was acknowledged."""
        return max([self.created, *(began for began, _ in self.renewals)]) + self.ttl

    def least_deadline_at(self, moment: float) -> float:
        """The same by what was acknowledged by then."""
        count = bisect.bisect_right(self._by_end, moment)
        return max(self.created, self._latest_begin[count - 1] if count else 0) + self.ttl

    @cached_property
    def _by_end(self) -> list[float]:
        self.renewals.sort(key=lambda renewal: renewal[1])
        return [ended for _, ended in self.renewals]

    @cached_property
    def _latest_begin(self) -> list[float]:
        latest, begins = 0.0, []
        for began, _ in sorted(self.renewals, key=lambda renewal: renewal[1]):
            latest = max(latest, began)
            begins.append(latest)
        return begins

    def surely_lived(self, began: float, ended: float) -> bool:
        """Whether it was live from then to then without a doubt."""
        return (
            self.created < began - MARGIN_MS
            and self.ended > ended + MARGIN_MS
            and ended < self.least_deadline_at(began) - MARGIN_MS
        )


@dataclass(frozen=True)
class History:
    """``answers``: every call as its caller saw it. ``shards``: of each the ``events`` of its feed and the deadlines of
    the ``living``. ``audit``: what it found."""

    plan: Plan
    answers: Sequence[Call]
    faults: Sequence[Fault]
    clocks: Sequence[Clock]
    shards: Sequence[Mapping[str, Any]]
    now: float
    audit: str = ""

    @classmethod
    def read(cls, directory: Path) -> Self:
        plan = Plan.read(directory / "plan.json")
        calls = [Call(**entry) for entry in _entries(directory.glob("client*.jsonl"))]
        calls = [Call(**{**vars(call), "lost": call.lost or ""}) for call in calls]
        faults = [Fault(**entry) for entry in _entries([directory / "faults.jsonl"]) if "hits" in entry]
        clocks = [Clock(**entry) for entry in _entries([directory / "clocks.jsonl"])]
        store = json.loads((directory / "store.json").read_text())
        calls.sort(key=lambda call: call.began)
        return cls(plan, calls, faults, clocks, store["shards"], store["now"], store["audit"])

    @cached_property
    def calls(self) -> list[Call]:
        """The same as evidence: the fate of those that a failover may have undone is unknown."""
        return [
            replace(call, status=None, answer=None, lost="Undone") if call.definite and self.undone(call) else call
            for call in self.answers
        ]

    def undone(self, call: Call) -> bool:
        """Whether a failover may have undone what a call did, or what it saw."""
        return any(self._lost(shard, call.began, call.ended) for shard in self._reach(call))

    def concerned(self, call: Call, fault: Fault) -> bool:
        """Whether a fault may have kept a call from being answered, by the shards that it may have touched."""
        return any(map(fault.concerns, self._reach(call)))

    def lost(self, shard: int, moment: float) -> bool:
        """Whether a failover may have undone what happened then."""
        return self._lost(shard, moment, moment)

    def _lost(self, shard: int, began: float, ended: float) -> bool:
        losses = self._losses.get(shard, ())
        return any(began <= until + MARGIN_MS and ended >= since - LAG_MS for since, until in losses)

    @cached_property
    def _losses(self) -> dict[int, list[Sequence[float]]]:
        losses: defaultdict[int, list[Sequence[float]]] = defaultdict(list)
        for fault in self.faults:
            for shard in fault.shards or ():
                losses[shard] += fault.losses
        return losses

    def _reach(self, call: Call) -> Iterable[int]:
        """The shards that a call may have touched."""
        asked, count = call.asked, self.plan.shards
        tasks, ids = [*asked.get("tasks", ())], [*asked.get("ids", ())]
        if asked.get("task"):
            tasks.append(asked["task"])
        elif call.named:
            ids.append(call.named)
        elif call.kind == "create" and call.definite:
            ids.append(call.answer["session"]["id"])
        found = {*(shard_of_text(task, count) for task in tasks), *(shard_of_id(name, count) for name in ids)}
        return range(count) if not found or None in found else {shard for shard in found if shard is not None}

    def of(self, *kinds: str) -> Iterator[Call]:
        return (call for call in self.calls if call.kind in kinds)

    @cached_property
    def lives(self) -> dict[str, Life]:
        """Sessions by id; the first created and the first ended event of each count. What renewed them is noted."""
        lives: dict[str, Life] = {}
        for number, shard in enumerate(self.shards):
            for event in shard["events"]:
                if event["type"] == "session.created" and event["id"] not in lives:
                    names = {name: event[name] for name in ("id", "agent", "task", "tag", "runtime", "ttl")}
                    lives[event["id"]] = Life(**names, shard=number, created=event["at"])
                elif event["type"] == "session.ended" and event["id"] in lives:
                    life = lives[event["id"]]
                    if not life.reason:
                        life.ended, life.reason = event["at"], event["reason"]
        self._note_renewals(lives)
        return lives

    @cached_property
    def tasks(self) -> dict[str, list[Life]]:
        return _by_task(self.lives.values())

    @cached_property
    def crowding(self) -> float:
        """How many times longer than on a machine of its own a run may wait for the processor."""
        return max([1.0, *(fault.load / USUAL_LOAD for fault in self.faults)])

    def named(self, call: Call) -> Life | None:
        """The session that a call names, if there ever was one."""
        return self.lives.get(call.named or "")

    def meant(self, call: Call, task: str | None = None) -> list[Life]:
        """Those that a call by task may have met."""
        lives = self.tasks.get(task or call.asked.get("task") or "", ())
        return [life for life in lives if life.exists(call.began, call.ended)]

    def settled(self, moment: float) -> float:
        """By when a call that was given up then has happened, or never will."""
        moment += SETTLE_MS
        for fault in sorted(self.faults, key=lambda fault: fault.began):
            if fault.began <= moment <= fault.ended + SETTLE_MS:
                moment = fault.ended + SETTLE_MS
        return moment

    @cached_property
    def holds(self) -> dict[int, list[tuple[float, float]]]:
        """Of each shard: (from when on, until when) nobody was ended for silence; by their begin."""
        holds: defaultdict[int, set[tuple[float, float]]] = defaultdict(set)
        for clock in self.clocks:
            if clock.held is not None and clock.hold_end is not None:
                holds[clock.shard].add((clock.held, clock.hold_end))
        return {shard: sorted(found) for shard, found in holds.items()}

    @cached_property
    def pulses(self) -> dict[int, list[float]]:
        """Those that no failover may have undone."""
        pulses: defaultdict[int, set[float]] = defaultdict(set)
        for clock in self.clocks:
            if not self.lost(clock.shard, clock.pulse):
                pulses[clock.shard].add(clock.pulse)
        return {shard: sorted(found) for shard, found in pulses.items()}

    @cached_property
    def sweeps(self) -> dict[int, list[float]]:
        """Those that no failover may have undone."""
        sweeps: defaultdict[int, set[float]] = defaultdict(set)
        for clock in self.clocks:
            if clock.swept is not None and not self.lost(clock.shard, clock.swept):
                sweeps[clock.shard].add(clock.swept)
        return {shard: sorted(found) for shard, found in sweeps.items()}

    def greatest_deadline(self, life: Life, moment: float, but: Call | None = None) -> float:
        """The latest that a session can have lived to, by all that may have happened by then, but for one call."""
        beats = [min(latest, moment) for began, latest, call in life.chances if began <= moment and call is not but]
        deadline = max([life.created, *beats]) + life.ttl
        for held, hold_end in self.holds.get(life.shard, ()):
            if held < deadline + MARGIN_MS:
                deadline = max(deadline, hold_end)
        return deadline

    def may_have_lived(self, life: Life, call: Call) -> bool:
        """Whether it can have been live at some moment of a call, not counting what the call itself did."""
        return (
            life.exists(call.began, call.ended)
            and self.greatest_deadline(life, call.ended, but=call) >= call.began - MARGIN_MS
        )

    def _note_renewals(self, lives: Mapping[str, Life]) -> None:
        tasks = _by_task(lives.values())

        def note(call: Call, candidates: list[Life], sure: bool) -> None:
            latest = call.ended if call.definite else self.settled(call.ended)
            found = [life for life in candidates if life.exists(call.began, latest)]
            for life in found:
                life.chances.append((call.began, latest, call))
            if sure and len(found) == 1:
                found[0].renewals.append((call.began, call.ended))

        for call in self.of("beat", "create"):
            if call.kind == "create" and call.asked["policy"] != "reuse":
                continue
            if call.unsure or call.status == 200:
                named = [lives[call.named]] if call.named and call.named in lives else []
                by_task = [] if call.named else tasks.get(call.asked["task"] or "", [])
                if call.unsure or call.done:
                    note(call, named or by_task, call.done)
        for call in self.of("batch"):
            if call.unsure or call.status == 200:
                missing = call.answer["missing"] if call.definite else {"taskIds": [], "sessionIds": []}
                for task in set(call.asked["tasks"]) - set(missing["taskIds"]):
                    note(call, tasks.get(task, []), call.definite)
                for name in set(call.asked["ids"]) - set(missing["sessionIds"]):
                    note(call, [lives[name]] if name in lives else [], call.definite)


def _by_task(lives: Iterable[Life]) -> dict[str, list[Life]]:
    tasks: defaultdict[str, list[Life]] = defaultdict(list)
    for life in lives:
        if life.task is not None:
            tasks[life.task].append(life)
    return tasks


def _entries(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from read_journal(path)
