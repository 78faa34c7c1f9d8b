"""Resharding: gives a store that holds data more shards, while no pod is up.

A session lives in the shard of its task, so with another number of shards most must move; its id tells the shard that
it was made in, where `moved:<id>` says from then on where it is. Sessions without a task stay, but for those that an
Idempotency-Key made: they go where that key is looked for. Feed, counters and what webhooks wait for stay as well, and
nobody is told of anything, for nothing has happened to any session.

Each session moves in three steps, each of them one script in one slot, in which doing it again changes nothing: it is
put into its new shard, its id is forwarded, it is taken out of its old shard. So whoever is interrupted has only to
begin anew, and is done when a walk through all keys has found nothing left to move. Until then the record of the layout
says `4>16`, which no pod has, old or new.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from math import gcd
from typing import Any, NamedTuple

from tracker.errors import CannotReshard, SchemaMismatch, StoreFault
from tracker.store.ids import shard_of_id, shard_of_text
from tracker.store.keys import SCHEMA_VERSION, Shard
from tracker.store.scan import stretches
from tracker.store.scripts import Argument, Scripts, together, unfinished

__all__ = ["Resharded", "reshard"]

BATCH = 100
"""Sessions or records per script: some 2 ms of Redis's time."""
AT_ONCE = 64
"""Shards that are called at once."""
PATIENCE_MS = 3000
"""How old the pulse of a pod must be where none has said how old it may grow."""


class Resharded(NamedTuple):
    """``moved``: the sessions that this very run has moved. ``broken``: keys of sessions that are none, which stay."""

    before: int
    after: int
    moved: int = 0
    broken: tuple[str, ...] = ()


class Clock(NamedTuple):
    """Of a shard, in ms: see ``keys.py``. None where there never was one."""

    pulse: int | None
    patience: int | None
    held: int | None
    resumed: int | None
    hold_end: int | None


async def reshard(scripts: Scripts, tell: Callable[[int], None] = lambda moved: None) -> Resharded:
    """Gives the store as many shards as ``scripts`` has, or goes on with that; ``tell`` hears how many have moved.

    Raises CannotReshard, SchemaMismatch, and StoreUnavailable or StoreFault, after which it has to be run again.
    """
    after = len(scripts.shards)
    before, under_way = await _recorded(scripts)
    if under_way and under_way != f"{before}>{after}":
        raise SchemaMismatch(unfinished(under_way))
    if before > after:
        raise CannotReshard(f"the store has {before} shards, and can only get more")
    if before == after:
        return Resharded(before, after)
    await _pulses(scripts, before)
    move = _Move(scripts, before, tell)
    await move.begin()
    pulses = await _pulses(scripts, before)
    while await move.walk():
        pass
    if await _pulses(scripts, before) != pulses:
        raise CannotReshard("a pod was there meanwhile: stop it, and reshard again")
    await move.end()
    return Resharded(before, after, move.moved, tuple(move.broken))


async def _recorded(scripts: Scripts) -> tuple[int, str]:
    """The number of shards, and the text in the record if a reshard is under way."""
    first = scripts.shards[0]
    version, shards = await scripts.look(first, "HMGET", f"{first.prefix}schema", "version", "shards")
    if version is None or shards is None:
        raise CannotReshard("no tracker has ever used this namespace of this database")
    if version != b"%d" % SCHEMA_VERSION:
        raise SchemaMismatch(f"the store has schema version {version.decode()}, this is version {SCHEMA_VERSION}")
    text = shards.decode(errors="replace")
    before, between, _ = text.partition(">")
    if not re.fullmatch("[0-9]{1,4}", before):
        raise SchemaMismatch(f"the store has {text!r} shards: a person must look")
    return int(before), text if between else ""


async def _pulses(scripts: Scripts, before: int) -> list[bytes | None]:
    """The last pulse of each of the old shards. Raises CannotReshard when one is so young that a pod must be there."""

    async def look(shard: Shard) -> bytes | None:
        pulse, patience = await scripts.look(shard, "HMGET", shard.declared[0], "pulse", "patience")
        seconds, microseconds = await scripts.look(shard, "TIME")
        age = seconds * 1000 + microseconds // 1000 - int(pulse or 0)
        # Also one from the time to come: the store's clock may just have been set back.
        if abs(age) < int(patience or PATIENCE_MS):
            raise CannotReshard(f"stop the pods first: one was there {max(age, 0) / 1000:.1f} s ago")
        found: bytes | None = pulse
        return found

    return await _each(scripts.shards[:before], look)


async def _each(shards: Sequence[Shard], work: Callable[[Shard], Awaitable[Any]]) -> list[Any]:
    """What the work gives for each, some at a time."""
    results: list[Any] = []
    left = iter(shards)
    while some := list(islice(left, AT_ONCE)):
        results += await together(map(work, some))
    return results


class _Move:
    def __init__(self, scripts: Scripts, before: int, tell: Callable[[int], None]) -> None:
        self.moved = 0
        self.broken: list[str] = []
        self._scripts = scripts
        self._before = before
        self._after = len(scripts.shards)
        self._layout = f"{before}>{self._after}"
        self._tell = tell

    async def begin(self) -> None:
        """Marks all shards, the first one first: from then on no pod starts. New ones get clocks: nobody may expire
        sooner for having moved. Webhooks hear of all that happens in them.
        """
        first, *others = self._scripts.shards[: self._before]
        laid = [await self._lay_out(first), *await _each(others, self._lay_out)]
        clocks = [Clock(*(int(moment) if moment else None for moment in reply[2:])) for reply in laid]
        hooked = "$" if any(reply[1] for reply in laid) else ""

        async def set_up(shard: Shard) -> None:
            clock = merged([clocks[number] for number in self._sources(shard.number)])
            fields = [part for pair in clock._asdict().items() if pair[1] is not None for part in pair]
            await self._lay_out(shard, hooked, *fields)

        await _each(self._scripts.shards, set_up)

    async def walk(self) -> bool:
        """Goes through all keys once, and moves what is not in its shard; whether there was anything."""
        moved, self.broken = False, []
        async for shard, names in stretches(self._scripts, "session", "idem"):
            moved |= await self._go_through(shard, names)
            self._tell(self.moved)
        return moved

    async def end(self) -> None:
        """Records the new number, in the first shard last: from then on pods start that have it."""

        async def lay_out(shard: Shard) -> None:
            await self._lay_out(shard, layout=str(self._after))

        first, *others = self._scripts.shards
        await _each(others, lay_out)
        await lay_out(first)

    def _sources(self, target: int) -> list[int]:
        """The old shards from which something may come into a shard."""
        step = gcd(self._before, self._after)
        return [number for number in range(self._before) if (number - target) % step == 0]

    async def _lay_out(self, shard: Shard, hooked: str = "", *clock: Argument, layout: str = "") -> Any:
        known = (self._layout, "") if layout else (str(self._before), str(self._after))
        reply = await self._scripts.rearrange(
            "lay_out", shard, SCHEMA_VERSION, layout or self._layout, *known, hooked, *clock
        )
        if reply[0] == b"other":
            version, shards = (part.decode(errors="replace") for part in reply[1:])
            raise SchemaMismatch(
                f"shard {shard.number} is laid out with {shards or '?'} shards in schema version {version or '?'}: a "
                "person must look"
            )
        return reply

    async def _go_through(self, shard: Shard, names: Sequence[tuple[str, bytes]]) -> bool:
        """Moves those of a shard's sessions and records that belong elsewhere; whether there were any."""
        sessions: dict[bytes, int] = {}
        records: list[tuple[bytes, bytes, int]] = []
        for (kind, name), reply in zip(names, await self._serve("locate", shard, names), strict=True):
            match reply[0]:
                case b"session" if reply[1]:
                    sessions[name] = self._home(reply[1])
                case b"record":
                    home = self._home(reply[2] or name)
                    records.append((name, reply[1], home))
                    if reply[3]:
                        sessions[reply[1]] = home
                case b"claim":
                    records.append((name, b"", self._home(name)))
                case b"broken" | b"error":
                    self.broken.append(f"{shard.prefix}{kind}:{name.decode(errors='replace')}")
        moved = await self._move_sessions(
            shard, {name: home for name, home in sessions.items() if home != shard.number}
        )
        # Behind its session, which only the record knows to belong to it.
        return bool(await self._move_records(shard, records) + moved)

    async def _move_sessions(self, shard: Shard, homes: dict[bytes, int]) -> int:
        names = [("session", name) for name in homes]
        arrivals: defaultdict[int, list[Sequence[Argument]]] = defaultdict(list)
        forwards: defaultdict[int, list[Sequence[Argument]]] = defaultdict(list)
        for (_, name), reply in zip(names, await self._serve("export", shard, names), strict=True):
            if reply[0] == b"exported":
                home = homes[name]
                arrivals[home].append(("session", name, *reply[1:]))
                own = shard_of_id(name.decode(errors="replace"), self._after)
                if own is not None and own != home:
                    forwards[own].append((name, home))
        await self._serve_all("import", arrivals)
        await self._serve_all("forward", forwards)
        replies = await self._serve("depart", shard, [(*name, "") for name in names])
        moved = len([reply for reply in replies if reply[0] == b"departed"])
        self.moved += moved
        return moved

    async def _move_records(self, shard: Shard, records: Sequence[tuple[bytes, bytes, int]]) -> int:
        """A record belongs where its session is. Where its key would lead, its fingerprint must keep other bodies out:
        that is put there from where the record is at home, if need be by the next walk.
        """
        records = [
            (key, session_id, home) for key, session_id, home in records if {home, self._home(key)} != {shard.number}
        ]
        names = [("idem", key) for key, _, _ in records]
        arrivals: defaultdict[int, list[Sequence[Argument]]] = defaultdict(list)
        departures: list[Sequence[Argument]] = []
        for (key, session_id, home), reply in zip(records, await self._serve("export", shard, names), strict=True):
            if reply[0] != b"exported":
                continue
            _, left, _, *flat = reply
            if home != shard.number:
                arrivals[home].append(("idem", key, left, "", *flat))
                departures.append(("idem", key, session_id))
            else:
                fingerprint = flat[flat.index(b"fingerprint") + 1]
                arrivals[self._home(key)].append(("idem", key, left, "", "fingerprint", fingerprint))
        await self._serve_all("import", arrivals)
        return len([reply for reply in await self._serve("depart", shard, departures) if reply[0] == b"departed"])

    async def _serve_all(self, script: str, operations: dict[int, list[Sequence[Argument]]]) -> None:
        async def serve(shard: Shard) -> None:
            await self._serve(script, shard, operations[shard.number])

        await _each([self._scripts.shards[number] for number in operations], serve)

    async def _serve(self, script: str, shard: Shard, operations: Sequence[Sequence[Argument]]) -> list[Any]:
        """The replies, one for each operation. Raises what one is refused for; finding out where things are is not."""
        replies: list[Any] = []
        fence = () if script == "locate" else (self._layout,)
        for start in range(0, len(operations), BATCH):
            some = operations[start : start + BATCH]
            arguments = [part for operation in some for part in (len(operation), *operation)]
            replies += await self._scripts.rearrange(script, shard, *fence, *arguments)
        for operation, reply in zip(operations, replies, strict=True):
            if reply[0] == b"error":
                error = self._scripts.refused(reply[1].decode(errors="replace"))
                if script != "locate" or not isinstance(error, StoreFault):
                    raise type(error)(f"{script} of {operation[:2]!r} in shard {shard.number}: {error}")
        return replies

    def _home(self, text: bytes) -> int:
        return shard_of_text(text.decode(errors="replace"), self._after)


def merged(clocks: Sequence[Clock]) -> Clock:
    """The clock of a shard whose sessions come from shards with these: nobody expires sooner than he would have."""
    pulses = [clock.pulse for clock in clocks if clock.pulse is not None]
    patience = max((clock.patience for clock in clocks if clock.patience is not None), default=None)
    holds = [clock for clock in clocks if clock.hold_end is not None and clock.hold_end > (clock.pulse or 0)]
    if not holds:
        return Clock(min(pulses, default=None), patience, None, None, None)
    return Clock(
        pulse=min(pulses, default=None),
        patience=patience,
        held=min((clock.held for clock in holds if clock.held is not None), default=None),
        resumed=max((clock.resumed for clock in holds if clock.resumed is not None), default=None),
        hold_end=max(clock.hold_end for clock in holds if clock.hold_end is not None),
    )
