"""The change feed: one bounded stream per shard, written by the scripts that make the changes, read here.

An event's id is its position: that of its shard's stream, and with several shards the positions of all of them, so that
reading can go on behind any event without loss or repeat. Some parts of a position are no entry's id: ``0-0``, from the
oldest entry that the shard holds; ``0-1``, from the first one of a shard that had none yet; and, in the id of an event
before which a reader had come to none of a shard, what comes right before that shard's oldest then.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast

from pydantic_core import to_json

from tracker.errors import Invalid, PositionLost
from tracker.models import EVENTS_DEFAULT_LIMIT, EndReason, Event, EventPage, EventType, ListEvents
from tracker.store.keys import Shard
from tracker.store.scripts import Argument, Scripts, together
from tracker.store.snapshot import decode, timestamp

__all__ = ["Change", "Feed", "Found", "Position", "Walk", "event_of", "written"]

T = TypeVar("T")

Position = tuple[int, int]
"""A place in one shard's stream: milliseconds and sequence."""

OLDEST: Position = (0, 0)
EMPTY: Position = (0, 1)
SCAN = 1000
"""Entries looked through at once when a filter may pass over many, and read at once from one shard at most."""
LEAST = 8
"""Entries read at once from one shard at least, for a call costs as much as a few of them."""
AT_HAND = 8000
"""Entries that a walk of all the feed, or of what is new in it, holds at once: some 16 MB."""
LOOKED_BACK = 16_000
"""Entries looked through from the newest back, for those that match: of all shards together."""
_PART = "[0-9]{1,20}-[0-9]{1,20}"
_POSITION = re.compile(rf"{_PART}(\.{_PART})*", re.ASCII)
_GREATEST = 2**64


class Change:
    """An entry of the feed. What it says is worked out, and encoded, once for all who read it."""

    def __init__(self, shard: int, position: Position, fields: Mapping[bytes, bytes]) -> None:
        self.shard = shard
        self.position = position
        self.type = cast("EventType", fields[b"type"].decode())
        self.agent_id = fields.get(b"agent", b"").decode()
        self._fields = fields

    def fits(self, query: ListEvents) -> bool:
        return (not query.agent_id or self.agent_id == query.agent_id) and (not query.type or self.type == query.type)

    def event(self, event_id: str) -> Event:
        return event_of(event_id, self._fields)

    def encode(self, event_id: str) -> bytes:
        """The event as JSON."""
        return b'{"id":"%s"%s' % (event_id.encode(), self._rest)

    @cached_property
    def _rest(self) -> bytes:
        return to_json(self.event("")).removeprefix(b'{"id":""')


class Found(NamedTuple):
    """A change, and its event's id for a reader who is at that place in all shards."""

    id: str
    change: Change


class Feed:
    """Reads the feed of all shards. Each step has its deadline, and raises StoreUnavailable behind it."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def page(self, query: ListEvents) -> EventPage:
        """The events behind a position, oldest first; ``next`` goes on where the page ends, matching events or not.

        Raises Invalid for what is no event id, PositionLost for one that the feed no longer holds.
        """
        if query.last is not None:
            return await self._last(query, query.last)
        limit = query.limit or EVENTS_DEFAULT_LIMIT
        positions = self.parse(query.after)
        walk = self.walk(positions, AT_HAND if query.filtered else 2 * limit)
        events: list[Event] = []
        complete = False
        # Looking through many for few may well take longer.
        async with nullcontext() if query.filtered else self._scripts.one_deadline():
            while not complete and len(events) < limit:
                found, complete = await _look(walk, positions, query, limit - len(events))
                events += (change.event(event_id) for event_id, change in found)
        return {"events": events, "next": written(positions)}

    async def scan(self, positions: list[Position], query: ListEvents, limit: int) -> tuple[list[Found], bool]:
        """One look behind the positions for what fits, and whether it reached the end; the positions move on with it.

        Raises PositionLost, and then they stay.
        """
        return await _look(self.walk(positions, 2 * _reach(query, limit)), positions, query, limit)

    def walk(self, positions: Sequence[Position], at_hand: int = AT_HAND, shards: Sequence[int] | None = None) -> Walk:
        """Reads on behind the positions, in all shards or in some; holds about ``at_hand`` changes at most."""
        return Walk(self, positions, range(len(positions)) if shards is None else shards, at_hand)

    async def read(self, positions: Mapping[int, Position], limit: int) -> list[list[Change] | None]:
        """The next changes of each of those shards, ``limit`` of each at most; None where some of them are gone."""
        return await self._together(self._read_shard(shard, position, limit) for shard, position in positions.items())

    async def present(self) -> list[Position]:
        """The positions behind all that there is now."""
        return await self._together(self._end(shard) for shard in self._scripts.shards)

    def parse(self, after: str | None, field: str = "after") -> list[Position]:
        """The positions that an event id stands for. Raises Invalid, which blames the field."""
        shards = len(self._scripts.shards)
        if not after or after == "0":
            return [OLDEST] * shards
        positions = [_position(part) for part in after.split(".")] if _POSITION.fullmatch(after) else []
        if not 0 < len(positions) <= shards or max(map(max, positions)) >= _GREATEST:
            raise Invalid([{"field": field, "message": "Not an event id of this tracker"}])
        # One from before a reshard: the shards that have come since had nothing then.
        return positions + [EMPTY] * (shards - len(positions))

    async def _last(self, query: ListEvents, count: int) -> EventPage:
        """The last ``count`` events that match, of the last LOOKED_BACK or so."""
        shards = range(len(self._scripts.shards))
        reach = max(LEAST, min(2, len(shards)) * _reach(query, count) // len(shards))
        farthest = max(LEAST, LOOKED_BACK // len(shards), 0 if query.filtered else count)
        while True:
            windows = await self._together(self._read_back(shard, reach + 1) for shard in shards)
            whole = [len(window) <= reach for window in windows]
            # Up to there some shard may hold more than its window shows: what is newer is known of all.
            floor = max(
                (window[0].position for window, all_of_it in zip(windows, whole, strict=True) if not all_of_it),
                default=OLDEST,
            )
            positions = [
                max([change.position for change in window if change.position <= floor], default=_before(window[0]))
                if window
                else EMPTY
                for window in windows
            ]
            events: list[Event] = []
            for change in sorted((change for window in windows for change in window), key=_order):
                if change.position > floor:
                    positions[change.shard] = change.position
                    if change.fits(query):
                        events.append(change.event(written(positions)))
            if len(events) >= count or all(whole) or reach >= farthest:
                return {"events": events[-count:], "next": written(positions)}
            reach = min(4 * reach, farthest)

    async def _read_back(self, number: int, limit: int) -> list[Change]:
        """The newest changes of a shard, oldest first."""
        shard = self._scripts.shards[number]
        rows: list[Any] = await self._ask(shard, "XREVRANGE", shard.events, "+", "-", "COUNT", limit)
        return [Change(number, _position(entry_id), fields) for entry_id, fields in reversed(rows)]

    async def _read_shard(self, number: int, position: Position, limit: int) -> list[Change] | None:
        """The changes behind the position; None when some of them are gone.

        Reads from the position itself: only an entry that is still there, or that comes right behind it, tells that
        none is missing, for Redis trims the oldest first. Where there was none, nothing may ever have been trimmed.
        """
        shard = self._scripts.shards[number]
        held = position not in (OLDEST, EMPTY)
        start = _written(position) if held else "-"
        rows: list[Any] = await self._ask(shard, "XRANGE", shard.events, start, "+", "COUNT", limit + held)
        changes = [Change(number, _position(entry_id), fields) for entry_id, fields in rows]
        if held and changes and changes[0].position == position:
            return changes[1:]
        if held:
            return changes[:limit] if changes and _before(changes[0]) == position else None
        if position == EMPTY and changes and await self._was_trimmed(shard):
            return None
        return changes

    async def _was_trimmed(self, shard: Shard) -> bool:
        """Whether it may have been. Redis 7 knows; before that only the length tells, if it is kept as it was."""
        told: list[Any] = await self._ask(shard, "XINFO", "STREAM", shard.events)
        facts = dict(zip(told[::2], told[1::2], strict=True))
        length: int = facts[b"length"]
        return length >= self._scripts.feed_length or facts.get(b"entries-added", length) > length

    async def _end(self, shard: Shard) -> Position:
        rows: list[Any] = await self._ask(shard, "XREVRANGE", shard.events, "+", "-", "COUNT", 1)
        return _position(rows[0][0]) if rows else EMPTY

    async def _together(self, reads: Iterable[Awaitable[T]]) -> list[T]:
        """What all of them give; the wait for their turns counts towards the deadline."""
        async with self._scripts.one_deadline():
            return await together(reads)

    async def _ask(self, shard: Shard, *words: Argument) -> Any:
        # In turns of the server, so that one that hangs keeps nobody from the others.
        server = await self._scripts.servers.holder(shard)
        async with server.turns:
            return await self._scripts.command(*words, shard=shard)


class Walk:
    """Takes the changes behind positions in order: by position, then by shard. Reads each of them once.

    What comes next is certain up to the horizon: the least place up to which a shard was read that may hold more. What
    was read beyond stays at hand for the next step, so that a shard with many changes costs nothing in the others.
    """

    def __init__(self, feed: Feed, positions: Sequence[Position], shards: Sequence[int], at_hand: int) -> None:
        self._feed = feed
        self._begin = tuple(positions)
        self._read_until = {shard: positions[shard] for shard in shards}
        """How far the shards were read that may hold more."""
        self._ahead: list[Change] = []
        self._starts: dict[int, Position] = {}
        self._at_hand = at_hand
        self._share = _bounded(at_hand // (2 * len(shards)))

    async def take(self, limit: int) -> list[Change]:
        """The next changes, ``limit`` at most; fewer where there are no more by now.

        Raises PositionLost, with where to go on from the walk's beginning.
        """
        taken: list[Change] = []
        while True:
            count = min(self._certain(), limit - len(taken))
            taken += self._ahead[:count]
            del self._ahead[:count]
            if len(taken) == limit or not self._read_until:
                return taken
            await self._fill()

    def begun(self, positions: list[Position]) -> None:
        """What was to begin at the oldest has by now: later that may be another, and what was in between be lost."""
        positions[:] = [
            self._starts.get(shard, OLDEST) if position == OLDEST else position
            for shard, position in enumerate(positions)
        ]

    def _certain(self) -> int:
        """How many of those ahead nothing can come before that is not read yet."""
        if not self._read_until:
            return len(self._ahead)
        horizon = min((position, shard) for shard, position in self._read_until.items())
        return bisect_right(self._ahead, horizon, key=_order)

    async def _fill(self) -> None:
        """Reads on where little is left, which is at least where the horizon is."""
        left = Counter(change.shard for change in self._ahead)
        # Also where it is nearly so: shards that fill alike are read side by side, not one after the other.
        low = {shard: position for shard, position in self._read_until.items() if left[shard] <= self._share // 2}
        # Never all the room there is: which shard will need it next is not known.
        size = _bounded((self._at_hand - len(self._ahead)) // (2 * len(low)))
        batches = dict(zip(low, await self._feed.read(low, size), strict=True))
        lost = {shard for shard, batch in batches.items() if batch is None}
        if lost:
            onward = [OLDEST if shard in lost else position for shard, position in enumerate(self._begin)]
            raise PositionLost(
                "The feed no longer holds this position: list the sessions anew, then go on from 0", written(onward)
            )
        for shard, batch in batches.items():
            self._starts.setdefault(shard, _before(batch[0]) if batch else EMPTY)
            if batch:
                self._ahead += batch
                self._read_until[shard] = batch[-1].position
            if not batch or len(batch) < size:
                del self._read_until[shard]
        self._ahead.sort(key=_order)


async def _look(walk: Walk, positions: list[Position], query: ListEvents, limit: int) -> tuple[list[Found], bool]:
    """What fits of the next changes of a walk, and whether that was its end; the positions move on with it."""
    reach = _reach(query, limit)
    changes = await walk.take(reach)
    walk.begun(positions)
    found: list[Found] = []
    for change in changes:
        positions[change.shard] = change.position
        if change.fits(query):
            found.append(Found(written(positions), change))
            if len(found) == limit:
                return found, False
    return found, len(changes) < reach


def _reach(query: ListEvents, limit: int) -> int:
    """How many changes to look through for so many that fit."""
    return SCAN if query.filtered else limit


def _bounded(count: int) -> int:
    return min(max(count, LEAST), SCAN)


def event_of(event_id: str, fields: Mapping[bytes, bytes]) -> Event:
    """An entry of the stream as the event that it tells of."""
    return {
        "id": event_id,
        "type": cast("EventType", fields[b"type"].decode()),
        "at": timestamp(int(fields[b"at"])),
        "reason": cast("EndReason | None", fields[b"reason"].decode() or None),
        "session": decode(fields[b"id"], [part for pair in fields.items() for part in pair]),
    }


def written(positions: Iterable[Position]) -> str:
    """The event id that stands for the positions."""
    return ".".join(map(_written, positions))


def _written(position: Position) -> str:
    return f"{position[0]}-{position[1]}"


def _before(change: Change) -> Position:
    """What comes right before a change, if there is anything: no other can come in between."""
    ms, sequence = change.position
    return (ms, sequence - 1) if sequence else (ms - 1, _GREATEST - 1)


def _position(entry_id: bytes | str) -> Position:
    ms, _, sequence = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(ms), int(sequence)


_order = attrgetter("position", "shard")
