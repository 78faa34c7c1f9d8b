"""A master, two replicas and three sentinels of our own, on free ports of 127.0.0.1, ended by their process ids."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from redis import exceptions as driver
from redis.asyncio import Redis

from tests.patience import until
from tests.redis_server import RedisServer, running_redis

__all__ = ["MASTER", "Fleet", "ask", "running_sentinels"]

MASTER = "fleet"
DOWN_AFTER_MS = 1500
FAILOVER_MS = 2000
"""The time after which a failover that does not come to its end is tried again is twice that."""
PATIENCE_SECONDS = 90
"""A sentinel that was stopped for more than two seconds, as on a busy machine, trusts nobody for thirty."""


class Fleet:
    """``servers`` by port, dead ones too; ``sentinels``. One of the servers is the master."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.servers: dict[int, RedisServer] = {}
        self.sentinels: list[RedisServer] = []
        self._directory = directory
        self._stack = stack

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{MASTER}"

    def start(self, port: int | None = None, of: int | None = None) -> RedisServer:
        """A server that comes, or comes back where it was; as a replica ``of`` another or, without, as a master."""
        directory = self._directory / f"server-{port or len(self.servers)}"
        directory.mkdir(exist_ok=True)
        options = ["--repl-diskless-sync-delay", "0", "--repl-timeout", "5", "--repl-ping-replica-period", "1"]
        if of is not None:
            options += ["--replicaof", "127.0.0.1", str(of)]
        server = self._stack.enter_context(running_redis(directory, *options, port=port))
        self.servers[server.port] = server
        return server

    def watch(self, port: int) -> RedisServer:
        """A further sentinel, which watches the master on that port."""
        directory = self._directory / f"sentinel-{len(self.sentinels)}"
        directory.mkdir()
        file = directory / "sentinel.conf"
        file.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {port} 2\n"
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {MASTER} {FAILOVER_MS}\n"
            f"sentinel parallel-syncs {MASTER} 2\n"
        )
        sentinel = self._stack.enter_context(running_redis(directory, sentinel=file))
        self.sentinels.append(sentinel)
        return sentinel

    async def master(self) -> int:
        """The port of the master that all sentinels name; 0 while they do not agree."""
        named = {await self._named(sentinel) for sentinel in self.sentinels}
        return named.pop() if len(named) == 1 else 0

    async def settled(self, replicas: int = 2) -> None:
        """Waits until all sentinels know each other and one master, with so many replicas in step with it."""

        async def they_are() -> bool:
            for sentinel in self.sentinels:
                seen = _fields(await ask(sentinel, "SENTINEL", "MASTER", MASTER))
                if seen[b"flags"] != b"master" or int(seen[b"num-other-sentinels"]) != len(self.sentinels) - 1:
                    return False
                known = map(_fields, await ask(sentinel, "SENTINEL", "REPLICAS", MASTER))
                if sum(map(_in_step, known)) < replicas:
                    return False
            return await self.master() != 0

        await until(they_are, PATIENCE_SECONDS)

    async def moved(self, old: int) -> int:
        """Waits until all sentinels name another master than ``old``; its port."""

        async def they_do() -> bool:
            return await self.master() not in (0, old)

        await until(they_do, PATIENCE_SECONDS)
        return await self.master()

    async def _named(self, sentinel: RedisServer) -> int:
        return int((await ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER))[1])


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _in_step(replica: dict[bytes, bytes]) -> bool:
    facts = (b"flags", b"role-reported", b"master-link-status")
    return [replica.get(fact) for fact in facts] == [b"slave", b"slave", b"ok"]


async def ask(server: RedisServer, *words: str) -> Any:
    """The reply of one server, over a connection for that alone; None when it refuses or is not there."""
    client = Redis(host="127.0.0.1", port=server.port, protocol=2, socket_timeout=5)
    try:
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]
    except driver.RedisError:
        return None
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def running_sentinels(directory: Path) -> AsyncIterator[Fleet]:
    """All six, once they know each other. Skips the test without Redis."""
    with contextlib.ExitStack() as stack:
        fleet = Fleet(directory, stack)
        master = fleet.start()
        for _ in range(2):
            fleet.start(of=master.port)
        for _ in range(3):
            fleet.watch(master.port)
        await fleet.settled()
        yield fleet
