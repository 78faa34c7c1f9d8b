"""Nemesis: freezes, kills and restarts pods and Redis, one fault after the other, and notes what it did and when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from tests.redis_server import RedisServer, running_redis
from tests.torture.journal import Journal, moment
from tests.torture.pods import Pod

__all__ = ["Nemesis", "RedisNemesis", "Store"]

REDIS_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")
"""What was acknowledged is on disk, so that every acknowledged write must still be there after a kill."""


class Store:
    """The Redis of a run, which can be killed and come back from its append-only file, on the same port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self.server = self._start(None)

    def _start(self, port: int | None) -> RedisServer:
        return self._stack.enter_context(running_redis(self._directory, *REDIS_OPTIONS, port=port))

    def kill(self) -> None:
        """Once more does no harm."""
        self._stack.close()

    async def restart(self) -> None:
        self.server = await asyncio.to_thread(self._start, self.server.port)


class Nemesis:
    """What befalls pods. ``down`` in its notes is when certainly nobody could be served; ``began`` to ``ended`` when
    anybody might not."""

    def __init__(self, seed: int, pods: Sequence[Pod], journal: Journal) -> None:
        self._chance = random.Random(f"{seed}:nemesis")
        self._pods = pods
        self._journal = journal
        self._down: list[float] | None = None
        self._losses: list[list[float]] = []

    async def rage(self, until: float) -> None:
        """Faults until then (ms since 1970), every kind of them before any comes again; the last heals in time."""
        deck: list[Callable[[], Awaitable[None]]] = []
        while True:
            await asyncio.sleep(self._chance.uniform(1.5, 3.5))
            deck = deck or self._chance.sample(self._faults, len(self._faults))
            await self._look()
            if moment().wall > until:
                return
            await deck.pop()()

    @property
    def _faults(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.freeze_pod,
            self.freeze_pods,
            self.kill_pod,
            self.kill_pods,
            self.replace_pod,
            self.freeze_worker,
            self.kill_worker,
        ]

    async def _look(self) -> None:
        """Between two faults."""

    async def freeze_pod(self) -> None:
        pod = self._chance.choice(self._pods)
        async with self._fault("freeze a pod", pod.name):
            pod.freeze()
            await asyncio.sleep(self._chance.uniform(1, 6))
            pod.thaw()
            await pod.until_up()

    async def freeze_pods(self) -> None:
        async with self._fault("freeze all pods", *(pod.name for pod in self._pods)):
            for pod in self._pods:
                pod.freeze()
            await self._outage(3.5, 6)
            for pod in self._pods:
                pod.thaw()
            for pod in self._pods:
                await pod.until_up()

    async def kill_pod(self) -> None:
        pod = self._chance.choice(self._pods)
        async with self._fault("kill a pod", pod.name):
            pod.kill()
            await asyncio.sleep(self._chance.uniform(0, 2))
            await pod.start()

    async def kill_pods(self) -> None:
        async with self._fault("kill all pods", *(pod.name for pod in self._pods)):
            for pod in self._pods:
                pod.kill()
            await self._outage(2, 5)
            await asyncio.gather(*(pod.start() for pod in self._pods))

    async def replace_pod(self) -> None:
        """As a rolling restart does: it ends in order, and comes back."""
        pod = self._chance.choice(self._pods)
        async with self._fault("replace a pod", pod.name):
            code = await pod.stop()
            self._journal.write({"kind": "stopped", "pod": pod.name, "code": code})
            await pod.start()

    async def freeze_worker(self) -> None:
        pod = self._chance.choice(self._pods)
        async with self._fault("freeze a worker", pod.name):
            workers = pod.workers()
            os.kill(workers[0], signal.SIGSTOP)
            await asyncio.sleep(self._chance.uniform(1, 7))
            with contextlib.suppress(ProcessLookupError):  # uvicorn kills one that is deaf for five seconds
                os.kill(workers[0], signal.SIGCONT)
            await self._until_complete(pod, len(workers))

    async def kill_worker(self) -> None:
        pod = self._chance.choice(self._pods)
        async with self._fault("kill a worker", pod.name):
            workers = pod.workers()
            os.kill(workers[0], signal.SIGKILL)
            await self._until_complete(pod, len(workers))

    async def _until_complete(self, pod: Pod, workers: int) -> None:
        while len(pod.workers()) < workers:  # noqa: ASYNC110 - a process tells nobody when it starts
            await asyncio.sleep(0.1)
        await pod.until_up()

    async def _outage(self, least: float, most: float) -> None:
        began = moment().wall
        await asyncio.sleep(self._chance.uniform(least, most))
        self._down = [began, moment().wall]

    @contextlib.asynccontextmanager
    async def _fault(self, kind: str, *hits: str, shards: Sequence[int] | None = None) -> AsyncIterator[None]:
        began, self._down, self._losses = moment().wall, None, []
        yield
        entry = {"kind": kind, "hits": hits, "began": began, "ended": moment().wall, "down": self._down}
        entry |= {"shards": shards, "losses": self._losses}
        self._journal.write({**entry, "load": os.getloadavg()[0] / (os.cpu_count() or 1)})


class RedisNemesis(Nemesis):
    """And what befalls one Redis."""

    def __init__(self, seed: int, pods: Sequence[Pod], journal: Journal, store: Store) -> None:
        super().__init__(seed, pods, journal)
        self._store = store

    @property
    def _faults(self) -> list[Callable[[], Awaitable[None]]]:
        ours = [self.freeze_redis_shortly, self.freeze_redis, self.kill_redis, self.kill_redis_for_long]
        return [*ours, *super()._faults]

    async def freeze_redis_shortly(self) -> None:
        """Too short for an outage: nothing is held."""
        await self._freeze_redis(0.3, 2)

    async def freeze_redis(self) -> None:
        await self._freeze_redis(3.5, 7)

    async def _freeze_redis(self, least: float, most: float) -> None:
        async with self._fault("freeze redis", "redis"):
            self._store.server.freeze()
            try:
                await self._outage(least, most)
            finally:
                self._store.server.thaw()

    async def kill_redis(self) -> None:
        """Back as fast as it can."""
        await self._kill_redis(0, 0.5)

    async def kill_redis_for_long(self) -> None:
        await self._kill_redis(3.5, 7)

    async def _kill_redis(self, least: float, most: float) -> None:
        async with self._fault("kill redis", "redis"):
            self._store.kill()
            await self._outage(least, most)
            await self._store.restart()
