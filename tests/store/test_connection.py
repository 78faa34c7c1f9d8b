"""The connection: nobody gets another's reply, nothing is sent twice, nobody waits long, and every error is ours."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions as driver
from redis.asyncio import SSLConnection, UnixDomainSocketConnection

from tests.redis_server import RedisServer, running_redis
from tests.store.pools import pool_for, pool_of
from tests.store.puppet import Puppet, resp, running_puppet
from tests.store.wire import a_cleanup, a_list, a_run, some_events
from tracker.errors import StoreError, StoreFault, StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store import store as store_module
from tracker.store.connection import fault_of, translated
from tracker.store.store import Store, open_store

TASK = Target.task("t1")
TIMEOUT = 0.3
SLACK = 0.7
"""What a busy machine may add (s)."""


@pytest.fixture
async def puppet() -> AsyncIterator[Puppet]:
    async with running_puppet() as running:
        yield running


@pytest.fixture
async def pod(puppet: Puppet) -> AsyncIterator[Store]:
    """A pod on the puppet that does not wait for long."""
    async with open_store(Settings(store_url=puppet.url, store_timeout_seconds=TIMEOUT)) as store:
        yield store


async def call(pod: Store, *words: str) -> Any:
    return await pod.scripts.run("stats", pod.scripts.shards[0], *words)


# --- I10: whose reply is it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["in one packet", "a moment later"])
async def test_a_reply_too_many_never_reaches_the_next_caller(pod: Store, puppet: Puppet, apart: bool) -> None:
    async def answer_twice(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if not apart:
            return resp(own) + resp([b"stale"])
        asyncio.get_running_loop().call_later(0.01, writer.write, resp([b"stale"]))
        return resp(own)

    puppet.answer = answer_twice
    for word in ("first", "second", "third"):
        assert await call(pod, word) == [word.encode()]
        await asyncio.sleep(0.02)
    assert puppet.connections == 3, "a connection with a reply to spare is not used again"


async def test_the_reply_to_a_call_that_was_given_up_never_reaches_another(pod: Store, puppet: Puppet) -> None:
    given_up = asyncio.Event()

    async def answer_late(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if own == [b"slow"]:
            await given_up.wait()
        return resp(own)

    puppet.answer = answer_late
    with pytest.raises(StoreUnavailable):
        await call(pod, "slow")
    next_call = asyncio.create_task(call(pod, "next"))
    await asyncio.sleep(0)
    given_up.set()
    assert await next_call == [b"next"]
    assert await call(pod, "last") == [b"last"]


async def test_a_caller_who_leaves_in_between_leaves_no_reply_behind(pod: Store, puppet: Puppet) -> None:
    for number in range(20):
        leaving = asyncio.create_task(call(pod, f"leaving {number}"))
        for _ in range(number):
            await asyncio.sleep(0)
        leaving.cancel()
        assert await call(pod, f"staying {number}") == [f"staying {number}".encode()]


@pytest.mark.parametrize("script", ["stats", "read"], ids=["through the client", "through the pipe"])
async def test_late_replies_to_a_handshake_that_was_given_up_are_nobodys(puppet: Puppet, script: str) -> None:
    async def answer(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(0.05)
        return resp(own) if script == "stats" else resp([[b"missing"]])

    async def ask(pod: Store, word: str) -> None:
        if script == "stats":
            assert await call(pod, word) == [word.encode()]
        else:
            assert await pod.sessions.get(Target.task(word)) is None

    puppet.answer = answer
    puppet.greets.clear()
    async with open_store(Settings(store_url=f"{puppet.url}?client_name=pod", store_timeout_seconds=TIMEOUT)) as pod:
        with pytest.raises(StoreUnavailable):
            await ask(pod, "first")
        second = asyncio.create_task(ask(pod, "second"))
        await asyncio.sleep(0.05)
        puppet.greets.set()
        await asyncio.gather(second, return_exceptions=True)
        for word in ("third", "fourth", "fifth"):
            await ask(pod, word)
    assert second.exception() is None or isinstance(second.exception(), StoreUnavailable)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_check_for_unread_data_is_on(scheme: str) -> None:
    pool = pool_for(f"{scheme}://127.0.0.1:1/0")
    assert not pool.maint_notifications_enabled()  # type: ignore[no-untyped-call]
    assert pool.connection_kwargs["protocol"] == 2


# --- nothing is sent twice --------------------------------------------------------------------------------------------


async def test_a_call_whose_reply_was_lost_is_not_repeated(pod: Store, puppet: Puppet) -> None:
    async def hang_up(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        puppet.hang_up()
        return b""

    puppet.answer = hang_up
    with pytest.raises(StoreUnavailable):
        await pod.sessions.create(a_run())
    assert [name for name, _ in puppet.heard] == [b"EVALSHA"]


async def test_a_call_without_a_reply_is_given_up_in_time_and_not_repeated(pod: Store, puppet: Puppet) -> None:
    async def stay_silent(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(10)
        return b""

    puppet.answer = stay_silent
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await pod.sessions.create(a_run())
    assert time.monotonic() - began < TIMEOUT + SLACK
    assert [name for name, _ in puppet.heard] == [b"EVALSHA"]


async def test_a_script_that_redis_does_not_know_is_sent_whole_once(pod: Store, puppet: Puppet) -> None:
    async def know_nothing(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return b"-NOSCRIPT No matching script.\r\n" if len(puppet.heard) == 1 else resp(own)

    puppet.answer = know_nothing
    assert await call(pod, "word") == [b"word"]
    assert [name for name, _ in puppet.heard] == [b"EVALSHA", b"EVAL"]


async def test_a_server_that_never_learns_scripts_is_asked_twice_and_no_more(pod: Store, puppet: Puppet) -> None:
    async def know_nothing(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return b"-NOSCRIPT No matching script.\r\n"

    puppet.answer = know_nothing
    with pytest.raises(StoreError):
        await pod.sessions.get(TASK)
    assert len(puppet.heard) == 2


# --- errors -----------------------------------------------------------------------------------------------------------

UNAVAILABLE = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
    "UNKILLABLE Sorry the script already executed write commands against the dataset.",
    "ERR max number of clients reached",
    "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not allowed.",
    "ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write against a read only replica.",
]
FAULTS = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR Error running script (call to f_1): @user_script:9: WRONGTYPE Operation against a key",
    "ERR user_script:3: attempt to perform arithmetic on a nil value script: 1, on @user_script:3.",
    "ERR unknown command 'EVALSHA', with args beginning with: ",
]


@pytest.mark.parametrize("text", UNAVAILABLE)
async def test_what_time_may_heal_is_unavailable(pod: Store, puppet: Puppet, text: str) -> None:
    """The driver cuts the first word off some of these."""

    async def refuse(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return f"-{text}\r\n".encode()

    puppet.answer = refuse
    for act in (pod.sessions.get(TASK), pod.stats()):
        with pytest.raises(StoreUnavailable):
            await act
    assert isinstance(fault_of(text), StoreUnavailable), "the same inside an operation's own error"


@pytest.mark.parametrize("text", FAULTS)
async def test_what_time_does_not_heal_is_a_fault(pod: Store, puppet: Puppet, text: str) -> None:
    async def refuse(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return f"-{text}\r\n".encode()

    puppet.answer = refuse
    for act in (pod.sessions.get(TASK), pod.stats()):
        with pytest.raises(StoreFault):
            await act
    assert isinstance(fault_of(text), StoreFault)


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\xff\r\n", b"*99999999999999999999\r\n"])
async def test_what_is_no_redis_is_unavailable(pod: Store, puppet: Puppet, noise: bytes) -> None:
    async def babble(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return noise

    puppet.answer = babble
    with pytest.raises(StoreUnavailable):
        await pod.stats()


@pytest.mark.parametrize("noise", [b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n"])
async def test_what_no_script_replies_is_unavailable_and_the_true_reply_is_nobodys(
    pod: Store, puppet: Puppet, noise: bytes
) -> None:
    """It comes late: the check for unread data, before the connection is used again, would not see it."""

    async def answer(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        puppet.answer = echo_later
        asyncio.get_running_loop().call_later(0.02, writer.write, resp(own))
        return noise

    await call(pod, "warm")
    puppet.answer = answer
    with pytest.raises(StoreUnavailable, match="no reply"):
        await call(pod, "first")
    assert await call(pod, "second") == [b"second"]

    async def answer_piped(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        puppet.answer = find_nothing
        asyncio.get_running_loop().call_later(0.02, writer.write, resp([[b"found", b"somebody else"]]))
        return noise

    puppet.answer = answer_piped
    with pytest.raises(StoreUnavailable):
        await pod.sessions.get(TASK)
    assert await pod.sessions.get(TASK) is None


async def echo_later(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
    await asyncio.sleep(0.05)
    return resp(own)


async def find_nothing(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
    await asyncio.sleep(0.05)
    return resp([[b"missing"]])


DRIVER_ERRORS = [
    error
    for _, error in inspect.getmembers(driver, inspect.isclass)
    if issubclass(error, Exception) and error.__module__.startswith("redis.") and error is not driver.NoScriptError
]


@pytest.mark.parametrize("error", DRIVER_ERRORS)
def test_every_error_of_the_driver_becomes_ours(error: type[Exception]) -> None:
    made = error.__new__(error, "text")
    made.args = ("text",)
    with pytest.raises(StoreError, match=r"text|store") as raised, translated():
        raise made
    assert raised.value.__cause__ is made


def test_the_driver_has_errors_to_map() -> None:
    assert {driver.RedisError, driver.ConnectionError, driver.ResponseError} < set(DRIVER_ERRORS)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        OSError("no route"),
        ConnectionResetError(),
        BrokenPipeError(),
        EOFError(),
        asyncio.IncompleteReadError(b"", 1),
        socket.gaierror("unknown host"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_network_are_unavailable_with_a_sentence(error: Exception) -> None:
    with pytest.raises(StoreUnavailable, match=r"cannot be reached: \S|in time") as raised, translated():
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [asyncio.CancelledError, ValueError, KeyboardInterrupt])
def test_what_is_not_the_stores_fault_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), translated():
        raise error


# --- servers that come and go -----------------------------------------------------------------------------------------

EVERYTHING: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "create": lambda pod: pod.sessions.create(a_run()),
    "create with key": lambda pod: pod.sessions.create(a_run(), "key"),
    "get": lambda pod: pod.sessions.get(TASK),
    "heartbeat": lambda pod: pod.sessions.heartbeat(TASK),
    "heartbeat_all": lambda pod: pod.sessions.heartbeat_all([TASK, Target.task("t2")]),
    "provider": lambda pod: pod.sessions.set_provider_session(TASK, "p"),
    "stop": lambda pod: pod.sessions.request_stop(TASK),
    "delete": lambda pod: pod.sessions.delete(TASK),
    "sweep": lambda pod: pod.sweeper.sweep(),
    "cleanup": lambda pod: pod.sweeper.cleanup(a_cleanup(agentId="a1")),
    "page": lambda pod: pod.listing.page(a_list(), 10),
    "page by task": lambda pod: pod.listing.page(a_list(taskId="t1"), 10),
    "events": lambda pod: pod.feed.page(some_events()),
    "stats": lambda pod: pod.stats(),
    "inspect": lambda pod: pod.inspect(),
}


async def outcome(act: Awaitable[Any]) -> tuple[float, Any]:
    """How long it took (s), and what came of it."""
    began = time.monotonic()
    try:
        result = await act
    except Exception as error:
        result = error
    return time.monotonic() - began, result


def impatient(url: str, **fields: Any) -> Settings:
    return Settings(**{"store_url": url, "store_timeout_seconds": TIMEOUT, **fields})


@pytest.fixture
def own_redis(tmp_path: Path) -> Any:
    with running_redis(tmp_path) as server:
        yield server


@pytest.mark.parametrize("known", [True, False], ids=["known before", "first met"])
@pytest.mark.parametrize("shards", [1, 4])
async def test_a_frozen_store_is_unavailable_in_time_for_everybody(
    own_redis: RedisServer, known: bool, shards: int
) -> None:
    """Many calls of every kind at once; and afterwards each gets its own answer again, without a restart."""
    async with open_store(impatient(own_redis.url, shards=shards)) as pod:
        if known:
            await pod.sessions.create(a_run())
        own_redis.freeze()
        try:
            outcomes = await asyncio.gather(*(outcome(act(pod)) for _ in range(10) for act in EVERYTHING.values()))
        finally:
            own_redis.thaw()
        assert {type(result) for _, result in outcomes} == {StoreUnavailable}
        assert max(took for took, _ in outcomes) < TIMEOUT + SLACK

        for number in range(20):
            target = Target.task(f"after {number}")
            created = await pod.sessions.create(a_run(target.value))
            assert await pod.sessions.get(target) == created.session


async def test_a_pod_works_again_when_its_store_comes_back(tmp_path: Path) -> None:
    with running_redis(tmp_path) as first:
        port = first.port
        async with open_store(impatient(first.url)) as pod:
            await pod.sessions.create(a_run())
            first.kill()
            for act in EVERYTHING.values():
                took, result = await outcome(act(pod))
                assert isinstance(result, StoreUnavailable), result
                assert took < TIMEOUT + SLACK
            with running_redis(tmp_path, port=port):
                assert await pod.sessions.get(TASK) is None
                for name, act in EVERYTHING.items():
                    _, result = await outcome(act(pod))
                    assert not isinstance(result, Exception), name


async def test_connections_that_redis_closed_are_no_failure(redis_server: RedisServer, namespace: str) -> None:
    """As its `timeout` setting, a failover or a proxy does to idle ones."""
    name = f"idle-{namespace}"
    async with (
        open_store(Settings(store_url=f"{redis_server.url}?client_name={name}", namespace=namespace)) as pod,
        open_store(Settings(store_url=redis_server.url, namespace=namespace)) as operator,
    ):
        await pod.sessions.create(a_run())
        assert await drop_connections(operator, name) > 0
        await asyncio.sleep(0.01)
        assert await pod.sessions.heartbeat(TASK)


async def connections_of(store: Store, name: str) -> list[str]:
    """The ids of the connections that a client has open."""
    listed = await store.scripts.client.client_list()
    return [one["id"] for one in listed if one["name"] == name]


async def drop_connections(store: Store, name: str) -> int:
    ids = await connections_of(store, name)
    for one in ids:
        await store.scripts.client.client_kill_filter(_id=one)
    return len(ids)


async def test_closing_a_store_closes_its_connections(redis_server: RedisServer, namespace: str) -> None:
    name = f"closing-{namespace}"
    async with open_store(Settings(store_url=redis_server.url, namespace=namespace)) as operator:
        async with open_store(Settings(store_url=f"{redis_server.url}?client_name={name}")) as pod:
            await asyncio.gather(*(pod.stats() for _ in range(5)))
            assert await connections_of(operator, name)
        assert await connections_of(operator, name) == []


@pytest.mark.parametrize("how", ["through the client", "through the pipe", "more than the socket takes"])
async def test_closing_a_store_waits_for_no_deadline(
    own_redis: RedisServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has to be gone in ten seconds, and a call may be given sixty."""
    calls: dict[str, Callable[[Store], Awaitable[Any]]] = {
        "through the client": lambda pod: pod.stats(),
        "through the pipe": lambda pod: pod.sessions.get(TASK),
        "more than the socket takes": lambda pod: call(pod, "x" * 30_000_000),
    }
    monkeypatch.setattr(store_module, "CLOSING_SECONDS", 0.1)
    async with open_store(Settings(store_url=own_redis.url, store_timeout_seconds=60)) as pod:
        await pod.sessions.create(a_run())
        await pod.stats()
        own_redis.freeze()
        waiting = asyncio.create_task(outcome(calls[how](pod)))
        await asyncio.sleep(0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 0.1 + 10 * SLACK
    took, result = await waiting
    own_redis.thaw()
    assert isinstance(result, StoreUnavailable)
    assert took < 0.1 + 10 * SLACK


async def test_nobody_listening_is_unavailable_in_time() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        async with open_store(impatient(f"redis://127.0.0.1:{taken.getsockname()[1]}/0")) as pod:
            took, result = await outcome(pod.sessions.get(TASK))
    assert isinstance(result, StoreUnavailable)
    assert took < TIMEOUT + SLACK


async def test_a_host_that_accepts_and_says_nothing_is_unavailable_in_time() -> None:
    """As a load balancer without anything behind it."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        async with open_store(impatient(f"redis://127.0.0.1:{mute.getsockname()[1]}/0")) as pod:
            outcomes = await asyncio.gather(*(outcome(act(pod)) for act in EVERYTHING.values()))
    assert {type(result) for _, result in outcomes} == {StoreUnavailable}
    assert max(took for took, _ in outcomes) < TIMEOUT + SLACK


async def test_more_calls_at_once_than_connections_are_all_answered(store: Store) -> None:
    answers = await asyncio.gather(*(store.stats() for _ in range(500)))
    assert len(answers) == 500


# --- ways to reach it -------------------------------------------------------------------------------------------------


async def test_a_unix_socket_will_do(redis_server: RedisServer, namespace: str) -> None:
    async with (
        open_store(Settings(store_url=redis_server.unix_url, namespace=namespace)) as pod,
        open_store(Settings(store_url=redis_server.url, namespace=namespace)) as other,
    ):
        assert pool_of(pod.scripts.client).connection_class is UnixDomainSocketConnection
        created = await pod.sessions.create(a_run())
        assert await other.sessions.get(TASK) == created.session


async def test_a_unix_socket_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with open_store(impatient(f"unix://{tmp_path / 'none.sock'}")) as pod:
        with pytest.raises(StoreUnavailable):
            await pod.sessions.get(TASK)


def test_rediss_means_tls() -> None:
    """Whose certificates are trusted is shown where the pipe opens one."""
    assert pool_for("rediss://127.0.0.1:1/0").connection_class is SSLConnection


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0", "unix:///nowhere.sock"])
def test_no_setting_of_the_driver_is_left_to_its_defaults(url: str) -> None:
    pool = pool_for(url, timeout=0.5)
    connection = pool.make_connection()  # type: ignore[no-untyped-call]
    assert connection.retry._retries == 0
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (0.5, 0.5)
    assert pool.timeout == 0.5
    assert connection.protocol == 2


async def test_the_database_of_the_url_is_used(redis_server: RedisServer, namespace: str) -> None:
    third = redis_server.url.removesuffix("/0") + "/3"
    async with (
        open_store(Settings(store_url=third, namespace=namespace)) as pod,
        open_store(Settings(store_url=redis_server.url, namespace=namespace)) as other,
    ):
        await pod.sessions.create(a_run())
        assert await other.sessions.get(TASK) is None
        await other.scripts.command("SELECT", 3)


async def test_the_password_of_the_url_is_used_and_a_wrong_one_is_unavailable(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--requirepass", "s@cret") as server:
        place = server.url.removeprefix("redis://")
        async with open_store(impatient(f"redis://:s%40cret@{place}")) as pod:
            assert await pod.sessions.create(a_run())
        for login in ("", ":wrong@"):
            async with open_store(impatient(f"redis://{login}{place}")) as pod:
                with pytest.raises(StoreUnavailable) as refused:
                    await pod.sessions.get(TASK)
                assert "wrong" not in str(refused.value).lower() or "WRONGPASS" in str(refused.value)


async def test_two_embedded_stores_know_nothing_of_each_other() -> None:
    async with open_store(Settings()) as first, open_store(Settings()) as second:
        await first.sessions.create(a_run())
        assert await second.sessions.get(TASK) is None
