"""Listing: newest first, in chunks below a place in the order (started, id), which holds still while all else moves.

A session's place never changes, so one that lives throughout a walk is met exactly once, whatever comes and goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from itertools import islice

from tracker.models import ListSessions, Session, Target
from tracker.store.keys import Shard
from tracker.store.scripts import Scripts, together
from tracker.store.sessions import SessionStore
from tracker.store.snapshot import decode

__all__ = ["Listing"]

CHUNK = 200
"""Sessions looked at per script call: some 2 ms of Redis's time, so that heartbeats get in between."""

Place = tuple[int, str]
"""Where a session stands: (started in ms, id)."""


class Listing:
    """Reads the live sessions that a query asks for. Raises StoreUnavailable as each chunk has its own deadline."""

    def __init__(self, scripts: Scripts, sessions: SessionStore) -> None:
        self._scripts = scripts
        self._sessions = sessions

    async def page(self, query: ListSessions, limit: int) -> tuple[list[Session], str | None]:
        """At most ``limit`` sessions, and the cursor of the next page; None at the end."""
        found: list[tuple[Place, Session]] = []
        async for chunk in self._walk(query, min(CHUNK, limit + 1)):
            found += islice(chunk, limit + 1 - len(found))
            if len(found) > limit:
                break
        sessions = [session for _, session in found[:limit]]
        if len(found) <= limit:
            return sessions, None
        started, session_id = found[limit - 1][0]
        return sessions, f"{started}_{session_id}"

    async def chunks(self, query: ListSessions) -> AsyncIterator[list[Session]]:
        """All sessions, a chunk at a time; no chunk is empty."""
        async for chunk in self._walk(query, CHUNK):
            yield [session for _, session in chunk]

    async def _walk(self, query: ListSessions, reach: int) -> AsyncIterator[list[tuple[Place, Session]]]:
        if query.task_id:
            session = await self._sessions.get(Target.task(query.task_id))
            if session is not None and _fits(session, query):
                yield [(_place(session), session)]
            return
        filters = {
            "trigger": query.trigger_type,
            "runner": query.runner_session_id,
            "runtime": query.runtime_instance_id,
        }
        below = _parse(query.cursor) if query.cursor else None
        matches = tuple(part for field, value in filters.items() if value for part in (field, value))
        walks = [
            _ShardWalk(self._scripts, shard, query.agent_id or "", matches, below, reach)
            for shard in self._scripts.shards
        ]
        while walks := [walk for walk in walks if walk.ahead or not walk.done]:
            await together(walk.fill() for walk in walks)
            if chunk := _merge(walks):
                yield chunk


def _place(session: Session) -> Place:
    started = datetime.fromisoformat(session["startedAt"])
    return round(started.timestamp() * 1000), session["id"]


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


def _parse(cursor: str) -> Place:
    started, _, session_id = cursor.partition("_")
    return int(started), session_id


def _merge(walks: list[_ShardWalk]) -> list[tuple[Place, Session]]:
    """Takes what is certain to come next: until one shard has nothing at hand but may have more."""
    if len(walks) == 1:
        chunk, walks[0].ahead = walks[0].ahead, []
        return chunk
    merged: list[tuple[Place, Session]] = []
    for walk in walks:
        walk.ahead.reverse()
    while all(walk.ahead or walk.done for walk in walks) and any(walk.ahead for walk in walks):
        newest = max((walk for walk in walks if walk.ahead), key=lambda walk: walk.ahead[-1][0])
        merged.append(newest.ahead.pop())
    for walk in walks:
        walk.ahead.reverse()
    return merged


class _ShardWalk:
    """One shard's part of a walk: ``ahead`` is read and not yet taken, newest first."""

    def __init__(
        self, scripts: Scripts, shard: Shard, agent: str, matches: tuple[str, ...], below: Place | None, reach: int
    ) -> None:
        self.ahead: list[tuple[Place, Session]] = []
        self.done = False
        self._scripts = scripts
        self._shard = shard
        self._agent = agent
        self._matches = matches
        self._below: tuple[str | int, str | bytes] = below or ("", "")
        self._reach = reach

    async def fill(self) -> None:
        """Reads on until something is ahead, or nothing is left."""
        while not self.ahead and not self.done:
            (state, started, session_id), *rows = await self._scripts.run(
                "list", self._shard, self._agent, *self._below, self._reach, *self._matches
            )
            self.done = state == b"done"
            self._below = (int(started or 0), session_id)
            for row_id, *flat in rows:
                place = (int(flat[flat.index(b"started") + 1]), row_id.decode())
                self.ahead.append((place, decode(row_id, flat)))
