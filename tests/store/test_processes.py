"""What only shows between processes of their own on a real Redis."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.audit import audit
from tests.clockwork import advance
from tests.store import cleaner
from tests.store.wire import a_run, some_events
from tracker.settings import Settings
from tracker.store.store import Store

PROCESSES = 4
DEAD = 2000
ROUNDS = 10
"""At most, until several of them have ended some: on a busy machine one may be done before the others begin."""


@pytest.mark.parametrize("backend", ["redis"])
@pytest.mark.parametrize("shards", [1, 4])
async def test_cleanups_from_four_processes_at_once_add_up(store: Store, settings: Settings) -> None:
    """I6: each session is ended by exactly one of them, with one end event."""
    for number in range(1, ROUNDS + 1):
        counts = await clean_up_together(store, settings)
        assert sum(counts) == DEAD
        ended = await ends(store)
        assert len(ended) == len(set(ended)) == number * DEAD
        assert await audit(store) == 0
        if sum(count > 0 for count in counts) > 1:
            return
    pytest.fail("they took turns each time")


async def clean_up_together(store: Store, settings: Settings) -> list[int]:
    """How many of the dead each of the processes has ended."""
    await asyncio.gather(*(store.sessions.create(a_run(f"t{number}", f"a{number % 50}")) for number in range(DEAD)))
    await advance(store, 1801)
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", cleaner.__name__, settings.store_url, settings.namespace, str(settings.shards)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        return [int(output) for output, _ in await asyncio.gather(*(one.communicate(b"go\n") for one in processes))]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def ends(store: Store) -> list[str]:
    """The ids of all that ended."""
    ended: list[str] = []
    after = None
    while True:
        page = await store.feed.page(some_events(type="session.ended", limit=1000, after=after))
        if not page["events"]:
            return ended
        ended += [event["session"]["id"] for event in page["events"]]
        after = page["next"]
