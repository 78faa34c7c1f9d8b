"""Commands against a real server: one process per backend for all of these tests, each with names of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.api.conftest import BASE, Json, Server, serving
from tests.redis_server import RedisServer
from tracker.cli.main import app
from tracker.settings import Settings
from tracker.store.store import Store, open_store

KEY, READ_KEY = "key-that-writes", "key-that-reads"


class Commands:
    """Runs `tracker ...` here, as against that server; ``url`` and ``key`` for those that run elsewhere."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.pid = server.pid
        self.key = KEY
        self.client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20)

    def __call__(self, *arguments: str, key: str = KEY, url: str | None = None, typed: str | None = None) -> Result:
        environment = {"TRACKER_URL": url or self.url, "TRACKER_API_KEY": key, "COLUMNS": "160"}
        return CliRunner().invoke(app, [*arguments], input=typed, env=environment)

    def start(self, task: str | None, agent: str, **fields: object) -> Json:
        made = self.client.post(BASE, json={"agentId": agent, "triggerType": "manual", "taskId": task, **fields})
        assert made.status_code == 201, made.text
        session: Json = made.json()["session"]
        return session

    def live(self, agent: str) -> list[Json]:
        sessions: list[Json] = self.client.get(BASE, params={"agentId": agent}).json()["sessions"]
        return sessions


@pytest.fixture(scope="session")
def command_servers(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Commands]]:
    with contextlib.ExitStack() as stack:
        running: dict[str, Commands] = {}

        def find(backend: str) -> Commands:
            if backend not in running:
                log: Path = tmp_path_factory.mktemp("serve") / "log"
                url = "memory://"
                if backend == "redis":
                    redis: RedisServer = request.getfixturevalue("redis_server")
                    url = redis.url
                settings = {
                    "TRACKER_STORE_URL": url,
                    "TRACKER_NAMESPACE": f"test-{secrets.token_hex(8)}",
                    "TRACKER_API_KEYS": KEY,
                    "TRACKER_READ_API_KEYS": READ_KEY,
                    "TRACKER_SWEEP_INTERVAL_SECONDS": "0.2",
                }
                running[backend] = Commands(stack.enter_context(serving(log, **settings)))
                stack.callback(running[backend].client.close)
            return running[backend]

        yield find


@pytest.fixture
def commands(command_servers: Callable[[str], Commands], backend: str) -> Commands:
    return command_servers(backend)


@pytest.fixture
def agent() -> str:
    """An agent of the test's own."""
    return f"agent-{secrets.token_hex(4)}"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands believe that a person watches."""
    for module in ("listing", "events", "stats", "watch"):
        monkeypatch.setattr(f"tracker.cli.{module}.watched", lambda: True)


# For the commands that work on a store themselves


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Without anything of the developer's that is meant for a tracker."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKER_", "REDIS_"))}
    monkeypatch.setattr(os, "environ", clean)
    return clean


def on_store(server: RedisServer, namespace: str, work: Callable[[Store], Awaitable[Any]], shards: int = 1) -> None:
    async def run() -> None:
        async with open_store(Settings(store_url=server.url, namespace=namespace, shards=shards)) as store:
            await work(store)

    asyncio.run(run())
