"""Asking several who know, of whom some may be gone: for as long as it takes most of them to answer, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["poll"]

T = TypeVar("T")

STRAGGLER_SECONDS = 0.05
"""How long the others are waited for once most have answered."""


async def poll(questions: Iterable[Coroutine[Any, Any, T]], seconds: float) -> tuple[list[T], list[str]]:
    """What those say that answer in time, and why others do not. Nothing is left running."""
    asked = {asyncio.create_task(question) for question in questions}
    try:
        limit = asyncio.get_running_loop().time() + seconds
        done: set[asyncio.Task[T]] = set()
        pending = asked
        while pending and (left := limit - asyncio.get_running_loop().time()) > 0:
            if sum(task.exception() is None for task in done) * 2 > len(asked):
                left = min(left, STRAGGLER_SECONDS)
            arrived, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            done |= arrived
            if not arrived:
                break
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    failed = [error for task in done if (error := task.exception()) is not None]
    silent = [f"{len(pending)} gave no answer in time"] if pending else []
    return [task.result() for task in done if task.exception() is None], [*map(str, failed), *silent]
