"""Waiting for what others do, for as long as a machine under load may take and no longer than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["until"]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Raises TimeoutError when the condition has not come true by then."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - whoever makes it true is in another room and tells nobody
            await asyncio.sleep(0.005)
