"""Request ids: taken over where they are sane, made where not, and on every answer and error line."""

from __future__ import annotations

import logging

import httpx
import pytest

from tests.api.conftest import BASE, Api, running
from tracker.settings import Settings

NAME = "X-Request-ID"


async def sent_back(api: Api, *ids: str | bytes) -> str:
    values = [value.encode() if isinstance(value, str) else value for value in ids]
    answer = await api.client.get("/health", headers=[(NAME.encode(), value) for value in values])
    (found,) = answer.headers.get_list(NAME)
    return found


@pytest.mark.parametrize("request_id", ["a", "0199b1f2-6c1e-7d1a", "x" * 128, '~!"#/{}'])
async def test_a_sane_id_is_taken_over(api: Api, request_id: str) -> None:
    assert await sent_back(api, request_id) == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "a\tb", "a\x1b[2J", "ü".encode(), b"\xff"])
async def test_another_is_replaced(api: Api, request_id: str | bytes) -> None:
    made = await sent_back(api, request_id)
    assert made.isalnum()
    assert made.isascii()


async def test_of_several_the_first_counts(api: Api) -> None:
    assert await sent_back(api, "first", "second") == "first"
    assert (await sent_back(api, "a b", "second")).isalnum()


async def test_made_ones_differ_between_requests_and_servers(api: Api, settings: Settings) -> None:
    async with running(settings) as other:
        made = [await sent_back(server) for server in (api, other) for _ in range(50)]
    assert len(set(made)) == 100


@pytest.mark.settings(api_keys=("w-key",), cors_origins=("https://board.example",))
@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/health", b"", 200),
        ("GET", "/docs", b"", 200),
        ("GET", BASE, b"", 200),
        ("POST", BASE, b"{", 400),
        ("GET", BASE + "?limit=0", b"", 400),
        ("GET", BASE + "/by-task/t", b"", 404),
        ("GET", "/nowhere", b"", 404),
        ("PATCH", BASE, b"", 405),
        ("POST", BASE, b"x" * 70_000, 413),
    ],
)
async def test_every_answer_has_it(api: Api, method: str, path: str, content: bytes, status: int) -> None:
    headers = {"Authorization": "Bearer w-key", "Origin": "https://board.example", NAME: "mine"}
    answer = await api.client.request(method, path, content=content, headers=headers)
    assert (answer.status_code, answer.headers.get_list(NAME)) == (status, ["mine"])
    assert NAME in answer.headers["access-control-expose-headers"]


@pytest.mark.settings(api_keys=("w-key",), cors_origins=("https://board.example",))
async def test_refusals_and_preflight_answers_have_it_too(api: Api) -> None:
    refused = await api.get(headers={NAME: "mine"})
    assert (refused.status_code, refused.headers[NAME]) == (401, "mine")
    asking = {"Origin": "https://board.example", "Access-Control-Request-Method": "PUT"}
    allowed = await api.call("OPTIONS", headers={**asking, "Access-Control-Request-Headers": NAME, NAME: "mine"})
    assert (allowed.status_code, allowed.headers[NAME]) == (200, "mine")


async def planted(api: Api) -> httpx.Response:
    key = api.store.scripts.shards[0].prefix + "task:t1"
    await api.store.scripts.client.rpush(key, "planted")
    return await api.put("/heartbeat/t1", headers={NAME: "mine"})


async def test_an_error_line_has_it_and_the_route_but_no_id_of_the_path(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await planted(api)
    assert (answer.status_code, answer.headers[NAME]) == (500, "mine")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith(f"PUT {BASE}/heartbeat/{{taskId}}: ")
    assert record.getMessage().endswith(" (request mine)")
    assert vars(record)["fields"] == {"method": "PUT", "route": BASE + "/heartbeat/{taskId}", "requestId": "mine"}


async def test_so_has_the_line_about_what_nobody_foresaw(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback that follows is the server's, which knows no request ids."""
    async with running(settings, raise_app_exceptions=False) as api:

        async def failing(*_: object) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr(api.store.sessions, "get", failing)
        answer = await api.get("/by-task/t1", headers={NAME: "mine"})
    assert (answer.status_code, answer.headers[NAME]) == (500, "mine")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "RuntimeError" in record.getMessage()
    assert record.getMessage().endswith(" (request mine)")
