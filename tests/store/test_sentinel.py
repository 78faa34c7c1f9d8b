"""Sentinel: who is believed, that nobody stays with an old master, and that asking costs nobody his deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.patience import until
from tests.redis_server import running_redis
from tests.store.pools import pool_of
from tests.store.puppet import Puppet, running_puppet
from tests.store.sentinels import MASTER, ScriptedSentinel, running_sentinels
from tests.store.test_connection import SLACK, TIMEOUT, call
from tests.store.wire import a_cleanup, a_run
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store import sentinel as module
from tracker.store.connection import connect
from tracker.store.sentinel import MasterPool
from tracker.store.store import Store, open_store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.01)


@pytest.fixture
async def sentinels() -> AsyncIterator[list[ScriptedSentinel]]:
    async with running_sentinels() as running:
        yield running


@pytest.fixture
async def puppets() -> AsyncIterator[tuple[Puppet, Puppet]]:
    """Two servers that both hold themselves to be the master, as long as nobody says otherwise."""
    async with running_puppet() as first, running_puppet() as second:
        yield first, second


def settings_of(
    sentinels: list[ScriptedSentinel], timeout: float = TIMEOUT, login: str = "", query: str = ""
) -> Settings:
    places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    return Settings(store_url=f"redis+sentinel://{login}{places}/{MASTER}{query}", store_timeout_seconds=timeout)


def say(sentinels: list[ScriptedSentinel], port: int, epoch: int = 0) -> None:
    for sentinel in sentinels:
        sentinel.names(port, epoch)


@asynccontextmanager
async def pod_on(sentinels: list[ScriptedSentinel], deadline: float = TIMEOUT) -> AsyncIterator[Store]:
    async with open_store(settings_of(sentinels, deadline)) as pod:
        yield pod


async def test_calls_go_to_the_master_that_the_sentinels_name(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]
) -> None:
    say(sentinels, puppets[1].port)
    async with pod_on(sentinels) as pod:
        assert await call(pod, "word") == [b"word"]
    assert (puppets[0].connections, len(puppets[1].heard)) == (0, 1)


async def test_of_sentinels_that_disagree_the_latest_epoch_is_believed(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]
) -> None:
    """That of a failover under way: only the sentinel that leads it knows as yet."""
    say(sentinels, puppets[0].port, 7)
    sentinels[2].names(puppets[1].port, 8)
    async with pod_on(sentinels, 5) as pod:
        assert await call(pod, "word") == [b"word"]
    assert [name for name, _ in puppets[1].heard] == [b"EVALSHA"]


@pytest.mark.parametrize("silent", ["gone", "mute", "ignorant"])
async def test_one_sentinel_that_answers_will_do_to_connect(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet], silent: str
) -> None:
    say(sentinels, puppets[0].port)
    sentinels[0].mute = sentinels[2].mute = silent == "mute"
    sentinels[0].ignorant = sentinels[2].ignorant = silent == "ignorant"
    settings = settings_of(sentinels, 1)
    if silent == "gone":
        url = settings.store_url.replace(f":{sentinels[0].port}", ":1").replace(f":{sentinels[2].port}", ":2")
        settings = settings.model_copy(update={"store_url": url})
    async with open_store(settings) as pod:
        assert await call(pod, "word") == [b"word"]


async def test_a_master_that_was_replaced_is_left_by_everybody_at_once(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]
) -> None:
    """Though it is alive, and holds itself to be the master: those who wait for it are told at once."""
    old, new = puppets
    old.answer = say_nothing
    say(sentinels, old.port, 1)
    async with pod_on(sentinels, 10) as pod:
        stuck = [asyncio.create_task(call(pod, "stuck")) for _ in range(3)]

        async def all_are_stuck() -> bool:
            return len(old.heard) == len(stuck)

        await until(all_are_stuck)
        say(sentinels, new.port, 2)
        for one in stuck:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await one
        assert await call(pod, "word") == [b"word"]
    assert (len(old.heard), len(new.heard)) == (len(stuck), 1)


async def say_nothing(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
    return b""


async def test_the_hot_path_moves_with_the_rest(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]
) -> None:
    old, new = puppets
    for puppet in puppets:
        puppet.answer = nobody
    say(sentinels, old.port, 1)
    async with pod_on(sentinels, 10) as pod:
        assert await pod.sessions.get(Target.task("t")) is None
        say(sentinels, new.port, 2)

        async def moved() -> bool:
            with suppress(StoreUnavailable):
                await pod.sessions.get(Target.task("t"))
            return bool(new.heard)

        await until(moved)
        heard = len(old.heard)
        assert await pod.sessions.get(Target.task("t")) is None
        assert len(old.heard) == heard


async def nobody(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
    return b"*1\r\n*1\r\n$7\r\nmissing\r\n"


@pytest.mark.parametrize("silent", ["one", "all"])
async def test_sentinels_that_fall_silent_take_no_connection_away(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet], silent: str
) -> None:
    """And one of three that is cut off from the others, and names another, does not either."""
    say(sentinels, puppets[0].port, 1)
    async with pod_on(sentinels) as pod:
        assert await call(pod, "first") == [b"first"]
        connections = puppets[0].connections
        for sentinel in sentinels[1:] if silent == "one" else sentinels:
            sentinel.mute = True
        sentinels[0].names(puppets[1].port, 9)
        asked = sentinels[0].asked
        await asyncio.sleep(2 * TIMEOUT)
        if silent == "one":
            assert sentinels[0].asked > asked
        assert await call(pod, "second") == [b"second"]
    assert puppets[0].connections == connections
    assert puppets[1].connections == 0


async def test_a_master_that_has_become_a_replica_is_refused_at_the_door(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]
) -> None:
    """Or its answers to whoever only reads would grow old unnoticed."""
    puppets[0].role = b"slave"
    say(sentinels, puppets[0].port)
    async with pod_on(sentinels, 5) as pod:
        with pytest.raises(StoreUnavailable, match=r"no master any more"):
            await call(pod, "word")
        assert puppets[0].heard == []
        say(sentinels, puppets[1].port, 1)
        assert await call(pod, "word") == [b"word"]


@pytest.mark.parametrize("how", ["gone", "mute", "ignorant"])
async def test_without_sentinels_everybody_is_told_in_time(sentinels: list[ScriptedSentinel], how: str) -> None:
    for sentinel in sentinels:
        sentinel.mute, sentinel.ignorant = how == "mute", how == "ignorant"
    settings = settings_of(sentinels)
    if how == "gone":
        settings = settings.model_copy(update={"store_url": f"redis+sentinel://127.0.0.1:1,127.0.0.1:2/{MASTER}"})
    async with open_store(settings) as pod:
        began = time.monotonic()
        calls = [call(pod, "word"), pod.sessions.get(Target.task("t"))] * 20
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(failure) for failure in failures} == {StoreUnavailable}
        assert time.monotonic() - began < TIMEOUT + SLACK
        with pytest.raises(StoreUnavailable, match=f"no sentinel says who is master of {MASTER}|in time"):
            await call(pod, "word")


async def test_many_who_connect_at_once_share_an_answer(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 60)
    say(sentinels, puppets[0].port)
    async with pod_on(sentinels, 10) as pod:
        await asyncio.gather(*(pod.scripts.command("PING") for _ in range(60)))
    assert puppets[0].connections > 20
    assert sentinels[0].asked < 8


async def test_closing_leaves_neither_task_nor_connection(
    sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]
) -> None:
    say(sentinels, puppets[0].port)
    before = asyncio.all_tasks()
    async with pod_on(sentinels) as pod:
        await call(pod, "word")
        pool = pool_of(pod.scripts.client)
        clients = pool._sentinels._clients  # type: ignore[attr-defined]
    everyone = [pool, *(pool_of(client) for client in clients)]
    assert not [one for each in everyone for one in each._available_connections if one.is_connected]
    assert not [one for each in everyone for one in each._in_use_connections]

    async def ended() -> bool:
        return not {task for task in asyncio.all_tasks() - before if "_follow" in repr(task) or "_view" in repr(task)}

    await until(ended)


# --- what the URL says ------------------------------------------------------------------------------------------------


async def test_each_side_gets_its_own_login(sentinels: list[ScriptedSentinel], puppets: tuple[Puppet, Puppet]) -> None:
    say(sentinels, puppets[0].port)
    query = "?sentinel_username=watcher&sentinel_password=p%40w&client_name=me"
    settings = settings_of(sentinels, 5, "app:s%2Fcret@", query)
    async with open_store(settings) as pod:
        assert await call(pod, "word") == [b"word"]
        options = pool_of(pod.scripts.client).connection_kwargs
    assert [b"AUTH", b"watcher", b"p@w"] in sentinels[0].heard
    assert (options["username"], options["password"], options["client_name"]) == ("app", "s/cret", "me")


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_no_setting_of_the_driver_is_left_to_its_defaults(scheme: str) -> None:
    url = f"{scheme}+sentinel://h1,h2/{MASTER}/3"
    pool = connect(Settings(store_url=url, store_timeout_seconds=0.5)).connection_pool
    assert isinstance(pool, MasterPool)
    assert pool.timeout == 0.5
    connections = [pool.make_connection()]  # type: ignore[no-untyped-call]
    assert connections[0].db == 3
    for client, host in zip(pool._sentinels._clients, ("h1", "h2"), strict=True):
        connections.append(client.connection_pool.make_connection())  # type: ignore[no-untyped-call]
        assert (connections[-1].host, connections[-1].port, connections[-1].db) == (host, 26379, 0)
    for connection in connections:
        assert connection.retry._retries == 0
        assert connection.socket_timeout <= 0.5
        assert connection.socket_connect_timeout <= 0.5
        assert connection.protocol == 2
        assert hasattr(connection, "ssl_context") == (scheme == "rediss")
    for each in (pool, *(client.connection_pool for client in pool._sentinels._clients)):
        assert not each.maint_notifications_enabled()  # type: ignore[no-untyped-call]


# --- a server that becomes a replica, behind whatever URL -------------------------------------------------------------


@pytest.mark.parametrize("by", ["heartbeat", "create", "sweep", "cleanup", "claim"])
async def test_a_server_that_became_a_replica_is_left_with_the_first_write(tmp_path: Path, by: str) -> None:
    """Behind a name or a proxy that now leads elsewhere: open connections would stay, and read for ever."""
    with running_redis(tmp_path) as server:
        settings = Settings(store_url=f"{server.url}?client_name=pod", store_timeout_seconds=5)
        async with open_store(settings) as pod, open_store(Settings(store_url=server.url)) as operator:
            await pod.sessions.create(a_run())
            await pod.stats()
            writes: dict[str, Callable[[], Awaitable[object]]] = {
                "heartbeat": lambda: pod.sessions.heartbeat(Target.task("t1")),
                "create": lambda: pod.sessions.create(a_run("t2")),
                "sweep": lambda: pod.sweeper.sweep(),
                "cleanup": lambda: pod.sweeper.cleanup(a_cleanup(agentId="a1")),
                "claim": lambda: pod.scripts.run("claim", pod.scripts.shards[0], "k", "f", 1000),
            }
            before = await connections(operator)
            assert len(before) >= 2
            await operator.scripts.command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreUnavailable, match=r"READONLY|read only"):
                await writes[by]()

            async def left() -> bool:
                return not before & await connections(operator)

            await until(left)
            await operator.scripts.command("REPLICAOF", "NO", "ONE")
            assert await pod.sessions.heartbeat(Target.task("t1"))
            await writes[by]()


async def test_a_server_that_is_meant_to_be_a_replica_is_not_left_again_and_again(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        settings = Settings(store_url=f"{server.url}?client_name=pod", store_timeout_seconds=5)
        async with open_store(settings) as pod, open_store(Settings(store_url=server.url)) as operator:
            await pod.sessions.create(a_run())
            await operator.scripts.command("REPLICAOF", "127.0.0.1", "1")
            for _ in range(30):
                with pytest.raises(StoreUnavailable):
                    await pod.sessions.heartbeat(Target.task("t1"))
            received = int((await operator.scripts.command("INFO"))["total_connections_received"])
            assert received < 20


async def connections(operator: Store) -> set[str]:
    listed = await operator.scripts.client.client_list()
    return {one["id"] for one in listed if one["name"] == "pod"}
