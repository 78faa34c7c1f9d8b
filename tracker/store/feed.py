"""The change feed: one bounded stream per shard, written by the scripts that make the changes, read here in pages.

An event's id is its position: that of its shard's stream, and with several shards the positions of all of them, so that
reading can go on behind any event without loss or repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, cast

from tracker.errors import Invalid, PositionLost
from tracker.models import EVENTS_DEFAULT_LIMIT, EndReason, Event, EventPage, EventType, ListEvents
from tracker.store.scripts import Scripts, together
from tracker.store.snapshot import decode, timestamp

__all__ = ["Feed", "event_of"]

BEGINNING = "0-0"
SCAN = 1000
"""Entries read at once when a filter may pass over many."""
LOOKED_BACK = 16_000
"""Entries looked through from the newest back, for those that match."""
_POSITION = re.compile(r"([0-9]{1,20}-[0-9]{1,20})(\.[0-9]{1,20}-[0-9]{1,20})*")
_GREATEST = 2**64


_Entry = tuple[tuple[int, int], int, str, Mapping[bytes, bytes]]
"""An entry of one stream: (ms and sequence, shard, stream id, fields)."""


class Feed:
    """Reads the feed of all shards."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def page(self, query: ListEvents) -> EventPage:
        """The events behind a position, or the last ones, oldest first; ``next`` goes on behind them, matching or not.

        Raises Invalid for what is no event id, PositionLost for one that the feed no longer holds.
        """
        if query.last is not None:
            return await self._last(query, query.last)
        limit = query.limit or EVENTS_DEFAULT_LIMIT
        positions = self._parse(query.after)
        events: list[Event] = []
        reach = SCAN if query.agent_id or query.type else limit
        while True:
            entries = await self._read(positions, reach)
            for _, shard, entry_id, fields in entries:
                positions[shard] = entry_id
                if _fits(fields, query):
                    events.append(event_of(".".join(positions), fields))
                    if len(events) == limit:
                        break
            if len(events) == limit or len(entries) < reach:
                return {"events": events, "next": ".".join(positions)}

    async def _last(self, query: ListEvents, count: int) -> EventPage:
        """The last ``count`` events that match, of the last LOOKED_BACK of each shard."""
        reach = SCAN if query.agent_id or query.type else count
        while True:
            windows = await together(self._read_back(shard, reach + 1) for shard in range(len(self._scripts.shards)))
            whole = [len(window) <= reach for window in windows]
            # Up to there some shard may hold more than its window shows: what is newer is known of all.
            floor = max(
                (window[0][0] for window, all_of_it in zip(windows, whole, strict=True) if not all_of_it),
                default=(0, 0),
            )
            positions = [([BEGINNING] + [entry[2] for entry in window if entry[0] <= floor])[-1] for window in windows]
            events: list[Event] = []
            for order, shard, entry_id, fields in sorted(
                (e for window in windows for e in window), key=itemgetter(0, 1)
            ):
                if order > floor:
                    positions[shard] = entry_id
                    if _fits(fields, query):
                        events.append(event_of(".".join(positions), fields))
            if len(events) >= count or all(whole) or reach >= LOOKED_BACK:
                return {"events": events[-count:], "next": ".".join(positions)}
            reach *= 4

    def _parse(self, after: str | None) -> list[str]:
        shards = len(self._scripts.shards)
        if not after or after == "0":
            return [BEGINNING] * shards
        positions = after.split(".")
        numbers = [int(number) for position in positions for number in position.split("-")] if _is_id(after) else []
        if len(positions) != shards or not numbers or max(numbers) >= _GREATEST:
            raise Invalid([{"field": "after", "message": "Not an event id of this tracker"}])
        return positions

    async def _read(self, positions: list[str], limit: int) -> list[_Entry]:
        """The next entries of all shards in order, ``limit`` at most."""
        batches = await together(self._read_shard(shard, position, limit) for shard, position in enumerate(positions))
        return sorted((entry for batch in batches for entry in batch), key=itemgetter(0, 1))[:limit]

    async def _read_back(self, shard: int, limit: int) -> list[_Entry]:
        """The newest entries of a shard, oldest first."""
        rows: list[Any] = await self._scripts.command(
            "XREVRANGE", self._scripts.shards[shard].events, "+", "-", "COUNT", limit
        )
        return [(_order(row[0]), shard, _stream_id(row[0]), row[1]) for row in reversed(rows)]

    async def _read_shard(self, shard: int, position: str, limit: int) -> list[_Entry]:
        """Reads from the position itself, for only an entry that is still there tells that none behind it is lost."""
        key = self._scripts.shards[shard].events
        held = position != BEGINNING
        rows: list[Any] = await self._scripts.command("XRANGE", key, position, "+", "COUNT", limit + held)
        if held:
            if not rows or _stream_id(rows[0][0]) != position:
                raise PositionLost("The feed no longer holds this position: list the sessions anew, then go on from 0")
            rows = rows[1:]
        return [(_order(row[0]), shard, _stream_id(row[0]), row[1]) for row in rows]


def _is_id(text: str) -> bool:
    return _POSITION.fullmatch(text) is not None


def _stream_id(entry_id: Any) -> str:
    return entry_id.decode() if isinstance(entry_id, bytes) else str(entry_id)


def _order(entry_id: Any) -> tuple[int, int]:
    ms, _, sequence = _stream_id(entry_id).partition("-")
    return int(ms), int(sequence)


def _fits(fields: Mapping[bytes, bytes], query: ListEvents) -> bool:
    return (not query.agent_id or fields.get(b"agent", b"").decode() == query.agent_id) and (
        not query.type or fields[b"type"].decode() == query.type
    )


def event_of(event_id: str, fields: Mapping[bytes, bytes]) -> Event:
    """An entry of the stream as the event that it tells of."""
    return {
        "id": event_id,
        "type": cast("EventType", fields[b"type"].decode()),
        "at": timestamp(int(fields[b"at"])),
        "reason": cast("EndReason | None", fields[b"reason"].decode() or None),
        "session": decode(fields[b"id"], [part for pair in fields.items() for part in pair]),
    }
