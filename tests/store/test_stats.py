"""Stats: right in every number, over all shards, at a cost that does not grow with the sessions."""

from __future__ import annotations

import asyncio

import pytest

from tests.clockwork import advance
from tests.store.wire import a_cleanup, a_run
from tracker.models import Target
from tracker.store.stats import NAMED, REACH
from tracker.store.store import Store

SHARDS = pytest.mark.parametrize("shards", [1, 4])


@SHARDS
async def test_an_empty_store_is_all_zeros(store: Store) -> None:
    assert await store.stats() == {
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
async def test_sessions_are_counted_by_agent_and_trigger_type_the_most_first(store: Store) -> None:
    for number, (agent, trigger) in enumerate([("b", "x"), ("a", "x"), ("c", "y"), ("c", "x"), ("c", "y"), ("a", "z")]):
        await store.sessions.create(a_run(f"t{number}", agent, triggerType=trigger))
    stats = await store.stats()
    assert stats["sessions"] == stats["created"] == 6
    assert stats["agents"] == 3
    assert stats["byAgent"] == [
        {"agentId": "c", "sessions": 3},
        {"agentId": "a", "sessions": 2},
        {"agentId": "b", "sessions": 1},
    ]
    assert stats["byTriggerType"] == [
        {"triggerType": "x", "sessions": 3},
        {"triggerType": "y", "sessions": 2},
        {"triggerType": "z", "sessions": 1},
    ]


@SHARDS
async def test_those_who_ended_are_counted_by_reason_for_ever(store: Store) -> None:
    sessions = store.sessions
    for _ in range(3):
        await sessions.create(a_run("t1", "a1"))
    await sessions.delete(Target.task("t1"))
    for number in range(4):
        await sessions.create(a_run(f"cleaned{number}", "a2"))
    await store.sweeper.cleanup(a_cleanup(agentId="a2"))
    for number in range(5):
        await sessions.create(a_run(f"expired{number}", "a3"))
    await advance(store, 1801)
    before = await store.stats()
    assert (before["sessions"], before["expiredUnswept"], before["ended"]["expired"]) == (0, 5, 0)
    await store.sweeper.sweep()
    after = await store.stats()
    assert after["ended"] == {"deleted": 1, "expired": 5, "replaced": 2, "cleaned": 4}
    assert (after["created"], after["sessions"], after["agents"], after["expiredUnswept"]) == (12, 0, 0, 0)
    assert (after["byAgent"], after["byTriggerType"]) == ([], [])


@SHARDS
async def test_expired_sessions_count_nowhere_but_as_unswept(store: Store) -> None:
    for number in range(20):
        await store.sessions.create(a_run(f"dead{number}", f"a{number % 2}", triggerType="dead"))
    await advance(store, 1801)
    await store.sessions.create(a_run("t1", "a1", triggerType="live"))
    stats = await store.stats()
    assert (stats["sessions"], stats["expiredUnswept"], stats["agents"]) == (1, 20, 1)
    assert stats["byAgent"] == [{"agentId": "a1", "sessions": 1}]
    assert stats["byTriggerType"] == [{"triggerType": "live", "sessions": 1}]


@SHARDS
async def test_the_age_of_the_oldest_session_and_of_the_oldest_heartbeat(store: Store) -> None:
    await store.sessions.create(a_run("oldest"))
    await advance(store, 600)
    await store.sessions.create(a_run("silent"))
    await advance(store, 300)
    await store.sessions.heartbeat(Target.task("oldest"))
    await store.sessions.create(a_run("youngest"))
    stats = await store.stats()
    assert stats["oldestSessionAgeSeconds"] == pytest.approx(900, abs=2)
    assert stats["oldestHeartbeatAgeSeconds"] == pytest.approx(300, abs=2)


@SHARDS
async def test_ages_leave_out_who_has_expired(store: Store) -> None:
    await store.sessions.create(a_run("dead", ttlSeconds=60))
    await advance(store, 100)
    await store.sessions.create(a_run("live"))
    await advance(store, 50)
    stats = await store.stats()
    assert stats["oldestSessionAgeSeconds"] == pytest.approx(50, abs=2)
    assert stats["oldestHeartbeatAgeSeconds"] == pytest.approx(50, abs=2)


async def test_the_oldest_heartbeat_is_found_among_different_ttls(store: Store) -> None:
    """The one that is nearest its deadline need not be the one that was silent for longest."""
    await store.sessions.create(a_run("long", ttlSeconds=86_400))
    await advance(store, 500)
    await store.sessions.create(a_run("short", ttlSeconds=60))
    assert (await store.stats())["oldestHeartbeatAgeSeconds"] == pytest.approx(500, abs=2)


@SHARDS
async def test_a_hundred_agents_are_named_and_all_are_counted(store: Store) -> None:
    await asyncio.gather(
        *(
            store.sessions.create(a_run(f"{agent}-{number}", f"a{agent:03d}", triggerType=f"x{agent:03d}"))
            for agent in range(NAMED + 20)
            for number in range(1 + (agent < 10))
        )
    )
    stats = await store.stats()
    assert stats["sessions"] == NAMED + 30
    assert len(stats["byAgent"]) == len(stats["byTriggerType"]) == NAMED
    assert [row["agentId"] for row in stats["byAgent"][:10]] == [f"a{agent:03d}" for agent in range(10)]
    assert {row["sessions"] for row in stats["byAgent"][:10]} == {2}
    if len(store.scripts.shards) == 1:
        assert stats["agents"] == NAMED + 20
    else:
        assert stats["agents"] >= NAMED + 20, "an agent of several shards may count in each"


@SHARDS
async def test_an_agent_in_several_shards_counts_once(store: Store) -> None:
    for number in range(20):
        await store.sessions.create(a_run(f"t{number}", "a1"))
    stats = await store.stats()
    assert stats["agents"] == 1
    assert stats["byAgent"] == [{"agentId": "a1", "sessions": 20}]


async def calls_in_a_script(store: Store) -> int:
    """How many commands one reading of the stats makes the server run."""

    async def so_far() -> int:
        stats = await store.scripts.client.info("commandstats")
        return sum(row["calls"] for row in stats.values())

    before = await so_far()
    await store.stats()
    return await so_far() - before


@pytest.mark.parametrize("backend", ["redis"])
async def test_the_cost_does_not_grow_with_the_sessions(store: Store) -> None:
    """Commands run, with many live and many expired ones; other tests may share the server, and add a few."""
    costs = []
    for batch in range(3):
        for kind in ("dead", "live"):
            await asyncio.gather(
                *(store.sessions.create(a_run(f"{kind}{batch}-{number}")) for number in range(2 * REACH))
            )
            if kind == "dead":
                await advance(store, 1801)
        costs.append(await calls_in_a_script(store))
    assert costs[0] <= 2 * REACH + 50
    assert costs[-1] <= costs[0] + 50
