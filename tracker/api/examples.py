"""An example of every answer, for the documentation: one story, in the wire's own types, so that mypy reads it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from tracker import __version__
from tracker.api.metrics import Exposition
from tracker.models import (
    Cleaned,
    Deleted,
    Event,
    EventPage,
    Health,
    HeartbeatAnswer,
    HeartbeatBatchAnswer,
    OneSession,
    Ready,
    Session,
    Sessions,
    Stats,
    Updated,
)

__all__ = ["ANSWERS", "PATH", "SESSION", "STREAM"]

AGENT_ID = "11df8931-4d7c-464d-b05b-275496c2b989"
SESSION_ID = "0199b1f2-6c1e-7d1a-9a55-0c3f3f8f2a10"

PATH = {"id": SESSION_ID, "taskId": "t1"}
"""Path parameters, by name."""

SESSION: Session = {
    "id": SESSION_ID,
    "agentId": AGENT_ID,
    "taskId": "t1",
    "triggerType": "task_assigned",
    "inboxMessageId": None,
    "taskDescription": "fix the flaky test",
    "startedAt": "2026-11-23T22:33:42.695Z",
    "lastHeartbeatAt": "2026-11-23T22:33:42.695Z",
    "runnerSessionId": None,
    "providerSessionId": None,
    "runtimeInstanceId": None,
    "ttlSeconds": 1800,
    "expiresAt": "2026-11-23T23:03:42.695Z",
    "progress": None,
    "stopRequestedAt": None,
    "metadata": {},
}
_ENDED: Event = {
    "id": "1795478582695-0",
    "type": "session.ended",
    "at": "2026-11-23T23:03:45.120Z",
    "reason": "expired",
    "session": {**SESSION, "providerSessionId": "p-123"},
}
STREAM = f"""\
retry: 1523
id: 1795473222695-0

id: {_ENDED["id"]}
event: {_ENDED["type"]}
data: {to_json(_ENDED).decode()}

"""

ANSWERS: Mapping[Any, Any] = {
    OneSession: OneSession(session=SESSION),
    Sessions: Sessions(sessions=[SESSION], nextCursor=f"1795473222695_{SESSION_ID}"),
    Deleted: Deleted(deleted=True),
    Updated: Updated(updated=True),
    HeartbeatAnswer: HeartbeatAnswer(updated=True, expiresAt="2026-11-23T23:04:12.318Z", stopRequested=False),
    HeartbeatBatchAnswer: HeartbeatBatchAnswer(updated=1, missing={"taskIds": ["t2"], "sessionIds": []}),
    Cleaned: Cleaned(cleaned=3),
    Stats: Stats(
        sessions=3,
        agents=2,
        byAgent=[{"agentId": AGENT_ID, "sessions": 2}, {"agentId": "reviewer", "sessions": 1}],
        byTriggerType=[{"triggerType": "task_assigned", "sessions": 3}],
        expiredUnswept=0,
        created=1284,
        ended={"deleted": 1262, "expired": 12, "replaced": 4, "cleaned": 3},
        oldestSessionAgeSeconds=5421.073,
        oldestHeartbeatAgeSeconds=4.81,
    ),
    EventPage: EventPage(events=[_ENDED], next=_ENDED["id"]),
    Health: Health(status="ok", version=__version__),
    Ready: Ready(status="ready", store={"kind": "redis", "shards": 1, "version": "Redis 7.4.1"}, warnings=[]),
    (Ready, 503): Ready(status="unavailable", error="The store does not answer"),
    dict[str, Any]: {"openapi": "3.1.0", "info": {"title": "Tracker", "version": __version__}},
    str: "<!doctype html>",
    Exposition: "# HELP tracker_sessions Live sessions.\n# TYPE tracker_sessions gauge\ntracker_sessions 3.0\n",
}
"""By type; by type and status where a status has an example of its own."""
