"""One deadline per request, however many calls of the store it takes, and whichever of them gets no answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import Api, running
from tests.fault_proxy import FaultProxy, running_proxy
from tests.faults.conftest import DEADLINE_SECONDS, FIELDS, SLACK_SECONDS, ask, check, every_call
from tests.patience import until
from tests.redis_server import RedisServer
from tests.store.wire import a_run
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.ids import shard_of_text
from tracker.store.reshard import reshard
from tracker.store.store import open_store

EVERY_CALL = [*every_call(), ("GET", "/ready", {})]


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with running_proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def slow(proxy: FaultProxy, namespace: str, shards: int) -> AsyncIterator[Api]:
    """The application behind the proxy, with connections made and some sessions to speak of."""
    async with running(Settings(store_url=proxy.url, namespace=namespace, shards=shards, **FIELDS)) as api:
        for number in range(20):
            await api.create(agentId="other", taskId=f"t{number}")
        await asyncio.gather(*(ask(api, *call) for call in EVERY_CALL))
        yield api


@pytest.mark.parametrize("shards", [1, 4])
async def test_replies_that_each_come_just_in_time_add_up_to_no_more_than_the_deadline(
    slow: Api, proxy: FaultProxy
) -> None:
    """Two calls one after the other would take 1.5 s. All at once: they must not wait for each other either."""
    proxy.delay = 0.75 * DEADLINE_SECONDS
    answers = await asyncio.gather(*(ask(slow, *call) for call in EVERY_CALL))
    for answer, seconds in answers:
        assert answer.status_code in (200, 201, 404, 409, 503)
        assert seconds < DEADLINE_SECONDS + SLACK_SECONDS
    assert {answer.status_code for answer, _ in answers} >= {200, 503}, "some need one call, some more"


@pytest.mark.parametrize("shards", [4])
async def test_a_call_by_the_id_of_a_session_that_a_reshard_has_moved_has_one_deadline_too(
    proxy: FaultProxy, redis_server: RedisServer, namespace: str, shards: int
) -> None:
    """It takes two trips: to the shard that the id tells, and to where the session is."""
    before = Settings(store_url=redis_server.url, namespace=namespace, **FIELDS)
    async with open_store(before) as store:
        made = await asyncio.gather(*(store.sessions.create(a_run(f"t{number}")) for number in range(20)))
    after = Settings(store_url=proxy.url, namespace=namespace, shards=shards, **FIELDS)
    async with open_store(after) as store:
        await reshard(store.scripts)
        ids = [Target.id(one.session["id"]) for one in made if shard_of_text(str(one.session["taskId"]), shards)]
        moved = [session_id for session_id in ids if await store.sessions.get(session_id)]
        assert moved == ids
        proxy.delay = 0.9 * DEADLINE_SECONDS
        for call in (store.sessions.heartbeat(moved[0]), store.sessions.get(moved[0])):
            with pytest.raises(StoreUnavailable):
                await call
        with pytest.raises(StoreUnavailable):
            await store.sessions.heartbeat_all(moved)
        proxy.delay = 0


async def works(api: Api) -> bool:
    """Everything, also what goes its own ways to the store."""
    for call in EVERY_CALL:
        if (await ask(api, *call))[0].status_code == 503:
            return False
    return True


@pytest.mark.parametrize("shards", [4])
async def test_connections_that_fell_silent_are_given_up_while_new_ones_would_do(slow: Api, proxy: FaultProxy) -> None:
    """As after a firewall forgot them: nobody says that they are gone. Every call finds out within its deadline."""
    proxy.mute()
    for answer, seconds in await asyncio.gather(*(ask(slow, *call) for call in every_call())):
        check(answer, seconds, 200, 201, 404, 409)
    await until(lambda: works(slow), 2 + 3)


@pytest.mark.parametrize("shards", [4])
async def test_a_listing_whose_callers_leave_finds_out_as_well(slow: Api, proxy: FaultProxy) -> None:
    """A caller who is gone before the deadline leaves it to nobody to see that the replies never came."""
    proxy.mute()

    async def listed() -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3 * DEADLINE_SECONDS):
                return (await slow.get(params={"limit": 5})).status_code == 200
        return False

    assert not await listed()
    await until(listed, 2 + 3)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_frozen_store_keeps_nobody_from_closing(own_redis: RedisServer, shards: int) -> None:
    """With calls under way, and more to send than a socket takes."""
    async with open_store(Settings(store_url=own_redis.url, shards=shards, **FIELDS)) as store:
        await store.stats()
        own_redis.freeze()
        try:
            big = "x" * 1_000_000
            begun = [asyncio.create_task(store.scripts.command("PING", big)) for _ in range(20)]
            await asyncio.sleep(0.1)
            begin = time.monotonic()
            await store.sessions.close()
            await store.scripts.close()
            assert time.monotonic() - begin < DEADLINE_SECONDS + SLACK_SECONDS
            assert all(isinstance(one, Exception) for one in await asyncio.gather(*begun, return_exceptions=True))
            assert time.monotonic() - begin < 2 * DEADLINE_SECONDS + SLACK_SECONDS
        finally:
            own_redis.thaw()
