"""AsyncTrackerClient: the calls, awaited; runs kept alive by a task; the feed as an async iterator."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
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
from tracker.client.task import AsyncBeater
from tracker.models import Event, EventType, Session

__all__ = ["AsyncRun", "AsyncTrackerClient"]

P = ParamSpec("P")
T = TypeVar("T")


def _sends(make: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncTrackerClient, P], Awaitable[T]]:
    """The method that makes a call and sends it."""

    @functools.wraps(make)
    async def method(self: AsyncTrackerClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(make(*args, **kwargs))

    method.__signature__ = signature_of(make)  # type: ignore[attr-defined]
    return method


class AsyncTrackerClient:
    """A tracker, from one event loop (asyncio). As `TrackerClient`, awaited."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Without `url` or `api_key`, TRACKER_URL and TRACKER_API_KEY. Raises Misconfigured."""
        self._endpoint = Endpoint.find(url, api_key)
        self._retries = retries
        self._transport = transport
        self._open_http()
        self._beater = AsyncBeater(self._send_within, retries.timeout_seconds)
        _EVERY.add(self)

    def _open_http(self) -> None:
        self._http = self._endpoint.open(httpx.AsyncClient, self._transport)

    @property
    def url(self) -> str:
        return self._endpoint.url

    async def aclose(self, patience: float = 2.0) -> None:
        """Ends the runs that are still open, for as long as `patience` (seconds) allows, and closes the connections."""
        await self._beater.close(patience)
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

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

    async def walk_sessions(self, *, page: int = 1000, **filters: Unpack[Filters]) -> AsyncIterator[Session]:
        """As `TrackerClient.walk_sessions`."""
        cursor: str | None = None
        while True:
            found = await self.list_sessions(limit=page, cursor=cursor, **filters)
            for session in found["sessions"]:
                yield session
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
    ) -> AsyncRun:
        """As `TrackerClient.track`, for ``async with``; `on_lost` is called on the event loop."""
        session.setdefault("ttl_seconds", DEFAULT_TTL_SECONDS)
        lease = Lease(session, time.monotonic(), on_lost=on_lost, reregister=reregister, max_silence=max_silence)
        return AsyncRun(lease, patience, self._beater)

    async def events(
        self,
        *,
        after: str | None = "0",
        type: EventType | None = None,  # noqa: A002 - the name on the wire
        agent_id: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As `TrackerClient.events`, for ``async for``; close it (``contextlib.aclosing``) when you leave it early."""
        follower = Follower(after, type, agent_id)
        while True:
            try:
                # Closed with the whole, for what a generator that is left lying holds is a connection.
                async with aclosing(self._pages(follower) if follower.by_page else self._stream(follower)) as events:
                    async for event in events:
                        yield event
            except TrackerClientError as error:
                delay = follower.delay_after(error)
                await asyncio.sleep(delay)

    async def send(self, call: Call[T]) -> T:
        """Sends a call, again and again where that is safe."""
        attempts = self._retries.attempts(call.repeatable)
        while True:
            try:
                return await self._once(call, attempts.timeout, attempts.deadline - time.monotonic())
            except TrackerClientError as error:
                delay = attempts.delay_after(error)
            await asyncio.sleep(delay)

    async def _send_within(self, call: Call[Any], seconds: float) -> Any:
        return await self._once(call, seconds, seconds)

    async def _once(self, call: Call[T], timeout: float, seconds: float | None) -> T:  # noqa: ASYNC109 - httpx's
        try:
            with translated(self._http):
                async with asyncio.timeout(seconds):
                    response = await self._http.send(self._request(call, timeout))
        except TimeoutError:
            raise Unavailable("No answer from the tracker: it came too slowly") from None
        return call.outcome(response.status_code, response.headers, response.content)

    async def _pages(self, follower: Follower) -> AsyncGenerator[Event, None]:
        while True:
            page = follower.turn(await self._once(follower.page_call(), follower.page_timeout, None))
            for event in follower.taken(page.steps):
                yield event
            await asyncio.sleep(page.rest)

    async def _stream(self, follower: Follower) -> AsyncGenerator[Event, None]:
        with translated(self._http):
            request = self._request(follower.stream_call(), follower.stream_timeout)
            response = await self._http.send(request, stream=True)
            try:
                if follower.streams(response.status_code, response.headers):
                    async for chunk in response.aiter_bytes():
                        for event in follower.taken(follower.feed(chunk)):
                            yield event
                    follower.cut()
                else:
                    follower.refused(response.status_code, response.headers, await response.aread())
            finally:
                await response.aclose()

    def _request(self, call: Call[Any], timeout: float | httpx.Timeout) -> httpx.Request:
        url = self._endpoint.url + call.path
        return self._http.build_request(call.method, url, content=call.body, headers=call.headers, timeout=timeout)

    def _in_a_child(self) -> None:
        """After a fork: the connections are the parent's, so these are dropped unclosed, without a word on them."""
        self._open_http()


class AsyncRun(BaseRun):
    """A run that a task keeps alive; see `AsyncTrackerClient.track`."""

    def __init__(self, lease: Lease, patience: float, beater: AsyncBeater) -> None:
        super().__init__(lease, patience, beater)
        self._beater = beater

    async def __aenter__(self) -> Self:
        lease = self._lease
        try:
            error = await self._beater.settle(lease, self._patience, until=lambda: lease.settled)
            if error is None or isinstance(error, Unavailable | ServerFault):
                self._beater.add(lease)
                return self
        except BaseException:  # by a cancellation: what was sent may have arrived
            self._beater.drop(lease)
            raise
        raise error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def set_provider_session(self, provider_session_id: str) -> bool:
        """As `Run.set_provider_session`."""
        lease = self._lease
        lease.set_provider_session(provider_session_id, time.monotonic())
        if lease.session is not None:
            error = await self._beater.settle(lease, self._patience, until=lambda: not lease.provider_due)
            if isinstance(error, Invalid):
                raise error
        self._beater.wake()
        return lease.told_provider(provider_session_id)

    async def end(self) -> None:
        """As `Run.end`."""
        self._lease.end()
        await self._beater.settle(self._lease, self._patience, until=lambda: self._lease.over)
        self._beater.wake()


_EVERY: weakref.WeakSet[AsyncTrackerClient] = weakref.WeakSet()


def _renew_all() -> None:
    for client in list(_EVERY):
        client._in_a_child()


os.register_at_fork(after_in_child=_renew_all)
