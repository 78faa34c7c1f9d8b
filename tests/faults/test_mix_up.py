"""I10 on a bad network: ten thousand requests whose answers tell whose they are, a third of them given up."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_core import to_json
from redis.asyncio import Redis
from starlette.types import ASGIApp, Message

from tests.api.conftest import BASE, Json
from tests.fault_proxy import FAULTS, FaultProxy, running_proxy
from tests.faults.conftest import seeded
from tests.patience import until
from tests.redis_server import RedisServer
from tests.store.pools import pool_of
from tracker.api.app import create_app
from tracker.settings import Settings
from tracker.store.snapshot import _second
from tracker.store.store import Store

REQUESTS = 10_000
WARM_UP = 3_000
"""After so many caches are full; what is kept from then on is a leak."""
GROWTH_BYTES = 2_000_000
"""Less than 300 bytes of each further request may be left."""
CALLERS = 100
SESSIONS = 300
AGENTS = 60
SHORTEST_TTL_SECONDS = 1800
APART_SECONDS = 120
"""Each session's TTL is its own: so a heartbeat's answer, which names nobody, tells by its deadline whose it is."""
RATE = 0.05
Kind = Callable[[int], Awaitable[int]]


class Fleet:
    """Callers of an application, each of whom knows what its answer must say."""

    def __init__(self, app: ASGIApp, state: Json, chance: random.Random) -> None:
        self.chance = chance
        self.answered: Counter[tuple[str, int]] = Counter()
        self._app = app
        self._state = state
        self._kinds: dict[str, Kind] = {
            "create": self.create,
            "read": self.read,
            "beat": self.beat,
            "beat_many": self.beat_many,
            "list": self.list,
        }

    async def run(self, requests: int) -> None:
        left = iter(range(requests))

        async def call_on() -> None:
            for _ in left:
                await self._one()

        callers = [asyncio.create_task(call_on()) for _ in range(CALLERS)]
        try:
            await asyncio.gather(*callers)
        finally:
            for caller in callers:
                caller.cancel()

    async def _one(self) -> None:
        name, n = self.chance.choice(list(self._kinds)), self.chance.randrange(SESSIONS)
        asked = asyncio.ensure_future(self._kinds[name](n))
        if self.chance.random() >= 1 / 3:
            status = await asked
            assert status in (200, 201, 404, 503), f"{name}: {status}"
            self.answered[name, status] += 1
            return
        await asyncio.wait([asked], timeout=self.chance.choice([0, 0.001, 0.01, 0.1]) * self.chance.random())
        self.answered["given up", asked.cancel()] += 1
        await asyncio.wait([asked])
        if not asked.cancelled():
            asked.result()

    async def create(self, n: int) -> int:
        body = {"taskId": _task(n), "agentId": _agent(n), "ttlSeconds": _ttl(n), "triggerType": "t"}
        body |= {"metadata": {"n": f"{n}"}}
        return _if_fine(lambda answer: _is(n, answer["session"]), *await self._ask("POST", "", body))

    async def read(self, n: int) -> int:
        return _if_fine(lambda answer: _is(n, answer["session"]), *await self._ask("GET", f"/by-task/{_task(n)}"))

    async def beat(self, n: int) -> int:
        def check(answer: Json) -> None:
            if answer["updated"]:
                left = datetime.fromisoformat(answer["expiresAt"]) - datetime.now(UTC)
                assert abs(left.total_seconds() - _ttl(n)) < APART_SECONDS / 2, f"{_task(n)} got {answer}"

        return _if_fine(check, *await self._ask("PUT", f"/heartbeat/{_task(n)}", {"progress": f"progress of {n}"}))

    async def beat_many(self, n: int) -> int:
        tasks = [_task(n), f"nobody's {n}"]

        def check(answer: Json) -> None:
            assert answer["missing"]["taskIds"][-1] == tasks[1]
            assert set(answer["missing"]["taskIds"]) <= set(tasks)

        return _if_fine(check, *await self._ask("PUT", "/heartbeat", {"taskIds": tasks}))

    async def list(self, n: int) -> int:
        def check(answer: Json) -> None:
            for session in answer["sessions"]:
                assert session["agentId"] == _agent(n)
                _is(int(session["metadata"]["n"]), session)

        query = self.chance.choice(["", "&limit=3"])
        return _if_fine(check, *await self._ask("GET", "", query=f"agentId={_agent(n)}{query}"))

    async def _ask(self, method: str, path: str, body: Json | None = None, query: str = "") -> tuple[int, Any]:
        """Status and answer. Past httpx, which would take most of the time."""
        sent: list[Message] = []
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": b"" if body is None else to_json(body), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        path = BASE + path
        scope: Json = {"type": "http", "method": method, "path": path, "raw_path": path.replace(" ", "%20").encode()}
        scope |= {"query_string": query.encode(), "headers": [], "state": self._state}
        await self._app(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def _task(n: int) -> str:
    return f"task-{n}"


def _agent(n: int) -> str:
    return f"agent-{n % AGENTS}"


def _ttl(n: int) -> int:
    return SHORTEST_TTL_SECONDS + APART_SECONDS * n


def _is(n: int, session: Json) -> None:
    found = (session["taskId"], session["agentId"], session["ttlSeconds"], session["metadata"], session["triggerType"])
    assert found == (_task(n), _agent(n), _ttl(n), {"n": f"{n}"}, "t"), f"{_task(n)} got {session}"
    assert session["progress"] in (None, f"progress of {n}"), f"{_task(n)} got {session}"


def _if_fine(check: Callable[[Json], None], status: int, answer: Json) -> int:
    if status in (200, 201):
        check(answer)
    return status


async def connections(store: Store, proxy: FaultProxy, operator: Redis, name: str) -> tuple[int, int, int]:
    """How many there are for the pod, for the proxy, and for Redis."""
    pool = pool_of(store.scripts.client)
    ours = [*pool._available_connections, *pool._in_use_connections]
    theirs = [one for one in await operator.client_list() if one["name"] == name]
    return sum(one.is_connected for one in ours), proxy.open, len(theirs)


async def test_nobody_gets_anothers_answer_and_nothing_stays_behind(
    redis_server: RedisServer,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    complaints: list[dict[str, Any]],
) -> None:
    caplog.set_level(logging.ERROR, "tracker.api")  # pytest keeps what is logged, and with it each error's frames
    with seeded() as chance:
        async with (
            running_proxy(redis_server.port, chance) as proxy,
            Redis(port=redis_server.port, protocol=2) as operator,
        ):
            settings = Settings(
                store_url=f"{proxy.url}?client_name={namespace}",
                namespace=namespace,
                shards=2,
                store_timeout_seconds=0.25,
                sweep_interval_seconds=0.5,
                access_log="off",  # whether lines are kept, and so take memory, depends on the tests before
            )
            app = create_app(settings)
            async with app.router.lifespan_context(app) as state:
                assert state is not None
                store: Store = state["store"]
                await store.sweeper.sweep()
                tasks = len(asyncio.all_tasks()) - 3 * proxy.open  # the pod's own: it pulses, sweeps and watches
                fleet = Fleet(app, dict(state), chance)
                proxy.rate = RATE
                await fleet.run(WARM_UP)
                _second.cache_clear()
                gc.collect()
                tracemalloc.start()
                await fleet.run(REQUESTS - WARM_UP)
                gc.collect()
                _second.cache_clear()
                grown, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                proxy.rate = 0

                async def at_rest() -> bool:
                    ours, between, theirs = await connections(store, proxy, operator, namespace)
                    # What the other side has closed, the pool notices when it needs it next.
                    return ours >= between == theirs and len(asyncio.all_tasks()) - 3 * proxy.open == tasks

                async def given_back() -> bool:
                    return len(pool_of(store.scripts.client)._in_use_connections) <= 2  # each pipe keeps one

                await until(at_rest)
                await until(given_back)
                for n in range(SESSIONS):
                    assert await fleet.create(n) in (200, 201)
                    assert await fleet.read(n) == 200
            await until(lambda: closed(proxy))
    assert grown < GROWTH_BYTES
    assert complaints == []
    for fault in FAULTS:
        assert proxy.done[fault] >= 10, proxy.done
    for kind in ("create", "read", "beat", "beat_many", "list"):
        assert fleet.answered[kind, 200] + fleet.answered[kind, 201] > 300, fleet.answered


async def closed(proxy: FaultProxy) -> bool:
    return proxy.open == 0
