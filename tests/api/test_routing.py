"""Paths: which handler serves them, with which parameters, and what is said where none does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.api.conftest import BASE, Api, Json, listening, segment
from tracker.settings import Settings

ODD = {
    "slash": "a/b",
    "slash-at-the-ends": "/a/",
    "slashes": "//",
    "percent": "100%",
    "encoded-slash": "a%2Fb",
    "encoded-twice": "a%252Fb",
    "space": " ",
    "plus": "a+b c",
    "nul": "\0",
    "emoji": "\N{ROBOT FACE}\N{ZERO WIDTH JOINER}\N{ROCKET}",
    "right-to-left": "\N{RIGHT-TO-LEFT OVERRIDE}\u05e9\u05dc\u05d5\u05dd \u0627",
    "question": "a?b=c",
    "fragment": "a#b",
    "parameter": "a;b=c",
    "dot": ".",
    "dots": "..",
    "climb": "../../health",
    "backslash": "a\\..\\b",
    "line-end": "a\r\nX-Header: b",
    "combining": "e\u0301",
    "composed": "\u00e9",
    "noncharacter": "\uffff\U0010ffff",
    "byte-order-mark": "\ufeff",
    "long": "\N{ROBOT FACE}" * 512,
    "colon": "{taskId}:*",
    "quotes": "\"'`",
}


async def live_and_die(api: Api, task: str) -> None:
    """Takes a task through every route that has it in its path."""
    made = await api.create(taskId=task)
    assert made["taskId"] == task
    path = segment(task)
    beat = await api.put(f"/heartbeat/{path}", json={"sessionId": made["id"]})
    assert beat.json()["updated"] is True
    assert (await api.put(f"/provider-session/{path}", json={"providerSessionId": task})).json() == {"updated": True}
    found = await api.get(f"/by-task/{path}")
    assert found.status_code == 200
    assert found.json()["session"] | {"lastHeartbeatAt": 0, "expiresAt": 0} == {
        **made,
        "providerSessionId": task,
        "lastHeartbeatAt": 0,
        "expiresAt": 0,
    }
    listed = await api.get(params={"taskId": task})
    assert listed.json() == {"sessions": [found.json()["session"]]}
    assert (await api.delete(f"/by-task/{path}", params={"sessionId": made["id"]})).json() == {"deleted": True}
    assert (await api.get(f"/by-task/{path}")).status_code == 404


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("/")
@example("%2F")
@example("..")
@given(task=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512))
async def test_any_text_is_a_task(api: Api, task: str) -> None:
    """Whatever its characters, a task comes back as it was from bodies, path segments and query strings alike."""
    await live_and_die(api, task)


@pytest.mark.parametrize("task", ODD.values(), ids=ODD)
async def test_odd_texts_are_tasks(api: Api, task: str) -> None:
    await live_and_die(api, task)


@pytest.mark.parametrize("task", ["heartbeat", "stop", "stats", "by-task", "cleanup", "events", "provider-session"])
async def test_a_task_named_like_a_route_is_a_task(api: Api, task: str) -> None:
    await live_and_die(api, task)


async def test_odd_texts_are_different_tasks(api: Api) -> None:
    """Nothing is decoded twice, normalised, or folded."""
    tasks = {*ODD.values(), "A/B", "e", "\u00c9", "a b", "a%20b", "a+b", "%", "%25", "", "a", "a/", "a//b"} - {""}
    made = {task: (await api.create(taskId=task))["id"] for task in tasks}
    assert len(set(made.values())) == len(tasks)
    for task, session_id in made.items():
        assert (await api.get(f"/by-task/{segment(task)}")).json()["session"]["id"] == session_id


@pytest.mark.parametrize("name", ["heartbeat", "stats", "events", "cleanup"])
async def test_an_id_named_like_a_route_is_an_id_where_more_follows(api: Api, name: str) -> None:
    answer = await api.put(f"/{name}/stop") if name != "heartbeat" else await api.put("/stop/heartbeat")
    assert (answer.status_code, answer.json()) == (200, {"updated": False})


async def test_the_task_heartbeat_is_not_the_id_heartbeat(api: Api) -> None:
    """`/heartbeat/{taskId}` and `/{id}/heartbeat` meet in one path: the task wins, as existing runners call it."""
    await api.create(taskId="heartbeat")
    assert (await api.put("/heartbeat/heartbeat")).json()["updated"] is True
    await api.create(taskId="stop")
    assert "expiresAt" in (await api.put("/heartbeat/stop")).json()


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/by-task/%FF", "taskId"),
        ("/by-task/%ED%A0%80", "taskId"),
        ("/by-task/%C0%AF", "taskId"),
        ("/by-task/a%", None),
        ("/by-task/%zz", None),
        ("/%FF", "id"),
        ("/by-task/" + "x" * 513, "taskId"),
        ("/by-task/" + "%F0%9F%A4%96" * 513, "taskId"),
        ("/" + "x" * 513, "id"),
    ],
)
async def test_a_segment_that_is_no_text_or_too_long_is_refused(api: Api, path: str, field: str | None) -> None:
    """A percent sign that encodes nothing stands for itself."""
    answer = await api.get(path)
    assert answer.status_code == (404 if field is None else 400)
    if field is not None:
        assert answer.json()["details"][0]["field"] == field


# --- over a real socket -----------------------------------------------------------------------------------------------


async def raw(url: str, method: str, target: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of a request whose target nobody touches on its way."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        head = b"%s %s HTTP/1.1\r\nHost: tracker\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (method.encode(), target, len(body)) + body)
        answer = await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    status_line, _, rest = answer.partition(b"\r\n")
    return int(status_line.split()[1]), rest.partition(b"\r\n\r\n")[2]


@pytest.fixture
async def url(settings: Settings) -> AsyncIterator[str]:
    async with listening(settings) as address:
        yield address


async def test_odd_tasks_survive_the_wire(url: str) -> None:
    """As quote(safe="") writes them: dots stand as they are, and nobody climbs."""
    for task in ODD.values():
        body = json.dumps({"agentId": "a", "triggerType": "t", "taskId": task}).encode()
        status, _ = await raw(url, "POST", BASE.encode(), body)
        assert status == 201
        target = f"{BASE}/by-task/{quote(task, safe='')}".encode()
        status, answer = await raw(url, "GET", target)
        assert status == 200, task[:20]
        assert json.loads(answer)["session"]["taskId"] == task
        heartbeat = f"{BASE}/heartbeat/{quote(task, safe='')}".encode()
        assert (await raw(url, "PUT", heartbeat))[1].startswith(b'{"updated":true')
        assert await raw(url, "DELETE", target) == (200, b'{"deleted":true}')


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize("target", [b"/by-task/\xc3\xa9", b"/by-task/\xff", b"?agentId=\xc3\xa9", b"/by-task/a b"])
async def test_a_target_that_is_no_url_is_refused_and_harms_nobody(url: str, target: bytes) -> None:
    """The server itself does so, before there is a request at all."""
    assert (await raw(url, "GET", BASE.encode() + target))[0] == 400
    assert (await raw(url, "GET", BASE.encode()))[0] == 200


@pytest.mark.parametrize("backend", ["memory"])
async def test_no_request_target_is_taken_for_another(url: str) -> None:
    for target, status in [
        (b"/api/active-sessions", 200),
        (b"/api/active-sessions/", 404),
        (b"/api//active-sessions", 404),
        (b"//api/active-sessions", 404),
        (b"/api/active-sessions/../active-sessions", 404),
        (b"/api/./active-sessions", 404),
        (b"/api%2Factive-sessions", 404),
        (b"/api/active%2Dsessions", 404),
        (b"/API/active-sessions", 404),
        (b"/health/", 404),
        (b"/health?x", 200),
        (b"/health%3Fx", 404),
    ]:
        assert (await raw(url, "GET", target))[0] == status, target


# --- where nothing is -------------------------------------------------------------------------------------------------

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
ALLOWED = {
    "": "GET, HEAD, POST",
    "/cleanup": "POST",
    "/stats": "GET, HEAD",
    "/events": "GET, HEAD",
    "/heartbeat": "PUT",
    "/heartbeat/t": "PUT",
    "/provider-session/t": "PUT",
    "/by-task/t": "DELETE, GET, HEAD",
    "/x": "DELETE, GET, HEAD",
    "/x/heartbeat": "PUT",
    "/x/stop": "PUT",
}


@pytest.mark.parametrize("path", ALLOWED)
async def test_a_method_that_a_path_does_not_serve_is_405_with_all_that_it_does(api: Api, path: str) -> None:
    allowed = ALLOWED[path]
    for method in METHODS:
        answer = await api.call(method, path)
        if method in allowed.split(", "):
            assert answer.status_code != 405
        else:
            assert answer.status_code == 405, method
            assert answer.headers["allow"] == allowed
            assert method == "HEAD" or answer.json() == {"error": f"Method not allowed: use {allowed}"}


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_operations_are_for_reading(api: Api, path: str) -> None:
    answer = await api.client.post(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/x/",
        "/x/y",
        "/x/y/z",
        "/by-task/",
        "/by-task//",
        "/by-task/t/",
        "/by-task/t/u",
        "/heartbeat/",
        "/heartbeat/t/",
        "/provider-session/",
        "//heartbeat",
        "//stop",
        "/stats/",
        "/events/x",
        "/cleanup/",
        "s",
    ],
)
async def test_a_path_that_nobody_serves_is_404_for_every_method(api: Api, path: str) -> None:
    """An empty segment is no id and no task; there are no redirects either."""
    for method in METHODS:
        answer = await api.call(method, path)
        assert answer.status_code == 404, method
        assert method == "HEAD" or answer.json() == {"error": "Not found"}


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/sessions", "/nowhere", "/favicon.ico", "/health/x"])
async def test_beyond_the_base_path_there_is_404_as_well(api: Api, path: str) -> None:
    answer = await api.client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})


@pytest.mark.parametrize("backend", ["memory"])
async def test_head_answers_like_get_without_a_body(settings: Settings) -> None:
    """With the headers of a GET, its length too, so over a real socket."""
    async with listening(settings) as url:
        made = await raw(url, "POST", BASE.encode(), b'{"agentId":"a","triggerType":"t","taskId":"t"}')
        assert made[0] == 201
        for path in ("", "/by-task/t", "/by-task/u", "/stats", "/events"):
            status, _ = await raw(url, "GET", (BASE + path).encode())
            assert await raw(url, "HEAD", (BASE + path).encode()) == (status, b"")


async def sessions_of(api: Api) -> list[Json]:
    sessions: list[Json] = (await api.get()).json()["sessions"]
    return sessions


async def test_heads_change_nothing(api: Api) -> None:
    session = await api.create(taskId="t")
    for path in ALLOWED:
        await api.call("HEAD", path)
    assert await sessions_of(api) == [session]
