"""The examination of a store: each check says what is well and what is not; looking writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clockwork import outage
from tests.redis_server import RedisServer, running_redis
from tests.store.wire import a_run
from tracker.errors import StoreUnavailable
from tracker.settings import Settings
from tracker.store import doctor
from tracker.store.doctor import Examination, examine
from tracker.store.store import Store, open_store


@pytest.fixture
def backend() -> str:
    return "redis"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


async def look(store: Store) -> Examination:
    return await examine(store.scripts, mend=False)


def states(examination: Examination) -> dict[str, str]:
    return {check.name: check.state for check in examination.checks}


def text_of(examination: Examination, name: str) -> str:
    return next(check.text for check in examination.checks if check.name == name)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_store_in_use_passes_every_check_but_that_of_persistence(store: Store) -> None:
    await store.sessions.create(a_run())
    await store.sweeper.sweep()
    examination = await look(store)
    assert states(examination) == {
        "reachable": "good",
        "layout": "good",
        "clock": "good",
        "pulse": "good",
        "version": "good",
        "eviction": "good",
        "persistence": "problem",
        "memory": "good",
    }
    assert examination.agreement is not None
    assert examination.agreement.sessions == 1
    assert not examination.well


async def test_a_redis_that_keeps_everything_is_well(own_redis: RedisServer) -> None:
    async with open_store(Settings(store_url=own_redis.url)) as store:
        await store.scripts.command("CONFIG", "SET", "appendonly", "yes")
        await store.sweeper.sweep()
        assert (await look(store)).well
        await store.scripts.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert states(await look(store))["eviction"] == "problem"
        used = int((await store.scripts.command("INFO"))["used_memory"])
        await store.scripts.command("CONFIG", "SET", "maxmemory", round(used * 1.05))
        assert states(await look(store))["memory"] == "problem"


async def test_a_namespace_that_nobody_uses_is_told_and_stays_empty(store: Store) -> None:
    examination = await look(store)
    assert states(examination) == {"layout": "problem"}
    assert "no tracker has ever used this namespace" in text_of(examination, "layout")
    assert not [key async for key in store.scripts.client.scan_iter(match=store.scripts.shards[0].prefix + "*")]


async def test_another_layout_is_told_and_not_looked_into(store: Store, settings: Settings) -> None:
    await store.sessions.create(a_run())
    async with open_store(settings.model_copy(update={"shards": 2})) as other:
        examination = await look(other)
    assert states(examination) == {"layout": "problem"}
    assert "laid out with 1 shards in schema version 1, looked at with 2 shards" in text_of(examination, "layout")
    assert examination.agreement is None


async def test_a_pulse_that_stays_away_is_a_problem_and_a_hold_a_note(store: Store) -> None:
    await store.sessions.create(a_run())
    assert "there never was one" in text_of(await look(store), "pulse")
    await store.sweeper.sweep()
    await outage(store, 200)
    examination = await look(store)
    assert (states(examination)["pulse"], text_of(examination, "pulse")[:20]) == ("problem", "the last was 200 s a")
    await store.sweeper.sweep()
    assert states(await look(store))["pulse"] == "note"


@pytest.mark.parametrize(
    ("store_clock", "state", "says"),
    [
        (100.0, "good", "within 2 s"),
        (98.5, "good", "within 2 s"),
        (97.0, "problem", "3.0 s behind"),
        (105.0, "problem", "4.0 s ahead of"),
    ],
)
def test_a_clock_that_is_off_is_a_problem(store_clock: float, state: str, says: str) -> None:
    check = doctor._clock(store_clock, 100.0, 101.0)
    assert check.state == state
    assert check.text.startswith(says)


@pytest.mark.parametrize(
    ("info", "state"),
    [
        ({"used_memory": 90, "maxmemory": 100}, "problem"),
        ({"used_memory": 80, "maxmemory": 100}, "good"),
        ({"used_memory": 90, "maxmemory": 0, "total_system_memory": 100}, "problem"),
        ({"used_memory": 90}, "note"),
    ],
)
def test_memory_that_runs_out_is_a_problem(info: dict[str, Any], state: str) -> None:
    assert doctor._memory(info).state == state


def test_where_info_is_forbidden_that_is_told() -> None:
    (check,) = doctor._server({})
    assert (check.name, check.state) == ("set-up", "problem")


async def test_a_store_that_is_away_cannot_be_looked_at() -> None:
    async with open_store(Settings(store_url="redis://127.0.0.1:1", store_timeout_seconds=0.2)) as store:
        with pytest.raises(StoreUnavailable):
            await look(store)
