"""What becomes of runs when their process dies, exits or forks, on every backend."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from tests.api.conftest import Server
from tests.client.conftest import ends_of, python, sessions_of
from tests.patience import until

EXIT_SECONDS = 30
"""How long an interpreter may take to go, loaded as the machine may be; it takes some tenths."""

BEGIN = """
import os, sys, threading, time
from tracker.client import TrackerClient
client = TrackerClient(sys.argv[1])
run = client.track(agent_id="a", task_id="t1", trigger_type="t", ttl_seconds=1)
run.__enter__()
run.set_provider_session("p-123")
print(run.session_id, flush=True)
"""


def began(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.communicate()[1]
    return line


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=EXIT_SECONDS)
    finally:
        process.kill()


async def endings(server: Server) -> list[tuple[str, Any]]:
    return [(event["reason"], event["session"]["providerSessionId"]) for event in await ends_of(server.url)]


async def test_a_run_that_is_killed_expires_and_its_end_names_what_resumes_it(server: Server) -> None:
    process = python(BEGIN + "sys.stdin.read()", server.url)
    session_id = began(process)
    process.kill()
    process.communicate()

    async def told() -> bool:
        return bool(await endings(server))

    await until(told)
    assert await endings(server) == [("expired", "p-123")]
    assert [event["session"]["id"] for event in await ends_of(server.url)] == [session_id]


async def test_an_interpreter_that_exits_ends_its_open_runs(server: Server) -> None:
    process = python(BEGIN, server.url)
    began(process)
    _, complaints = finished(process)
    assert (process.returncode, complaints) == (0, "")
    assert await endings(server) == [("deleted", "p-123")]


@pytest.mark.parametrize("backend", ["memory"])
async def test_an_interpreter_exits_in_time_without_the_server(server: Server) -> None:
    process = python(BEGIN + "sys.stdin.readline()", server.url)
    began(process)

    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        finished(process)
        assert process.returncode == 0
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_an_event_loop_that_is_ended_by_a_signal_ends_its_runs(server: Server) -> None:
    code = """
import asyncio, sys
from tracker.client import AsyncTrackerClient
async def main():
    async with AsyncTrackerClient(sys.argv[1]) as client:
        async with client.track(agent_id="a", task_id="t1", trigger_type="t") as run:
            await run.set_provider_session("p-123")
            print(run.session_id, flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""
    process = python(code, server.url)
    began(process)

    process.send_signal(signal.SIGINT)
    finished(process)
    assert await endings(server) == [("deleted", "p-123")]


FORK = """
child = os.fork()
for _ in range(50):
    client.health() if child else client.stats()  # each on connections of its own, or they would read each other's
if child == 0:
    with client.track(agent_id="a", task_id="inherited", trigger_type="t") as own:
        assert own.session_id
    with TrackerClient(sys.argv[1]) as client2, client2.track(agent_id="a", task_id="own", trigger_type="t") as own:
        assert own.session_id and own.session_id != run.session_id
    run.progress("from the child")
    run.end()
    time.sleep(1.2)
    assert not [t for t in threading.enumerate() if t is not threading.main_thread()], threading.enumerate()
    print("child", flush=True)
    %s
_, status = os.waitpid(child, 0)
print("parent", status, flush=True)
sys.stdin.readline()
run.end()
"""


@pytest.mark.parametrize(("backend", "leaving"), [("memory", "sys.exit(0)"), ("redis", "os._exit(0)")])
async def test_a_forked_child_lets_its_parents_runs_alone_and_may_have_its_own(server: Server, leaving: str) -> None:
    """The parent's run goes on over a fork: through the child's exit, past its TTL, until the parent ends it."""
    # Python warns of forks beside threads, and of the parent's connections that the child drops without a word.
    process = python(BEGIN + FORK % leaving, server.url, warnings="ignore")
    session_id = began(process)
    assert began(process) == "child"
    assert began(process) == "parent 0"
    alive = await sessions_of(server.url)
    assert [(session["id"], session["progress"]) for session in alive] == [(session_id, None)]
    tasks = [event["session"]["taskId"] for event in await ends_of(server.url)]
    assert tasks == ["inherited", "own"]
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    _, complaints = finished(process)
    assert (process.returncode, complaints) == (0, "")
    assert (await endings(server))[-1] == ("deleted", "p-123")
