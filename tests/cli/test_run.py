"""`tracker run`: the command is tracked while it runs, and runs as if it were not."""

from __future__ import annotations

import os
import pty
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.conftest import BASE, Json
from tests.cli.conftest import Commands
from tracker.cli.run import passing_signals

SECONDS = 30


@contextmanager
def running(
    commands: Commands, agent: str, *command: str, url: str | None = None, shell: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, without a terminal; ``shell``: what a shell does before it becomes `tracker run`."""
    environment = {
        **os.environ,
        "TRACKER_URL": url or commands.url,
        "TRACKER_API_KEY": commands.key,
        "TRACKER_AGENT_ID": agent,
        "PYTHONUNBUFFERED": "",  # as where it is used
    }
    process = subprocess.Popen(
        ["sh", "-c", f'{shell or ":"}; exec "$@"', "sh", sys.executable, "-m", "tracker", "run", *command],
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def until_live(commands: Commands, agent: str) -> Json:
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        if found := commands.live(agent):
            return found[0]
        time.sleep(0.02)
    pytest.fail("the run was never registered")


def ends(commands: Commands, agent: str) -> list[str]:
    page = commands.client.get(BASE + "/events", params={"agentId": agent, "type": "session.ended"})
    return [event["reason"] for event in page.json()["events"]]


def test_a_command_is_tracked_while_it_runs_and_its_end_is_told(commands: Commands, agent: str) -> None:
    with running(
        commands, agent, "--task", agent, "--", "sh", "-c", "echo out; echo err >&2; read x; exit 7"
    ) as process:
        code, output, errors = finished(process)
    assert (code, output, errors) == (7, "out\n", "err\n")
    assert commands.live(agent) == []
    assert ends(commands, agent) == ["deleted"]


def test_what_is_told_of_it(commands: Commands, agent: str) -> None:
    with running(commands, agent, "--task", agent, "--trigger", "cron", "--ttl", "30", "--", "sleep", "60") as process:
        session = until_live(commands, agent)
        process.terminate()
        assert finished(process)[0] == 128 + signal.SIGTERM
    assert (session["taskId"], session["triggerType"], session["ttlSeconds"]) == (agent, "cron", 30)
    assert session["taskDescription"] == "sleep 60"
    assert ends(commands, agent) == ["deleted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("backend", ["memory"])
def test_signals_reach_the_command_and_it_decides(commands: Commands, agent: str, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 3' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    with running(commands, agent, "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert finished(process)[:2] == (3, "caught\n")
    assert ends(commands, agent) == ["deleted"]


@pytest.mark.parametrize("backend", ["memory"])
def test_what_is_ignored_stays_ignored_here_and_in_the_command(commands: Commands, agent: str) -> None:
    """As under nohup."""
    script = "kill -HUP $PPID; kill -HUP $$; echo survived"
    with running(commands, agent, "--", "sh", "-c", script, shell="trap '' HUP") as process:
        assert finished(process)[:2] == (0, "survived\n")


COUNTER = """
import os, signal, sys, time
os.setpgid(0, 0)  # out of the terminal's reach: what comes is what was passed on
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("INT"))
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(len(heard)))
print("ready", flush=True)
while True:
    time.sleep(0.02)
"""


@pytest.mark.parametrize("backend", ["memory"])
def test_what_is_typed_on_the_terminal_is_not_passed_on_even_if_standard_input_is_none(
    commands: Commands, agent: str
) -> None:
    keyboard, terminal = pty.openpty()
    try:
        # The first terminal that the leader of a session opens becomes its own.
        opens = f": <{os.ttyname(terminal)}"
        with running(commands, agent, "--", sys.executable, "-c", COUNTER, shell=opens) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.write(keyboard, b"\x03")
            assert os.read(keyboard, 100) == b"^C"  # the signal is sent before this is shown
            process.send_signal(signal.SIGUSR1)
            assert finished(process)[0] == 0
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_a_signal_that_comes_while_the_command_starts_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run, and be heard of, before whoever started it knows of it."""

    class Slow(subprocess.Popen[bytes]):
        def __init__(self, command: list[str]) -> None:
            super().__init__(command, stdout=subprocess.PIPE)
            assert self.stdout is not None
            assert self.stdout.readline() == b"ready\n"
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    with passing_signals() as start:
        script = "trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done"
        with start(["sh", "-c", script]) as process:
            try:
                assert process.wait(SECONDS) == 3
            finally:
                process.kill()


def test_a_run_that_is_asked_to_stop_gets_a_sigterm(commands: Commands, agent: str) -> None:
    with running(commands, agent, "--ttl", "1.5", "--", "sleep", "60") as process:
        session = until_live(commands, agent)
        commands("stop", session["id"])
        code, _, errors = finished(process)
    assert code == 128 + signal.SIGTERM
    assert errors == "tracker: the run is asked to stop: sending SIGTERM\n"


def test_a_run_is_stopped_also_when_nobody_hears_of_it(commands: Commands, agent: str) -> None:
    with running(commands, agent, "--ttl", "1.5", "--", "sleep", "60") as process:
        session = until_live(commands, agent)
        assert process.stderr is not None
        process.stderr.close()
        commands("stop", session["id"])
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert ends(commands, agent) == ["deleted"]


@pytest.mark.parametrize("backend", ["memory"])
def test_somebody_without_a_name_goes_by_the_number(
    commands: Commands, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME", "TRACKER_AGENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    assert commands("run", "--task", agent, "--", "true").exit_code == 0
    page = commands.client.get(BASE + "/events", params={"agentId": f"{os.getuid()}@{socket.gethostname()}"})
    assert agent in [event["session"]["taskId"] for event in page.json()["events"]]


@pytest.mark.parametrize("backend", ["memory"])
def test_arguments_may_be_any_bytes(commands: Commands, agent: str) -> None:
    with running(commands, agent, "--", "sh", "-c", "echo done", "\udcff") as process:
        assert finished(process) == (0, "done\n", "")
    page = commands.client.get(BASE + "/events", params={"agentId": agent})
    assert page.json()["events"][0]["session"]["taskDescription"] == r"sh -c 'echo done' '\xff'"


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize(("command", "status"), [("/no/such/command", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_run_has_the_shells_own_status(
    commands: Commands, agent: str, command: str, status: int
) -> None:
    with running(commands, agent, command) as process:
        code, _, errors = finished(process)
    assert code == status
    assert errors.startswith(f"tracker: {command}: ")
    assert commands.live(agent) == []


@pytest.mark.parametrize("backend", ["memory"])
def test_a_tracker_that_is_away_keeps_no_command_from_running(commands: Commands, agent: str) -> None:
    with running(commands, agent, "echo", "done", url="http://127.0.0.1:9") as process:
        assert finished(process)[:2] == (0, "done\n")


def test_a_task_that_runs_already_is_a_conflict_if_so_asked(commands: Commands, agent: str) -> None:
    commands.start("t-" + agent, agent)
    with running(commands, agent, "--task", "t-" + agent, "--on-conflict", "reject", "--", "echo", "done") as process:
        code, output, errors = finished(process)
    assert (code, output) == (3, "")
    assert errors.startswith("tracker: Task already has a live session")
    assert len(commands.live(agent)) == 1
