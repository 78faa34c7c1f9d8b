"""Walking through all keys of a store: what an operator's tools do, and no request ever does."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterator

from tracker.store.keys import Shard
from tracker.store.scripts import Scripts

__all__ = ["SCAN", "stretches"]

SCAN = 500
"""Keys that one SCAN goes through."""
STRETCH = 500
"""Keys of a shard that are gone through together."""
WAITING = 100 * STRETCH
"""Keys that wait for more of their shard at most: some 10 MB."""


async def stretches(scripts: Scripts, *kinds: str) -> AsyncIterator[tuple[Shard, list[tuple[str, bytes]]]]:
    """The keys of our shards that are of some kind, as (kind, name): those of one shard together, as many as are worth
    a call or more. SCAN goes through all shards at once, and comes to few keys of each at a time.

    Whatever is there all the while comes, in a stretch at most once, in several maybe. Raises StoreUnavailable.
    """
    waiting: defaultdict[int, dict[tuple[str, bytes], None]] = defaultdict(dict)
    async for keys in _walk(scripts, kinds):
        for number, kind, name in keys:
            if number < len(scripts.shards):
                waiting[number][kind, name] = None
        everything = sum(map(len, waiting.values())) > WAITING
        for number in [number for number, names in waiting.items() if everything or len(names) >= STRETCH]:
            yield scripts.shards[number], list(waiting.pop(number))
    for number, names in waiting.items():
        yield scripts.shards[number], list(names)


async def _walk(scripts: Scripts, kinds: tuple[str, ...]) -> AsyncIterator[list[tuple[int, str, bytes]]]:
    """As (shard, kind, name), a few at a time."""
    namespace = scripts.shards[0].prefix.removesuffix(":0}:")
    choice = "|".join(kinds)
    pattern = re.compile(rf"{re.escape(namespace)}:(\d+)\}}:({choice}):(.*)".encode(), re.DOTALL)
    for server in await scripts.servers.all():
        cursor: int | None = None
        while cursor != 0:
            reply = await scripts.ask(server, "SCAN", cursor or 0, "MATCH", f"{namespace}:*", "COUNT", SCAN)
            matches = [match for key in reply[1] if (match := pattern.fullmatch(key))]
            yield [(int(match[1]), match[2].decode(), match[3]) for match in matches]
            cursor = int(reply[0])
