"""Listing: newest first, in chunks below a place in the order (started, id), which holds still while all else moves.

A session's place never changes, so one that lives throughout a walk is met exactly once, whatever comes and goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from datetime import datetime

from pydantic_core import to_json

from tracker.models import ListSessions, Session, Target
from tracker.store.hashes import Hashes
from tracker.store.keys import Shard
from tracker.store.scripts import Scripts, together
from tracker.store.sessions import SessionStore
from tracker.store.snapshot import FIELDS, quoting, write

__all__ = ["Listing"]

CHUNK = 250
"""Sessions read at once: some 1 ms of Redis's time and 1 ms of ours, so that heartbeats get in between."""
STARTED = FIELDS.index("started")
DUE = FIELDS.index("due")
WINDOW = 4000
"""Ids asked for at once: some 1 ms of Redis's time."""
REACH = 600
"""Ids looked at at once where each hash must be asked whether it fits: some 4 ms of Redis's time."""

Place = tuple[int, bytes]
"""Where a session stands: (started in ms, id)."""
Entry = tuple[Place, bytes]
"""A session's place, and the session as JSON."""
_Window = tuple[Place | None, int, list[bytes]]
"""Where to go on below (None: nowhere), the cutoff (ms), the ids of what to look at."""


class Listing:
    """Reads the live sessions that a query asks for, each as the JSON that goes over the wire: a dict of it costs more
    than all the rest.

    Raises StoreUnavailable when a page, or the next step of what may take many, is not there within the deadline.
    """

    def __init__(self, scripts: Scripts, sessions: SessionStore, hashes: Hashes) -> None:
        self._scripts = scripts
        self._sessions = sessions
        self._hashes = hashes

    async def page(self, query: ListSessions, limit: int) -> tuple[list[bytes], str | None]:
        """At most ``limit`` sessions, and the cursor of the next page; None at the end."""
        found: list[Entry] = []
        # Looking through many for few may well take longer.
        bound = nullcontext() if _matches(query) else self._scripts.one_deadline()
        async with bound, aclosing(self._walk(query, limit + 1)) as walk:
            async for chunk in walk:
                found += chunk
                if len(found) > limit:
                    break
        sessions = [session for _, session in found[:limit]]
        if len(found) <= limit:
            return sessions, None
        started, session_id = found[limit - 1][0]
        return sessions, f"{started}_{session_id.decode()}"

    async def chunks(self, query: ListSessions) -> AsyncGenerator[list[bytes], None]:
        """All sessions, a chunk at a time; no chunk is empty."""
        async with aclosing(self._walk(query, WINDOW)) as walk:
            async for chunk in walk:
                yield [session for _, session in chunk]

    async def _walk(self, query: ListSessions, window: int) -> AsyncGenerator[list[Entry], None]:
        if query.task_id:
            session = await self._sessions.get(Target.task(query.task_id))
            if session is not None and _fits(session, query):
                yield [(_place(session), to_json(session))]
            return
        below = _parse(query.cursor) if query.cursor else None
        walks = [_ShardWalk(self._scripts, self._hashes, shard, query, below, window) for shard in self._scripts.shards]
        try:
            while ahead := [walk for walk in walks if walk.ahead or not walk.done]:
                await together(walk.fill() for walk in ahead)
                if chunk := _merge(ahead):
                    yield chunk
        finally:
            await together(walk.close() for walk in walks)


def _place(session: Session) -> Place:
    started = datetime.fromisoformat(session["startedAt"])
    return round(started.timestamp() * 1000), session["id"].encode()


def _fits(session: Session, query: ListSessions) -> bool:
    """Whether the one session of a task is also what the rest of the query asks for."""
    wanted = (
        (query.agent_id, session["agentId"]),
        (query.trigger_type, session["triggerType"]),
        (query.runner_session_id, session["runnerSessionId"]),
        (query.runtime_instance_id, session["runtimeInstanceId"]),
    )
    return all(not asked or asked == found for asked, found in wanted) and (
        not query.cursor or _place(session) < _parse(query.cursor)
    )


def _matches(query: ListSessions) -> tuple[str, ...]:
    """Field, value, ... that hashes must have: what no index knows."""
    filters = (
        ("trigger", query.trigger_type),
        ("runner", query.runner_session_id),
        ("runtime", query.runtime_instance_id),
    )
    return tuple(part for field, value in filters if value for part in (field, value))


def _parse(cursor: str) -> Place:
    started, _, session_id = cursor.partition("_")
    return int(started), session_id.encode()


def _merge(walks: list[_ShardWalk]) -> list[Entry]:
    """Takes what is certain to come next: until one shard has nothing at hand but may have more."""
    if len(walks) == 1:
        chunk, walks[0].ahead = walks[0].ahead, []
        return chunk
    merged: list[Entry] = []
    for walk in walks:
        walk.ahead.reverse()
    while all(walk.ahead or walk.done for walk in walks) and any(walk.ahead for walk in walks):
        newest = max((walk for walk in walks if walk.ahead), key=lambda walk: walk.ahead[-1][0])
        merged.append(newest.ahead.pop())
    for walk in walks:
        walk.ahead.reverse()
    return merged


class _ShardWalk:
    """One shard's part of a walk: ``ahead`` is read and not yet taken, newest first.

    A window of ids is asked for at once, their hashes in chunks. What comes next is asked for before what has come is
    written out, so that Redis works meanwhile; the window after this one only by a walk that is sure to need it.
    """

    def __init__(
        self, scripts: Scripts, hashes: Hashes, shard: Shard, query: ListSessions, below: Place | None, window: int
    ) -> None:
        self.ahead: list[Entry] = []
        self.done = False
        self._scripts = scripts
        self._hashes = hashes
        self._shard = shard
        self._agent = query.agent_id or ""
        self._matches = _matches(query)
        self._below = below
        self._size = REACH if self._matches else window
        self._window: asyncio.Task[_Window] | None = None
        self._ids: list[bytes] = []
        self._cutoff = 0
        self._chunk: asyncio.Task[list[Entry]] | None = None
        self._awaited: asyncio.Task[list[Entry]] | None = None

    async def fill(self) -> None:
        """Reads on until something is ahead, or nothing is left."""
        while not self.ahead and not self.done:
            async with self._scripts.one_deadline():
                await self._step()

    async def close(self) -> None:
        """Gives up what is still being read."""
        if tasks := [task for task in (self._window, self._awaited, self._chunk) if task is not None]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _step(self) -> None:
        if self._chunk is None:
            self._window = self._window or self._ask_window()
            window, self._window = await self._window, None
            self._below, self._cutoff, self._ids = window
            self._ask_chunk()
            if self._below and self._size == WINDOW:
                self._window = self._ask_window()
        self._awaited = self._chunk
        self._ask_chunk()
        await asyncio.sleep(0)  # lets the requests out before the last chunk keeps us busy
        self.ahead = await self._awaited if self._awaited else []
        self.done = self._chunk is None and self._below is None

    def _ask_window(self) -> asyncio.Task[_Window]:
        return asyncio.create_task(self._read_window(self._below or ("", "")))

    def _ask_chunk(self) -> None:
        ids, self._ids = self._ids[:CHUNK], self._ids[CHUNK:]
        self._chunk = asyncio.create_task(self._read_chunk(ids, self._cutoff)) if ids else None

    async def _read_window(self, below: tuple[int | str, str | bytes]) -> _Window:
        (state, started, session_id, cutoff), ids = await self._scripts.run(
            "list", self._shard, self._agent, *below, self._size, *self._matches
        )
        place = None if state == b"done" else (int(started), session_id)
        return place, int(cutoff), ids

    async def _read_chunk(self, ids: list[bytes], cutoff: int) -> list[Entry]:
        rows = await self._hashes.read(self._shard, ids)
        quote = quoting(rows)
        return [
            ((int(values[STARTED] or 0), session_id), write(session_id, values, quote))
            for session_id, values in zip(ids, rows, strict=True)
            if int(values[DUE] or 0) > cutoff
        ]
