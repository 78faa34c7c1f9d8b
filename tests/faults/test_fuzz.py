"""Whatever is sent to a real `tracker serve`: no 500, nobody hangs, its memory stays, and the next caller is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, quote_from_bytes, urlsplit

import pytest

from tests.api.conftest import BASE, Server, serving
from tests.faults.conftest import POSSIBLE_ID, seeded
from tests.redis_server import RedisServer
from tests.store.wire import ODD_TEXTS
from tracker.api.routes import OPERATIONS
from tracker.cli.protocol import HEAD_BYTES

REQUESTS = 10_000
WARM_UP = 3_000
LINES = 16
PATIENCE_SECONDS = 20
GROWTH_BYTES = 8 * 1024 * 1024
"""What 7,000 requests may leave in the server's memory: some 1,100 bytes each. It mostly is less than 1 MB in all."""


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("fuzz") / "log"
    fields = {"TRACKER_STORE_URL": redis_server.url, "TRACKER_NAMESPACE": f"fuzz-{os.getpid()}"}
    with serving(log, **fields, TRACKER_STORE_TIMEOUT_SECONDS="10") as server:
        yield server
    assert "Traceback" not in log.read_text()


@pytest.fixture(autouse=True)
async def still_well(server: Server) -> AsyncIterator[None]:
    """After each test a caller is served as ever."""
    yield
    async with line(server) as (reader, writer):
        writer.write(a_request("POST", BASE, b'{"agentId": "well", "triggerType": "t", "taskId": "well"}'))
        assert (await read_answer(reader)).status == 201
        writer.write(a_request("PUT", f"{BASE}/heartbeat/well"))
        assert json.loads((await read_answer(reader)).body)["updated"] is True


@asynccontextmanager
async def line(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, on which nothing may take for ever."""
    place = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=2**20)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield reader, writer
    finally:
        writer.transport.abort()


def a_request(method: str, path: str, body: bytes = b"", *headers: bytes) -> bytes:
    head = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: tracker", *headers]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answered:
    """Raises IncompleteReadError where the server hung up instead."""
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    status, body = int(status_line.split(" ")[1]), b""
    if status == 100:
        return await read_answer(reader, method)
    if method != "HEAD":
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers["content-length"]))
    return Answered(status, headers, body)


def memory_of(server: Server) -> int:
    """Resident, in bytes."""
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- framing ----------------------------------------------------------------------------------------------------------

CREATE = b'{"agentId": "a", "triggerType": "t"}'
CHUNKED = a_request("POST", BASE).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
POST_HEAD = b"POST " + BASE.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: "
MISFRAMED = {
    "nothing": b"",
    "only an end of line": b"\r\n",
    "noise": bytes(range(256)) * 4,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n",
    "HTTP/3.7": b"GET /health HTTP/3.7\r\n\r\n",
    "no method that there is": b"FETCH /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the path": b"GET /hea\0lth HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    "spaces in a header's name": b"GET /health HTTP/1.1\r\nHost: x\r\nA b : c\r\n\r\n",
    "bare line feeds": b"GET /health HTTP/1.1\nHost: x\n\n",
    "length of no number": POST_HEAD + b"ten\r\n\r\n" + CREATE,
    "negative length": POST_HEAD + b"-1\r\n\r\n" + CREATE,
    "endless length": POST_HEAD + b"9" * 40 + b"\r\n\r\n",
    "two lengths": a_request("POST", BASE, CREATE, b"Content-Length: 3"),
    "length and chunks": a_request("POST", BASE, CREATE, b"Transfer-Encoding: chunked"),
    "length too small": a_request("POST", BASE, CREATE).replace(b"Length: 36", b"Length: 10"),
    "length too large": a_request("POST", BASE, CREATE).replace(b"Length: 36", b"Length: 60"),
    "chunk of no size": CHUNKED + b"x\r\n",
    "endless chunk": CHUNKED + b"f" * 20 + b"\r\n",
    "unknown encoding": a_request("POST", BASE, CREATE).replace(b"Content-Length: 36", b"Transfer-Encoding: gzip"),
    "upgrade": a_request("GET", "/health", b"", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x"),
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute": b"GET http://example.org/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a head": b"GET /health HTTP/1.1\r\nHos",
}


@pytest.mark.parametrize("name", MISFRAMED)
async def test_what_is_framed_badly_is_refused_or_hung_up_on(server: Server, name: str) -> None:
    """In JSON, as all errors; what follows on the same line is a good request, which may be lost, but not a 500."""
    for tail in (b"", a_request("GET", "/health")):
        async with line(server) as (reader, writer):
            writer.write(MISFRAMED[name] + tail)
            writer.write_eof()
            said = await reader.read()
        for answer in said.split(b"HTTP/1.1 ")[1:]:
            assert answer[:1] in (b"2", b"3", b"4"), said
            assert b"content-type: application/json" in answer
            assert answer[:1] != b"4" or b'{"error":' in answer


OFFERS = {
    "Java": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAB"),
    "curl": (b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", b"upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"),
    "WebSocket": (b"Upgrade: websocket", b"Connection: keep-alive, Upgrade", b"Sec-WebSocket-Version: 13"),
    "loud": (b"UPGRADE: TLS/1.0", b"CONNECTION: UPGRADE"),
}


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "body apart"])
@pytest.mark.parametrize("who", OFFERS)
async def test_an_offer_of_another_protocol_is_passed_over_and_the_body_read(
    server: Server, who: str, apart: bool
) -> None:
    async with line(server) as (reader, writer):
        for n in range(3):
            task = f"offer-{who}-{apart}-{n}"
            body = json.dumps({"agentId": "a", "triggerType": "t", "taskId": task}).encode()
            request = a_request("POST", BASE, body, *OFFERS[who])
            writer.write(request[: -len(body)])
            if apart:
                await writer.drain()
                await asyncio.sleep(0.02)  # a piece of its own, mostly
            writer.write(body + a_request("GET", f"{BASE}/by-task/{task}"))
            created = await read_answer(reader)
            assert (created.status, json.loads(created.body)["session"]["taskId"]) == (201, task)
            assert (await read_answer(reader)).status == 200


@pytest.mark.parametrize("method", ["POST", "CONNECT"])
async def test_no_body_is_ever_taken_for_a_request(server: Server, method: str) -> None:
    """Where it cannot be told that the offer was passed over: it is refused, and the connection ends."""
    async with line(server) as (reader, writer):
        inner = a_request("POST", BASE, b'{"agentId": "smuggled", "triggerType": "t", "taskId": "smuggled"}')
        request = a_request(method, BASE, inner, *OFFERS["Java"])
        cut = request.index(b"Upgrade: h2c") + 3
        for piece in (request[:cut], request[cut : -len(inner)], inner):
            writer.write(piece)
            await asyncio.sleep(0.05)
        refused = await read_answer(reader)
        assert (refused.status, refused.headers["connection"]) == (400, "close")
        assert await reader.read() == b""
    async with line(server) as (reader, writer):
        writer.write(a_request("GET", f"{BASE}/by-task/smuggled"))
        assert (await read_answer(reader)).status == 404


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nA: ",
        CHUNKED + b"0\r\nA: ",
        CHUNKED + b"1;",
    ],
    ids=["path", "header", "trailer", "chunk extension"],
)
@pytest.mark.parametrize("piece", [b"a" * 1000, b"a\r\na: " * 200], ids=["one", "many"])
async def test_a_head_without_end_does_not_fill_the_memory(server: Server, begin: bytes, piece: bytes) -> None:
    """Before anybody has shown a key: it is refused soon, and read no further."""
    before, sent = memory_of(server), 0
    async with line(server) as (_, writer):
        writer.write(begin)
        with contextlib.suppress(ConnectionError):
            while sent < 50_000_000:
                writer.write(piece * 100)
                await writer.drain()
                sent += 100 * len(piece)
    assert sent < 50_000_000
    assert memory_of(server) - before < 16 * 1024 * 1024


async def test_a_head_of_what_is_allowed_is_served_and_of_more_told_so(server: Server) -> None:
    async with line(server) as (reader, writer):
        for _ in range(2):
            writer.write(a_request("GET", "/health", b"", b"A: " + b"a" * (HEAD_BYTES - 1000)))
            assert (await read_answer(reader)).status == 200
        writer.write(b"GET /health HTTP/1.1\r\nA: " + b"a" * HEAD_BYTES)
        refused = await read_answer(reader)
        assert refused.status == 431
        assert "64" in json.loads(refused.body)["error"] or str(HEAD_BYTES) in json.loads(refused.body)["error"]


async def test_a_body_without_end_does_not_fill_the_memory(server: Server) -> None:
    before, sent = memory_of(server), 0
    async with line(server) as (_, writer):
        writer.write(CHUNKED)
        with contextlib.suppress(ConnectionError):
            while sent < 50_000_000:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
                sent += 65536
    assert sent < 50_000_000
    assert memory_of(server) - before < 16 * 1024 * 1024


async def test_bytes_that_come_one_by_one_make_a_request_all_the_same(server: Server) -> None:
    async with line(server) as (reader, writer):
        for byte in a_request("POST", BASE, CREATE):
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await read_answer(reader)).status == 201


async def test_those_who_begin_and_never_end_keep_nobody_waiting(server: Server) -> None:
    """Some in the head, some in the body."""
    place = urlsplit(server.url)
    idle = [await asyncio.open_connection(place.hostname, place.port) for _ in range(300)]
    try:
        for number, (_, writer) in enumerate(idle):
            writer.write(a_request("POST", BASE, CREATE)[: -10 if number % 2 else 30])
        async with line(server) as (reader, writer):
            for _ in range(50):
                writer.write(a_request("POST", BASE, CREATE))
                assert (await read_answer(reader)).status == 201
    finally:
        for _, writer in idle:
            writer.transport.abort()


async def test_many_requests_in_one_piece_are_answered_in_their_order(server: Server) -> None:
    bodies = [json.dumps({"agentId": f"a{n}", "triggerType": "t", "taskId": f"piece-{n}"}).encode() for n in range(100)]
    async with line(server) as (reader, writer):
        writer.write(b"".join(a_request("POST", BASE, body) for body in bodies))
        for n in range(100):
            assert json.loads((await read_answer(reader)).body)["session"]["taskId"] == f"piece-{n}"
        writer.write(b"".join(a_request("GET", f"{BASE}/by-task/piece-{n}") for n in range(100)))
        for n in range(100):
            assert json.loads((await read_answer(reader)).body)["session"]["agentId"] == f"a{n}"


# --- what is framed well and makes no sense ---------------------------------------------------------------------------

TEXTS = [*ODD_TEXTS.values(), "", "a", "t1", "x" * 513, POSSIBLE_ID]
NUMBERS = ["0", "-0", "-1", "1", "1.5", "1e999", "-1e999", "1e-400", "9" * 400, "NaN", "Infinity", "01", "0x1"]
FIELDS = ["agentId", "triggerType", "taskId", "taskIds", "sessionIds", "sessionId", "progress", "providerSessionId"]
FIELDS += ["ttlSeconds", "metadata", "onConflict", "maxAgeMinutes", "runtimeInstanceId", "taskDescription", "x"]
ESCAPES = ['"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\x"', '"\\u12"', '"\t"', '"', "'a'", '"\ufeff"']
SERVED = [(operation.method, re.sub("{.+?}", "{}", operation.path)) for operation in OPERATIONS]
PATHS = [path for _, path in SERVED] + [f"{BASE}/{{}}/{{}}/{{}}", "//", "/../..", f"{BASE}/%2e%2e/{{}}", "/api/{}"]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
QUERIES = ["agentId", "taskId", "limit", "cursor", "after", "type", "sessionId", "triggerType", "x"]
HEADERS: list[Callable[[random.Random], bytes]] = [
    lambda chance: b"Idempotency-Key: " + _visible(chance, chance.choice([1, 10, 255, 600])),
    lambda chance: b"Authorization: " + chance.choice([b"", b"Bearer", b"Bearer \xff", b"Basic eA=="]),
    lambda chance: b"Content-Type: " + chance.choice([b"", b"text/xml", b"text/json; charset=utf-16", b"\xff/\xfe"]),
    lambda chance: b"Accept: " + chance.choice([b"", b"*/*;q=nan", b"text/html", _visible(chance, 300)]),
    lambda chance: b"Last-Event-ID: " + chance.choice([b"0", b"9-9-9", _visible(chance, 50)]),
    lambda chance: b"Origin: " + _visible(chance, 20),
    lambda chance: b"Expect: " + chance.choice([b"100-continue", b"200-ok"]),
    lambda chance: b"Connection: " + chance.choice([b"keep-alive", b"close", b"x, y", b"upgrade"]),
    lambda chance: b"Upgrade: " + chance.choice([b"h2c", b"websocket", _visible(chance, 10)]),
    lambda chance: b"Content-Encoding: gzip",
    lambda chance: b"Forwarded: for=\xff",
    lambda chance: b"X-Forwarded-For: " + b"1, " * chance.randrange(500),
    lambda chance: b"Cookie: " + _visible(chance, chance.randrange(1, 4000)),
    lambda chance: b"Range: bytes=0-",
    lambda chance: _visible(chance, 8).translate(None, b':()<>@,;\\"/[]?={} ') + b"x: y",
]


def _visible(chance: random.Random, length: int) -> bytes:
    return bytes(chance.choice(b"azAZ09!#$%&'*+-.^_`|~ \xe4\xff") for _ in range(length)).strip() or b"v"


def _text(chance: random.Random) -> str:
    return json.dumps(chance.choice(TEXTS), ensure_ascii=chance.random() < 0.5)


def _value(chance: random.Random, depth: int = 0) -> str:
    """Something like JSON, or not quite."""
    kind = chance.randrange(12 if depth < 4 else 8)
    if kind < 4:
        return _text(chance)
    if kind < 6:
        return chance.choice(NUMBERS)
    if kind == 6:
        return chance.choice(["null", "true", "false", "nul", "", "undefined"])
    if kind == 7:
        return chance.choice(ESCAPES)
    if kind < 10:
        return "[" + ", ".join(_value(chance, depth + 1) for _ in range(chance.randrange(5))) + "]"
    pairs = (f"{_text(chance)}: {_value(chance, depth + 1)}" for _ in range(chance.randrange(5)))
    return "{" + ", ".join(pairs) + "}"


def _body(chance: random.Random) -> bytes:
    kind = chance.randrange(20)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    if kind == 1:
        depth = chance.choice([50, 250, 5_000, 30_000])
        return b'{"metadata": ' * (depth // 13) if chance.random() < 0.5 else b"[" * depth + b"]" * depth
    if kind == 2:
        return b'{"agentId": "a", "triggerType": "t", "x": "' + b"x" * chance.choice([65_400, 65_536, 200_000]) + b'"}'
    if kind == 3:
        return b'{"taskIds": [' + b'"t", ' * chance.choice([999, 1000, 5000]) + b'"u"]}'
    fields = {f: _value(chance) for f in chance.sample(FIELDS, chance.choice([0, 1, 1, 2, 5]))}
    fields |= {f: _text(chance) for f in ("agentId", "triggerType", "providerSessionId") if chance.random() < 0.8}
    text = "{" + ", ".join(f'"{field}": {value}' for field, value in fields.items()) + "}"
    body = text.encode(chance.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]), "surrogatepass")
    if kind == 4:
        return body[: chance.randrange(len(body) + 1)]
    if kind == 5:
        at = chance.randrange(len(body))
        return body[:at] + chance.randbytes(1) + body[at + 1 :]
    return body


def _segment(chance: random.Random) -> str:
    if chance.random() < 0.2:
        return quote_from_bytes(chance.randbytes(chance.randrange(1, 30)))
    return quote(chance.choice(TEXTS), safe=chance.choice(["", "/"])) or "-"


def _random_request(chance: random.Random) -> tuple[str, bytes]:
    method, path = chance.choice(SERVED) if chance.random() < 0.8 else (chance.choice(METHODS), chance.choice(PATHS))
    path = "".join(part if n == 0 else _segment(chance) + part for n, part in enumerate(path.split("{}")))
    if chance.random() < 0.3:
        query = "&".join(f"{chance.choice(QUERIES)}={_segment(chance)}" for _ in range(chance.choice([1, 2, 3, 200])))
        path += "?" + query
    headers = [make(chance) for make in chance.choices(HEADERS, k=chance.choice([0, 1, 2, 5]))]
    body = b"" if chance.random() < 0.2 else _body(chance)
    if chance.random() < 0.1:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part)
        head = a_request(method, path, b"", *headers)
        return method, head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"
    return method, a_request(method, path, body, *headers)


async def test_ten_thousand_random_requests(server: Server) -> None:
    statuses: Counter[int] = Counter()

    async def call_on(chance: random.Random, requests: Iterator[int]) -> None:
        while True:
            async with line(server) as (reader, writer):
                for _ in range(50):  # on each connection, for as long as the server keeps it
                    if next(requests, None) is None:
                        return
                    method, request = _random_request(chance)
                    writer.write(request)
                    try:
                        answer = await read_answer(reader, method)
                    except (ConnectionError, asyncio.IncompleteReadError) as error:
                        raise AssertionError(f"hung up on {request[:2000]!r}") from error
                    statuses[answer.status] += 1
                    assert answer.status < 500, f"{answer} to {request[:2000]!r}"
                    if answer.headers.get("connection") == "close":
                        break

    async def call_all(chance: random.Random, requests: int) -> None:
        left = iter(range(requests))
        callers = [asyncio.create_task(call_on(random.Random(chance.random()), left)) for _ in range(LINES)]
        try:
            await asyncio.gather(*callers)
        finally:
            for caller in callers:
                caller.cancel()

    with seeded() as chance:
        await call_all(chance, WARM_UP)
        before = memory_of(server)
        await call_all(chance, REQUESTS - WARM_UP)
        grown = memory_of(server) - before
        assert grown < GROWTH_BYTES
        for status in (200, 201, 400, 404, 405, 413):
            assert statuses[status] > 20, statuses
