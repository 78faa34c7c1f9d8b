"""What a server does with the signals that tell it to leave, and what its callers see of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.api.conftest import BASE, running
from tests.patience import until
from tracker.api.drain import Drain
from tracker.settings import Settings

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LONG = 300


class Server(list[int]):
    """The signals that reached its own handlers."""


@pytest.fixture
def server() -> Iterator[Server]:
    """Handlers such as uvicorn has in place when it starts the application."""
    server = Server()
    before = {number: signal.signal(number, lambda told, frame: server.append(told)) for number in (INT, TERM)}
    before[HUP] = signal.signal(HUP, signal.SIG_IGN)
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("worker", [False, True])
@pytest.mark.parametrize(
    ("seconds", "signals", "passed_on"),
    [
        (LONG, [TERM], []),
        (LONG, [TERM, INT], [INT]),
        (LONG, [INT], [INT]),
        (0, [TERM], [TERM]),
        (0, [INT], [INT]),
    ],
)
async def test_sigterm_is_put_off_and_sigint_is_not(
    server: Server, worker: bool, seconds: float, signals: list[int], passed_on: list[int]
) -> None:
    drain, ends = Drain(seconds, worker=worker), 0

    def end() -> None:
        nonlocal ends
        ends += 1

    with drain.on_signals(end):
        assert (drain.closing, drain.unready) == (False, False)
        for number in signals:
            signal.raise_signal(number)
            assert (drain.closing, drain.unready) == (True, True)
        await asyncio.sleep(0)
        assert server == passed_on
        assert ends == len(passed_on), "the streams end with the server, and not before"
    signal.raise_signal(TERM)
    assert server == [*passed_on, TERM], "it listens no longer"


@pytest.mark.parametrize(
    ("worker", "signals", "passed_on"),
    [
        (False, [TERM, TERM], [TERM]),
        (False, [INT, INT], [INT, INT]),
        (True, [TERM, TERM], []),
        (True, [TERM, INT, INT, TERM], [INT]),
        (True, [INT, TERM], [INT]),
        (True, [HUP, TERM, HUP], []),
        (True, [HUP, INT], [INT]),
    ],
)
async def test_what_is_repeated_hurries_a_server_but_not_a_worker_whose_parent_repeats_it(
    server: Server, worker: bool, signals: list[int], passed_on: list[int]
) -> None:
    with Drain(LONG, worker=worker).on_signals(lambda: None):
        for number in signals:
            signal.raise_signal(number)
        assert server == passed_on


@pytest.mark.parametrize(("worker", "number"), [(False, TERM), (True, TERM), (True, HUP)])
async def test_when_the_drain_is_over_the_server_is_told_once(server: Server, worker: bool, number: int) -> None:
    drain, ended = Drain(0.01, worker=worker), asyncio.Event()
    with drain.on_signals(ended.set):
        signal.raise_signal(number)
        assert server == []
        async with asyncio.timeout(20):
            await ended.wait()
        assert server == [TERM]


async def test_a_drain_that_is_cut_short_does_not_end_a_second_time(server: Server) -> None:
    with Drain(0.01).on_signals(lambda: None):
        signal.raise_signal(TERM)
        signal.raise_signal(INT)
        await asyncio.sleep(0.05)
        assert server == [INT]


async def test_a_worker_that_is_replaced_leaves_the_others_ready(server: Server) -> None:
    """The address is theirs as well; a probe that reaches this one must not take it from them."""
    drain = Drain(LONG, worker=True)
    with drain.on_signals(lambda: None):
        signal.raise_signal(HUP)
        assert (drain.closing, drain.unready) == (True, False)
        signal.raise_signal(TERM)
        assert (drain.closing, drain.unready) == (True, True)


async def test_a_server_alone_does_not_listen_to_sighup(server: Server) -> None:
    with Drain(LONG).on_signals(lambda: None):
        assert signal.getsignal(HUP) is signal.SIG_IGN


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.settings(drain_seconds=LONG)
async def test_a_draining_server_serves_says_that_it_is_not_ready_and_ends_each_connection(
    server: Server, settings: Settings
) -> None:
    async with running(settings) as api:
        session = await api.create(taskId="t")
        assert "connection" not in (await api.put("/heartbeat/t")).headers
        signal.raise_signal(TERM)

        async def drains() -> bool:
            return (await api.client.get("/ready")).status_code == 503

        await until(drains)
        unready = await api.client.get("/ready")
        assert unready.json() == {"status": "draining", "error": "The server is about to stop"}
        assert unready.headers["retry-after"] == "1"
        assert (await api.put("/heartbeat/t")).json()["updated"] is True
        assert await api.find(session["id"])
        assert (await api.client.get("/health")).status_code == 200, "a liveness probe must not kill it"
        for path in ("/ready", "/health", "/metrics", "/nowhere", BASE, BASE + "/by-task/x", BASE + "?limit=x"):
            assert (await api.client.get(path)).headers["connection"] == "close", path
        assert server == []
