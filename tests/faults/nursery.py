"""Nursery: processes that start fast, and die at a chosen moment around a chosen script."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from types import ModuleType
from typing import Any

from tests.faults.guillotine import Moment, running_guillotine
from tests.redis_server import RedisServer
from tracker.settings import Settings
from tracker.store.scripts import NAMES
from tracker.store.store import Store

__all__ = ["PATIENCE_SECONDS", "kill_around", "nursery_with"]

PATIENCE_SECONDS = 60


def nursery_with(module: ModuleType) -> ForkServerContext:
    """Starts processes fast, from one that has imported everything and has no threads or loops of ours in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module.__name__])
    return context


async def kill_around(
    store: Store,
    settings: Settings,
    server: RedisServer,
    nursery: ForkServerContext,
    script: str,
    nth: int,
    moment: Moment,
    work: Callable[..., Any],
    *arguments: object,
) -> None:
    """Lets a process do ``work(settings, *arguments)`` on the store, and kills it around the script's nth call."""
    shard = store.scripts.shards[0]
    for name in NAMES:  # or the first call would be one that runs nothing
        await store.scripts.command("SCRIPT", "LOAD", store.scripts.by_source(name, shard, ())[1])
    digest = str(store.scripts.by_digest(script, shard, ())[1]).encode()
    async with running_guillotine(server.port, digest, nth, moment, lambda: process.kill()) as guillotine:
        through = Settings(**{**dict(iter(settings)), "store_url": guillotine.url})
        process = nursery.Process(target=work, args=(through, *arguments), daemon=True)
        process.start()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await guillotine.fallen.wait()
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
        assert process.exitcode == -9
