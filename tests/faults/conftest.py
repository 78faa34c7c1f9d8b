"""What the tests of faults share: a Redis that they may harm, the application on it, and how long an answer took."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import BASE, Api, Json
from tests.redis_server import RedisServer, running_redis
from tracker.api.routes import OPERATIONS

DEADLINE_SECONDS = 1.0
SLACK_SECONDS = 0.75
"""For a machine under load: less than a second call's deadline after the first's would take."""
POSSIBLE_ID = "0199b1f2-6c1e-7000-8a55-0c3f3f8f2a10"
BODY: Json = {
    "agentId": "a",
    "taskId": "t2",
    "triggerType": "t",
    "taskIds": ["t1"],
    "sessionIds": [POSSIBLE_ID],
    "providerSessionId": "p",
}
"""Fine for every route: each takes what it knows."""


def every_call() -> list[tuple[str, str, dict[str, str]]]:
    """Method, path and headers of a call of each route of the API, and of the ways to call that differ inside."""
    calls: list[tuple[str, str, dict[str, str]]] = []
    for operation in OPERATIONS:
        if operation.path.startswith("/api/"):
            task = "t3" if operation.method == "DELETE" else "t1"
            path = operation.path.replace("{taskId}", task).replace("{id}", POSSIBLE_ID)
            calls.append((operation.method, path, {}))
    calls += [("GET", f"{BASE}?limit=5", {}), ("GET", f"{BASE}?taskId=t1", {}), ("GET", f"{BASE}?triggerType=t", {})]
    calls += [("POST", BASE, {"Idempotency-Key": f"key {number}"}) for number in range(4)]
    return calls


async def ask(api: Api, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[httpx.Response, float]:
    """The answer, and how long it took (s)."""
    begin = time.monotonic()
    answer = await api.client.request(method, path, json=BODY, headers=headers)
    return answer, time.monotonic() - begin


def check(answer: httpx.Response, seconds: float, *expected: int) -> None:
    """In time, and either what is expected or an honest 503."""
    assert answer.status_code in (*expected, 503), (answer.request.method, str(answer.request.url), answer.text)
    if answer.status_code == 503:
        assert answer.headers["retry-after"] == "1"
        assert answer.json() == {"error": "The store cannot answer now, try again"}
    assert seconds < DEADLINE_SECONDS + SLACK_SECONDS, (answer.request.method, str(answer.request.url), seconds)


@contextmanager
def seeded() -> Iterator[random.Random]:
    """Chance with another seed each time, or that of FAULTS_SEED; a failure tells which it was."""
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"to repeat it: FAULTS_SEED={seed}")
        raise


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may harm."""
    with running_redis(tmp_path) as server:
        yield server


FIELDS: dict[str, Any] = {"store_timeout_seconds": DEADLINE_SECONDS, "sweep_interval_seconds": 60}
"""Settings of a pod whose sweeper helps nobody: what recovers, recovers without it."""
