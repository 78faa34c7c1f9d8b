"""The change feed: one bounded stream per shard, written by the scripts that make the changes, read here.

An event's id is its position: that of its shard's stream, and with several shards the positions of all of them, so that
reading can go on behind any event without loss or repeat. Two parts of a position are no entry's id: ``0-0``, from the
oldest entry that the shard holds, and ``0-1``, from the first one of a shard that had none yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, cast

from pydantic_core import to_json

from tracker.errors import Invalid, PositionLost
from tracker.models import EVENTS_DEFAULT_LIMIT, EndReason, Event, EventPage, EventType, ListEvents
from tracker.store.keys import Shard
from tracker.store.scripts import Scripts, together
from tracker.store.snapshot import decode, timestamp

__all__ = ["Change", "Feed", "Found", "Position", "event_of", "written"]

Position = tuple[int, int]
"""A place in one shard's stream: milliseconds and sequence."""

OLDEST: Position = (0, 0)
EMPTY: Position = (0, 1)
SCAN = 1000
"""Entries read at once when a filter may pass over many."""
LOOKED_BACK = 16_000
"""Entries looked through from the newest back, for those that match."""
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
    """Reads the feed of all shards. Each call to the store has its deadline, and raises StoreUnavailable behind it."""

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
        events: list[Event] = []
        complete = False
        while not complete and len(events) < limit:
            found, complete = await self.scan(positions, query, limit - len(events))
            events += (change.event(event_id) for event_id, change in found)
        return {"events": events, "next": written(positions)}

    async def scan(self, positions: list[Position], query: ListEvents, limit: int) -> tuple[list[Found], bool]:
        """One look behind the positions for what fits, and whether it reached the end; the positions move on with it.

        Raises PositionLost, and then they stay.
        """
        reach = SCAN if query.agent_id or query.type else limit
        changes = await self.read(positions, reach)
        found: list[Found] = []
        for change in changes:
            positions[change.shard] = change.position
            if change.fits(query):
                found.append(Found(written(positions), change))
                if len(found) == limit:
                    return found, False
        complete = len(changes) < reach
        if complete:
            positions[:] = [EMPTY if position == OLDEST else position for position in positions]
        return found, complete

    async def read(
        self, positions: Sequence[Position], limit: int, shards: Sequence[int] | None = None
    ) -> list[Change]:
        """The next changes of all shards, or of some, in order; ``limit`` at most. Raises PositionLost."""
        chosen = range(len(positions)) if shards is None else shards
        batches = await together(self._read_shard(shard, positions[shard], limit) for shard in chosen)
        if None in batches:
            lost = {shard for shard, batch in zip(chosen, batches, strict=True) if batch is None}
            onward = [OLDEST if shard in lost else position for shard, position in enumerate(positions)]
            raise PositionLost(
                "The feed no longer holds this position: list the sessions anew, then go on from 0", written(onward)
            )
        return sorted((change for batch in batches if batch for change in batch), key=_order)[:limit]

    async def present(self) -> list[Position]:
        """The positions behind all that there is now."""
        return await together(self._end(shard) for shard in self._scripts.shards)

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
        """The last ``count`` events that match, of the last LOOKED_BACK of each shard."""
        reach = SCAN if query.agent_id or query.type else count
        while True:
            windows = await together(self._read_back(shard, reach + 1) for shard in range(len(self._scripts.shards)))
            whole = [len(window) <= reach for window in windows]
            # Up to there some shard may hold more than its window shows: what is newer is known of all.
            floor = max(
                (window[0].position for window, all_of_it in zip(windows, whole, strict=True) if not all_of_it),
                default=OLDEST,
            )
            positions = [
                max([change.position for change in window if change.position <= floor], default=OLDEST)
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
            if len(events) >= count or all(whole) or reach >= LOOKED_BACK:
                return {"events": events[-count:], "next": written(positions)}
            reach *= 4

    async def _read_back(self, number: int, limit: int) -> list[Change]:
        """The newest changes of a shard, oldest first."""
        shard = self._scripts.shards[number]
        rows: list[Any] = await self._scripts.command("XREVRANGE", shard.events, "+", "-", "COUNT", limit, shard=shard)
        return [Change(number, _position(entry_id), fields) for entry_id, fields in reversed(rows)]

    async def _read_shard(self, number: int, position: Position, limit: int) -> list[Change] | None:
        """The changes behind the position; None when some of them are gone.

        Reads from the position itself: only an entry that is still there tells that none behind it is missing, for
        Redis trims the oldest first. Where there was none, the feed's length tells: below it nothing was ever trimmed.
        """
        shard = self._scripts.shards[number]
        held = position not in (OLDEST, EMPTY)
        start = _written(position) if held else "-"
        rows: list[Any] = await self._scripts.command(
            "XRANGE", shard.events, start, "+", "COUNT", limit + held, shard=shard
        )
        changes = [Change(number, _position(entry_id), fields) for entry_id, fields in rows]
        if held:
            return changes[1:] if changes and changes[0].position == position else None
        if position == EMPTY and changes and await self._was_trimmed(shard):
            return None
        return changes

    async def _was_trimmed(self, shard: Shard) -> bool:
        """Whether it may have been."""
        length: int = await self._scripts.command("XLEN", shard.events, shard=shard)
        return length >= self._scripts.feed_length

    async def _end(self, shard: Shard) -> Position:
        rows: list[Any] = await self._scripts.command("XREVRANGE", shard.events, "+", "-", "COUNT", 1, shard=shard)
        return _position(rows[0][0]) if rows else EMPTY


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


def _position(entry_id: bytes | str) -> Position:
    ms, _, sequence = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(ms), int(sequence)


_order = attrgetter("position", "shard")
