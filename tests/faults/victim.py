"""Victim: a pod without HTTP, in a process of its own, that does one thing to the store; it will not live to tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from tests.store.wire import a_cleanup, a_run
from tracker.errors import StoreError
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.ids import shard_of_text
from tracker.store.store import Store, open_store

__all__ = ["CLAIMED_TASK", "DEEDS", "KEY", "die"]

KEY = "k"
CLAIMED_TASK = next(task for task in map(str, range(100)) if shard_of_text(task, 2) != shard_of_text(KEY, 2))
"""In another shard than the key, of two: only then is a key claimed by a script of its own."""

DEEDS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "create": lambda pod: pod.sessions.create(a_run("taken", "a2", onConflict="replace", taskDescription="new"), KEY),
    "claim": lambda pod: pod.sessions.create(a_run(CLAIMED_TASK, "a2"), KEY),
    "heartbeat": lambda pod: pod.sessions.heartbeat(Target.task("taken"), progress="done"),
    "provider": lambda pod: pod.sessions.set_provider_session(Target.task("taken"), "done"),
    "stop": lambda pod: pod.sessions.request_stop(Target.task("taken")),
    "delete": lambda pod: pod.sessions.delete(Target.task("taken")),
    "sweep": lambda pod: pod.sweeper.sweep(),
    "cleanup": lambda pod: pod.sweeper.cleanup(a_cleanup(agentId="herd")),
}
"""By the script whose call will be the last."""


def die(settings: Settings, deed: str) -> None:
    """Does it, and waits for the end."""
    asyncio.run(_die(settings, deed))


async def _die(settings: Settings, deed: str) -> None:
    async with open_store(settings) as pod:
        with contextlib.suppress(StoreError):
            await DEEDS[deed](pod)
        await asyncio.sleep(60)
