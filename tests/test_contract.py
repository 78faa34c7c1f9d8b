"""What existing agent runners call, exactly as they call it, and a whole fleet of them against the real server."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import BASE, Api, Json, serving
from tests.api.conftest import api as api
from tests.api.conftest import settings as settings
from tests.clockwork import advance
from tests.patience import until

FIELDS = [
    "id",
    "agentId",
    "taskId",
    "triggerType",
    "inboxMessageId",
    "taskDescription",
    "startedAt",
    "lastHeartbeatAt",
    "runnerSessionId",
    "providerSessionId",
    "runtimeInstanceId",
    "ttlSeconds",
    "expiresAt",
    "progress",
    "stopRequestedAt",
    "metadata",
]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
AGENT = "11df8931-4d7c-464d-b05b-275496c2b989"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_creating_answers_201_with_the_whole_session(api: Api) -> None:
    sent = {
        "agentId": AGENT,
        "taskId": "t1",
        "triggerType": "task_assigned",
        "inboxMessageId": "i1",
        "taskDescription": "fix the flaky test",
        "runnerSessionId": "r1",
        "runtimeInstanceId": "m1",
    }
    made = await api.post(json=sent)
    assert made.status_code == 201
    assert made.headers["content-type"] == "application/json"
    assert list(made.json()) == ["session"]
    session = made.json()["session"]
    assert made.headers["location"] == f"{BASE}/{session['id']}"
    assert list(session) == FIELDS
    assert UUID7.fullmatch(session["id"])
    started = session["startedAt"]
    assert TIME.fullmatch(started)
    assert TIME.fullmatch(session["expiresAt"])
    assert moment(session["expiresAt"]) - moment(started) == timedelta(seconds=1800)
    assert session == {
        **sent,
        "id": session["id"],
        "startedAt": started,
        "lastHeartbeatAt": started,
        "providerSessionId": None,
        "ttlSeconds": 1800,
        "expiresAt": session["expiresAt"],
        "progress": None,
        "stopRequestedAt": None,
        "metadata": {},
    }
    assert '"ttlSeconds":1800,' in made.text, "a whole number of seconds is written as one"


async def test_creating_with_no_more_than_required_leaves_the_rest_null(api: Api) -> None:
    session = await api.create(agentId="a", triggerType="t")
    assert list(session) == FIELDS
    absent = ("taskId", "inboxMessageId", "taskDescription", "runnerSessionId", "runtimeInstanceId")
    assert [session[name] for name in absent] == [None] * 5


async def test_the_id_carries_the_time_of_the_start(api: Api) -> None:
    session = await api.create()
    ms = int(session["id"].replace("-", "")[:12], 16)
    assert ms == round(moment(session["startedAt"]).timestamp() * 1000)


@pytest.mark.parametrize("field", ["agentId", "triggerType"])
@pytest.mark.parametrize("absence", ["missing", "null", "empty"])
async def test_a_required_field_that_is_absent_is_named(api: Api, field: str, absence: str) -> None:
    body: Json = {"agentId": "a", "triggerType": "t", field: None if absence == "null" else ""}
    if absence == "missing":
        del body[field]
    message = "String should have at least 1 character" if absence == "empty" else "Field required"
    refused = await api.post(json=body)
    assert refused.status_code == 400
    assert refused.json() == {
        "error": f"Validation error: {field}: {message}",
        "details": [{"field": field, "message": message}],
    }
    assert (await api.get()).json() == {"sessions": []}


async def test_listing_shows_newest_first_and_all_of_each_session(api: Api) -> None:
    made = []
    for number in range(5):
        made.append(await api.create(agentId=f"a{number % 2}", taskId=f"t{number}"))
        await asyncio.sleep(0.002)  # two in one millisecond have no order among them
    listed = await api.get()
    assert listed.status_code == 200
    assert listed.headers["content-type"] == "application/json"
    assert listed.json() == {"sessions": made[::-1]}
    assert list(listed.json()["sessions"][0]) == FIELDS
    assert (await api.get(params={"agentId": "a1"})).json() == {"sessions": [made[3], made[1]]}


async def test_an_unknown_agent_has_no_sessions(api: Api) -> None:
    await api.create()
    listed = await api.get(params={"agentId": "nobody"})
    assert listed.status_code == 200
    assert listed.text == '{"sessions":[]}'


async def test_deleting_by_id_ends_a_session_once(api: Api) -> None:
    session = await api.create(taskId="t1")
    first, second = [await api.delete(f"/{session['id']}") for _ in range(2)]
    assert (first.status_code, first.text) == (200, '{"deleted":true}')
    assert (second.status_code, second.text) == (200, '{"deleted":false}')
    assert (await api.get()).json() == {"sessions": []}
    assert await api.endings() == [(session["id"], "deleted")]


@pytest.mark.parametrize("session_id", ["nonsense", "0", "0199b1f2-6c1e-7d1a-9a55-0c3f3f8f2a10", "%00", "a%2Fb"])
async def test_deleting_what_is_no_session_is_no_error(api: Api, session_id: str) -> None:
    answer = await api.delete(f"/{session_id}")
    assert (answer.status_code, answer.text) == (200, '{"deleted":false}')


async def test_deleting_by_task_ends_the_tasks_session_once(api: Api) -> None:
    session = await api.create(taskId="t1")
    other = await api.create(taskId="t2")
    first, second = [await api.delete("/by-task/t1") for _ in range(2)]
    assert (first.status_code, first.text) == (200, '{"deleted":true}')
    assert (second.status_code, second.text) == (200, '{"deleted":false}')
    assert (await api.get()).json() == {"sessions": [other]}
    assert await api.endings() == [(session["id"], "deleted")]


async def test_a_heartbeat_without_a_body_renews(api: Api) -> None:
    session = await api.create(taskId="t1")
    await advance(api.store, 1000)
    answer = await api.put("/heartbeat/t1")
    assert answer.status_code == 200
    assert answer.json()["updated"] is True
    renewed = await api.find(session["id"])
    assert renewed is not None
    assert moment(renewed["lastHeartbeatAt"]) - moment(renewed["startedAt"]) >= timedelta(seconds=1000)
    assert moment(renewed["expiresAt"]) - moment(renewed["lastHeartbeatAt"]) == timedelta(seconds=1800)
    await advance(api.store, 1790)
    assert await api.find(session["id"]), "a whole TTL goes by from the heartbeat"
    await advance(api.store, 11)
    assert not await api.find(session["id"])


async def test_a_heartbeat_for_a_task_without_a_session_updates_nothing(api: Api) -> None:
    await api.create(taskId="t1")
    answer = await api.put("/heartbeat/t2")
    assert (answer.status_code, answer.text) == (200, '{"updated":false}')


async def test_a_heartbeat_after_the_deadline_revives_nothing(api: Api) -> None:
    """Nobody has swept: the deadline alone decides, for every call alike."""
    session = await api.create(taskId="t1")
    await advance(api.store, 1801)
    assert (await api.put("/heartbeat/t1")).text == '{"updated":false}'
    assert (await api.put(f"/{session['id']}/heartbeat")).text == '{"updated":false}'
    assert (await api.put("/provider-session/t1", json={"providerSessionId": "p"})).text == '{"updated":false}'
    assert (await api.put(f"/{session['id']}/stop")).text == '{"updated":false}'
    assert (await api.delete("/by-task/t1")).text == '{"deleted":false}'
    assert (await api.delete(f"/{session['id']}")).text == '{"deleted":false}'
    assert (await api.get("/by-task/t1")).status_code == 404
    assert (await api.get()).json() == {"sessions": []}
    assert await api.endings() == []
    assert (await api.post("/cleanup")).json() == {"cleaned": 1}
    assert await api.endings() == [(session["id"], "expired")]


async def test_the_providers_session_is_noted_and_does_not_renew(api: Api) -> None:
    session = await api.create(taskId="t1")
    await advance(api.store, 1000)
    answer = await api.put("/provider-session/t1", json={"providerSessionId": "claude-1"})
    assert (answer.status_code, answer.text) == (200, '{"updated":true}')
    noted = await api.find(session["id"])
    assert noted is not None
    assert noted["providerSessionId"] == "claude-1"
    assert noted["lastHeartbeatAt"] == noted["startedAt"]
    await advance(api.store, 801)
    assert not await api.find(session["id"])


async def test_the_providers_session_of_no_session_updates_nothing(api: Api) -> None:
    answer = await api.put("/provider-session/t1", json={"providerSessionId": "claude-1"})
    assert (answer.status_code, answer.text) == (200, '{"updated":false}')


@pytest.mark.parametrize("body", [None, {}, {"providerSessionId": None}])
async def test_the_providers_session_must_be_given(api: Api, body: Json | None) -> None:
    session = await api.create(taskId="t1")
    refused = await api.put("/provider-session/t1", **({} if body is None else {"json": body}))
    assert refused.status_code == 400
    assert refused.json() == {
        "error": "Validation error: providerSessionId: Field required",
        "details": [{"field": "providerSessionId", "message": "Field required"}],
    }
    assert await api.find(session["id"]) == session


async def test_cleanup_at_boot_ends_all_of_the_agents_sessions(api: Api) -> None:
    mine = [await api.create(agentId=AGENT, taskId=f"t{number}") for number in range(3)]
    other = await api.create(agentId="other", taskId="t9")
    answer = await api.post("/cleanup", json={"agentId": AGENT})
    assert (answer.status_code, answer.text) == (200, '{"cleaned":3}')
    assert (await api.get()).json() == {"sessions": [other]}
    assert sorted(await api.endings()) == sorted((session["id"], "cleaned") for session in mine)


async def test_a_run_whose_calls_got_lost_still_leaves_the_rest_right(api: Api) -> None:
    """Heartbeats, provider sessions and ends of a run whose create never arrived are answered and do nothing."""
    assert (await api.put("/heartbeat/t1")).json() == {"updated": False}
    assert (await api.put("/provider-session/t1", json={"providerSessionId": "p"})).json() == {"updated": False}
    assert (await api.delete("/by-task/t1")).json() == {"deleted": False}
    assert await api.events() == []


# --- the main job -----------------------------------------------------------------------------------------------------

RUNS = 12
"""Runs of each kind: those that end, those that crash, those that go on."""
AGENTS = 4


class Fleet:
    """Workers as they really call: nobody looks at an answer, and each asks whichever pod comes next."""

    def __init__(self, client: httpx.AsyncClient, pods: list[str]) -> None:
        self._client = client
        self._pods = pods
        self._calls = 0

    async def call(self, method: str, path: str, body: Json | None = None) -> Any:
        self._calls += 1
        pod = self._pods[self._calls % len(self._pods)]
        answer = await self._client.request(method, pod + BASE + path, json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    async def begin(self, kind: str, number: int, **fields: Any) -> None:
        task = f"{kind}-{number}"
        agent = f"agent-{number % AGENTS}"
        await self.call("POST", "", {"agentId": agent, "triggerType": "task_assigned", "taskId": task, **fields})
        await self.call("PUT", f"/provider-session/{task}", {"providerSessionId": f"provider-{task}"})
        await self.call("PUT", f"/heartbeat/{task}")

    async def end(self, number: int) -> None:
        await self.begin("ends", number)
        await self.call("DELETE", f"/by-task/ends-{number}")

    async def crash(self, number: int) -> None:
        await self.begin("crashes", number, ttlSeconds=2)

    async def go_on(self, number: int, fleet_is_done: asyncio.Event) -> None:
        """Lives on a TTL that only heartbeats can bring it through."""
        await self.begin("goes-on", number, ttlSeconds=3)
        while not fleet_is_done.is_set():
            await self.call("PUT", f"/heartbeat/goes-on-{number}")
            await asyncio.sleep(0.25)

    async def is_through(self) -> bool:
        """Whether all that should end has ended, and what should not would have by now."""
        return len(await self.ended_events()) >= 2 * RUNS and all(map(outlived_its_ttl, await self.sessions()))

    async def sessions(self) -> list[Json]:
        sessions: list[Json] = (await self.call("GET", ""))["sessions"]
        return sessions

    async def ended_events(self) -> list[Json]:
        events: list[Json] = []
        after = "0"
        while True:
            page = await self.call("GET", f"/events?type=session.ended&limit=5&after={after}")
            if not page["events"]:
                return events
            events += page["events"]
            after = page["next"]


def outlived_its_ttl(session: Json) -> bool:
    """Whether a session lives for no other reason than its heartbeats."""
    lived = moment(session["lastHeartbeatAt"]) - moment(session["startedAt"])
    return lived > timedelta(seconds=session["ttlSeconds"])


@pytest.mark.parametrize(("backend", "pods"), [("memory", 1), ("redis", 2)])
async def test_a_fleet_runs_crashes_and_ends_and_the_feed_tells_of_each_end_once(
    store_url: str, namespace: str, pods: int, tmp_path: Path
) -> None:
    """Against `tracker serve`: every crashed run is told of exactly once, with what it takes to resume it."""
    with ExitStack() as stack:
        environment = {
            "TRACKER_STORE_URL": store_url,
            "TRACKER_NAMESPACE": namespace,
            "TRACKER_SWEEP_INTERVAL_SECONDS": "0.3",
        }
        servers = [stack.enter_context(serving(tmp_path / f"pod-{pod}.log", **environment)) for pod in range(pods)]
        async with httpx.AsyncClient() as client:
            fleet = Fleet(client, [server.url for server in servers])
            for number in range(AGENTS):
                assert await fleet.call("POST", "/cleanup", {"agentId": f"agent-{number}"}) == {"cleaned": 0}
            done = asyncio.Event()
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for number in range(RUNS):
                    tasks.create_task(fleet.go_on(number, done))
                    tasks.create_task(fleet.crash(number))
                    tasks.create_task(fleet.end(number))
                await until(fleet.is_through, 50)
                ended = await fleet.ended_events()
                living = await fleet.sessions()
                stats = await fleet.call("GET", "/stats")
                done.set()

    told = Counter((event["reason"], event["session"]["taskId"]) for event in ended)
    assert told == Counter(
        {
            **{("expired", f"crashes-{number}"): 1 for number in range(RUNS)},
            **{("deleted", f"ends-{number}"): 1 for number in range(RUNS)},
        }
    )
    for event in ended:
        assert event["session"]["providerSessionId"] == f"provider-{event['session']['taskId']}"
    assert {session["taskId"] for session in living} == {f"goes-on-{number}" for number in range(RUNS)}
    assert (stats["sessions"], stats["created"], stats["expiredUnswept"]) == (RUNS, 3 * RUNS, 0)
    assert stats["ended"] == {"deleted": RUNS, "expired": RUNS, "replaced": 0, "cleaned": 0}
