"""A Redis Cluster that loses masters and moves slots under load: only those notice who must; nothing is restarted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from redis.crc import key_slot

from tests.audit import audit
from tests.patience import until
from tests.raw import read_raw
from tests.redis_cluster import PATIENCE_SECONDS, RedisCluster, running_cluster
from tests.store.wire import a_list, a_run, some_events
from tests.sweeping import sweeping
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.cluster import Cluster
from tracker.store.deliveries import Deliveries
from tracker.store.ending import end
from tracker.store.hub import Reader
from tracker.store.store import Store, open_store

pytestmark = pytest.mark.timeout(4 * PATIENCE_SECONDS)

SHARDS = 16
SESSIONS = 160
WRITERS = 16
PAUSE_SECONDS = 0.01
NODE_TIMEOUT_MS = 1500
BACK_SECONDS = 2
"""After the cluster itself agrees on a new master."""
SLACK = 3
LONG_MS = 6000
"""Two times as long as a pulse may stay away before that is an outage."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """One for all: setting it up takes seconds."""
    with running_cluster(tmp_path_factory.mktemp("cluster"), NODE_TIMEOUT_MS) as running:
        yield running


@pytest.fixture
def deadline() -> float:
    """Parametrize it where it must be longer than a failover takes."""
    return 5


@pytest.fixture
async def pod(cluster: RedisCluster, namespace: str, deadline: float) -> AsyncIterator[Store]:
    await until(lambda: asyncio.to_thread(cluster.settled), PATIENCE_SECONDS)
    settings = Settings(
        store_url=cluster.url,
        namespace=namespace,
        shards=SHARDS,
        store_timeout_seconds=deadline,
        sweep_interval_seconds=0.5,
    )
    async with open_store(settings) as store, sweeping(store):
        await asyncio.gather(*(store.sessions.create(a_run(f"t{number}")) for number in range(SESSIONS)))
        yield store


class Beat(NamedTuple):
    """``shard``, when it came (monotonic s), and ``what`` came: renewed, missing, unavailable or another error; after
    how many ``seconds``."""

    shard: int
    at: float
    what: str
    seconds: float


class Load:
    """Heartbeats all the time, over all shards, and creates and deletes in between."""

    def __init__(self, pod: Store) -> None:
        self.beats: list[Beat] = []
        self._pod = pod
        self._shards = {f"t{n}": pod.sessions._shard_of(Target.task(f"t{n}")) or 0 for n in range(SESSIONS)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        writers = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
        try:
            yield
        finally:
            await end(writers)

    def that(self, *, shards: set[int] | None = None, what: str | None = None) -> list[Beat]:
        return [
            beat
            for beat in self.beats
            if (shards is None or beat.shard in shards) and (what is None or beat.what == what)
        ]

    def bad(self, shards: set[int]) -> list[Beat]:
        return [beat for beat in self.that(shards=shards) if beat.what != "renewed"]

    async def _write(self, number: int) -> None:
        passing = f"passing{number}"
        shard = self._pod.sessions._shard_of(Target.task(passing)) or 0
        while True:
            for task in list(self._shards)[number::WRITERS]:
                await self._note(self._shards[task], self._beat(task))
                await asyncio.sleep(PAUSE_SECONDS)
            await self._note(shard, self._pass(passing))

    async def _note(self, shard: int, call: object) -> None:
        began = time.monotonic()
        try:
            what = await call  # type: ignore[misc]
        except StoreUnavailable:
            what = "unavailable"
        except Exception as error:
            what = repr(error)
        ended = time.monotonic()
        self.beats.append(Beat(shard, ended, what, ended - began))

    async def _beat(self, task: str) -> str:
        return "renewed" if await self._pod.sessions.heartbeat(Target.task(task)) else "missing"

    async def _pass(self, task: str) -> str:
        await self._pod.sessions.create(a_run(task))
        return "renewed" if await self._pod.sessions.delete(Target.task(task)) else "missing"


def slot_of(pod: Store, shard: int) -> int:
    return key_slot(pod.scripts.shards[shard].prefix.encode())


async def held_by(cluster: RedisCluster, pod: Store, port: int) -> set[int]:
    node = (await asyncio.to_thread(cluster.masters))[port]
    return {
        shard.number
        for shard in pod.scripts.shards
        if any(first <= slot_of(pod, shard.number) <= last for first, last in node.slots)
    }


async def replica_of(cluster: RedisCluster, port: int) -> int:
    nodes = await asyncio.to_thread(cluster.nodes, port)
    mine = next(node.id for node in nodes if node.port == port)
    return next(node.port for node in nodes if node.master == mine)


async def moved(cluster: RedisCluster, slot: int, old: int) -> float:
    """Waits until all nodes agree that somebody else holds the slot; when they did (monotonic s)."""

    async def has_moved() -> bool:
        return await asyncio.to_thread(cluster.holder, slot) not in (0, old)

    await until(has_moved, PATIENCE_SECONDS)
    return time.monotonic()


async def whole(pod: Store) -> bool:
    try:
        await asyncio.gather(*(pod.sessions.heartbeat(Target.task(f"t{number}")) for number in range(SESSIONS)))
        await pod.stats()
    except StoreUnavailable:
        return False
    return True


async def pulses(pod: Store) -> dict[int, int]:
    return {number: int(keys["clock"].content[b"pulse"]) for number, keys in enumerate(await read_raw(pod))}


@pytest.mark.parametrize(("how", "deadline"), [("killed", 5), ("frozen", 20)])
async def test_a_lost_master_is_ridden_out_and_the_others_sessions_never_notice(
    cluster: RedisCluster, pod: Store, how: str
) -> None:
    slot = slot_of(pod, 0)
    old = await asyncio.to_thread(cluster.holder, slot)
    lost = await held_by(cluster, pod, old)
    others = set(range(SHARDS)) - lost
    assert lost
    assert others
    before = await pulses(pod)
    load = Load(pod)
    async with load.running():
        await until(lambda: has_begun(load))
        server = cluster.servers[old]
        (server.kill if how == "killed" else server.freeze)()
        began = time.monotonic()
        wholes = asyncio.gather(
            pod.stats(),
            pod.gauges(),
            pod.listing.page(a_list(agentId="a1"), 10),
            pod.feed.page(some_events()),
            return_exceptions=True,
        )
        finding = asyncio.create_task(pod.inspect())
        agreed = await moved(cluster, slot, old)
        await until(lambda: whole(pod))
        back = time.monotonic()
        await asyncio.sleep(0.5)
    print(f"{how}: agreed after {agreed - began:.2f} s, back {back - agreed:.2f} s later")  # noqa: T201 - with -s
    if how == "killed":
        cluster.start(port=old)
    else:
        cluster.servers[old].thaw()
    assert {type(answer) for answer in await wholes} == {StoreUnavailable}, "never a silent part"
    findings = await finding
    assert findings.warnings[0].startswith("shards out of reach: " + ", ".join(map(str, sorted(lost))) + ":")
    assert load.that(shards=others, what="renewed")
    assert load.bad(others) == []
    assert {beat.what for beat in load.bad(lost)} <= {"unavailable"}
    assert back - agreed < BACK_SECONDS + SLACK

    async def all_pulse() -> bool:
        after = await pulses(pod)
        return all(after[shard] > before[shard] for shard in after)

    await until(all_pulse)
    held = {number for number, keys in enumerate(await read_raw(pod)) if b"held" in keys["clock"].content}
    assert held <= lost, "for the others there was no outage"
    assert await audit(pod) == SESSIONS + len([1 for task in range(WRITERS) if await lives(pod, f"passing{task}")])


@pytest.mark.parametrize("deadline", [10])
async def test_while_a_master_and_its_replica_hang_all_others_are_swept_and_pulse(
    cluster: RedisCluster, pod: Store
) -> None:
    """Nobody takes over. For the others that is no outage, however long it lasts."""
    slot = slot_of(pod, 0)
    old = await asyncio.to_thread(cluster.holder, slot)
    replica = await replica_of(cluster, old)
    lost = await held_by(cluster, pod, old)
    before = await pulses(pod)
    others = [shard for shard in pod.scripts.shards if shard.number not in lost]
    load = Load(pod)

    async def clocks() -> dict[int, dict[bytes, bytes]]:
        return {shard.number: await pod.scripts.look(shard, "HGETALL", shard.declared[0]) for shard in others}

    async def go_on() -> bool:
        return all(int(clock[b"pulse"]) > before[n] + LONG_MS for n, clock in (await clocks()).items())

    async with load.running():
        for port in (old, replica):
            cluster.servers[port].freeze()
        try:
            await until(go_on)
            seen = await clocks()
        finally:
            for port in (old, replica):
                cluster.servers[port].thaw()
    assert not [number for number, clock in seen.items() if b"held" in clock]
    assert load.bad({shard.number for shard in others}) == []
    assert all(int(clock[b"swept"]) > before[number] + LONG_MS - 2000 for number, clock in seen.items())
    await until(lambda: whole(pod), PATIENCE_SECONDS)


async def test_streams_and_webhooks_tell_of_the_others_while_one_is_lost(cluster: RedisCluster, pod: Store) -> None:
    slot = slot_of(pod, 0)
    old = await asyncio.to_thread(cluster.holder, slot)
    lost = await held_by(cluster, pod, old)
    task = next(f"new{n}" for n in range(1000) if pod.sessions._shard_of(Target.task(f"new{n}")) not in lost)
    late = next(f"late{n}" for n in range(1000) if pod.sessions._shard_of(Target.task(f"late{n}")) in lost)
    deliveries = Deliveries(pod.scripts, ("session.created",), 60)
    await deliveries.take(100)
    told: list[str | None] = []

    async def follow(reader: Reader) -> None:
        await reader.begin(None)
        while True:
            told.extend(found.change.event(found.id)["session"]["taskId"] for found in await reader.read(10, 0.1))

    with pod.hub.reader(some_events(type="session.created")) as reader:
        following = asyncio.create_task(follow(reader))
        await until(lambda: _is(pod.hub.heads is not None and reader._listening and reader._caught_up))
        cluster.servers[old].kill()
        assert (await pod.sessions.create(a_run(task))).outcome == "created"
        await until(lambda: _is(task in told))
        taken, _ = await deliveries.take(100)
        assert [delivery.event["session"]["taskId"] for delivery in taken] == [task]
        await moved(cluster, slot, old)
        await until(lambda: whole(pod))
        cluster.start(port=old)
        await pod.sessions.create(a_run(late))
        await until(lambda: _is(late in told))
        taken, _ = await deliveries.take(100)
        assert [delivery.event["session"]["taskId"] for delivery in taken] == [late]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert told == [task, late]


async def _is(condition: bool) -> bool:
    return condition


async def has_begun(load: Load) -> bool:
    return len(load.beats) > SESSIONS


async def lives(pod: Store, task: str) -> bool:
    return await pod.sessions.get(Target.task(task)) is not None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_connections(cluster: Cluster) -> int:
    """Those that the pod has in its pools: as many as were ever needed at once, for each node that it knows."""
    pools = [server._pool for server in (*cluster._servers.values(), *cluster._scouts.values())]
    writers = [one._writer for pool in pools for one in (*pool._available_connections, *pool._in_use_connections)]
    return sum(not writer.transport.is_closing() for writer in writers if writer is not None)


async def test_several_failovers_leave_no_connection_and_no_task_behind(cluster: RedisCluster, pod: Store) -> None:
    async def fail_over() -> None:
        slot = slot_of(pod, 0)
        old = await asyncio.to_thread(cluster.holder, slot)
        cluster.servers[old].kill()
        await moved(cluster, slot, old)
        await until(lambda: whole(pod))
        await asyncio.to_thread(cluster.start, old)
        await until(lambda: asyncio.to_thread(cluster.settled), PATIENCE_SECONDS)

    assert await whole(pod)
    servers = pod.scripts.servers
    assert isinstance(servers, Cluster)
    await fail_over()
    await until(lambda: whole(pod))
    tasks, files = len(asyncio.all_tasks()), open_files() - open_connections(servers)
    for _ in range(2):
        await fail_over()

    async def as_before() -> bool:
        await whole(pod)
        return (
            len(servers._servers) <= 3
            and len(asyncio.all_tasks()) <= tasks
            and open_files() - open_connections(servers) <= files
        )

    await until(as_before, PATIENCE_SECONDS)


@pytest.mark.parametrize("batch", [10, 1000])
async def test_a_slot_that_moves_under_load_goes_unnoticed(cluster: RedisCluster, pod: Store, batch: int) -> None:
    slot = slot_of(pod, 0)
    load = Load(pod)
    async with load.running():
        await until(lambda: has_begun(load))
        for _ in range(2):
            source = await asyncio.to_thread(cluster.holder, slot)
            target = next(port for port in await asyncio.to_thread(cluster.masters) if port != source)
            await asyncio.to_thread(cluster.move, slot, target, batch)
            await moved(cluster, slot, source)
            assert (await pod.stats())["sessions"] >= SESSIONS
            assert len((await pod.listing.page(a_list(agentId="a1"), 1000))[0]) >= SESSIONS
    assert load.bad(set(range(SHARDS))) == []
    await audit(pod)


async def test_a_planned_failover_goes_unnoticed(cluster: RedisCluster, pod: Store) -> None:
    slot = slot_of(pod, 0)
    old = await asyncio.to_thread(cluster.holder, slot)
    replica = await replica_of(cluster, old)
    load = Load(pod)
    async with load.running():
        await until(lambda: has_begun(load))
        assert await asyncio.to_thread(cluster.ask, replica, "CLUSTER", "FAILOVER")
        await moved(cluster, slot, old)
        await asyncio.sleep(0.5)
    assert load.bad(set(range(SHARDS))) == []
    await audit(pod)
