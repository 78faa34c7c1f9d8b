"""Ten failovers of a Redis Cluster under load: ``python -m tests.failovers --cluster [--failovers 10]``.

Three masters and three replicas on loopback, one pod with 16 shards, and writers that heartbeat as fast as they are
answered. By turns a master is killed, frozen, or replaced as planned. Told of each: how those fared whose sessions the
other masters hold, before and meanwhile, and what the pod has afterwards: tasks, open files beside those of its pools,
memory.
Exit status 1 when others were refused, or something is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.test_cluster import (
    SESSIONS,
    SHARDS,
    Load,
    held_by,
    open_connections,
    open_files,
    replica_of,
    slot_of,
    whole,
)
from tests.patience import until
from tests.redis_cluster import PATIENCE_SECONDS, RedisCluster, running_cluster
from tests.store.wire import a_run
from tests.sweeping import sweeping
from tracker.settings import Settings
from tracker.store.cluster import Cluster
from tracker.store.store import Store, open_store

__all__ = ["main"]

NODE_TIMEOUT_MS = 1500
HOWS = ("killed", "frozen", "planned")
LOOK_SECONDS = 0.25
USUAL_SECONDS = 5
"""How long heartbeats are measured while nothing is wrong."""
WARM_UP = len(HOWS)
"""Failovers after which nothing may grow any more: one of each kind."""
GROWTH_BYTES = 4 * 1024 * 1024


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def main(failovers: int) -> int:
    say(f"{'#':>2} {'how':8} {'agreed after':>12} {'back after':>11} {'others p99 before':>17} {'meanwhile':>10} "
        f"{'ratio':>6} {'beats':>6} {'refused':>7} {'tasks':>5} {'files':>5} {'memory':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory), NODE_TIMEOUT_MS) as cluster:
        settings = Settings(store_url=cluster.url, shards=SHARDS, sweep_interval_seconds=0.5)
        async with open_store(settings) as pod, sweeping(pod):
            await asyncio.gather(*(pod.sessions.create(a_run(f"t{number}")) for number in range(SESSIONS)))
            good, ratios, left = True, [], list[tuple[int, int, int]]()
            for number in range(failovers):
                ratio, refused, remains = await fail_over(cluster, pod, number)
                ratios.append(ratio)
                left.append(remains)
                good = good and not refused
    say(f"p99 of the others meanwhile, of the usual: median {statistics.median(ratios):.2f}, at most {max(ratios):.2f}")
    if len(left) > WARM_UP:
        tasks, files, memory = (last - first for first, last in zip(left[WARM_UP - 1], left[-1], strict=True))
        say(f"since failover {WARM_UP}: {tasks:+} tasks, {files:+} open files, {memory / 1024:+.0f} KiB")
        good = good and tasks <= 0 and files <= 0 and memory < GROWTH_BYTES
    return 0 if good else 1


async def fail_over(cluster: RedisCluster, pod: Store, number: int) -> tuple[float, int, tuple[int, int, int]]:
    """One failover, told in one line: by how much the others' p99 grew, how many of them were refused, what is left."""
    await until(lambda: asyncio.to_thread(cluster.settled), PATIENCE_SECONDS)
    how, slot = HOWS[number % len(HOWS)], slot_of(pod, 0)
    old = await asyncio.to_thread(cluster.holder, slot)
    others = set(range(SHARDS)) - await held_by(cluster, pod, old)
    replica, server = await replica_of(cluster, old), cluster.servers[old]
    load = Load(pod)
    async with load.running():
        await asyncio.sleep(USUAL_SECONDS)
        began = time.monotonic()
        if how == "killed":
            server.kill()
        elif how == "frozen":
            server.freeze()
        else:
            await asyncio.to_thread(cluster.ask, replica, "CLUSTER", "FAILOVER")
        agreed = await moved(cluster, slot, old)
        await until(lambda: whole(pod), PATIENCE_SECONDS)
        back = time.monotonic()
    if how == "killed":
        await asyncio.to_thread(cluster.start, old)
    elif how == "frozen":
        server.thaw()
    mine = load.that(shards=others)
    before = p99([beat.seconds for beat in mine if began - USUAL_SECONDS + 1 < beat.at < began])
    meanwhile = [beat.seconds for beat in mine if began <= beat.at - beat.seconds and beat.at <= back]
    refused, during = len(load.bad(others)), p99(meanwhile)
    await until(lambda: asyncio.to_thread(cluster.settled), PATIENCE_SECONDS)
    await whole(pod)
    load.beats.clear()
    tasks, files = await remains(pod)
    memory = resident_bytes()
    say(f"{number + 1:2} {how:8} {agreed - began:10.2f} s {back - began:9.2f} s {before * 1000:14.1f} ms "
        f"{during * 1000:7.1f} ms {during / before:6.2f} {len(meanwhile):6} {refused:7} {tasks:5} {files:5} "
        f"{memory / 2**20:5.1f} MiB")  # fmt: skip
    return during / before, refused, (tasks, files, memory)


async def remains(pod: Store) -> tuple[int, int]:
    """Tasks, and files beside the pool's connections: the fewest within some seconds, for some come and go."""
    servers = pod.scripts.servers
    assert isinstance(servers, Cluster)
    tasks, files = set[int](), set[int]()
    for _ in range(20):
        await asyncio.sleep(LOOK_SECONDS)
        tasks.add(len(asyncio.all_tasks()))
        files.add(open_files() - open_connections(servers))
    return min(tasks), min(files)


async def moved(cluster: RedisCluster, slot: int, old: int) -> float:
    """When all nodes agree that another holds the slot (monotonic s). Asked seldom: that costs the others time."""
    while await asyncio.to_thread(cluster.holder, slot) in (0, old):  # noqa: ASYNC110 - nodes tell nobody
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic()


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
