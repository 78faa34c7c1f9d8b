"""Run: sets up Redis, pods, clients and nemesis, lets them at each other, and takes everything down again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import tracker
from tests.redis_cluster import running_cluster
from tests.torture.cluster_nemesis import ClusterNemesis
from tests.torture.journal import Journal, moment
from tests.torture.nemesis import Nemesis, RedisNemesis, Store
from tests.torture.plan import Plan
from tests.torture.pods import Pod
from tests.torture.sabotage import sabotaged
from tests.torture.witness import testify, watch_clocks
from tracker.store.keys import Shard

__all__ = ["run"]

PODS = 2
CALM_SECONDS = 8
"""At the end nothing is broken any more for so long: the last fault heals, and what it held up goes on."""
SETTLE_SECONDS = 3
END_SECONDS = 30
NODE_TIMEOUT_MS = 2000
"""Long enough that a busy machine makes no failovers of its own, and short enough for many."""


class ClientError(Exception):
    """A client did not come to its end: the fault of the run, not of what it tests."""


async def run(
    seed: int, seconds: float, directory: Path, sabotage: str | None = None, *, on_cluster: bool = False
) -> None:
    """Leaves what was seen in the directory. Ends all its processes, however it ends itself."""
    package = sabotaged(sabotage, directory) if sabotage else Path(tracker.__file__).parent.parent
    async with contextlib.AsyncExitStack() as stack:
        (directory / "redis").mkdir()
        pods: list[Pod] = []
        faults = Journal(directory / "faults.jsonl")
        stack.callback(faults.close)
        nemesis: Nemesis
        if on_cluster:
            cluster = stack.enter_context(running_cluster(directory / "redis", NODE_TIMEOUT_MS))
            plan = Plan.for_cluster(seed, seconds, cluster.url, _free_ports(PODS))
            shards = [Shard(plan.namespace, number) for number in range(plan.shards)]
            nemesis = ClusterNemesis(seed, pods, faults, cluster, shards)
        else:
            store = Store(directory / "redis")
            stack.callback(store.kill)
            plan = Plan(seed, seconds, store.server.url, _free_ports(PODS))
            nemesis = RedisNemesis(seed, pods, faults, store)
        plan.write(directory / "plan.json")
        for number, port in enumerate(plan.pods):
            pods.append(Pod(number, port, package, plan.environment, directory / f"pod{number}.log"))
            stack.callback(pods[-1].kill)
        await asyncio.gather(*(pod.start() for pod in pods))
        clocks = Journal(directory / "clocks.jsonl")
        stack.callback(clocks.close)

        until = moment().wall + seconds * 1000
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch_clocks(plan, clocks))
            raging = group.create_task(nemesis.rage(until - CALM_SECONDS * 1000))
            await asyncio.gather(*(_client(directory, number, until) for number in range(plan.clients)))
            await raging
            await asyncio.sleep(SETTLE_SECONDS)
            watching.cancel()
        for pod in pods:
            await pod.stop()
        testimony = await testify(plan)
    (directory / "store.json").write_text(testimony)


async def _client(directory: Path, number: int, until: float) -> None:
    words = ["-m", "tests.torture.client", str(directory), str(number), str(until)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=Path(__file__).parents[2], stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout((until - moment().wall) / 1000 + END_SECONDS):
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise ClientError(f"client {number} ended with {code}")


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on, at the moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)
