"""The Lua scripts: read once from package data, each behind the common prelude, called by their digest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from importlib import resources
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from tracker.errors import SchemaMismatch
from tracker.settings import Settings
from tracker.store.connection import connect, translated
from tracker.store.keys import SCHEMA_VERSION, Shard

__all__ = ["NAMES", "Argument", "Scripts", "together"]

Argument = str | bytes | int
T = TypeVar("T")

NAMES = (
    "claim",
    "cleanup",
    "create",
    "delete",
    "enroll",
    "heartbeat",
    "list",
    "provider",
    "read",
    "settle",
    "stats",
    "stop",
    "sweep",
    "take",
)


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """What all of it gives, side by side. Waits for all before it raises the first error: nothing is left running."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)


class _Script:
    __slots__ = ("digest", "source")

    def __init__(self, prelude: str, name: str) -> None:
        self.source = prelude + (resources.files("tracker.store") / "lua" / f"{name}.lua").read_text()
        self.digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Runs scripts on shards, each within one deadline; the store's layout is checked before the first."""

    def __init__(self, settings: Settings, client: Redis | None = None) -> None:
        self.client = connect(settings) if client is None else client
        self.shards = tuple(Shard(settings.namespace, number) for number in range(settings.shards))
        self.timeout = settings.store_timeout_seconds
        prelude = (resources.files("tracker.store") / "lua" / "prelude.lua").read_text()
        self._scripts = {name: _Script(prelude, name) for name in NAMES}
        self._grace_ms = round(settings.grace_seconds * 1000)
        self.feed_length = settings.feed_length
        self._enrolled = False
        self._enrolling = asyncio.Lock()

    async def run(self, name: str, shard: Shard, *arguments: Argument) -> Any:
        """The reply of a script, as redis-py gives it: lists and bytes.

        Raises StoreUnavailable when there is none within the deadline, StoreFault when the script was refused,
        SchemaMismatch when the store is laid out for others.
        """
        with translated():
            async with asyncio.timeout(self.timeout):
                await self.ensure_enrolled()
                return await self._run(name, shard, arguments)

    async def enroll(self) -> list[list[bytes]]:
        """Records the layout where nobody has yet; the shards' replies to ``enroll``. Raises SchemaMismatch."""
        with translated():
            async with asyncio.timeout(self.timeout):
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
        with translated():
            async with asyncio.timeout(self.timeout):
                await self.ensure_enrolled()
                return await self._execute(words)

    async def close(self) -> None:
        await self.client.aclose()

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
            return await self._execute(self.by_digest(name, shard, arguments))
        except NoScriptError:
            # Nothing ran: the cache was flushed, or this is another server than before. EVAL fills it again.
            return await self._execute(self.by_source(name, shard, arguments))

    async def _execute(self, words: Sequence[Argument]) -> Any:
        return await self.client.execute_command(*words)  # type: ignore[no-untyped-call]
