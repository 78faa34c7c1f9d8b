"""`tracker simulate` from the command line against a real tracker, and what it prints."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
import typer
import uvicorn
from rich.console import Console
from typer.testing import CliRunner, Result

from tracker.api.app import create_app
from tracker.cli.fleet.plan import Plan
from tracker.cli.fleet.simulation import CallReport, EndingReport, Problem, Report, Simulation
from tracker.cli.simulate import _bars, closing, simulate
from tracker.settings import Settings

KEY, READ_KEY = "write-key-of-this-test", "read-key-of-this-test"
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(simulate)
pytestmark = pytest.mark.settings(api_keys=KEY, read_api_keys=READ_KEY, sweep_interval_seconds=0.2)
memory_only = pytest.mark.parametrize("backend", ["memory"])


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right key, and nothing of the developer's own."""
    for name in ("TRACKER_URL", "API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKER_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """The address of a tracker that runs in a thread, on the test's backend, and sweeps often."""
    config = uvicorn.Config(
        create_app(settings), lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def run(*options: str) -> Result:
    return CliRunner().invoke(app, options)


def test_a_fleet_against_the_real_tracker_finds_everything_as_it_should_be(url: str) -> None:
    result = run(
        *("--url", url, "--agents", "10", "--seconds", "2", "--ttl", "1", "--sweep-interval", "0.2"),
        *("--crash-rate", "0.5", "--retry-rate", "0.5", "--seed", "5", "--json"),
    )
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report["problems"]
    assert (report["ok"], report["feed"], report["url"], report["seed"]) == (True, "followed", url, 5)
    for ending in report["endings"]:
        assert ending["sessions"] == ending["right"] > 0
    assert {row["kind"]: list(row["statuses"]) for row in report["calls"]} == {
        "cleanup": ["200"],
        "create": ["201"],
        "heartbeat": ["200"],
        "provider-session": ["200"],
        "delete": ["200"],
        "list": ["200"],
        "events": ["200"],
    }
    assert result.stderr.splitlines()[0] == f"10 agents, 2 runs each, 2 s against {url} (seed 5)"


@memory_only
def test_without_a_terminal_it_prints_plain_lines_and_the_closing_table(url: str) -> None:
    result = run("--url", url, "--agents", "2", "--seconds", "1", "--ttl", "1", "--crash-rate", "0")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert re.fullmatch(
        r"2 agents, 2 runs each, 1 s against \S+ \(seed \d+\)\nwaiting for \d+ sessions to end\n", result.stderr
    )
    assert result.stdout.rstrip().endswith("Everything is as it should be.")
    assert KEY not in result.output


@memory_only
@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("", "refuses the key: set TRACKER_API_KEY to one of its write keys"),
        ("wrong", "refuses the key: set TRACKER_API_KEY to one of its write keys"),
        (READ_KEY, "the key may only read"),
        ("a key\nof two lines", "TRACKER_API_KEY (or API_KEY) must be visible ASCII characters"),
        ("schlüssel", "TRACKER_API_KEY (or API_KEY) must be visible ASCII characters"),
    ],
)
def test_a_wrong_key_is_one_line_and_exit_2(url: str, key: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_API_KEY", key)
    result = run("--url", url)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert advice in result.stderr
    assert not key or key not in result.stderr


@memory_only
def test_the_key_may_come_from_api_key_too(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACKER_API_KEY")
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setenv("TRACKER_URL", url)
    assert run("--agents", "1", "--seconds", "1", "--crash-rate", "0").exit_code == 0


def test_no_option_takes_the_key() -> None:
    options = re.findall(r"--[a-z-]+", run("--help").stdout)
    assert "--agents" in options
    assert not [option for option in options if "key" in option]


def test_no_server_is_one_line_and_exit_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = run("--url", f"http://127.0.0.1:{port}")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "start one with `tracker serve`" in result.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--agents", "0"), "--agents must be between 1 and 10,000, not 0"),
        (("--seconds", "1e9"), "--seconds must be between 1 and 86,400, not 1e+09"),
        (("--url", "localhost:3013"), "--url (TRACKER_URL) must be the address of a tracker"),
        (("--url", "http://"), "--url (TRACKER_URL) must be the address of a tracker"),
        (("--url", "http://[oops"), "--url (TRACKER_URL) must be the address of a tracker"),
        (("--url", "http://localhost:99999"), "--url (TRACKER_URL) must be the address of a tracker"),
        (("--url", "http://a:secret@localhost"), "the key goes into TRACKER_API_KEY"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_2(options: tuple[str, ...], line: str) -> None:
    result = run(*options)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("tracker simulate: ")
    assert line in result.stderr
    assert "secret" not in result.stderr


def test_something_wrong_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"sessions": [], "events": []})
        if request.url.path.endswith("cleanup"):
            return httpx.Response(200, json={"cleaned": 0})
        return httpx.Response(500, json={"error": "Internal error"})

    client: Callable[..., httpx.AsyncClient] = lambda url, key: httpx.AsyncClient(  # noqa: E731
        transport=httpx.MockTransport(respond), base_url=url
    )
    monkeypatch.setattr("tracker.cli.simulate._client", client)
    result = run("--agents", "1", "--seconds", "1", "--seed", "1")
    assert result.exit_code == 1
    assert "x create: 500, e.g. Internal error" in result.stdout
    assert "Something is wrong. The same runs again: --seed 1" in result.stdout


@memory_only
def test_ctrl_c_stops_early_and_still_prints_the_table(url: str) -> None:
    command = [sys.executable, "-c", "import typer; from tracker.cli.simulate import simulate; typer.run(simulate)"]
    options = ["--url", url, "--seconds", "600", "--agents", "5"]
    process = subprocess.Popen(
        command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stderr
        process.stderr.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    assert "Stopped early" in stdout
    assert "So far everything is as it should be." in stdout


async def test_on_a_terminal_two_bars_show_the_time_and_the_crashed_runs() -> None:
    screen = io.StringIO()
    async with httpx.AsyncClient() as client:
        simulation = Simulation(client, Plan(seconds=30), "n")
        simulation.audit.ended["expired"], simulation.audit.right["expired"] = 7, 3
        showing = asyncio.create_task(_bars(simulation, Console(file=screen, force_terminal=True, width=100)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"working .* 0/30 s  0 live, 0 calls", plain)
    assert re.search(r"expired .* 3/7 +crashed runs", plain)


# What it prints


GOOD = Report(
    ok=True,
    stopped=False,
    seed=7,
    agents=20,
    runsPerAgent=2,
    seconds=30,
    ttlSeconds=10,
    feed="followed",
    late=0,
    left=0,
    longestWaitMs=1000,
    calls=[CallReport(kind="heartbeat", calls=1234, statuses={"200": 1234}, p50Ms=1.23, p99Ms=45.67, maxMs=1234.5)],
    endings=[
        EndingReport(reason="deleted", sessions=1000, right=1000, wrong=0),
        EndingReport(reason="replaced", sessions=20, right=20, wrong=0),
        EndingReport(reason="expired", sessions=30, right=30, wrong=0),
    ],
    problems=[],
)


def printed(report: Report) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=80, color_system=None).print(closing(report))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def test_the_closing_table_is_short() -> None:
    assert printed(GOOD) == [
        "",
        "call                  calls       p50       p99       max   status",
        "─" * 66,
        "heartbeat             1,234    1.2 ms   45.7 ms    1.23 s   200",
        "",
        "run                 sessions     right",
        "─" * 38,
        "done, deleted          1,000     1,000",
        "retried, replaced         20        20",
        "crashed, expired          30        30",
        "",
        "Everything is as it should be.",
    ]


def test_what_is_wrong_or_not_judged_has_a_column_and_a_line() -> None:
    calls = [CallReport(kind="delete", calls=5, statuses={"200": 3, "503": 2}, p50Ms=1, p99Ms=2, maxMs=3)]
    problems = [
        Problem(problem="delete: 503", count=2, example="The store cannot answer in time"),
        Problem(problem="create: 503", count=1, example="The store cannot answer in time"),
        Problem(problem="a dead session is still listed after its TTL", count=4, example="sim-1-agent0"),
    ]
    endings = [EndingReport(reason="expired", sessions=30, right=20, wrong=4)]
    lines = printed({**GOOD, "ok": False, "calls": calls, "endings": endings, "problems": problems})
    assert lines[3].split() == ["delete", "5", "1.0", "ms", "2.0", "ms", "3.0", "ms", "200:", "3,", "503:", "2"]
    assert lines[5].split() == ["run", "sessions", "right", "wrong", "not", "judged"]
    assert lines[7].split() == ["crashed,", "expired", "30", "20", "4", "6"]
    assert lines[-4:] == [
        "2 x delete: 503, e.g. The store cannot answer in time",
        "1 x create: 503",
        "4 x a dead session is still listed after its TTL, e.g. sim-1-agent0",
        "Something is wrong. The same runs again: --seed 7",
    ]


def test_what_the_reader_must_know_is_noted() -> None:
    lines = printed({**GOOD, "stopped": True, "feed": "none", "late": 3, "left": 1200, "longestWaitMs": 1001})
    assert lines[11:-1] == [
        "Stopped early: what was not yet due is not judged.",
        "No feed: judged by the listing alone.",
        "3 runs expired: their heartbeats came late or got lost.",
        "Calls waited up to 1.00 s to be sent: try fewer agents, a longer --ttl.",
        "1,200 sessions still ran when the fleet stopped.",
    ]


def test_what_a_tracker_says_is_no_markup() -> None:
    problems = [Problem(problem="create: 500", count=1, example="[bold]oops[/bold] [/]")]
    assert "1 x create: 500, e.g. [bold]oops[/bold] [/]" in printed({**GOOD, "ok": False, "problems": problems})
