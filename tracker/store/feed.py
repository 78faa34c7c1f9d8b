"""The change feed: one bounded stream per shard, written by the scripts that make the changes, read here in pages.

An event's id is its position: that of its shard's stream, and with several shards the positions of all of them, so that
reading can go on behind any event without loss or repeat.
"""

from __future__ import annotations

import re
from typing import Any

from tracker.errors import Invalid, PositionLost
from tracker.models import EVENTS_DEFAULT_LIMIT, Event, EventPage, ListEvents
from tracker.store.scripts import Scripts, together
from tracker.store.snapshot import decode, timestamp

__all__ = ["Feed"]

BEGINNING = "0-0"
_POSITION = re.compile(r"([0-9]{1,20}-[0-9]{1,20})(\.[0-9]{1,20}-[0-9]{1,20})*")
_GREATEST = 2**64


class Feed:
    """Reads the feed of all shards."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def page(self, query: ListEvents) -> EventPage:
        """The events behind a position, oldest first; ``next`` goes on where the page ends, matching events or not.

        Raises Invalid for what is no event id, PositionLost for one that the feed no longer holds.
        """
        limit = query.limit or EVENTS_DEFAULT_LIMIT
        positions = self._parse(query.after)
        events: list[Event] = []
        while True:
            entries = await self._read(positions, limit)
            for _, shard, entry_id, flat in entries:
                positions[shard] = entry_id
                event = _event(".".join(positions), flat)
                if _fits(event, query):
                    events.append(event)
                    if len(events) == limit:
                        break
            if len(events) == limit or not entries:
                return {"events": events, "next": ".".join(positions)}

    def _parse(self, after: str | None) -> list[str]:
        shards = len(self._scripts.shards)
        if not after or after == "0":
            return [BEGINNING] * shards
        positions = after.split(".")
        numbers = [int(number) for position in positions for number in position.split("-")] if _is_id(after) else []
        if len(positions) != shards or not numbers or max(numbers) >= _GREATEST:
            raise Invalid([{"field": "after", "message": "Not an event id of this tracker"}])
        return positions

    async def _read(self, positions: list[str], limit: int) -> list[tuple[tuple[int, int], int, str, list[bytes]]]:
        """The next entries of all shards as (order, shard, stream id, flat fields), in order, ``limit`` at most."""
        batches = await together(self._read_shard(shard, position, limit) for shard, position in enumerate(positions))
        return sorted(entry for batch in batches for entry in batch)[:limit]

    async def _read_shard(self, shard: int, position: str, limit: int) -> list[Any]:
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


def _fits(event: Event, query: ListEvents) -> bool:
    return (not query.agent_id or event["session"]["agentId"] == query.agent_id) and (
        not query.type or event["type"] == query.type
    )


def _event(event_id: str, flat: Any) -> Event:
    fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
    session_id = fields[b"id"]
    reason = fields[b"reason"].decode() or None
    return {
        "id": event_id,
        "type": fields[b"type"].decode(),
        "at": timestamp(int(fields[b"at"])),
        "reason": reason,
        "session": decode(session_id, [part for pair in fields.items() for part in pair]),
    }
