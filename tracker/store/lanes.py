"""Lanes: how many work on the store at once, and how long the others wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from tracker.errors import StoreUnavailable

__all__ = ["Lanes"]


class Lanes:
    """So many at once. The others wait, in the order in which they came, as long as those before them get on.

    When one gets no answer, and nobody has had one since it began, the store is silent: whoever waits by then is
    refused with it, or they would find out one after the other. ``patience``: the longest wait (s), None for any.
    """

    def __init__(self, count: int, patience: float | None = None) -> None:
        self._free = asyncio.Semaphore(count)
        self._patience = patience
        self._answered = self._silent = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around what is done in a lane. Raises StoreUnavailable when it does not come to that."""
        came = monotonic()
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"too many others wait for the store: no turn within {self._patience:g} s") from None
        try:
            if self._silent > came:
                raise StoreUnavailable("the store did not answer those who came before")
            began = monotonic()
            try:
                yield
            except StoreUnavailable:
                if self._answered < began:
                    self._silent = monotonic()
                raise
            self.answered()
        finally:
            self._free.release()

    def answered(self) -> None:
        """Somebody has just had an answer."""
        self._answered = monotonic()
