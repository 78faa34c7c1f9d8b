"""The Lua scripts: read once from package data, each behind the common prelude, called by their digest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from tracker.errors import SchemaMismatch, StoreError, StoreUnavailable
from tracker.settings import Settings
from tracker.store.connection import connect, fault_of, translated
from tracker.store.keys import SCHEMA_VERSION, Shard
from tracker.store.observer import Observer
from tracker.store.pipe import NO_REPLY, Pipe
from tracker.store.sentinel import cut

__all__ = ["NAMES", "Argument", "Scripts", "is_reply", "together"]

Argument = str | bytes | int
T = TypeVar("T")

NAMES = (
    "check_counts",
    "check_index",
    "check_sessions",
    "check_tasks",
    "claim",
    "cleanup",
    "create",
    "delete",
    "enroll",
    "heartbeat",
    "list",
    "provider",
    "pulse",
    "read",
    "settle",
    "stats",
    "stop",
    "sweep",
    "take",
)


LEAVE_SECONDS = 1.0
"""Least time between two times that a read-only server is left: connecting again and again would use up the ports."""


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
        self.client = connect(settings) if client is None else client
        self.observer = Observer() if observer is None else observer
        self.shards = tuple(Shard(settings.namespace, number) for number in range(settings.shards))
        self.timeout = settings.store_timeout_seconds
        prelude = (resources.files("tracker.store") / "lua" / "prelude.lua").read_text()
        self._scripts = {name: _Script(prelude, name) for name in NAMES}
        self._grace_ms = round(settings.grace_seconds * 1000)
        self.feed_length = settings.feed_length
        self._enrolled = False
        self._enrolling = asyncio.Lock()
        self._embedded = settings.in_memory
        self._pipes: list[Pipe] = []
        self._left = -LEAVE_SECONDS

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
            await self.ensure_enrolled()
            return await self._run(name, shard, arguments)

    @asynccontextmanager
    async def one_deadline(self) -> AsyncIterator[None]:
        """All calls inside share one deadline, instead of having one each. Raises StoreUnavailable when it has come."""
        bound = asyncio.timeout(self.timeout)
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
                return await self._enroll()

    async def ensure_enrolled(self) -> None:
        """Checks the layout before the first call; as long as its caller lets it. Raises as ``enroll``."""
        if self._enrolled:
            return
        async with self._enrolling:
            if not self._enrolled:
                with translated():
                    await self._enroll()

    @property
    def enrolled(self) -> bool:
        """Whether the layout has been checked, and found right, at least once."""
        return self._enrolled

    def by_digest(self, name: str, shard: Shard, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """The command that runs a script which the server knows."""
        return ("EVALSHA", self._scripts[name].digest, *self._head(shard), *arguments)

    def by_source(self, name: str, shard: Shard, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """The command that runs a script which the server has not seen yet."""
        return ("EVAL", self._scripts[name].source, *self._head(shard), *arguments)

    async def command(self, *words: Argument) -> Any:
        """The reply to a plain command, within the same deadline and with the same errors."""
        with self.observer.watching(str(words[0]).lower()):
            async with self._deadline():
                await self.ensure_enrolled()
                return await self._execute(words, _is_something)

    def pipe(self) -> Pipe:
        """A further pipe. Whoever asks for it closes it."""
        pipe = Pipe(cast("BlockingConnectionPool", self.client.connection_pool))
        self._pipes.append(pipe)
        return pipe

    def refused(self, text: str) -> StoreError:
        """The error that Redis means by a text. A server that has become a replica is left: see ``leave``."""
        if "READONLY" in text:
            self.leave()
        return fault_of(text)

    def leave(self) -> None:
        """Leaves a server that only reads, for it was a master once: where it is reached there may be another by now.

        What is under way gets its reply. Once a second at most, should there be no other.
        """
        now = asyncio.get_running_loop().time()
        if now - self._left >= LEAVE_SECONDS:
            self._left = now
            cut(self.client.connection_pool._available_connections)
            for pipe in self._pipes:
                pipe.retire("the store became read-only")

    async def close(self) -> None:
        if not self._embedded:
            self._cut()  # a server that reads no more would not let them be closed in order
        await self.client.aclose()

    def _cut(self) -> None:
        pool = self.client.connection_pool
        cut([*pool._available_connections, *pool._in_use_connections])

    async def _enroll(self) -> list[list[bytes]]:
        # The first shard alone decides: a pod with another shard count must not write to shards that are none.
        first, *others = self.shards
        replies = [await self._enroll_shard(first)]
        replies += await together(self._enroll_shard(shard) for shard in others)
        self._enrolled = True
        return replies

    async def _enroll_shard(self, shard: Shard) -> list[bytes]:
        reply: list[bytes] = await self._run("enroll", shard, (SCHEMA_VERSION, len(self.shards)))
        if reply[:2] != [b"%d" % SCHEMA_VERSION, b"%d" % len(self.shards)]:
            self._enrolled = False
            version, shards = (part.decode(errors="replace") or "?" for part in reply[:2])
            raise SchemaMismatch(
                f"the store is laid out with {shards} shards in schema version {version}, this process has "
                f"{len(self.shards)} shards and version {SCHEMA_VERSION}: set TRACKER_SHARDS={shards}, use another "
                "TRACKER_NAMESPACE, or run the version that made it"
            )
        return reply

    def _head(self, shard: Shard) -> tuple[Argument, ...]:
        """What every script gets: see ``prelude.lua``."""
        return (len(shard.declared), *shard.declared, shard.prefix, self._grace_ms, self.feed_length)

    async def _run(self, name: str, shard: Shard, arguments: Sequence[Argument]) -> Any:
        try:
            return await self._execute(self.by_digest(name, shard, arguments), is_reply)
        except NoScriptError:
            # Nothing ran: the cache was flushed, or this is another server than before. EVAL fills it again.
            return await self._execute(self.by_source(name, shard, arguments), is_reply)

    async def _execute(self, words: Sequence[Argument], fits: Callable[[Any], bool]) -> Any:
        """The reply to a command. If it cannot be the true one, that may still come: nobody gets that connection."""
        pool = self.client.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        left, trusted = self._left, False
        try:
            await connection.send_command(*words)
            reply = await self.client.parse_response(connection, words[0])  # type: ignore[arg-type]
            trusted = fits(reply)
        except ResponseError as error:
            trusted = True
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
                self.leave()
            raise
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise StoreUnavailable(NO_REPLY) from error  # the driver could make nothing of it
        finally:
            if not trusted or left != self._left:
                await connection.disconnect(nowait=True)
            await pool.release(connection)
        if not trusted:
            raise StoreUnavailable(NO_REPLY)
        return reply
