"""Errors that are nobody's fault but ours or the store's, and long answers that are written as they are read."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import BASE, Api, Json, listening, running, serving
from tests.raw import read_raw
from tests.redis_server import RedisServer
from tracker.models import CreateSession
from tracker.settings import Settings
from tracker.store.connection import POOL_CONNECTIONS
from tracker.store.store import Store, open_store

# --- what the tracker did not write -----------------------------------------------------------------------------------


async def planted(api: Api, name: str) -> Json:
    """A session of task t1; one of its keys then is a list, which no script expects."""
    session = await api.create(taskId="t1")
    key = api.store.scripts.shards[0].prefix + name.format(**session)
    await api.store.scripts.client.delete(key)
    await api.store.scripts.client.rpush(key, "planted")
    return session


async def raw_without_lives(api: Api) -> dict[str, tuple[str, object]]:
    """All keys; a failed call may have moved no more than the time goes by."""
    (keys,) = await read_raw(api.store)
    return {name: (key.kind, key.content) for name, key in keys.items()}


@pytest.mark.parametrize(
    ("key", "method", "path"),
    [
        ("task:t1", "PUT", "/heartbeat/t1"),
        ("task:t1", "GET", "/by-task/t1"),
        ("task:t1", "POST", ""),
        ("session:{id}", "PUT", "/heartbeat/t1"),
        ("session:{id}", "GET", "/{id}"),
        ("session:{id}", "PUT", "/{id}/stop"),
        ("session:{id}", "DELETE", "/by-task/t1"),
        ("session:{id}", "POST", "/cleanup"),
        ("sessions", "GET", ""),
        ("sessions", "GET", "?limit=5"),
        ("sessions", "POST", ""),
        ("deadlines", "PUT", "/heartbeat"),
        ("agent:a", "DELETE", "/{id}"),
        ("agents", "GET", "/stats"),
        ("counters", "POST", "/cleanup"),
        ("events", "GET", "/events"),
        ("events", "PUT", "/provider-session/t1"),
        ("events", "DELETE", "/by-task/t1"),
    ],
)
async def test_a_key_of_the_wrong_type_is_a_500_with_a_log_line_and_changes_nothing(
    api: Api, key: str, method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    session = await planted(api, key)
    before = await raw_without_lives(api)
    body = {"agentId": "a", "triggerType": "t", "taskId": "t1", "taskIds": ["t1"], "providerSessionId": "p"}
    caplog.clear()
    answer = await api.call(method, path.format(**session), json=body)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": "The store holds something that the tracker did not write: see the log"}
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    assert all("WRONGTYPE" in record.getMessage() for record in errors)
    assert session["id"] not in errors[0].getMessage().partition("WRONGTYPE")[0]
    assert await raw_without_lives(api) == before


async def test_one_bad_session_does_not_keep_the_others_from_their_heartbeats(api: Api) -> None:
    """They travel to the store in one call; each gets its own answer."""
    for number in range(20):
        await api.create(taskId=f"t{number}")
    key = api.store.scripts.shards[0].prefix + "task:t7"
    await api.store.scripts.client.delete(key)
    await api.store.scripts.client.rpush(key, "planted")
    answers = await asyncio.gather(*(api.put(f"/heartbeat/t{number}") for number in range(20)))
    assert [answer.status_code for answer in answers] == [500 if number == 7 else 200 for number in range(20)]


async def test_what_nobody_foresaw_is_a_500_in_json(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing of the inside; the exception itself goes on to the server, which logs it."""

    async def broken(self: Store) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Store, "stats", broken)
    async with running(settings, raise_app_exceptions=False) as api:
        answer = await api.get("/stats")
        assert (answer.status_code, answer.json()) == (500, {"error": "Internal server error"})
    async with running(settings) as api:
        with pytest.raises(ZeroDivisionError):
            await api.get("/stats")


# --- long lists -------------------------------------------------------------------------------------------------------


async def fill(store: Store, count: int) -> None:
    request = CreateSession.model_validate({"agentId": "a", "triggerType": "t", "taskDescription": "d" * 150})
    for _ in range(0, count, 500):
        await asyncio.gather(*(store.sessions.create(request) for _ in range(500)))


class Link:
    """A wire to Redis that breaks by itself after so many bytes of replies."""

    def __init__(self, server: RedisServer) -> None:
        self.port = 0
        self.left: int | None = None
        self._server = server
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            listener.close()
            self._cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._writers += [writer, far_writer]
        for task in (self._carry(reader, far_writer, False), self._carry(far_reader, writer, True)):
            running_task = asyncio.ensure_future(task)
            self._tasks.add(running_task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if replies and self.left is not None:
                    self.left -= len(data)
                    if self.left < 0:
                        self._cut()
                        return
                writer.write(data)
                await writer.drain()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@pytest.mark.parametrize("backend", ["redis"])
async def test_a_list_that_loses_its_store_midway_is_cut_off_not_short(
    redis_server: RedisServer, settings: Settings
) -> None:
    """Half a list that looks like a whole one would make an orchestrator start everything else anew."""
    async with open_store(settings) as store:
        await fill(store, 3000)
    link = Link(redis_server)
    async with link.open():
        url = f"redis://127.0.0.1:{link.port}/0"
        async with listening(settings.model_copy(update={"store_url": url})) as address, httpx.AsyncClient() as client:
            whole = await client.get(address + BASE)
            assert len(whole.json()["sessions"]) == 3000
            link.left = len(whole.content) // 2
            received = b""
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - the answer begins well, and then it ends
                async with client.stream("GET", address + BASE) as answer:
                    assert answer.status_code == 200
                    async for chunk in answer.aiter_bytes():
                        received += chunk
            assert received.startswith(b'{"sessions":[{"id":')
            assert len(received) < len(whole.content)
            with pytest.raises(json.JSONDecodeError):
                json.loads(received)
            link.left = None
            assert len((await client.get(address + BASE)).json()["sessions"]) == 3000, "the next list finds its way"


@pytest.mark.parametrize("backend", ["redis"])
async def test_lists_that_nobody_reads_to_their_end_leave_nothing_behind(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """More of them than there are connections to the store."""
    async with open_store(settings) as store:
        await fill(store, 1000)
    async with listening(settings) as address, httpx.AsyncClient() as client:
        for _ in range(2 * POOL_CONNECTIONS):
            async with client.stream("GET", address + BASE) as answer:
                async for _ in answer.aiter_raw():
                    break
        assert len((await client.get(address + BASE)).json()["sessions"]) == 1000
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


SESSIONS = 20_000
GROWTH_KIB = 16 * 1024
"""The whole list is some 11 MB as JSON, and several times that as objects."""


def memory_of(pid: int, name: str) -> int:
    """VmRSS (now) or VmHWM (at its highest) of a process, in KiB; 0 where there is no /proc to tell."""
    path = Path(f"/proc/{pid}/status")
    if not path.exists():
        return 0
    status = path.read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


@pytest.mark.parametrize("backend", ["redis"])
async def test_a_list_of_20000_is_one_valid_answer_while_heartbeats_go_on(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    """And the server's memory hardly grows: what is read is written before more is read."""
    await fill(store, SESSIONS)
    environment = {"TRACKER_STORE_URL": settings.store_url, "TRACKER_NAMESPACE": settings.namespace}
    with serving(tmp_path / "serve.log", TRACKER_STORE_TIMEOUT_SECONDS="10", **environment) as server:
        url = server.url + BASE
        async with httpx.AsyncClient(timeout=60) as client:
            made = await client.post(url, json={"agentId": "b", "triggerType": "t", "taskId": "beats"})
            assert made.status_code == 201
            assert len((await client.get(f"{url}?limit=1000")).json()["sessions"]) == 1000
            before = memory_of(server.pid, "VmRSS")

            listing = asyncio.create_task(client.get(url))
            beats = 0
            while not listing.done():
                assert (await client.put(f"{url}/heartbeat/beats")).json()["updated"] is True
                beats += 1
            answer = await listing
            assert answer.status_code == 200
            sessions = answer.json()["sessions"]
            assert len(sessions) == SESSIONS + 1
            assert len({session["id"] for session in sessions}) == SESSIONS + 1
            assert beats > 1, "heartbeats were answered while the list was under way"
            assert memory_of(server.pid, "VmHWM") - before < GROWTH_KIB
