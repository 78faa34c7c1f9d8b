"""Walking through all keys of a store: what an operator's tools do, and no request ever does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from tracker.store.scripts import Scripts

__all__ = ["SCAN", "walk"]

SCAN = 500
"""Keys that one SCAN goes through."""


async def walk(scripts: Scripts, *kinds: str) -> AsyncIterator[list[tuple[int, bytes, bytes]]]:
    """The keys of our shards that are of some kind, as (shard, kind, name), a few at a time; some may come twice.

    Whatever is there all the while comes. Raises StoreUnavailable.
    """
    namespace = scripts.shards[0].prefix.removesuffix(":0}:")
    choice = "|".join(kinds)
    pattern = re.compile(rf"{re.escape(namespace)}:(\d+)\}}:({choice}):(.*)".encode(), re.DOTALL)
    for server in await scripts.servers.all():
        cursor: int | None = None
        while cursor != 0:
            reply = await scripts.ask(server, "SCAN", cursor or 0, "MATCH", f"{namespace}:*", "COUNT", SCAN)
            matches = [match for key in reply[1] if (match := pattern.fullmatch(key))]
            yield [(int(match[1]), match[2], match[3]) for match in matches]
            cursor = int(reply[0])
