"""deploy/haproxy.cfg as it runs: the real HAProxy, found pods by a real name server, pods that misbehave on demand."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.haproxy import CONFIGURATION, NameServer, needs_haproxy, running_haproxy
from tests.patience import until
from tracker.settings import Settings

pytestmark = needs_haproxy

Head = dict[str, str]
Answer = Callable[["Pod", str, asyncio.StreamWriter], Awaitable[None]]


class Pod:
    """A stand-in for one API pod: notes each request line but the health checks', and answers 200 with its address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ready = True
        self.refusals = asyncio.Semaphore(0)
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.answer: Answer = say_who
        self.connections: set[asyncio.StreamWriter] = set()
        self.closed = asyncio.Event()
        self.server: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        self.server = await asyncio.start_server(self._serve, self.address, port)
        bound: int = self.server.sockets[0].getsockname()[1]
        return bound

    async def kill(self) -> None:
        """As SIGKILL does it: nobody listens, every connection is reset."""
        assert self.server is not None
        self.server.close()
        for connection in self.connections:
            connection.transport.abort()
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, _, fields = head.partition("\r\n")
                length = re.search(r"(?im)^content-length: *(\d+)", fields)
                body = await reader.readexactly(int(length[1])) if length else b""
                if line.startswith("GET /ready "):
                    reply(writer, 200 if self.ready else 503, {"ready": self.ready})
                    if not self.ready:
                        self.refusals.release()
                else:
                    self.requests.append(line)
                    self.bodies.append(body)
                    await self.answer(self, line, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(writer)
            self.closed.set()
            writer.close()


def reply(writer: asyncio.StreamWriter, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    writer.write(b"HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
    writer.write(body)


async def say_who(pod: Pod, line: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, 200, {"pod": pod.address})


async def break_off(pod: Pod, line: str, writer: asyncio.StreamWriter) -> None:
    raise ConnectionResetError


class Service:
    """A proxy, its name server and its pods; `client` talks to the proxy."""

    def __init__(self, client: httpx.AsyncClient, names: NameServer, pods: list[Pod]) -> None:
        self.client = client
        self.names = names
        self.pods = pods

    async def answering(self) -> set[Pod]:
        """The pods that answer a round of requests, each on a connection of its own."""
        addresses = set()
        for _ in range(2 * len(self.pods)):
            response = await self.client.get("/", headers={"Connection": "close"})
            addresses.add(response.json().get("pod"))
        return {pod for pod in self.pods if pod.address in addresses}

    async def until_answering(self, *pods: Pod) -> None:
        async with asyncio.timeout(20):
            while True:
                if await self.answering() == set(pods):
                    return
                await asyncio.sleep(0.02)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Two pods behind the proxy, both known to be ready."""
    async with contextlib.AsyncExitStack() as stack:
        pods = [Pod("127.0.0.2"), Pod("127.0.0.3"), Pod("127.0.0.4")]
        port = 0
        for pod in pods:
            port = await pod.start(port)
            stack.push_async_callback(pod.kill)

        url, names = await stack.enter_async_context(
            running_haproxy(tmp_path, port, *(pod.address for pod in pods[:2]))
        )
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, timeout=20))
        service = Service(client, names, pods)
        await service.until_answering(*pods[:2])
        for pod in pods:
            pod.requests.clear()
            pod.bodies.clear()
        yield service


async def test_the_configuration_has_no_error_and_no_warning() -> None:
    """HAProxy's own checker is silent but for its verdict."""
    checker = await asyncio.create_subprocess_exec(
        "haproxy", "-c", "-f", CONFIGURATION, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await checker.communicate()
    assert checker.returncode == 0
    assert not re.search(rb"WARNING|ALERT", output), output.decode()


async def test_a_percent_encoded_path_reaches_the_pod_untouched(service: Service) -> None:
    """Slashes, percent signs, NUL, dots, spaces and emoji in a task id stay encoded as the runner sent them."""
    path = "/api/active-sessions/by-task/a%2Fb%2f..%2F%25%00%20%F0%9F%A6%8A//./c?sessionId=x%2Fy&z=%"
    host, port = service.client.base_url.host, service.client.base_url.port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert [line for pod in service.pods for line in pod.requests] == [f"GET {path} HTTP/1.1"]


async def test_the_longest_url_and_the_largest_body_fit(service: Service) -> None:
    """Five filters of 512 emoji each, and a body of 64 KiB."""
    query = "&".join(f"filter{number}={'%F0%9F%A6%8A' * 512}" for number in range(5))
    body = b"x" * 65536
    response = await service.client.post(f"/api/active-sessions?{query}", content=body)
    assert response.status_code == 200
    assert [line for pod in service.pods for line in pod.requests] == [f"POST /api/active-sessions?{query} HTTP/1.1"]
    assert [sent for pod in service.pods for sent in pod.bodies] == [body]


async def test_no_request_is_lost_when_a_pod_is_killed(service: Service) -> None:
    """Every call of every method right after the kill is answered by the other pod."""
    killed, left, _ = service.pods
    await killed.kill()
    for method in ["POST", "PUT", "DELETE", "GET"] * 5:
        response = await service.client.request(method, "/", headers={"Connection": "close"})
        assert (response.status_code, response.json()) == (200, {"pod": left.address})


async def test_a_request_that_changes_something_is_never_repeated(service: Service) -> None:
    """A pod that takes a write and breaks off may have carried it out: one delivery, and a 502 that says so."""
    close = {"Connection": "close"}  # from the second request of a connection on, HAProxy just closes it
    for pod in service.pods:
        pod.answer = break_off
    for method in ("POST", "PUT", "DELETE"):
        response = await service.client.request(method, "/api/active-sessions", content=b"{}", headers=close)
        assert response.status_code == 502
        assert "may have been carried out" in response.json()["error"]
    assert sorted(line.split()[0] for pod in service.pods for line in pod.requests) == ["DELETE", "POST", "PUT"]


async def test_a_read_that_a_pod_breaks_off_is_repeated_on_the_other(service: Service) -> None:
    """A GET changes nothing, so the caller need not learn that a pod died under it."""
    bad, good, _ = service.pods
    bad.answer = break_off
    for _ in range(4):
        response = await service.client.get("/api/active-sessions", headers={"Connection": "close"})
        assert (response.status_code, response.json()) == (200, {"pod": good.address})
    assert bad.requests


async def test_a_pod_that_is_not_ready_gets_no_requests_until_it_is(service: Service) -> None:
    """The health check follows /ready, both ways."""
    unready, left, _ = service.pods
    unready.ready = False
    await service.until_answering(left)
    unready.ready = True
    await service.until_answering(unready, left)


async def test_a_kept_connection_moves_on_when_its_pod_is_not_ready_any_more(service: Service) -> None:
    """The caller's own stays as it is, with one request after the other answered, though it preferred its last pod."""
    host, port = service.client.base_url.host, service.client.base_url.port
    reader, writer = await asyncio.open_connection(host, port)

    async def ask() -> str:
        writer.write(f"PUT / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = re.findall(r"content-length: (\d+)", head)
        body: dict[str, str] = json.loads(await reader.readexactly(int(length)))
        assert head.startswith("http/1.1 200 ")
        assert "connection: close" not in head
        return body["pod"]

    first = await ask()
    assert await ask() == first
    (leaving,) = (pod for pod in service.pods if pod.address == first)
    leaving.ready = False

    async def has_moved() -> bool:
        return await ask() != first

    await until(has_moved)
    assert leaving.connections, "its connection to that pod is still there, and nothing is sent on it"
    requests = len(leaving.requests)
    for _ in range(10):
        assert await ask() != first
    assert len(leaving.requests) == requests
    writer.close()


async def test_a_pod_that_ends_its_connection_with_an_answer_does_not_end_the_callers(service: Service) -> None:
    """As a draining pod does with each answer."""

    async def say_good_bye(pod: Pod, line: str, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"pod": pod.address}).encode()
        writer.write(b"HTTP/1.1 200 -\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        raise ConnectionResetError

    for pod in service.pods:
        pod.answer = say_good_bye
    async with httpx.AsyncClient(
        base_url=service.client.base_url, trust_env=False, timeout=20, limits=httpx.Limits(max_connections=1)
    ) as client:
        for _ in range(20):
            answer = await client.put("/")
            assert answer.status_code == 200
            assert "connection" not in answer.headers


async def test_with_no_pod_ready_the_pods_themselves_answer(service: Service) -> None:
    """While the store is away the tracker tells why, and the first request after it is not turned down by the proxy."""
    pods = service.pods[:2]
    for pod in pods:
        pod.ready = False
    # The second failed check takes a pod out: when the third comes, it has happened.
    for pod in pods:
        for _ in range(3):
            await pod.refusals.acquire()
    assert await service.answering() == set(pods)


async def test_with_no_pod_up_the_answer_is_an_honest_503(service: Service) -> None:
    """JSON with `error`, as the contract has it for every error, and when to come back."""
    for pod in service.pods:
        await pod.kill()
    response = await service.client.post("/api/active-sessions", content=b"{}")
    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Retry-After"] == "1"
    assert response.json() == {"error": "No tracker is up"}


async def test_a_pod_that_is_added_gets_requests(service: Service) -> None:
    """`docker compose up --scale api=3`: the name has another address, and nothing is restarted."""
    service.names.addresses = [pod.address for pod in service.pods]
    await service.until_answering(*service.pods)


async def test_events_arrive_one_by_one(service: Service) -> None:
    """Each event reaches the subscriber before the pod sends the next one, and at once: 50 take far less than 10 s."""
    arrived = asyncio.Queue[str]()

    async def stream(pod: Pod, line: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(50):
            event = b"id: %d\n\n" % number
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            assert await arrived.get() == f"id: {number}"
        writer.write(b"0\r\n\r\n")

    for pod in service.pods:
        pod.answer = stream
    async with asyncio.timeout(5), service.client.stream("GET", "/api/active-sessions/events") as response:
        async for line in response.aiter_lines():
            if line:
                arrived.put_nowait(line)
    assert arrived.empty()
    assert len([line for pod in service.pods for line in pod.requests]) == 1


async def test_a_pod_connection_ends_with_the_client_connection_it_belongs_to(service: Service) -> None:
    """None is left idle in a pool, to be closed by the pod in the very moment another client's POST is sent on it."""
    response = await service.client.post("/", content=b"{}")
    (pod,) = (pod for pod in service.pods if pod.address == response.json()["pod"])
    pod.closed.clear()
    again = await service.client.post("/", content=b"{}")
    assert again.json() == response.json()
    assert not pod.closed.is_set()
    await service.client.aclose()
    async with asyncio.timeout(20):
        await pod.closed.wait()


@pytest.mark.parametrize("timeout", ["http-keep-alive", "client"])
def test_the_proxy_closes_idle_connections_before_a_pod_does(timeout: str) -> None:
    """Its patience with a silent connection is shorter than the default of TRACKER_KEEP_ALIVE_SECONDS."""
    (seconds,) = re.findall(rf"(?m)^ *timeout {timeout} +(\d+)s$", CONFIGURATION.read_text())
    assert int(seconds) < Settings().keep_alive_seconds
