"""A Redis Cluster of our own, with nothing on disk: masters, and a replica for each where that is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from benchmarks.process import StartError, free_port
from benchmarks.redis_server import RedisServer, running_redis

__all__ = ["RedisCluster", "running_cluster"]

SLOTS = 16384
SETTLE_SECONDS = 60
LOOK_SECONDS = 0.1


class RedisCluster:
    """``masters`` as they were at the start; ``replicas``: of each, in the same order, if there are any."""

    def __init__(self, directory: Path, started: ExitStack, node_timeout_ms: int) -> None:
        self.masters: list[RedisServer] = []
        self.replicas: list[RedisServer] = []
        self._directory = directory
        self._started = started
        self._node_timeout_ms = node_timeout_ms
        self._buses: dict[int, int] = {}

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.masters)

    def start(self, port: int | None = None) -> RedisServer:
        """A node that comes, or comes back where it was: with nothing but what it knew of the others."""
        port = free_port() if port is None else port
        bus = self._buses.setdefault(port, free_port())
        options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
        options += ["--cluster-config-file", f"nodes-{port}.conf", "--cluster-require-full-coverage", "no"]
        options += ["--cluster-node-timeout", str(self._node_timeout_ms), "--cluster-replica-validity-factor", "0"]
        options += ["--repl-diskless-sync-delay", "0", "--client-output-buffer-limit", "replica 0 0 0"]
        return self._started.enter_context(running_redis(self._directory, *options, port=port))

    def meet(self, node: RedisServer) -> None:
        self.masters[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, self._buses[node.port])

    def slots(self, number: int) -> range:
        """What a master holds at the start."""
        return range(number * SLOTS // len(self.masters), (number + 1) * SLOTS // len(self.masters))

    def cpu_seconds(self) -> float:
        """Of all nodes that run."""
        return sum(server.cpu_seconds() for server in (*self.masters, *self.replicas))

    def used_bytes(self) -> int:
        """Of the masters."""
        return sum(server.used_bytes() for server in self.masters)


@contextmanager
def running_cluster(
    directory: Path, masters: int = 3, *, replicated: bool = False, node_timeout_ms: int = 5000
) -> Iterator[RedisCluster]:
    """Once all know each other and replicas are in step. Raises MissingTool, StartError."""
    with ExitStack() as stack:
        cluster = RedisCluster(directory, stack, node_timeout_ms)
        cluster.masters = [cluster.start() for _ in range(masters)]
        cluster.replicas = [cluster.start() for _ in range(masters if replicated else 0)]
        nodes = [*cluster.masters, *cluster.replicas]
        for number, node in enumerate(nodes):
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            cluster.meet(node)
        for number, node in enumerate(cluster.masters):
            slots = cluster.slots(number)
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", slots[0], slots[-1])
        _wait(lambda: all(_info(node, "known_nodes") == str(len(nodes)) for node in nodes))
        for node, master in zip(cluster.replicas, cluster.masters, strict=False):
            name = master.client.execute_command("CLUSTER MYID")
            _wait(lambda node=node, name=name: _replicates(node, name))  # type: ignore[misc]
        _wait(lambda: all(_info(node, "state") == "ok" for node in nodes))
        _wait(lambda: all(node.client.info("replication")["master_link_status"] == "up" for node in cluster.replicas))
        yield cluster


def _info(node: RedisServer, name: str) -> str:
    said = node.client.execute_command("CLUSTER INFO")
    pairs = said.items() if isinstance(said, dict) else (line.split(":") for line in said.split())
    return str(dict(pairs)[f"cluster_{name}"])


def _replicates(node: RedisServer, master: str) -> bool:
    try:
        return bool(node.client.execute_command("CLUSTER REPLICATE", master))
    except redis.ResponseError:
        return False  # it has not heard of that one yet


def _wait(ready: Callable[[], bool]) -> None:
    limit = time.monotonic() + SETTLE_SECONDS
    while not ready():
        if time.monotonic() > limit:
            raise StartError("the nodes of the cluster do not get together")
        time.sleep(LOOK_SECONDS)
