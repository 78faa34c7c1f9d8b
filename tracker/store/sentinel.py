"""Sentinel: connections that lead to the master, and are cut when it is no longer that.

redis-py's own pool for this fails instead of waiting when its connections are out, and asks for the master only when it
connects: connections that still work stay with an old master for as long as that lives. Behind a planned failover, or
on the wrong side of a partition, it takes writes for many seconds, and all of them are lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection

from tracker.store.ending import end
from tracker.store.poll import poll

__all__ = ["FOLLOW_SECONDS", "MasterPool", "Sentinels", "cut"]

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 0.5
"""Time between two questions who the master is: at most so long, and a little, do writes go to an old one."""

Address = tuple[str, int]


def cut(connections: Sequence[AbstractConnection]) -> int:
    """Ends connections as a crash would, at once and whoever uses them: calls under way fail. How many were open."""
    # disconnect() would wait for what is still to be sent, on a server that may never read it.
    writers = [connection._writer for connection in connections if connection._writer is not None]
    for writer in writers:
        writer.transport.abort()
    return len(writers)


class _View(NamedTuple):
    """What one sentinel holds to be the master. Of several the one with the highest epoch, the latest, is right."""

    epoch: int
    address: Address


class Sentinels:
    """Asks the sentinels, all at once. ``master``: what they last said, None as long as none of them did."""

    def __init__(self, name: str, clients: Sequence[Redis], timeout: float) -> None:
        self.name = name
        self.master: Address | None = None
        self._clients = clients
        self._timeout = timeout
        self._asking = asyncio.Lock()
        self._asked = 0.0

    async def locate(self) -> Address:
        """The master as it is known to whoever answers. Raises the driver's ConnectionError when nobody does."""
        came = asyncio.get_running_loop().time()
        async with self._asking:
            # Many who need a connection at once share an answer, if it was asked for after they came.
            if self.master is None or self._asked < came:
                await self._ask(enough=1)
            if self.master is None:
                raise driver.ConnectionError(f"no sentinel knows a master {self.name}")
            return self.master

    async def agree(self) -> Address | None:
        """The master as most sentinels know it; None when most do not answer: a few may be cut off and out of date."""
        async with self._asking:
            return self.master if await self._ask(enough=len(self._clients) // 2 + 1) else None

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients))

    async def _ask(self, enough: int) -> bool:
        """Sets ``master`` if as many as are ``enough`` have answered; whether they have. Raises when nobody has."""
        self._asked = asyncio.get_running_loop().time()
        views, failures = await self._views()
        if not views:
            self.master = None
            raise driver.ConnectionError(f"no sentinel says who is master of {self.name}: {'; '.join(failures)}")
        if len(views) < enough:
            return False
        self.master = max(views).address
        return True

    async def _views(self) -> tuple[list[_View], list[str]]:
        """What those sentinels say that answer in time, and why others do not."""
        return await poll((self._view(client) for client in self._clients), self._timeout)

    async def _view(self, client: Redis) -> _View:
        # In this order: the epoch first, so that an address never passes for newer than it is.
        flat = await client.execute_command("SENTINEL", "MASTER", self.name)  # type: ignore[no-untyped-call]
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        # Unlike that, this says already during a failover whom it has promoted.
        address = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)  # type: ignore[no-untyped-call]
        if address is None:
            raise driver.ConnectionError(f"it knows no master {self.name}")
        return _View(int(state[b"config-epoch"]), (address[0].decode(), int(address[1])))


class _MasterConnection(Connection):
    """Asks where the master is each time it connects, and makes sure that it is one."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    @property
    def address(self) -> Address:
        return self.host, self.port

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.locate()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE", check_health=False)
        try:
            role = (await self.read_response())[0]
        except driver.NoPermissionError:
            return  # then the first write has to find out
        if role != b"master":
            raise driver.ReadOnlyError(f"READONLY {self.host}:{self.port} is no master any more")


class _MasterSSLConnection(_MasterConnection, SSLConnection):
    pass


class MasterPool(BlockingConnectionPool):
    """Waits for a connection as its base does; watches from the first one on until it is closed."""

    def __init__(self, sentinels: Sentinels, *, tls: bool, **options: Any) -> None:
        self._sentinels = sentinels
        self._following: asyncio.Task[None] | None = None
        kind = _MasterSSLConnection if tls else _MasterConnection
        super().__init__(connection_class=kind, sentinels=sentinels, **options)

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> AbstractConnection:
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        connection: AbstractConnection = await super().get_connection()  # type: ignore[no-untyped-call]
        return connection

    async def aclose(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            await end([following])
        await super().aclose()
        await self._sentinels.close()

    async def _follow(self) -> None:
        """Cuts the connections that lead elsewhere. Before they connect anew, they ask."""
        master: Address | None = None
        reachable = True
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                agreed = await self._sentinels.agree()
            except driver.RedisError as error:
                if reachable:
                    logger.error("%s", error)
                reachable = False
                continue
            reachable = True
            if agreed is None:
                continue
            if master is not None and agreed != master:
                logger.warning("%s has a new master: %s:%d", self._sentinels.name, *agreed)
            master = agreed
            everyone = [*self._available_connections, *self._in_use_connections]
            cut([one for one in everyone if isinstance(one, _MasterConnection) and one.address != master])
