"""The handlers: parse, one store call, answer. Errors are raised, and written by the table in responses.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from tracker import __version__
from tracker.api import dashboard, docs
from tracker.api.accept import negotiate
from tracker.api.metrics import CONTENT_TYPE, Exposition
from tracker.api.openapi import describe
from tracker.api.operations import Operations
from tracker.api.requests import (
    drain_of,
    idempotency_key,
    last_event_id,
    metrics_of,
    read_body,
    read_query,
    store_of,
    while_there,
)
from tracker.api.responses import NotFound, answer, page_of_sessions, stream_sessions
from tracker.api.routing import NoSuchPath
from tracker.api.sse import EVENT_STREAM, EventStream, WaitingPage
from tracker.errors import StoreError
from tracker.models import (
    Cleaned,
    Cleanup,
    CreateSession,
    Deleted,
    EventPage,
    Fence,
    Health,
    Heartbeat,
    HeartbeatAnswer,
    HeartbeatBatch,
    HeartbeatBatchAnswer,
    Idempotency,
    ListEvents,
    ListSessions,
    OneSession,
    ProviderSession,
    Ready,
    Resumption,
    Sessions,
    Stats,
    Target,
    Updated,
)
from tracker.store.sessions import Beat
from tracker.store.snapshot import timestamp

__all__ = ["OPERATIONS"]

BASE = "/api/active-sessions"
JSON = "application/json"

OPERATIONS = Operations()
route = OPERATIONS.add


@route("GET", BASE, query=ListSessions, answers={200: Sessions})
async def list_sessions(request: Request) -> ASGIApp:
    """List the live sessions, newest first.

    Without `limit` all of them, streamed. With `limit` a page of them, and `nextCursor` leads to the next: a session
    that lives through the whole walk appears exactly once, whatever is created or ended meanwhile.
    """
    query, listing = read_query(request, ListSessions), store_of(request).listing
    if query.limit is None:
        return await stream_sessions(listing.chunks(query))
    return page_of_sessions(*await listing.page(query, query.limit))


@route(
    "POST",
    BASE,
    body=CreateSession,
    headers=Idempotency,
    answers={201: OneSession, 200: OneSession},
    errors=(409, 422),
)
async def create_session(request: Request) -> ASGIApp:
    """Register a run that starts.

    A task has at most one live session: `onConflict` says what becomes of an earlier one. 201 with the new session;
    200 with the one that was reused, or that an earlier call with this `Idempotency-Key` made.
    """
    body = await read_body(request, CreateSession)
    session, outcome = await store_of(request).sessions.create(body, idempotency_key(request))
    made = outcome == "created"
    headers = {"Location": f"{BASE}/{session['id']}"} if made else None
    return answer(OneSession(session=session), 201 if made else 200, headers)


@route("POST", BASE + "/cleanup", body=Cleanup, answers={200: Cleaned})
async def cleanup(request: Request) -> ASGIApp:
    """End sessions: the expired ones, or those of an agent, of a runtime, or too long silent.

    `{}` or no body: every session whose TTL has run out. `agentId`: all of that agent's, live or not (with the setting
    `TRACKER_AGENT_CLEANUP=expired` only its expired ones). `maxAgeMinutes`: those whose last heartbeat is at least that
    old, live or not, and those whose TTL has run out; with `agentId` only among that agent's. `runtimeInstanceId`: only
    the sessions of that runtime process. `cleaned` counts what this very call ended.
    """
    body = await read_body(request, Cleanup)
    return answer(Cleaned(cleaned=await store_of(request).sweeper.cleanup(body)))


@route("GET", BASE + "/stats", answers={200: Stats})
async def read_stats(request: Request) -> ASGIApp:
    """Tell in numbers what runs and what ever did.

    Its cost does not grow with the number of sessions.
    """
    return answer(await store_of(request).stats())


@route(
    "GET",
    BASE + "/events",
    query=ListEvents,
    headers=Resumption,
    answers={200: EventPage},
    errors=(410,),
    tag="events",
    streams=True,
)
async def list_events(request: Request) -> ASGIApp:
    """Follow the change feed: as a stream of server-sent events, or page by page, oldest first.

    Each session has exactly one `session.created` and one `session.ended` event, in order. The feed keeps the newest
    events only. A page leads on: pass its `next` as `after`; 410 when the feed no longer holds that position. `wait`
    lets a page wait for its first event.

    With `Accept: text/event-stream` a stream that begins with the next event, or behind `after` or `Last-Event-ID`. The
    data of an event is one line of JSON, the same object as in a page; `id` is where to go on after a break. An event
    `reset` tells that the position was lost, and where the stream goes on: its data is `{"id": ..., "error": ...}`.
    """
    query, resume, store = read_query(request, ListEvents), last_event_id(request), store_of(request)
    if negotiate(",".join(request.headers.getlist("accept")), (JSON, EVENT_STREAM)) == EVENT_STREAM:
        after, field = (resume, "Last-Event-ID") if resume else (query.after or None, "after")
        return EventStream(store.hub, query, after, field)
    store.feed.parse(resume, "Last-Event-ID")
    async with while_there(request.receive):
        page = await store.feed.page(query if query.after else query.model_copy(update={"after": resume}))
    if page["events"] or not query.wait:
        return answer(page)
    return WaitingPage(store.hub, query, page["next"])


@route("PUT", BASE + "/heartbeat", body=HeartbeatBatch, answers={200: HeartbeatBatchAnswer})
async def heartbeat_many(request: Request) -> ASGIApp:
    """Renew many sessions at once, by task and by session id.

    `stopRequested` is there when some of them were asked to stop, and names them.
    """
    body = await read_body(request, HeartbeatBatch)
    targets = [*map(Target.task, body.task_ids or ()), *map(Target.id, body.session_ids or ())]
    beats = await store_of(request).sessions.heartbeat_all(targets)
    missing = [target for target, beat in beats.items() if beat is None]
    stopping = [target for target, beat in beats.items() if beat is not None and beat.stop_requested]
    told = HeartbeatBatchAnswer(
        updated=len(beats) - len(missing),
        missing={"taskIds": _values(missing, "task"), "sessionIds": _values(missing, "id")},
    )
    if stopping:
        told["stopRequested"] = {"taskIds": _values(stopping, "task"), "sessionIds": _values(stopping, "id")}
    return answer(told)


@route("PUT", BASE + "/heartbeat/{taskId}", body=Heartbeat, answers={200: HeartbeatAnswer}, errors=(409,))
async def heartbeat_by_task(request: Request) -> ASGIApp:
    """Renew the live session of a task.

    `updated` is false when no live session has that task. With `sessionId`, 409 when another session is the live one.
    """
    return await _heartbeat(request, Target.task(request.path_params["taskId"]))


@route("PUT", BASE + "/{id}/heartbeat", body=Heartbeat, answers={200: HeartbeatAnswer}, errors=(409,))
async def heartbeat_by_id(request: Request) -> ASGIApp:
    """Renew a live session by its id: for sessions without a task."""
    return await _heartbeat(request, Target.id(request.path_params["id"]))


@route("PUT", BASE + "/provider-session/{taskId}", body=ProviderSession, answers={200: Updated}, errors=(409,))
async def set_provider_session(request: Request) -> ASGIApp:
    """Note the provider's own session id on the live session of a task.

    It is what resumes the run after a crash, and comes with the event that tells of its end. Does not renew the TTL.
    """
    body = await read_body(request, ProviderSession)
    target = Target.task(request.path_params["taskId"])
    sessions = store_of(request).sessions
    return answer(
        Updated(updated=await sessions.set_provider_session(target, body.provider_session_id, body.session_id))
    )


@route("GET", BASE + "/by-task/{taskId}", answers={200: OneSession}, errors=(404,))
async def read_by_task(request: Request) -> ASGIApp:
    """Read the live session of a task."""
    return await _read(request, Target.task(request.path_params["taskId"]))


@route("DELETE", BASE + "/by-task/{taskId}", query=Fence, answers={200: Deleted}, errors=(409,))
async def delete_by_task(request: Request) -> ASGIApp:
    """End the live session of a task.

    `deleted` is false when there is none. With `sessionId`, 409 when another session is the live one.
    """
    target, guard = Target.task(request.path_params["taskId"]), read_query(request, Fence).session_id
    return answer(Deleted(deleted=await store_of(request).sessions.delete(target, guard)))


@route("GET", BASE + "/{id}", answers={200: OneSession}, errors=(404,))
async def read_by_id(request: Request) -> ASGIApp:
    """Read a live session by its id."""
    return await _read(request, Target.id(request.path_params["id"]))


@route("DELETE", BASE + "/{id}", answers={200: Deleted})
async def delete_by_id(request: Request) -> ASGIApp:
    """End a live session by its id.

    `deleted` is false when there is none, also when the id is no UUID.
    """
    target = Target.id(request.path_params["id"])
    return answer(Deleted(deleted=await store_of(request).sessions.delete(target)))


@route("PUT", BASE + "/{id}/stop", answers={200: Updated})
async def request_stop(request: Request) -> ASGIApp:
    """Ask a run to stop: it learns of it from its next heartbeat.

    `updated` is false when there is no such live session. Asking again changes nothing.
    """
    target = Target.id(request.path_params["id"])
    return answer(Updated(updated=await store_of(request).sessions.request_stop(target)))


@route("GET", "/health", answers={200: Health}, tag="operations")
async def health(request: Request) -> ASGIApp:
    """Tell that the process is up, without a look at the store."""
    return answer(Health(status="ok", version=__version__))


@route("GET", "/ready", answers={200: Ready, 503: Ready}, tag="operations")
async def ready(request: Request) -> ASGIApp:
    """Tell whether the store can be reached and is laid out as expected, and what an operator should change.

    A server that was told to stop says `draining`, and serves on until nobody is sent to it any more.
    """
    if drain_of(request).unready:
        return answer(Ready(status="draining", error="The server is about to stop"), 503, {"Retry-After": "1"})
    try:
        findings = await store_of(request).inspect()
    except StoreError as error:
        return answer(Ready(status="unavailable", error=str(error)), 503, {"Retry-After": "1"})
    return answer(Ready(status="ready", store=findings.facts, warnings=list(findings.warnings)))


@route("GET", "/metrics", answers={200: Exposition}, tag="operations", media_type="text/plain")
async def read_metrics(request: Request) -> ASGIApp:
    """Tell in numbers what goes on: the text format of Prometheus.

    All workers of one server are told of, whichever answers. With several servers take the maximum of what comes from
    the store, and the sum of the rest. Without the store it tells what it knows, and that the store is away.
    """
    text = await metrics_of(request).scrape(store_of(request))
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


@route("GET", "/openapi.json", answers={200: dict[str, Any]}, tag="operations")
async def read_openapi(request: Request) -> ASGIApp:
    """Describe this interface to programs: OpenAPI 3.1."""
    return Response(_OPENAPI, media_type="application/json")


@route("GET", "/docs", answers={200: str}, tag="operations", media_type="text/html")
async def read_docs(request: Request) -> ASGIApp:
    """Describe this interface to people: the page that you are reading."""
    return Response(_PAGE, headers=docs.HEADERS, media_type="text/html")


@route("GET", "/", answers={200: str}, tag="operations", media_type="text/html")
async def read_dashboard(request: Request) -> ASGIApp:
    """Show people who is running what, live: the dashboard."""
    return _file(dashboard.PAGE)


@route("GET", "/dashboard/{file}", documented=False)
async def read_dashboard_file(request: Request) -> ASGIApp:
    """Hand out a part of the dashboard."""
    file = dashboard.FILES.get(request.path_params["file"])
    if file is None:
        raise NoSuchPath
    return _file(file)


def _file(file: dashboard.File) -> Response:
    return Response(file.content, headers=dashboard.HEADERS, media_type=file.media_type)


async def _heartbeat(request: Request, target: Target) -> ASGIApp:
    body = await read_body(request, Heartbeat)
    beat = await store_of(request).sessions.heartbeat(target, body.session_id, body.progress)
    return answer(_heartbeat_answer(beat))


def _heartbeat_answer(beat: Beat | None) -> HeartbeatAnswer:
    if beat is None:
        return {"updated": False}
    return {"updated": True, "expiresAt": timestamp(beat.due), "stopRequested": beat.stop_requested}


def _values(targets: Iterable[Target], kind: Literal["task", "id"]) -> list[str]:
    return [target.value for target in targets if target.kind == kind]


async def _read(request: Request, target: Target) -> ASGIApp:
    session = await store_of(request).sessions.get(target)
    if session is None:
        raise NotFound
    return answer(OneSession(session=session))


_DOCUMENT = describe(OPERATIONS)
_OPENAPI = to_json(_DOCUMENT)
_PAGE = docs.render(_DOCUMENT)
