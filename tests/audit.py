"""Do hashes, indices, counters and feed agree? Read from the raw keys, behind the store's back."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from tests.raw import RawKey, read_raw
from tracker.models import END_REASONS
from tracker.store.ids import shard_of_id, shard_of_text
from tracker.store.store import Store

__all__ = ["audit"]

KINDS = {
    "sessions": "zset",
    "deadlines": "zset",
    "agents": "zset",
    "triggers": "zset",
    "counters": "hash",
    "events": "stream",
    "clock": "hash",
    "schema": "hash",
    "hooks": "zset",
    "parked": "zset",
}
PREFIXES = {"session": "hash", "task": "string", "agent": "zset", "idem": "hash", "hook": "hash", "moved": "string"}
SLACK_MS = 10_000
"""Redis reads its clock anew for each key's TTL, and on a machine under load seconds may pass between two of them."""
ALWAYS = {b"agent", b"trigger", b"started", b"due", b"ttl"}


async def audit(store: Store) -> int:
    """Asserts that all keys agree; how many sessions there are, expired and not yet swept ones included.

    For stores whose feed was never trimmed, and whose sessions did not outlive their grace.
    """
    everything = await read_raw(store)
    places: dict[str, int] = {}
    for number, keys in enumerate(everything):
        for name, key in keys.items():
            kind, colon, _ = name.partition(":")
            assert key.kind == (PREFIXES if colon else KINDS)[kind], f"{name} is a {key.kind}"
        _audit_shard(keys, number, len(everything))
        for session_id in _named(keys, "session:"):
            assert places.setdefault(session_id, number) == number, f"session {session_id} is in two shards"
    _audit_places(everything, places)
    _audit_feed(everything, {session_id.encode() for session_id in places})
    return len(places)


def _audit_places(everything: list[dict[str, RawKey]], places: dict[str, int]) -> None:
    """Each session is found by its id: in the shard that this tells, or where it is forwarded from there."""
    for session_id, number in places.items():
        own = shard_of_id(session_id, len(everything))
        assert own is not None
        forward = everything[own].get(f"moved:{session_id}")
        if own != number:
            assert forward is not None, f"session {session_id} is in another's shard"
            assert (forward.content, forward.ttl > 0) == (b"%d" % number, True)
        else:
            assert forward is None, f"session {session_id} is forwarded from where it is"


def _audit_shard(keys: dict[str, RawKey], number: int, shards: int) -> None:
    hashes = _named(keys, "session:")
    sessions: dict[bytes, dict[bytes, bytes]] = {name.encode(): key.content for name, key in hashes.items()}
    for session_id, fields in sessions.items():
        assert fields.keys() >= ALWAYS, f"session {session_id!r} is not whole: {fields}"

    starts = {session_id: int(fields[b"started"]) for session_id, fields in sessions.items()}
    assert _content(keys, "sessions") == starts
    assert _content(keys, "deadlines") == {session_id: int(fields[b"due"]) for session_id, fields in sessions.items()}
    assert _content(keys, "agents") == Counter(fields[b"agent"] for fields in sessions.values())
    assert _content(keys, "triggers") == Counter(fields[b"trigger"] for fields in sessions.values())

    by_agent: defaultdict[str, dict[bytes, int]] = defaultdict(dict)
    for session_id, fields in sessions.items():
        by_agent[fields[b"agent"].decode()][session_id] = starts[session_id]
    assert {agent: key.content for agent, key in _named(keys, "agent:").items()} == by_agent

    tasks = {fields[b"task"].decode(): session_id for session_id, fields in sessions.items() if b"task" in fields}
    assert {task: key.content for task, key in _named(keys, "task:").items()} == tasks
    assert len(tasks) == sum(b"task" in fields for fields in sessions.values()), "a task has two sessions"
    assert all(shard_of_text(task, shards) == number for task in tasks)

    _audit_lives(keys, hashes)


def _audit_feed(everything: list[dict[str, RawKey]], alive: set[bytes]) -> None:
    """One created event per session, first; one ended event for each that is gone, last; the counters say the same."""
    told: list[tuple[tuple[int, ...], bytes, bytes]] = []
    for keys in everything:
        counted: Counter[str] = Counter()
        for place, event in keys["events"].content if "events" in keys else ():
            told.append((tuple(map(int, place.split(b"-"))), event[b"id"], event[b"type"]))
            assert event.keys() >= ALWAYS | {b"at"}, f"the event does not tell the whole session: {event}"
            assert (event[b"reason"] != b"") == (event[b"type"] == b"session.ended")
            if event[b"type"] == b"session.created":
                counted["created"] += 1
            if event[b"reason"]:
                assert event[b"reason"].decode() in END_REASONS
                counted[f"ended:{event[b'reason'].decode()}"] += 1
        counters = {name.decode(): int(count) for name, count in _content(keys, "counters").items()}
        counters.pop("parked", None)
        assert counters == counted
    histories: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for _, session_id, kind in sorted(told):
        histories[session_id].append(kind)
    for session_id, (first, *others) in histories.items():
        assert first == b"session.created"
        if session_id not in alive:
            assert others, f"no ended event for {session_id!r}"
            assert others.pop() == b"session.ended"
        assert set(others) <= {b"session.updated"}, f"{session_id!r}: {first!r}, {others}"
    assert histories.keys() >= alive


def _audit_lives(keys: dict[str, RawKey], hashes: dict[str, RawKey]) -> None:
    """Nothing leaks: each session's hash has a TTL, and whatever points to it lasts as long, but not for ever."""
    agents: defaultdict[str, list[int]] = defaultdict(list)
    for session_id, key in hashes.items():
        due, ttl = int(key.content[b"due"]), int(key.content[b"ttl"])
        assert key.ttl > 0, f"the hash of {session_id} would stay for ever"
        if task := key.content.get(b"task"):
            longer = keys["task:" + task.decode()].ttl - key.ttl
            assert -SLACK_MS <= longer <= ttl + SLACK_MS, f"the key of task {task!r} lives {longer} ms longer"
        agents[key.content[b"agent"].decode()].append(key.ttl)
        assert due > ttl
    for agent, lives in agents.items():
        assert keys["agent:" + agent].ttl >= max(lives) - SLACK_MS, (
            f"the index of agent {agent} goes before its sessions"
        )
    for name in ("sessions", "deadlines", "agents", "triggers"):
        if hashes:
            assert keys[name].ttl >= max(key.ttl for key in hashes.values()) - SLACK_MS, (
                f"{name} goes before its sessions"
            )
    for name, key in keys.items():
        if name.startswith("idem:"):
            assert 0 < key.ttl <= 86_400_000


def _named(keys: dict[str, RawKey], prefix: str) -> dict[str, RawKey]:
    return {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)}


def _content(keys: dict[str, RawKey], name: str) -> dict[bytes, Any]:
    content: dict[bytes, Any] = keys[name].content if name in keys else {}
    return content
