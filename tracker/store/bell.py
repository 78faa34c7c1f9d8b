"""Bells: how the hub learns that there is something new in the feed, without asking again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from redis import exceptions as driver
from redis.asyncio import Redis

from tracker.errors import StoreError
from tracker.settings import Settings
from tracker.store.connection import connect_listener, connect_node, translated
from tracker.store.ending import end
from tracker.store.feed import Position, written
from tracker.store.keys import Shard
from tracker.store.scripts import Scripts, is_moving

__all__ = ["Bell", "Carillon", "Clock", "Doorbell"]

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 2.0
"""How long Redis holds the call that waits for new entries. After each it is checked that none are gone."""
POLL_SECONDS = 0.05
"""The embedded store is asked so often instead: nothing of it leaves the process."""
RETRY_SECONDS = 0.5
"""Between two attempts to listen to a shard that is away."""


class Bell(Protocol):
    async def ring(self, heads: Sequence[Position]) -> list[int]:
        """Waits for something behind those positions, but not for ever; the shards to look at, possibly none.

        Raises StoreUnavailable when that cannot be told of any shard.
        """

    async def close(self) -> None: ...


class Clock:
    """For the embedded store: rings every now and then."""

    def __init__(self, scripts: Scripts) -> None:
        self._all = [shard.number for shard in scripts.shards]

    async def ring(self, heads: Sequence[Position]) -> list[int]:
        await asyncio.sleep(POLL_SECONDS)
        return self._all

    async def close(self) -> None:
        pass


class Doorbell:
    """For one server: one call, on a connection of its own, waits for all shards."""

    def __init__(self, settings: Settings, scripts: Scripts) -> None:
        self._numbers = {shard.events.encode(): shard.number for shard in scripts.shards}
        self._client = connect_listener(settings, BLOCK_SECONDS)

    async def ring(self, heads: Sequence[Position]) -> list[int]:
        rung = await _listen(self._client, list(self._numbers), heads)
        return sorted(self._numbers[key] for key, _ in rung) or list(self._numbers.values())

    async def close(self) -> None:
        await self._client.aclose()


class Carillon:
    """For a cluster: a call for each shard, for no call may touch two slots, and each connection waits for one call.

    A shard that is away is silent, and keeps nobody from hearing the others.
    """

    def __init__(self, settings: Settings, scripts: Scripts) -> None:
        self._settings = settings
        self._scripts = scripts
        self._clients: dict[str, Redis] = {}
        self._listening: dict[int, asyncio.Task[bool]] = {}

    async def ring(self, heads: Sequence[Position]) -> list[int]:
        for shard in self._scripts.shards:
            if shard.number not in self._listening:
                self._listening[shard.number] = asyncio.create_task(self._listen(shard, heads[shard.number]))
        done, _ = await asyncio.wait(self._listening.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = sorted(number for number, task in self._listening.items() if task in done)
        return [number for number in ended if self._listening.pop(number).result()]

    async def close(self) -> None:
        listening, self._listening = [*self._listening.values()], {}
        await end(listening)
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def _listen(self, shard: Shard, head: Position) -> bool:
        """Whether to look at the shard; a moment later if it cannot be listened to."""
        try:
            client = await self._client(shard)
            await _listen(client, [shard.events.encode()], [head])
        except StoreError as error:
            logger.debug("listening to shard %d: %s", shard.number, error)
            if isinstance(error.__cause__, driver.MovedError):
                self._scripts.servers.moved(shard, error.__cause__.message)
            elif not is_moving(str(error.__cause__)):
                self._scripts.servers.doubt()
            await asyncio.sleep(RETRY_SECONDS)
            return False
        return True

    async def _client(self, shard: Shard) -> Redis:
        name = (await self._scripts.servers.holder(shard)).name
        if name not in self._clients:
            host, _, port = name.rpartition(":")
            patience = self._settings.store_timeout_seconds + BLOCK_SECONDS
            count = len(self._scripts.shards)
            self._clients[name] = connect_node(self._settings, (host, int(port)), count, patience)
        return self._clients[name]


async def _listen(client: Redis, keys: Sequence[bytes], heads: Sequence[Position]) -> list[Any]:
    wait = ("COUNT", 1, "BLOCK", round(BLOCK_SECONDS * 1000), "STREAMS")
    with translated():
        rung: list[Any] = await client.execute_command(  # type: ignore[no-untyped-call]
            "XREAD", *wait, *keys, *(written([head]) for head in heads)
        )
    return rung
