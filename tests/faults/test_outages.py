"""Outages for real: what nobody could heartbeat through ends nobody, and what fell silent by itself ends on time.

Time cannot be moved here, so TTLs are short. What a slow machine may do to them is made good before the outage begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from pydantic_core import from_json

from tests.api.conftest import running, serving
from tests.audit import audit
from tests.patience import until
from tests.raw import read_raw
from tests.redis_server import RedisServer, running_redis
from tests.store.wire import a_list, a_run, some_events
from tracker.errors import StoreUnavailable
from tracker.models import Event, Target
from tracker.settings import Settings
from tracker.store.scripts import together
from tracker.store.store import Store, open_store

SESSIONS = 1000
TTL_SECONDS = 2
OUTAGE_SECONDS = 3 * TTL_SECONDS
SWEEP_SECONDS = 0.5
SLACK_SECONDS = 5
"""For a machine under load."""
TASKS = [Target.task(f"t{number}") for number in range(SESSIONS)]
APPEND_ONLY = ("--appendonly", "yes")


def settings_on(server: RedisServer) -> Settings:
    return Settings(store_url=server.url, shards=2, store_timeout_seconds=2, sweep_interval_seconds=SWEEP_SECONDS)


@asynccontextmanager
async def two_pods(settings: Settings) -> AsyncIterator[Store]:
    """Both sweep. The test has a store of its own, with all the time that a slow machine may need."""
    patient = settings.model_copy(update={"store_timeout_seconds": 10})
    async with running(settings), running(settings), open_store(patient) as store:
        yield store


async def populate(store: Store) -> set[str]:
    """A thousand sessions, all of them alive at the last pulse and later; their ids."""
    runs = [a_run(task.value, ttlSeconds=TTL_SECONDS, onConflict="reuse") for task in TASKS]
    while True:
        made = await together(store.sessions.create(run) for run in runs)
        beats = (await store.sessions.heartbeat_all(TASKS)).values()
        await store.sweeper.pulse()
        pulse = max(int(raw["clock"].content[b"pulse"]) for raw in await read_raw(store))
        if all(beat is not None and beat.due > pulse for beat in beats):
            return {one.session["id"] for one in made}


async def alive(store: Store) -> set[str]:
    return {from_json(session)["id"] async for chunk in store.listing.chunks(a_list()) for session in chunk}


async def ends(store: Store, ids: set[str]) -> list[Event]:
    """The end events of these sessions."""
    events: list[Event] = []
    after = None
    while True:
        page = await store.feed.page(some_events(type="session.ended", limit=1000, after=after))
        if not page["events"]:
            return [event for event in events if event["session"]["id"] in ids]
        events += page["events"]
        after = page["next"]


def milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


async def hold_is_told(store: Store) -> bool:
    try:
        return "heldUntil" in (await store.inspect()).facts
    except StoreUnavailable:
        return False


async def nobody_has_died(store: Store, ids: set[str]) -> None:
    """From the first request on, through the sweeps, to everybody's next heartbeat, which is as good as any."""
    assert ids <= await alive(store)
    await until(lambda: hold_is_told(store))
    await store.sweeper.sweep()
    assert ids <= await alive(store)
    beats = await store.sessions.heartbeat_all(TASKS)
    assert all(beats.values())
    assert await alive(store) == ids
    assert await ends(store, ids) == []
    assert await audit(store) == SESSIONS


async def when_back(store: Store) -> None:
    async def back() -> bool:
        try:
            await store.sessions.get(TASKS[0])
        except StoreUnavailable:
            return False
        return True

    await until(back)


async def test_a_redis_that_freezes_ends_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """I9. For three TTLs."""
    with running_redis(tmp_path) as server:
        async with two_pods(settings_on(server)) as store:
            ids = await populate(store)
            server.freeze()
            try:
                await asyncio.sleep(OUTAGE_SECONDS)
            finally:
                server.thaw()
            await when_back(store)
            await nobody_has_died(store, ids)
    assert [message for message in caplog.messages if message.startswith("there was an outage from")]


async def test_a_redis_that_is_killed_and_reads_its_file_ends_nobody(tmp_path: Path) -> None:
    """I9. For three TTLs; the TTLs that Redis itself counts go on meanwhile."""
    async with AsyncExitStack() as stack:
        with running_redis(tmp_path, *APPEND_ONLY) as first:
            store = await stack.enter_async_context(two_pods(settings_on(first)))
            ids = await populate(store)
        await asyncio.sleep(OUTAGE_SECONDS)
        with running_redis(tmp_path, *APPEND_ONLY, port=first.port):
            await when_back(store)
            await nobody_has_died(store, ids)
            await stack.aclose()


async def test_pods_that_are_all_away_end_nobody(tmp_path: Path) -> None:
    """I9. For three TTLs, with the store up and nobody to take heartbeats."""
    with running_redis(tmp_path) as server:
        async with two_pods(settings_on(server)) as store:
            ids = await populate(store)
        await asyncio.sleep(OUTAGE_SECONDS)
        async with two_pods(settings_on(server)) as store:
            await nobody_has_died(store, ids)


async def test_a_thousand_that_fall_silent_at_once_all_end_once_and_on_time(tmp_path: Path) -> None:
    """I3, I11. Over two pods that sweep at the same time: not before the deadline, within a sweep interval after it."""
    with running_redis(tmp_path) as server:
        async with two_pods(settings_on(server)) as store:
            ids = await populate(store)

            async def all_told() -> bool:
                return len(await ends(store, ids)) >= SESSIONS

            await until(all_told)
            events = await ends(store, ids)
            assert await alive(store) == set()
            assert await audit(store) == 0
    assert len(events) == len({event["session"]["id"] for event in events}) == SESSIONS
    assert {event["reason"] for event in events} == {"expired"}
    for event in events:
        late = milliseconds(event["at"]) - milliseconds(event["session"]["expiresAt"])
        assert 0 <= late <= 1000 * (SWEEP_SECONDS + SLACK_SECONDS)


@pytest.mark.parametrize("backend", ["redis"])
async def test_a_rolling_restart_holds_nothing(store: Store, settings: Settings, tmp_path: Path) -> None:
    """Each of two pods is replaced while the other is there: whoever falls silent meanwhile is told of as ever."""
    environment = {
        "TRACKER_STORE_URL": settings.store_url,
        "TRACKER_NAMESPACE": settings.namespace,
        "TRACKER_SWEEP_INTERVAL_SECONDS": str(SWEEP_SECONDS),
    }
    logs: list[Path] = []

    def start() -> tuple[str, Callable[[], None]]:
        """A pod's address, and what stops it."""
        logs.append(tmp_path / f"pod-{len(logs)}.log")
        stack = stopping.enter_context(ExitStack())
        return stack.enter_context(serving(logs[-1], **environment)).url, stack.close

    with ExitStack() as stopping:
        pods = list(await asyncio.gather(asyncio.to_thread(start), asyncio.to_thread(start)))
        for number in range(2):
            silent = (await store.sessions.create(a_run(f"silent-{number}", ttlSeconds=1))).session
            _, stop = pods.pop(0)
            await asyncio.to_thread(stop)
            pods.append(await asyncio.to_thread(start))

            async def told(session_id: str = silent["id"]) -> bool:
                return len(await ends(store, {session_id})) == 1

            await until(told)
            for url, _ in pods:
                async with httpx.AsyncClient() as client:
                    ready = (await client.get(url + "/ready")).json()
                assert ready["status"] == "ready"
                assert "heldUntil" not in ready["store"]
    (raw,) = await read_raw(store)
    assert b"held" not in raw["clock"].content, "there was a hold"
    assert not [log for log in logs if "an outage" in log.read_text()]
