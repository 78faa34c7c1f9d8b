"""The change feed: every change once and in order, to be read on behind any event as long as it is held."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.audit import audit
from tests.clockwork import advance
from tests.conftest import OpenPod
from tests.store.wire import a_cleanup, a_run, some_events
from tracker.errors import Invalid, PositionLost, StoreUnavailable
from tracker.models import Event, Target
from tracker.store.feed import EMPTY, OLDEST, Change, Position, written
from tracker.store.keys import Shard
from tracker.store.scripts import together
from tracker.store.server import TURNS, Server
from tracker.store.store import Store

SHARDS = pytest.mark.parametrize("shards", [1, 4])
TASK = Target.task("t1")


async def live_some_lives(store: Store, count: int = 12) -> int:
    """Creates, marks and ends sessions in many ways; how many events that makes."""
    for number in range(count):
        await store.sessions.create(a_run(f"t{number}", f"a{number % 3}"))
        await store.sessions.set_provider_session(Target.task(f"t{number}"), "p")
    for number in range(0, count, 2):
        await store.sessions.delete(Target.task(f"t{number}"))
    return 2 * count + count // 2


async def read(store: Store, after: str | None = None, limit: int = 1000, **fields: Any) -> list[Event]:
    """Reads on until nothing more comes."""
    events: list[Event] = []
    while True:
        page = await store.feed.page(some_events(after=after, limit=limit, **fields))
        events += page["events"]
        if not page["events"]:
            return events
        after = page["next"]


# --- events -----------------------------------------------------------------------------------------------------------


async def test_an_event_has_the_session_as_it_was_right_after_the_change(store: Store) -> None:
    created = (await store.sessions.create(a_run(metadata={"k": "v"}))).session
    await store.sessions.heartbeat(TASK, progress="on it")
    await store.sessions.set_provider_session(TASK, "p")
    noted = await store.sessions.get(TASK)
    await store.sessions.request_stop(TASK)
    asked = await store.sessions.get(TASK)
    await store.sessions.delete(TASK)

    events = await read(store)
    assert [(event["type"], event["reason"], event["session"]) for event in events] == [
        ("session.created", None, created),
        ("session.updated", None, noted),
        ("session.updated", None, asked),
        ("session.ended", "deleted", asked),
    ]
    assert [list(event) for event in events] == [list(Event.__annotations__)] * 4
    assert events[0]["at"] == created["startedAt"]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert len({event["id"] for event in events}) == 4


async def test_each_way_to_end_has_its_reason(store: Store) -> None:
    sessions = store.sessions
    await sessions.create(a_run("replaced"))
    await sessions.create(a_run("replaced", onConflict="replace"))
    await sessions.delete(Target.task("replaced"))
    await sessions.create(a_run("cleaned", "a2"))
    await store.sweeper.cleanup(a_cleanup(agentId="a2"))
    await sessions.create(a_run("expired"))
    await advance(store, 1801)
    await store.sweeper.sweep()
    ended = await read(store, type="session.ended")
    assert [event["reason"] for event in ended] == ["replaced", "deleted", "cleaned", "expired"]


async def test_an_expired_event_tells_what_to_reschedule_and_what_to_resume(store: Store) -> None:
    await store.sessions.create(a_run("t1", runnerSessionId="r", metadata={"branch": "main"}))
    await store.sessions.set_provider_session(TASK, "p-1")
    await store.sessions.heartbeat(TASK, progress="3 of 7")
    last = await store.sessions.get(TASK)
    assert last is not None
    await advance(store, 1801)
    await store.sweeper.sweep()
    (event,) = await read(store, type="session.ended")
    session = event["session"]
    same = session.keys() - {"startedAt", "lastHeartbeatAt", "expiresAt"}
    assert {field: session[field] for field in same} == {field: last[field] for field in same}  # type: ignore[literal-required]
    assert session["expiresAt"] <= event["at"]


# --- pages ------------------------------------------------------------------------------------------------------------


@SHARDS
async def test_an_empty_feed_has_a_position_to_go_on_from(store: Store) -> None:
    page = await store.feed.page(some_events())
    assert page["events"] == []
    await store.sessions.create(a_run())
    events = await read(store, page["next"])
    assert [event["type"] for event in events] == ["session.created"]


@SHARDS
async def test_at_the_end_the_position_stays(store: Store) -> None:
    await live_some_lives(store)
    end = (await store.feed.page(some_events(limit=1000)))["next"]
    page = await store.feed.page(some_events(after=end))
    assert (page["events"], page["next"]) == ([], end)


@SHARDS
@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
async def test_pages_of_any_size_give_every_event_once_and_in_order(store: Store, limit: int) -> None:
    count = await live_some_lives(store)
    everything = await read(store)
    assert len(everything) == count
    assert len({event["id"] for event in everything}) == count
    assert await read(store, limit=limit) == everything
    for number in range(12):
        types = [
            event["type"].removeprefix("session.") for event in everything if event["session"]["taskId"] == f"t{number}"
        ]
        assert types == ["created", "updated", "ended"][: 2 if number % 2 else 3]


@SHARDS
async def test_reading_goes_on_behind_any_event_without_loss_or_repeat(store: Store) -> None:
    await live_some_lives(store)
    everything = await read(store)
    for number, event in enumerate(everything):
        assert await read(store, event["id"], limit=7) == everything[number + 1 :]


@SHARDS
@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"agentId": "a1"}, lambda event: event["session"]["agentId"] == "a1"),
        ({"type": "session.ended"}, lambda event: event["type"] == "session.ended"),
        (
            {"agentId": "a2", "type": "session.updated"},
            lambda event: event["session"]["agentId"] == "a2" and event["type"] == "session.updated",
        ),
        ({"agentId": "nobody"}, lambda event: False),
        ({"agentId": ""}, lambda event: True),
    ],
    ids=["agent", "type", "both", "nobody", "empty"],
)
async def test_filters_leave_out_and_lose_nothing_else(
    store: Store, fields: dict[str, Any], fits: Callable[[Event], bool]
) -> None:
    await live_some_lives(store)
    everything = await read(store)
    expected = [event for event in everything if fits(event)]
    for limit in (1, 3, 1000):
        assert await read(store, limit=limit, **fields) == expected
    for number in range(0, len(everything), 5):
        after = everything[number]["id"]
        assert await read(store, after, **fields) == [event for event in everything[number + 1 :] if fits(event)]


async def test_a_page_without_a_fitting_event_still_goes_on(store: Store) -> None:
    """Or a reader with a rare filter would read the whole feed again each time."""
    await live_some_lives(store)
    last = (await read(store))[-1]
    page = await store.feed.page(some_events(agentId="nobody", limit=2))
    assert (page["events"], page["next"]) == ([], last["id"])


async def test_no_limit_means_a_hundred(store: Store) -> None:
    await asyncio.gather(*(store.sessions.create(a_run(f"t{number}")) for number in range(120)))
    assert len((await store.feed.page(some_events()))["events"]) == 100


@SHARDS
@pytest.mark.parametrize("after", ["0", "", None])
async def test_nothing_and_zero_both_mean_from_the_beginning(store: Store, after: str | None) -> None:
    await live_some_lives(store)
    everything = await read(store)
    assert (await store.feed.page(some_events(after=after, limit=1000)))["events"] == everything


@SHARDS
@pytest.mark.parametrize("count", [1, 3, 29, 30, 1000])
@pytest.mark.parametrize(
    "fields",
    [{}, {"type": "session.ended"}, {"agent_id": "a1"}, {"agent_id": "a2", "type": "session.created"}],
    ids=["all", "type", "agent", "both"],
)
async def test_the_last_events_are_the_end_of_all_and_reading_goes_on_behind_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, count: int, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr("tracker.store.feed.SCAN", 2)
    await live_some_lives(store)
    every = [*map(what, await read(store))]
    wanted = [event["session"] for event in await read(store, **fields)]
    page = await store.feed.page(some_events(last=count, **fields))
    assert [event["session"] for event in page["events"]] == wanted[-count:]
    assert await read(store, page["next"]) == []
    for event in page["events"]:
        behind = every[every.index(what(event)) + 1 :]
        assert [*map(what, await read(store, event["id"]))] == behind


def what(event: Event) -> tuple[str, str]:
    """A session here has one event of each type."""
    return event["session"]["id"], event["type"]


async def test_the_last_of_no_events_is_a_place_to_begin(store: Store) -> None:
    page = await store.feed.page(some_events(last=5))
    assert page["events"] == []
    await live_some_lives(store)
    assert await read(store, page["next"]) == await read(store)


@pytest.mark.settings(feed_length=100)
async def test_the_last_events_of_a_feed_that_was_trimmed(store: Store) -> None:
    for number in range(150):
        await store.sessions.create(a_run(f"t{number}"))
    page = await store.feed.page(some_events(last=3))
    assert [event["session"]["taskId"] for event in page["events"]] == ["t147", "t148", "t149"]


@SHARDS
async def test_readers_follow_while_events_come(store: Store) -> None:
    """Several shards order their events by time: a reader at the end may not pass any over that is yet to come."""
    live = True

    async def write() -> None:
        nonlocal live
        for number in range(150):
            await asyncio.gather(*(store.sessions.create(a_run(f"{number}-{lane}")) for lane in range(4)))
        live = False

    async def follow(limit: int) -> list[str]:
        seen: list[str] = []
        after: str | None = None
        while True:
            over = not live
            page = await store.feed.page(some_events(after=after, limit=limit))
            after = page["next"]
            seen += [event["session"]["id"] for event in page["events"]]
            if over and not page["events"]:
                return seen

    _, *followers = await together([write(), follow(3), follow(50)])
    for seen in followers:
        assert seen is not None
        assert len(seen) == len(set(seen)) == 600
    await audit(store)


# --- many shards ------------------------------------------------------------------------------------------------------


async def fill(store: Store, counts: list[int], *, quiet_every: int = 10**9) -> list[tuple[Position, int]]:
    """Writes so many events into each shard, of moments that overlap; their places in order. Few are of agent quiet."""
    session = (await store.sessions.create(a_run("t1", "busy"))).session
    places: list[tuple[Position, int]] = []
    for shard, count in zip(store.scripts.shards, counts, strict=True):
        await store.scripts.command("DEL", shard.events, shard=shard)
        moments = sorted(random.Random(shard.number).sample(range(1, 3 * max(counts)), count))
        for number, moment in enumerate(moments):
            agent = "quiet" if number % quiet_every == 0 else "busy"
            told = ("type", "session.created", "at", 1, "reason", "", "id", session["id"])
            words = (*told, "agent", agent, "trigger", "t", "started", 1, "due", 2, "ttl", 1)
            await store.scripts.command("XADD", shard.events, f"{moment}-0", *words, shard=shard)
            places.append(((moment, 0), shard.number))
    return sorted(places)


def small(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """So that a few events take many steps."""
    for name, size in ({"SCAN": 8, "LEAST": 2, "AT_HAND": 32, "LOOKED_BACK": 40} | sizes).items():
        monkeypatch.setattr(f"tracker.store.feed.{name}", size)


class Watched:
    """``rows`` that reads of the feed gave, and the ``most`` that one server had under way at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
        self.rows = 0
        self.most = 0
        self._under_way: Counter[Server] = Counter()
        self._scripts = store.scripts
        self._command = store.scripts.command
        monkeypatch.setattr(store.scripts, "command", self._watch)

    async def _watch(self, *words: str | bytes | int, shard: Shard) -> Any:
        server = await self._scripts.servers.holder(shard)
        self._under_way[server] += 1
        self.most = max(self.most, self._under_way[server])
        try:
            rows = await self._command(*words, shard=shard)
        finally:
            self._under_way[server] -= 1
        self.rows += len(rows) if isinstance(rows, list) else 0
        return rows


SKEWS = pytest.mark.parametrize(
    ("shards", "counts"),
    [(4, [50, 50, 50, 50]), (4, [0, 200, 3, 0]), (5, [1, 90, 2, 100, 0])],
    ids=["even", "one", "two"],
)


@SKEWS
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_however_many_steps_it_takes_events_come_once_and_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch, counts: list[int], limit: int
) -> None:
    places = await fill(store, counts, quiet_every=9)
    small(monkeypatch)
    # Before a shard's first event is its place what comes right before that.
    firsts = {shard: (position[0] - 1, 2**64 - 1) for position, shard in reversed(places)}
    positions = [firsts.get(shard, EMPTY) for shard in range(len(counts))]
    ids = []
    for position, shard in places:
        positions[shard] = position
        ids.append(written(positions))
    assert [event["id"] for event in await read(store, limit=limit)] == ids
    everything = await read(store)
    quiet = [event for event in everything if event["session"]["agentId"] == "quiet"]
    assert await read(store, limit=limit, agentId="quiet") == quiet
    middle = everything[len(ids) // 2]
    assert await read(store, middle["id"], limit=limit) == everything[len(ids) // 2 + 1 :]


@SKEWS
async def test_a_filter_that_nothing_fits_reads_each_event_about_once_however_many_shards_there_are(
    store: Store, monkeypatch: pytest.MonkeyPatch, counts: list[int]
) -> None:
    await fill(store, counts)
    small(monkeypatch)
    watched = Watched(monkeypatch, store)
    assert (await store.feed.page(some_events(agentId="nobody")))["events"] == []
    # Each step but a shard's first also reads the entry that it goes on behind.
    assert sum(counts) <= watched.rows <= 2 * sum(counts)


@pytest.mark.parametrize("shards", [16])
async def test_a_page_reads_little_more_than_it_tells_however_many_shards_there_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, [40] * 16)
    watched = Watched(monkeypatch, store)
    assert len((await store.feed.page(some_events(limit=100)))["events"]) == 100
    assert watched.rows <= 400


@SKEWS
async def test_looking_back_ends_after_so_many_events_of_all_shards(
    store: Store, monkeypatch: pytest.MonkeyPatch, counts: list[int]
) -> None:
    await fill(store, counts)
    small(monkeypatch)
    watched = Watched(monkeypatch, store)
    page = await store.feed.page(some_events(last=3, agentId="nobody"))
    assert page["events"] == []
    assert watched.rows <= 3 * 40
    monkeypatch.undo()
    assert await read(store, page["next"]) == []


@pytest.mark.parametrize("shards", [32])
async def test_of_a_server_s_connections_reading_takes_a_few_only(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are for pulses and sweeps: a pod that cannot pulse would take it for an outage."""
    await fill(store, [3] * 32)
    watched = Watched(monkeypatch, store)
    queries = [some_events(), some_events(agentId="nobody"), some_events(last=5), some_events(last=5, agentId="nobody")]
    await together([*map(store.feed.page, queries), store.feed.present(), store.feed.present()])
    assert 1 < watched.most <= TURNS


@pytest.mark.settings(store_timeout_seconds=0.2)
async def test_waiting_for_ones_turn_to_read_counts_towards_the_deadline(store: Store) -> None:
    await store.sessions.create(a_run())
    server = await store.scripts.servers.holder(store.scripts.shards[0])
    for _ in range(TURNS):
        await server.turns.acquire()
    with pytest.raises(StoreUnavailable):
        await store.feed.page(some_events(agentId="nobody"))
    for _ in range(TURNS):
        server.turns.release()
    assert len((await store.feed.page(some_events()))["events"]) == 1


@pytest.mark.parametrize("shards", [4])
async def test_a_position_that_is_lost_between_two_steps_loses_nothing_of_the_other_shards(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = await fill(store, [50, 50, 50, 50])
    small(monkeypatch, SCAN=64)
    positions = [OLDEST] * 4
    await store.feed.scan(positions, some_events(), 20)
    before = list(positions)
    step = store.feed.read

    async def trimmed(*arguments: Any) -> list[list[Change] | None]:
        batches = await step(*arguments)
        shard = store.scripts.shards[2]
        await store.scripts.command("XTRIM", shard.events, "MAXLEN", 1, shard=shard)
        return batches

    monkeypatch.setattr(store.feed, "read", trimmed)
    with pytest.raises(PositionLost) as lost:
        await store.feed.scan(positions, some_events(), 100)
    monkeypatch.undo()
    assert positions == before
    assert lost.value.onward == written([*before[:2], OLDEST, before[3]])
    rest = [place for place in places[20:] if place[1] != 2] + [place for place in places if place[1] == 2][-1:]
    assert len(await read(store, lost.value.onward)) == len(rest)


@pytest.mark.parametrize("shards", [2])
@pytest.mark.parametrize("by", ["page", "event", "last"])
async def test_a_shard_that_a_reader_has_not_come_to_keeps_its_place_all_the_same(store: Store, by: str) -> None:
    """What was its oldest then is not what is later, once the feed is trimmed."""
    places = await fill(store, [20, 20])
    first = places[0][1]
    count = next(number for number, (_, shard) in enumerate(places) if shard != first)
    page = await store.feed.page(some_events(last=40) if by == "last" else some_events(limit=count))
    place = page["next"] if by == "page" else page["events"][0]["id"]
    everything = await read(store)
    passed = [event["id"] for event in everything].index(place)
    assert await read(store, place) == everything[passed + 1 :]
    other = store.scripts.shards[1 - first]
    await store.scripts.command("XTRIM", other.events, "MAXLEN", 5, shard=other)
    with pytest.raises(PositionLost):
        await read(store, place)


# --- positions --------------------------------------------------------------------------------------------------------


@SHARDS
@pytest.mark.parametrize(
    "after",
    [
        "x",
        "1",
        "1-",
        "-1",
        "1-1-1",
        "1-1 ",
        " 1-1",
        "1-1\n",
        "1_1",
        "-1--1",
        "$",
        "+",
        "-",
        "*",
        "1.1",
        "1-1..1-1",
        "1-1." * 3 + "1-1.",
        ".".join(["1-1"] * 5),
        "99999999999999999999-0",
        "0-99999999999999999999",
        "18446744073709551616-0",
        "\u0661-\u0661",
        "\0",
        "🦄",
    ],
)
async def test_what_is_no_event_id_is_invalid(store: Store, after: str) -> None:
    await live_some_lives(store)
    with pytest.raises(Invalid) as refused:
        await store.feed.page(some_events(after=after))
    assert [detail["field"] for detail in refused.value.details] == ["after"]


@SHARDS
async def test_an_id_of_a_store_with_more_shards_is_invalid(store: Store) -> None:
    """Of one with fewer it may be from before a reshard: see test_reshard.py."""
    foreign = ".".join(["1700000000000-0"] * (len(store.scripts.shards) + 1))
    with pytest.raises(Invalid):
        await store.feed.page(some_events(after=foreign))


@SHARDS
@pytest.mark.parametrize("position", ["1-1", "18446744073709551615-18446744073709551615", "99999999999999-0"])
async def test_a_position_that_never_was_is_lost(store: Store, position: str) -> None:
    await live_some_lives(store)
    after = ".".join([position] * len(store.scripts.shards))
    with pytest.raises(PositionLost):
        await store.feed.page(some_events(after=after))


@SHARDS
async def test_a_position_that_was_trimmed_away_is_lost_and_one_still_held_is_not(store: Store) -> None:
    await live_some_lives(store, 40)
    everything = await read(store)
    for shard in store.scripts.shards:
        await store.scripts.command("XTRIM", shard.events, "MAXLEN", 5)
    held = await read(store)
    assert len(held) == 5 * len(store.scripts.shards)
    if len(store.scripts.shards) == 1:
        for number, event in enumerate(held):
            assert await read(store, event["id"]) == held[number + 1 :]
        for event in everything[:-6]:
            with pytest.raises(PositionLost):
                await store.feed.page(some_events(after=event["id"]))
        # Behind the last that is gone nothing is missing, and where the next is of the same moment that is known.
        with suppress(PositionLost):
            assert await read(store, everything[-6]["id"]) == held
    else:
        for event in everything[:20]:
            with pytest.raises(PositionLost):
                await store.feed.page(some_events(after=event["id"]))


@SHARDS
async def test_a_position_in_an_emptied_store_is_lost(store: Store) -> None:
    await live_some_lives(store)
    after = (await read(store))[-1]["id"]
    for shard in store.scripts.shards:
        await store.scripts.command("DEL", shard.events)
    with pytest.raises(PositionLost):
        await store.feed.page(some_events(after=after))


@pytest.mark.settings(feed_length=100)
async def test_what_was_trimmed_is_known_also_where_more_is_kept_since(store: Store, open_pod: OpenPod) -> None:
    empty = (await store.feed.page(some_events()))["next"]
    for batch in range(3):
        await asyncio.gather(*(store.sessions.create(a_run(f"{batch}-{number}")) for number in range(200)))
    told = await store.scripts.command("XINFO", "STREAM", store.scripts.shards[0].events)
    if b"entries-added" not in told:
        pytest.skip("Redis before 7.0 does not know")
    async with open_pod(feed_length=100_000) as pod:
        with pytest.raises(PositionLost):
            await pod.feed.page(some_events(after=empty))
        assert len(await read(pod)) < 600


@pytest.mark.settings(feed_length=100)
async def test_the_feed_keeps_its_newest_events_and_little_more(store: Store) -> None:
    """Redis trims whole nodes of a hundred entries."""
    for batch in range(4):
        await asyncio.gather(*(store.sessions.create(a_run(f"{batch}-{number}")) for number in range(200)))
    events = await read(store)
    assert 100 <= len(events) <= 300
    created = {event["session"]["taskId"] for event in events}
    assert {f"3-{number}" for number in range(100, 200)} <= created


@pytest.mark.parametrize("shards", [4])
async def test_a_shard_without_events_does_not_hold_others_up(store: Store) -> None:
    session = (await store.sessions.create(a_run())).session
    (event,) = await read(store)
    assert event["session"] == session
    await store.sessions.delete(TASK)
    (later,) = await read(store, event["id"])
    assert later["type"] == "session.ended"
    # The shards that were empty are read from their beginning, also when something has come there meanwhile.
    for number in range(20):
        await store.sessions.create(a_run(f"later{number}"))
    assert len(await read(store, event["id"])) == 21
