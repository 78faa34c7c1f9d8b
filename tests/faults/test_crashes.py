"""Pods and Redis killed at every step: what is left is whole, and whoever comes next goes on with it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import ExitStack
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.audit import audit
from tests.clockwork import advance
from tests.faults import victim
from tests.faults.guillotine import MOMENTS, Moment
from tests.faults.nursery import PATIENCE_SECONDS, kill_around, nursery_with
from tests.patience import until
from tests.raw import read_raw
from tests.redis_server import RedisServer, running_redis
from tests.store.test_invariants import Fleet
from tests.store.wire import a_cleanup, a_run
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.scripts import together
from tracker.store.store import Store, open_store

BATCH = 100
MANY = 250

pytestmark = pytest.mark.parametrize("backend", ["redis"])


@pytest.fixture(scope="module")
def nursery() -> ForkServerContext:
    return nursery_with(victim)


async def ended(store: Store) -> Counter[str]:
    """End events told so far, by session."""
    told: Counter[str] = Counter()
    for shard in await read_raw(store):
        events = shard["events"].content if "events" in shard else ()
        told.update(event[b"id"].decode() for _, event in events if event[b"type"] == b"session.ended")
    return told


async def kill_at(
    store: Store, settings: Settings, server: RedisServer, nursery: ForkServerContext, script: str, moment: Moment
) -> None:
    """Lets a pod do its deed, and kills it there: in the second batch of what works in batches."""
    nth = 2 if script in ("sweep", "cleanup") else 1
    await kill_around(store, settings, server, nursery, script, nth, moment, victim.die, script)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("script", [name for name in victim.DEEDS if name != "claim"])
async def test_a_pod_killed_around_a_script_has_done_all_of_it_or_nothing(
    store: Store,
    settings: Settings,
    redis_server: RedisServer,
    nursery: ForkServerContext,
    script: str,
    moment: Moment,
) -> None:
    """I3, I4: and the next pod ends what it left, each session once."""
    if script == "sweep":
        await together(store.sessions.create(a_run(f"old{number}", "old")) for number in range(MANY))
        await advance(store, 1801)
    if script == "cleanup":
        await together(store.sessions.create(a_run(None, "herd")) for _ in range(MANY))
    taken = (await store.sessions.create(a_run("taken", "a1"))).session
    total = await audit(store)

    await kill_at(store, settings, redis_server, nursery, script, moment)
    done = moment in ("executed", "answered")
    left = await audit(store)
    found = await store.sessions.get(Target.task("taken"))
    match script:
        case "sweep" | "cleanup":
            assert total - left == (2 * BATCH if done else BATCH)
            assert found == taken
        case "delete":
            assert (found is None) == done
        case "create":
            assert found is not None
            assert (found["taskDescription"] == "new") == (found["id"] != taken["id"]) == done
            retried = await store.sessions.create(
                a_run("taken", "a2", onConflict="replace", taskDescription="new"), victim.KEY
            )
            assert (retried.outcome, retried.session["id"] == found["id"]) == (("created", "repeated")[done], done)
        case _:
            assert found is not None
            marks = (found["progress"], found["providerSessionId"], found["stopRequestedAt"])
            assert sum(mark is not None for mark in marks) == done

    await store.sweeper.sweep()
    await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=0))
    assert await audit(store) == 0
    told = await ended(store)
    assert set(told.values()) == {1}
    assert len(told) == (await store.stats())["created"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("shards", [2])
async def test_a_pod_killed_around_the_claim_of_a_key_leaves_the_key_to_the_same_request(
    store: Store, settings: Settings, redis_server: RedisServer, nursery: ForkServerContext, moment: Moment
) -> None:
    await kill_at(store, settings, redis_server, nursery, "claim", moment)
    assert await audit(store) == 0
    assert (await store.sessions.create(a_run(victim.CLAIMED_TASK, "a2"), victim.KEY)).outcome == "created"
    assert await audit(store) == 1


class Callers:
    """Load on a store that comes and goes: who gets no answer goes on with something else."""

    def __init__(self, pods: list[Store], seed: int) -> None:
        self.fleet = Fleet(pods, seed)
        self.done = self.failed = 0
        self._running = True

    async def call(self) -> None:
        while self._running:
            try:
                await self.fleet.act()
                self.done += 1
            except StoreUnavailable:
                self.failed += 1
                await asyncio.sleep(0.01)

    async def until_done(self, count: int) -> None:
        goal = self.done + count

        async def enough() -> bool:
            return self.done >= goal

        await until(enough, PATIENCE_SECONDS)

    def stop(self) -> None:
        self._running = False


@pytest.mark.parametrize("shards", [1, 2])
async def test_redis_killed_under_load_comes_back_from_its_file_with_keys_that_agree(
    tmp_path: Path, namespace: str, backend: str, shards: int
) -> None:
    """I4: three times in a row. Each create that was acknowledged is there: the file is written before the reply."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(tmp_path, *options))
        settings = Settings(store_url=server.url, namespace=namespace, shards=shards)
        async with open_store(settings) as store, open_store(settings) as pod:
            callers = Callers([store, pod], seed=shards)
            async with asyncio.TaskGroup() as group:
                for _ in range(30):
                    group.create_task(callers.call())
                for _ in range(3):
                    await callers.until_done(400)
                    stack.close()
                    failures = callers.failed
                    stack.enter_context(running_redis(tmp_path, *options, port=server.port))
                    await callers.until_done(100)
                    assert callers.failed > failures, "nobody noticed"
                callers.stop()
            await audit(store)
            known = {event[b"id"].decode() for keys in await read_raw(store) for _, event in keys["events"].content}
            assert {*callers.fleet.known[1:]} <= known
            await store.sweeper.cleanup(a_cleanup(maxAgeMinutes=0))
            assert await audit(store) == 0
            assert set((await ended(store)).values()) == {1}


async def test_whatever_is_cut_off_the_end_of_the_file_takes_whole_scripts_with_it(
    tmp_path: Path, namespace: str, backend: str
) -> None:
    """I4: a power cut may take the latest second, and end the file anywhere."""
    options = ("--appendonly", "yes", "--aof-load-truncated", "yes")
    chance = random.Random(4)
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(tmp_path, *options))
        async with open_store(Settings(store_url=server.url, namespace=namespace)) as store:
            fleet = Fleet([store], seed=4)
            for _ in range(400):
                await fleet.act()
            lengths = [(await audit(store), await events(store))]
            for _ in range(12):
                stack.close()
                cut(tmp_path, chance.randrange(1, 6000))
                stack.enter_context(running_redis(tmp_path, *options, port=server.port))
                await until(lambda: answers(store), PATIENCE_SECONDS)
                lengths.append((await audit(store), await events(store)))
    assert len({length for _, length in lengths}) > 6, "nothing was lost: nothing was shown"


def cut(directory: Path, length: int) -> None:
    """Takes so many bytes off the end of the append-only file; in a directory of several since Redis 7."""
    (log,) = [*directory.glob("*/*.incr.aof"), *directory.glob("appendonly.aof")]
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - length)


async def events(store: Store) -> int:
    return sum(len(keys["events"].content) for keys in await read_raw(store))


async def answers(store: Store) -> bool:
    try:
        await store.inspect()
    except StoreUnavailable:
        return False
    return True
