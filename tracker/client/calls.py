"""The calls of the API, as values: what to send, and what its answer means. Nothing is sent here.

Each function makes a `Call`; both clients have a method for each, which sends it (see `sync.py`, `asynchronous.py`).
Ids are any text: in paths they are percent-encoded so that they arrive as they are, whatever they hold.
"""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Required, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote

from tracker.client.errors import Invalid, UnexpectedAnswer, refusal_of
from tracker.models import (
    Cleaned,
    Deleted,
    EventPage,
    EventType,
    Health,
    HeartbeatAnswer,
    HeartbeatBatchAnswer,
    OnConflict,
    OneSession,
    Ready,
    Sessions,
    Stats,
    Updated,
)

__all__ = [
    "Call",
    "Filters",
    "NewSession",
    "cleanup",
    "create_session",
    "delete_by_task",
    "delete_session",
    "follow_events",
    "health",
    "heartbeat",
    "heartbeat_by_task",
    "heartbeat_many",
    "list_events",
    "list_sessions",
    "openapi",
    "read_by_task",
    "read_session",
    "ready",
    "request_stop",
    "set_provider_session",
    "signature_of",
    "stats",
]

BASE = "/api/active-sessions"
LITERALS = frozenset({"by-task", "cleanup", "events", "heartbeat", "provider-session", "stats"})
"""Segments that mean something where an id could stand."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. ``path`` is percent-encoded, with its query string.

    ``repeatable``: to do it twice is to do it once, so a lost answer may be asked for again.
    """

    method: str
    path: str
    parse: Callable[[object], T]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    statuses: frozenset[int] = frozenset({200})

    def outcome(self, status: int, headers: Mapping[str, str], content: bytes) -> T:
        """What the answer says. Raises the TrackerClientError that it stands for; header names are lower case."""
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if status in self.statuses and (status < 500 or isinstance(body, dict)):
            return self.parse(body)
        raise refusal_of(status, headers, body)


class NewSession(TypedDict, total=False):
    """What a session is registered with."""

    agent_id: Required[str]
    trigger_type: Required[str]
    task_id: str | None
    inbox_message_id: str | None
    task_description: str | None
    runner_session_id: str | None
    runtime_instance_id: str | None
    ttl_seconds: float | None
    metadata: Mapping[str, str] | None
    on_conflict: OnConflict | None


class Filters(TypedDict, total=False):
    """Which sessions to list."""

    agent_id: str | None
    task_id: str | None
    trigger_type: str | None
    runner_session_id: str | None
    runtime_instance_id: str | None


def list_sessions(*, limit: int | None = None, cursor: str | None = None, **filters: Unpack[Filters]) -> Call[Sessions]:
    """The live sessions, newest first; with `limit` (1 to 1000) a page of them, and `nextCursor` leads to the next."""
    return Call("GET", BASE + _query(limit=limit, cursor=cursor, **filters), _having(Sessions, "sessions", list))


def create_session(*, idempotency_key: str | None = None, **session: Unpack[NewSession]) -> Call[OneSession]:
    """Register a run that starts. Without an `idempotency_key` it gets one of its own, so that retries are safe.

    Raises Conflict when the task has a live session that `on_conflict` does not let go.
    """
    return Call(
        "POST",
        BASE,
        _having(OneSession, "session", dict),
        body=_json(session),
        headers={"Idempotency-Key": _header("Idempotency-Key", idempotency_key or uuid.uuid4().hex)},
        statuses=frozenset({200, 201}),
    )


def read_session(session_id: str) -> Call[OneSession]:
    """One live session, by its id. Raises NotFound."""
    return Call("GET", f"{BASE}/{_segment(session_id, 'id')}", _having(OneSession, "session", dict))


def read_by_task(task_id: str) -> Call[OneSession]:
    """The live session of a task. Raises NotFound."""
    return Call("GET", f"{BASE}/by-task/{_segment(task_id, 'taskId')}", _having(OneSession, "session", dict))


def heartbeat(session_id: str, *, progress: str | None = None) -> Call[HeartbeatAnswer]:
    """Renew a live session, by its id; `progress` (up to 512 characters) tells people how far the run is."""
    path = f"{BASE}/{_segment(session_id, 'id')}/heartbeat"
    return Call("PUT", path, _having(HeartbeatAnswer, "updated", bool), _json({"progress": progress}))


def heartbeat_by_task(
    task_id: str, *, session_id: str | None = None, progress: str | None = None
) -> Call[HeartbeatAnswer]:
    """Renew the live session of a task. Raises Conflict when `session_id` is given and another one is the live one."""
    path = f"{BASE}/heartbeat/{_segment(task_id, 'taskId')}"
    body = _json({"session_id": session_id, "progress": progress})
    return Call("PUT", path, _having(HeartbeatAnswer, "updated", bool), body)


def heartbeat_many(*, task_ids: Iterable[str] = (), session_ids: Iterable[str] = ()) -> Call[HeartbeatBatchAnswer]:
    """Renew up to 1000 sessions at once; the answer names those that are not there."""
    body = _json({"task_ids": [*task_ids], "session_ids": [*session_ids]})
    return Call("PUT", BASE + "/heartbeat", _having(HeartbeatBatchAnswer, "missing", dict), body)


def set_provider_session(task_id: str, provider_session_id: str, *, session_id: str | None = None) -> Call[Updated]:
    """Note the provider's own session id on the live session of a task: what resumes the run after a crash.

    Raises Conflict when `session_id` is given and another one is the live one. Does not renew the TTL.
    """
    path = f"{BASE}/provider-session/{_segment(task_id, 'taskId')}"
    body = _json({"provider_session_id": provider_session_id, "session_id": session_id})
    return Call("PUT", path, _having(Updated, "updated", bool), body)


def delete_session(session_id: str) -> Call[Deleted]:
    """End a live session, by its id. A retry after a lost answer may say `false` for what the first try ended."""
    return Call("DELETE", f"{BASE}/{_segment(session_id, 'id')}", _having(Deleted, "deleted", bool))


def delete_by_task(task_id: str, *, session_id: str | None = None) -> Call[Deleted]:
    """End the live session of a task. Raises Conflict when `session_id` is given and another one is the live one.

    Repeated after a lost answer only with `session_id`: without, the repetition might end a successor.
    """
    path = f"{BASE}/by-task/{_segment(task_id, 'taskId')}{_query(session_id=session_id)}"
    return Call("DELETE", path, _having(Deleted, "deleted", bool), repeatable=session_id is not None)


def request_stop(session_id: str) -> Call[Updated]:
    """Ask a run to stop: it learns of it from its next heartbeat."""
    return Call("PUT", f"{BASE}/{_segment(session_id, 'id')}/stop", _having(Updated, "updated", bool))


def cleanup(
    *, agent_id: str | None = None, max_age_minutes: int | None = None, runtime_instance_id: str | None = None
) -> Call[Cleaned]:
    """End sessions: the expired ones, or those of an agent, of a runtime, or too long silent.

    Never repeated once it may have arrived: sessions that began in between would end too.
    """
    body = _json({"agent_id": agent_id, "max_age_minutes": max_age_minutes, "runtime_instance_id": runtime_instance_id})
    return Call("POST", BASE + "/cleanup", _having(Cleaned, "cleaned", int), body, repeatable=False)


def stats() -> Call[Stats]:
    """What runs and what ever did, in numbers."""
    return Call("GET", BASE + "/stats", _having(Stats, "sessions", int))


def list_events(
    *,
    after: str | None = None,
    limit: int | None = None,
    last: int | None = None,
    agent_id: str | None = None,
    type: EventType | None = None,  # noqa: A002 - the name on the wire
    wait: int | None = None,
) -> Call[EventPage]:
    """A page of the change feed, oldest first; go on with `after` set to its `next`. Raises PositionLost.

    `last`: instead that many of the newest events. `wait`: seconds for which the server may hold back an empty page.
    """
    query = _query(after=after, limit=limit, last=last, agent_id=agent_id, type=type, wait=wait)
    return Call("GET", BASE + "/events" + query, _having(EventPage, "events", list))


def follow_events(
    *,
    after: str | None,
    agent_id: str | None,
    type: EventType | None,  # noqa: A002 - the name on the wire
) -> Call[EventPage]:
    """The change feed as a stream of server-sent events, which `events.py` reads; or as a page, where there is none."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after is not None:
        headers["Last-Event-ID"] = _header("after", after)
    query = _query(after=after, agent_id=agent_id, type=type)
    return Call("GET", BASE + "/events" + query, _having(EventPage, "events", list), headers=headers)


def health() -> Call[Health]:
    """Whether the server's process is up, without a look at its store."""
    return Call("GET", "/health", _having(Health, "status", str))


def ready() -> Call[Ready]:
    """Whether the server can reach its store, and what an operator should change. Not ready is an answer, no error."""
    return Call("GET", "/ready", _having(Ready, "status", str), repeatable=False, statuses=frozenset({200, 503}))


def openapi() -> Call[dict[str, Any]]:
    """The description of the interface: OpenAPI 3.1."""
    return Call("GET", "/openapi.json", _having(dict[str, Any], "openapi", str))


def signature_of(make: Callable[..., Call[Any]]) -> inspect.Signature:
    """What the client's method that sends such a call looks like, for help and editors."""
    signature = inspect.signature(make)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    answer = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    return signature.replace(parameters=[this, *signature.parameters.values()], return_annotation=answer)


def _having(kind: type[T], name: str, shape: type) -> Callable[[object], T]:
    """Takes a JSON object for an answer of a kind when it has the field that tells it from others."""

    def parse(body: object) -> T:
        if not isinstance(body, dict) or not isinstance(body.get(name), shape):
            raise UnexpectedAnswer(f"No answer of a tracker: its JSON has no {name}")
        return cast("T", body)

    return parse


def _segment(text: str, name: str) -> str:
    """A text as a path segment that nothing on the way takes for something else.

    Dots alone would be a step upwards, and an id that reads as a segment of the API would be taken for it.
    """
    if not text:
        raise _breach(name, "String should have at least 1 character")
    encoded = _quoted(text, name)
    if not encoded.strip("."):
        return encoded.replace(".", "%2E")
    return f"%{ord(encoded[0]):02X}{encoded[1:]}" if encoded in LITERALS else encoded


def _query(**parameters: object) -> str:
    """None is absent; an empty text, which would be absent to the server as well, is refused: a filter that filters
    nothing, or a fence that fences nothing, is nobody's intention."""
    given = {_camel(name): value for name, value in parameters.items() if value is not None}
    for name, value in given.items():
        if value == "":
            raise _breach(name, "String should have at least 1 character")
    pairs = [f"{name}={_quoted(str(value), name)}" for name, value in given.items()]
    return "?" + "&".join(pairs) if pairs else ""


def _quoted(text: str, name: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise _breach(name, "Not valid Unicode") from None


def _header(name: str, value: str) -> str:
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise _breach(name, "String should be printable ASCII, without spaces around it")
    return value


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps({_camel(name): value for name, value in fields.items() if value is not None}).encode()


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _breach(name: str, message: str) -> Invalid:
    return Invalid(f"Validation error: {name}: {message}", [{"field": name, "message": message}])
