"""The change feed as a stream, and as a page that waits: over real sockets, to clients that behave and that do not."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.api.conftest import Api, Json
from tests.patience import until
from tests.redis_server import running_redis
from tests.streams import PATH, PATIENCE_SECONDS, Dispatched, Ended, Stream, abort, request
from tracker.api import sse
from tracker.api.app import create_app
from tracker.settings import Settings
from tracker.store.connection import POOL_CONNECTIONS
from tracker.store.hub import QUEUE, Hub

SHARDS = pytest.mark.parametrize("shards", [1, 4])
AUTHORIZED = {"Authorization": "Bearer r-key"}


class Served(Api):
    """The application behind a socket of this process."""

    def __init__(self, client: httpx.AsyncClient, server: uvicorn.Server, url: str) -> None:
        super().__init__(client, server.lifespan.state["store"])
        self.server = server
        self.url = url

    @property
    def hub(self) -> Hub:
        return self.store.hub

    def stream(self, event_id: str = "", **query: Any) -> Stream:
        return Stream.behind(self.url, event_id, **query)

    async def many(self, count: int, **fields: Any) -> list[str]:
        """Creates sessions, some at a time; their ids."""
        lanes = asyncio.Semaphore(16)

        async def one() -> str:
            async with lanes:
                return str((await self.create(**fields))["id"])

        return await asyncio.gather(*(one() for _ in range(count)))

    async def left(self) -> bool:
        return self.hub.readers == 0


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Served]:
    config = uvicorn.Config(create_app(settings), log_config=None, ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)

    async def started() -> bool:
        return server.started or task.done()

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(started)
            limits = httpx.Limits(max_connections=32)
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
                yield Served(client, server, url)
        finally:
            server.should_exit = True
            await task


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[Served]:
    async with serving(settings) as served:
        yield served


def ids(events: list[Dispatched]) -> list[str]:
    return [event.data["session"]["id"] for event in events]


# --- what comes -------------------------------------------------------------------------------------------------------


@SHARDS
async def test_a_stream_has_the_events_of_the_pages_one_line_each(served: Served) -> None:
    await served.create(taskId="t1", metadata={"line": "a\r\nb\u2028c\0"}, taskDescription="data: x\n\nid: 1\n\n")
    async with served.stream(after="0") as stream:
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
        await served.put("/provider-session/t1", json={"providerSessionId": "p"})
        await served.delete("/by-task/t1")
        events = await stream.take(3)
        assert stream.retry is not None
        assert 500 <= stream.retry <= 5000
    assert [(event.id, event.type) for event in events] == [(event.data["id"], event.data["type"]) for event in events]
    # With several shards an id has the reader's place in each of them: not everybody's ways lead through the same ones.
    some = len(served.store.scripts.shards) > 1
    for event, told in zip(events, await served.events(), strict=True):
        assert list(event.data) == list(told)
        assert event.data == ({**told, "id": event.id} if some else told)


@SHARDS
async def test_a_stream_without_a_position_begins_now(served: Served) -> None:
    await served.create()
    async with served.stream() as stream:
        await stream.begun()
        session = await served.create()
        assert ids([await stream.next()]) == [session["id"]]


@SHARDS
@pytest.mark.parametrize("early", [0, 3])
async def test_who_leaves_before_the_first_event_can_go_on_without_loss(served: Served, early: int) -> None:
    """A stream tells first where it begins, without making an event of it."""
    await served.many(early)
    async with served.stream() as stream:
        position = (await stream.begun()).last_event_id
    made = await served.many(5)
    async with served.stream(position) as stream:
        assert sorted(ids(await stream.take(5))) == sorted(made)


@SHARDS
async def test_a_stream_goes_on_behind_any_event(served: Served) -> None:
    await served.many(10)
    events = await served.events()
    for number in range(9):
        for stream in (served.stream(events[number]["id"]), served.stream(after=events[number]["id"])):
            async with stream:
                assert [event.data for event in await stream.take(9 - number)] == events[number + 1 :]


async def test_what_a_browser_says_when_it_reconnects_goes_before_the_position_of_its_url(served: Served) -> None:
    made = await served.many(3)
    events = await served.events()
    async with served.stream(events[1]["id"], after="0") as stream:
        assert ids([await stream.next()]) == ids_of(events[2:])
    assert sorted(made) == sorted(ids_of(events))


def ids_of(events: list[Json]) -> list[str]:
    return [event["session"]["id"] for event in events]


@SHARDS
async def test_filters_hold_for_what_was_and_what_comes(served: Served) -> None:
    async with (
        served.stream(after="0", agentId="b") as of_agent,
        served.stream(after="0", type="session.ended") as of_type,
    ):
        for number in range(3):
            await served.create(agentId="a", taskId=f"a{number}")
            await served.create(agentId="b", taskId=f"b{number}")
            await served.delete(f"/by-task/a{number}")
        assert {event.data["session"]["taskId"] for event in await of_agent.take(3)} == {"b0", "b1", "b2"}
        assert {event.data["session"]["taskId"] for event in await of_type.take(3)} == {"a0", "a1", "a2"}


# --- positions that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["x", "1", "1-1.1-1", "1-1\u00e9", "-", "99999999999999999999-0"])
async def test_what_is_no_event_id_is_refused(served: Served, bad: str) -> None:
    for stream, field in ((served.stream(bad), "Last-Event-ID"), (served.stream(after=bad), "after")):
        async with stream:
            assert stream.status == 400
            assert (await stream.body())["details"][0]["field"] == field
    for headers in ({"Accept": "text/event-stream"}, {}):
        refused = await served.get("/events", headers={**headers, "Last-Event-ID": bad.encode()})
        assert refused.status_code == 400
        assert refused.json()["details"][0]["field"] == "Last-Event-ID"
    assert served.hub.readers == 0


async def test_a_repeated_last_event_id_is_refused(served: Served) -> None:
    twice = httpx.Headers([("Last-Event-ID", "1-1"), ("Last-Event-ID", "1-2")])
    assert (await served.get("/events", headers=twice)).status_code == 400


async def test_a_page_takes_the_header_too_but_its_parameter_goes_first(served: Served) -> None:
    await served.many(3)
    events = await served.events()
    header = {"Last-Event-ID": events[0]["id"]}
    assert (await served.get("/events", headers=header)).json()["events"] == events[1:]
    both = await served.get("/events", headers=header, params={"after": events[1]["id"]})
    assert both.json()["events"] == events[2:]


@SHARDS
@pytest.mark.settings(feed_length=100)
async def test_a_position_that_is_gone_is_told_of_and_the_stream_goes_on_with_the_oldest_event(served: Served) -> None:
    shards = len(served.store.scripts.shards)
    await served.many(1)
    (first,) = await served.events()
    await served.many(220 * shards)
    held = await served.events()
    assert first not in held
    for stream in (served.stream(first["id"]), served.stream("1-1" + ".1-1" * (shards - 1))):
        async with stream:
            reset = await stream.next()
            assert (reset.type, reset.id) == ("reset", reset.data["id"])
            assert list(reset.data) == ["id", "error"]
            assert [event.data for event in await stream.take(5)] == held[:5]
    async with served.stream(reset.id) as stream:
        assert (await stream.next()).data == held[0]
    assert served.hub.resets == 2


async def test_an_emptied_store_is_told_of_in_the_middle_of_a_stream(served: Served) -> None:
    await served.many(2)
    async with served.stream() as stream:
        await stream.begun()
        await served.store.scripts.command("DEL", served.store.scripts.shards[0].events)
        (made,) = await served.many(1)
        assert (await stream.next()).type == "reset"
        assert ids([await stream.next()]) == [made]


# --- silence ----------------------------------------------------------------------------------------------------------


@SHARDS
async def test_in_silence_comments_come_and_with_them_the_place_in_the_feed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a filter that fits nothing the place moves on as well: it must not be lost one day."""
    assert sse.KEEP_ALIVE_SECONDS < 15
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    async with served.stream(agentId="nobody") as stream:
        await stream.begun()
        begin = stream.last_event_id
        await stream.comment()
        assert stream.last_event_id == begin
        await served.many(3)
        last = (await served.get("/events")).json()["next"]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while stream.last_event_id != last:
                await stream.comment()
        await stream.comment()
    async with served.stream(last) as stream:
        made = await served.many(1)
        assert ids([await stream.next()]) == made


@pytest.mark.parametrize("behind", [False, True], ids=["follows", "lags"])
async def test_an_outage_leaves_the_stream_open_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """Whether it waits for the hub when the store goes away, or has to read pages of its own."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.1)
    with running_redis(tmp_path) as server:
        async with serving(Settings(store_url=server.url, store_timeout_seconds=0.5)) as served:
            (before,) = await served.many(1)
            async with served.stream(after="0") as stream:
                assert ids([await stream.next()]) == [before]
                server.freeze()
                assert (await served.get("/events")).status_code == 503
                for query in ({}, {"after": "0"}):
                    refused = await served.get("/events", params=query, headers={"Accept": "text/event-stream"})
                    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                if behind:
                    (reader,) = served.hub._readers
                    reader.deafen()
                for _ in range(4):  # long enough for several attempts to fail
                    await stream.comment()
                server.thaw()

                async def back() -> bool:
                    return (await served.post(json={"agentId": "a", "triggerType": "t"})).status_code == 201

                await until(back)
                expected = ids_of(await served.events())[1:]
                assert ids(await stream.take(len(expected))) == expected
            assert served.hub.resets == 0


# --- pages that wait --------------------------------------------------------------------------------------------------


@SHARDS
async def test_a_page_waits_for_its_first_event_and_no_longer(served: Served) -> None:
    await served.many(2)
    page = (await served.get("/events", params={"wait": 60})).json()
    assert len(page["events"]) == 2, "what is there need not be waited for"
    waiting = asyncio.create_task(served.get("/events", params={"wait": 60, "after": page["next"]}))
    await until(lambda: readers(served, 1))
    (made,) = await served.many(1)
    answer = (await waiting).json()
    assert list(answer) == ["events", "next"]
    assert ids_of(answer["events"]) == [made]
    assert answer["next"] == answer["events"][-1]["id"]
    assert served.hub.readers == 0


async def readers(served: Served, count: int) -> bool:
    return served.hub.readers == count


async def test_a_page_that_waited_in_vain_is_empty_and_leads_on(served: Served) -> None:
    """Past what did not fit, too."""
    waiting = asyncio.create_task(served.get("/events", params={"wait": 1, "agentId": "nobody"}))
    await until(lambda: readers(served, 1))
    await served.many(3)
    page = (await waiting).json()
    assert page == {"events": [], "next": (await served.get("/events")).json()["next"]}


@pytest.mark.parametrize("wait", ["61", "-1", "1.5", "x"])
async def test_a_page_waits_for_up_to_a_minute(served: Served, wait: str) -> None:
    refused = await served.get("/events", params={"wait": wait})
    assert refused.status_code == 400
    assert refused.json()["details"][0]["field"] == "wait"


async def test_a_waiting_page_keeps_to_filter_and_limit(served: Served) -> None:
    query = {"wait": 60, "agentId": "b", "limit": 1}
    waiting = asyncio.create_task(served.get("/events", params=query))
    await until(lambda: readers(served, 1))
    await served.many(1, agentId="a")
    await served.many(2, agentId="b")
    page = (await waiting).json()
    assert [event["session"]["agentId"] for event in page["events"]] == ["b"]
    rest = (await served.get("/events", params={**query, "after": page["next"]})).json()
    assert [event["session"]["agentId"] for event in rest["events"]] == ["b"]
    assert rest["events"] != page["events"]


# --- who may read, and how many ---------------------------------------------------------------------------------------


@pytest.mark.settings(read_api_keys="r-key")
async def test_a_stream_wants_a_key(served: Served) -> None:
    for headers, status in (({}, 401), ({"Authorization": "Bearer x"}, 401), (AUTHORIZED, 200)):
        async with Stream(served.url, headers=headers) as stream:
            assert stream.status == status
    answer = await served.post("/events", headers=AUTHORIZED)
    assert answer.status_code == 403


@pytest.mark.settings(cors_origins="https://a.example")
async def test_a_page_of_an_allowed_origin_may_read_it(served: Served) -> None:
    async with Stream(served.url, headers={"Origin": "https://a.example"}) as stream:
        assert stream.headers["access-control-allow-origin"] == "https://a.example"
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "Last-Event-ID, Authorization"}
    preflight = await served.client.options(PATH, headers={"Origin": "https://a.example", **asked})
    assert preflight.status_code == 200


async def test_head_tells_of_the_stream_and_takes_no_place(served: Served) -> None:
    told = await served.call("HEAD", "/events", headers={"Accept": "text/event-stream"})
    assert (told.status_code, told.headers["content-type"], told.content) == (200, "text/event-stream", b"")
    assert served.hub.readers == 0
    bad = {"Accept": "text/event-stream", "Last-Event-ID": "x"}
    assert (await served.call("HEAD", "/events", headers=bad)).status_code == 400


@pytest.mark.settings(max_streams=2)
async def test_one_reader_too_many_is_sent_away_until_there_is_room(served: Served) -> None:
    async with served.stream() as first, served.stream() as second:
        await first.begun()
        await second.begun()
        async with served.stream() as third:
            assert (third.status, third.headers["retry-after"]) == (503, "1")
            assert list(await third.body()) == ["error"]
        assert (await served.get("/events", params={"wait": 1})).status_code == 503
        assert (await served.get("/events")).status_code == 200, "a page that does not wait takes no place"
    await until(served.left)
    async with served.stream() as stream:
        assert stream.status == 200


async def test_a_slow_reader_holds_nobody_up_and_loses_nothing(served: Served) -> None:
    """It does not read at all while more comes than all buffers on the way hold."""
    text = "x" * 16_000
    count = QUEUE + 600
    async with served.stream() as slow, served.stream() as fast:
        await slow.begun()
        await fast.begun()
        reading = asyncio.create_task(fast.take(count))
        made = await served.many(count, taskDescription=text)
        read = await reading
        assert sorted(ids(read)) == sorted(made)
        assert served.hub.lagged == 1
        assert await slow.take(count) == read
    assert served.hub.resets == 0


async def test_a_thousand_readers_get_every_event(served: Served) -> None:
    async with AsyncExitStack() as stack:
        streams = [served.stream(after="0") for _ in range(1000)]
        for start in range(0, 1000, 50):
            await asyncio.gather(*(stack.enter_async_context(stream) for stream in streams[start : start + 50]))
        await asyncio.gather(*(stream.begun() for stream in streams))
        assert served.hub.readers == 1000
        made = await served.many(5)
        for read in await asyncio.gather(*(stream.take(5) for stream in streams)):
            assert sorted(ids(read)) == sorted(made)
        assert (served.hub.lagged, served.hub.resets) == (0, 0)
    await until(served.left)


# --- clients that break off -------------------------------------------------------------------------------------------

RESETS = 1000


async def _connected(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    """Said nothing yet."""


async def _half_asked(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    writer.write(request(served.url)[:40])


async def _asked(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    """Gone before the first byte of an answer, or about then."""
    writer.write(request(served.url))
    for _ in range(random.randrange(6)):
        await asyncio.sleep(0)


async def _answered(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    writer.write(request(served.url))
    await reader.readuntil(b"\r\n\r\n")


async def _in_the_middle(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    writer.write(request(served.url, {"after": "0"}))
    await reader.readuntil(b"event: ")


async def _clogged(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    """Has read nothing for so long that the server waits for it."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(request(served.url, {"after": "0"}))
    await asyncio.sleep(0.01)


async def _waiting(served: Served, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    writer.write(request(served.url, {"wait": "60", "agentId": "nobody"}, {"Accept": "*/*"}))
    for _ in range(random.randrange(20)):
        await asyncio.sleep(0)


STAGES: list[Callable[[Served, asyncio.StreamWriter, asyncio.StreamReader], Coroutine[Any, Any, None]]] = [
    _connected,
    _half_asked,
    _asked,
    _answered,
    _in_the_middle,
    _clogged,
    _waiting,
]


async def test_a_thousand_resets_at_every_stage_leak_nothing(served: Served) -> None:
    await served.many(40, taskDescription="x" * 16_000)  # some 600 KB: more than a socket takes
    place = served.url.removeprefix("http://").split(":")

    async def connections() -> int:
        if served.store.embedded:
            return 0
        return len(await served.store.scripts.client.client_list())

    async with served.stream() as witness:
        await witness.begun()
        connected = await connections()
        tasks = len(asyncio.all_tasks())

        async def one(number: int) -> None:
            reader, writer = await asyncio.open_connection(*place)
            try:
                await STAGES[number % len(STAGES)](served, writer, reader)
            finally:
                abort(writer)

        for start in range(0, RESETS, 50):
            await asyncio.gather(*(one(number) for number in range(start, start + 50)))
            await served.create()

        await served.client.aclose()  # its idle connections would hide as many that leaked

        async def as_before() -> bool:
            """The witness alone is left. Tasks are waited for as well: the hub's own come and go, leaked ones stay."""
            only = served.hub.readers == len(served.server.server_state.connections) == 1
            return only and len(asyncio.all_tasks()) <= tasks

        await until(as_before)
        assert await connections() <= connected + POOL_CONNECTIONS, "no more than the pool may have, whoever comes"
        assert len(await witness.take(RESETS // 50)) == RESETS // 50
    await until(served.left)


async def test_a_page_that_takes_long_is_given_up_when_its_client_leaves(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one who asks for what nothing fits, and leaves, would keep the pod reading for nobody."""
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def read(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    monkeypatch.setattr(served.store.feed, "read", read)
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(request(served.url, {"agentId": "nobody"}, {"Accept": "*/*"}))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await begun.wait()
        abort(writer)
        await given_up.wait()
    monkeypatch.undo()
    assert (await served.get("/events")).json()["events"] == []


async def test_a_reader_that_is_cancelled_gives_its_place_back(served: Served) -> None:
    """As uvicorn does when a stop takes too long."""
    async with served.stream() as stream:
        await stream.begun()
        (task,) = served.server.server_state.tasks
        task.cancel()
        await until(served.left)


async def test_told_to_stop_streams_end_in_order_and_pages_answer(served: Served) -> None:
    async with served.stream() as stream:
        await stream.begun()
        waiting = asyncio.create_task(served.get("/events", params={"wait": 60}))
        await until(lambda: readers(served, 2))
        served.hub.stop()
        with pytest.raises(Ended):
            await stream.next()
        assert (await waiting).json()["events"] == []
    async with served.stream() as late:
        with pytest.raises(Ended):
            await late.next()
