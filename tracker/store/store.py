"""Store: all rooms of the store on one connection pool, opened and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from redis.asyncio import Redis

from tracker.models import Stats
from tracker.settings import Settings
from tracker.store.feed import Feed
from tracker.store.hashes import Hashes
from tracker.store.hub import Hub
from tracker.store.inspection import Findings, inspect, watch
from tracker.store.listing import Listing
from tracker.store.observer import Observer
from tracker.store.scripts import Scripts
from tracker.store.sessions import SessionStore
from tracker.store.stats import Gauges, read_gauges, read_stats
from tracker.store.sweeper import Sweeper

__all__ = ["Store", "open_store", "verify"]

CLOSING_SECONDS = 1
"""How long calls under way get to come home when a store is closed, however long their deadlines are."""


@dataclass(frozen=True)
class Store:
    """What the API works with."""

    sessions: SessionStore
    listing: Listing
    feed: Feed
    hub: Hub
    sweeper: Sweeper
    scripts: Scripts
    embedded: bool

    async def stats(self) -> Stats:
        return await read_stats(self.scripts)

    async def gauges(self) -> Gauges:
        return await read_gauges(self.scripts)

    async def inspect(self) -> Findings:
        return await inspect(self.scripts, embedded=self.embedded)

    async def watch(self) -> None:
        await watch(self.scripts, embedded=self.embedded)


@asynccontextmanager
async def open_store(
    settings: Settings, client: Redis | None = None, observer: Observer | None = None
) -> AsyncIterator[Store]:
    """A store in use. Connects at the first call; does not sweep by itself (``store.sweeper.run`` does)."""
    scripts = Scripts(settings, client, observer)
    sessions = SessionStore(settings, scripts)
    hashes = Hashes(scripts, embedded=settings.in_memory)
    feed = Feed(scripts)
    hub = Hub(settings, scripts, feed)
    store = Store(
        sessions=sessions,
        listing=Listing(scripts, sessions, hashes),
        feed=feed,
        hub=hub,
        sweeper=Sweeper(settings, scripts),
        scripts=scripts,
        embedded=settings.in_memory,
    )
    try:
        yield store
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await hub.close()
                await sessions.close()
        await scripts.close()


async def verify(settings: Settings) -> Findings:
    """Looks at the store once, before a server starts. Raises SchemaMismatch, or StoreUnavailable."""
    async with open_store(settings) as store:
        return await store.inspect()
