"""Ledger: what was asked of the store and answered, session by session; and what is wrong with what became of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from tracker.store.ids import shard_of_id

__all__ = ["LAG_MS", "End", "Ledger", "Verdict"]

LAG_MS = 1000
"""What a master acknowledged so long before it was killed, its replica has: see `docs/cluster.md`."""
CLOCK_MS = 20
"""Clocks are read to the ms, and a call's times a little before and after it."""
TOLD = 5
"""Faults that are told in full, of each kind."""


class End(NamedTuple):
    """An end event, ``at`` in ms."""

    id: str
    at: int
    reason: str


class Verdict(NamedTuple):
    """``faults``: sentences. ``undone``: acknowledged calls that the lost master took with it. ``ends``: by reason."""

    faults: list[str]
    undone: int
    ends: dict[str, int]


class _Entry:
    """``since``: when its latest acknowledged renewal was sent; ``earlier``: the one before it, which is safe."""

    __slots__ = ("answered", "earlier", "may_end", "must_end", "since", "ttl")

    def __init__(self, ttl: float, since: float, answered: float) -> None:
        self.ttl = ttl
        self.since = self.earlier = since
        self.answered = answered
        self.may_end: tuple[str, ...] = ()
        self.must_end = 0.0


class Ledger:
    """All times in ms by the clock that Redis has too. ``losses``: (shards, when) of each master that was killed."""

    def __init__(self, shards: int) -> None:
        self.losses: list[tuple[Collection[int], float]] = []
        self._shards = shards
        self._entries: dict[str, _Entry] = {}
        self._unsure_tasks: set[str] = set()
        self._missed: list[tuple[str, float, float]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def created(self, session_id: str, ttl: float, began: float, ended: float) -> None:
        """A create was acknowledged."""
        self._entries[session_id] = _Entry(ttl, began, ended)

    def unsure(self, task: str) -> None:
        """A create of this task had no answer: there may be a session more of it."""
        self._unsure_tasks.add(task)

    def renewed(self, session_id: str, began: float, ended: float) -> None:
        entry = self._entries[session_id]
        entry.earlier, entry.since, entry.answered = entry.since, began, ended

    def missed(self, session_id: str, began: float, ended: float) -> None:
        """A call was told that this session is not there."""
        self._missed.append((session_id, began, ended))

    def may_end(self, session_id: str, reason: str) -> None:
        """It was asked for: told before the call is sent."""
        self._entries[session_id].may_end += (reason,)

    def must_end(self, session_id: str, answered: float) -> None:
        """That was acknowledged."""
        self._entries[session_id].must_end = answered

    def judge(
        self, created: Iterable[tuple[str, str]], ends: Iterable[End], living: Collection[str], now: float
    ) -> Verdict:
        """``created``: (id, task) of the feed's events since it was last known to hold just the ledger's sessions;
        ``living``: ids of the sessions there are, none of them overdue.
        """
        told: defaultdict[str, list[End]] = defaultdict(list)
        for end in ends:
            told[end.id].append(end)
        tasks = dict(created)
        self._undone = 0
        faults: Counter[str] = Counter()
        sentences: list[str] = []
        for kind, text in self._faults(tasks, told, living, now):
            faults[kind] += 1
            if faults[kind] <= TOLD:
                sentences.append(f"{kind}: {text}")
        sentences += [f"{kind}: {count} in all" for kind, count in faults.items() if count > TOLD]
        reasons = Counter(end.reason for found in told.values() for end in found)
        return Verdict(sentences, self._undone, dict(sorted(reasons.items())))

    def _faults(
        self, tasks: dict[str, str], told: dict[str, list[End]], living: Collection[str], now: float
    ) -> Iterator[tuple[str, str]]:
        for name, entry in self._entries.items():
            ends, lives = told.get(name, ()), name in living
            if not lives and not ends and name not in tasks and self._lost(name, entry.since, entry.answered):
                self._undone += 1
                continue
            if len(ends) != (0 if lives else 1):
                yield "not one end", f"{name}, which {'lives' if lives else 'is gone'}, has {len(ends)} end events"
            doubtful = self._lost(name, entry.since, entry.answered)
            due = (entry.earlier if doubtful else entry.since) + entry.ttl
            for end in ends:
                if end.reason == "expired" and end.at < due - CLOCK_MS:
                    yield "false expiry", f"{name} ended {due - end.at:.0f} ms before its deadline"
                elif end.reason != "expired" and end.reason not in entry.may_end:
                    yield "wrong end", f"{name} ended as {end.reason}, which nobody asked for"
            if lives and entry.must_end:
                if self._lost(name, entry.must_end, entry.must_end):
                    self._undone += 1
                else:
                    yield "no end", f"{name} lives, though its end was acknowledged"
            if lives and entry.since + entry.ttl < now:
                yield "no expiry", f"{name} lives, though its deadline was {now - entry.since - entry.ttl:.0f} ms ago"
        for name in living:
            if name not in self._entries and tasks.get(name) not in self._unsure_tasks:
                yield "unknown session", f"{name} lives, which nobody created"
        for name in told.keys() - self._entries.keys():
            if tasks.get(name) not in self._unsure_tasks or len(told[name]) > 1:
                yield "unknown end", f"{name} has {len(told[name])} end events, and nobody created it"
        for name, began, ended in self._missed:
            if not self._lost(name, began, ended) and not any(end.at <= ended + CLOCK_MS for end in told.get(name, ())):
                yield "not found", f"{name} was not found at {ended:.0f}, though it had not ended"

    def _lost(self, name: str, began: float, ended: float) -> bool:
        """Whether the master of its shard may have taken what it acknowledged then with it."""
        return any(
            began <= killed + CLOCK_MS and ended >= killed - LAG_MS and shard_of_id(name, self._shards) in shards
            for shards, killed in self.losses
        )
