"""What the client's tests share: a server behind a socket, and both clients under one set of words.

The threaded client is called from a thread, so that a test reads the same whichever it drives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import Server, listening, serving
from tracker.api.app import create_app
from tracker.client import AsyncTrackerClient, Retries, TrackerClient
from tracker.models import Event
from tracker.settings import Settings

ROOT = Path(__file__).parents[2]
PATIENT = Retries(timeout_seconds=20, deadline_seconds=60)
"""For calls whose answer is to come, however loaded the machine is."""


class Driver:
    """Either client. ``call`` takes the name of a method; a run is entered by `track`."""

    def __init__(self, client: TrackerClient | AsyncTrackerClient) -> None:
        self.client = client

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        return await _called(getattr(self.client, name), *args, **options)

    @asynccontextmanager
    async def track(self, **options: Any) -> AsyncIterator[DrivenRun]:
        """A run of agent "a" and trigger type "t" unless said otherwise."""
        run = await self.enter(**options)
        try:
            yield run
        finally:
            await run.end()

    async def enter(self, **options: Any) -> DrivenRun:
        """One that is left open."""
        tracked: Any = self.client.track(**{"agent_id": "a", "trigger_type": "t", **options})
        await _called(tracked.__enter__ if isinstance(self.client, TrackerClient) else tracked.__aenter__)
        return DrivenRun(tracked)

    async def close(self, patience: float = 2.0) -> None:
        await _called(self.client.close if isinstance(self.client, TrackerClient) else self.client.aclose, patience)

    async def events(self, count: int, **options: Any) -> list[Event]:
        """The next events of the feed."""
        if isinstance(self.client, TrackerClient):
            client = self.client

            def read() -> list[Event]:
                with contextlib.closing(client.events(**options)) as events:
                    return [next(events) for _ in range(count)]

            return await asyncio.to_thread(read)
        async with contextlib.aclosing(self.client.events(**options)) as followed:
            return [await anext(followed) for _ in range(count)]


class DrivenRun:
    """Either run; what waits for the server is awaited."""

    def __init__(self, run: Any) -> None:
        self.run = run

    async def set_provider_session(self, provider_session_id: str) -> bool:
        told: bool = await _called(self.run.set_provider_session, provider_session_id)
        return told

    async def end(self) -> None:
        await _called(self.run.end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


async def _called(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if asyncio.iscoroutinefunction(method):
        return await method(*args, **options)
    return await asyncio.to_thread(method, *args, **options)


OpenClient = Callable[..., Driver]


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def open_client(mode: str) -> AsyncIterator[OpenClient]:
    """Makes clients of the test's mode: `open_client(url, **options)`. They are closed at the end."""
    async with opening(mode) as opened:
        yield opened


@asynccontextmanager
async def opening(mode: str, **defaults: Any) -> AsyncIterator[OpenClient]:
    drivers: list[Driver] = []

    def opened(url: str, **options: Any) -> Driver:
        kind = TrackerClient if mode == "sync" else AsyncTrackerClient
        drivers.append(Driver(kind(url, **{"retries": PATIENT, **defaults, **options})))
        return drivers[-1]

    yield opened
    for driver in drivers:
        await driver.close(0.1)


Answer = tuple[int, dict[str, str], bytes]

LOST: Answer = (502, {}, b"<html>")


class Door:
    """ASGI before the application: counts what is asked, and answers in its place."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """Method and raw path of each request."""
        self.spares_reading = False
        self.lost = 0
        """How many of the next requests are to be done, and their answers lost: a proxy says so in their place."""
        self.answers: list[Answer] = []
        """What the next requests get without the application hearing of them."""

    def count(self, method: str, end: str) -> int:
        return sum(asked == method and path.endswith(end) for asked, path in self.asked)

    def __call__(self, app: Any) -> Any:
        async def through(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self.asked.append((scope["method"], scope["raw_path"].decode()))
            if self.spares_reading and scope["method"] == "GET":
                await app(scope, receive, send)
                return
            if self.lost:
                self.lost -= 1
                await app(scope, receive, _nowhere)
                status, headers, body = LOST
            elif self.answers:
                status, headers, body = self.answers.pop(0)
            else:
                await app(scope, receive, send)
                return
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": body})

        return through


async def _nowhere(message: Any) -> None:
    """Where answers get lost."""


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
async def url(settings: Settings, door: Door, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The address of a server on the test's backend, behind the test's door."""
    monkeypatch.setattr("tests.api.conftest.create_app", lambda settings: door(create_app(settings)))
    async with listening(settings) as address:
        yield address


@pytest.fixture
async def driver(open_client: OpenClient, url: str) -> Driver:
    return open_client(url)


class Bridge(httpx.BaseTransport):
    """Lets a thread call an application that lives on an event loop, which must be free meanwhile."""

    def __init__(self, transport: httpx.ASGITransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._handle(request), self._loop).result()

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        asked = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
        answer = await self._transport.handle_async_request(asked)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


@asynccontextmanager
async def in_process(settings: Settings, door: Door, mode: str) -> AsyncIterator[Any]:
    """The transport to an application in this process: as `url`, but without a socket, and streams."""
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def served(scope: Any, receive: Any, send: Any) -> None:
            await door(app)({**scope, "state": dict(state)}, receive, send)

        asgi = httpx.ASGITransport(served)
        yield Bridge(asgi) if mode == "sync" else asgi


@pytest.fixture
def swift(store_url: str, namespace: str) -> dict[str, str]:
    """The environment of a `tracker serve` that sweeps often."""
    return {
        "TRACKER_STORE_URL": store_url,
        "TRACKER_NAMESPACE": namespace,
        "TRACKER_SWEEP_INTERVAL_SECONDS": "0.2",
    }


@pytest.fixture
def server(swift: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    """A `tracker serve` in a process of its own, to be frozen or killed."""
    with serving(tmp_path / "serve.log", **swift) as running:
        yield running


@asynccontextmanager
async def answering(tell: Callable[[bytes], AsyncIterator[bytes]]) -> AsyncIterator[str]:
    """The address of a server that says what it likes: given a request's head, bytes, and then it hangs up."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async for piece in tell(await reader.readuntil(b"\r\n\r\n")):
                writer.write(piece)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait(connections, timeout=20)


def python(code: str, *arguments: str, warnings: str = "error") -> subprocess.Popen[str]:
    """A process that runs the code, with what it prints to be read."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACKER_")}
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def sessions_of(url: str) -> list[Any]:
    async with httpx.AsyncClient() as client:
        found: list[Any] = (await client.get(url + "/api/active-sessions")).json()["sessions"]
        return found


async def ends_of(url: str) -> list[Any]:
    async with httpx.AsyncClient() as client:
        page = (await client.get(url + "/api/active-sessions/events?type=session.ended&limit=1000")).json()
        ended: list[Any] = page["events"]
        return ended


def threads() -> list[str]:
    """The client's threads in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tracker-")]
