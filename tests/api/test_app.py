"""The application as a whole: who may call what, what operators ask, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
from importlib.metadata import version

import httpx
import pytest

import tracker
from tests.api.conftest import BASE, Api, running
from tracker.api.app import create_app
from tracker.api.routes import OPERATIONS
from tracker.errors import SchemaMismatch
from tracker.settings import Settings
from tracker.store.store import Store

KEYS = pytest.mark.settings(api_keys=("w-key",), read_api_keys=("r-key",))
WRITER = {"Authorization": "Bearer w-key"}
READER = {"Authorization": "Bearer r-key"}
API = [operation for operation in OPERATIONS if operation.path.startswith("/api/")]


def path_of(template: str) -> str:
    return template.replace("{taskId}", "t").replace("{id}", "x")


@KEYS
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic dzp3"}])
async def test_without_a_key_no_route_of_the_api_answers(api: Api, headers: dict[str, str]) -> None:
    for operation in API:
        refused = await api.client.request(operation.method, path_of(operation.path), headers=headers)
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"}), operation.path
        assert refused.headers["www-authenticate"] == "Bearer"


@KEYS
@pytest.mark.parametrize("path", ["/api", "/api/", "/api/nowhere", BASE + "/x/y", "/API/x", "/api%2Factive-sessions"])
async def test_without_a_key_nobody_learns_which_paths_there_are(api: Api, path: str) -> None:
    refused = await api.client.get(path)
    assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
    assert (await api.client.get(path, headers=WRITER)).status_code == 404


@KEYS
@pytest.mark.parametrize("query", ["api_key=w-key", "access_token=w-key", "key=w-key", "authorization=Bearer%20w-key"])
async def test_a_key_in_the_url_opens_nothing(api: Api, query: str) -> None:
    assert (await api.get("?" + query)).status_code == 401


@KEYS
async def test_a_read_key_reads_and_does_not_write(api: Api) -> None:
    made = await api.post(json={"agentId": "a", "triggerType": "t", "taskId": "t"}, headers=WRITER)
    for operation in API:
        answer = await api.client.request(operation.method, path_of(operation.path), headers=READER)
        if operation.method == "GET":
            assert answer.status_code == (404 if "{id}" in operation.path else 200), operation.path
        else:
            assert (answer.status_code, answer.json()) == (403, {"error": "This API key may only read"})
            assert "www-authenticate" not in answer.headers
    assert (await api.get(headers=READER)).json() == {"sessions": [made.json()["session"]]}


@KEYS
async def test_a_write_key_does_everything(api: Api) -> None:
    made = await api.post(json={"agentId": "a", "triggerType": "t", "taskId": "t"}, headers=WRITER)
    assert made.status_code == 201
    assert (await api.get(headers=WRITER)).json()["sessions"] == [made.json()["session"]]
    assert (await api.put("/heartbeat/t", headers=WRITER)).json()["updated"] is True
    assert (await api.delete("/by-task/t", headers=WRITER)).json() == {"deleted": True}


@KEYS
@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json", "/docs"])
async def test_operators_need_no_key(api: Api, path: str) -> None:
    assert (await api.client.get(path)).status_code == 200


async def test_health_tells_that_the_process_is_up(api: Api) -> None:
    answer = await api.client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "version": tracker.__version__}
    assert list(answer.json()) == ["status", "version"]
    assert tracker.__version__ == version("tracker")


async def test_ready_tells_of_the_store(api: Api, backend: str) -> None:
    answer = await api.client.get("/ready")
    assert answer.status_code == 200
    found = answer.json()
    assert list(found) == ["status", "store", "warnings"]
    assert found["status"] == "ready"
    assert found["store"]["kind"] == backend
    assert found["store"]["shards"] == 1
    if backend == "memory":
        assert any("in memory" in warning for warning in found["warnings"])
    else:
        assert found["store"]["maxmemoryPolicy"] == "noeviction"
        assert any("append-only" in warning for warning in found["warnings"])


@pytest.mark.parametrize("backend", ["redis"])
async def test_a_store_laid_out_for_others_stops_the_start(api: Api, settings: Settings) -> None:
    with pytest.raises(SchemaMismatch, match="TRACKER_SHARDS=1"):
        async with running(settings.model_copy(update={"shards": 2})):
            pass


async def test_a_store_that_turns_out_to_be_anothers_is_left_alone(api: Api) -> None:
    """Somebody laid it out anew while we ran: everybody is told what to do about it, and nothing is written."""
    session = await api.create(taskId="t1")
    schema = api.store.scripts.shards[0].prefix + "schema"
    await api.store.scripts.client.hset(schema, "shards", "2")
    asked = await api.client.get("/ready")
    assert asked.status_code == 503
    assert asked.json()["status"] == "unavailable"
    for answer in (asked, await api.get(), await api.put("/heartbeat/t1"), await api.delete("/by-task/t1")):
        assert answer.status_code == 503
        assert "TRACKER_SHARDS=2" in answer.json()["error"]
        assert "retry-after" in answer.headers
    await api.store.scripts.client.hset(schema, "shards", "1")
    assert (await api.get()).json() == {"sessions": [session]}


async def test_what_one_pod_does_another_sees(api: Api, settings: Settings, backend: str) -> None:
    """No pod keeps a state of its own. The embedded store belongs to one process: another application has another."""
    session = await api.create(taskId="t1")
    async with running(settings) as other:
        expected = [] if backend == "memory" else [session]
        assert (await other.get()).json() == {"sessions": expected}
        assert (await other.put("/heartbeat/t1")).json()["updated"] is bool(expected)
        assert (await other.delete("/by-task/t1")).json() == {"deleted": bool(expected)}
    assert (await api.find(session["id"])) == (session if backend == "memory" else None)


@pytest.mark.parametrize("backend", ["redis"])
async def test_stopping_does_not_hang_on_a_driver_that_swallows_a_cancellation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12 asyncio.wait_for, which redis-py uses, gives a result that is there and forgets to stop."""
    swallowed = asyncio.Event()

    async def watch(self: Store) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        swallowed.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Store, "watch", watch)
    app = create_app(settings)
    async with asyncio.timeout(20):
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
    assert swallowed.is_set()


# --- browsers of other origins ----------------------------------------------------------------------------------------

ORIGIN = {"Origin": "https://board.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
ALLOWED = "access-control-allow-origin"


async def preflight(api: Api, headers: dict[str, str]) -> httpx.Response:
    return await api.call("OPTIONS", "/heartbeat/t", headers=headers)


@pytest.mark.settings(api_keys=("w-key",), cors_origins=("https://board.example",))
async def test_an_allowed_origin_may_call_and_read_the_answers(api: Api) -> None:
    """Preflight requests come without a key; refusals can be read too."""
    asked = await preflight(api, PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers[ALLOWED] == "https://board.example"
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    made = await api.post(json={"agentId": "a", "triggerType": "t"}, headers={**WRITER, **ORIGIN})
    assert made.status_code == 201
    assert made.headers[ALLOWED] == "https://board.example"
    assert "location" in made.headers["access-control-expose-headers"].lower()
    refused = await api.get(headers=ORIGIN)
    assert (refused.status_code, refused.headers[ALLOWED]) == (401, "https://board.example")
    lost = await api.get("/x/y", headers={**WRITER, **ORIGIN})
    assert (lost.status_code, lost.headers[ALLOWED]) == (404, "https://board.example")


@pytest.mark.settings(cors_origins=("https://board.example",))
async def test_other_origins_may_not(api: Api) -> None:
    other = {"Origin": "https://evil.example"}
    assert ALLOWED not in (await preflight(api, {**PREFLIGHT, **other})).headers
    assert ALLOWED not in (await api.get(headers=other)).headers


async def test_without_the_setting_no_origin_may(api: Api) -> None:
    assert (await preflight(api, PREFLIGHT)).status_code == 405
    assert ALLOWED not in (await api.get(headers=ORIGIN)).headers
