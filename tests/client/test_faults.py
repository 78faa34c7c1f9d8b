"""A server that is killed, frozen and slow: the work goes on, and afterwards the tracker knows all of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.api.conftest import Server, serving
from tests.client.conftest import OpenClient, answering, ends_of, sessions_of
from tests.patience import until
from tracker.client import Lost, Retries, Unavailable

BOTH = pytest.mark.parametrize("mode", ["sync", "async"])
QUICK = Retries(timeout_seconds=0.3, deadline_seconds=0.6)


@pytest.fixture
def mode(backend: str) -> str:
    """Every call is tried in all four ways in test_contract.py; what takes its time is tried in two."""
    return {"memory": "sync", "redis": "async", "cluster": "sync"}[backend]


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_a_server_that_is_frozen_holds_up_neither_calls_nor_work(open_client: OpenClient, server: Server) -> None:
    driver = open_client(server.url, retries=QUICK)
    lost: list[Lost] = []
    async with driver.track(task_id="before", ttl_seconds=20, on_lost=lost.append, patience=0.3) as before:
        with frozen(server):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await driver.call("stats")
            during = await driver.enter(task_id="during", ttl_seconds=20, patience=0.3, on_lost=lost.append)
            assert not await during.set_provider_session("p-during")
            assert not await before.set_provider_session("p-before")
            during.progress("alone")
            assert time.monotonic() - began < 15, "each waits for a part of a second"

        async def known() -> bool:
            found = {session["taskId"]: session for session in await sessions_of(server.url)}
            told = {task: session["providerSessionId"] for task, session in found.items()}
            return told == {"before": "p-before", "during": "p-during"} and found["during"]["progress"] == "alone"

        await until(known)
        await during.end()
    assert lost == []

    async def over() -> bool:
        return {event["reason"] for event in await ends_of(server.url)} == {"deleted"}

    await until(over)
    assert await sessions_of(server.url) == []


async def test_work_that_begins_and_ends_while_the_server_is_frozen_leaves_nothing_behind(
    open_client: OpenClient, server: Server
) -> None:
    driver = open_client(server.url, retries=QUICK)
    with frozen(server):
        async with driver.track(task_id="t1", ttl_seconds=20, patience=0.3):
            pass

    async def told() -> bool:
        return [event["reason"] for event in await ends_of(server.url)] == ["deleted"]

    await until(told)
    assert await sessions_of(server.url) == []


async def test_a_run_outlives_a_server_that_is_killed_and_comes_back(
    open_client: OpenClient, swift: dict[str, str], backend: str, tmp_path: Path
) -> None:
    """The embedded store comes back empty, and the run registers anew; elsewhere it is the same session all along."""
    lost: list[Lost] = []
    with ExitStack() as stack:
        first = stack.enter_context(serving(tmp_path / "1.log", **swift))
        driver = open_client(first.url, retries=QUICK)
        run = await driver.enter(task_id="t1", ttl_seconds=15, reregister=True, on_lost=lost.append)
        mine = run.session_id
        os.kill(first.pid, signal.SIGKILL)
        run.progress("alone")
        assert not await run.set_provider_session("p-123")
        stack.enter_context(serving(tmp_path / "2.log", TRACKER_PORT=first.url.rpartition(":")[2], **swift))

        async def known() -> bool:
            found = await sessions_of(first.url)
            return [(one["providerSessionId"], one["progress"]) for one in found] == [("p-123", "alone")]

        await until(known)
        assert (run.session_id == mine) == (backend != "memory")
        assert [one.reason for one in lost] == (["ended"] if backend == "memory" else [])
        assert run.lost is None
        await driver.close(20)
        assert [event["reason"] for event in await ends_of(first.url)] == ["deleted"]


@BOTH
async def test_a_server_that_takes_its_time_is_waited_for_and_one_that_takes_too_long_is_not(
    open_client: OpenClient,
) -> None:
    """Bytes that trickle in keep a timeout of silence from ever coming: the deadline counts."""

    async def slowly(head: bytes) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"
        for piece in [b" "] * 40 + [b'"sessions": []}']:
            await asyncio.sleep(0.02)
            yield piece

    async with answering(slowly) as url:
        patient = open_client(url, retries=Retries(timeout_seconds=10, deadline_seconds=60))
        assert await patient.call("list_sessions") == {"sessions": []}
        hasty = open_client(url, retries=Retries(timeout_seconds=10, deadline_seconds=0.3))
        with pytest.raises(Unavailable):
            await hasty.call("list_sessions")


@BOTH
async def test_a_list_that_is_cut_is_never_taken_for_a_whole_one(open_client: OpenClient) -> None:
    asked = 0

    async def cut(head: bytes) -> AsyncIterator[bytes]:
        nonlocal asked
        asked += 1
        yield b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"sessions": [] \r\n'

    async with answering(cut) as url:
        driver = open_client(url, retries=QUICK)
        with pytest.raises(Unavailable):
            await driver.call("list_sessions")
    assert asked > 1, "it is read again"


@BOTH
async def test_nobody_there_is_said_within_the_deadline(open_client: OpenClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable) as refused:
        await open_client(f"http://127.0.0.1:{port}", retries=QUICK).call("cleanup", agent_id="a")
    assert not refused.value.sent
