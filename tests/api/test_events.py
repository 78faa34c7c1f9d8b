"""The change feed as JSON pages: what it tells, how to go on reading, and what it says when a position is lost."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.api.conftest import Api, Json
from tests.clockwork import advance
from tracker.store.keys import Shard

SHARDS = pytest.mark.parametrize("shards", [1, 4])
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def page(api: Api, **parameters: object) -> Json:
    answer = await api.get("/events", params=parameters)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    assert list(found) == ["events", "next"]
    return found


async def walked(api: Api, limit: int, **parameters: object) -> list[Json]:
    """All events, page by page, up to the first empty page."""
    events: list[Json] = []
    after = ""
    while True:
        found = await page(api, **parameters, limit=limit, after=after)
        assert len(found["events"]) <= limit
        if not found["events"]:
            return events
        events += found["events"]
        after = found["next"]


@pytest.fixture
async def lives(api: Api) -> dict[str, Json]:
    """A session for each way to end, and one that lives: as each was when it ended, or is."""
    sessions = {
        reason: await api.create(taskId=reason, agentId=reason) for reason in ("deleted", "replaced", "cleaned")
    }
    sessions["expired"] = await api.create(taskId="expired", agentId="expired", ttlSeconds=60)
    await api.put("/provider-session/expired", json={"providerSessionId": "p"})
    await api.put("/heartbeat/deleted", json={"progress": "done"})
    await advance(api.store, 61)
    for reason in ("deleted", "replaced", "cleaned"):
        sessions[reason] = (await api.get(f"/by-task/{reason}")).json()["session"]
    await api.delete("/by-task/deleted")
    sessions["lives"] = await api.create(taskId="replaced", agentId="replaced")
    await api.post("/cleanup", json={"agentId": "cleaned"})
    await api.post("/cleanup")
    return sessions


async def test_an_event_says_what_happened_when_and_to_which_session(api: Api) -> None:
    session = await api.create(taskId="t1", metadata={"k": "v"}, taskDescription="d")
    await api.put("/provider-session/t1", json={"providerSessionId": "p"})
    await api.delete("/by-task/t1")
    created, updated, ended = (await page(api))["events"]
    for event, kind, reason in (
        (created, "session.created", None),
        (updated, "session.updated", None),
        (ended, "session.ended", "deleted"),
    ):
        assert list(event) == ["id", "type", "at", "reason", "session"]
        assert (event["type"], event["reason"]) == (kind, reason)
        assert TIME.fullmatch(event["at"])
        assert list(event["session"]) == list(session)
    assert created["session"] == session
    assert created["at"] == session["startedAt"]
    assert updated["session"] == ended["session"] == {**session, "providerSessionId": "p"}
    assert created["at"] <= updated["at"] <= ended["at"]
    assert len({event["id"] for event in (created, updated, ended)}) == 3


@SHARDS
async def test_each_end_is_told_once_with_its_reason_and_the_session_as_it_was(
    api: Api, lives: dict[str, Json]
) -> None:
    ended = (await page(api, type="session.ended"))["events"]
    assert sorted(event["reason"] for event in ended) == ["cleaned", "deleted", "expired", "replaced"]
    for event in ended:
        assert event["session"]["id"] == lives[event["reason"]]["id"]
        if event["reason"] != "expired":
            assert event["session"] == lives[event["reason"]]
    resumable = next(event["session"] for event in ended if event["reason"] == "expired")
    assert (resumable["taskId"], resumable["providerSessionId"]) == ("expired", "p")


@SHARDS
async def test_each_session_is_created_once_and_first(api: Api, lives: dict[str, Json]) -> None:
    events = (await page(api))["events"]
    for session in lives.values():
        kinds = [event["type"] for event in events if event["session"]["id"] == session["id"]]
        assert kinds[0] == "session.created"
        assert kinds.count("session.created") == 1
        assert kinds.count("session.ended") == (session is not lives["lives"])
        assert kinds[-1] == "session.ended" or session is lives["lives"]


@SHARDS
@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_pages_follow_each_other_without_loss_or_repeat(api: Api, lives: dict[str, Json], limit: int) -> None:
    everything = (await page(api, limit=1000))["events"]
    assert len(everything) == 10
    assert await walked(api, limit) == everything


@SHARDS
async def test_reading_goes_on_behind_any_event(api: Api, lives: dict[str, Json]) -> None:
    """Not only where a page ended: the id of whichever event was handled last will do."""
    everything = (await page(api))["events"]
    for at, event in enumerate(everything):
        assert (await page(api, after=event["id"]))["events"] == everything[at + 1 :]


async def test_at_the_end_next_waits_for_what_comes(api: Api) -> None:
    assert (await page(api))["events"] == []
    start = (await page(api))["next"]
    session = await api.create()
    first = await page(api, after=start)
    assert [event["session"] for event in first["events"]] == [session]
    for _ in range(2):
        last = await page(api, after=first["next"])
        assert last == {"events": [], "next": first["next"]}
    await api.delete(f"/{session['id']}")
    assert [event["type"] for event in (await page(api, after=last["next"]))["events"]] == ["session.ended"]


@pytest.mark.parametrize("after", ["", "0", "0-0"])
async def test_from_the_beginning(api: Api, after: str) -> None:
    await api.create()
    assert len((await page(api, after=after))["events"]) == 1


async def test_a_page_has_a_hundred_events_unless_told_otherwise(api: Api) -> None:
    for _ in range(101):
        await api.create()
    assert len((await page(api))["events"]) == 100
    assert len((await page(api, limit=101))["events"]) == 101


@SHARDS
async def test_filters_keep_the_place_of_all_events(api: Api, lives: dict[str, Json]) -> None:
    everything = (await page(api, limit=1000))["events"]
    ended = [event for event in everything if event["type"] == "session.ended"]
    replaced = [event for event in everything if event["session"]["agentId"] == "replaced"]
    assert await walked(api, 2, type="session.ended") == ended
    assert await walked(api, 1, agentId="replaced") == replaced
    assert len(replaced) == 3
    both = await page(api, agentId="replaced", type="session.ended")
    assert both["events"] == [event for event in ended if event in replaced]
    assert await page(api, after=both["next"], type="session.created") == {"events": [], "next": both["next"]}
    nobody = await page(api, agentId="nobody")
    assert nobody["events"] == []
    assert await page(api, after=nobody["next"]) == {"events": [], "next": nobody["next"]}


async def test_a_filter_that_matches_nothing_costs_no_round_trip_per_event(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the smallest limit would make the most expensive question: the feed holds 100,000 events."""
    for _ in range(150):
        await api.create()
    commands = 0
    command = api.store.scripts.command

    async def counted(*words: str | bytes | int, shard: Shard | None = None) -> Any:
        nonlocal commands
        commands += 1
        return await command(*words, shard=shard)

    monkeypatch.setattr(api.store.scripts, "command", counted)
    assert (await page(api, agentId="nobody", limit=1))["events"] == []
    assert 1 <= commands <= 5


@pytest.mark.settings(feed_length=100)
async def test_a_position_that_was_trimmed_away_is_gone(api: Api) -> None:
    """The reader must know that it missed something; from the newest positions it reads on as ever."""
    await api.create()
    (first,) = (await page(api))["events"]
    for _ in range(450):
        await api.create()
    lost = await api.get("/events", params={"after": first["id"]})
    assert lost.status_code == 410
    assert list(lost.json()) == ["error"]
    held = await walked(api, 1000)
    assert 100 <= len(held) < 450
    assert (await page(api, after=held[-3]["id"]))["events"] == held[-2:]


@pytest.mark.parametrize("after", ["1-1", "99999999999999-0", "1-0"])
async def test_a_position_that_never_was_is_gone_too(api: Api, after: str) -> None:
    await api.create()
    assert (await api.get("/events", params={"after": after})).status_code == 410


async def test_a_position_of_other_shards_is_no_position(api: Api) -> None:
    await api.create()
    refused = await api.get("/events", params={"after": "0-0.0-0"})
    assert refused.status_code == 400
    assert refused.json()["details"][0]["field"] == "after"


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/html, */*;q=0.1", "", "text/html", "application/json;q=0"]
)
async def test_everybody_who_asks_for_no_stream_gets_json(api: Api, accept: str) -> None:
    assert (await api.get("/events", headers={"Accept": accept})).json()["events"] == []


async def test_the_last_events_come_oldest_first_and_lead_on(api: Api) -> None:
    for number in range(5):
        await api.create(taskId=f"t{number}")
    found = await page(api, last=2)
    assert [event["session"]["taskId"] for event in found["events"]] == ["t3", "t4"]
    await api.create(taskId="t5")
    assert [event["session"]["taskId"] for event in (await page(api, after=found["next"]))["events"]] == ["t5"]


@pytest.mark.parametrize("query", ["last=1&limit=1", "last=1&after=0", "last=0", "last=1001", "last=x"])
async def test_the_last_events_are_asked_for_in_one_way(api: Api, query: str) -> None:
    answer = await api.get(f"/events?{query}")
    assert answer.status_code == 400
    assert "last" in answer.json()["error"]
