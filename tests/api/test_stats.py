"""The numbers: what runs, who runs it, and what became of the rest."""

from __future__ import annotations

import pytest

from tests.api.conftest import Api, Json
from tests.clockwork import advance

SHARDS = pytest.mark.parametrize("shards", [1, 4])


async def stats(api: Api) -> Json:
    answer = await api.get("/stats")
    assert answer.status_code == 200
    found: Json = answer.json()
    return found


async def test_where_nothing_ever_was_everything_is_zero(api: Api) -> None:
    numbers = await stats(api)
    assert numbers == {
        "sessions": 0,
        "agents": 0,
        "byAgent": [],
        "byTriggerType": [],
        "expiredUnswept": 0,
        "created": 0,
        "ended": {"deleted": 0, "expired": 0, "replaced": 0, "cleaned": 0},
        "oldestSessionAgeSeconds": None,
        "oldestHeartbeatAgeSeconds": None,
    }


@SHARDS
async def test_what_lives_is_counted_by_agent_and_trigger_type_the_busiest_first(api: Api) -> None:
    for agent, trigger, count in (("a", "t", 2), ("b", "t", 3), ("c", "u", 1), ("\0\N{ROBOT FACE}", "v", 1)):
        for number in range(count):
            await api.create(agentId=agent, triggerType=trigger, taskId=f"{agent}{number}")
    numbers = await stats(api)
    assert (numbers["sessions"], numbers["agents"], numbers["created"]) == (7, 4, 7)
    assert numbers["byAgent"] == [
        {"agentId": "b", "sessions": 3},
        {"agentId": "a", "sessions": 2},
        {"agentId": "\0\N{ROBOT FACE}", "sessions": 1},
        {"agentId": "c", "sessions": 1},
    ]
    assert numbers["byTriggerType"] == [
        {"triggerType": "t", "sessions": 5},
        {"triggerType": "u", "sessions": 1},
        {"triggerType": "v", "sessions": 1},
    ]


@SHARDS
async def test_what_ended_is_counted_by_reason_and_no_longer_as_live(api: Api) -> None:
    for number in range(3):
        await api.create(agentId="deleted", taskId=f"d{number}")
        await api.delete(f"/by-task/d{number}")
    for _ in range(3):
        await api.create(agentId="replaced", taskId="r")
    for _ in range(4):
        await api.create(agentId="cleaned")
    await api.post("/cleanup", json={"agentId": "cleaned"})
    await api.create(agentId="expired", ttlSeconds=1)
    await advance(api.store, 2)
    assert (await stats(api))["expiredUnswept"] == 1
    await api.post("/cleanup")
    numbers = await stats(api)
    assert numbers["ended"] == {"deleted": 3, "expired": 1, "replaced": 2, "cleaned": 4}
    assert (numbers["created"], numbers["sessions"], numbers["expiredUnswept"]) == (11, 1, 0)
    assert numbers["byAgent"] == [{"agentId": "replaced", "sessions": 1}]


@SHARDS
async def test_an_expired_session_counts_as_expired_from_its_deadline_on(api: Api) -> None:
    """Swept or not: whoever looks sees one and the same rule."""
    await api.create(agentId="dead", triggerType="u")
    await api.create(agentId="alive", ttlSeconds=7200)
    await advance(api.store, 1801)
    numbers = await stats(api)
    assert (numbers["sessions"], numbers["agents"], numbers["expiredUnswept"]) == (1, 1, 1)
    assert numbers["byAgent"] == [{"agentId": "alive", "sessions": 1}]
    assert numbers["byTriggerType"] == [{"triggerType": "t", "sessions": 1}]
    assert numbers["ended"]["expired"] == 0


async def test_ages_are_in_seconds_by_the_stores_clock(api: Api) -> None:
    await api.create(taskId="t1")
    await advance(api.store, 500)
    await api.create(taskId="t2")
    await advance(api.store, 500)
    await api.put("/heartbeat/t1")
    numbers = await stats(api)
    assert 1000 <= numbers["oldestSessionAgeSeconds"] < 1030
    assert 500 <= numbers["oldestHeartbeatAgeSeconds"] < 530


@SHARDS
async def test_the_lists_are_capped_the_counts_are_not(api: Api) -> None:
    for number in range(105):
        await api.create(agentId=f"a{number}", triggerType=f"t{number}")
    await api.create(agentId="a104", triggerType="t104")
    numbers = await stats(api)
    assert (numbers["sessions"], numbers["agents"]) == (106, 105)
    for rows, name in ((numbers["byAgent"], "agentId"), (numbers["byTriggerType"], "triggerType")):
        assert len(rows) == 100
        assert rows[0]["sessions"] == 2
        assert rows[0][name].endswith("104")
