"""Deliveries: each event that a webhook is to be told of is one pod's at a time, and nobody's only when it is told."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.audit import audit
from tests.clockwork import advance
from tests.conftest import OpenPod
from tests.raw import read_raw
from tests.store.wire import a_run
from tracker.errors import StoreError
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.deliveries import Deliveries, Delivery, Outcome
from tracker.store.scripts import together
from tracker.store.store import Store

SHARDS = pytest.mark.parametrize("shards", [1, 3])
LEASE = 60


async def attend(store: Store, *types: str) -> Deliveries:
    """Deliveries from now on."""
    deliveries = Deliveries(store.scripts, types or ("session.ended",), LEASE)
    assert await deliveries.take(100) == ([], False)
    return deliveries


async def end(store: Store, *tasks: str) -> None:
    await asyncio.gather(*(store.sessions.create(a_run(task)) for task in tasks))
    await asyncio.gather(*(store.sessions.delete(Target.task(task)) for task in tasks))


async def taken(deliveries: Deliveries, most: int = 100) -> list[Delivery]:
    """All that can be had in a row of calls."""
    found: list[Delivery] = []
    while True:
        some, more = await deliveries.take(most)
        found += some
        if not more:
            return found


def tasks(deliveries: list[Delivery]) -> list[str]:
    return sorted(str(delivery.event["session"]["taskId"]) for delivery in deliveries)


@SHARDS
async def test_an_event_is_taken_once_and_whole(store: Store) -> None:
    deliveries = await attend(store)
    await end(store, "t1", "t2")
    found = await taken(deliveries)
    assert tasks(found) == ["t1", "t2"]
    assert await taken(deliveries) == []
    for delivery in found:
        event = delivery.event
        assert (event["type"], event["reason"], delivery.attempt) == ("session.ended", "deleted", 1)
        assert event["session"]["triggerType"] == "task_assigned"
    assert len({delivery.event["id"] for delivery in found}) == 2


async def test_what_happened_before_anybody_listened_is_not_told(store: Store) -> None:
    await end(store, "before")
    deliveries = await attend(store)
    await end(store, "after")
    assert tasks(await taken(deliveries)) == ["after"]


async def test_only_the_types_asked_for_are_told(store: Store) -> None:
    deliveries = await attend(store, "session.created", "session.updated")
    await store.sessions.create(a_run("t1"))
    await store.sessions.set_provider_session(Target.task("t1"), "p-1")
    await store.sessions.delete(Target.task("t1"))
    assert [delivery.event["type"] for delivery in await taken(deliveries)] == ["session.created", "session.updated"]


@SHARDS
async def test_many_pods_share_without_overlap(store: Store, settings: Settings, open_pod: OpenPod) -> None:
    await attend(store)
    names = [f"t{number:03}" for number in range(300)]
    await end(store, *names)
    async with open_pod() as other:
        pods = [Deliveries(pod.scripts, ("session.ended",), LEASE) for pod in (store, other, store, other)]
        found = await together(taken(pod, 7) for pod in pods)
        while len(found[-1]):
            found.append(await taken(pods[0], 50))
    counted = Counter(task for some in found for task in tasks(some))
    assert counted == dict.fromkeys(names, 1)


async def test_what_was_told_is_never_taken_again_and_leaves_nothing_behind(store: Store) -> None:
    deliveries = await attend(store)
    await end(store, "t1")
    await deliveries.settle([Outcome(delivery, "told") for delivery in await taken(deliveries)])
    await advance(store, 2 * LEASE)
    assert await taken(deliveries) == []
    (raw,) = await read_raw(store)
    assert not [name for name in raw if name.startswith(("hook", "parked"))]
    await audit(store)


async def test_a_pod_that_dies_lets_go_when_its_lease_runs_out(store: Store, open_pod: OpenPod) -> None:
    deliveries = await attend(store)
    await end(store, "t1")
    (lost,) = await taken(deliveries)
    async with open_pod() as other:
        heir = Deliveries(other.scripts, ("session.ended",), LEASE)
        assert await taken(heir) == []
        await advance(store, LEASE + 1)
        (again,) = await taken(heir)
        assert (again.id, again.event, again.attempt) == (lost.id, lost.event, 2)


async def test_one_to_be_tried_later_comes_back_then_and_not_before(store: Store) -> None:
    deliveries = await attend(store)
    await end(store, "t1")
    (first,) = await taken(deliveries)
    await deliveries.settle([Outcome(first, "later", 100)])
    await advance(store, 90)
    assert await taken(deliveries) == []
    await advance(store, 11)
    (second,) = await taken(deliveries)
    assert (second.id, second.attempt) == (first.id, 2)


async def test_one_that_was_given_up_is_kept_aside_and_counted(store: Store) -> None:
    deliveries = await attend(store)
    await end(store, "t1", "t2")
    await deliveries.settle([Outcome(delivery, "parked") for delivery in await taken(deliveries)])
    await advance(store, 86_400)
    assert await taken(deliveries) == []
    (raw,) = await read_raw(store)
    assert len(raw["parked"].content) == 2
    assert raw["counters"].content[b"parked"] == b"2"
    assert {key.content[b"task"] for name, key in raw.items() if name.startswith("hook:")} == {b"t1", b"t2"}
    await audit(store)


async def test_of_those_given_up_the_newest_are_kept(store: Store) -> None:
    deliveries = await attend(store)
    await end(store, *(f"t{number}" for number in range(1003)))
    found = await taken(deliveries)
    assert len(found) == 1003
    await deliveries.settle([Outcome(delivery, "parked") for delivery in found])
    (raw,) = await read_raw(store)
    assert len(raw["parked"].content) == len([name for name in raw if name.startswith("hook:")]) == 1000


async def test_settling_twice_does_no_harm(store: Store) -> None:
    """As when a lease ran out, another pod told it, and then the first one comes back."""
    deliveries = await attend(store)
    await end(store, "t1")
    (delivery,) = await taken(deliveries)
    for kind in ("told", "later", "parked"):
        await deliveries.settle([Outcome(delivery, kind)])
    (raw,) = await read_raw(store)
    assert not [name for name in raw if name.startswith(("hook", "parked"))]


async def test_what_is_being_tried_is_kept_for_as_long_as_that_takes(store: Store) -> None:
    """As with a receiver so slow that its last attempt comes after more than a day."""
    deliveries = await attend(store)
    await end(store, "t1")
    for attempt in range(1, 6):
        (delivery,) = await taken(deliveries)
        assert (tasks([delivery]), delivery.attempt) == (["t1"], attempt)
        await deliveries.settle([Outcome(delivery, "later", 3600)])
        await advance(store, 86_400)


@SHARDS
@pytest.mark.parametrize("days", [0, 3])
async def test_one_whose_copy_is_gone_is_counted_and_logged(
    store: Store, caplog: pytest.LogCaptureFixture, days: int
) -> None:
    """Also when it went because for some days nobody was there to tell."""
    deliveries = await attend(store)
    await end(store, *(f"t{number}" for number in range(12)))
    found = await taken(deliveries)
    assert len(found) == 12
    await deliveries.settle([Outcome(delivery, "later", LEASE) for delivery in found])
    for delivery in found[: 0 if days else 5]:
        shard = store.scripts.shards[delivery.shard]
        await store.scripts.command("DEL", f"{shard.prefix}hook:{delivery.id}", shard=shard)
    gone = 12 if days else 5
    await advance(store, LEASE + 1 + days * 86_400)
    assert len(await taken(deliveries)) == 12 - gone
    counted = [int(raw["counters"].content.get(b"parked", 0)) for raw in await read_raw(store)]
    assert sum(counted) == gone
    logged = [record.getMessage() for record in caplog.records if record.name == "tracker.store.deliveries"]
    assert sum(int(line.split()[1]) for line in logged) == gone
    assert await taken(deliveries) == []


async def test_the_copy_outlives_the_feed(store: Store, settings: Settings) -> None:
    deliveries = await attend(store)
    await end(store, "t1")
    (delivery,) = await taken(deliveries)
    await store.scripts.command("XTRIM", store.scripts.shards[0].events, "MAXLEN", 0)
    await deliveries.settle([Outcome(delivery, "later", 0)])
    assert tasks(await taken(deliveries)) == ["t1"]


async def test_a_store_that_was_emptied_is_told_of_from_its_beginning(store: Store) -> None:
    deliveries = await attend(store)
    await store.scripts.command("DEL", store.scripts.shards[0].events)
    await end(store, "t1")
    assert tasks(await taken(deliveries)) == ["t1"]


@pytest.mark.parametrize("name", ["hooks", "events"])
async def test_a_key_of_the_wrong_type_is_an_error_and_loses_nothing(store: Store, name: str) -> None:
    deliveries = await attend(store)
    await end(store, "t1")
    key = store.scripts.shards[0].prefix + name
    kept = store.scripts.shards[0].prefix + "kept"
    if name == "events":
        await store.scripts.command("RENAME", key, kept)
    await store.scripts.command("SET", key, "x")
    with pytest.raises(StoreError):
        await deliveries.take(10)
    await store.scripts.command("DEL", key)
    if name == "events":
        await store.scripts.command("RENAME", kept, key)
    assert tasks(await taken(deliveries)) == ["t1"]


@pytest.mark.parametrize("shards", [3])
async def test_a_shard_at_fault_keeps_nothing_from_us_of_what_others_gave(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    deliveries = await attend(store)
    await end(store, *(f"t{number}" for number in range(30)))
    at_fault = store.scripts.shards[1]
    await store.scripts.command("SET", at_fault.prefix + "hooks", "x", shard=at_fault)
    found = await taken(deliveries)
    assert {delivery.shard for delivery in found} == {0, 2}
    assert {delivery.attempt for delivery in found} == {1}
    assert await taken(deliveries) == []
    await store.scripts.command("DEL", at_fault.prefix + "hooks", shard=at_fault)
    found += await taken(deliveries)
    assert len(tasks(found)) == len(set(tasks(found))) == 30
    faults = [record for record in caplog.records if record.name == "tracker.store.deliveries"]
    assert ["shard 1" in record.getMessage() for record in faults] == [True], "told once"
