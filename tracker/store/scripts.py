"""The Lua scripts: read once from package data, each behind the common prelude, called by their digest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar, cast

from redis import exceptions as driver
from redis.asyncio import Redis

from tracker.errors import SchemaMismatch, StoreError, StoreUnavailable
from tracker.settings import Settings
from tracker.store.cluster import Alone, Cluster, Servers
from tracker.store.connection import connect, fault_of, translated
from tracker.store.keys import SCHEMA_VERSION, Shard
from tracker.store.observer import Observer
from tracker.store.server import Argument, Server

__all__ = ["MOVING_SECONDS", "NAMES", "Argument", "Scripts", "is_moving", "is_reply", "together", "unfinished"]

T = TypeVar("T")

NAMES = (
    "check_counts",
    "check_indices",
    "check_sessions",
    "check_tasks",
    "claim",
    "cleanup",
    "create",
    "delete",
    "depart",
    "enroll",
    "export",
    "forward",
    "heartbeat",
    "import",
    "lay_out",
    "list",
    "locate",
    "provider",
    "pulse",
    "read",
    "settle",
    "stats",
    "stop",
    "sweep",
    "take",
)


MOVING_SECONDS = 0.02
"""Time between two attempts while the slot of a shard is being moved to another node of the cluster."""
MOVING = ("MOVED ", "ASK ", "TRYAGAIN ")


def is_moving(text: str) -> bool:
    """Whether an error means: nothing was done, for the keys are on their way to another node.

    We do not follow ASK. Where it leads not all keys have arrived yet, and a script that does not find those which it
    makes from an id there would take a live session for one that is gone. Once all are there it is MOVED.
    """
    return text.startswith(MOVING) or "non local key" in text


def unfinished(shards: str) -> str:
    """What to do about a store that is recorded with `4>16` shards; nothing where it is a number."""
    before, between, after = shards.partition(">")
    if not between:
        return ""
    return f"the store is being resharded from {before} to {after} shards: finish it: tracker reshard --to {after}"


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """What all of it gives, side by side. Waits for all before it raises the first error: nothing is left running."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)


def is_reply(reply: Any) -> bool:
    """Whether a script may have replied so: each replies with a list, and none with an empty one."""
    return isinstance(reply, list) and reply != []


def _is_something(reply: Any) -> bool:
    return reply is not None


class _Script:
    __slots__ = ("digest", "source")

    def __init__(self, prelude: str, name: str) -> None:
        self.source = prelude + (resources.files("tracker.store") / "lua" / f"{name}.lua").read_text()
        self.digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Runs scripts on shards, each within one deadline; the store's layout is checked before the first."""

    def __init__(self, settings: Settings, client: Redis | None = None, observer: Observer | None = None) -> None:
        self.observer = Observer() if observer is None else observer
        self.shards = tuple(Shard(settings.namespace, number) for number in range(settings.shards))
        self.servers = _servers(settings, client, self.shards)
        self.timeout = settings.store_timeout_seconds
        prelude = (resources.files("tracker.store") / "lua" / "prelude.lua").read_text()
        self._scripts = {name: _Script(prelude, name) for name in NAMES}
        self._grace_ms = round(settings.grace_seconds * 1000)
        self.feed_length = settings.feed_length
        self._enrolled: set[int] = set()
        self._enrolling = [asyncio.Lock() for _ in self.shards]

    @property
    def client(self) -> Redis:
        """The driver's client for the one server that holds all shards. Not on a cluster."""
        server = self.servers.known(self.shards[0])
        if server is None:
            raise TypeError("a cluster has a client for each node")
        return server.client

    async def run(self, name: str, shard: Shard, *arguments: Argument) -> Any:
        """The reply of a script, as redis-py gives it: lists and bytes.

        Raises StoreUnavailable when there is none within the deadline, StoreFault when the script was refused,
        SchemaMismatch when the store is laid out for others.
        """
        with self.observer.watching(name):
            return await self.call(name, shard, *arguments)

    async def call(self, name: str, shard: Shard, *arguments: Argument) -> Any:
        """As ``run``, for those who tell the observer themselves."""
        async with self._deadline():
            await self.ensure_enrolled(shard)
            return await self._run(name, shard, arguments)

    async def rearrange(self, name: str, shard: Shard, *arguments: Argument) -> Any:
        """As ``run``, but does not ask whether the layout is ours: for the one who changes it."""
        with self.observer.watching(name):
            async with self._deadline():
                return await self._run(name, shard, arguments)

    @asynccontextmanager
    async def one_deadline(self, began: float | None = None) -> AsyncIterator[None]:
        """All calls inside share one deadline, instead of having one each. Raises StoreUnavailable when it has come.

        It counts from when the first of them ``began`` (by the loop's clock), None for now.
        """
        bound = asyncio.timeout_at((asyncio.get_running_loop().time() if began is None else began) + self.timeout)
        try:
            with translated():
                async with bound:
                    yield
        except StoreUnavailable as error:
            if bound.expired():
                self.observer.failed(error)  # the call inside was cancelled, and knows of no error
            raise

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        with translated():
            async with asyncio.timeout(self.timeout):
                yield

    async def enroll(self) -> list[list[bytes]]:
        """Records the layout where nobody has yet; the shards' replies to ``enroll``. Raises SchemaMismatch."""
        with self.observer.watching("enroll"):
            async with self._deadline():
                # The first shard alone decides: a pod with another count must not write to shards that are none.
                first, *others = self.shards
                return [await self._enroll(first), *await together(self._enroll(shard) for shard in others)]

    async def survey(self) -> list[list[bytes] | StoreUnavailable]:
        """As ``enroll``; on a cluster a shard that does not answer within half the deadline has its error instead.

        Raises StoreUnavailable when none does.
        """
        if not self.servers.several:
            return [*await self.enroll()]

        head, *tail = self.shards
        sure = [head, *filter(self.is_enrolled, tail)]
        seen = dict(zip(sure, await self._survey(sure), strict=True))
        if not isinstance(seen[head], StoreUnavailable):
            # Without the first nobody knows whether these are shards at all.
            unsure = [shard for shard in tail if shard not in seen]
            seen.update(zip(unsure, await self._survey(unsure), strict=True))
        replies = [seen.get(shard, seen[head]) for shard in self.shards]
        errors = [reply for reply in replies if isinstance(reply, StoreUnavailable)]
        if len(errors) == len(replies):
            raise errors[0]
        return replies

    async def enroll_one(self, shard: Shard) -> None:
        """The same for one shard: also notices a store that was emptied or replaced meanwhile."""
        with self.observer.watching("enroll"):
            async with self._deadline():
                await self._enroll(shard)

    async def ensure_enrolled(self, shard: Shard) -> None:
        """Checks a shard's layout before the first call; as long as its caller lets it. Raises as ``enroll``."""
        if shard.number in self._enrolled:
            return
        if shard.number != 0:
            await self.ensure_enrolled(self.shards[0])
        async with self._enrolling[shard.number]:
            if shard.number not in self._enrolled:
                with translated():
                    await self._enroll(shard)

    def is_enrolled(self, shard: Shard) -> bool:
        """Whether its layout has been checked, and found right, at least once."""
        return shard.number in self._enrolled

    def by_digest(self, name: str, shard: Shard, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """The command that runs a script which the server knows."""
        return ("EVALSHA", self._scripts[name].digest, *self._head(shard), *arguments)

    def by_source(self, name: str, shard: Shard, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """The command that runs a script which the server has not seen yet."""
        return ("EVAL", self._scripts[name].source, *self._head(shard), *arguments)

    async def command(self, *words: Argument, shard: Shard | None = None) -> Any:
        """The reply to a plain command on keys of a shard (None: the first), within the same deadline."""
        where = self.shards[0] if shard is None else shard
        with self.observer.watching(str(words[0]).lower()):
            async with self._deadline():
                await self.ensure_enrolled(where)
                return await self._on(where, words, _is_something)

    async def look(self, shard: Shard, *words: Argument) -> Any:
        """The same, but records nothing, and does not ask whether the layout is ours."""
        async with self._deadline():
            return await self._on(shard, words, _is_something)

    async def ask(self, server: Server, *words: Argument) -> Any:
        """What a server says of itself, or of all keys that it has."""
        with self.observer.watching(str(words[0]).lower()):
            async with self._deadline():
                return await server.execute(words, _is_something)

    def refused(self, text: str) -> StoreError:
        """The error that Redis means by a text. A server that has become a replica is left: see ``leave``."""
        if "READONLY" in text:
            self.leave()
        if "CLUSTERDOWN" in text or "cluster is down" in text:
            self.servers.doubt()
        return fault_of(text)

    def leave(self) -> None:
        """Leaves servers that only read: see ``Server.leave``."""
        self.servers.leave()

    async def close(self) -> None:
        await self.servers.close()

    async def _survey(self, shards: Sequence[Shard]) -> list[list[bytes] | StoreUnavailable]:
        async def enroll(shard: Shard) -> list[bytes]:
            with self.observer.watching("enroll"), translated():
                async with asyncio.timeout(self.timeout / 2):
                    return await self._enroll(shard)

        results = await asyncio.gather(*map(enroll, shards), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, StoreUnavailable):
                raise result
        return cast("list[list[bytes] | StoreUnavailable]", results)

    async def _enroll(self, shard: Shard) -> list[bytes]:
        reply: list[bytes] = await self._run("enroll", shard, (SCHEMA_VERSION, len(self.shards)))
        if reply[:2] != [b"%d" % SCHEMA_VERSION, b"%d" % len(self.shards)]:
            self._enrolled.clear()
            version, shards = (part.decode(errors="replace") or "?" for part in reply[:2])
            if under_way := unfinished(shards):
                raise SchemaMismatch(under_way)
            raise SchemaMismatch(
                f"the store is laid out with {shards} shards in schema version {version}, this process has "
                f"{len(self.shards)} shards and version {SCHEMA_VERSION}: set TRACKER_SHARDS={shards}, use another "
                "TRACKER_NAMESPACE, or run the version that made it"
            )
        self._enrolled.add(shard.number)
        return reply

    def _head(self, shard: Shard) -> tuple[Argument, ...]:
        """What every script gets: see ``prelude.lua``."""
        return (len(shard.declared), *shard.declared, shard.prefix, self._grace_ms, self.feed_length)

    async def _run(self, name: str, shard: Shard, arguments: Sequence[Argument]) -> Any:
        try:
            return await self._on(shard, self.by_digest(name, shard, arguments), is_reply)
        except driver.NoScriptError:
            # Nothing ran: the cache was flushed, or this is another server than before. EVAL fills it again.
            return await self._on(shard, self.by_source(name, shard, arguments), is_reply)

    async def _on(self, shard: Shard, words: Sequence[Argument], fits: Callable[[Any], bool]) -> Any:
        """The reply of the server that holds the shard. While it moves to another, waits as long as the caller does."""
        at_once = True
        while True:
            server = await self.servers.holder(shard)
            try:
                return await server.execute(words, fits)
            except driver.ResponseError as error:
                if isinstance(error, driver.ClusterDownError):
                    self.servers.doubt()
                moving = isinstance(error, (driver.AskError, driver.TryAgainError)) or is_moving(str(error))
                if not moving or not self.servers.several:
                    raise
                if isinstance(error, driver.MovedError):
                    self.servers.moved(shard, error.message)
                    if at_once:
                        at_once = False
                        continue
            except BaseException:
                self.servers.doubt()  # also by one who had to give up
                raise
            await asyncio.sleep(MOVING_SECONDS)


def _servers(settings: Settings, client: Redis | None, shards: Sequence[Shard]) -> Servers:
    if client is None and settings.on_cluster:
        return Cluster(settings, shards)
    return Alone(Server(connect(settings) if client is None else client, embedded=settings.in_memory))
