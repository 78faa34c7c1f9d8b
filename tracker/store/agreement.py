"""Do hashes and indices agree? Looks at a whole store that is in use, in small steps, and mends the indices.

Each step is one script, which sees hash and indices at one moment: what it finds is so, however busy the store is.
Only the counts per agent and trigger type need more: the hashes are counted one after the other, then the feed tells
who came and went meanwhile, and the script that compares looks up what it has told in the last moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from tracker.errors import PositionLost
from tracker.store.ids import shard_of_text
from tracker.store.inspection import read_infos
from tracker.store.keys import Shard
from tracker.store.scan import SCAN, stretches
from tracker.store.scripts import Scripts

__all__ = ["MEANINGS", "Agreement", "Finding", "agreement"]

T = TypeVar("T")

BATCH = 100
"""Sessions, tasks, entries or counts looked at per script: some 1 ms of Redis's time."""
EVENTS = 1000
ATTEMPTS = 20
"""How often counts are compared again, each time with what has happened meanwhile, before that is given up."""

MEANINGS = {
    "sessions": "not in the index of all sessions, or at another place",
    "deadlines": "not in the index of deadlines, or at another one: it would never expire",
    "agent": "not in the index of its agent, or at another place",
    "task": "not to be found by its task",
    "rival": "another session of the same task is found by it",
    "broken": "fields are missing that every session has",
    "failed": "the key, or one that belongs to it, is of a wrong type",
    "stale": "an index entry that leads to no session",
    "lost": "gone before its time, without an end event",
    "stray": "a task that leads to no session of it",
    "misplaced": "a task that belongs into another shard, where nobody who asks for it finds this",
    "count": "a wrong count",
}
NOT_MENDED = frozenset({"rival", "misplaced", "broken", "failed"})
"""What only a person can decide: whom to end, or what a key of another's making means."""


class Finding(NamedTuple):
    """``kind``: one of MEANINGS. ``key``: which one, without the shard's prefix."""

    shard: int
    kind: str
    key: str
    mended: bool

    @property
    def meaning(self) -> str:
        return MEANINGS[self.kind]

    @property
    def mendable(self) -> bool:
        return self.kind not in NOT_MENDED


class Agreement(NamedTuple):
    """``sessions``: hashes seen. ``uncounted``: the shards whose counts could not be compared: too much happens there,
    they have come to another server meanwhile, or of some session nobody can tell what it counts for.
    """

    sessions: int
    findings: list[Finding]
    uncounted: list[int]


async def agreement(scripts: Scripts, *, mend: bool, tell: Callable[[int], None] = lambda keys: None) -> Agreement:
    """Looks, and mends if it may; ``tell`` hears now and then how many keys have been seen.

    Raises StoreUnavailable, with whatever was mended by then, and SchemaMismatch.
    """
    look = _Look(scripts, mend)
    await look.at_keys(tell)
    await look.at_indices()
    await look.at_counts()
    return Agreement(sum(len(one.sessions) for one in look.shards), list(look.findings), look.uncounted)


class _Seen:
    """What one look has seen of a shard: agent and trigger type of each session, how many each has, and which agents
    have an index. ``position``: the newest event that it takes into account. ``whole``: whether it is all there is.
    """

    def __init__(self, shard: Shard, position: bytes) -> None:
        self.shard = shard
        self.position = position
        self.whole = True
        self.sessions: dict[bytes, tuple[bytes, bytes]] = {}
        self.counts: Counter[tuple[bytes, bytes]] = Counter()
        self.agents: set[bytes] = set()

    def add(self, session_id: bytes, agent: bytes, trigger: bytes) -> None:
        if session_id not in self.sessions:
            self.sessions[session_id] = agent, trigger
            self.counts.update(((b"agents", agent), (b"triggers", trigger)))

    def drop(self, session_id: bytes) -> None:
        if whose := self.sessions.pop(session_id, None):
            self.counts.subtract(((b"agents", whose[0]), (b"triggers", whose[1])))


class _Look:
    def __init__(self, scripts: Scripts, mend: bool) -> None:
        self.shards: list[_Seen] = []
        self.findings: dict[Finding, None] = {}
        self.uncounted: list[int] = []
        self._scripts = scripts
        self._mend = mend
        self._mode = "mend" if mend else "look"

    async def at_keys(self, tell: Callable[[int], None]) -> None:
        """The hashes and task keys, as SCAN comes to them; from here on the feed has to tell of changes.

        Of a shard that comes to another server meanwhile nobody knows what SCAN has not come to.
        """
        for shard in self._scripts.shards:
            newest = await self._scripts.command("XREVRANGE", shard.events, "+", "-", "COUNT", 1, shard=shard)
            self.shards.append(_Seen(shard, newest[0][0] if newest else b"0-0"))
        places, seen = await self._places(), 0
        async for shard, keys in stretches(self._scripts, "session", "task", "agent"):
            one = self.shards[shard.number]
            await self._sessions(one, [name for kind, name in keys if kind == "session"])
            await self._tasks(one, [name for kind, name in keys if kind == "task"])
            one.agents.update(name for kind, name in keys if kind == "agent")
            tell(seen := seen + len(keys))
        for one, before, after in zip(self.shards, places, await self._places(), strict=True):
            one.whole = one.whole and before == after

    async def at_indices(self) -> None:
        """Agents mostly have few sessions in a shard: many of their indices go into one step."""
        for one in self.shards:
            names = [b"sessions", b"deadlines", *(b"agent:" + agent for agent in sorted(one.agents))]
            done, place = 0, (b"", b"")
            while done < len(names):
                some = names[done : done + BATCH]
                (_, ended, *rest), found = await self._run("check_indices", one, BATCH, *place, *some)
                done, place = done + int(ended), (rest[0], rest[1])
                for name, session_id, kind in zip(found[::3], found[1::3], found[2::3], strict=True):
                    self._note(one, kind, b" ".join(filter(None, (name, session_id))))

    async def at_counts(self) -> None:
        for one in self.shards:
            if not one.whole:
                self.uncounted.append(one.shard.number)
                continue
            names = set(one.counts)
            for which in (b"agents", b"triggers"):
                names |= {(which, name) async for name in self._members(one, which)}
            try:
                # Once, when all have been seen: from then on the counts are those as of an event, to the last session.
                await self._catch_up(one)
                for some in _batches(sorted(names)):
                    await self._counts(one, some)
            except (PositionLost, TimeoutError):
                self.uncounted.append(one.shard.number)

    async def _places(self) -> list[tuple[str, Any]]:
        """The server that holds each shard, and which process that is."""
        infos = await read_infos(self._scripts)
        holders = [await self._scripts.servers.holder(one.shard) for one in self.shards]
        return [(holder.name, infos.get(holder.name, {}).get("run_id")) for holder in holders]

    async def _members(self, one: _Seen, which: bytes) -> AsyncIterator[bytes]:
        key, cursor = one.shard.prefix.encode() + which, 0
        while True:
            cursor, members = await self._scripts.command("ZSCAN", key, cursor, "COUNT", SCAN, shard=one.shard)
            for member in members:
                yield member[0] if isinstance(member, tuple | list) else member
            cursor = int(cursor)
            if cursor == 0:
                return

    async def _sessions(self, one: _Seen, ids: list[bytes]) -> None:
        for some in _batches([session_id for session_id in ids if session_id not in one.sessions]):
            _, *rows = await self._run("check_sessions", one, *some)
            for session_id, agent, trigger, *kinds in rows:
                if agent and trigger:
                    one.add(session_id, agent, trigger)
                else:
                    one.whole = False
                for kind in kinds:
                    self._note(one, kind, b"session:" + session_id)

    async def _tasks(self, one: _Seen, tasks: list[bytes]) -> None:
        for some in _batches(tasks):
            _, *found = await self._run("check_tasks", one, *some)
            for task, kind in zip(found[::2], found[1::2], strict=True):
                self._note(one, kind, b"task:" + task)
            for task in some:
                if shard_of_text(task.decode(errors="replace"), len(self.shards)) != one.shard.number:
                    self._note(one, b"misplaced", b"task:" + task)

    async def _counts(self, one: _Seen, names: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises PositionLost or TimeoutError when more happens than can be told apart."""
        for _ in range(ATTEMPTS):
            arguments = [part for name in names for part in (*name, one.counts[name])]
            state, *wrong = await self._run("check_counts", one, one.position, *arguments)
            if state == b"counted":
                for which, name in zip(wrong[::2], wrong[1::2], strict=True):
                    self._note(one, b"count", which + b" " + name)
                return
            await self._catch_up(one)
        raise TimeoutError

    async def _catch_up(self, one: _Seen) -> None:
        """Applies what the feed tells to what was seen; what was seen later than it happened stays as it was seen."""
        while True:
            start = one.position if one.position != b"0-0" else b"-"
            rows = await self._scripts.command("XRANGE", one.shard.events, start, "+", "COUNT", EVENTS, shard=one.shard)
            if one.position != b"0-0":
                if not rows or rows[0][0] != one.position:
                    raise PositionLost("the feed does not reach back far enough")
                rows = rows[1:]
            if not rows:
                return
            for position, event in rows:
                one.position = position
                if event[b"type"] == b"session.created":
                    one.add(event[b"id"], event[b"agent"], event[b"trigger"])
                elif event[b"type"] == b"session.ended":
                    one.drop(event[b"id"])

    async def _run(self, script: str, one: _Seen, *arguments: bytes | int) -> Any:
        return await self._scripts.run(script, one.shard, self._mode, *arguments)

    def _note(self, one: _Seen, kind: bytes, key: bytes) -> None:
        name = kind.decode()
        mended = self._mend and name not in NOT_MENDED
        self.findings[Finding(one.shard.number, name, key.decode(errors="replace"), mended)] = None


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
