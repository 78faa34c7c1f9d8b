"""Do hashes and indices agree: each kind of disagreement is found, mended, and nothing else is touched or reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.audit import audit
from tests.clockwork import advance
from tests.raw import client_of, read_raw
from tests.store.wire import ODD_TEXTS, a_cleanup, a_run
from tracker.models import Target
from tracker.store import agreement as module
from tracker.store import scan
from tracker.store.agreement import MEANINGS, NOT_MENDED, Agreement, agreement
from tracker.store.scripts import Scripts
from tracker.store.store import Store

TASK = Target.task("t1")


async def look(store: Store) -> Agreement:
    return await agreement(store.scripts, mend=False)


async def mend(store: Store) -> Agreement:
    return await agreement(store.scripts, mend=True)


def kinds(found: Agreement) -> set[str]:
    return {finding.kind for finding in found.findings}


def stale(found: Agreement) -> set[str]:
    assert kinds(found) == {"stale"}
    assert len(found.findings) == len({finding.key for finding in found.findings})
    return {finding.key for finding in found.findings}


async def fill(store: Store, sessions: int = 12) -> str:
    """Several agents and trigger types, with and without a task; the id of t1's session."""
    for number in range(sessions):
        await store.sessions.create(a_run(f"t{number}" if number % 4 else None, f"a{number % 3}"))
    created = await store.sessions.get(TASK)
    assert created is not None
    return created["id"]


async def raw(store: Store, *words: Any) -> Any:
    """A command behind the store's back. Keys are without their prefix, which `*` stands for."""
    prefix = store.scripts.shards[0].prefix
    changed = [word.replace("*", prefix) if isinstance(word, str) else word for word in words]
    return await (await client_of(store)).execute_command(*changed)  # type: ignore[no-untyped-call]


Plant = Callable[[Store, str], Awaitable[Any]]

DAMAGE: dict[str, tuple[set[str], Plant]] = {
    "no entry among all": ({"sessions"}, lambda s, i: raw(s, "ZREM", "*sessions", i)),
    "another place among all": ({"sessions"}, lambda s, i: raw(s, "ZADD", "*sessions", 5, i)),
    "no index of all": ({"sessions"}, lambda s, i: raw(s, "DEL", "*sessions")),
    "no deadline": ({"deadlines"}, lambda s, i: raw(s, "ZREM", "*deadlines", i)),
    "another deadline": ({"deadlines"}, lambda s, i: raw(s, "ZADD", "*deadlines", 5, i)),
    "no deadlines": ({"deadlines"}, lambda s, i: raw(s, "DEL", "*deadlines")),
    "no entry with its agent": ({"agent"}, lambda s, i: raw(s, "ZREM", "*agent:a1", i)),
    "no index of an agent": ({"agent"}, lambda s, i: raw(s, "DEL", "*agent:a1")),
    "no task key": ({"task"}, lambda s, i: raw(s, "DEL", "*task:t1")),
    "a task key that leads nowhere": ({"task", "stray"}, lambda s, i: raw(s, "SET", "*task:t1", "nobody", "KEEPTTL")),
    "a task of nobody": ({"stray"}, lambda s, i: raw(s, "SET", "*task:other", i)),
    "an entry of nobody among all": ({"stale"}, lambda s, i: raw(s, "ZADD", "*sessions", 5, "nobody")),
    "an entry of nobody with an agent": ({"stale"}, lambda s, i: raw(s, "ZADD", "*agent:a1", 5, "nobody")),
    "an entry with another's agent": ({"stale"}, lambda s, i: raw(s, "ZADD", "*agent:a2", 5, i)),
    "an index of an agent of nobody": ({"stale"}, lambda s, i: raw(s, "ZADD", "*agent:x", 5, "nobody")),
    "a count too high": ({"count"}, lambda s, i: raw(s, "ZINCRBY", "*agents", 2, "a1")),
    "a count too low": ({"count"}, lambda s, i: raw(s, "ZINCRBY", "*triggers", -2, "task_assigned")),
    "no count": ({"count"}, lambda s, i: raw(s, "ZREM", "*agents", "a1")),
    "no counts": ({"count"}, lambda s, i: raw(s, "DEL", "*triggers")),
    "a count of nobody": ({"count"}, lambda s, i: raw(s, "ZADD", "*triggers", 3, "ghost")),
    "a hash gone": ({"lost", "stale", "stray", "count"}, lambda s, i: raw(s, "DEL", f"*session:{i}")),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_each_disagreement_is_found_and_mended(store: Store, damage: str) -> None:
    session_id = await fill(store)
    sessions = await audit(store)
    expected, plant = DAMAGE[damage]
    await plant(store, session_id)
    before = await read_raw(store)
    found = await look(store)
    assert kinds(found) == expected
    assert not [finding for finding in found.findings if finding.mended]
    assert {name: key.content for name, key in (await read_raw(store))[0].items()} == {
        name: key.content for name, key in before[0].items()
    }, "looking changes nothing"

    mended = await mend(store)
    # Where the task key led nowhere, it may be dropped and made anew, or only the latter: as SCAN comes to them.
    assert expected - {"stray"} <= kinds(mended) <= expected | {"task"}
    assert all(finding.mended for finding in mended.findings)
    assert (await look(store)).findings == []
    if "lost" not in expected:  # its end event can say only so much
        assert await audit(store) == sessions


def test_every_kind_is_planted() -> None:
    planted = set().union(*(expected for expected, _ in DAMAGE.values()))
    assert planted | NOT_MENDED == set(MEANINGS)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_store_that_agrees_is_found_to_agree(store: Store) -> None:
    for number, text in enumerate(ODD_TEXTS.values()):
        await store.sessions.create(a_run(text, f"a{number % 3}" if number % 2 else text))
    await fill(store, 30)
    await store.sessions.delete(TASK)
    await store.sessions.heartbeat(Target.task("t2"))
    found = await look(store)
    assert found == (await audit(store), [], [])
    assert await mend(store) == found


def step_by_step(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for where, name in ((module, "BATCH"), (module, "SCAN"), (scan, "SCAN"), (scan, "STRETCH")):
        monkeypatch.setattr(where, name, size)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_many_indices_of_all_lengths_are_seen_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However they and their entries fall into steps, and also where many entries have one place."""
    step_by_step(monkeypatch, size)
    await fill(store)
    planted = {f"agent:a{agent} nobody{number}" for agent in range(15) for number in range(agent)}
    for key in planted:
        index, name = key.split()
        await raw(store, "ZADD", f"*{index}", len(name), name)
    assert stale(await look(store)) == planted
    assert stale(await mend(store)) == planted
    assert (await look(store)).findings == []
    assert await audit(store) == 12


@pytest.mark.parametrize("shards", [4])
async def test_more_than_fits_a_step_is_seen_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    step_by_step(monkeypatch, 7)
    monkeypatch.setattr(module, "EVENTS", 3)
    await asyncio.gather(*(store.sessions.create(a_run(f"t{number}", f"a{number % 40}")) for number in range(300)))
    for shard in store.scripts.shards:
        for name in ("sessions", "deadlines", "agents", "triggers"):
            await (await client_of(store, shard.number)).delete(shard.prefix + name)
    found = await mend(store)
    assert found.sessions == 300
    assert kinds(found) == {"sessions", "deadlines", "count"}
    assert sum(finding.kind == "deadlines" for finding in found.findings) == 300
    assert await audit(store) == 300
    assert (await look(store)).findings == []


async def test_what_the_sweep_will_find_due_is_left_to_it(store: Store) -> None:
    """Also where the hash has outlived its grace: it has its end event to come."""
    await fill(store, 4)
    await advance(store, 1801)
    assert (await look(store)).findings == []
    assert (await mend(store)).findings == []
    await advance(store, 3600)
    assert {finding.kind for finding in (await mend(store)).findings} <= {"stale", "stray", "count"}
    assert await store.sweeper.sweep() == 4
    assert (await look(store)).findings == []


async def test_a_lost_session_gets_its_end_event_once(store: Store) -> None:
    session_id = await fill(store)
    await raw(store, "DEL", f"*session:{session_id}")
    for _ in range(2):
        await mend(store)
    events = (await read_raw(store))[0]["events"].content
    ends = [event for _, event in events if event[b"type"] == b"session.ended"]
    assert [(event[b"id"].decode(), event[b"reason"]) for event in ends] == [(session_id, b"expired")]


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("broken", lambda s, i: raw(s, "HDEL", f"*session:{i}", "ttl")),
        ("broken", lambda s, i: raw(s, "HSET", f"*session:{i}", "due", "soon")),
        ("failed", lambda s, i: raw(s, "SET", "*session:0199b1f2-6c1e-7000-8a55-0c3f3f8f2a10", "text")),
        ("failed", lambda s, i: raw(s, "SET", "*agent:x", "text")),
    ],
)
async def test_what_only_a_person_can_decide_is_told_and_left(store: Store, kind: str, plant: Plant) -> None:
    await plant(store, await fill(store))
    before = {name: key.content for name, key in (await read_raw(store))[0].items()}
    found = await mend(store)
    assert [(finding.kind, finding.mended) for finding in found.findings] == [(kind, False)]
    assert {name: key.content for name, key in (await read_raw(store))[0].items()} == before


async def counts(store: Store) -> Any:
    return [await raw(store, "ZRANGE", f"*{name}", 0, -1, "WITHSCORES") for name in ("agents", "triggers")]


async def test_a_task_key_of_a_wrong_type_is_told_and_its_session_counted(store: Store) -> None:
    session_id = await fill(store)
    before = await counts(store)
    await raw(store, "DEL", "*task:t1")
    await raw(store, "LPUSH", "*task:t1", "x")
    found = await mend(store)
    expected = {("failed", f"session:{session_id}", False), ("failed", "task:t1", False)}
    assert {(one.kind, one.key, one.mended) for one in found.findings} == expected
    assert (found.sessions, found.uncounted) == (12, [])
    assert await counts(store) == before


async def test_where_nobody_can_tell_what_a_session_counts_for_the_counts_are_left_alone(store: Store) -> None:
    session_id = await fill(store)
    before = await counts(store)
    await raw(store, "SET", f"*session:{session_id}", "text")
    found = await mend(store)
    assert {(one.kind, one.mended) for one in found.findings} == {("failed", False)}
    assert found.uncounted == [0]
    assert await counts(store) == before


async def test_of_a_shard_that_comes_to_another_server_meanwhile_the_counts_are_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCAN's place in the one means nothing to the other: who knows what it has not come to."""
    await fill(store)
    await raw(store, "ZINCRBY", "*agents", 2, "a1")
    (server,) = await store.scripts.servers.all()
    processes = iter("ab")

    async def read_infos(scripts: Scripts) -> dict[str, dict[str, str]]:
        return {server.name: {"run_id": next(processes)}}

    monkeypatch.setattr(module, "read_infos", read_infos)
    found = await mend(store)
    assert (found.findings, found.uncounted) == ([], [0])
    monkeypatch.undo()
    assert kinds(await mend(store)) == {"count"}


async def test_two_live_sessions_of_a_task_are_told_and_both_live_on(store: Store) -> None:
    first = await fill(store)
    await raw(store, "DEL", "*task:t1")
    second = (await store.sessions.create(a_run("t1", "a1"))).session["id"]
    found = await mend(store)
    assert [(one.kind, one.key, one.mended) for one in found.findings] == [("rival", f"session:{first}", False)]
    assert await store.sessions.heartbeat(Target.id(first))
    assert await store.sessions.heartbeat(Target.id(second))


@pytest.mark.settings(feed_length=10_000_000)  # the audit reads all of it
@pytest.mark.parametrize("shards", [1, 4])
async def test_among_callers_at_work_nothing_is_reported_and_no_session_harmed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps so small that everything happens between them."""
    step_by_step(monkeypatch, 5)
    for number in range(60):
        await store.sessions.create(a_run(f"steady-{number}", f"a{number % 5}"))
    done = False

    async def work(name: int) -> None:
        number = 0
        while not done:
            number += 1
            task = f"{name}-{number % 5}"
            await store.sessions.create(a_run(task, f"a{number % 5}"))
            assert await store.sessions.heartbeat(Target.task(f"steady-{number % 60}"))
            if number % 3 == 0:
                await store.sessions.delete(Target.task(task))
            if number % 20 == 0:
                await store.sweeper.cleanup(a_cleanup(agentId="a9"))

    workers = [asyncio.create_task(work(name)) for name in range(4)]
    try:
        for _ in range(3):
            for examine in (look, mend):
                found = await examine(store)
                assert found.findings == []
                assert found.uncounted == []
    finally:
        done = True
        await asyncio.gather(*workers)
    assert await audit(store) >= 60


async def test_damage_is_mended_while_sessions_come_go_and_heartbeat(store: Store) -> None:
    for number in range(200):
        await store.sessions.create(a_run(f"steady-{number}", f"a{number % 5}"))
    for name in ("sessions", "deadlines", "agents", "triggers", "agent:a1"):
        await raw(store, "DEL", f"*{name}")
    done = False

    async def work() -> None:
        number = 0
        while not done:
            number += 1
            assert await store.sessions.heartbeat(Target.task(f"steady-{number % 200}"))
            await store.sessions.create(a_run(f"coming {number}", "a1"))
            await store.sessions.delete(Target.task(f"coming {number}"))

    working = asyncio.create_task(work())
    try:
        found = await mend(store)
    finally:
        done = True
        await working
    assert {"sessions", "deadlines", "agent", "count"} <= kinds(found)
    assert found.uncounted == []
    assert await audit(store) == 200


async def test_a_feed_that_does_not_reach_back_leaves_the_counts_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store)
    walk = module._Look.at_indices

    async def forgetful(self: Any) -> None:
        await walk(self)
        await store.sessions.create(a_run("late"))
        await raw(store, "XTRIM", "*events", "MAXLEN", 1)

    monkeypatch.setattr(module._Look, "at_indices", forgetful)
    found = await mend(store)
    assert (found.findings, found.uncounted) == ([], [0])
