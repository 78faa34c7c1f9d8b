"""The HTTP side of the tests: the application in this process, behind a socket of it, or as a server of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tests.patience import until
from tracker.api.app import create_app
from tracker.settings import Settings
from tracker.store.store import Store

BASE = "/api/active-sessions"
START_SECONDS = 30

Json = dict[str, Any]


class Api:
    """The application at work, and the store behind it. Paths are those below /api/active-sessions."""

    def __init__(self, client: httpx.AsyncClient, store: Store) -> None:
        self.client = client
        self.store = store

    async def call(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        """``options`` as httpx takes them: json, content, params, headers."""
        return await self.client.request(method, BASE + path, **options)

    async def get(self, path: str = "", **options: Any) -> httpx.Response:
        return await self.call("GET", path, **options)

    async def post(self, path: str = "", **options: Any) -> httpx.Response:
        return await self.call("POST", path, **options)

    async def put(self, path: str, **options: Any) -> httpx.Response:
        return await self.call("PUT", path, **options)

    async def delete(self, path: str, **options: Any) -> httpx.Response:
        return await self.call("DELETE", path, **options)

    async def create(self, **fields: Any) -> Json:
        """The new session; of agent "a" and trigger type "t" unless said otherwise."""
        made = await self.post(json={"agentId": "a", "triggerType": "t", **fields})
        assert made.status_code == 201, made.text
        session: Json = made.json()["session"]
        return session

    async def find(self, session_id: str) -> Json | None:
        """The live session of an id, or None."""
        found = await self.get(f"/{session_id}")
        assert found.status_code in (200, 404), found.text
        session: Json | None = found.json().get("session")
        return session

    async def events(self, **parameters: Any) -> list[Json]:
        page = await self.get("/events", params={"limit": 1000, **parameters})
        assert page.status_code == 200, page.text
        events: list[Json] = page.json()["events"]
        return events

    async def endings(self) -> list[tuple[str, str]]:
        """The id and reason of each end event, oldest first."""
        return [(event["session"]["id"], event["reason"]) for event in await self.events(type="session.ended")]


@asynccontextmanager
async def running(settings: Settings, **transport: Any) -> AsyncIterator[Api]:
    """The application with its lifespan, called without a socket. An exception nobody foresaw fails the test."""
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        calls = httpx.ASGITransport(served, **transport)
        async with httpx.AsyncClient(transport=calls, base_url="http://tracker") as client:
            yield Api(client, state["store"])


@asynccontextmanager
async def listening(settings: Settings, port: int = 0) -> AsyncIterator[str]:
    """The address of a uvicorn in this process that serves the application; ``port``: to come back where one was."""
    config = uvicorn.Config(create_app(settings), log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    async def started() -> bool:
        return server.started or task.done()

    with socket.create_server(("127.0.0.1", port)) as listener:
        # Sockets made from it inherit that: head and body are written apart, and would wait 40 ms for each other.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@dataclass(frozen=True)
class Server:
    """A `tracker serve` in a process of its own."""

    url: str
    pid: int


@contextmanager
def serving(log: Path, **environment: str) -> Iterator[Server]:
    """Starts one with TRACKER_* variables; ``log`` gets what it says. It must end well, if it was not killed.

    On a free port, unless TRACKER_PORT is one where another was before.
    """
    inherited: Mapping[str, str] = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRACKER_") and name not in ("API_KEY", "REDIS_URL")
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tracker", "serve", "--port", environment.get("TRACKER_PORT", "0")],
            cwd=Path(__file__).parents[2],
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Server(_address(process, log), process.pid)
        process.terminate()
        assert process.wait(15) in (0, -15, -9), log.read_text()
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    limit = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        if found := re.search(r"on (http://127\.0\.0\.1:\d+),", log.read_text()):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(found[1] + "/health").status_code == 200:
                    return found[1]
        time.sleep(0.02)
    pytest.fail(f"tracker serve does not start:\n{log.read_text()}")


def segment(text: str) -> str:
    """A text as a path segment that no client library takes for something else: dots alone would be a step upwards."""
    encoded = quote(text, safe="")
    return encoded if encoded.strip(".") else encoded.replace(".", "%2E")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As everywhere, but nothing is swept while a test runs: what expires stays until the test sweeps."""
    return settings.model_copy(update={"sweep_interval_seconds": 60})


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running(settings) as api:
        # The lifespan's own first sweep comes whenever it comes: behind this one it finds a fresh pulse and leaves.
        await api.store.sweeper.sweep()
        yield api
