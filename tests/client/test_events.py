"""Following the feed: the format as the standard has it, resuming by itself, pages where there is no stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.client.conftest import Driver, OpenClient, answering
from tracker.client import Invalid, PositionLost, UnexpectedAnswer
from tracker.client.events import LONGEST_LINE_BYTES, Follower, Message, StreamParser

# --- the parser -------------------------------------------------------------------------------------------------------

STREAM = (
    "\ufeffid: 1\nevent: a\ndata: one\ndata:  two\n\n:comment\nid: 2\n\nretry: 1500\nretry: x\nwhat: ever\ndata\n\n"
)
MESSAGES = [Message("1", "a", "one\n two"), Message("2", "message", None), Message("2", "message", "")]


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_is_read_however_it_is_cut_and_its_lines_end(newline: str, size: int) -> None:
    raw = STREAM.replace("\n", newline).encode()
    parser = StreamParser()
    found = [message for at in range(0, len(raw), size) for message in parser.feed(raw[at : at + size])]
    assert found == MESSAGES
    assert parser.retry_seconds == 1.5


def test_an_event_is_not_one_before_it_is_complete() -> None:
    parser = StreamParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"") == []
    assert parser.feed(b"\n") == [Message(None, "message", "x")]


def test_an_id_with_nul_is_ignored_and_text_that_is_none_is_replaced() -> None:
    assert StreamParser().feed(b"id: 1\nid: \0\ndata: \xff\n\n") == [Message("1", "message", "\ufffd")]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    parser = StreamParser()
    with pytest.raises(UnexpectedAnswer):
        parser.feed(b"x" * (LONGEST_LINE_BYTES + 1))


# --- the place in the feed --------------------------------------------------------------------------------------------


def test_the_place_moves_with_each_event_that_is_taken_and_past_those_filtered_out() -> None:
    follower = Follower("0", None, None)
    taken = follower.taken(follower.feed(b'id: 1-0\nevent: session.ended\ndata: {"id": "1-0"}\n\nid: 9-0\n\n'))
    assert next(taken)["id"] == "1-0"
    assert follower.position == "1-0"
    assert list(taken) == []
    assert follower.position == "9-0"
    assert follower.stream_call().headers["Last-Event-ID"] == "9-0"


def test_what_is_no_event_of_the_tracker_is_passed_over() -> None:
    follower = Follower("0", None, None)
    steps = follower.feed(
        b'event: later\ndata: {"x": 1}\n\ndata: hello\n\nevent: session.moved\ndata: {"id": "2-0"}\n\n'
    )
    assert [step.event["id"] for step in steps if step.event] == ["2-0"]


RESET = b'id: 7-0\nevent: reset\ndata: {"id": "7-0", "error": "trimmed"}\n\n'


def test_a_reset_says_where_to_go_on() -> None:
    with pytest.raises(PositionLost) as lost:
        list(Follower("1-0", None, None).feed(RESET))
    assert (lost.value.onward, str(lost.value)) == ("7-0", "trimmed")


def test_what_comes_before_a_reset_is_given_out_first() -> None:
    follower = Follower("0", None, None)
    taken = follower.taken(follower.feed(written(1) + written(2) + RESET))
    assert [next(taken)["id"], next(taken)["id"]] == ["1-0", "2-0"]
    with pytest.raises(PositionLost):
        next(taken)
    assert follower.position == "2-0"


def test_data_that_is_no_object_is_no_answer() -> None:
    with pytest.raises(UnexpectedAnswer):
        list(Follower("0", None, None).feed(b"event: session.ended\ndata: [1]\n\n"))


# --- a scripted server ------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def written(number: int) -> bytes:
    return b'id: %d-0\nevent: session.ended\ndata: {"id": "%d-0", "n": %d}\n\n' % (number, number, number)


@asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Gives each connection the next answer and closes it, the last one again and again; what was asked."""
    asked: list[bytes] = []

    async def tell(head: bytes) -> AsyncIterator[bytes]:
        asked.append(head)
        yield answers[min(len(asked), len(answers)) - 1]

    async with answering(tell) as url:
        yield url, asked


def page(events: list[int], after: str) -> bytes:
    body = json.dumps({"events": [{"id": f"{n}-0", "n": n} for n in events], "next": after}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + body


BUSY = b'HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nConnection: close\r\n\r\n{"error": "busy"}'


async def test_a_stream_that_breaks_goes_on_behind_the_last_event(open_client: OpenClient) -> None:
    """However it breaks: between events, within one, refused for a while."""
    first = HEAD + b"retry: 10\n" + written(1) + written(2)
    async with scripted(first, HEAD + written(3) + b"id: 4-0\nda", BUSY, b"", HEAD + written(4)) as (url, asked):
        events = await open_client(url).events(4)
    assert [event["n"] for event in events] == [1, 2, 3, 4]  # type: ignore[typeddict-item]
    resumed = [head.lower().partition(b"last-event-id: ")[2].partition(b"\r\n")[0] for head in asked]
    assert resumed == [b"0", b"2-0", b"3-0", b"3-0", b"3-0"]


async def test_filters_are_asked_for(open_client: OpenClient) -> None:
    async with scripted(HEAD + written(1)) as (url, asked):
        await open_client(url).events(1, type="session.ended", agent_id="a/b", after="5-0")
    assert b"after=5-0&agentId=a%2Fb&type=session.ended" in asked[0]
    assert b"accept: text/event-stream" in asked[0].lower()


async def test_a_lost_position_is_raised(open_client: OpenClient) -> None:
    gone = b'HTTP/1.1 410 Gone\r\nConnection: close\r\n\r\n{"error": "gone"}'
    for answer, onward in ((gone, "0"), (HEAD + RESET, "7-0")):
        async with scripted(answer) as (url, _):
            with pytest.raises(PositionLost) as lost:
                await open_client(url).events(1, after="1-0")
            assert lost.value.onward == onward


NOT_ACCEPTABLE = b'HTTP/1.1 406 No\r\nConnection: close\r\n\r\n{"error": "no streams"}'


@pytest.mark.parametrize("refusal", [NOT_ACCEPTABLE, page([], "0")])
async def test_without_a_stream_pages_are_read(open_client: OpenClient, refusal: bytes) -> None:
    async with scripted(refusal, page([1, 2], "2-0"), BUSY, page([3], "3-0")) as (url, asked):
        events = await open_client(url).events(3)
    assert [event["n"] for event in events] == [1, 2, 3]  # type: ignore[typeddict-item]
    assert b"after=2-0" in asked[3]
    assert b"wait=" in asked[3]


async def test_without_a_stream_what_is_yet_to_come_is_behind_the_last_page(open_client: OpenClient) -> None:
    pages = [page([1, 2], "2-0"), page([], "2-0"), page([3], "3-0")]
    async with scripted(NOT_ACCEPTABLE, *pages) as (url, _):
        events = await open_client(url).events(1, after=None)
    assert [event["n"] for event in events] == [3]  # type: ignore[typeddict-item]


# --- the real server --------------------------------------------------------------------------------------------------


async def test_the_feed_is_followed_from_its_start_and_as_it_grows(driver: Driver) -> None:
    first = await _life(driver, "t1")
    following = asyncio.create_task(driver.events(4))
    second = await _life(driver, "t2")
    told = [(event["type"], event["session"]["id"]) for event in await asyncio.wait_for(following, 60)]
    assert told == [(kind, one) for one in (first, second) for kind in ("session.created", "session.ended")]


async def test_the_feed_is_followed_from_a_place_and_filtered(driver: Driver) -> None:
    for task in ("t1", "t2", "t3"):
        await _life(driver, task)
    ends = await driver.events(3, type="session.ended")
    assert [event["session"]["taskId"] for event in ends] == ["t1", "t2", "t3"]
    assert await driver.events(2, type="session.ended", after=ends[0]["id"]) == ends[1:]


async def test_a_place_that_the_feed_does_not_hold_is_lost_and_what_is_none_is_invalid(driver: Driver) -> None:
    await _life(driver, "t1")
    with pytest.raises(PositionLost):
        await driver.events(1, after="1-1")
    with pytest.raises(Invalid):
        await driver.events(1, after="nonsense")


async def _life(driver: Driver, task_id: str) -> str:
    made = await driver.call("create_session", agent_id="a", trigger_type="t", task_id=task_id)
    await driver.call("delete_by_task", task_id)
    session_id: str = made["session"]["id"]
    return session_id
