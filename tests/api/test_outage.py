"""The store is away: what callers are told, how soon, and that nothing needs a restart when it is back."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import BASE, Api, Json, running
from tests.patience import until
from tests.redis_server import RedisServer, running_redis
from tracker.api.routes import OPERATIONS
from tracker.settings import Settings

DEADLINE_SECONDS = 0.5
SLACK_SECONDS = 0.5
"""For a machine under load: less than a second deadline one after the other would take."""
POSSIBLE_ID = "0199b1f2-6c1e-7000-8a55-0c3f3f8f2a10"
"""An id that only the store can tell to be no session's."""
BODY: Json = {
    "agentId": "a",
    "triggerType": "t",
    "taskIds": ["t"],
    "sessionIds": [POSSIBLE_ID],
    "providerSessionId": "p",
}
"""Fine for every route: each takes what it knows."""
ROUTES = [operation for operation in OPERATIONS if operation.path.startswith("/api/")]


@contextmanager
def closed() -> Iterator[int]:
    """A port on which nobody listens, and nobody else can."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def silent() -> Iterator[int]:
    """A port on which connections are accepted and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener.getsockname()[1]


def settings_on(port: int, deadline: float = DEADLINE_SECONDS) -> Settings:
    return Settings(store_url=f"redis://127.0.0.1:{port}/0", store_timeout_seconds=deadline, sweep_interval_seconds=0.1)


async def timed(api: Api, method: str, path: str) -> tuple[httpx.Response, float]:
    begin = time.monotonic()
    answer = await api.client.request(method, path, json=BODY)
    return answer, time.monotonic() - begin


async def works(api: Api) -> bool:
    return (await api.get()).status_code == 200


@pytest.fixture(params=[closed, silent], ids=["closed", "silent"])
async def cut_off(request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    """The application with a store that is not there from the start."""
    with request.param() as port:
        async with running(settings_on(port)) as api:
            yield api


async def test_every_route_of_the_api_says_so_in_time(cut_off: Api) -> None:
    """All at once: they must not wait for each other either."""
    targets = [
        (operation.method, operation.path.replace("{taskId}", "t").replace("{id}", POSSIBLE_ID)) for operation in ROUTES
    ]
    assert len(targets) == 14
    targets += [("GET", f"{BASE}?limit=5"), ("GET", f"{BASE}?taskId=t"), ("HEAD", BASE)]
    answers = await asyncio.gather(*(timed(cut_off, *target) for target in targets))
    for target, (answer, seconds) in zip(targets, answers, strict=True):
        assert answer.status_code == 503, target
        assert answer.headers["retry-after"] == "1", target
        assert answer.headers["content-type"] == "application/json"
        assert target[0] == "HEAD" or answer.json() == {"error": "The store cannot answer now, try again"}
        assert seconds < DEADLINE_SECONDS + SLACK_SECONDS, target


async def test_creating_with_an_idempotency_key_is_no_slower(cut_off: Api) -> None:
    begin = time.monotonic()
    answer = await cut_off.post(json=BODY, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 503
    assert time.monotonic() - begin < DEADLINE_SECONDS + SLACK_SECONDS


async def test_many_callers_wait_no_longer_than_one(cut_off: Api) -> None:
    answers = await asyncio.gather(*(timed(cut_off, "PUT", f"{BASE}/heartbeat/t{number}") for number in range(300)))
    assert {answer.status_code for answer, _ in answers} == {503}
    assert max(seconds for _, seconds in answers) < DEADLINE_SECONDS + 2 * SLACK_SECONDS


async def test_the_process_is_up_but_not_ready(cut_off: Api) -> None:
    assert (await cut_off.client.get("/health")).json()["status"] == "ok"
    answer, seconds = await timed(cut_off, "GET", "/ready")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert list(answer.json()) == ["status", "error"]
    assert answer.json()["status"] == "unavailable"
    assert "the store" in answer.json()["error"]
    assert seconds < DEADLINE_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", BASE, b"{", 400),
        ("POST", BASE, b"x" * 70_000, 413),
        ("GET", BASE + "?limit=0", b"", 400),
        ("GET", BASE + "/x/y", b"", 404),
        ("PATCH", BASE, b"", 405),
        ("GET", BASE + "/by-task/%FF", b"", 400),
    ],
)
async def test_what_is_wrong_without_a_store_is_told_without_it(
    cut_off: Api, method: str, path: str, content: bytes, status: int
) -> None:
    assert (await cut_off.client.request(method, path, content=content)).status_code == status


async def test_a_store_that_comes_later_is_used_without_a_restart(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        with closed() as port:
            api = await stack.enter_async_context(running(settings_on(port, 10)))
            assert (await api.post(json=BODY)).status_code == 503
        with running_redis(tmp_path, port=port):
            session = await api.create(taskId="t1")
            assert (await api.get()).json() == {"sessions": [session]}
            assert (await api.put("/heartbeat/t1")).json()["updated"] is True
            assert (await api.client.get("/ready")).status_code == 200


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may harm."""
    with running_redis(tmp_path) as server:
        yield server


async def test_a_store_that_stalls_for_a_while_loses_nothing(own_redis: RedisServer) -> None:
    """While it is deaf callers are told so in time; as soon as it hears again, they go on with what they had."""
    async with running(settings_on(own_redis.port)) as api:
        await until(lambda: works(api))
        session = await api.create(taskId="t1")
        own_redis.freeze()
        try:
            answers = await asyncio.gather(
                timed(api, "PUT", f"{BASE}/heartbeat/t1"), timed(api, "GET", BASE), timed(api, "GET", "/ready")
            )
        finally:
            own_redis.thaw()
        for answer, seconds in answers:
            assert answer.status_code == 503
            assert seconds < DEADLINE_SECONDS + SLACK_SECONDS
        await until(lambda: works(api))
        assert (await api.put("/heartbeat/t1")).json()["updated"] is True
        found = await api.find(session["id"])
        assert found is not None
        assert found["taskId"] == "t1"


async def test_a_store_that_comes_back_empty_is_laid_out_anew(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        with running_redis(tmp_path) as first:
            api = await stack.enter_async_context(running(settings_on(first.port)))
            await api.create(taskId="t1")
        assert (await api.put("/heartbeat/t1")).status_code == 503
        with running_redis(tmp_path, port=first.port):
            await until(lambda: works(api))
            assert (await api.put("/heartbeat/t1")).json() == {"updated": False}
            assert (await api.create(taskId="t1"))["taskId"] == "t1"
            assert (await api.client.get("/ready")).status_code == 200


async def test_callers_never_get_each_others_answers_after_a_stall(own_redis: RedisServer) -> None:
    """Replies that came too late for their callers go to nobody."""
    async with running(settings_on(own_redis.port)) as api:
        await until(lambda: works(api))
        for number in range(30):
            await api.create(taskId=f"t{number}")
        for _ in range(3):
            own_redis.freeze()
            try:
                await asyncio.gather(*(api.get(f"/by-task/t{number}") for number in range(30)))
            finally:
                own_redis.thaw()
            answers = await asyncio.gather(*(api.get(f"/by-task/t{number}") for number in range(30)))
            for number, answer in enumerate(answers):
                assert answer.status_code == 503 or answer.json()["session"]["taskId"] == f"t{number}"
            await until(lambda: works(api))
