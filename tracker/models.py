"""The vocabulary of the wire: the session, the requests, the answers, the events.

Requests are pydantic models: strict types, ``null`` reads as absent, unknown fields are ignored. Answers are typed
dictionaries in the order in which they are written to the wire, because the store makes them by the ten thousand and
each is encoded once and never validated again. Names on the wire are camelCase; source: ``shared/API.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

ID_LENGTH = 512
DESCRIPTION_LENGTH = 16_384
PROGRESS_LENGTH = 512
METADATA_ENTRIES = 32
METADATA_KEY_LENGTH = 64
METADATA_VALUE_LENGTH = 512
BATCH_TARGETS = 1000
PAGE_LIMIT = 1000
EVENTS_LIMIT = 1000
POSITION_LENGTH = 60_000  # a URL has 64 KiB at most
EVENTS_DEFAULT_LIMIT = 100
WAIT_SECONDS_MAX = 60
TTL_SECONDS_MAX = 86_400
IDEMPOTENCY_KEY_LENGTH = 512
IDEMPOTENCY_SECONDS = 86_400

SESSION_ID_PATTERN = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

Id = Annotated[str, StringConstraints(min_length=1, max_length=ID_LENGTH)]
IdempotencyKey = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=IDEMPOTENCY_KEY_LENGTH, pattern=r"^[!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?$"
    ),
]
Progress = Annotated[str, StringConstraints(max_length=PROGRESS_LENGTH)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=METADATA_KEY_LENGTH)]
MetadataValue = Annotated[str, StringConstraints(max_length=METADATA_VALUE_LENGTH)]
Timestamp = Annotated[str, Field(description="RFC 3339, UTC, milliseconds.", json_schema_extra={"format": "date-time"})]


def _whole(number: object) -> object:
    """JSON has one kind of number: 5.0 is as whole as 5, and JSON Schema takes it for an integer."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


# Limits go before the validator: behind one pydantic knows them, but leaves them out of the JSON Schema.
Minutes = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
OnConflict = Literal["supersede", "reject", "replace", "reuse"]
EndReason = Literal["deleted", "expired", "replaced", "cleaned"]
EventType = Literal["session.created", "session.updated", "session.ended"]

EVENT_TYPES: tuple[EventType, ...] = ("session.created", "session.updated", "session.ended")
END_REASONS: tuple[EndReason, ...] = ("deleted", "expired", "replaced", "cleaned")


@dataclass(frozen=True, slots=True)
class Target:
    """Which session a call means: the live one of a task, or the one with an id."""

    kind: Literal["task", "id"]
    value: str

    @classmethod
    def task(cls, task_id: str) -> Target:
        return cls("task", task_id)

    @classmethod
    def id(cls, session_id: str) -> Target:
        return cls("id", session_id)


# --- requests ---------------------------------------------------------------------------------------------------------


class Request(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=to_camel)


class CreateSession(Request):
    """A run that starts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agentId": "11df8931-4d7c-464d-b05b-275496c2b989",
                    "triggerType": "task_assigned",
                    "taskId": "t1",
                    "taskDescription": "fix the flaky test",
                    "ttlSeconds": 1800,
                }
            ]
        }
    )

    agent_id: Id = Field(description="Who runs: normally a UUID, but any string is accepted.")
    trigger_type: Id = Field(description="What set the run off, such as `task_assigned`.")
    task_id: Id | None = Field(None, description="The task: at most one live session each. May be absent.")
    inbox_message_id: Id | None = Field(None, description="The message that set the run off.")
    task_description: Annotated[str, StringConstraints(max_length=DESCRIPTION_LENGTH)] | None = Field(
        None, description="What the run is about, for people."
    )
    runner_session_id: Id | None = Field(None, description="The runner's own id of the run.")
    runtime_instance_id: Id | None = Field(None, description="The process that runs it.")
    ttl_seconds: Annotated[float, Field(ge=1, le=TTL_SECONDS_MAX, allow_inf_nan=False)] | None = Field(
        None,
        description="Seconds without a heartbeat after which the run counts as dead. Absent: what the server is set "
        "to, 1800 unless its operator chose otherwise.",
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=METADATA_ENTRIES)] | None = Field(
        None, description="Free text pairs, kept and given back as they are."
    )
    on_conflict: OnConflict | None = Field(
        None,
        description="When the task already has a live session: `supersede` replaces it if it is the same agent's, "
        "`reject` never, `replace` always, `reuse` renews it and answers with it.",
        json_schema_extra={"default": "supersede"},
    )


class Heartbeat(Request):
    """A sign of life."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"progress": "running tests, 3 of 7"}]})

    session_id: Id | None = Field(None, description="Act only if this is the live session, else 409.")
    progress: Progress | None = Field(None, description="How far the run is, for people.")


class HeartbeatBatch(Request):
    """Signs of life for many runs: up to 1000 targets in all."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"taskIds": ["t1", "t2"], "sessionIds": []}]})

    task_ids: Annotated[list[Id], Field(max_length=BATCH_TARGETS)] | None = Field(
        None, description="Renew the live sessions of these tasks."
    )
    session_ids: Annotated[list[Id], Field(max_length=BATCH_TARGETS)] | None = Field(
        None, description="Renew the live sessions with these ids."
    )

    @model_validator(mode="after")
    def _bounded_in_all(self) -> Self:
        if len(self.task_ids or ()) + len(self.session_ids or ()) > BATCH_TARGETS:
            raise ValueError(f"taskIds and sessionIds may have {BATCH_TARGETS} entries in all")
        return self


class ProviderSession(Request):
    """The provider's (Claude Code, Codex, ...) own id of the run: what resumes it after a crash."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"providerSessionId": "p-123"}]})

    provider_session_id: Id = Field(description="The provider's own session id.")
    session_id: Id | None = Field(None, description="Act only if this is the live session, else 409.")


class Cleanup(Request):
    """Which sessions to end. Nothing given: those whose TTL has run out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"agentId": "11df8931-4d7c-464d-b05b-275496c2b989"}]})

    agent_id: Id | None = Field(None, description="All of that agent's sessions, live or not.")
    max_age_minutes: Minutes | None = Field(
        None, description="Those whose last heartbeat is at least that old, live or not."
    )
    runtime_instance_id: Id | None = Field(None, description="Only the sessions of that one runtime process.")


class Text(BaseModel):
    """What all query strings share: lax types, for everything in a URL is text."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


CURSOR_PATTERN = rf"^[0-9]{{1,15}}_{SESSION_ID_PATTERN}$"


def _plain_number(text: object) -> object:
    if isinstance(text, str) and not re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", text):
        raise ValueError("Input should be a whole number")
    return text


def _cursor(text: str) -> str:
    if not re.fullmatch(CURSOR_PATTERN, text):
        raise ValueError("Not a cursor of this tracker")
    return text


QueryId = Annotated[str, StringConstraints(max_length=ID_LENGTH)]
Cursor = Annotated[str, AfterValidator(_cursor), Field(json_schema_extra={"pattern": CURSOR_PATTERN})]


class ListSessions(Text):
    """Which sessions to list; an empty value means absent."""

    agent_id: QueryId | None = Field(
        None, description="Only this agent's.", examples=["11df8931-4d7c-464d-b05b-275496c2b989"]
    )
    task_id: QueryId | None = Field(None, description="Only this task's.")
    trigger_type: QueryId | None = Field(None, description="Only this trigger type.")
    runner_session_id: QueryId | None = Field(None, description="Only this runner session.")
    runtime_instance_id: QueryId | None = Field(None, description="Only this runtime process.")
    limit: Annotated[int, Field(ge=1, le=PAGE_LIMIT), BeforeValidator(_plain_number)] | None = Field(
        None, description="Page size. Absent: all sessions, streamed.", examples=[100]
    )
    cursor: Cursor | None = Field(None, description="The `nextCursor` of the page before.")


POSITION_PATTERN = r"^(0|[0-9]{1,20}-[0-9]{1,20}(\.[0-9]{1,20}-[0-9]{1,20})*)$"


class ListEvents(Text):
    """Which part of the change feed."""

    after: Annotated[str, StringConstraints(max_length=POSITION_LENGTH)] | None = Field(
        None,
        description="An event id: go on behind it. `0`: from the oldest event that the feed holds. Absent: a page "
        "begins there as well, a stream with what comes next.",
        json_schema_extra={"pattern": POSITION_PATTERN},
    )
    limit: Annotated[int, Field(ge=1, le=EVENTS_LIMIT), BeforeValidator(_plain_number)] | None = Field(
        None, description="Page size.", json_schema_extra={"default": EVENTS_DEFAULT_LIMIT}
    )
    last: Annotated[int, Field(ge=1, le=EVENTS_LIMIT), BeforeValidator(_plain_number)] | None = Field(
        None, description="A page of that many of the newest events instead; goes without `after` and `limit`."
    )
    agent_id: QueryId | None = Field(None, description="Only this agent's.")
    type: EventType | None = Field(None, description="Only this type.", examples=["session.ended"])
    wait: Annotated[int, Field(ge=0, le=WAIT_SECONDS_MAX), BeforeValidator(_plain_number)] | None = Field(
        None,
        description="Seconds that a page may wait for its first event, if there is none yet.",
        json_schema_extra={"default": 0},
    )

    @property
    def filtered(self) -> bool:
        """Whether some events may not fit."""
        return bool(self.agent_id or self.type)

    @model_validator(mode="after")
    def _one_way_to_page(self) -> Self:
        if self.last is not None and (self.after is not None or self.limit is not None):
            raise ValueError("last goes without after and limit")
        return self


class Resumption(Text):
    """The headers of a stream of events."""

    last_event_id: Annotated[str, StringConstraints(max_length=POSITION_LENGTH)] | None = Field(
        None,
        alias="Last-Event-ID",
        description="As `after`, which it goes before in a stream, and behind in a page: what browsers send when they "
        "reconnect. Empty means absent.",
        json_schema_extra={"pattern": POSITION_PATTERN.replace(")$", ")?$")},
    )


class Fence(Text):
    """The query string of a delete by task."""

    session_id: QueryId | None = Field(None, description="Act only if this is the live session, else 409.")


class Idempotency(Text):
    """The headers of a create."""

    idempotency_key: IdempotencyKey | None = Field(
        None,
        alias="Idempotency-Key",
        description="Makes a retry safe: the same key and body again within 24 hours answer with the first session.",
        examples=["run-7f3c9a"],
    )


# --- answers ----------------------------------------------------------------------------------------------------------


class Session(TypedDict):
    """One run of a task. Every field is always there, in this order."""

    id: Annotated[str, Field(description="A UUID, made by the server.", json_schema_extra={"format": "uuid"})]
    agentId: Annotated[str, Field(description="Who runs it.")]
    taskId: Annotated[str | None, Field(description="What it runs.")]
    triggerType: Annotated[str, Field(description="What set it off.")]
    inboxMessageId: Annotated[str | None, Field(description="The message that set it off.")]
    taskDescription: Annotated[str | None, Field(description="What it is about, for people.")]
    startedAt: Annotated[Timestamp, Field(description="When it was registered.")]
    lastHeartbeatAt: Annotated[Timestamp, Field(description="Its last sign of life.")]
    runnerSessionId: Annotated[str | None, Field(description="The runner's own id of it.")]
    providerSessionId: Annotated[str | None, Field(description="The provider's own id of it: what resumes it.")]
    runtimeInstanceId: Annotated[str | None, Field(description="The process that runs it.")]
    ttlSeconds: Annotated[float, Field(description="How long it may stay silent before it counts as dead.")]
    expiresAt: Annotated[Timestamp, Field(description="When it counts as dead, if no heartbeat comes before.")]
    progress: Annotated[str | None, Field(description="How far it is, as its last heartbeat told.")]
    stopRequestedAt: Annotated[Timestamp | None, Field(description="When it was first asked to stop.")]
    metadata: Annotated[dict[str, str], Field(description="Free text pairs, as they were given.")]


class OneSession(TypedDict):
    """The session."""

    session: Annotated[Session, Field(description="The session as it is now.")]


class Sessions(TypedDict):
    """The sessions, newest first."""

    sessions: Annotated[list[Session], Field(description="Live sessions, newest `startedAt` first.")]
    nextCursor: NotRequired[
        Annotated[str | None, Field(description="Only with `limit`: where the next page begins, null at the end.")]
    ]


class Deleted(TypedDict):
    """Whether there was a session to end."""

    deleted: Annotated[bool, Field(description="False when there was no such live session.")]


class Updated(TypedDict):
    """Whether there was a session to change."""

    updated: Annotated[bool, Field(description="False when there is no such live session.")]


class HeartbeatAnswer(TypedDict):
    """Whether there was a session to renew."""

    updated: Annotated[bool, Field(description="False when there is no such live session.")]
    expiresAt: NotRequired[
        Annotated[Timestamp, Field(description="When `updated`: the time by which to send the next heartbeat.")]
    ]
    stopRequested: NotRequired[Annotated[bool, Field(description="When `updated`: whether the run was asked to stop.")]]


class Missing(TypedDict):
    """What of a batch was not there."""

    taskIds: Annotated[list[str], Field(description="Tasks.")]
    sessionIds: Annotated[list[str], Field(description="Session ids.")]


class Stopping(TypedDict):
    """What of a batch was asked to stop."""

    taskIds: Annotated[list[str], Field(description="Tasks.")]
    sessionIds: Annotated[list[str], Field(description="Session ids.")]


class HeartbeatBatchAnswer(TypedDict):
    """How many were renewed, and which were not there."""

    updated: Annotated[int, Field(description="Targets whose session was renewed.")]
    missing: Annotated[Missing, Field(description="Targets without a live session.")]
    stopRequested: NotRequired[
        Annotated[Stopping, Field(description="Targets whose run was asked to stop; absent when none was.")]
    ]


class Cleaned(TypedDict):
    """How many sessions ended."""

    cleaned: Annotated[int, Field(description="Sessions that this very call ended.")]


class AgentCount(TypedDict):
    """An agent and how many sessions it has."""

    agentId: Annotated[str, Field(description="The agent.")]
    sessions: Annotated[int, Field(description="Its live sessions.")]


class TriggerTypeCount(TypedDict):
    """A trigger type and how many sessions it has."""

    triggerType: Annotated[str, Field(description="The trigger type.")]
    sessions: Annotated[int, Field(description="Its live sessions.")]


class EndedCounts(TypedDict):
    """How many sessions ended, and why."""

    deleted: Annotated[int, Field(description="By a delete.")]
    expired: Annotated[int, Field(description="For want of heartbeats.")]
    replaced: Annotated[int, Field(description="By a later session of the same task.")]
    cleaned: Annotated[int, Field(description="By a cleanup that asked for them.")]


class Stats(TypedDict):
    """What is running, in numbers."""

    sessions: Annotated[int, Field(description="Live sessions.")]
    agents: Annotated[int, Field(description="Agents with a session.")]
    byAgent: Annotated[list[AgentCount], Field(description="The busiest agents first, 100 at most.")]
    byTriggerType: Annotated[list[TriggerTypeCount], Field(description="The most frequent first, 100 at most.")]
    expiredUnswept: Annotated[int, Field(description="Expired sessions whose end is not yet told.")]
    created: Annotated[int, Field(description="Sessions ever created.")]
    ended: Annotated[EndedCounts, Field(description="Sessions ever ended, by reason.")]
    oldestSessionAgeSeconds: Annotated[
        float | None, Field(description="How long ago the oldest session began; null when nothing runs.")
    ]
    oldestHeartbeatAgeSeconds: Annotated[
        float | None, Field(description="The longest time since a heartbeat; null when nothing runs.")
    ]


class Event(TypedDict):
    """One change of one session, with the session as it was right after it (or right before its end)."""

    id: Annotated[str, Field(description="Its position in the feed.")]
    type: Annotated[EventType, Field(description="What happened.")]
    at: Annotated[Timestamp, Field(description="When it happened.")]
    reason: Annotated[EndReason | None, Field(description="Why the session ended; null for other events.")]
    session: Annotated[Session, Field(description="The whole session.")]


class EventPage(TypedDict):
    """A page of the feed, oldest first."""

    events: Annotated[list[Event], Field(description="The events behind `after`, oldest first.")]
    next: Annotated[str, Field(description="Pass it as `after` to go on.")]


class FieldError(TypedDict):
    """A field and what is wrong with it."""

    field: Annotated[str, Field(description="The name on the wire, with dots into lists and objects.")]
    message: Annotated[str, Field(description="What is wrong with it.")]


class Error(TypedDict):
    """What went wrong."""

    error: Annotated[str, Field(description="One sentence for people.")]


class ValidationFailure(TypedDict):
    """What is wrong with the request."""

    error: Annotated[str, Field(description="One sentence for people.")]
    details: Annotated[list[FieldError], Field(description="Each breach; the first 20 of them.")]


class ConflictAnswer(TypedDict):
    """What stands in the way."""

    error: Annotated[str, Field(description="One sentence for people.")]
    session: Annotated[Session, Field(description="The task's live session.")]


class Health(TypedDict):
    """The process is up."""

    status: Annotated[Literal["ok"], Field(description="Always `ok`.")]
    version: Annotated[str, Field(description="The tracker's version.")]


class Ready(TypedDict):
    """Whether the store can be used, and what an operator should know."""

    status: Annotated[Literal["ready", "draining", "unavailable"], Field(description="Whether to send callers here.")]
    error: NotRequired[Annotated[str, Field(description="Why not.")]]
    store: NotRequired[Annotated[dict[str, Any], Field(description="What the store tells of itself.")]]
    warnings: NotRequired[Annotated[list[str], Field(description="What an operator should change.")]]
