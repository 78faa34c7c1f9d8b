"""Listing: newest first, every filter, and a walk in which whoever lives throughout appears exactly once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic_core import from_json

from tests.audit import audit
from tests.clockwork import advance
from tests.conftest import OpenPod
from tests.patience import until
from tests.redis_server import running_redis
from tests.store.wire import a_list, a_run
from tracker.errors import StoreUnavailable
from tracker.models import ListSessions, Session, Target
from tracker.settings import Settings
from tracker.store.listing import CHUNK
from tracker.store.scripts import together
from tracker.store.store import Store, open_store

SHARDS = pytest.mark.parametrize("shards", [1, 4])


async def make(store: Store, count: int, prefix: str = "t") -> list[Session]:
    created = await asyncio.gather(*(store.sessions.create(a_run(f"{prefix}{number}")) for number in range(count)))
    return [one.session for one in created]


async def page(store: Store, query: ListSessions, limit: int) -> tuple[list[Session], str | None]:
    sessions, cursor = await store.listing.page(query, limit)
    return [from_json(session) for session in sessions], cursor


async def walk(store: Store, query: ListSessions, limit: int) -> AsyncIterator[list[Session]]:
    """All pages, each asked for with the cursor of the last."""
    cursor: str | None = None
    while True:
        sessions, cursor = await page(store, query.model_copy(update={"cursor": cursor}), limit)
        yield sessions
        if cursor is None:
            return
        # It goes over the wire and back.
        assert a_list(cursor=cursor).cursor == cursor


async def walked(store: Store, query: ListSessions, limit: int) -> list[Session]:
    return [session async for page in walk(store, query, limit) for session in page]


async def streamed(store: Store, query: ListSessions) -> list[Session]:
    return [from_json(session) async for chunk in store.listing.chunks(query) for session in chunk]


def newest_first(sessions: list[Session]) -> list[Session]:
    return sorted(sessions, key=lambda session: (session["startedAt"], session["id"]), reverse=True)


# --- what and in which order ------------------------------------------------------------------------------------------


@SHARDS
async def test_an_empty_store_has_one_empty_page_and_no_chunk(store: Store) -> None:
    assert await page(store, a_list(), 10) == ([], None)
    assert await streamed(store, a_list()) == []


@SHARDS
@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 50])
async def test_all_sessions_come_newest_first_whatever_the_page_size(store: Store, count: int) -> None:
    """Hundreds are made in one script, so most share their millisecond with others."""
    expected = newest_first(await make(store, count))
    if count > 1:
        assert len({session["startedAt"] for session in expected}) < count
    assert await streamed(store, a_list()) == expected
    for limit in (7, 100, CHUNK, 1000):
        assert await walked(store, a_list(), limit) == expected


@SHARDS
@pytest.mark.parametrize("limit", [1, 2, 3, 10, 11])
async def test_pages_are_full_but_the_last_and_the_last_says_so(store: Store, limit: int) -> None:
    await make(store, 10)
    pages = [page async for page in walk(store, a_list(), limit)]
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len(pages) == -(-10 // limit)


async def test_sessions_that_began_at_different_times_come_newest_first(store: Store) -> None:
    for number in range(10):
        await make(store, 1, f"t{number}-")
        await advance(store, 10)
    sessions = await streamed(store, a_list())
    assert [session["taskId"] for session in sessions] == [f"t{number}-0" for number in reversed(range(10))]


async def test_heartbeats_do_not_change_the_order(store: Store) -> None:
    expected = [session["id"] for session in newest_first(await make(store, 20))]
    await store.sessions.heartbeat_all(Target.task(f"t{number}") for number in range(0, 20, 3))
    assert [session["id"] for session in await streamed(store, a_list())] == expected


@SHARDS
async def test_expired_sessions_are_passed_over_before_any_sweep(store: Store) -> None:
    await make(store, CHUNK + 50, "dead")
    await advance(store, 1801)
    living = newest_first(await make(store, 30, "live"))
    assert await streamed(store, a_list()) == living
    assert await walked(store, a_list(), 7) == living
    assert await streamed(store, a_list(agentId="a1")) == living


@SHARDS
async def test_no_chunk_is_empty_even_where_nothing_fits(store: Store) -> None:
    await make(store, CHUNK + 50, "dead")
    await advance(store, 1801)
    await make(store, CHUNK + 50, "live")
    await store.sessions.create(a_run("needle", triggerType="needle"))
    chunks = [chunk async for chunk in store.listing.chunks(a_list(triggerType="needle"))]
    assert [len(chunk) for chunk in chunks] == [1]


async def test_a_chunk_holds_no_more_than_its_share(store: Store) -> None:
    """Memory stays flat however many there are."""
    await make(store, 3 * CHUNK)
    assert [len(chunk) async for chunk in store.listing.chunks(a_list())] == [CHUNK] * 3


# --- filters ----------------------------------------------------------------------------------------------------------

FILTERS = ("agentId", "taskId", "triggerType", "runnerSessionId", "runtimeInstanceId")


@SHARDS
async def test_every_filter_and_every_two_of_them(store: Store) -> None:
    chance = random.Random(3)
    for number in range(60):
        fields = {
            name: f"{name}-{chance.randrange(3)}" for name in FILTERS if name != "taskId" and chance.random() < 0.8
        }
        await store.sessions.create(
            a_run(f"taskId-{number}", fields.pop("agentId", "nobody"), **{"triggerType": "none", **fields})
        )
    everybody = await streamed(store, a_list())
    assert len(everybody) == 60
    seen = 0
    for first in FILTERS:
        for second in FILTERS:
            query = {first: f"{first}-1", second: f"{second}-{2 if second == 'taskId' else 1}"}
            expected = [
                session
                for session in everybody
                if all(session[field] == value for field, value in query.items())  # type: ignore[literal-required]
            ]
            assert await streamed(store, a_list(**query)) == expected
            assert await walked(store, a_list(**query), 2) == expected
            seen += len(expected)
    assert seen > 50, "the filters let something through"


@pytest.mark.parametrize("name", FILTERS)
async def test_a_filter_for_what_nobody_has_finds_nothing(store: Store, name: str) -> None:
    await make(store, 3)
    assert await streamed(store, a_list(**{name: "other"})) == []
    assert await page(store, a_list(**{name: "other"}), 5) == ([], None)


@pytest.mark.parametrize("name", FILTERS)
async def test_an_empty_filter_means_absent(store: Store, name: str) -> None:
    expected = newest_first(await make(store, 3))
    assert await streamed(store, a_list(**{name: ""})) == expected


async def test_a_filter_does_not_mistake_one_field_for_another(store: Store) -> None:
    await store.sessions.create(a_run("t1", "a1", triggerType="x", runnerSessionId="y"))
    assert await streamed(store, a_list(runnerSessionId="x")) == []
    assert await streamed(store, a_list(triggerType="y")) == []


@SHARDS
async def test_a_task_is_found_at_once_among_many(store: Store) -> None:
    await make(store, 500)
    (session,) = await streamed(store, a_list(taskId="t77"))
    assert session["taskId"] == "t77"
    assert await streamed(store, a_list(taskId="t77", agentId="other")) == []
    assert await page(store, a_list(taskId="t77"), 1) == ([session], None)


# --- while others come and go -----------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.parametrize("limit", [1, 7, 50])
async def test_who_lives_through_a_walk_appears_exactly_once(store: Store, open_pod: OpenPod, limit: int) -> None:
    """While others are created, replaced, deleted, swept and heartbeated at random, right before the walk's place."""
    chance = random.Random(limit)
    residents = {session["id"] for session in await make(store, 60, "resident")}
    await make(store, 60, "guest")
    walking = True
    changes = 0

    async def disturb(pod: Store, name: str) -> None:
        nonlocal changes
        number = 0
        while walking:
            number += 1
            changes += 1
            guest = Target.task(f"guest{chance.randrange(60)}")
            match chance.randrange(5):
                case 0:
                    await pod.sessions.delete(guest)
                case 1:
                    await pod.sessions.create(a_run(guest.value))
                case 2:
                    await pod.sessions.create(a_run(f"{name}{number}"))
                case 3:
                    await pod.sessions.heartbeat_all(Target.task(f"resident{chance.randrange(60)}") for _ in range(5))
                case 4:
                    await pod.sessions.create(a_run(None, ttlSeconds=1))
                    await pod.sweeper.sweep()

    async def watch() -> None:
        nonlocal walking
        try:
            for query in itertools.cycle((a_list(), a_list(agentId="a1"))):
                for met in (await walked(store, query, limit), await streamed(store, query)):
                    ids = {session["id"] for session in met}
                    assert len(ids) == len(met), "a session appeared twice"
                    assert residents <= ids, "a session was passed over"
                if changes > 40:
                    break
        finally:
            walking = False

    async with open_pod() as pod:
        await together([watch(), disturb(store, "here"), disturb(pod, "there")])
    await audit(store)


@SHARDS
async def test_a_walk_goes_on_when_the_session_at_its_place_is_gone(store: Store) -> None:
    sessions = newest_first(await make(store, 30))
    met, cursor = await page(store, a_list(), 10)
    assert met == sessions[:10]
    for session in sessions[5:15]:
        assert await store.sessions.delete(Target.id(session["id"]))
    met, _ = await page(store, a_list(cursor=cursor), 30)
    assert met == sessions[15:]


@SHARDS
async def test_what_is_created_during_a_walk_does_not_come_up_in_it(store: Store) -> None:
    sessions = newest_first(await make(store, 20))
    met, cursor = await page(store, a_list(), 10)
    await asyncio.sleep(0.002)  # another millisecond
    await make(store, 20, "later")
    rest, end = await page(store, a_list(cursor=cursor), 100)
    assert met + rest == sessions
    assert end is None


async def test_a_cursor_of_a_session_that_never_was_is_a_place_like_any_other(store: Store) -> None:
    expected = newest_first(await make(store, 5))
    newer, older = "999999999999999", "1"
    suffix = "_0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10"
    assert await page(store, a_list(cursor=newer + suffix), 10) == (expected, None)
    assert await page(store, a_list(cursor=older + suffix), 10) == ([], None)


async def test_one_cursor_gives_the_same_page_again(store: Store) -> None:
    await make(store, 10)
    _, cursor = await page(store, a_list(), 4)
    assert await page(store, a_list(cursor=cursor), 4) == await page(store, a_list(cursor=cursor), 4)


# --- walks that end early ---------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.parametrize("chunks", [0, 1, 2])
async def test_a_walk_that_is_left_leaves_nothing_running(store: Store, chunks: int) -> None:
    """As a client does that closes its connection in the middle of a listing."""
    await make(store, 3 * CHUNK)
    before = asyncio.all_tasks()
    for _ in range(5):
        walk = store.listing.chunks(a_list())
        for _ in range(chunks):
            await anext(walk, None)
        await walk.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert len(await streamed(store, a_list())) == 3 * CHUNK


@SHARDS
async def test_a_walk_that_is_cancelled_leaves_nothing_running_and_disturbs_nobody(store: Store) -> None:
    expected = newest_first(await make(store, 2 * CHUNK))
    before = asyncio.all_tasks()
    for turns in range(30):
        walking = asyncio.create_task(streamed(store, a_list()))
        for _ in range(turns):
            await asyncio.sleep(0)
        walking.cancel()
        await asyncio.gather(walking, return_exceptions=True)

    async def quiet() -> bool:
        return asyncio.all_tasks() == before  # but for moments in which the nodes of a cluster are asked who holds what

    await until(quiet)
    assert await streamed(store, a_list()) == expected


@SHARDS
async def test_a_store_that_goes_away_ends_the_walk_with_an_error_in_time(tmp_path: Path, shards: int) -> None:
    with running_redis(tmp_path) as server:
        patient = Settings(store_url=server.url, shards=shards, store_timeout_seconds=10)
        async with open_store(patient) as filling:
            expected = newest_first(await make(filling, 4 * CHUNK * shards))
        async with open_store(Settings(store_url=server.url, shards=shards, store_timeout_seconds=0.5)) as store:
            before = asyncio.all_tasks()
            walk = store.listing.chunks(a_list())
            await anext(walk)
            server.freeze()
            try:
                began = asyncio.get_running_loop().time()
                with pytest.raises(StoreUnavailable):
                    [chunk async for chunk in walk]
                assert asyncio.get_running_loop().time() - began < 2
            finally:
                server.thaw()
            assert asyncio.all_tasks() == before
            assert await streamed(store, a_list()) == expected
