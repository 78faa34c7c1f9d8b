"""What must always hold, whatever comes at once and in whatever order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from pydantic_core import from_json

from tests.audit import audit
from tests.clockwork import advance, outage
from tests.conftest import OpenPod
from tests.raw import read_raw
from tests.store.wire import ODD_TEXTS, a_cleanup, a_list, a_run
from tracker.errors import Conflict, IdempotencyMismatch
from tracker.models import Target
from tracker.store.scripts import together
from tracker.store.store import Store

TASKS = [*(f"t{number}" for number in range(8)), ODD_TEXTS["nul"], ODD_TEXTS["emoji"]]
AGENTS = ["a1", "a2", ODD_TEXTS["right to left"]]
POLICIES = [None, "supersede", "reject", "replace", "reuse"]


class Fleet:
    """Many callers that do anything at any time, and remember what they were told."""

    def __init__(self, pods: list[Store], seed: int) -> None:
        self.chance = random.Random(seed)
        self.pods = pods
        self.known = ["0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10"]
        self.told: Counter[str] = Counter()

    async def act(self) -> None:
        chance = self.chance
        pod = chance.choice(self.pods)
        sessions = pod.sessions
        task = Target.task(chance.choice(TASKS))
        target = chance.choice([task, Target.id(chance.choice(self.known[-30:]))])
        guard = chance.choice([None, None, chance.choice(self.known[-10:])])
        kind = chance.choices(
            ["create", "heartbeat", "batch", "provider", "stop", "delete", "cleanup", "sweep"],
            [10, 10, 2, 3, 2, 4, 1, 1],
        )[0]
        try:
            match kind:
                case "create":
                    key = chance.choice([None, None, f"key{chance.randrange(20)}"])
                    # One key comes with one body, but for once in a while.
                    body = random.Random(f"{key} {chance.random() < 0.1}") if key else chance
                    run = a_run(
                        body.choice([*TASKS, None]),
                        body.choice(AGENTS),
                        onConflict=body.choice(POLICIES),
                        ttlSeconds=body.choice([None, 20, 300]),
                        triggerType=body.choice(["x", "y"]),
                        runtimeInstanceId=body.choice([None, "r1", "r2"]),
                    )
                    created = await sessions.create(run, key)
                    self.told[created.outcome] += 1
                    self.known.append(created.session["id"])
                case "heartbeat":
                    self.told["beat"] += bool(await sessions.heartbeat(target, guard, chance.choice([None, "", "p"])))
                case "batch":
                    await sessions.heartbeat_all([Target.task(task) for task in TASKS[:5]] + [target])
                case "provider":
                    await sessions.set_provider_session(target, chance.choice("pq"), guard)
                case "stop":
                    await sessions.request_stop(target)
                case "delete":
                    deleted = await sessions.delete(target, guard)
                    self.told["ended"] += deleted
                case "cleanup":
                    agent = chance.choice(AGENTS)
                    requests = [
                        a_cleanup(),
                        a_cleanup(agentId=agent),
                        a_cleanup(agentId=agent, runtimeInstanceId="r1"),
                        a_cleanup(maxAgeMinutes=4),
                        a_cleanup(agentId=agent, maxAgeMinutes=1),
                    ]
                    cleaned = await pod.sweeper.cleanup(chance.choice(requests))
                    self.told["ended"] += cleaned
                case "sweep":
                    swept = await pod.sweeper.sweep()
                    self.told["ended"] += swept
        except (Conflict, IdempotencyMismatch) as refusal:
            self.told[type(refusal).__name__] += 1


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("seed", range(3))
async def test_hashes_indices_counters_and_feed_agree_after_anything(
    store: Store, open_pod: OpenPod, seed: int
) -> None:
    """I2, I3, I4, I6: two pods, 40 callers at once, time passing in between and outages among it."""
    async with open_pod() as pod:
        fleet = Fleet([store, pod], seed)
        for round_ in range(6):

            async def caller() -> None:
                for _ in range(8):
                    await fleet.act()

            await together(caller() for _ in range(40))
            total = await audit(store)
            everybody = [from_json(session) async for chunk in store.listing.chunks(a_list()) for session in chunk]
            assert len(everybody) <= total
            tasks = Counter(session["taskId"] for session in everybody if session["taskId"] is not None)
            assert set(tasks.values()) <= {1}, "a task has two live sessions"
            if round_ == 3:
                await store.sweeper.sweep()
                await outage(store, 30)
            else:
                await advance(store, fleet.chance.choice([0, 15, 60, 200]))
        rest = await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=0))
        assert await audit(store) == 0
        stats = await store.stats()
        assert stats["created"] == fleet.told["created"]
        ended = stats["ended"]
        told = fleet.told["ended"] + rest
        # Creates end some too, as replaced or expired, and count them for nobody.
        assert ended["deleted"] + ended["cleaned"] <= told <= stats["created"] - ended["replaced"]
        assert {"created", "reused", "repeated", "beat", "ended", "Conflict"} <= fleet.told.keys()


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_session_that_beats_within_its_ttl_lives_through_everything_else(
    store: Store, open_pod: OpenPod
) -> None:
    """I1, through expiries, sweeps, cleanups of others and outages."""
    async with open_pod() as pod:
        steady = (await store.sessions.create(a_run("steady", "steady", ttlSeconds=100))).session
        for number in range(40):
            await store.sessions.create(a_run(f"other{number}", "a1", ttlSeconds=50))
            await asyncio.gather(
                store.sweeper.sweep(),
                pod.sweeper.cleanup(a_cleanup()),
                pod.sweeper.cleanup(a_cleanup(agentId="a1")),
                store.sessions.heartbeat(Target.id(steady["id"])),
                pod.sweeper.cleanup(a_cleanup(maxAgeMinutes=5)),
            )
            if number % 10 == 5:
                await outage(store, 1000)
            else:
                await advance(store, 95)
        session = await pod.sessions.get(Target.task("steady"))
        assert session is not None
        assert session["id"] == steady["id"]


async def test_a_call_that_was_given_up_happens_whole_or_not_at_all(store: Store) -> None:
    """I4: callers that leave at any moment, as clients that hang up do."""
    chance = random.Random(5)
    for number in range(150):
        calls = [
            asyncio.ensure_future(store.sessions.create(a_run(f"t{number % 10}", onConflict="replace"))),
            asyncio.ensure_future(store.sessions.delete(Target.task(f"t{(number + 3) % 10}"))),
            asyncio.ensure_future(store.sweeper.cleanup(a_cleanup(agentId="a1" if number % 20 == 0 else "a2"))),
        ]
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await store.sessions.get(Target.task("t1"))
    await audit(store)


async def test_the_audit_sees_what_does_not_agree(store: Store) -> None:
    """A check that finds nothing wrong with anything would show nothing."""
    session = (await store.sessions.create(a_run("t1", "a1"))).session
    for task in ("t2", "t3"):
        await store.sessions.create(a_run(task, "a1"))
    await store.sessions.delete(Target.task("t2"))
    await audit(store)
    prefix = store.scripts.shards[0].prefix
    session_id = session["id"]
    damages: list[tuple[tuple[str | int, ...], tuple[str | int, ...]]] = [
        (("ZREM", "sessions", session_id), ("ZADD", "sessions", "=", session_id)),
        (("ZADD", "deadlines", 1, session_id), ("ZADD", "deadlines", "=", session_id)),
        (("ZADD", "deadlines", 1, "nobody"), ("ZREM", "deadlines", "nobody")),
        (("ZINCRBY", "agents", 1, "a1"), ("ZINCRBY", "agents", -1, "a1")),
        (("ZINCRBY", "triggers", 1, "none"), ("ZREM", "triggers", "none")),
        (("ZADD", "agent:a1", 1, "nobody"), ("ZREM", "agent:a1", "nobody")),
        (("HINCRBY", "counters", "created", 1), ("HINCRBY", "counters", "created", -1)),
        (("HINCRBY", "counters", "ended:deleted", 1), ("HINCRBY", "counters", "ended:deleted", -1)),
        (("PERSIST", f"session:{session_id}"), ("PEXPIRE", f"session:{session_id}", 5_400_000)),
        (("PERSIST", "agent:a1"), ("PEXPIRE", "agent:a1", 9_000_000)),
        (("PEXPIRE", "deadlines", 100_000), ("PEXPIRE", "deadlines", 9_000_000)),
        (("SET", "task:t9", session_id), ("DEL", "task:t9")),
        (("HSET", f"session:{session_id}", "agent", "a2"), ("HSET", f"session:{session_id}", "agent", "a1")),
        (("SET", "unknown", "x"), ("DEL", "unknown")),
    ]
    (raw,) = await read_raw(store)
    scores = {name: raw[name].content[session_id.encode()] for name in ("sessions", "deadlines")}
    for damage, repair in damages:
        await store.scripts.command(damage[0], prefix + str(damage[1]), *damage[2:])
        with pytest.raises((AssertionError, KeyError)):
            await audit(store)
        words = [scores[str(repair[1])] if word == "=" else word for word in repair[2:]]
        await store.scripts.command(repair[0], prefix + str(repair[1]), *words)
        await audit(store)
