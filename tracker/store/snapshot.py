"""Between a session's hash in Redis and the session on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from pydantic_core import from_json, to_json

from tracker.models import CreateSession, Session

__all__ = ["FIELDS", "build", "decode", "encode", "seconds", "timestamp"]


FIELDS = (
    "agent",
    "task",
    "trigger",
    "inbox",
    "about",
    "started",
    "due",
    "ttl",
    "runner",
    "provider",
    "runtime",
    "progress",
    "stop",
    "meta",
)
"""The fields of a session's hash, in the order of the session on the wire."""
_FIELD_BYTES = tuple(field.encode() for field in FIELDS)
_MILLISECONDS = tuple(f".{ms:03d}Z" for ms in range(1000))


@lru_cache(maxsize=8192)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=8192)
def _life(ttl: str | None) -> tuple[int, float]:
    """A TTL in milliseconds and in seconds: a fleet knows few different ones."""
    ms = int(ttl or 0)
    return ms, seconds(ms)


def timestamp(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC."""
    return _second(ms // 1000) + _MILLISECONDS[ms % 1000]


def seconds(ms: int) -> float:
    """Milliseconds as seconds: a whole number where it is one, as JSON shows the difference."""
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


def encode(request: CreateSession) -> list[str | bytes]:
    """The hash fields, as field, value, ..., that a create brings along besides agent, trigger, task and times."""
    texts = (
        ("inbox", request.inbox_message_id),
        ("about", request.task_description),
        ("runner", request.runner_session_id),
        ("runtime", request.runtime_instance_id),
    )
    flat: list[str | bytes] = []
    for field, text in texts:
        if text is not None:
            flat += (field, text)
    if request.metadata:
        flat += ("meta", to_json(request.metadata))
    return flat


def decode(session_id: bytes, flat: Sequence[bytes]) -> Session:
    """The session of an id and its hash as field, value, ...; other fields among them are passed over."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    values = [fields.get(field) for field in _FIELD_BYTES]
    return build(session_id.decode(), [None if value is None else value.decode(errors="replace") for value in values])


def build(session_id: str, values: Sequence[str | None]) -> Session:
    """The session of an id and its hash's values in the order of FIELDS.

    All that is left of a session that outlived its grace unswept is its id and its start; the rest reads as empty.
    """
    agent, task, trigger, inbox, about, started, due, ttl, runner, provider, runtime, progress, stop, meta = values
    begun = int(started or 0)
    deadline = begun if due is None else int(due)
    life, life_seconds = _life(ttl)
    return {
        "id": session_id,
        "agentId": agent or "",
        "taskId": task,
        "triggerType": trigger or "",
        "inboxMessageId": inbox,
        "taskDescription": about,
        "startedAt": timestamp(begun),
        "lastHeartbeatAt": timestamp(deadline - life),
        "runnerSessionId": runner,
        "providerSessionId": provider,
        "runtimeInstanceId": runtime,
        "ttlSeconds": life_seconds,
        "expiresAt": timestamp(deadline),
        "progress": progress,
        "stopRequestedAt": None if stop is None else timestamp(int(stop)),
        "metadata": {} if meta is None else from_json(meta),
    }
