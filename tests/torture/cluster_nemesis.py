"""ClusterNemesis: what befalls the nodes of a cluster. One fault at a time, and each is over before the next comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from redis.crc import key_slot

from tests.patience import until
from tests.redis_cluster import PATIENCE_SECONDS, Node, RedisCluster
from tests.torture.journal import Journal, moment
from tests.torture.nemesis import Nemesis
from tests.torture.pods import Pod
from tracker.store.keys import Shard

__all__ = ["ClusterNemesis"]

BATCH = 10
"""Keys of a slot that move at once."""


class _Pair(NamedTuple):
    """A master and its replica, by their ports, and the shards that it holds."""

    master: int
    replica: int
    shards: list[int]


class ClusterNemesis(Nemesis):
    """A master that is lost comes back as a replica, and is in step before anything else happens: the nodes keep
    nothing on disk."""

    def __init__(
        self, seed: int, pods: Sequence[Pod], journal: Journal, cluster: RedisCluster, shards: Sequence[Shard]
    ) -> None:
        super().__init__(seed, pods, journal)
        self._cluster = cluster
        self._slots = {shard.number: key_slot(shard.prefix.encode()) for shard in shards}
        self._masters: set[int] = set()
        self._seen = moment().wall

    @property
    def _faults(self) -> list[Callable[[], Awaitable[None]]]:
        ours = [
            self.kill_master,
            self.kill_master_that_was_cut_off,
            self.freeze_master,
            self.freeze_master_shortly,
            self.fail_over,
            self.move_slot,
            self.forget_scripts,
        ]
        return [*ours, *super()._faults]

    async def kill_master(self) -> None:
        pair = await self._choose()
        async with self._fault("kill a master", "node", shards=pair.shards):
            await self._kill(pair, moment().wall)
        await asyncio.to_thread(self._cluster.start, pair.master)

    async def kill_master_that_was_cut_off(self) -> None:
        """Its replica knows nothing of its last half second: that is lost for sure."""
        pair = await self._choose()
        replica = self._cluster.servers[pair.replica]
        async with self._fault("kill a master that was cut off", "node", shards=pair.shards):
            cut = moment().wall
            replica.freeze()
            try:
                await self._ask(pair.master, "CLIENT", "KILL", "TYPE", "replica")
                await asyncio.sleep(self._chance.uniform(0.2, 0.8))
                self._cluster.servers[pair.master].kill()
            finally:
                replica.thaw()
            await self._kill(pair, cut)
        await asyncio.to_thread(self._cluster.start, pair.master)

    async def freeze_master(self) -> None:
        """Until after another has taken its place, of which it does not know when it wakes up."""
        pair = await self._choose()
        server = self._cluster.servers[pair.master]
        async with self._fault("freeze a master", "node", shards=pair.shards):
            before = moment().wall
            server.freeze()
            began = moment().wall
            try:
                await self._taken_over(pair, began)
                await asyncio.sleep(self._chance.uniform(0, 2))
            finally:
                thawed = moment().wall
                server.thaw()
            await self._sees(pair.master, lambda node: {"myself", "slave"} <= node.flags)
            self._losses = [[before, began], [thawed, moment().wall]]

    async def freeze_master_shortly(self) -> None:
        """Nobody takes its place."""
        pair = await self._choose()
        server = self._cluster.servers[pair.master]
        async with self._fault("freeze a master shortly", "node", shards=pair.shards):
            server.freeze()
            try:
                await asyncio.sleep(self._chance.uniform(0.2, 1))
            finally:
                server.thaw()

    async def fail_over(self) -> None:
        """As planned, which loses nothing."""
        pair = await self._choose()
        async with self._fault("fail over as planned", "node", shards=pair.shards):
            await until(lambda: self._ask(pair.replica, "CLUSTER", "FAILOVER"), PATIENCE_SECONDS)
            await self._taken_over(pair)

    async def move_slot(self) -> None:
        """With the shard in it, to another master."""
        shard = self._chance.choice(list(self._slots))
        others = [pair.master for pair in await self._pairs() if shard not in pair.shards]
        target = self._chance.choice(others)
        async with self._fault("move a slot", "node", shards=[shard]):
            await asyncio.to_thread(self._cluster.move, self._slots[shard], target, BATCH)

    async def forget_scripts(self) -> None:
        async with self._fault("forget all scripts", "node"):
            for pair in await self._pairs():
                await self._ask(pair.master, "SCRIPT", "FLUSH")

    async def _kill(self, pair: _Pair, cut: float) -> None:
        """Once more does no harm. ``cut``: from when on its replica need not have heard of what it did."""
        self._cluster.servers[pair.master].kill()
        dead = moment().wall
        self._losses = [[cut, dead]]
        await self._taken_over(pair, dead)

    async def _taken_over(self, pair: _Pair, dead: float | None = None) -> None:
        """Waits until all others agree that the replica is the master; notes until when certainly nobody was."""
        asked = await self._sees(pair.replica, lambda node: "myself" in node.flags and node.is_master)
        if dead is not None:
            self._down = [dead, max(dead, asked)]
        for port in self._cluster.servers.keys() - {pair.master, pair.replica}:
            await self._sees(port, lambda node: node.port == pair.replica and node.is_master)
        self._masters = self._masters - {pair.master} | {pair.replica}

    async def _sees(self, port: int, what: Callable[[Node], bool]) -> float:
        """Waits until a node sees some node so; when it was last asked, and did not."""
        asked = 0.0

        async def it_does() -> bool:
            nonlocal asked
            now = moment().wall
            if any(map(what, await asyncio.to_thread(self._cluster.nodes, port))):
                return True
            asked = now
            return False

        await until(it_does, PATIENCE_SECONDS)
        return asked

    async def _look(self) -> None:
        """Waits until all is well, and notes failovers that we have not made: a busy machine may bring them."""
        await until(lambda: asyncio.to_thread(self._cluster.settled), PATIENCE_SECONDS)
        masters = {pair.master for pair in await self._pairs()}
        if self._masters and masters != self._masters:
            async with self._fault("a failover by itself", "node", shards=[*self._slots]):
                self._losses = [[self._seen, moment().wall]]
        self._masters, self._seen = masters, moment().wall

    async def _choose(self) -> _Pair:
        return self._chance.choice(await self._pairs())

    async def _pairs(self) -> list[_Pair]:
        """Those that hold shards of ours, in the order of what they hold."""
        masters = await asyncio.to_thread(self._cluster.masters)
        nodes = await asyncio.to_thread(self._cluster.nodes, next(iter(masters)))
        replicas = {node.master: node.port for node in nodes}
        pairs = [
            _Pair(
                port,
                replicas[node.id],
                [number for number, slot in self._slots.items() if any(a <= slot <= b for a, b in node.slots)],
            )
            for port, node in masters.items()
        ]
        return sorted((pair for pair in pairs if pair.shards), key=lambda pair: pair.shards)

    async def _ask(self, port: int, *words: str | int) -> bool:
        return bool(await asyncio.to_thread(self._cluster.ask, port, *words))
