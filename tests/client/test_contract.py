"""Every call of the API through both clients, on every backend: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client.conftest import Door, Driver, OpenClient, in_process, opening
from tests.client.test_calls import HOSTILE
from tracker.api.routes import OPERATIONS
from tracker.client import (
    AsyncTrackerClient,
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    Invalid,
    NotFound,
    PositionLost,
    Retries,
    ServerFault,
    TooLarge,
    TrackerClient,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
    calls,
)
from tracker.settings import Settings

CALLS = [name for name in calls.__all__ if name[0].islower() and name not in ("follow_events", "signature_of")]


@pytest.fixture
async def open_client(settings: Settings, door: Door, mode: str) -> AsyncIterator[OpenClient]:
    """Clients of an application in this process."""
    async with in_process(settings, door, mode) as transport, opening(mode, transport=transport) as opened:
        yield opened


@pytest.fixture
def url() -> str:
    return "http://tracker"


async def created(driver: Driver, **fields: Any) -> Any:
    return (await driver.call("create_session", **{"agent_id": "a", "trigger_type": "t", **fields}))["session"]


def test_both_clients_have_every_call() -> None:
    for name in CALLS:
        assert callable(getattr(TrackerClient, name))
        assert callable(getattr(AsyncTrackerClient, name))


def test_every_route_of_the_api_has_its_call() -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "read_session": ("1",),
        "read_by_task": ("1",),
        "heartbeat": ("1",),
        "heartbeat_by_task": ("1",),
        "set_provider_session": ("1", "p"),
        "delete_session": ("1",),
        "delete_by_task": ("1",),
        "request_stop": ("1",),
    }
    options = {"create_session": {"agent_id": "a", "trigger_type": "t"}}
    built = {
        (call.method, call.path)
        for name in CALLS
        for call in [getattr(calls, name)(*arguments.get(name, ()), **options.get(name, {}))]
    }
    served = {
        (operation.method, re.sub(r"\{\w+\}", "1", operation.path))
        for operation in OPERATIONS
        if operation.secured or operation.path in ("/health", "/ready", "/openapi.json")
    }
    assert built == served


async def test_a_session_is_made_read_listed_renewed_stopped_and_ended(driver: Driver) -> None:
    session = await created(driver, task_id="t1", metadata={"k": "v"}, ttl_seconds=60)
    assert await driver.call("read_session", session["id"]) == {"session": session}
    assert await driver.call("read_by_task", "t1") == {"session": session}
    assert await driver.call("list_sessions", agent_id="a") == {"sessions": [session]}
    assert await driver.call("list_sessions", limit=1) == {"sessions": [session], "nextCursor": None}
    beat = await driver.call("heartbeat", session["id"], progress="1 of 2")
    assert (beat["updated"], beat["stopRequested"]) == (True, False)
    assert await driver.call("set_provider_session", "t1", "p", session_id=session["id"]) == {"updated": True}
    assert await driver.call("request_stop", session["id"]) == {"updated": True}
    assert (await driver.call("heartbeat_by_task", "t1", session_id=session["id"]))["stopRequested"] is True
    stats = await driver.call("stats")
    assert (stats["sessions"], stats["created"]) == (1, 1)
    found = (await driver.call("read_session", session["id"]))["session"]
    assert (found["progress"], found["providerSessionId"]) == ("1 of 2", "p")
    assert await driver.call("delete_session", session["id"]) == {"deleted": True}
    assert await driver.call("delete_by_task", "t1") == {"deleted": False}
    page = await driver.call("list_events", limit=1000)
    assert [event["type"] for event in page["events"]] == [
        "session.created",
        "session.updated",
        "session.updated",
        "session.ended",
    ]
    assert (await driver.call("list_events", last=1))["events"] == page["events"][-1:]
    assert (await driver.call("list_events", after=page["next"], type="session.ended"))["events"] == []


async def test_many_heartbeats_name_the_missing_and_those_asked_to_stop(driver: Driver) -> None:
    one, two = [await created(driver, task_id=task) for task in ("t1", "t2")]
    batch = {"task_ids": ["t1", "gone"], "session_ids": [two["id"], "gone"]}
    missing = {"taskIds": ["gone"], "sessionIds": ["gone"]}
    assert await driver.call("heartbeat_many", **batch) == {"updated": 2, "missing": missing}
    for session in (one, two):
        await driver.call("request_stop", session["id"])
    assert await driver.call("heartbeat_many", **batch) == {
        "updated": 2,
        "missing": missing,
        "stopRequested": {"taskIds": ["t1"], "sessionIds": [two["id"]]},
    }


async def test_cleanup_counts_what_it_ended(driver: Driver) -> None:
    for number in range(2):
        await created(driver, runtime_instance_id=f"r{number}")
    assert await driver.call("cleanup") == {"cleaned": 0}
    assert await driver.call("cleanup", agent_id="a", runtime_instance_id="r1") == {"cleaned": 1}
    assert await driver.call("cleanup", max_age_minutes=0) == {"cleaned": 1}


async def test_a_walk_meets_every_session_once(driver: Driver) -> None:
    made = {(await created(driver, trigger_type="walk"))["id"] for _ in range(5)}
    await created(driver)
    if isinstance(driver.client, TrackerClient):
        found = await asyncio.to_thread(list, driver.client.walk_sessions(page=2, trigger_type="walk"))
        walked = [session["id"] for session in found]
    else:
        walked = [session["id"] async for session in driver.client.walk_sessions(page=2, trigger_type="walk")]
    assert len(walked) == 5
    assert set(walked) == made


async def test_the_server_tells_of_itself(driver: Driver) -> None:
    assert (await driver.call("health"))["status"] == "ok"
    assert (await driver.call("ready"))["status"] == "ready"
    assert (await driver.call("openapi"))["openapi"].startswith("3.1")


async def test_not_ready_is_an_answer(driver: Driver, door: Door) -> None:
    door.answers = [(503, {}, b'{"status": "unavailable", "error": "why"}'), (503, {}, b"<html>")]
    assert await driver.call("ready") == {"status": "unavailable", "error": "why"}
    with pytest.raises(Unavailable):
        await driver.call("ready")


async def test_hostile_ids_round_trip(driver: Driver) -> None:
    for text in HOSTILE:
        session = await created(driver, agent_id=text, task_id=text, trigger_type=text)
        assert session["taskId"] == text
        assert await driver.call("read_by_task", text) == {"session": session}
        assert await driver.call("list_sessions", agent_id=text, task_id=text) == {"sessions": [session]}
        assert (await driver.call("heartbeat_by_task", text))["updated"] is True
        assert await driver.call("set_provider_session", text, text) == {"updated": True}
        for name in ("heartbeat", "request_stop"):
            assert await driver.call(name, text) == {"updated": False}, (name, text)
        assert await driver.call("delete_session", text) == {"deleted": False}
        with pytest.raises(NotFound):
            await driver.call("read_session", text)
        assert await driver.call("delete_by_task", text, session_id=session["id"]) == {"deleted": True}


async def test_a_conflict_brings_the_live_session(driver: Driver) -> None:
    session = await created(driver, task_id="t1")
    for name, arguments, options in (
        ("create_session", (), {"agent_id": "b", "trigger_type": "t", "task_id": "t1"}),
        ("heartbeat_by_task", ("t1",), {"session_id": "other"}),
        ("set_provider_session", ("t1", "p"), {"session_id": "other"}),
        ("delete_by_task", ("t1",), {"session_id": "other"}),
    ):
        with pytest.raises(Conflict) as refused:
            await driver.call(name, *arguments, **options)
        assert refused.value.session == session


async def test_what_the_tracker_refuses_is_named(driver: Driver) -> None:
    with pytest.raises(Invalid) as refused:
        await created(driver, ttl_seconds=0)
    assert refused.value.details[0]["field"] == "ttlSeconds"
    with pytest.raises(NotFound):
        await driver.call("read_by_task", "nobody")
    with pytest.raises(TooLarge):
        await created(driver, task_description="x" * 70_000)
    with pytest.raises(PositionLost):
        await driver.call("list_events", after="1-1")
    await created(driver, idempotency_key="k")
    with pytest.raises(IdempotencyMismatch):
        await created(driver, idempotency_key="k", agent_id="b")


@pytest.mark.settings(api_keys=["writer"], read_api_keys=["reader"])
async def test_keys_open_what_they_may(open_client: OpenClient, url: str) -> None:
    await created(open_client(url, api_key="writer"))
    reader = open_client(url, api_key="reader")
    assert len((await reader.call("list_sessions"))["sessions"]) == 1
    with pytest.raises(Forbidden):
        await created(reader)
    for client in (open_client(url), open_client(url, api_key="wrong")):
        with pytest.raises(Unauthorized):
            await client.call("list_sessions")


async def test_what_is_busy_is_asked_again_and_only_where_that_is_safe(driver: Driver, door: Door) -> None:
    busy = (503, {"retry-after": "0"}, b'{"error": "busy"}')
    door.answers = [busy, busy]
    session = await created(driver)
    assert [asked[0] for asked in door.asked] == ["POST"] * 3
    door.answers = [busy, (502, {}, b"<html>")]
    assert await driver.call("delete_session", session["id"]) == {"deleted": True}
    door.answers = [busy]
    before = len(door.asked)
    with pytest.raises(Unavailable):
        await driver.call("cleanup", agent_id="a")
    assert len(door.asked) == before + 1


async def test_a_failure_that_time_does_not_heal_is_said_at_once(driver: Driver, door: Door) -> None:
    door.answers = [(500, {}, b'{"error": "bug"}'), (200, {}, b"<html>"), (307, {"location": "/elsewhere"}, b"")]
    with pytest.raises(ServerFault):
        await driver.call("list_sessions")
    for _ in range(2):
        with pytest.raises(UnexpectedAnswer):
            await driver.call("list_sessions")
    assert len(door.asked) == 3


async def test_a_lost_create_is_asked_for_again_under_its_key_and_made_once(driver: Driver, door: Door) -> None:
    door.lost = 2
    session = await created(driver)
    assert [asked[0] for asked in door.asked] == ["POST"] * 3
    assert (await driver.call("list_sessions"))["sessions"] == [session]
    assert (await driver.call("stats"))["created"] == 1


async def test_a_retry_gives_up_at_its_deadline(open_client: OpenClient, url: str, door: Door) -> None:
    door.answers = [(503, {}, json.dumps({"error": "busy"}).encode())] * 100
    client = open_client(url, retries=Retries(timeout_seconds=5, deadline_seconds=0.5))
    with pytest.raises(Unavailable):
        await client.call("stats")
    assert 1 < len(door.asked) < 20
