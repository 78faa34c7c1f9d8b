"""The collector is spared because there is nothing for it to find."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

from starlette.types import Message

from tracker.api.app import create_app
from tracker.settings import Settings

REQUESTS = 50
BASE = "/api/active-sessions"


async def test_requests_leave_no_cycles_behind(settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def call(method: str, path: str, body: bytes = b"") -> int:
            statuses: list[int] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "raw_path": path.encode()}
            scope |= {"query_string": b"", "headers": [], "state": dict(state or {}), "http_version": "1.1"}
            await app(scope, receive, send)
            return statuses[0]

        async def everything() -> list[int]:
            return [
                await call("POST", BASE, b'{"agentId": "a", "taskId": "t", "triggerType": "m"}'),
                await call("PUT", f"{BASE}/heartbeat/t"),
                await call("PUT", f"{BASE}/provider-session/t", b'{"providerSessionId": "p"}'),
                await call("DELETE", f"{BASE}/by-task/t"),
            ]

        assert await everything() == [201, 200, 200, 200]  # what is kept from the first time on is no garbage
        gc.collect()
        gc.disable()
        try:
            for _ in range(REQUESTS):
                await everything()
            found = gc.collect()
        finally:
            gc.enable()
    # What the server does meanwhile by itself may leave some.
    assert found < REQUESTS


def test_a_process_that_serves_spares_the_collector() -> None:
    code = "import gc; from tracker.api.app import from_environment; from_environment(); print(gc.get_freeze_count())"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*gc.get_threshold())"], capture_output=True, text=True, check=True
    )
    frozen, young, *_ = map(int, done.stdout.split())
    assert frozen > 10_000
    assert young > 5_000
