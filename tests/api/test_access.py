"""The access log: one line per request, with nothing in it that should not be, and soon enough."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import BASE, Api, running
from tests.patience import until
from tracker.api.access import GATHERED, AccessLog
from tracker.cli.logs import JsonFormatter, TextFormatter
from tracker.settings import Settings

HEARTBEAT = BASE + "/heartbeat/{taskId}"


class Lines(logging.Handler):
    """What the log's lines are, in both formats."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.json: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text += TextFormatter().format(record).split("\n")
        self.json += map(json.loads, JsonFormatter().format(record).split("\n"))

    @property
    def told(self) -> list[tuple[str, str, int]]:
        return [(line["method"], line["route"], line["status"]) for line in self.json]


@pytest.fixture
def level() -> int:
    return logging.INFO


@pytest.fixture
def lines(level: int) -> Iterator[Lines]:
    logger, lines = logging.getLogger("tracker.access"), Lines()
    logger.addHandler(lines)
    logger.setLevel(level)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(logging.NOTSET)


async def some_requests(api: Api) -> None:
    await api.create(taskId="t1")
    await api.put("/heartbeat/t1")
    await api.put("/heartbeat/t1", content=b"{")
    await api.get("/by-task/t2")
    await api.client.get("/nowhere/t1")
    for path in ("/health", "/ready", "/metrics"):
        await api.client.get(path)
    await api.client.post("/health")
    await api.client.request("BREW", "/health")


async def test_each_request_is_a_line_and_probes_that_go_well_are_none(settings: Settings, lines: Lines) -> None:
    async with running(settings) as api:
        await some_requests(api)
    assert lines.told == [
        ("POST", BASE, 201),
        ("PUT", HEARTBEAT, 200),
        ("PUT", HEARTBEAT, 400),
        ("GET", BASE + "/by-task/{taskId}", 404),
        ("GET", "none", 404),
        ("POST", "/health", 405),
        ("other", "/health", 405),
    ]
    assert {line["level"] for line in lines.json} == {"info"}


@pytest.mark.parametrize("level", [logging.DEBUG])
async def test_for_those_who_debug_there_are_all(settings: Settings, lines: Lines) -> None:
    async with running(settings) as api:
        await some_requests(api)
    quiet = [line["route"] for line in lines.json if line["level"] == "debug"]
    assert quiet == ["/health", "/ready", "/metrics"]
    assert len(lines.json) == 10


@pytest.mark.settings(access_log="errors")
async def test_errors_are_what_is_answered_with_400_and_above(settings: Settings, lines: Lines) -> None:
    async with running(settings) as api:
        await some_requests(api)
    assert [status for _, _, status in lines.told] == [400, 404, 404, 405, 405]


@pytest.mark.settings(access_log="off")
@pytest.mark.parametrize("level", [logging.DEBUG])
async def test_off_is_off(settings: Settings, lines: Lines) -> None:
    async with running(settings) as api:
        await some_requests(api)
    assert lines.json == []


@pytest.mark.parametrize("level", [logging.WARNING])
async def test_a_level_above_info_has_none(settings: Settings, lines: Lines) -> None:
    async with running(settings) as api:
        await some_requests(api)
    assert lines.json == []


async def test_a_line_has_time_duration_and_request_id(settings: Settings, lines: Lines) -> None:
    async with running(settings) as api:
        await api.put("/heartbeat/t1", headers={"X-Request-ID": 'mine"'})
    (line,) = lines.json
    assert line["message"] == f'PUT {HEARTBEAT} 200 {line["durationMs"]:.1f} ms mine"'
    assert lines.text == [f"{line['time']} INFO    tracker.access  {line['message']}"]
    assert 0 < line["durationMs"] < 20_000
    assert line["requestId"] == 'mine"'
    assert list(line) == [
        *("time", "level", "logger", "message"),
        *("method", "route", "status", "durationMs", "requestId"),
    ]


@pytest.mark.settings(api_keys=("humble-key",))
async def test_no_line_has_a_key_or_anything_of_a_path_query_or_body(settings: Settings, lines: Lines) -> None:
    headers = {"Authorization": "Bearer humble-key"}
    async with running(settings) as api:
        body = {"agentId": "humble", "triggerType": "humble", "taskId": "humble", "taskDescription": "humble"}
        made = await api.post("?x=humble", json=body, headers=headers)
        await api.put("/heartbeat/humble", headers=headers)
        await api.get("?agentId=humble", headers=headers)
        await api.get(f"/{made.json()['session']['id']}", headers=headers)
        await api.client.get("/humble")
        await api.get("/humble", headers={"Authorization": "Bearer humble"})
        await api.call("HUMBLE", "/humble", headers=headers)
    assert len(lines.json) == 7
    assert "humble" not in "".join(lines.text).lower()
    assert made.json()["session"]["id"] not in "".join(lines.text)


async def test_a_line_comes_by_itself_while_the_server_runs(api: Api, lines: Lines) -> None:
    await api.get()

    async def written() -> bool:
        return lines.told == [("GET", BASE, 200)]

    await until(written)


async def test_no_more_wait_than_may(lines: Lines) -> None:
    log = AccessLog("all")
    for number in range(GATHERED - 1):
        log.add("GET", "/x", 200, 0.001, str(number))
    assert lines.json == []
    log.add("GET", "/x", 200, 0.001, "last")
    assert len(lines.json) == GATHERED
    assert [line["requestId"] for line in lines.json] == [*map(str, range(GATHERED - 1)), "last"]
    log.flush()
    assert len(lines.json) == GATHERED


async def test_a_request_that_is_never_answered_is_a_line_too(api: Api, lines: Lines, monkeypatch: Any) -> None:
    """Here its task is cancelled, as at the end of a server that waits no longer."""
    stuck = asyncio.Event()

    async def waiting(*_: object) -> None:
        stuck.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(api.store.sessions, "get", waiting)
    call = asyncio.create_task(api.get("/by-task/t1"))
    await stuck.wait()
    call.cancel()
    await asyncio.wait([call])

    async def written() -> bool:
        return lines.told == [("GET", BASE + "/by-task/{taskId}", 0)]

    await until(written)
