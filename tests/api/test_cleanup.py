"""Cleanup: which sessions each of its forms ends, how it counts them, and what the feed says of each."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.conftest import Api, Json
from tests.clockwork import advance

ONLY_EXPIRED = pytest.mark.settings(agent_cleanup="expired")


async def living(api: Api) -> set[str]:
    """The tasks of the live sessions."""
    return {session["taskId"] for session in (await api.get()).json()["sessions"]}


async def endings(api: Api) -> dict[str, str]:
    """The reason of each end by task; each task must have ended once."""
    events = await api.events(type="session.ended")
    reasons = {event["session"]["taskId"]: event["reason"] for event in events}
    assert len(reasons) == len(events)
    return reasons


@pytest.fixture
async def fleet(api: Api) -> Api:
    """Tasks by agent and state: expired (30 minutes and more without a heartbeat), silent (20 minutes), fresh."""
    for agent in ("a", "b"):
        await api.create(agentId=agent, taskId=f"{agent}-expired", runtimeInstanceId="r1")
    await advance(api.store, 600)
    for agent in ("a", "b"):
        await api.create(agentId=agent, taskId=f"{agent}-silent", runtimeInstanceId="r1", metadata={"k": "v"})
    await advance(api.store, 1201)
    for agent in ("a", "b"):
        await api.create(agentId=agent, taskId=f"{agent}-fresh", runtimeInstanceId="r2")
        await api.create(agentId=agent, taskId=f"{agent}-nowhere")
    return api


CASES: list[tuple[Json, dict[str, str]]] = [
    ({}, {"a-expired": "expired", "b-expired": "expired"}),
    ({"maxAgeMinutes": 31}, {"a-expired": "expired", "b-expired": "expired"}),
    (
        {"maxAgeMinutes": 20},
        {"a-expired": "expired", "b-expired": "expired", "a-silent": "cleaned", "b-silent": "cleaned"},
    ),
    ({"maxAgeMinutes": 21}, {"a-expired": "expired", "b-expired": "expired"}),
    (
        {"maxAgeMinutes": 0},
        {
            f"{agent}-{state}": "expired" if state == "expired" else "cleaned"
            for agent in ("a", "b")
            for state in ("expired", "silent", "fresh", "nowhere")
        },
    ),
    ({"agentId": "nobody"}, {}),
    (
        {"agentId": "a"},
        {"a-expired": "expired", "a-silent": "cleaned", "a-fresh": "cleaned", "a-nowhere": "cleaned"},
    ),
    ({"agentId": "a", "maxAgeMinutes": 20}, {"a-expired": "expired", "a-silent": "cleaned"}),
    ({"agentId": "a", "maxAgeMinutes": 25}, {"a-expired": "expired"}),
    ({"agentId": "a", "maxAgeMinutes": 31}, {}),
    ({"agentId": "a", "runtimeInstanceId": "r1"}, {"a-expired": "expired", "a-silent": "cleaned"}),
    ({"agentId": "a", "runtimeInstanceId": "r2"}, {"a-fresh": "cleaned"}),
    ({"agentId": "a", "runtimeInstanceId": "r3"}, {}),
    (
        {"agentId": "a", "runtimeInstanceId": None},
        {"a-expired": "expired", "a-silent": "cleaned", "a-fresh": "cleaned", "a-nowhere": "cleaned"},
    ),
]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(("body", "ended"), CASES, ids=[str(body) for body, _ in CASES])
async def test_cleanup_ends_what_it_is_asked_to_and_nothing_else(fleet: Api, body: Json, ended: dict[str, str]) -> None:
    """`cleaned` counts what this call ended; the same call again finds nothing left to do."""
    before = await living(fleet)
    answer = await fleet.post("/cleanup", json=body)
    assert (answer.status_code, answer.json()) == (200, {"cleaned": len(ended)})
    assert await endings(fleet) == ended
    assert await living(fleet) == before - ended.keys()
    assert (await fleet.post("/cleanup", json=body)).json() == {"cleaned": 0}
    for task in ended:
        assert (await fleet.get(f"/by-task/{task}")).status_code == 404
    stats = (await fleet.get("/stats")).json()
    reasons = list(ended.values())
    assert stats["ended"] == {
        "deleted": 0,
        "expired": reasons.count("expired"),
        "replaced": 0,
        "cleaned": reasons.count("cleaned"),
    }


EXPIRED_CASES: list[tuple[Json, dict[str, str]]] = [
    ({"agentId": "a"}, {"a-expired": "expired"}),
    ({"agentId": "a", "runtimeInstanceId": "r1"}, {"a-expired": "expired", "a-silent": "cleaned"}),
    ({"agentId": "a", "maxAgeMinutes": 20}, {"a-expired": "expired", "a-silent": "cleaned"}),
    ({}, {"a-expired": "expired", "b-expired": "expired"}),
]


@ONLY_EXPIRED
@pytest.mark.parametrize(("body", "ended"), EXPIRED_CASES, ids=[str(body) for body, _ in EXPIRED_CASES])
async def test_where_processes_share_an_agent_a_booting_one_spares_its_siblings(
    fleet: Api, body: Json, ended: dict[str, str]
) -> None:
    """With the setting, an agent id alone ends only what has expired; the narrower forms stay as they are."""
    assert (await fleet.post("/cleanup", json=body)).json() == {"cleaned": len(ended)}
    assert await endings(fleet) == ended


async def test_a_heartbeat_makes_a_session_young_again(api: Api) -> None:
    for task in ("beats", "silent"):
        await api.create(taskId=task)
    await advance(api.store, 700)
    await api.put("/heartbeat/beats")
    assert (await api.post("/cleanup", json={"maxAgeMinutes": 10})).json() == {"cleaned": 1}
    assert await living(api) == {"beats"}


async def test_the_providers_session_is_no_heartbeat(api: Api) -> None:
    await api.create(taskId="t1")
    await advance(api.store, 700)
    await api.put("/provider-session/t1", json={"providerSessionId": "p"})
    assert (await api.post("/cleanup", json={"maxAgeMinutes": 10})).json() == {"cleaned": 1}


@pytest.mark.parametrize("count", [350])
async def test_cleanup_ends_more_than_fit_into_one_batch(api: Api, count: int) -> None:
    for number in range(count):
        await api.create(taskId=f"t{number}", agentId=f"a{number % 2}")
    assert (await api.post("/cleanup", json={"agentId": "a0"})).json() == {"cleaned": count // 2}
    await advance(api.store, 1801)
    assert (await api.post("/cleanup")).json() == {"cleaned": count // 2}
    assert len(await endings(api)) == count
    assert (await api.get("/stats")).json()["expiredUnswept"] == 0


@pytest.mark.parametrize("body", [{}, {"agentId": "a"}, {"maxAgeMinutes": 0}])
async def test_what_several_calls_at_once_say_adds_up(api: Api, body: Json) -> None:
    """Each session is ended, and counted, by exactly one of them."""
    for number in range(120):
        await api.create(taskId=f"t{number}")
    await advance(api.store, 1801)
    answers = await asyncio.gather(*(api.post("/cleanup", json=body) for _ in range(4)))
    assert sum(answer.json()["cleaned"] for answer in answers) == 120
    assert len(await endings(api)) == 120


async def test_the_end_event_has_the_whole_session(fleet: Api) -> None:
    before = (await fleet.get("/by-task/a-silent")).json()["session"]
    await fleet.post("/cleanup", json={"agentId": "a"})
    events = await fleet.events(type="session.ended", agentId="a")
    assert before in [event["session"] for event in events]
