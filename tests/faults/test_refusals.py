"""A real Redis that is there and will not: every call is answered in time, honestly, and works again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from redis import exceptions as driver
from redis.asyncio import Redis

from tests.api.conftest import BASE, Api, running
from tests.audit import audit
from tests.fault_proxy import running_proxy
from tests.faults.conftest import DEADLINE_SECONDS, FIELDS, SLACK_SECONDS, ask, check, every_call
from tests.patience import until
from tests.redis_server import RedisServer, running_redis
from tests.store.wire import a_run
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.reshard import reshard
from tracker.store.store import open_store

RECOVERY_SECONDS = 2 + 3
"""What is promised, and what a machine under load may add. The sweeper, which comes by once a minute, helps nobody."""
ENDLESS = "local time = redis.call('TIME')[1] + 60 while redis.call('TIME')[1] + 0 < time do end"

Refusal = Callable[[Redis, Path], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def read_only(redis: Redis, directory: Path) -> AsyncIterator[None]:
    await redis.replicaof("127.0.0.1", 1)
    yield
    await redis.replicaof("NO", "ONE")


@asynccontextmanager
async def replica_cut_off(redis: Redis, directory: Path) -> AsyncIterator[None]:
    await redis.config_set("replica-serve-stale-data", "no")
    async with read_only(redis, directory):
        yield


@asynccontextmanager
async def too_few_replicas(redis: Redis, directory: Path) -> AsyncIterator[None]:
    await redis.config_set("min-replicas-to-write", 1)
    yield
    await redis.config_set("min-replicas-to-write", 0)


@asynccontextmanager
async def disk_full(redis: Redis, directory: Path) -> AsyncIterator[None]:
    """It cannot save, for a directory is where the file should be."""
    (directory / "dump.rdb").mkdir()
    await redis.config_set("save", "3600 1000000")
    await redis.bgsave()

    async def failed() -> bool:
        return bool((await redis.info("persistence"))["rdb_last_bgsave_status"] == "err")

    await until(failed)
    yield
    (directory / "dump.rdb").rmdir()
    await redis.save()


@asynccontextmanager
async def out_of_memory(redis: Redis, directory: Path) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", 1)
    yield
    await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def forbidden(redis: Redis, directory: Path) -> AsyncIterator[None]:
    await redis.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha", "-xrange")  # type: ignore[no-untyped-call]
    yield
    await redis.execute_command("ACL", "SETUSER", "default", "+@all")  # type: ignore[no-untyped-call]


@asynccontextmanager
async def busy(redis: Redis, directory: Path) -> AsyncIterator[None]:
    """With a script of somebody else's. It says so after 50 ms, as it otherwise does after five seconds."""
    await redis.config_set("lua-time-limit", 50)
    async with scripted(redis):
        yield


@asynccontextmanager
async def busy_and_silent(redis: Redis, directory: Path) -> AsyncIterator[None]:
    """The same before that: it says nothing at all."""
    await redis.config_set("lua-time-limit", 1800)
    async with scripted(redis):
        yield


@asynccontextmanager
async def scripted(redis: Redis) -> AsyncIterator[None]:
    pool = redis.connection_pool
    address = pool.connection_kwargs
    async with Redis(host=address["host"], port=address["port"], socket_timeout=60, protocol=2) as other:
        await other.ping()
        running_script = asyncio.ensure_future(other.execute_command("EVAL", ENDLESS, 0))  # type: ignore[no-untyped-call]
        await asyncio.sleep(0.2)
        yield
        await redis.script_kill()
        with pytest.raises(driver.ResponseError, match="killed by user"):
            await running_script


@asynccontextmanager
async def no_more_clients(redis: Redis, directory: Path) -> AsyncIterator[None]:
    await redis.config_set("maxclients", 1)
    await redis.client_kill_filter(_type="normal", skipme=True)
    yield
    await redis.config_set("maxclients", 1000)


READING = {200, 404}
WRITING = {200, 201, 409}
REFUSALS: dict[Refusal, str] = {
    read_only: "reads",
    replica_cut_off: "nothing",
    too_few_replicas: "reads",
    disk_full: "reads",
    out_of_memory: "reads, heartbeats",
    forbidden: "nothing",
    busy: "nothing",
    busy_and_silent: "nothing",
    no_more_clients: "nothing",
}
"""And what of it goes on meanwhile."""


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.__name__)
async def test_a_store_that_refuses(refusal: Refusal, own_redis: RedisServer, tmp_path: Path) -> None:
    """No call takes longer, none is a 500, none is half done; what the store still takes goes on."""
    goes_on = REFUSALS[refusal]
    settings = Settings(store_url=own_redis.url, shards=4, **FIELDS)
    async with Redis(port=own_redis.port, socket_timeout=60, protocol=2) as operator, running(settings) as api:
        await api.create(agentId="other", taskId="t1")
        for number in range(20):
            await api.create(agentId="a", taskId=f"of a {number}")
        await api.store.sweeper.sweep()
        async with refusal(operator, tmp_path):
            calls = every_call()
            answers = await asyncio.gather(*(ask(api, *call) for call in calls))
            for (method, path, _), (answer, seconds) in zip(calls, answers, strict=True):
                check(answer, seconds, *(READING if method == "GET" else WRITING))
                if goes_on == "nothing":
                    assert answer.status_code == 503, path
                elif method == "GET":
                    assert answer.status_code in READING, path
                elif path == BASE:
                    assert answer.status_code == 503, path
                elif "/heartbeat/" in path and "heartbeats" in goes_on:
                    assert answer.json()["updated"] is True
            assert (await ask(api, "GET", "/health"))[0].status_code == 200
            ready, seconds = await ask(api, "GET", "/ready")
            assert ready.status_code == (503 if goes_on == "nothing" else 200)
            assert seconds < DEADLINE_SECONDS + SLACK_SECONDS

        await until(lambda: heartbeats(api), RECOVERY_SECONDS)
        await audit(api.store)


async def heartbeats(api: Api) -> bool:
    answer = await api.put("/heartbeat/t1")
    assert answer.status_code in (200, 503)
    return answer.status_code == 200


async def test_a_store_that_is_loading(tmp_path: Path) -> None:
    """It says so for as long as it reads its file, and then has everything that was in it."""
    with running_redis(tmp_path) as first:
        settings = Settings(store_url=first.url, shards=4, **FIELDS)
        async with running(settings) as api:
            for number in range(1, 31):
                await api.create(taskId=f"t{number}")
            await api.store.scripts.command("SAVE")
            first.kill()
            assert not await heartbeats(api)
            slowly = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
            with running_redis(tmp_path, *slowly, port=first.port):
                for answer, seconds in await asyncio.gather(*(ask(api, *call) for call in every_call())):
                    check(answer, seconds)
                assert (await ask(api, "GET", "/health"))[0].status_code == 200
                assert (await ask(api, "GET", "/ready"))[0].json()["status"] == "unavailable"
                await until(lambda: heartbeats(api))
                assert await audit(api.store) == 30


async def test_a_master_that_became_a_replica_is_left_for_the_one_that_the_address_leads_to_now(tmp_path: Path) -> None:
    """As when a name, a virtual address or a Service moves: connections to the old one stay open, and only read."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    at_once = ("--repl-diskless-sync-delay", "0")
    with running_redis(tmp_path / "old", *at_once) as old, running_redis(tmp_path / "new", *at_once) as new:
        async with (
            running_proxy(old.port) as proxy,
            running(Settings(store_url=proxy.url, shards=4, **FIELDS)) as api,
            Redis(port=old.port, protocol=2) as operator,
            Redis(port=new.port, protocol=2) as other,
        ):
            await asyncio.gather(*(ask(api, *call) for call in every_call()))
            session = await api.create(taskId="t1")
            await other.replicaof("127.0.0.1", old.port)

            async def replicated() -> bool:
                return (await operator.info("replication"))["connected_slaves"] == 1 and await other.dbsize() > 0

            await until(replicated)
            await other.replicaof("NO", "ONE")
            await operator.replicaof("127.0.0.1", new.port)
            proxy.to = new.port
            await until(lambda: heartbeats(api), RECOVERY_SECONDS)
            later = await api.create(taskId="t9", agentId="later")
            assert later in (await api.get()).json()["sessions"]
            assert (await api.get("/stats")).json()["sessions"] == len((await api.get()).json()["sessions"])
            assert (await api.get("/by-task/t1")).json()["session"]["id"] == session["id"]
            left = [one for one in await operator.client_list() if one["flags"] == "N" and one["cmd"] != "client|list"]
            assert left == [], "connections to the old one"


async def test_a_forwarded_id_can_be_read_where_nothing_can_be_written(own_redis: RedisServer) -> None:
    """Its forward would be renewed by that, in the second half of its life."""
    async with open_store(Settings(store_url=own_redis.url, **FIELDS)) as store:
        made = await asyncio.gather(*(store.sessions.create(a_run(f"t{number}")) for number in range(20)))
    async with open_store(Settings(store_url=own_redis.url, shards=4, **FIELDS)) as store:
        await reshard(store.scripts)
        client = store.scripts.client
        forwards = await client.keys("*:moved:*")
        assert forwards
        for key in forwards:
            await client.pexpire(key, 14 * 86_400_000)
        await client.config_set("min-replicas-to-write", 1)
        for one in made:
            assert await store.sessions.get(Target.id(one.session["id"])) == one.session
        with pytest.raises(StoreUnavailable):
            await store.sessions.heartbeat(Target.id(made[0].session["id"]))
