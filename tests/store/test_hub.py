"""The hub: one reader of the feed for many, who lose and repeat nothing however they come, lag and leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.redis_server import running_redis
from tests.store.wire import a_run, some_events
from tracker.errors import Invalid, PositionLost, StoreUnavailable, TooManyReaders
from tracker.models import Target
from tracker.settings import Settings
from tracker.store import hub as hubs
from tracker.store.feed import Change, Found, Position
from tracker.store.hub import QUEUE, Reader
from tracker.store.store import Store, open_store

SHARDS = pytest.mark.parametrize("shards", [1, 4])
NOTHING = some_events()
LIMIT = 100


async def create(store: Store, *names: str) -> list[str]:
    """Makes a session for each name, one after the other; the names."""
    for name in names:
        await store.sessions.create(a_run(name, f"agent of {name}"))
    return list(names)


def tasks_of(found: list[Found]) -> list[str]:
    return [str(change.event(event_id)["session"]["taskId"]) for event_id, change in found]


async def take(reader: Reader, count: int, limit: int = LIMIT) -> list[str]:
    """The tasks of the next events, and that their ids lead on."""
    tasks: list[str] = []
    async with asyncio.timeout(30):
        while len(tasks) < count:
            found = await reader.read(limit, 5)
            assert len(found) <= limit
            tasks += tasks_of(found)
    return tasks


async def loses(reader: Reader, read: list[str]) -> PositionLost:
    """Reads until the position is lost; adds the tasks of the events up to there."""
    async with asyncio.timeout(30):
        while True:
            try:
                read += [
                    str(change.event(event_id)["session"]["taskId"]) for event_id, change in await reader.read(1, 1)
                ]
            except PositionLost as lost:
                return lost


def are(store: Store, read: list[str], names: list[str]) -> bool:
    """In order, but that shards may get ahead of each other."""
    return read == names if len(store.scripts.shards) == 1 else sorted(read) == sorted(names)


async def nothing_more(store: Store, reader: Reader) -> bool:
    """Whether the next that the reader gets is what comes now."""
    (mark,) = await create(store, "mark")
    return await take(reader, 1) == [mark]


async def listening(reader: Reader) -> None:
    """Reads until it follows the hub."""

    async def follows() -> bool:
        assert await reader.read(LIMIT, 0) == []
        return reader._hub.heads is not None and reader._listening and reader._caught_up

    await until(follows)


# --- from where -------------------------------------------------------------------------------------------------------


@SHARDS
async def test_without_a_position_it_reads_what_comes_from_now_on(store: Store) -> None:
    await create(store, "before")
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        await create(store, "after")
        assert await take(reader, 1) == ["after"]


@SHARDS
@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_behind_any_position_it_reads_what_was_there_and_goes_on_with_what_comes(
    store: Store, limit: int
) -> None:
    await create(store, *(f"t{number}" for number in range(20)))
    events = (await store.feed.page(NOTHING))["events"]
    names = [str(event["session"]["taskId"]) for event in events]
    ids = ["0", *(event["id"] for event in events)]
    for number in range(0, 20, 3):
        with store.hub.reader(NOTHING) as reader:
            await reader.begin(ids[number])
            assert are(store, await take(reader, len(names) - number, limit), names[number:])
            late = await create(store, f"late {number}")
            assert await take(reader, 1, limit) == late
            names += late


@SHARDS
async def test_its_position_is_where_another_goes_on(store: Store) -> None:
    """After each read, in the middle of pages as well as of what is live."""
    names = await create(store, *(f"t{number}" for number in range(12)))
    position = "0"
    seen: list[str] = []
    for number in range(24):
        with store.hub.reader(NOTHING) as reader:
            await reader.begin(position)
            if number % 3 == 0:
                names += await create(store, f"more {number}")
            while not (found := await reader.read(1, 0)) and len(seen) < len(names):
                pass
            seen += tasks_of(found)
            position = reader.position
    assert are(store, seen, names)


async def test_what_is_no_position_is_refused(store: Store) -> None:
    with store.hub.reader(NOTHING) as reader, pytest.raises(Invalid) as refused:
        await reader.begin("x", "Last-Event-ID")
    assert refused.value.details[0]["field"] == "Last-Event-ID"


@SHARDS
async def test_a_position_from_before_the_first_event_loses_none(store: Store) -> None:
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        position = reader.position
    names = await create(store, *(f"t{number}" for number in range(8)))
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(position)
        assert are(store, await take(reader, 8), names)


# --- from pages to the hub --------------------------------------------------------------------------------------------


def before_and_after(
    monkeypatch: pytest.MonkeyPatch, store: Store, name: str, happens: Callable[[], Awaitable[Any]]
) -> None:
    """Lets something happen right before, and again right after, each call of a method of the feed."""
    method = getattr(store.feed, name)

    async def surrounded(*arguments: Any) -> Any:
        await happens()
        try:
            return await method(*arguments)
        finally:
            await happens()

    monkeypatch.setattr(store.feed, name, surrounded)


@SHARDS
@pytest.mark.parametrize("after", ["0", None])
async def test_events_around_the_moment_of_joining_come_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, after: str | None
) -> None:
    """Right before and right after the look into the feed, and handed out by then to those who listen."""
    made = await create(store, "early")
    with store.hub.reader(NOTHING) as other:
        await other.begin("0")
        assert await take(other, 1) == made
        await listening(other)

        async def one_more() -> None:
            made.extend(await create(store, f"t{len(made)}"))
            assert await take(other, 1) == made[-1:]

        method = "scan" if after else "present"
        with store.hub.reader(NOTHING) as reader:
            before_and_after(monkeypatch, store, method, one_more)
            await reader.begin(after)
            if after:
                # The page that it reads first, and those that complete it, each with two more around them.
                seen = await take(reader, 2)
                while not reader._caught_up:
                    seen += tasks_of(await reader.read(LIMIT, 0))
                expected = made
            else:
                seen, expected = [], made[2:]  # what was there when the present was looked up is the past
            monkeypatch.undo()
            seen += await take(reader, len(expected) - len(seen)) if len(seen) < len(expected) else []
            assert are(store, seen, expected)
            assert await nothing_more(store, reader)


@SHARDS
async def test_events_before_the_hub_knows_where_it_begins_are_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first reader who starts it, and he knows his place sooner."""
    present = store.feed.present
    gate = asyncio.Event()

    async def late() -> list[Position]:
        if store.hub.heads is None and asyncio.current_task() is store.hub._task:
            await gate.wait()
        return await present()

    monkeypatch.setattr(store.feed, "present", late)
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        names = await create(store, "between")
        assert await reader.read(LIMIT, 0) == []
        gate.set()
        assert await take(reader, 1) == names
        assert await nothing_more(store, reader)


@SHARDS
async def test_readers_who_come_at_any_time_read_all_behind_their_position_once(store: Store) -> None:
    names = [f"t{number}" for number in range(120)]

    async def write() -> None:
        for name in names:
            await create(store, name)

    async def follow(start: int) -> None:
        await until(lambda: _created(store, start))
        with store.hub.reader(NOTHING) as reader:
            await reader.begin("0")
            assert sorted(await take(reader, 120, 1 + start)) == sorted(names)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for start in range(0, 120, 20):
            group.create_task(follow(start))


async def _created(store: Store, count: int) -> bool:
    return (await store.stats())["created"] >= count


@SHARDS
async def test_what_the_hub_leaves_for_its_next_turn_comes_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "BATCH", 3)
    monkeypatch.setattr(hubs, "BATCHES", 2)
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        await listening(reader)
        names = [f"t{number}" for number in range(100)]
        await asyncio.gather(*(create(store, name) for name in names))
        assert sorted(await take(reader, 100)) == sorted(names)
        assert await nothing_more(store, reader)
    assert store.hub.lagged == 0


# --- filters ----------------------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.parametrize("after", ["0", None])
async def test_filters_hold_for_pages_and_for_what_is_live(store: Store, after: str | None) -> None:
    async def live(run: str) -> None:
        await create(store, f"a{run}", f"b{run}")
        await store.sessions.delete(Target.task(f"a{run}"))

    await live("1")
    with (
        store.hub.reader(some_events(agentId="agent of b2")) as of_agent,
        store.hub.reader(some_events(type="session.ended")) as of_type,
    ):
        await of_agent.begin(after)
        await of_type.begin(after)
        await live("2")
        assert await take(of_agent, 1) == ["b2"]
        assert are(store, await take(of_type, 1 + (after == "0")), ["a1", "a2"][after is None :])


@SHARDS
async def test_past_events_that_do_not_fit_the_position_moves_on(store: Store) -> None:
    """Or who waits for a rare event would find that the feed lost his place."""
    with store.hub.reader(some_events(agentId="nobody")) as reader:
        await reader.begin(None)
        await listening(reader)
        await create(store, *(f"t{number}" for number in range(8)))
        last = (await store.feed.page(NOTHING))["next"]

        async def moved() -> bool:
            assert await reader.read(LIMIT, 0.01) == []
            return reader.position == last

        await until(moved)


# --- slow readers -----------------------------------------------------------------------------------------------------


@SHARDS
async def test_a_reader_who_lags_loses_nothing_and_holds_nobody_up(store: Store) -> None:
    with store.hub.reader(NOTHING) as slow, store.hub.reader(NOTHING) as fast:
        await slow.begin(None)
        await fast.begin(None)
        await listening(slow)
        count = 3 * QUEUE
        made = asyncio.create_task(create(store, *(f"t{number}" for number in range(count))))
        read = await take(fast, count)
        assert are(store, read, await made)
        assert len(slow._queue) == QUEUE, "what waits for it is bounded"
        assert store.hub.lagged == 1
        assert are(store, await take(slow, count), read)
        assert await nothing_more(store, slow)
    assert store.hub.resets == 0


@SHARDS
async def test_a_reader_who_lags_over_and_over_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "QUEUE", 2)
    names = [f"t{number}" for number in range(300)]
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        await listening(reader)
        made = asyncio.create_task(create(store, *names))
        assert sorted(await take(reader, 300, 3)) == sorted(names)
        await made
        assert await nothing_more(store, reader)
    assert store.hub.lagged > 0


@SHARDS
@pytest.mark.settings(feed_length=100)
async def test_a_reader_who_lags_behind_what_the_feed_holds_is_told_once_and_goes_on_from_the_oldest(
    store: Store,
) -> None:
    """Also one that began when there was nothing: he has no event to go on behind."""
    shards = len(store.scripts.shards)
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        await listening(reader)
        for batch in range(4):
            await asyncio.gather(*(create(store, f"{batch}-{number}") for number in range(300 * shards)))

        async def lags() -> bool:
            return not reader._listening

        await until(lags)
        read: list[str] = []
        lost = await loses(reader, read)
        assert len(read) <= QUEUE
        held = await take(reader, 1)
        while len(held) < 100 * shards:
            held += await take(reader, 1)
        rest = [
            str(event["session"]["taskId"])
            for event in (await store.feed.page(some_events(after=lost.onward, limit=1000)))["events"]
        ]
        held += await take(reader, len(rest) - len(held)) if len(held) < len(rest) else []
        assert sorted(held) == sorted(rest)
        assert not set(held) & set(read)
    assert store.hub.resets == 1


@SHARDS
@pytest.mark.settings(feed_length=100)
async def test_what_came_before_the_first_event_is_lost_with_it_and_the_beginning_never_is(store: Store) -> None:
    empty = (await store.feed.page(NOTHING))["next"]
    shards = len(store.scripts.shards)
    for batch in range(3):
        await asyncio.gather(*(create(store, f"{batch}-{number}") for number in range(200 * shards)))
    with pytest.raises(PositionLost) as lost:
        await store.feed.page(some_events(after=empty))
    beginning = ".".join(["0-0"] * shards)
    assert lost.value.onward == beginning
    held: list[str] = []
    after = beginning
    while page := await store.feed.page(some_events(after=after, limit=7)):
        held += [event["id"] for event in page["events"]]
        if not page["events"]:
            break
        after = page["next"]
    assert len(set(held)) == len(held) >= 100 * shards


# --- the store goes away ----------------------------------------------------------------------------------------------


@SHARDS
async def test_after_the_store_was_emptied_readers_are_told_and_read_what_is_new(store: Store) -> None:
    await create(store, *(f"t{number}" for number in range(8)))
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        await listening(reader)
        for shard in store.scripts.shards:
            await store.scripts.command("DEL", shard.events)
        names = await create(store, "new")
        with pytest.raises(PositionLost) as lost:
            await take(reader, 1)
        assert set(lost.value.onward.split(".")) <= {"0-0", "0-1"}
        assert await take(reader, 1) == names


@asynccontextmanager
async def a_pod(url: str) -> AsyncIterator[Store]:
    async with open_store(Settings(store_url=url, store_timeout_seconds=0.5)) as store:
        yield store


async def test_an_outage_loses_nothing(tmp_path: Path) -> None:
    """The store freezes under the hub's call, and thaws."""
    with running_redis(tmp_path) as server:
        async with a_pod(server.url) as store:
            with store.hub.reader(NOTHING) as reader:
                await create(store, "before")
                await reader.begin("0")
                assert await take(reader, 1) == ["before"]
                await listening(reader)
                server.freeze()
                with pytest.raises(StoreUnavailable):
                    await create(store, "lost, or late")
                assert await reader.read(LIMIT, 0) == []
                server.thaw()

                async def back() -> bool:
                    try:
                        return bool(await create(store, "after"))
                    except StoreUnavailable:
                        return False

                await until(back)
                read = await take(reader, 1)
                while read[-1] != "after":
                    read += await take(reader, 1)
                assert [name for name in read if name != "lost, or late"] == ["after"]


async def test_another_store_in_its_place_is_told_of(tmp_path: Path) -> None:
    with running_redis(tmp_path) as first:
        async with a_pod(first.url) as store:
            await create(store, "old")
            with store.hub.reader(NOTHING) as reader:
                await reader.begin(None)
                await listening(reader)
                first.kill()
                assert await reader.read(LIMIT, 0.05) == []
                with running_redis(tmp_path, port=first.port):
                    read: list[str] = []
                    await loses(reader, read)
                    assert read == []

                    async def back() -> bool:
                        try:
                            return bool(await create(store, "new"))
                        except StoreUnavailable:
                            return False

                    await until(back)
                    assert await take(reader, 1) == ["new"]


# --- coming and going -------------------------------------------------------------------------------------------------


@pytest.mark.settings(max_streams=2)
async def test_there_are_no_more_readers_than_allowed_and_places_are_given_back(store: Store) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(store.hub.reader(NOTHING))
        with pytest.raises(TooManyReaders), store.hub.reader(NOTHING):
            pass
        assert (store.hub.readers, store.hub.refused) == (2, 1)
    assert store.hub.readers == 0
    with store.hub.reader(NOTHING):
        assert store.hub.readers == 1


def hub_tasks() -> int:
    return sum("Hub._run" in str(task.get_coro()) for task in asyncio.all_tasks())


async def test_the_hub_works_only_while_there_are_readers(store: Store) -> None:
    assert hub_tasks() == 0
    for _ in range(3):
        with store.hub.reader(NOTHING) as one, store.hub.reader(NOTHING) as other:
            for reader in (one, other):
                await reader.begin(None)
                await listening(reader)
            assert hub_tasks() == 1

        async def over() -> bool:
            return hub_tasks() == 0

        await until(over)


@pytest.mark.parametrize("backend", ["redis"])
async def test_connections_to_the_store_do_not_grow_with_readers_and_go_with_them(
    store: Store, settings: Settings
) -> None:
    named = settings.model_copy(update={"store_url": settings.store_url + "?client_name=" + settings.namespace})

    async def connections() -> int:
        clients: list[dict[str, str]] = await store.scripts.client.client_list()
        return sum(client["name"] == settings.namespace for client in clients)

    async with open_store(named) as pod:
        with pod.hub.reader(NOTHING) as reader:
            await reader.begin(None)
            await listening(reader)
            one = await connections()
        for _ in range(3):
            with ExitStack() as stack:
                readers = [stack.enter_context(pod.hub.reader(NOTHING)) for _ in range(100)]
                for reader in readers:
                    await reader.begin(None)
                await listening(readers[-1])
                assert await connections() == one

        async def fewer() -> bool:
            return await connections() == one - 1

        await until(fewer)


async def test_told_to_stop_it_ends_readers_and_starts_no_more(store: Store) -> None:
    with store.hub.reader(NOTHING) as reader:
        await reader.begin(None)
        await listening(reader)
        reading = asyncio.create_task(reader.read(LIMIT, 60))
        await asyncio.sleep(0)
        store.hub.stop()
        assert await asyncio.wait_for(reading, 10) == []
        assert reader.ended
    with store.hub.reader(NOTHING) as late:
        assert late.ended
    assert store.hub._task is None


async def test_what_an_event_says_is_encoded_once_for_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out = 0
    event = Change.event

    def counted(change: Change, event_id: str) -> Any:
        nonlocal worked_out
        worked_out += 1
        return event(change, event_id)

    monkeypatch.setattr(Change, "event", counted)
    with ExitStack() as stack:
        readers = [stack.enter_context(store.hub.reader(NOTHING)) for _ in range(20)]
        for reader in readers:
            await reader.begin(None)
        for reader in readers:
            await listening(reader)
        await create(store, "t1")
        encoded = set()
        for reader in readers:
            while not (found := await reader.read(LIMIT, 5)):
                pass
            encoded |= {change.encode(event_id) for event_id, change in found}
    assert len(encoded) == worked_out == 1
