"""Heartbeats in all their ways, the provider's session, stop requests, and the fence against replaced runs."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.api.conftest import Api, Json
from tests.clockwork import advance

STRANGE_ID = "0199b1f2-6c1e-7000-8a55-0c3f3f8f2a10"
"""An id as the tracker makes them, of no session."""


async def found(api: Api, session: Json) -> Json:
    current = await api.find(session["id"])
    assert current is not None
    return current


async def test_a_heartbeat_tells_the_new_deadline_and_that_nobody_asked_to_stop(api: Api) -> None:
    session = await api.create(taskId="t1", ttlSeconds=60)
    await advance(api.store, 30)
    for path in ("/heartbeat/t1", f"/{session['id']}/heartbeat"):
        beat = (await api.put(path)).json()
        assert list(beat) == ["updated", "expiresAt", "stopRequested"]
        current = await found(api, session)
        assert beat == {"updated": True, "expiresAt": current["expiresAt"], "stopRequested": False}
        assert datetime.fromisoformat(current["expiresAt"]) - datetime.fromisoformat(
            current["lastHeartbeatAt"]
        ) == timedelta(seconds=60)


async def test_a_session_without_a_task_is_heartbeated_by_its_id(api: Api) -> None:
    session = await api.create()
    for _ in range(3):
        await advance(api.store, 1700)
        assert (await api.put(f"/{session['id']}/heartbeat")).json()["updated"] is True
    assert await api.find(session["id"])


async def test_a_heartbeat_changes_nothing_but_the_times(api: Api) -> None:
    session = await api.create(taskId="t1", metadata={"k": "v"}, taskDescription="d", runnerSessionId="r")
    await api.put("/provider-session/t1", json={"providerSessionId": "p"})
    await api.put("/heartbeat/t1", json={"progress": "1 of 3"})
    await advance(api.store, 100)
    before = await found(api, session)
    await api.put("/heartbeat/t1")
    after = await found(api, session)
    assert after == {**before, "lastHeartbeatAt": after["lastHeartbeatAt"], "expiresAt": after["expiresAt"]}
    assert after["expiresAt"] > before["expiresAt"]
    assert after["progress"] == "1 of 3"


async def test_heartbeats_are_not_in_the_feed(api: Api) -> None:
    session = await api.create(taskId="t1")
    await api.put("/heartbeat/t1", json={"progress": "1 of 3"})
    await api.put(f"/{session['id']}/heartbeat")
    await api.put("/heartbeat", json={"taskIds": ["t1"]})
    assert [event["type"] for event in await api.events()] == ["session.created"]


@pytest.mark.parametrize("session_id", ["x", STRANGE_ID, "0199b1f2-6c1e-7fff-8a55-0c3f3f8f2a10", "%00", "a%2Fb"])
async def test_a_heartbeat_of_no_session_updates_nothing(api: Api, session_id: str) -> None:
    await api.create(taskId="t1")
    answer = await api.put(f"/{session_id}/heartbeat", json={"progress": "x"})
    assert (answer.status_code, answer.text) == (200, '{"updated":false}')


async def test_progress_stays_until_the_next(api: Api) -> None:
    session = await api.create(taskId="t1")
    assert session["progress"] is None
    for sent, kept in (("1 of 3", "1 of 3"), (None, "1 of 3"), ("2 of 3", "2 of 3"), ("", "")):
        await api.put(f"/{session['id']}/heartbeat", json={} if sent is None else {"progress": sent})
        assert (await found(api, session))["progress"] == kept


# --- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_batch_renews_what_lives_and_names_what_does_not(api: Api, shards: int) -> None:
    by_task = [await api.create(taskId=f"t{number}") for number in range(5)]
    by_id = [await api.create() for _ in range(5)]
    await advance(api.store, 1000)
    body = {
        "taskIds": ["gone-2", *(session["taskId"] for session in by_task), "gone-1", "\0/%2F"],
        "sessionIds": [STRANGE_ID, *(session["id"] for session in by_id), "nonsense"],
    }
    answer = await api.put("/heartbeat", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "updated": 10,
        "missing": {"taskIds": ["gone-2", "gone-1", "\0/%2F"], "sessionIds": [STRANGE_ID, "nonsense"]},
    }
    assert list(answer.json()) == ["updated", "missing"]
    await advance(api.store, 1000)
    assert len((await api.get()).json()["sessions"]) == 10


async def test_a_batch_names_those_that_were_asked_to_stop_and_says_nothing_where_none_was(api: Api) -> None:
    one, two, three = [await api.create(taskId=task) for task in ("t1", "t2", "t3")]
    body = {"taskIds": ["t1", "t2", "gone"], "sessionIds": [three["id"]]}
    assert list((await api.put("/heartbeat", json=body)).json()) == ["updated", "missing"]
    for session in (one, three):
        await api.put(f"/{session['id']}/stop")
    answer = (await api.put("/heartbeat", json=body)).json()
    assert answer["updated"] == 3
    assert answer["stopRequested"] == {"taskIds": ["t1"], "sessionIds": [three["id"]]}
    assert two["id"] not in str(answer)


async def test_a_batch_names_expired_sessions_as_missing(api: Api) -> None:
    session = await api.create(taskId="t1")
    await advance(api.store, 1801)
    answer = await api.put("/heartbeat", json={"taskIds": ["t1"], "sessionIds": [session["id"]]})
    assert answer.json() == {"updated": 0, "missing": {"taskIds": ["t1"], "sessionIds": [session["id"]]}}


async def test_a_batch_counts_what_is_named_twice_once(api: Api) -> None:
    await api.create(taskId="t1")
    answer = await api.put("/heartbeat", json={"taskIds": ["t1", "gone", "t1", "gone"]})
    assert answer.json() == {"updated": 1, "missing": {"taskIds": ["gone"], "sessionIds": []}}


async def test_a_full_batch_renews_all_of_it(api: Api) -> None:
    sessions = [await api.create(taskId=f"t{number}") for number in range(100)]
    body = {
        "taskIds": [f"t{number}" for number in range(500)],
        "sessionIds": [session["id"] for session in sessions] + [f"s{number}" for number in range(400)],
    }
    answer = (await api.put("/heartbeat", json=body)).json()
    assert answer["missing"]["taskIds"] == [f"t{number}" for number in range(100, 500)]
    assert answer["missing"]["sessionIds"] == [f"s{number}" for number in range(400)]
    assert answer["updated"] == 200


# --- the provider's session -------------------------------------------------------------------------------------------


async def test_a_providers_session_may_change(api: Api) -> None:
    session = await api.create(taskId="t1")
    for provider in ("p1", "p1", "p2"):
        answer = await api.put("/provider-session/t1", json={"providerSessionId": provider})
        assert answer.json() == {"updated": True}
        assert await found(api, session) == {**session, "providerSessionId": provider}
    updates = await api.events(type="session.updated")
    assert [event["session"]["providerSessionId"] for event in updates] == ["p1", "p2"], "a repeat is no change"


# --- stopping ---------------------------------------------------------------------------------------------------------


async def test_a_run_learns_from_its_heartbeat_that_it_shall_stop(api: Api) -> None:
    session = await api.create(taskId="t1")
    answer = await api.put(f"/{session['id']}/stop")
    assert (answer.status_code, answer.text) == (200, '{"updated":true}')
    asked = await found(api, session)
    assert asked["stopRequestedAt"] >= session["startedAt"]
    assert asked == {**session, "stopRequestedAt": asked["stopRequestedAt"]}, "asking is no sign of life"
    assert (await api.put("/heartbeat/t1")).json()["stopRequested"] is True
    assert (await api.put(f"/{session['id']}/heartbeat")).json()["stopRequested"] is True
    assert [event["type"] for event in await api.events()] == ["session.created", "session.updated"]
    assert (await api.events())[1]["session"] == asked


async def test_asking_again_to_stop_changes_nothing(api: Api) -> None:
    session = await api.create(taskId="t1")
    await api.put(f"/{session['id']}/stop")
    await advance(api.store, 10)
    before = await found(api, session)
    assert (await api.put(f"/{session['id']}/stop")).json() == {"updated": True}
    assert await found(api, session) == before
    assert len(await api.events(type="session.updated")) == 1


@pytest.mark.parametrize("session_id", ["x", STRANGE_ID, "t1"])
async def test_nobody_stops_what_does_not_run(api: Api, session_id: str) -> None:
    await api.create(taskId="t1")
    answer = await api.put(f"/{session_id}/stop")
    assert (answer.status_code, answer.text) == (200, '{"updated":false}')
    assert len(await api.events()) == 1


async def test_a_successor_is_not_asked_to_stop(api: Api) -> None:
    first = await api.create(taskId="t1")
    await api.put(f"/{first['id']}/stop")
    second = await api.create(taskId="t1")
    assert second["stopRequestedAt"] is None
    assert (await api.put("/heartbeat/t1")).json()["stopRequested"] is False


# --- the fence --------------------------------------------------------------------------------------------------------

FENCED = pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/heartbeat/t1"), ("PUT", "/provider-session/t1"), ("DELETE", "/by-task/t1")]
)


async def fenced(api: Api, method: str, path: str, session_id: str) -> tuple[int, Json]:
    if method == "DELETE":
        answer = await api.delete(path, params={"sessionId": session_id})
    else:
        body = {"sessionId": session_id, "progress": "late", "providerSessionId": "late"}
        answer = await api.put(path, json=body)
    return answer.status_code, answer.json()


@FENCED
async def test_the_live_session_passes_the_fence(api: Api, method: str, path: str) -> None:
    session = await api.create(taskId="t1")
    status, answer = await fenced(api, method, path, session["id"])
    assert status == 200
    assert answer.get("updated", answer.get("deleted")) is True


@FENCED
@pytest.mark.parametrize("caller", ["replaced", "stranger", "nonsense"])
async def test_whoever_is_not_the_live_session_is_told_which_one_is(
    api: Api, method: str, path: str, caller: str
) -> None:
    """A run that was replaced can neither keep alive, nor mark, nor end its successor."""
    replaced = await api.create(taskId="t1")
    successor = await api.create(taskId="t1")
    await advance(api.store, 100)
    current = await found(api, successor)
    caller_id = {"replaced": replaced["id"], "stranger": STRANGE_ID, "nonsense": "x\0/"}[caller]
    status, answer = await fenced(api, method, path, caller_id)
    assert status == 409
    assert list(answer) == ["error", "session"]
    assert answer["session"] == current
    assert await found(api, successor) == current
    assert len(await api.events()) == 3


@FENCED
async def test_where_nothing_lives_the_fence_has_nothing_to_say(api: Api, method: str, path: str) -> None:
    session = await api.create(taskId="t1")
    await api.delete(f"/{session['id']}")
    status, answer = await fenced(api, method, path, session["id"])
    assert (status, answer) == (200, {"deleted" if method == "DELETE" else "updated": False})


async def test_an_empty_fence_in_a_query_is_none(api: Api) -> None:
    await api.create(taskId="t1")
    assert (await api.delete("/by-task/t1?sessionId=")).json() == {"deleted": True}


async def test_a_heartbeat_by_id_may_be_fenced_too(api: Api) -> None:
    session = await api.create()
    other = await api.create()
    assert (await api.put(f"/{session['id']}/heartbeat", json={"sessionId": session["id"]})).json()["updated"] is True
    refused = await api.put(f"/{session['id']}/heartbeat", json={"sessionId": other["id"], "progress": "x"})
    assert refused.status_code == 409
    assert refused.json()["session"]["id"] == session["id"]
    assert (await found(api, session))["progress"] is None
