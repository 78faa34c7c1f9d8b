"""Between a session's hash in Redis and the session on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic_core import from_json, to_json

from tracker.models import CreateSession, Session

__all__ = ["decode", "encode", "seconds", "timestamp"]


@lru_cache(maxsize=8192)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC."""
    second, rest = divmod(ms, 1000)
    return f"{_second(second)}.{rest:03d}Z"


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
    """The session of an id and its hash as field, value, ...; other fields among them are passed over.

    All that is left of a session that outlived its grace unswept is its id and its start; the rest reads as empty.
    """
    fields = dict(zip(flat[::2], flat[1::2], strict=True))

    def text(field: bytes) -> str | None:
        value = fields.get(field)
        return None if value is None else value.decode()

    started = int(fields[b"started"])
    ttl = int(fields.get(b"ttl", 0))
    due = int(fields.get(b"due", started))
    stop = fields.get(b"stop")
    meta: Any = fields.get(b"meta")
    return {
        "id": session_id.decode(),
        "agentId": text(b"agent") or "",
        "taskId": text(b"task"),
        "triggerType": text(b"trigger") or "",
        "inboxMessageId": text(b"inbox"),
        "taskDescription": text(b"about"),
        "startedAt": timestamp(started),
        "lastHeartbeatAt": timestamp(due - ttl),
        "runnerSessionId": text(b"runner"),
        "providerSessionId": text(b"provider"),
        "runtimeInstanceId": text(b"runtime"),
        "ttlSeconds": seconds(ttl),
        "expiresAt": timestamp(due),
        "progress": text(b"progress"),
        "stopRequestedAt": None if stop is None else timestamp(int(stop)),
        "metadata": {} if meta is None else from_json(meta),
    }
