"""Resharder: `tracker reshard`, in a process of its own, that will not live to tell."""

from __future__ import annotations

import asyncio

from tracker.settings import Settings
from tracker.store.reshard import reshard
from tracker.store.store import open_store

__all__ = ["run"]


def run(settings: Settings) -> None:
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    async with open_store(settings) as store:
        await reshard(store.scripts)
