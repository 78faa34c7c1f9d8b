"""A rolling update: every pod is replaced behind the real proxy while 500 runs heartbeat, and none of them notices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.haproxy import needs_haproxy, running_haproxy
from tests.patience import until
from tests.redis_server import RedisServer, free_port

pytestmark = needs_haproxy

PODS = 3
RUNS = 500
BEAT_SECONDS = 1.0
TTL_SECONDS = 15
"""A session lives by its heartbeats only: the update takes longer."""
DRAIN_SECONDS = 3
"""The proxy takes a pod out within 1.25 s of its first 503; machines under load are late."""
STOP_SECONDS = 10
PATIENCE_SECONDS = 60


class Pod:
    """A `tracker serve` in a process of its own."""

    def __init__(self, address: str, port: int, process: asyncio.subprocess.Process, log: Path) -> None:
        self.url = f"http://{address}:{port}"
        self.address = address
        self.log = log
        self._process = process

    async def is_ready(self) -> bool:
        assert self._process.returncode is None, self.log.read_text()
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            with contextlib.suppress(httpx.TransportError):
                return (await client.get("/ready", timeout=5)).status_code == 200
        return False

    async def stop(self) -> int:
        """As Kubernetes and Docker do; what it exits with. Raises TimeoutError when that takes too long."""
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DRAIN_SECONDS + STOP_SECONDS):
            return await self._process.wait()


@asynccontextmanager
async def serving(address: str, port: int, log: Path, options: dict[str, str]) -> AsyncIterator[Pod]:
    """Started, not yet ready."""
    command = [sys.executable, "-m", "tracker", "serve", "--host", address, "--port", str(port)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKER_", "API_KEY"))}
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *command,
            *itertools.chain(*options.items()),
            env=inherited,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        yield Pod(address, port, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass
class Tally:
    """What became of all the heartbeats. ``servers``: who answered how many, by the beginning of the request ids."""

    answers: Counter[tuple[int, bool]] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    servers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


class Run:
    """A run with a connection of its own, kept alive, that says each thing once: what is lost is lost."""

    def __init__(self, number: int, url: str, tally: Tally) -> None:
        self.task_id = f"task-{number}"
        self.beats = 0
        self._delay = BEAT_SECONDS * number / RUNS
        self._place = urlsplit(url)
        self._tally = tally
        self._writer: asyncio.StreamWriter | None = None

    async def begin(self) -> None:
        body = f'{{"agentId": "a", "triggerType": "t", "taskId": "{self.task_id}", "ttlSeconds": {TTL_SECONDS}}}'
        status, _, _ = await self._call("POST /api/active-sessions", body)
        assert status == 201

    async def beat(self) -> None:
        """For ever."""
        now = asyncio.get_running_loop().time
        due = now() + self._delay
        while True:
            await asyncio.sleep(max(0.0, due - now()))
            begun, due = now(), now() + BEAT_SECONDS
            try:
                status, server, answer = await self._call(f"PUT /api/active-sessions/heartbeat/{self.task_id}")
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self._tally.broken[type(error).__name__] += 1
                self.close()
                continue
            self._tally.answers[status, b'"updated":true' in answer] += 1
            self._tally.servers[server] += 1
            self._tally.slowest = max(self._tally.slowest, now() - begun)
            self.beats += 1

    async def _call(self, line: str, body: str = "") -> tuple[int, str, bytes]:
        """The status, who answered, and the body."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._place.hostname, self._place.port)
        self._writer.write(f"{line} HTTP/1.1\r\nHost: tracker\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = re.findall(r"\ncontent-length: (\d+)\r", head)
        answer = await self._reader.readexactly(int(length))
        if "\nconnection: close\r" in head:
            self.close()
        server = re.search(r"\nx-request-id: (\w{16})", head)
        return int(head.split()[1]), server[1] if server else "the proxy", answer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


async def test_pods_are_replaced_one_after_the_other_and_no_heartbeat_fails(
    redis_server: RedisServer, namespace: str, tmp_path: Path
) -> None:
    """Each new pod is ready before an old one goes. Nobody tries anything twice but the proxy, and that connecting."""
    port, tally = free_port(), Tally()
    options = {
        "--store-url": redis_server.url,
        "--namespace": namespace,
        "--store-timeout-seconds": "10",
        "--drain-seconds": str(DRAIN_SECONDS),
        "--access-log": "errors",
    }
    async with AsyncExitStack() as stack:

        async def start(number: int) -> Pod:
            address = f"127.0.0.{2 + number}"
            return await stack.enter_async_context(serving(address, port, tmp_path / address, options))

        old = [await start(number) for number in range(PODS)]
        for pod in old:
            await until(pod.is_ready, PATIENCE_SECONDS)
        proxy = running_haproxy(tmp_path, port, *(pod.address for pod in old), connections=2 * RUNS)
        url, names = await stack.enter_async_context(proxy)
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, timeout=30))

        async def serves() -> bool:
            return (await client.get("/ready")).status_code == 200

        await until(serves, PATIENCE_SECONDS)
        runs = [Run(number, url, tally) for number in range(RUNS)]
        for run in runs:
            stack.callback(run.close)
            await run.begin()
        beating = [asyncio.create_task(run.beat()) for run in runs]
        try:
            new: list[Pod] = []
            for leaving in old:
                new.append(await start(PODS + len(new)))
                names.addresses.append(new[-1].address)
                await until(new[-1].is_ready, PATIENCE_SECONDS)
                assert await leaving.stop() == 0, leaving.log.read_text()
                names.addresses.remove(leaving.address)
            before = [run.beats for run in runs]

            async def all_beat_on() -> bool:
                return all(run.beats > count for run, count in zip(runs, before, strict=True))

            await until(all_beat_on, PATIENCE_SECONDS)
        finally:
            for task in beating:
                task.cancel()
            await asyncio.wait(beating)

        assert not tally.broken, tally
        assert tally.answers.keys() == {(200, True)}, tally
        assert len(tally.servers) > PODS, "nobody ever moved"
        sessions = (await client.get("/api/active-sessions")).json()["sessions"]
        assert {session["taskId"] for session in sessions} == {run.task_id for run in runs}
        page = await client.get("/api/active-sessions/events", params={"type": "session.ended", "limit": 1000})
        assert page.json()["events"] == []
        for pod in (*old, *new):
            assert not re.search(r" ERROR |Traceback", pod.log.read_text()), pod.log.read_text()
