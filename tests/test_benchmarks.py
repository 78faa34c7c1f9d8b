"""The benchmarks' own arithmetic and requests. What they measure is nobody's test: it is the machine's business."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import lupa.lua51  # type: ignore[import-untyped]
import pytest
import uvicorn
from typer.testing import CliRunner

from benchmarks import baselines, load, serving
from benchmarks.alternation import check
from benchmarks.command import app, choose
from benchmarks.load import Load
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.pictures import PICTURES, draw
from benchmarks.plan import FULL, SHORT
from benchmarks.plot import Bar, Line, bar_chart, line_chart
from benchmarks.process import Process, StartError
from benchmarks.report import COLUMNS
from benchmarks.results import write
from benchmarks.scenarios import ON_DEMAND, SCENARIOS
from benchmarks.servers import BASELINES, Server
from benchmarks.sessions import body, task
from benchmarks.spread import Spread, ratios
from benchmarks.tools import MissingTool, find_tool
from benchmarks.wrk import Sample, WrkError, parse
from tracker.api.routes import OPERATIONS
from tracker.cli import serve
from tracker.models import CreateSession, Heartbeat, HeartbeatAnswer, ProviderSession, Request
from tracker.settings import Settings

SAMPLE = Sample(1000, 2.0, 200_000, 1.0, 2.0, 3.0, 4.0, {})
SVG = "{http://www.w3.org/2000/svg}"

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


# wrk's output


class Latency:
    """What wrk hands to `done`: microseconds."""

    max = 9876.0

    def percentile(self, part: float) -> float:
        return part * 100


def test_what_a_script_says_at_its_end_is_what_is_read() -> None:
    """The closing line goes through Lua and back, amid wrk's own words; errors that did not occur are left out."""
    counts = {"connect": 0, "read": 3, "write": 0, "status": 7, "timeout": 0}
    summary = {"requests": 12345, "duration": 2_000_500, "bytes": 987_654_321_000, "errors": counts}
    lua, written = lua_of(load.heartbeats(server(), 10))
    lua.globals().done(lua.table_from(summary, recursive=True), Latency())
    sample = parse(f"Running 2s test @ http://127.0.0.1:1\n  1 threads and 1 connections\n{''.join(written)}\n")
    assert sample == Sample(
        requests=12345,
        seconds=2.0005,
        received=987_654_321_000,
        p50_ms=5.0,
        p99_ms=9.9,
        p999_ms=9.99,
        max_ms=9.876,
        errors={"read": 3, "status": 7},
    )
    assert sample.per_second == pytest.approx(12345 / 2.0005)


def test_output_without_a_result_is_an_error_that_shows_it() -> None:
    """As when the server is not there."""
    with pytest.raises(WrkError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:9 Connection refused\n")


@pytest.mark.parametrize(
    ("sample", "complaint"),
    [
        (replace(SAMPLE, errors={"status": 2}), "2 status"),
        (replace(SAMPLE, requests=0), "not a single answer"),
        (replace(SAMPLE, received=199_999), "199999 came"),
        (replace(SAMPLE, received=200_801), "200801 came"),
    ],
)
def test_a_run_with_errors_or_wrong_answers_is_a_problem(sample: Sample, complaint: str) -> None:
    """A non-2xx, nothing at all, or answers of another length than that of the one that was looked at."""
    problems: list[str] = []
    check(problems, "heartbeats", sample, 200, 4)
    assert len(problems) == 1
    assert complaint in problems[0]


@pytest.mark.parametrize("received", [200_000, 200_800])
def test_answers_under_way_at_the_end_are_no_problem(received: int) -> None:
    """wrk has counted the bytes of one per connection at most."""
    problems: list[str] = []
    check(problems, "heartbeats", replace(SAMPLE, received=received), 200, 4)
    assert problems == []


# Medians, ratios, targets


def test_a_spread_has_the_median_the_least_and_the_greatest() -> None:
    """The mean of the two in the middle where there is no middle one."""
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of(iter([4.0, 1.0, 2.0, 3.0])) == Spread(2.5, 1, 4)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_ratios_are_taken_within_a_round() -> None:
    """So a round in which the machine was busy counts for neither side; a ratio of medians would be 0.5 here."""
    assert ratios([10, 90, 50], [20, 100, 100]) == Spread(0.5, 0.5, 0.9)
    assert ratios([8, 90, 60], [10, 100, 120]).median == 0.8
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(
    ("target", "reached", "short_by"),
    [
        (Target("", 0.75, 0.75, at_least=True), True, 0),
        (Target("", 0.6, 0.75, at_least=True), False, 0.2),
        (Target("", 1.2, 1.2), True, 0),
        (Target("", 1.5, 1.2), False, 0.25),
        (Target("", 0, 0), True, 0),
        (Target("", 3, 0), False, 3),
    ],
)
def test_a_target_tells_whether_it_is_reached_and_else_by_how_much_not(
    target: Target, reached: bool, short_by: float
) -> None:
    """As a part of the bound; where that is 0, the figure itself."""
    assert target.reached == reached
    assert target.short_by == pytest.approx(short_by)


# The requests


def server() -> Server:
    """One that is not there: scripts only take its address and its key."""
    return Server(port=4711, process=None, key="secret")  # type: ignore[arg-type]


def lua_of(requests: Load, start: int = 0) -> tuple[Any, list[str]]:
    """The script loaded and begun, as wrk does it, and what it writes."""
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    written: list[str] = []
    lua.globals().io = lua.table_from({"write": written.append})
    lua.execute(requests.script)
    lua.globals().init(lua.table_from([str(start)]))
    return lua, written


def sent(requests: Load, count: int, start: int = 0) -> Iterator[tuple[str, str, str]]:
    """The first requests as method, path and body; complete and with the key, or this fails."""
    lua, _ = lua_of(requests, start)
    for _ in range(count):
        text = lua.globals().request()
        head, _, content = text.partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        headers = dict(line.split(": ") for line in lines)
        assert headers["Authorization"] == "Bearer secret"
        assert int(headers.get("Content-Length", 0)) == len(content)
        method, path, version = first.split(" ")
        assert version == "HTTP/1.1"
        yield method, path, content


@pytest.mark.parametrize("start", [0, 7, 200 * 2**24])
def test_heartbeats_visit_every_session(start: int) -> None:
    """In as many requests as there are sessions, from wherever a run starts."""
    visited = sent(load.heartbeats(server(), 1000), 1000, start)
    expected = {("PUT", f"/api/active-sessions/heartbeat/{task(number)}", "") for number in range(1000)}
    assert {*visited} == expected


def test_provider_sessions_are_new_each_time() -> None:
    """So each changes the session, and appends an event."""
    bodies = [content for _, _, content in sent(load.provider_sessions(server(), 10), 100)]
    assert len({ProviderSession.model_validate_json(content).provider_session_id for content in bodies}) == 100


@pytest.mark.parametrize("connections", [1, 32])
def test_every_delete_comes_long_after_its_create(connections: int) -> None:
    """At least four round trips of all other connections: it never overtakes it. None is deleted twice."""
    created: dict[str, int] = {}
    deleted: set[str] = set()
    for place, (method, path, content) in enumerate(sent(load.lifecycles(server(), connections), 1000, 2**24)):
        if method == "POST":
            task_id = CreateSession.model_validate_json(content).task_id
            assert task_id is not None
            assert created.setdefault(task_id, place) == place
        else:
            task_id = path.rpartition("/")[2]
            assert (method, path) == ("DELETE", f"/api/active-sessions/by-task/{task_id}")
            assert place - created[task_id] >= 4 * connections
            assert task_id not in deleted
            deleted.add(task_id)
    assert len(created) + len(deleted) == 1000
    assert len(created) - len(deleted) == pytest.approx(4 * connections, abs=1)


@pytest.mark.parametrize("make", [load.heartbeats, load.provider_sessions])
def test_the_sample_is_a_request_of_the_load(make: Callable[[Server, int], Load]) -> None:
    """Its answer's length is what all answers are held against."""
    requests = make(server(), 1)
    assert requests.sample is not None
    model: type[Request] = Heartbeat if make is load.heartbeats else ProviderSession
    lua, _ = lua_of(requests)
    head, _, content = requests.sample.decode().partition("\r\n\r\n")
    assert head == lua.globals().request().partition("\r\n\r\n")[0]
    model.model_validate_json(content or "{}")


def test_the_benchmarks_session_is_the_one_that_the_targets_speak_of() -> None:
    """UUIDs for agent, task and runner session, a description of 24 characters."""
    session = CreateSession.model_validate(body(12345, per_agent=20))
    uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    for value in (session.agent_id, session.task_id, session.runner_session_id):
        assert uuid.fullmatch(value or "")
    assert len(session.task_description or "") == 24
    assert body(0, per_agent=20)["agentId"] == body(19, per_agent=20)["agentId"] != body(20, per_agent=20)["agentId"]


# The baselines


HOT = [
    ("PUT", "/api/active-sessions/heartbeat/{taskId}"),
    ("POST", "/api/active-sessions"),
    ("DELETE", "/api/active-sessions/by-task/{taskId}"),
    ("PUT", "/api/active-sessions/provider-session/{taskId}"),
]


@pytest.mark.parametrize("name", ["noop", "raw"])
async def test_the_floor_takes_the_trackers_hot_requests_and_answers_like_a_heartbeat(name: str) -> None:
    """On the tracker's own paths, with a body of the same fields and length."""
    assert {*HOT} <= {(operation.method, operation.path) for operation in OPERATIONS}
    transport = httpx.ASGITransport(getattr(baselines, name))
    async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
        for method, path in HOT:
            response = await client.request(method, path.format(taskId="t1"), content=b"{}")
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            assert response.json().keys() == HeartbeatAnswer.__annotations__.keys()


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[uvicorn.Config]]:
    """What uvicorn would have been run with."""
    configs: list[uvicorn.Config] = []

    class Recorder:
        def __init__(self, config: uvicorn.Config) -> None:
            configs.append(config)

        def run(self, sockets: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(uvicorn, "Server", Recorder)
        # So that they are put back: a baseline's process swaps them for good.
        for module in ("uvicorn", "uvicorn.main"):
            patch.setattr(import_module(module), "Config", uvicorn.Config)
        patch.setenv(serving.VARIABLE, "")
        yield configs


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_served_with_the_settings_of_tracker_serve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whatever they are: only the application is another."""
    monkeypatch.setenv("TRACKER_PORT", "0")
    monkeypatch.setenv("TRACKER_LOG_LEVEL", "warning")
    with recorded(monkeypatch) as configs:
        settings = Settings.load()
        with serve.listen(settings) as listener:
            serve.run(settings, listener)
        serving.serve_baseline(name)
        tracker, baseline = ({**vars(config)} for config in configs)
    assert baseline.pop("app") == f"benchmarks.baselines:{name}"
    assert hasattr(baselines, name)
    tracker.pop("app")
    tracker.pop("port")
    baseline.pop("port")
    assert baseline == tracker
    assert len(tracker) > 20


# Charts and results


def spread(value: float) -> Spread:
    return Spread(value, 0.9 * value, 1.2 * value)


def heartbeats_outcome(*connections: int) -> Outcome:
    figures = {name: spread(1.5) for name in ("requests_per_second", "of_noop", "p50_ms", "p99_ms")}
    return Outcome(
        [
            Row({"connections": count, "subject": subject}, figures)
            for count in connections
            for subject in ("noop", "tracker", "raw")
        ],
        [Target("errors", 0, 0)],
        ["A note."],
    )


def sizes_outcome() -> Outcome:
    figures = {"server_cpu_us": spread(40), "redis_cpu_us": spread(12)}
    return Outcome([Row({"sessions": count}, figures) for count in (1000, 1_000_000)])


def drawn_well(document: str) -> ElementTree.Element:
    """The parsed SVG; every place in it is a number and lies on the page."""
    root = ElementTree.fromstring(document)
    assert root.tag == f"{SVG}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
            assert 0 <= float(element.get(name, 0)) <= most
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(name, 0)) <= height
        for point in element.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme: dark" in (style.text or "")
    return root


def test_every_chart_is_drawn_well_from_what_its_scenario_gives() -> None:
    pictures = draw({"heartbeats": heartbeats_outcome(1, 32, 512), "sizes": sizes_outcome()})
    assert [*pictures] == [name for name, _, _ in PICTURES]
    for document in pictures.values():
        drawn_well(document)


def test_charts_of_scenarios_that_did_not_run_are_not_drawn() -> None:
    """Nor is the comparison on 32 connections where there were none."""
    assert [*draw({"sizes": sizes_outcome()})] == ["sizes.svg"]
    assert "peers.svg" not in draw({"heartbeats": heartbeats_outcome(8)})
    assert draw({}) == {}


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("value", [0.001, 1, 37, 1_000_000])
def test_a_chart_fits_values_of_any_size_and_gaps(value: float, logarithmic: bool) -> None:
    lines = [Line("a", "tracker", [spread(value), None, spread(3 * value)]), Line("b", "noop", [spread(value)] * 3)]
    root = drawn_well(
        line_chart("t", "s", ["1", "2", "3"], lines, x_label="x", logarithmic=logarithmic, target=(2 * value, "aim"))
    )
    assert len(root.findall(f"{SVG}circle")) == 5
    assert len(root.findall(f"{SVG}polyline")) == 2


def test_text_in_a_chart_is_escaped() -> None:
    root = drawn_well(bar_chart("a < b & c", "<script>", [Bar("x&y", "plain", spread(3))]))
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {"a < b & c", "<script>", "x&y"} <= texts


def test_results_of_scenarios_that_did_not_run_again_are_kept(tmp_path: Path) -> None:
    """Each says how and where it was measured."""
    write({"heartbeats": heartbeats_outcome(32)}, FULL, {"cores": 8}, tmp_path)
    written = write({"sizes": sizes_outcome()}, SHORT, {"cores": 2}, tmp_path)
    assert [path.name for path in written] == ["results.json", "sizes.svg"]
    scenarios = json.loads((tmp_path / "results.json").read_text())["scenarios"]
    heartbeats, sizes = scenarios["heartbeats"], scenarios["sizes"]
    assert (heartbeats["mode"], heartbeats["machine"]) == ("full", {"cores": 8})
    assert (sizes["mode"], sizes["rounds"], sizes["machine"]) == ("short", SHORT.rounds, {"cores": 2})
    assert heartbeats["rows"][0]["connections"] == 32
    assert heartbeats["rows"][0]["figures"]["p50_ms"] == {"median": 1.5, "min": 1.35, "max": 1.8}
    assert heartbeats["targets"][0]["reached"] is True
    assert heartbeats["notes"] == ["A note."]


def test_every_figure_of_a_scenario_has_a_column() -> None:
    """A figure without one would be measured and never shown."""
    sources = Path(load.__file__).parent.rglob("*.py")
    named = {name for path in sources for name in re.findall(r'"(\w+_(?:ms|us|bytes|mb|of_\w+))":', path.read_text())}
    assert len(named) > 15
    assert named <= COLUMNS.keys()


# Command line, tools, processes


def test_help_names_every_scenario_and_what_it_measures() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    for name, scenario in SCENARIOS.items():
        about = (scenario.__doc__ or "").splitlines()[0]
        assert about
        assert f"{name}: {about}" in text


def test_what_is_on_demand_runs_only_when_it_is_asked_for() -> None:
    assert {*choose()} == {*SCENARIOS} - ON_DEMAND
    assert choose(["million", "memory"]) == ["memory", "million"]


def test_a_scenario_that_does_not_exist_is_refused() -> None:
    refused = CliRunner().invoke(app, ["--only", "heartbreaks"])
    assert refused.exit_code == 2
    assert "heartbreaks" in refused.output


def test_a_missing_tool_is_one_line_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"^the benchmarks need wrk on the PATH: apt-get install wrk$"):
        find_tool("wrk")
    with pytest.raises(MissingTool, match="apt-get install redis-server"):
        find_tool("redis-server", "valkey-server")


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@needs_proc
def test_processor_time_and_children_of_a_process_are_seen_until_it_is_ended(tmp_path: Path) -> None:
    """The child of ours is part of the family, and neither outlives the end of the block."""
    log = tmp_path / "log"
    with Process([sys.executable, "-c", PARENT], log) as process:
        process.wait_until(lambda: log.read_text().endswith("\n"))
        child = int(log.read_text())
        assert process.family() == [process.pid, child]
        assert process.cpu_seconds() >= 0
        process.forget_peak()
        assert process.peak_resident_bytes() >= process.resident_bytes() > 1_000_000
    for pid in (process.pid, child):
        while not is_gone(pid):  # the child is for init to bury
            os.sched_yield()


@needs_proc
def test_a_process_that_ends_instead_of_coming_up_has_the_last_word(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "raise SystemExit('the port is taken')"]
    with Process(words, tmp_path / "log") as process, pytest.raises(StartError, match="the port is taken"):
        process.wait_until(lambda: False)


@needs_proc
def test_waiting_bears_with_a_server_that_refuses_connections_at_first(tmp_path: Path) -> None:
    """It tries until there is an answer."""
    tries: list[None] = []

    def ready() -> bool:
        tries.append(None)
        if len(tries) < 3:
            raise ConnectionRefusedError
        return True

    reading, writing = socket.socketpair()
    with reading, writing, Process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log") as process:
        process.wait_until(ready)
    assert len(tries) == 3
