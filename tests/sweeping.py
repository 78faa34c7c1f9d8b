"""A pod that sweeps and pulses, as each does; afterwards it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tracker.store.ending import end
from tracker.store.store import Store

__all__ = ["sweeping"]


@asynccontextmanager
async def sweeping(pod: Store) -> AsyncIterator[None]:
    task = asyncio.create_task(pod.sweeper.run())
    try:
        yield
    finally:
        await end([task])
