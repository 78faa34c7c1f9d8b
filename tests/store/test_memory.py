"""A Redis whose memory is full: what frees memory or keeps sessions alive goes on, what needs more says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.audit import audit
from tests.clockwork import advance
from tests.raw import RawKey, read_raw
from tests.redis_server import running_redis
from tests.store.wire import a_cleanup, a_list, a_run, some_events
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.store import Store, open_store

SESSIONS = 50


@pytest.fixture(params=[1, 4])
async def full(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store with sessions t0 to t49, of which none has expired, and no memory left."""
    with running_redis(tmp_path) as server:
        settings = Settings(store_url=server.url, shards=request.param, store_timeout_seconds=10)
        async with open_store(settings) as store:
            for number in range(SESSIONS):
                await store.sessions.create(a_run(f"t{number}", f"a{number % 5}"))
            await store.sweeper.sweep()
            await limit(store, 1)
            yield store
            await audit(store)


async def limit(store: Store, maxmemory: int) -> None:
    await store.scripts.command("CONFIG", "SET", "maxmemory", maxmemory)


async def dump(store: Store) -> list[dict[str, RawKey]]:
    return [
        {name: key._replace(ttl=round(key.ttl / 10_000)) for name, key in raw.items()} for raw in await read_raw(store)
    ]


async def test_heartbeats_go_on(full: Store) -> None:
    for number in range(SESSIONS):
        assert await full.sessions.heartbeat(Target.task(f"t{number}"), progress="still here")
    beats = await full.sessions.heartbeat_all(Target.task(f"t{number}") for number in range(SESSIONS))
    assert all(beats.values())


async def test_sessions_live_on_as_long_as_they_are_heartbeated(full: Store) -> None:
    for _ in range(10):
        await limit(full, 0)
        await advance(full, 1000)
        await limit(full, 1)
        assert all((await full.sessions.heartbeat_all(Target.task(f"t{n}") for n in range(SESSIONS))).values())
        assert await full.sweeper.sweep() == 0


async def test_deletes_and_cleanups_go_on_and_tell(full: Store) -> None:
    assert await full.sessions.delete(Target.task("t0"))
    assert await full.sweeper.cleanup(a_cleanup(agentId="a1")) == SESSIONS // 5
    assert await full.sweeper.cleanup(a_cleanup(maxAgeMinutes=0)) == SESSIONS - 1 - SESSIONS // 5
    assert len((await full.feed.page(some_events(type="session.ended", limit=1000)))["events"]) == SESSIONS


async def test_sweeps_go_on_and_tell(full: Store) -> None:
    await limit(full, 0)
    await advance(full, 1801)
    await limit(full, 1)
    assert await full.sweeper.sweep() == SESSIONS
    assert len((await full.feed.page(some_events(type="session.ended", limit=1000)))["events"]) == SESSIONS


async def test_reading_goes_on(full: Store) -> None:
    assert await full.sessions.get(Target.task("t1"))
    assert len((await full.listing.page(a_list(), 1000))[0]) == SESSIONS
    assert (await full.stats())["sessions"] == SESSIONS
    assert len((await full.feed.page(some_events(limit=1000)))["events"]) == SESSIONS
    assert (await full.inspect()).facts["kind"] == "redis"


NEEDY: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "create": lambda store: store.sessions.create(a_run("new")),
    "create without task": lambda store: store.sessions.create(a_run(None)),
    "create with key": lambda store: store.sessions.create(a_run("new"), "key"),
    "provider": lambda store: store.sessions.set_provider_session(Target.task("t1"), "p"),
    "stop": lambda store: store.sessions.request_stop(Target.task("t1")),
}


@pytest.mark.parametrize("call", NEEDY)
async def test_what_needs_memory_is_unavailable_and_changes_nothing(full: Store, call: str) -> None:
    before = await dump(full)
    with pytest.raises(StoreUnavailable, match="cannot do that now"):
        await NEEDY[call](full)
    assert await dump(full) == before
    await limit(full, 0)
    assert await NEEDY[call](full)


async def test_many_creates_at_once_fail_each_for_itself_and_change_nothing(full: Store) -> None:
    before = await dump(full)
    outcomes = await asyncio.gather(
        *(full.sessions.create(a_run(f"new{number}"), f"key{number}") for number in range(50)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert await dump(full) == before


async def test_a_run_that_replaces_its_own_may_start_for_it_frees_as_much(full: Store) -> None:
    """Whole or not at all: the old session is not lost to a new one that cannot be made."""
    for number in range(SESSIONS):
        task = Target.task(f"t{number}")
        old = await full.sessions.get(task)
        assert old is not None
        try:
            new = (await full.sessions.create(a_run(task.value, f"a{number % 5}"))).session
        except StoreUnavailable:
            new = old
        assert await full.sessions.get(task) == new
    assert await audit(full) == SESSIONS


async def test_a_live_session_may_be_reused(full: Store) -> None:
    created = await full.sessions.create(a_run("t1", "a1", onConflict="reuse"))
    assert created.outcome == "reused"
