"""Following the change feed: where one is in it, and what comes next. Nothing is sent here.

A stream of server-sent events where the server has one, else pages. The parser is our own: it is a page, it takes bytes
as they come, and so the threaded and the async client share it.
Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, cast

import httpx

from tracker.client import calls
from tracker.client.calls import Call
from tracker.client.errors import PositionLost, TrackerClientError, Unavailable, UnexpectedAnswer
from tracker.client.retries import backoff
from tracker.models import Event, EventPage, EventType

__all__ = ["Follower", "Message", "Page", "StreamParser"]

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 40.0
"""A stream says something at least every 15 s; one that is silent for longer is broken, whatever TCP thinks."""
WAIT_SECONDS = 20
POLL_SECONDS = 1.0
"""Between two looks at a server that does not hold back empty pages."""
LONGEST_LINE_BYTES = 4 * 1024 * 1024

NEWLINE = re.compile(rb"\r\n|\n|\r")


class Message(NamedTuple):
    """One server-sent event. ``id`` is the last one that the stream gave, ``data`` None where there was none."""

    id: str | None
    event: str
    data: str | None


class StreamParser:
    """Takes the bytes of an event stream as they come and gives the messages that they complete."""

    def __init__(self) -> None:
        self.retry_seconds: float | None = None
        """How long the server asks to wait before one reconnects."""
        self._rest = b""
        self._begun = False
        self._after_cr = False
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        """Raises UnexpectedAnswer for a line without end."""
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        *lines, self._rest = NEWLINE.split(self._rest + chunk)
        if len(self._rest) > LONGEST_LINE_BYTES:
            raise UnexpectedAnswer("The event stream has a line without end")
        return [message for line in lines if (message := self._line(line.decode(errors="replace"))) is not None]

    def _line(self, line: str) -> Message | None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value or None
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_seconds = int(value) / 1000
        return None

    def _dispatch(self) -> Message | None:
        message = Message(self._id, self._event or "message", "\n".join(self._data) if self._data else None)
        self._event, self._data = "", []
        return message


class Step(NamedTuple):
    """A move in the feed: to a position, over an event or, where a filter passed over some, over none."""

    position: str | None
    event: Event | None


class Page(NamedTuple):
    """What a page brings, and how long (seconds) to rest before the next."""

    steps: list[Step]
    rest: float


class Follower:
    """One's place in the feed. ``after``: an event id, "0" for the start, None for what is yet to come."""

    def __init__(
        self,
        after: str | None,
        type: EventType | None,  # noqa: A002 - the name on the wire
        agent_id: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.position = after
        self.by_page = False
        """Whether the server has no stream."""
        self.stream_timeout = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS)
        self.page_timeout = CONNECT_SECONDS + WAIT_SECONDS
        self._type: EventType | None = type
        self._agent_id = agent_id
        self._clock = clock
        self._asked_at = clock()
        self._skipping = False
        self._failures = 0
        self._parser = StreamParser()

    def stream_call(self) -> Call[EventPage]:
        self._parser = StreamParser()
        return calls.follow_events(after=self.position, type=self._type, agent_id=self._agent_id)

    def page_call(self) -> Call[EventPage]:
        self._asked_at = self._clock()
        # A page without a position begins at the start: what is yet to come is behind the last of them.
        self._skipping = self._skipping or self.position is None
        wait = None if self._skipping else WAIT_SECONDS
        limit = 1000 if self._skipping else None
        return calls.list_events(after=self.position, limit=limit, agent_id=self._agent_id, type=self._type, wait=wait)

    def streams(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether an answer is a stream."""
        return status == 200 and headers.get("content-type", "").startswith("text/event-stream")

    def feed(self, chunk: bytes) -> Iterator[Step]:
        """What the next bytes of a stream bring. Raises PositionLost at a `reset`, behind what came before it."""
        self._failures = 0
        for message in self._parser.feed(chunk):
            if message.event == "reset" or (message.data is not None and message.event.startswith("session.")):
                body = _object(message.data)
                if message.event == "reset":
                    raise PositionLost(str(body.get("error")), onward=message.id or "0")
                yield Step(message.id, cast("Event", body))
            elif message.id is not None:
                yield Step(message.id, None)

    def turn(self, answer: EventPage) -> Page:
        """What a page brings."""
        self._failures = 0
        events = answer["events"]
        steps = [] if self._skipping else [Step(event["id"], event) for event in events]
        was_empty = not events
        rest = POLL_SECONDS if was_empty and self._clock() - self._asked_at < WAIT_SECONDS / 2 else 0.0
        if self._skipping and was_empty:
            self._skipping, rest = False, 0.0
        return Page([*steps, Step(answer["next"], None)], rest)

    def taken(self, steps: Iterable[Step]) -> Iterator[Event]:
        """The events of the steps, each taken the moment that it is given out."""
        for step in steps:
            self.position = step.position or self.position
            if step.event is not None:
                yield step.event

    def refused(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """What asked for a stream got another answer. Raises what it stands for, unless it is that there is none."""
        if status in (200, 406):
            self.by_page = True
        else:
            self.stream_call().outcome(status, headers, content)

    def cut(self) -> None:
        """A stream has no end: one that ends was cut. Raises Unavailable."""
        raise Unavailable("The event stream ended", retry_after=self._parser.retry_seconds)

    def delay_after(self, error: TrackerClientError) -> float:
        """Seconds to wait before one goes on. Raises the error when it is no use."""
        if not isinstance(error, Unavailable):
            raise error
        self._failures += 1
        return max(backoff(self._failures), (error.retry_after or 0) * (0.5 + random.random() / 2))  # noqa: S311


def _object(data: str | None) -> dict[str, object]:
    try:
        body = json.loads(data or "")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UnexpectedAnswer("The event stream holds what is no JSON object")
    return body
