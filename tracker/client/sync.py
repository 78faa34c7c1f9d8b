"""TrackerClient: the calls, sent and waited for; runs kept alive by a thread; the feed as an iterator."""

from __future__ import annotations

import atexit
import functools
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import httpx

from tracker.client import calls
from tracker.client.calls import Call, Filters, NewSession, signature_of
from tracker.client.endpoint import Endpoint
from tracker.client.errors import Invalid, ServerFault, TrackerClientError, Unavailable, translated
from tracker.client.events import Follower
from tracker.client.lease import DEFAULT_TTL_SECONDS, Lease, Lost
from tracker.client.retries import Retries
from tracker.client.run import LONGEST_SILENCE_SECONDS, BaseRun
from tracker.client.thread import Beater
from tracker.models import Event, EventType, Session

__all__ = ["Run", "TrackerClient"]

EXIT_SECONDS = 2.0
"""How long an interpreter that exits waits for open runs to be deleted."""

P = ParamSpec("P")
T = TypeVar("T")


def _sends(make: Callable[P, Call[T]]) -> Callable[Concatenate[TrackerClient, P], T]:
    """The method that makes a call and sends it."""

    @functools.wraps(make)
    def method(self: TrackerClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(make(*args, **kwargs))

    method.__signature__ = signature_of(make)  # type: ignore[attr-defined]
    return method


class TrackerClient:
    """A tracker, from a thread. Threads may share it; so should the runs of a process, for they share heartbeats.

    Every call raises a TrackerClientError, none other: Refused with what the tracker said, Unavailable when no answer
    came within ``retries.deadline_seconds``, tries and all. ``transport``: httpx's, in place of the network.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Without `url` or `api_key`, TRACKER_URL and TRACKER_API_KEY. Raises Misconfigured."""
        self._endpoint = Endpoint.find(url, api_key)
        self._retries = retries
        self._transport = transport
        self._open_http()
        self._beater = Beater(self._send_within, retries.timeout_seconds)
        _EVERY.add(self)

    def _open_http(self) -> None:
        self._http = self._endpoint.open(httpx.Client, self._transport)

    @property
    def url(self) -> str:
        return self._endpoint.url

    def close(self, patience: float = 2.0) -> None:
        """Ends the runs that are still open, for as long as `patience` (seconds) allows, and closes the connections."""
        self._beater.close(patience)
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    list_sessions = _sends(calls.list_sessions)
    create_session = _sends(calls.create_session)
    read_session = _sends(calls.read_session)
    read_by_task = _sends(calls.read_by_task)
    heartbeat = _sends(calls.heartbeat)
    heartbeat_by_task = _sends(calls.heartbeat_by_task)
    heartbeat_many = _sends(calls.heartbeat_many)
    set_provider_session = _sends(calls.set_provider_session)
    delete_session = _sends(calls.delete_session)
    delete_by_task = _sends(calls.delete_by_task)
    request_stop = _sends(calls.request_stop)
    cleanup = _sends(calls.cleanup)
    stats = _sends(calls.stats)
    list_events = _sends(calls.list_events)
    health = _sends(calls.health)
    ready = _sends(calls.ready)
    openapi = _sends(calls.openapi)

    def walk_sessions(self, *, page: int = 1000, **filters: Unpack[Filters]) -> Iterator[Session]:
        """All live sessions, newest first, page by page: one that lives through the walk comes exactly once."""
        cursor: str | None = None
        while True:
            found = self.list_sessions(limit=page, cursor=cursor, **filters)
            yield from found["sessions"]
            cursor = found.get("nextCursor")
            if cursor is None:
                return

    def track(
        self,
        *,
        on_lost: Callable[[Lost], None] | None = None,
        reregister: bool = False,
        max_silence: float | None = LONGEST_SILENCE_SECONDS,
        patience: float = 2.0,
        **session: Unpack[NewSession],
    ) -> Run:
        """A run, to be worked on within ``with``: registered, kept alive, and deleted at the end.

        `ttl_seconds` is 60 unless given. `on_lost` is told of each loss of its session, in a thread of its own;
        `reregister`: then register anew, unless another session holds the task. `max_silence`: seconds without a word
        from the work (progress, provider session, touch) after which heartbeats stop, so that a process that hangs is
        found out; None for never. `patience`: seconds for which beginning, ending and telling the provider's session
        wait for the server before the background takes over.

        Entering raises what the tracker refuses (Conflict, Unauthorized, ...), never Unavailable.
        """
        session.setdefault("ttl_seconds", DEFAULT_TTL_SECONDS)
        lease = Lease(session, time.monotonic(), on_lost=on_lost, reregister=reregister, max_silence=max_silence)
        return Run(lease, patience, self._beater)

    def events(
        self,
        *,
        after: str | None = "0",
        type: EventType | None = None,  # noqa: A002 - the name on the wire
        agent_id: str | None = None,
    ) -> Generator[Event, None, None]:
        """The change feed, without end: from behind `after`, an event's id; "0": its start; None: what is yet to come.

        Goes on by itself where it was when the connection breaks or the server is away. Raises PositionLost when the
        feed no longer holds that place: then list the sessions anew and begin behind the error's `onward`.
        """
        follower = Follower(after, type, agent_id)
        while True:
            try:
                yield from self._pages(follower) if follower.by_page else self._stream(follower)
            except TrackerClientError as error:
                time.sleep(follower.delay_after(error))

    def send(self, call: Call[T]) -> T:
        """Sends a call, again and again where that is safe."""
        attempts = self._retries.attempts(call.repeatable)
        while True:
            try:
                return self._once(call, attempts.timeout, attempts.deadline)
            except TrackerClientError as error:
                delay = attempts.delay_after(error)
            time.sleep(delay)

    def _send_within(self, call: Call[T], seconds: float) -> T:
        return self._once(call, seconds, time.monotonic() + seconds)

    def _once(self, call: Call[T], timeout: float, deadline: float) -> T:
        with translated(self._http):
            response = self._http.send(self._request(call, timeout), stream=True)
            try:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > deadline:
                        raise Unavailable("No answer from the tracker: it came too slowly")
            finally:
                response.close()
        return call.outcome(response.status_code, response.headers, bytes(content))

    def _pages(self, follower: Follower) -> Iterator[Event]:
        while True:
            page = follower.turn(self._once(follower.page_call(), follower.page_timeout, float("inf")))
            yield from follower.taken(page.steps)
            time.sleep(page.rest)

    def _stream(self, follower: Follower) -> Iterator[Event]:
        with translated(self._http):
            request = self._request(follower.stream_call(), follower.stream_timeout)
            response = self._http.send(request, stream=True)
            try:
                if follower.streams(response.status_code, response.headers):
                    for chunk in response.iter_bytes():
                        yield from follower.taken(follower.feed(chunk))
                    follower.cut()
                else:
                    follower.refused(response.status_code, response.headers, response.read())
            finally:
                response.close()

    def _request(self, call: Call[Any], timeout: float | httpx.Timeout) -> httpx.Request:
        url = self._endpoint.url + call.path
        return self._http.build_request(call.method, url, content=call.body, headers=call.headers, timeout=timeout)

    def _in_a_child(self) -> None:
        """After a fork: the connections are the parent's, so these are dropped unclosed, without a word on them."""
        self._open_http()


class Run(BaseRun):
    """A run that a thread keeps alive; see `TrackerClient.track`."""

    def __init__(self, lease: Lease, patience: float, beater: Beater) -> None:
        super().__init__(lease, patience, beater)
        self._beater = beater

    def __enter__(self) -> Self:
        lease = self._lease
        try:
            error = self._beater.settle(lease, self._patience, until=lambda: lease.settled)
            if error is None or isinstance(error, Unavailable | ServerFault):
                self._beater.add(lease)
                return self
        except BaseException:  # by a signal, or for want of a thread: what was sent may have arrived
            self._beater.drop(lease)
            raise
        raise error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def set_provider_session(self, provider_session_id: str) -> bool:
        """Tell the provider's own session id: what resumes the run after a crash. Needs a task.

        Whether the tracker has it now; if not, it is told as soon as the tracker is there. Raises Invalid.
        """
        lease = self._lease
        with self._beater.lock:
            lease.set_provider_session(provider_session_id, time.monotonic())
        if lease.session is not None:
            error = self._beater.settle(lease, self._patience, until=lambda: not lease.provider_due)
            if isinstance(error, Invalid):
                raise error
        self._beater.wake()
        return lease.told_provider(provider_session_id)

    def end(self) -> None:
        """Deletes the session, if it is still this run's; what cannot be told within `patience` is told later."""
        with self._beater.lock:
            self._lease.end()
        self._beater.settle(self._lease, self._patience, until=lambda: self._lease.over)
        self._beater.wake()


_EVERY: weakref.WeakSet[TrackerClient] = weakref.WeakSet()


def _end_all() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for client in list(_EVERY):
        client.close(max(0.0, deadline - time.monotonic()))


def _renew_all() -> None:
    for client in list(_EVERY):
        client._in_a_child()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_renew_all)
