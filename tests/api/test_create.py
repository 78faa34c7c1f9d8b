"""Creating: the further fields, what becomes of an earlier session of the task, and retries with an Idempotency-Key."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.api.conftest import BASE, Api, Json
from tests.clockwork import advance

SHARDS = pytest.mark.parametrize("shards", [1, 4])


async def test_ttl_and_metadata_are_kept(api: Api) -> None:
    session = await api.create(taskId="t1", ttlSeconds=60.25, metadata={"host": "h1", "attempt": "2"})
    assert session["ttlSeconds"] == 60.25
    assert session["metadata"] == {"host": "h1", "attempt": "2"}
    assert await api.find(session["id"]) == session
    await advance(api.store, 50)
    assert await api.find(session["id"])
    await advance(api.store, 10.3)
    assert not await api.find(session["id"])


async def test_the_location_leads_to_the_session(api: Api) -> None:
    made = await api.post(json={"agentId": "a", "triggerType": "t"})
    found = await api.client.get(made.headers["location"])
    assert found.json() == made.json()


@SHARDS
async def test_reading_by_id_and_by_task_shows_the_same(api: Api) -> None:
    session = await api.create(taskId="t1")
    for path in (f"/{session['id']}", "/by-task/t1"):
        found = await api.get(path)
        assert (found.status_code, found.json()) == (200, {"session": session})
        assert list(found.json()["session"]) == list(session)


@pytest.mark.parametrize("path", ["/x", "/0199b1f2-6c1e-7000-8a55-0c3f3f8f2a10", "/by-task/t9", "/%00"])
async def test_reading_what_does_not_live_is_404(api: Api, path: str) -> None:
    missing = await api.get(path)
    assert (missing.status_code, missing.json()) == (404, {"error": "No such session"})


async def test_an_id_is_no_other_spelling_of_itself(api: Api) -> None:
    session = await api.create()
    for spelling in (
        session["id"].upper(),
        session["id"].replace("-", ""),
        f"{{{session['id']}}}",
        session["id"] + " ",
    ):
        assert (await api.get(f"/{spelling}")).status_code == 404


# --- when the task has a live session ---------------------------------------------------------------------------------


@SHARDS
@pytest.mark.parametrize("policy", [None, "supersede"])
async def test_an_agent_replaces_its_own_earlier_session_of_the_task(api: Api, policy: str | None) -> None:
    first = await api.create(taskId="t1")
    second = await api.create(taskId="t1", onConflict=policy)
    assert second["id"] != first["id"]
    assert (await api.get()).json() == {"sessions": [second]}
    assert (await api.get("/by-task/t1")).json() == {"session": second}
    assert await api.find(first["id"]) is None
    assert await api.endings() == [(first["id"], "replaced")]
    assert [event["type"] for event in await api.events()] == ["session.created", "session.ended", "session.created"]


@pytest.mark.parametrize("policy", [None, "supersede", "reject"])
async def test_another_agents_live_session_is_a_conflict(api: Api, policy: str | None) -> None:
    first = await api.create(agentId="first", taskId="t1")
    refused = await api.post(json={"agentId": "other", "triggerType": "t", "taskId": "t1", "onConflict": policy})
    assert refused.status_code == 409
    assert list(refused.json()) == ["error", "session"]
    assert refused.json()["error"]
    assert refused.json()["session"] == first
    assert "location" not in refused.headers
    assert (await api.get()).json() == {"sessions": [first]}
    assert len(await api.events()) == 1


async def test_reject_refuses_even_the_same_agent(api: Api) -> None:
    first = await api.create(taskId="t1")
    refused = await api.post(json={"agentId": "a", "triggerType": "t", "taskId": "t1", "onConflict": "reject"})
    assert (refused.status_code, refused.json()["session"]) == (409, first)
    assert (await api.get()).json() == {"sessions": [first]}


async def test_replace_replaces_whosever_it_is(api: Api) -> None:
    first = await api.create(agentId="first", taskId="t1")
    second = await api.create(agentId="other", taskId="t1", onConflict="replace")
    assert (await api.get()).json() == {"sessions": [second]}
    assert (await api.get(params={"agentId": "first"})).json() == {"sessions": []}
    assert await api.endings() == [(first["id"], "replaced")]


@pytest.mark.parametrize("agent", ["a", "other"])
async def test_reuse_renews_the_live_session_and_changes_nothing_else(api: Api, agent: str) -> None:
    first = await api.create(taskId="t1", taskDescription="first")
    await advance(api.store, 1000)
    before = await api.find(first["id"])
    again = {"agentId": agent, "triggerType": "u", "taskId": "t1", "taskDescription": "second", "ttlSeconds": 5}
    reused = await api.post(json={**again, "onConflict": "reuse"})
    assert reused.status_code == 200
    assert "location" not in reused.headers
    session = reused.json()["session"]
    assert before is not None
    assert session == {**before, "lastHeartbeatAt": session["lastHeartbeatAt"], "expiresAt": session["expiresAt"]}
    assert session["lastHeartbeatAt"] > before["lastHeartbeatAt"]
    assert (await api.get()).json() == {"sessions": [session]}
    assert len(await api.events()) == 1
    await advance(api.store, 1700)
    assert await api.find(first["id"])


@pytest.mark.parametrize("policy", ["supersede", "reject", "replace", "reuse"])
@pytest.mark.parametrize("agent", ["a", "other"])
async def test_an_expired_session_is_no_conflict_for_anybody(api: Api, policy: str, agent: str) -> None:
    """Swept or not: it ends as expired, and before its successor begins."""
    first = await api.create(taskId="t1")
    await advance(api.store, 1801)
    second = await api.create(agentId=agent, taskId="t1", onConflict=policy)
    assert (await api.get()).json() == {"sessions": [second]}
    assert await api.endings() == [(first["id"], "expired")]
    assert [event["type"] for event in await api.events()] == ["session.created", "session.ended", "session.created"]


@pytest.mark.parametrize("policy", ["supersede", "reject", "replace", "reuse"])
async def test_sessions_without_a_task_never_conflict(api: Api, policy: str) -> None:
    ids = {(await api.create(onConflict=policy))["id"] for _ in range(3)}
    assert len(ids) == 3
    assert {session["id"] for session in (await api.get()).json()["sessions"]} == ids


@SHARDS
async def test_of_many_creates_at_once_one_session_of_the_task_lives(api: Api) -> None:
    bodies: list[Json] = [
        {"agentId": "a", "triggerType": "t", "taskId": f"t{number % 2}", "onConflict": policy}
        for number in range(25)
        for policy in ("supersede", "reject", "replace", "reuse")
    ]
    answers = await asyncio.gather(*(api.post(json=body) for body in bodies))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 201, 409}
    assert {session["taskId"] for session in (await api.get()).json()["sessions"]} == {"t0", "t1"}
    assert len((await api.get()).json()["sessions"]) == 2
    endings = await api.endings()
    assert len(endings) == statuses[201] - 2
    assert {reason for _, reason in endings} == {"replaced"}


# --- retries ----------------------------------------------------------------------------------------------------------

KEY = {"Idempotency-Key": "key-1"}


@SHARDS
@pytest.mark.parametrize("task", ["t1", None])
async def test_the_same_key_and_body_again_answer_with_the_first_session(api: Api, task: str | None) -> None:
    body = {"agentId": "a", "triggerType": "t", "taskId": task, "metadata": {"k": "v"}}
    first = await api.post(json=body, headers=KEY)
    again = await api.post(json=body, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert "location" not in again.headers
    assert (await api.get()).json() == {"sessions": [first.json()["session"]]}
    assert len(await api.events()) == 1


async def test_the_same_body_is_the_same_however_it_is_written(api: Api) -> None:
    first = await api.post(content=b'{"agentId": "a", "triggerType": "t", "taskId": "t1"}', headers=KEY)
    again = await api.post(
        content=b'{"taskId":"\\u0074\\u0031","inboxMessageId":null,"triggerType":"t","agentId":"a","x":1}', headers=KEY
    )
    assert (again.status_code, again.json()) == (200, first.json())


@SHARDS
@pytest.mark.parametrize(
    "change",
    [
        {"agentId": "b"},
        {"taskId": "t2"},
        {"taskId": None},
        {"metadata": {"k": "w"}},
        {"ttlSeconds": 60},
        {"onConflict": "reuse"},
        {"taskDescription": ""},
    ],
)
async def test_the_same_key_with_another_body_is_refused(api: Api, change: Json) -> None:
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1", "metadata": {"k": "v"}}
    first = await api.post(json=body, headers=KEY)
    refused = await api.post(json={**body, **change}, headers=KEY)
    assert (refused.status_code, refused.json()) == (422, {"error": "This Idempotency-Key was used with another body"})
    assert (await api.get()).json() == {"sessions": [first.json()["session"]]}
    assert len(await api.events()) == 1


async def test_a_retry_shows_the_session_as_it_is_now(api: Api) -> None:
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1"}
    first = await api.post(json=body, headers=KEY)
    await api.put("/provider-session/t1", json={"providerSessionId": "p"})
    again = await api.post(json=body, headers=KEY)
    assert again.json()["session"] == {**first.json()["session"], "providerSessionId": "p"}


@SHARDS
@pytest.mark.parametrize("end", ["delete", "expire", "replace"])
async def test_a_retry_after_the_end_still_answers_with_the_first_session(api: Api, end: str) -> None:
    """The run has come and gone: a late retry must not start it anew."""
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1"}
    first = (await api.post(json=body, headers=KEY)).json()["session"]
    living = []
    if end == "delete":
        await api.delete("/by-task/t1")
    elif end == "expire":
        await advance(api.store, 1801)
        await api.post("/cleanup")
    else:
        living = [await api.create(taskId="t1")]
    again = await api.post(json=body, headers=KEY)
    assert again.status_code == 200
    assert again.json()["session"]["id"] == first["id"]
    assert list(again.json()["session"]) == list(first)
    assert end == "expire" or again.json()["session"] == first
    assert (await api.get()).json() == {"sessions": living}
    assert [ending[0] for ending in await api.endings()] == [first["id"]]


async def test_a_key_is_forgotten_after_24_hours(api: Api) -> None:
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1"}
    first = await api.post(json=body, headers=KEY)
    await advance(api.store, 86_390)
    assert (await api.post(json=body, headers=KEY)).status_code == 200
    await advance(api.store, 11)
    again = await api.post(json=body, headers=KEY)
    assert again.status_code == 201
    assert again.json()["session"]["id"] != first.json()["session"]["id"]


@SHARDS
async def test_a_conflict_is_not_remembered(api: Api) -> None:
    """The retry of a refused create tries again: the task may be free by then."""
    await api.create(agentId="other", taskId="t1")
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1"}
    assert (await api.post(json=body, headers=KEY)).status_code == 409
    assert (await api.post(json=body, headers=KEY)).status_code == 409
    await api.delete("/by-task/t1")
    assert (await api.post(json=body, headers=KEY)).status_code == 201
    assert (await api.post(json=body, headers=KEY)).status_code == 200


@SHARDS
async def test_a_conflict_is_not_remembered_with_its_body(api: Api) -> None:
    """What never made a session binds nobody: the caller may mean to insist now."""
    await api.create(agentId="other", taskId="t1")
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1"}
    assert (await api.post(json=body, headers=KEY)).status_code == 409
    assert (await api.post(json={**body, "onConflict": "replace"}, headers=KEY)).status_code == 201


async def test_a_reuse_is_remembered_as_well(api: Api) -> None:
    first = await api.create(taskId="t1")
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1", "onConflict": "reuse"}
    assert (await api.post(json=body, headers=KEY)).json()["session"]["id"] == first["id"]
    await api.delete("/by-task/t1")
    again = await api.post(json=body, headers=KEY)
    assert (again.status_code, again.json()["session"]["id"]) == (200, first["id"])
    assert (await api.get()).json() == {"sessions": []}


@SHARDS
async def test_retries_at_once_make_one_session(api: Api) -> None:
    body = {"agentId": "a", "triggerType": "t"}
    answers = await asyncio.gather(*(api.post(json=body, headers=KEY) for _ in range(20)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 19}
    assert len({answer.json()["session"]["id"] for answer in answers}) == 1
    assert len((await api.get()).json()["sessions"]) == 1


async def test_other_keys_are_other_sessions(api: Api) -> None:
    body = {"agentId": "a", "triggerType": "t"}
    ids = set()
    for key in ("key-1", "KEY-1", "key-1:", "key", "key-1 2"):
        made = await api.post(json=body, headers={"Idempotency-Key": key})
        assert made.status_code == 201
        assert made.headers["location"].startswith(BASE)
        ids.add(made.json()["session"]["id"])
    assert len(ids) == 5
