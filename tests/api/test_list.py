"""Listing: filters, pages, walks that nothing disturbs, and everything at once as a stream."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.api.conftest import Api, Json
from tests.clockwork import advance

SHARDS = pytest.mark.parametrize("shards", [1, 4])
FILTERS = ["agentId", "taskId", "triggerType", "runnerSessionId", "runtimeInstanceId"]


async def listed(api: Api, **parameters: object) -> list[Json]:
    answer = await api.get(params=parameters)
    assert answer.status_code == 200, answer.text
    sessions: list[Json] = answer.json()["sessions"]
    return sessions


async def walked(api: Api, limit: int, **parameters: object) -> list[Json]:
    """All pages, one after the other."""
    sessions: list[Json] = []
    cursor = ""
    while True:
        answer = await api.get(params={**parameters, "limit": limit, "cursor": cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert list(page) == ["sessions", "nextCursor"]
        assert len(page["sessions"]) <= limit
        sessions += page["sessions"]
        if page["nextCursor"] is None:
            return sessions
        assert len(page["sessions"]) == limit, "a page that is not the last is full"
        cursor = page["nextCursor"]


@SHARDS
@pytest.mark.parametrize("field", FILTERS)
async def test_each_filter_keeps_what_has_that_value(api: Api, field: str) -> None:
    """By the whole value, in pages as well as at once."""
    for number in range(4):
        odd = "\N{ROBOT FACE}/%2F \0" if number % 2 else "x"
        common = {name: f"{odd}{number}" if name == "taskId" else odd for name in FILTERS}
        await api.create(**common)
    await api.create(**({} if field in ("agentId", "triggerType") else {field: None}))
    wanted = "\N{ROBOT FACE}/%2F \0" + ("3" if field == "taskId" else "")
    sessions = await listed(api, **{field: wanted})
    assert len(sessions) == (1 if field == "taskId" else 2)
    assert {session[field] for session in sessions} == {wanted}
    assert await walked(api, 1, **{field: wanted}) == sessions
    assert await listed(api, **{field: wanted[:-1]}) == []


@SHARDS
async def test_filters_narrow_each_other(api: Api) -> None:
    sessions = [
        await api.create(agentId=agent, triggerType=trigger, taskId=f"{agent}{trigger}", runtimeInstanceId=agent)
        for agent in "abc"
        for trigger in "tuv"
    ]
    assert await listed(api, agentId="b", triggerType="u") == [sessions[4]]
    assert await listed(api, taskId="bu", agentId="b", triggerType="u", runtimeInstanceId="b") == [sessions[4]]
    assert await listed(api, taskId="bu", agentId="a") == []
    assert await listed(api, taskId="bu", triggerType="t") == []
    assert await listed(api, agentId="b", runtimeInstanceId="c") == []


async def test_what_is_over_is_not_listed(api: Api) -> None:
    """Deleted, replaced and expired sessions are gone at once, with every filter."""
    await api.create(taskId="deleted")
    await api.delete("/by-task/deleted")
    await api.create(taskId="replaced")
    lives = await api.create(taskId="replaced", ttlSeconds=7200)
    await api.create(taskId="expired")
    await advance(api.store, 1801)
    for parameters in ({}, {"agentId": "a"}, {"triggerType": "t"}, {"limit": 10}):
        assert [session["id"] for session in await listed(api, **parameters)] == [lives["id"]]
    assert await listed(api, taskId="expired") == []


@SHARDS
@pytest.mark.parametrize("limit", [1, 7, 20, 21, 1000])
async def test_a_walk_shows_everything_once_newest_first(api: Api, limit: int) -> None:
    for number in range(20):
        await api.create(agentId=f"a{number % 2}")
    everything = await listed(api)
    assert len(everything) == 20
    starts = [(session["startedAt"], session["id"]) for session in everything]
    assert starts == sorted(starts, reverse=True)
    assert await walked(api, limit) == everything
    assert await walked(api, limit, agentId="a1") == [one for one in everything if one["agentId"] == "a1"]


async def test_a_page_of_nothing_is_the_last(api: Api) -> None:
    assert (await api.get(params={"limit": 5})).json() == {"sessions": [], "nextCursor": None}
    await api.create()
    assert (await api.get(params={"limit": 5, "agentId": "nobody"})).json() == {"sessions": [], "nextCursor": None}


async def test_a_page_that_just_fits_is_the_last(api: Api) -> None:
    for _ in range(3):
        await api.create()
    assert (await api.get(params={"limit": 3})).json()["nextCursor"] is None
    assert (await api.get(params={"limit": 2})).json()["nextCursor"] is not None


async def test_a_cursor_works_without_a_limit(api: Api) -> None:
    for _ in range(5):
        await api.create()
    everything = await listed(api)
    cursor = (await api.get(params={"limit": 2})).json()["nextCursor"]
    rest = await api.get(params={"cursor": cursor})
    assert rest.json() == {"sessions": everything[2:]}


async def test_a_rare_match_is_found_behind_many_others(api: Api) -> None:
    """A page is filled from as far back as it takes."""
    rare = await api.create(triggerType="rare")
    for _ in range(250):
        await api.create()
    assert (await api.get(params={"limit": 1, "triggerType": "rare"})).json() == {
        "sessions": [rare],
        "nextCursor": None,
    }


@SHARDS
async def test_a_walk_shows_what_lives_throughout_exactly_once_whatever_comes_and_goes(api: Api) -> None:
    """Between any two pages sessions are created, deleted (that of the cursor among them), replaced and heartbeated."""
    chance = random.Random(7)
    stays = [(await api.create(taskId=f"stays-{number}"))["id"] for number in range(25)]
    goes = [(await api.create(taskId=f"goes-{number}"))["id"] for number in range(25)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await api.get(params={"limit": 4, "cursor": cursor})).json()
        ids = [session["id"] for session in page["sessions"]]
        seen += ids
        if page["nextCursor"] is None:
            break
        cursor = page["nextCursor"]
        doomed = [one for one in ids if one in goes][-1:] + chance.sample(goes, 2)
        await asyncio.gather(
            *(api.delete(f"/{one}") for one in doomed),
            *(api.create(taskId=f"goes-{chance.randrange(25)}") for _ in range(3)),
            *(api.put(f"/heartbeat/stays-{chance.randrange(25)}") for _ in range(3)),
        )
    assert len(seen) == len(set(seen))
    assert set(stays) <= set(seen)


async def test_a_cursor_outlives_the_sessions_around_it(api: Api) -> None:
    for number in range(6):
        await api.create(taskId=f"t{number}")
    everything = await listed(api)
    cursor = (await api.get(params={"limit": 3})).json()["nextCursor"]
    for session in everything[1:5]:
        await api.delete(f"/{session['id']}")
    assert await listed(api, limit=3, cursor=cursor) == everything[5:]


@SHARDS
@pytest.mark.parametrize("count", [199, 200, 201, 650])
async def test_all_at_once_come_as_one_object_however_many_chunks_it_takes(api: Api, count: int) -> None:
    await asyncio.gather(*(api.create(taskId=f"t{number}") for number in range(count)))
    answer = await api.get()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    sessions = answer.json()["sessions"]
    assert list(answer.json()) == ["sessions"]
    assert {session["taskId"] for session in sessions} == {f"t{number}" for number in range(count)}
    assert len(sessions) == count
    starts = [(session["startedAt"], session["id"]) for session in sessions]
    assert starts == sorted(starts, reverse=True)


async def test_a_long_list_with_gaps_is_whole(api: Api) -> None:
    """Whole chunks without a match lie between the first matches and the last."""
    first = await api.create(triggerType="rare")
    await asyncio.gather(*(api.create(triggerType="common") for _ in range(700)))
    await asyncio.sleep(0.002)  # two in one millisecond have no order among them
    last = await api.create(triggerType="rare")
    assert await listed(api, triggerType="rare") == [last, first]
