"""Ending what died: the sweep, the cleanup that callers ask for, and what an outage changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest
from pydantic_core import from_json

from tests.audit import audit
from tests.clockwork import advance, outage
from tests.conftest import OpenPod
from tests.patience import until
from tests.raw import read_now, read_raw
from tests.store.wire import a_cleanup, a_list, a_run, some_events
from tests.sweeping import sweeping
from tracker.errors import StoreFault, StoreUnavailable
from tracker.models import Event, Session, Target
from tracker.store.ending import end
from tracker.store.ids import shard_of_text
from tracker.store.keys import Shard
from tracker.store.scripts import together
from tracker.store.server import LANES
from tracker.store.store import Store
from tracker.store.sweeper import BATCH, CLEANUPS

SHARDS = pytest.mark.parametrize("shards", [1, 4])
TASK = Target.task("t1")


@pytest.fixture
async def agreed(store: Store) -> AsyncIterator[None]:
    """After the test all keys must agree."""
    yield
    await audit(store)


async def make(store: Store, *tasks: str, **fields: Any) -> dict[str, Session]:
    """Sessions by their task."""
    created = await asyncio.gather(*(store.sessions.create(a_run(task, **fields)) for task in tasks))
    return dict(zip(tasks, (one.session for one in created), strict=True))


async def alive(store: Store) -> set[str | None]:
    """The tasks that have a live session."""
    return {from_json(session)["taskId"] async for chunk in store.listing.chunks(a_list()) for session in chunk}


async def ended(store: Store) -> list[Event]:
    events: list[Event] = []
    after = None
    while True:
        page = await store.feed.page(some_events(type="session.ended", limit=1000, after=after))
        if not page["events"]:
            return events
        events += page["events"]
        after = page["next"]


async def reasons(store: Store) -> dict[str | None, str | None]:
    """Why each task's session ended."""
    return {event["session"]["taskId"]: event["reason"] for event in await ended(store)}


# --- the sweep --------------------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_a_sweep_ends_who_has_expired_once_and_tells_them_whole(store: Store) -> None:
    made = await make(store, *(f"dead{number}" for number in range(10)), metadata={"k": "v"}, taskDescription="all")
    await advance(store, 1801)
    await make(store, "live")
    assert await store.sweeper.sweep() == 10
    assert await store.sweeper.sweep() == 0
    events = await ended(store)
    assert sorted(event["session"]["id"] for event in events) == sorted(session["id"] for session in made.values())
    for event in events:
        session = made[str(event["session"]["taskId"])]
        assert event["reason"] == "expired"
        same = session.keys() - {"startedAt", "lastHeartbeatAt", "expiresAt"}
        assert {field: event["session"][field] for field in same} == {field: session[field] for field in same}  # type: ignore[literal-required]
    assert await alive(store) == {"live"}


@pytest.mark.usefixtures("agreed")
async def test_an_empty_store_is_swept_too(store: Store) -> None:
    assert await store.sweeper.sweep() == 0
    (raw,) = await read_raw(store)
    assert abs(int(raw["clock"].content[b"pulse"]) - await read_now(store)) < 5000
    assert raw["clock"].content[b"patience"] == b"3000"


@pytest.mark.usefixtures("agreed")
@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
async def test_more_than_a_batch_is_swept_in_several(store: Store, count: int) -> None:
    await make(store, *(f"t{number}" for number in range(count)))
    await advance(store, 1801)
    assert await store.sweeper.sweep() == count
    assert len(await ended(store)) == count


async def test_the_last_sweep_leaves_no_index_behind(store: Store) -> None:
    await make(store, "t1", "t2")
    await advance(store, 1801)
    await store.sweeper.sweep()
    (raw,) = await read_raw(store)
    assert raw.keys() == {"schema", "clock", "counters", "events"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_four_sweepers_at_once_end_each_session_once(store: Store, open_pod: OpenPod) -> None:
    """I6. As four pods do; the same with four processes is shown on the real Redis."""
    await make(store, *(f"t{number}" for number in range(600)))
    await advance(store, 1801)
    async with open_pod() as second, open_pod() as third, open_pod() as fourth:
        counts = await asyncio.gather(
            *(pod.sweeper.cleanup(a_cleanup()) for pod in (store, second, third, fourth)),
        )
    assert sum(counts) == 600
    ids = [event["session"]["id"] for event in await ended(store)]
    assert len(ids) == len(set(ids)) == 600


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_cleanups_of_all_kinds_at_once_add_up(store: Store, open_pod: OpenPod) -> None:
    await make(store, *(f"dead{number}" for number in range(300)), runtimeInstanceId="r")
    await advance(store, 1801)
    await make(store, *(f"live{number}" for number in range(300)), runtimeInstanceId="r")
    requests = [
        a_cleanup(),
        a_cleanup(agentId="a1"),
        a_cleanup(agentId="a1", runtimeInstanceId="r"),
        a_cleanup(maxAgeMinutes=0),
        a_cleanup(agentId="a1", maxAgeMinutes=0),
        a_cleanup(runtimeInstanceId="r"),
    ]
    async with open_pod() as pod:
        counts = await asyncio.gather(
            *((store, pod)[number % 2].sweeper.cleanup(request) for number, request in enumerate(requests))
        )
    assert sum(counts) == 600
    assert len(await ended(store)) == 600


@pytest.mark.usefixtures("agreed")
async def test_a_sweep_that_races_heartbeats_never_ends_who_was_renewed(store: Store, open_pod: OpenPod) -> None:
    """I5. At the deadline itself, some heartbeats come in time and some too late: each learns which."""
    renewed = lost = 0
    async with open_pod() as pod:
        for round_ in range(12):
            tasks = [Target.task(f"{round_}-{number}") for number in range(20)]
            ttls = [1 + number / 1000 for number in range(20)]
            for task, ttl in zip(tasks, ttls, strict=True):
                await store.sessions.create(a_run(task.value, ttlSeconds=ttl))
            # Ever earlier: how long it takes to get to the heartbeats differs between machines.
            await advance(store, 0.99 - round_ * 0.03)

            async def beat(task: Target) -> bool:
                outcome = None
                for _ in range(4):
                    outcome = await store.sessions.heartbeat(task)
                return outcome is not None

            beats, *_ = await together([together(beat(task) for task in tasks), pod.sweeper.sweep(), sweep_often(pod)])
            assert isinstance(beats, list)
            living = await alive(store)
            for task, was_renewed in zip(tasks, beats, strict=True):
                assert (task.value in living) == was_renewed
            renewed += sum(beats)
            lost += len(beats) - sum(beats)
            await store.sweeper.cleanup(a_cleanup(agentId="a1"))
    assert renewed > 0


async def sweep_often(pod: Store) -> int:
    return sum([await pod.sweeper.sweep() for _ in range(5)])


@pytest.mark.usefixtures("agreed")
async def test_an_index_that_says_a_live_session_is_due_is_put_right_and_kills_nobody(store: Store) -> None:
    """I5. As a crash between two versions of a hash and its index might leave it."""
    session = (await make(store, "t1"))["t1"]
    shard = store.scripts.shards[0]
    await store.scripts.command("ZADD", shard.prefix + "deadlines", 1, session["id"])
    assert await store.sweeper.sweep() == 0
    assert await alive(store) == {"t1"}


async def test_a_session_that_outlived_its_grace_unswept_still_gets_its_one_end_event(store: Store) -> None:
    """Redis has let the snapshot go; id and start are left."""
    session = (await make(store, "t1", ttlSeconds=60))["t1"]
    await make(store, "t2", ttlSeconds=86_400)
    await advance(store, 60 + 3601)
    assert await store.sweeper.sweep() == 1
    assert await store.sweeper.sweep() == 0
    (event,) = await ended(store)
    assert (event["reason"], event["session"]["id"], event["session"]["agentId"]) == ("expired", session["id"], "")
    stats = await store.stats()
    assert (stats["sessions"], stats["expiredUnswept"], stats["ended"]["expired"]) == (1, 0, 1)


async def test_without_any_sweeper_nothing_of_a_session_stays_for_ever(store: Store) -> None:
    await make(store, "t1", "t2")
    await store.sessions.create(a_run("t3"), "key")
    await advance(store, 2 * 86_400)
    (raw,) = await read_raw(store)
    assert raw.keys() <= {"schema", "clock", "counters", "events"}


# --- cleanup, exactly -------------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_without_conditions_it_ends_who_has_expired(store: Store) -> None:
    await make(store, "dead", ttlSeconds=60)
    await make(store, "live", ttlSeconds=120)
    await advance(store, 90)
    assert await store.sweeper.cleanup(a_cleanup()) == 1
    assert await reasons(store) == {"dead": "expired"}
    assert await alive(store) == {"live"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_with_an_agent_it_ends_all_of_that_agents_live_or_not(store: Store) -> None:
    await make(store, "dead", agent="a1", ttlSeconds=60)
    await make(store, "other dead", agent="a2", ttlSeconds=60)
    await make(store, *(f"live{number}" for number in range(10)), agent="a1")
    await make(store, "other live", agent="a2")
    await advance(store, 90)
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1")) == 11
    assert await reasons(store) == {"dead": "expired"} | {f"live{number}": "cleaned" for number in range(10)}
    assert await alive(store) == {"other live"}
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1")) == 0


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_more_sessions_of_an_agent_than_a_batch_are_all_ended(store: Store) -> None:
    await make(store, *(f"t{number}" for number in range(5 * BATCH // 2)))
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1")) == 5 * BATCH // 2
    assert await alive(store) == set()


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_with_an_age_it_ends_who_was_silent_for_longer_and_who_has_expired(store: Store) -> None:
    await make(store, "silent", "beating")
    await make(store, "expired", ttlSeconds=60)
    await advance(store, 301)
    await store.sessions.heartbeat(Target.task("beating"))
    await make(store, "new")
    await make(store, "just expired", ttlSeconds=1)
    await advance(store, 2)
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=5)) == 3
    assert await reasons(store) == {"silent": "cleaned", "expired": "expired", "just expired": "expired"}
    assert await alive(store) == {"beating", "new"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_an_age_of_zero_ends_everybody(store: Store) -> None:
    await make(store, "t1", "t2")
    await make(store, "t3", agent="a2")
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=0)) == 3


@pytest.mark.usefixtures("agreed")
async def test_no_age_is_too_large(store: Store) -> None:
    await make(store, "t1")
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=10**30)) == 0
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=10**30, agentId="a1")) == 0
    assert await alive(store) == {"t1"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_with_agent_and_age_it_ends_that_agents_who_were_silent_for_longer(store: Store) -> None:
    await make(store, "silent", "beating", agent="a1")
    await make(store, "other", agent="a2")
    await advance(store, 301)
    await store.sessions.heartbeat(Target.task("beating"))
    await make(store, "expired", agent="a1", ttlSeconds=1)
    await advance(store, 2)
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1", maxAgeMinutes=5)) == 1
    assert await reasons(store) == {"silent": "cleaned"}
    assert await alive(store) == {"beating", "other"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_with_agent_and_runtime_it_ends_the_sessions_of_that_process_only(store: Store) -> None:
    await make(store, "mine", agent="a1", runtimeInstanceId="r1")
    await make(store, "sibling's", agent="a1", runtimeInstanceId="r2")
    await make(store, "unknown", agent="a1")
    await make(store, "other's", agent="a2", runtimeInstanceId="r1")
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1", runtimeInstanceId="r1")) == 1
    assert await reasons(store) == {"mine": "cleaned"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_with_a_runtime_alone_it_ends_that_processs_sessions_of_every_agent(store: Store) -> None:
    await make(store, "one", agent="a1", runtimeInstanceId="r1")
    await make(store, "two", agent="a2", runtimeInstanceId="r1")
    await make(store, "three", agent="a1", runtimeInstanceId="r2")
    assert await store.sweeper.cleanup(a_cleanup(runtimeInstanceId="r1")) == 2
    assert await alive(store) == {"three"}


@SHARDS
@pytest.mark.settings(agent_cleanup="expired")
@pytest.mark.usefixtures("agreed")
async def test_where_siblings_share_an_agent_a_booting_one_ends_only_the_expired(store: Store) -> None:
    await make(store, "dead", agent="a1", ttlSeconds=60)
    await make(store, "live", agent="a1", runtimeInstanceId="r1")
    await make(store, "other's dead", agent="a2", ttlSeconds=60)
    await advance(store, 90)
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1")) == 1
    assert await reasons(store) == {"dead": "expired"}
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1", runtimeInstanceId="r1")) == 1
    assert await reasons(store) == {"dead": "expired", "live": "cleaned"}


@pytest.mark.usefixtures("agreed")
async def test_an_unknown_agent_has_nothing_to_clean(store: Store) -> None:
    await make(store, "t1")
    assert await store.sweeper.cleanup(a_cleanup(agentId="nobody")) == 0
    assert await store.sweeper.cleanup(a_cleanup(runtimeInstanceId="nobody")) == 0


@pytest.mark.parametrize("shards", [4])
@pytest.mark.parametrize("filters", [{}, {"maxAgeMinutes": 1}, {"agentId": "a1"}, {"runtimeInstanceId": "r"}])
async def test_while_one_shard_is_away_a_cleanup_does_what_it_can_in_the_others_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    """As when a cluster has lost a master. Which shard it is makes no difference."""
    run = store.scripts.run
    for lost in store.scripts.shards:

        async def run_elsewhere(name: str, shard: Shard, *arguments: Any, lost: Shard = lost) -> Any:
            if shard is lost:
                raise StoreUnavailable("the store did not answer in time")
            return await run(name, shard, *arguments)

        made = await make(store, *(f"{lost.number}-{number}" for number in range(20)), runtimeInstanceId="r")
        await advance(store, 1801)
        with monkeypatch.context() as patch:
            patch.setattr(store.scripts, "run", run_elsewhere)
            with pytest.raises(StoreUnavailable):
                await store.sweeper.cleanup(a_cleanup(**filters))
        told = await reasons(store)
        assert {task for task in made if task not in told} == {
            task for task in made if shard_of_text(task, 4) == lost.number
        }
        await store.sweeper.sweep()


async def test_a_session_that_cannot_be_ended_keeps_no_cleanup_from_the_others(store: Store) -> None:
    await make(store, "stuck", agent="a2", ttlSeconds=60)
    await make(store, *(f"t{number}" for number in range(5)))
    await advance(store, 301)
    prefix = store.scripts.shards[0].prefix
    await store.scripts.command("DEL", prefix + "agent:a2")
    await store.scripts.command("RPUSH", prefix + "agent:a2", "planted")
    with pytest.raises(StoreFault, match="1 sessions could not be ended"):
        await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=5))
    assert await alive(store) == set()
    assert await reasons(store) == {f"t{number}": "cleaned" for number in range(5)}


@SHARDS
@pytest.mark.usefixtures("agreed")
@pytest.mark.parametrize("filters", [{"agentId": "a1"}, {"maxAgeMinutes": 0}, {"runtimeInstanceId": "r"}])
async def test_after_the_clock_was_set_back_a_cleanup_ends_the_newest_too(
    store: Store, filters: dict[str, Any]
) -> None:
    """They started in what is the time to come by now."""
    await make(store, *(f"t{number}" for number in range(5)), runtimeInstanceId="r")
    await store.sweeper.pulse()
    await advance(store, -60)
    assert await store.sweeper.cleanup(a_cleanup(**filters)) == 5


def between_batches(store: Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[object]]) -> None:
    """Has something done whenever a batch of a cleanup is through and the next not yet on its way."""
    run = store.scripts.run

    async def run_and_act(name: str, *arguments: Any) -> Any:
        reply = await run(name, *arguments)
        if name == "cleanup":
            await act()
        return reply

    monkeypatch.setattr(store.scripts, "run", run_and_act)


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_a_cleanup_spares_what_is_created_while_it_runs(
    store: Store, open_pod: OpenPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a busy agent's cleanup might never come to an end."""
    await make(store, *(f"old{number}" for number in range(800)))
    created: set[str | None] = set()

    async def create() -> None:
        await asyncio.sleep(0.002)  # another millisecond
        tasks = [f"new{len(created) + number}" for number in range(20)]
        created.update(await make(store, *tasks))

    between_batches(store, monkeypatch, create)
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1")) == 800
    assert await alive(store) == created != set()


@SHARDS
@pytest.mark.parametrize("filters", [{"runtimeInstanceId": "r"}, {"runtimeInstanceId": "r", "agentId": "a1"}])
@pytest.mark.usefixtures("agreed")
async def test_a_cleanups_place_stays_right_when_sessions_come_and_go(
    store: Store, monkeypatch: pytest.MonkeyPatch, filters: dict[str, str]
) -> None:
    """Nobody who fits and was there from the beginning is passed over, though half a batch before the place is gone."""
    for number in range(0, 600, 50):
        tasks = [f"{kind}{number + n}" for n in range(50) for kind in ("fits", "other")]
        for task in tasks:
            await store.sessions.create(a_run(task, runtimeInstanceId="r" if task.startswith("fits") else "s"))
    others = iter(range(600))

    async def disturb() -> None:
        for _ in range(40):
            if (number := next(others, None)) is not None:
                await store.sessions.delete(Target.task(f"other{number}"))

    between_batches(store, monkeypatch, disturb)
    assert await store.sweeper.cleanup(a_cleanup(**filters)) == 600
    assert not [task for task in await alive(store) if str(task).startswith("fits")]


# --- many cleanups at once --------------------------------------------------------------------------------------------

NO_STORE = pytest.mark.parametrize("backend", ["memory"])
NOTHING_TO_END = [b"done", b"", b"", b"0", b"0", b"0", b""]


class Held:
    """What the store says to cleanups while ``go`` is not set: nothing. Afterwards that there is nothing to end, or
    ``error``. ``agents``: those whose cleanups have come to it.
    """

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        self.agents: list[str] = []
        self.error: StoreUnavailable | None = None
        self._run = store.scripts.run
        monkeypatch.setattr(store.scripts, "run", self._answer)

    async def _answer(self, name: str, shard: Shard, *arguments: Any) -> Any:
        if name != "cleanup" or arguments[0] == "a1":
            return await self._run(name, shard, *arguments)
        self.agents.append(arguments[0])
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return NOTHING_TO_END

    async def full(self) -> bool:
        return len(self.agents) >= LANES


def fleet(store: Store, count: int = 3 * CLEANUPS) -> list[asyncio.Task[int]]:
    """Workers that all boot at once."""
    return [asyncio.create_task(store.sweeper.cleanup(a_cleanup(agentId=f"w{number}"))) for number in range(count)]


@pytest.fixture
def held(store: Store, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(store, monkeypatch)


@NO_STORE
@pytest.mark.settings(store_timeout_seconds=0.05)
async def test_a_cleanup_that_waits_for_its_turn_is_not_refused_for_that(store: Store, held: Held) -> None:
    workers = fleet(store)
    await until(held.full)
    await asyncio.sleep(0.1)  # twice the deadline
    held.go.set()
    assert await asyncio.gather(*workers) == [0] * len(workers)
    assert list(dict.fromkeys(held.agents)) == [f"w{number}" for number in range(len(workers))], "in their order"


@pytest.mark.parametrize("shards", [16])
async def test_no_pulse_queues_behind_cleanups(store: Store, held: Held) -> None:
    """Or a fleet that boots would make an outage for all."""
    workers = fleet(store)
    await until(held.full)
    await store.sweeper.pulse()
    assert not held.go.is_set()
    held.go.set()
    await asyncio.gather(*workers)


@NO_STORE
async def test_cleanups_that_wait_while_the_store_is_silent_are_refused_with_those_before_them(
    store: Store, held: Held
) -> None:
    workers = fleet(store)
    await until(held.full)
    held.error = StoreUnavailable("the store did not answer in time")
    held.go.set()
    outcomes = await asyncio.gather(*workers, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert len(held.agents) == LANES, "the others have not even asked"
    held.error = None
    assert await store.sweeper.cleanup(a_cleanup(agentId="later")) == 0


@NO_STORE
async def test_a_caller_who_leaves_frees_his_place(store: Store, held: Held) -> None:
    workers = fleet(store)
    await until(held.full)
    gone, others = [*workers[:CLEANUPS], workers[-1]], workers[CLEANUPS:-1]
    await end(gone)
    held.go.set()
    assert await asyncio.gather(*others) == [0] * len(others)
    assert "w23" not in held.agents


async def test_what_is_made_while_a_cleanup_waits_for_its_turn_is_spared(store: Store, held: Held) -> None:
    """As by a worker who does not wait for the answer."""
    await make(store, "old")
    workers = fleet(store)
    await until(held.full)
    waiting = asyncio.create_task(store.sweeper.cleanup(a_cleanup(agentId="a1")))
    await asyncio.sleep(0.02)  # other milliseconds
    await make(store, "new")
    held.go.set()
    assert await waiting == 1
    assert await alive(store) == {"new"}
    await asyncio.gather(*workers)


# --- outages ----------------------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_who_was_alive_when_an_outage_began_gets_its_length_again_to_heartbeat(store: Store) -> None:
    """I9, from the first request after it, before any sweep."""
    await make(store, "beating", "silent", ttlSeconds=60)
    await store.sweeper.sweep()
    await outage(store, 300)
    assert await alive(store) == {"beating", "silent"}
    assert await store.sessions.heartbeat(Target.task("beating"))
    assert await store.sweeper.sweep() == 0
    assert await alive(store) == {"beating", "silent"}

    await advance(store, 200)
    assert await store.sessions.heartbeat(Target.task("beating"))
    assert await store.sweeper.sweep() == 0
    assert await alive(store) == {"beating", "silent"}

    await advance(store, 110)
    assert await store.sessions.heartbeat(Target.task("beating")) is None, (
        "the hold is over, and 110 s are more than 60"
    )


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_a_hold_ends_by_itself_and_then_the_silent_expire(store: Store) -> None:
    await make(store, "t1", ttlSeconds=60)
    await store.sweeper.sweep()
    await outage(store, 100)
    await store.sweeper.sweep()
    await advance(store, 95)
    assert await alive(store) == {"t1"}
    await advance(store, 10)
    assert await alive(store) == set()
    assert await store.sweeper.sweep() == 1
    assert await reasons(store) == {"t1": "expired"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_who_had_expired_when_the_outage_began_stays_dead(store: Store) -> None:
    await make(store, "dead", ttlSeconds=60)
    await store.sweeper.sweep()
    await advance(store, 61)
    await outage(store, 100)
    assert await alive(store) == set()
    assert await store.sessions.heartbeat(Target.task("dead")) is None
    assert await store.sweeper.sweep() == 1


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_a_rolling_restart_holds_nothing(store: Store) -> None:
    """No pod was there for less than three pulses."""
    await make(store, "t1", ttlSeconds=60)
    await store.sweeper.sweep()
    await advance(store, 59)
    await outage(store, 2)
    assert await alive(store) == set()
    assert await store.sweeper.sweep() == 1
    assert "heldUntil" not in (await store.inspect()).facts


@pytest.mark.usefixtures("agreed")
async def test_a_store_that_nobody_ever_swept_is_no_outage(store: Store) -> None:
    await make(store, "t1")
    await advance(store, 1801)
    assert await alive(store) == set()
    assert await store.sweeper.sweep() == 1


@pytest.mark.settings(ttl_seconds=60)
@pytest.mark.usefixtures("agreed")
async def test_a_hold_lasts_no_longer_than_the_default_ttl(store: Store) -> None:
    await make(store, "t1")
    await store.sweeper.sweep()
    await outage(store, 1000)
    await store.sweeper.sweep()
    await advance(store, 55)
    assert await alive(store) == {"t1"}
    await advance(store, 10)
    assert await alive(store) == set()


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_an_outage_within_a_hold_leaves_who_was_alive_at_the_first_what_was_left(store: Store) -> None:
    await make(store, "t1", ttlSeconds=60)
    await store.sweeper.sweep()
    await outage(store, 300)
    await store.sweeper.sweep()
    await advance(store, 100)
    await outage(store, 50)
    assert await alive(store) == {"t1"}
    await store.sweeper.sweep()
    await advance(store, 195)
    assert await alive(store) == {"t1"}, "200 s of the hold were left"
    await advance(store, 10)
    assert await alive(store) == set()


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_everything_else_goes_on_during_a_hold(store: Store) -> None:
    await make(store, "held", ttlSeconds=60)
    await store.sweeper.sweep()
    await outage(store, 300)
    await store.sweeper.sweep()
    await make(store, "short", ttlSeconds=1)
    assert await store.sessions.delete(Target.task("held"))
    await make(store, "agent's", agent="a2")
    assert await store.sweeper.cleanup(a_cleanup(agentId="a2")) == 1
    await advance(store, 10)
    assert await alive(store) == {"short"}, "nobody expires during a hold"
    await advance(store, 310)
    assert await store.sweeper.sweep() == 1
    assert await reasons(store) == {"held": "deleted", "agent's": "cleaned", "short": "expired"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_an_age_during_a_hold_counts_from_the_last_heartbeat_after_the_outage(store: Store) -> None:
    """And leaves out the outage for those who have not had a chance to heartbeat since."""
    await make(store, "silent for long")
    await advance(store, 200)
    await make(store, "silent", "beating")
    await store.sweeper.sweep()
    await outage(store, 600)
    await store.sweeper.sweep()
    await make(store, "since")
    await store.sessions.heartbeat(Target.task("beating"))
    await advance(store, 100)
    await make(store, "new")
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=3)) == 1
    assert await reasons(store) == {"silent for long": "cleaned"}
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=1)) == 2
    assert await alive(store) == {"silent", "new"}
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=0)) == 2


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_an_outage_ages_nobody_who_heartbeated_right_before_it(store: Store) -> None:
    """That is after the last pulse, and so after what counts as the outage's beginning."""
    await store.sweeper.sweep()
    await asyncio.sleep(0.002)  # another millisecond
    await make(store, "t1", "t2")
    await outage(store, 600)
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1", maxAgeMinutes=5)) == 0, "before any pulse"
    await store.sweeper.pulse()
    assert await store.sweeper.cleanup(a_cleanup(agentId="a1", maxAgeMinutes=5)) == 0
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=5)) == 0
    assert await alive(store) == {"t1", "t2"}
    await advance(store, 601)
    assert await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=5)) == 2


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_an_outage_of_seconds_is_one_whatever_the_sweep_interval(store: Store, open_pod: OpenPod) -> None:
    """Pods need not agree about the interval, and short TTLs are safe as well."""
    async with open_pod(sweep_interval_seconds=60) as seldom, open_pod(sweep_interval_seconds=0.1) as often:
        for before, after in ((seldom, often), (often, seldom)):
            await make(store, "t1", ttlSeconds=5)
            await before.sweeper.pulse()
            await outage(store, 10)
            assert await alive(store) == {"t1"}
            await after.sweeper.pulse()
            assert await store.sweeper.sweep() == 0
            assert await store.sessions.heartbeat(TASK)
            await advance(store, 11)
            assert await store.sweeper.sweep() == 1


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_a_sweep_without_a_pulse_kills_nobody_whom_an_outage_silenced(store: Store) -> None:
    """As the loop's first one, which may come before its first pulse."""
    await make(store, "t1", ttlSeconds=60)
    await store.sweeper.pulse()
    await outage(store, 300)
    for shard in store.scripts.shards:
        assert (await store.sweeper._sweep(shard, skip_if_younger_ms=0)).ended == 0
    assert await alive(store) == {"t1"}


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_a_clock_that_is_set_back_neither_stops_the_sweeps_nor_kills_anybody(store: Store) -> None:
    """As by a failover to a machine whose clock is behind: pulse, sweep and hold lie ahead of now."""
    await make(store, "short", ttlSeconds=60)
    await store.sweeper.sweep()
    await outage(store, 300)
    await store.sweeper.sweep()
    await outage(store, -1000)
    await store.sweeper.sweep()
    await make(store, "t1", ttlSeconds=60)
    assert await alive(store) == {"t1", "short"}
    for raw in await read_raw(store):
        assert int(raw["clock"].content[b"pulse"]) <= await read_now(store)
        assert int(raw["clock"].content[b"swept"]) <= await read_now(store)


@SHARDS
@pytest.mark.usefixtures("agreed")
async def test_marks_and_ends_work_during_a_hold_as_ever(store: Store) -> None:
    await make(store, "marked", "stopped", "deleted", "dead", ttlSeconds=60)
    await store.sweeper.pulse()
    await outage(store, 300)
    for _ in range(2):
        assert await store.sessions.set_provider_session(Target.task("marked"), "p")
        assert await store.sessions.request_stop(Target.task("stopped"))
        stats = await store.stats()
        assert (stats["sessions"], stats["expiredUnswept"]) == (len(await alive(store)), 0)
        await store.sweeper.sweep()
    assert await store.sessions.delete(Target.task("deleted"))
    beat = await store.sessions.heartbeat(Target.task("stopped"))
    assert beat is not None
    assert beat.stop_requested
    assert 50_000 < beat.due - await read_now(store) <= 60_000, "a full TTL from now"
    await advance(store, 301)
    assert await store.sweeper.sweep() == 3
    assert await reasons(store) == {"deleted": "deleted"} | dict.fromkeys(("marked", "stopped", "dead"), "expired")


@SHARDS
async def test_each_pod_logs_an_outage_once_whoever_noticed_it(
    store: Store, open_pod: OpenPod, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose pulse it was that ended the outage may never learn of it: a store that freezes answers too late."""
    await store.sweeper.sweep()
    await outage(store, 300)
    async with open_pod() as pod, open_pod() as third:
        await third.sweeper.pulse()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                pulses = (pod.sweeper._pulse_in_turn(shard) for shard in pod.scripts.shards)
                await asyncio.gather(store.sweeper.sweep(), *pulses, store.sweeper.sweep())
    lines = [record.getMessage() for record in caplog.records if "an outage" in record.getMessage()]
    assert len(lines) == 2
    for line in lines:
        began, ended, until = (datetime.fromisoformat(word.rstrip(":")) for word in line.split() if word[:2] == "20")
        assert 300 <= (ended - began).total_seconds() < 310
        assert until - ended == ended - began


# --- the loop ---------------------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.settings(sweep_interval_seconds=0.1)
async def test_running_it_sweeps_again_and_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """I11: an end event comes within an interval of the deadline."""
    with caplog.at_level(logging.INFO):
        async with sweeping(store):
            for number in range(3):
                await make(store, f"t{number}")
                await advance(store, 1801)

                async def told(count: int = number + 1) -> bool:
                    return len(await ended(store)) == count

                await until(told)
    assert "swept 1 expired sessions" in caplog.messages


@pytest.mark.settings(sweep_interval_seconds=60)
async def test_pods_that_sweep_at_once_leave_it_to_one(store: Store, open_pod: OpenPod) -> None:
    """A sweep that is younger than half an interval is as good as one's own."""
    await store.sweeper.sweep()
    await make(store, "t1")
    await advance(store, 1801)
    async with open_pod() as pod, sweeping(pod):
        await asyncio.sleep(0.1)
    assert await ended(store) == []
    assert await store.sweeper.sweep() == 1


@pytest.mark.settings(sweep_interval_seconds=0.1)
async def test_the_loop_outlasts_an_unreachable_store_and_tells_once_each_way(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = store.scripts._run
    tries = 0

    async def unreachable(*call: Any) -> Any:
        nonlocal tries
        tries += 1
        raise StoreUnavailable("the store is away")

    async def tried() -> bool:
        return tries >= 3

    async def back() -> bool:
        return "the store is back" in caplog.messages

    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(store.scripts, "_run", unreachable)
        async with sweeping(store):
            await until(tried)
            monkeypatch.setattr(store.scripts, "_run", run)
            await until(back)
    assert caplog.messages.count("sweep: the store is away") == 1
    assert caplog.messages.count("the store is back") == 1


@pytest.mark.settings(sweep_interval_seconds=0.1)
async def test_the_loop_outlasts_a_session_that_cannot_be_ended_and_goes_on_telling(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await make(store, "t1")
    await advance(store, 1801)
    await store.scripts.command("DEL", store.scripts.shards[0].prefix + "task:t1")
    await store.scripts.command("RPUSH", store.scripts.shards[0].prefix + "task:t1", "planted")

    async def told_twice() -> bool:
        return sum("1 sessions could not be ended" in message for message in caplog.messages) >= 2

    async def told() -> bool:
        return len(await ended(store)) == 1

    async with sweeping(store):
        await until(told_twice)
        await store.scripts.command("DEL", store.scripts.shards[0].prefix + "task:t1")
        await until(told)
