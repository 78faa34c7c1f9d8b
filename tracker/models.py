"""The vocabulary of the wire: the session, the requests, the answers, the events.

Requests are pydantic models: strict types, ``null`` reads as absent, unknown fields are ignored. Answers are typed
dictionaries in the order in which they are written to the wire, because the store makes them by the ten thousand and
each is encoded once and never validated again. Names on the wire are camelCase; source: ``shared/API.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
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
EVENTS_DEFAULT_LIMIT = 100
TTL_SECONDS_MAX = 86_400
IDEMPOTENCY_KEY_LENGTH = 512
IDEMPOTENCY_SECONDS = 86_400

SESSION_ID_PATTERN = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

Id = Annotated[str, StringConstraints(min_length=1, max_length=ID_LENGTH)]
Progress = Annotated[str, StringConstraints(max_length=PROGRESS_LENGTH)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=METADATA_KEY_LENGTH)]
MetadataValue = Annotated[str, StringConstraints(max_length=METADATA_VALUE_LENGTH)]
Timestamp = Annotated[str, Field(description="RFC 3339, UTC, milliseconds.", json_schema_extra={"format": "date-time"})]
OnConflict = Literal["supersede", "reject", "replace", "reuse"]
EndReason = Literal["deleted", "expired", "replaced", "cleaned"]
EventType = Literal["session.created", "session.updated", "session.ended"]

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
    """A run that starts. ``ttlSeconds``: how long it may stay silent before it counts as dead."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agentId": "11df8931-4d7c-464d-b05b-275496c2b989",
                    "triggerType": "task_assigned",
                    "taskId": "t1",
                    "taskDescription": "fix the flaky test",
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
        description="Seconds without a heartbeat after which the run counts as dead. Absent: the server's default.",
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=METADATA_ENTRIES)] | None = Field(
        None, description="Free text pairs, kept and given back as they are."
    )
    on_conflict: OnConflict | None = Field(
        None,
        description="When the task already has a live session: `supersede` (default) replaces it if it is the same "
        "agent's, `reject` never, `replace` always, `reuse` renews it and answers with it.",
    )


class Heartbeat(Request):
    """A sign of life. ``sessionId`` fences: act only if that is the task's live session."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"progress": "running tests, 3 of 7"}]})

    session_id: Id | None = Field(None, description="Act only if this is the live session, else 409.")
    progress: Progress | None = Field(None, description="How far the run is, for people.")


class HeartbeatBatch(Request):
    """Signs of life for many runs: up to 1000 targets in all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"taskIds": ["t1", "t2"], "sessionIds": []}],
            "description": "Up to 1000 targets in all.",
        }
    )

    task_ids: Annotated[list[Id], Field(max_length=BATCH_TARGETS)] | None = Field(None, description="By task.")
    session_ids: Annotated[list[Id], Field(max_length=BATCH_TARGETS)] | None = Field(None, description="By session id.")

    @model_validator(mode="after")
    def _bounded_in_all(self) -> Self:
        if len(self.task_ids or ()) + len(self.session_ids or ()) > BATCH_TARGETS:
            raise ValueError(f"taskIds and sessionIds may have {BATCH_TARGETS} entries in all")
        return self


class ProviderSession(Request):
    """The provider's (Claude Code, Codex, ...) own id of the run: what resumes it after a crash."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"providerSessionId": "p-123"}]})

    provider_session_id: Id
    session_id: Id | None = Field(None, description="Act only if this is the live session, else 409.")


class Cleanup(Request):
    """Which sessions to end. Nothing given: those whose TTL has run out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"agentId": "11df8931-4d7c-464d-b05b-275496c2b989"}]})

    agent_id: Id | None = Field(None, description="All of that agent's sessions, live or not.")
    max_age_minutes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Those whose last heartbeat is at least that old, live or not."
    )
    runtime_instance_id: Id | None = Field(None, description="Only the sessions of that one runtime process.")


class Text(BaseModel):
    """What all query strings share: lax types, for everything in a URL is text."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


QueryId = Annotated[str, StringConstraints(max_length=ID_LENGTH)]


class ListSessions(Text):
    """Which sessions to list; an empty value means absent."""

    agent_id: QueryId | None = Field(None, description="Only this agent's.")
    task_id: QueryId | None = Field(None, description="Only this task's.")
    trigger_type: QueryId | None = Field(None, description="Only this trigger type.")
    runner_session_id: QueryId | None = Field(None, description="Only this runner session.")
    runtime_instance_id: QueryId | None = Field(None, description="Only this runtime process.")
    limit: Annotated[int, Field(ge=1, le=PAGE_LIMIT)] | None = Field(
        None, description="Page size. Absent: all sessions, streamed."
    )
    cursor: Annotated[str, StringConstraints(pattern=rf"^[0-9]{{1,15}}_{SESSION_ID_PATTERN}$")] | None = Field(
        None, description="The `nextCursor` of the page before."
    )


class ListEvents(Text):
    """Which part of the change feed."""

    after: Annotated[str, StringConstraints(max_length=200_000)] | None = Field(
        None, description="An event id: go on behind it. Absent: from the oldest event that the feed holds."
    )
    limit: Annotated[int, Field(ge=1, le=EVENTS_LIMIT)] | None = Field(None, description="Page size.")
    agent_id: QueryId | None = Field(None, description="Only this agent's.")
    type: EventType | None = Field(None, description="Only this type.")


class Fence(Text):
    """The query string of a delete by task."""

    session_id: QueryId | None = Field(None, description="Act only if this is the live session, else 409.")


# --- answers ----------------------------------------------------------------------------------------------------------


class Session(TypedDict):
    """One run of a task. Every field is always there, in this order."""

    id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    agentId: str
    taskId: str | None
    triggerType: str
    inboxMessageId: str | None
    taskDescription: str | None
    startedAt: Timestamp
    lastHeartbeatAt: Timestamp
    runnerSessionId: str | None
    providerSessionId: str | None
    runtimeInstanceId: str | None
    ttlSeconds: float
    expiresAt: Timestamp
    progress: str | None
    stopRequestedAt: Timestamp | None
    metadata: dict[str, str]


class OneSession(TypedDict):
    session: Session


class Sessions(TypedDict):
    sessions: list[Session]
    nextCursor: NotRequired[
        Annotated[str | None, Field(description="Only with `limit`: where the next page begins, null at the end.")]
    ]


class Deleted(TypedDict):
    deleted: bool


class Updated(TypedDict):
    updated: bool


class HeartbeatAnswer(TypedDict):
    """``expiresAt`` and ``stopRequested`` are there when ``updated`` is true."""

    updated: bool
    expiresAt: NotRequired[Timestamp]
    stopRequested: NotRequired[bool]


class Missing(TypedDict):
    taskIds: list[str]
    sessionIds: list[str]


class HeartbeatBatchAnswer(TypedDict):
    updated: int
    missing: Missing


class Cleaned(TypedDict):
    cleaned: int


class AgentCount(TypedDict):
    agentId: str
    sessions: int


class TriggerTypeCount(TypedDict):
    triggerType: str
    sessions: int


class EndedCounts(TypedDict):
    deleted: int
    expired: int
    replaced: int
    cleaned: int


class Stats(TypedDict):
    """What is running, in numbers. Ages are in seconds; null when nothing runs."""

    sessions: Annotated[int, Field(description="Live sessions.")]
    agents: Annotated[int, Field(description="Agents with a session.")]
    byAgent: Annotated[list[AgentCount], Field(description="The busiest agents first, 100 at most.")]
    byTriggerType: Annotated[list[TriggerTypeCount], Field(description="The most frequent first, 100 at most.")]
    expiredUnswept: Annotated[int, Field(description="Expired sessions whose end is not yet told.")]
    created: Annotated[int, Field(description="Sessions ever created.")]
    ended: Annotated[EndedCounts, Field(description="Sessions ever ended, by reason.")]
    oldestSessionAgeSeconds: float | None
    oldestHeartbeatAgeSeconds: float | None


class Event(TypedDict):
    """One change of one session, with the session as it was right after it (or right before its end)."""

    id: str
    type: EventType
    at: Timestamp
    reason: EndReason | None
    session: Session


class EventPage(TypedDict):
    events: list[Event]
    next: Annotated[str, Field(description="Pass it as `after` to go on.")]


class FieldError(TypedDict):
    field: str
    message: str


class Error(TypedDict):
    error: Annotated[str, Field(description="One sentence for people.")]


class ValidationFailure(TypedDict):
    error: str
    details: NotRequired[list[FieldError]]


class ConflictAnswer(TypedDict):
    error: str
    session: Annotated[Session, Field(description="The task's live session.")]


class Health(TypedDict):
    status: Literal["ok"]
    version: str


class Ready(TypedDict):
    status: Literal["ready", "unavailable"]
    error: NotRequired[str]
    store: NotRequired[dict[str, Any]]
    warnings: NotRequired[Annotated[list[str], Field(description="What an operator should change.")]]
