"""A Redis Cluster of our own: three masters, three replicas, on free ports of 127.0.0.1, ended by their process ids."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.redis_server import RedisServer, free_port, running_redis

__all__ = ["SLOTS", "Node", "RedisCluster", "running_cluster"]

SLOTS = 16384
MASTERS = 3
PATIENCE_SECONDS = 60


class Node(NamedTuple):
    """A line of CLUSTER NODES: ``master`` is the id of the one that it replicates, '-' for a master."""

    id: str
    port: int
    flags: frozenset[str]
    master: str
    epoch: int
    slots: tuple[tuple[int, int], ...]

    @property
    def is_master(self) -> bool:
        return "master" in self.flags and "fail" not in self.flags and bool(self.slots)


class RedisCluster:
    """``servers`` by port, dead ones too; ``bus``: the ports that they talk to each other on."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, node_timeout_ms: int) -> None:
        self.servers: dict[int, RedisServer] = {}
        self.bus: dict[int, int] = {}
        self._homes: dict[int, Path] = {}
        self._directory = directory
        self._stack = stack
        self._node_timeout_ms = node_timeout_ms

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in list(self.servers)[:MASTERS])

    def start(self, port: int | None = None) -> RedisServer:
        """A node that comes, or comes back where it was: with nothing but what it knew of the others."""
        directory = self._directory / f"node-{len(self.servers)}" if port is None else self._homes[port]
        directory.mkdir(exist_ok=True)
        bus = free_port() if port is None else self.bus[port]
        options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
        options += ["--cluster-node-timeout", str(self._node_timeout_ms), "--cluster-require-full-coverage", "no"]
        options += ["--cluster-allow-replica-migration", "no", "--cluster-replica-validity-factor", "0"]
        options += ["--repl-diskless-sync-delay", "0", "--repl-timeout", "5", "--repl-ping-replica-period", "1"]
        server = self._stack.enter_context(running_redis(directory, *options, port=port))
        self.servers[server.port] = server
        self.bus[server.port] = bus
        self._homes[server.port] = directory
        return server

    def ask(self, port: int, *words: str | int | bytes) -> Any:
        """The reply of one node; None when it refuses or is not there."""
        with Redis(host="127.0.0.1", port=port, protocol=2, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return client.execute_command(*words)
            except driver.RedisError:
                return None

    def nodes(self, port: int) -> list[Node]:
        """The cluster as one node sees it; nothing when it is not there."""
        return [_node(line) for line in (self.ask(port, "CLUSTER", "NODES") or b"").decode().splitlines()]

    def masters(self) -> dict[int, Node]:
        """The masters that all living nodes agree upon, by port; nobody as long as they do not."""
        views = [
            {(node.port, node.slots) for node in view if node.is_master}
            for view in map(self.nodes, self.servers)
            if view
        ]
        if not views or any(view != views[0] for view in views):
            return {}
        alive = next(port for port in self.servers if self.nodes(port))
        return {node.port: node for node in self.nodes(alive) if node.is_master}

    def holder(self, slot: int) -> int:
        """The port of the master that holds a slot; 0 while nobody does, or they do not agree."""
        for port, node in self.masters().items():
            if any(first <= slot <= last for first, last in node.slots):
                return port
        return 0

    def settled(self, replicas: int = 1) -> bool:
        """Whether all slots are held, and each master has so many replicas in step."""
        masters = self.masters()
        states = [self.ask(port, "CLUSTER", "INFO") for port in self.servers]
        if not all(b"cluster_state:ok" in state for state in states if state):
            return False  # as a node thinks for two seconds after its start
        covered = sum(last - first + 1 for node in masters.values() for first, last in node.slots)
        return covered == SLOTS and all(self._in_step(port) >= replicas for port in masters)

    def move(self, slot: int, target: int, batch: int) -> None:
        """Moves a slot with its keys to another master, so many keys at a time, as `redis-cli --cluster` does."""
        masters = self.masters()
        source = self.holder(slot)
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", masters[source].id)
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", masters[target].id)
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, batch):
            assert self.ask(source, "MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys) == b"OK"
        for port in (target, source, *(masters.keys() - {target, source})):
            self.ask(port, "CLUSTER", "SETSLOT", slot, "NODE", masters[target].id)

    def _in_step(self, port: int) -> int:
        info = self.ask(port, "INFO", "replication") or {}
        return sum(isinstance(value, dict) and value.get("state") == "online" for value in dict(info).values())


def _node(line: str) -> Node:
    number, place, flags, master, _, _, epoch, _, *slots = line.split(" ")
    port = int(place.partition("@")[0].rpartition(":")[2])
    spans = [part.partition("-") for part in slots if not part.startswith("[")]
    return Node(
        number,
        port,
        frozenset(flags.split(",")),
        master,
        int(epoch),
        tuple((int(first), int(last or first)) for first, _, last in spans),
    )


def _wait(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


@contextlib.contextmanager
def running_cluster(directory: Path, node_timeout_ms: int = 15_000) -> Iterator[RedisCluster]:
    """All six, once they know each other and the replicas are in step. Skips the test without Redis.

    With a long timeout a busy machine makes no failovers of its own.
    """
    with contextlib.ExitStack() as stack:
        cluster = RedisCluster(directory, stack, node_timeout_ms)
        ports = [cluster.start().port for _ in range(2 * MASTERS)]
        for number, port in enumerate(ports):
            cluster.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < MASTERS:
                first, last = number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS - 1
                assert cluster.ask(port, "CLUSTER", "ADDSLOTSRANGE", first, last)
            for other in ports[:number]:
                assert cluster.ask(port, "CLUSTER", "MEET", "127.0.0.1", other, cluster.bus[other])
        _wait(
            lambda: all(len([node for node in cluster.nodes(port) if "handshake" not in node.flags]) == len(ports)
                        for port in ports),
            "the nodes do not meet",
        )  # fmt: skip
        ids = {node.port: node.id for node in cluster.nodes(ports[0])}
        for number in range(MASTERS):
            _wait(
                lambda number=number: bool(  # type: ignore[misc]
                    cluster.ask(ports[MASTERS + number], "CLUSTER", "REPLICATE", ids[ports[number]])
                ),
                "a replica does not take its master",
            )
        _wait(cluster.settled, "the cluster does not settle")
        yield cluster
