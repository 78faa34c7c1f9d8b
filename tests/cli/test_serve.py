"""`tracker serve`: what it refuses, how it says so, and that it serves what its options ask for."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue

import httpx
import pytest
import redis
import uvicorn
from typer.testing import CliRunner, Result
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import SIGNALS

import tracker.cli.serve as serving
from tests.redis_server import RedisServer, running_redis
from tests.scrape import Scrape
from tests.streams import request
from tracker import __version__
from tracker.api.auth import Keyring
from tracker.cli.main import app
from tracker.cli.workers import STRAGGLER_SECONDS, Workers
from tracker.errors import SchemaMismatch, StoreUnavailable
from tracker.settings import FIELDS, Settings, digest_of, option_of, variable_of
from tracker.store.store import CLOSING_SECONDS

PATIENCE_SECONDS = 60


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, without anything of the developer's that is meant for a tracker."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRACKER_")}
    for name in ("API_KEY", "REDIS_URL", "FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY"):
        clean.pop(name, None)
    monkeypatch.setattr(os, "environ", clean)
    return clean


def key_line(name: str, key: str, scope: str = "write") -> str:
    return f"{name} {scope} sha256:{digest_of(key).hex()}\n"


# Without starting a server


class Started(list[Settings]):
    """The settings of the servers that would have been started."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr(serving, "run", lambda settings, listener: started.append(settings))
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)
    return started


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments])


@pytest.mark.parametrize("name", [name for name in FIELDS if option_of(name)])
def test_a_bad_value_of_any_option_is_one_line_and_exit_2(name: str, started: Started, environ: dict[str, str]) -> None:
    by_option = serve(option_of(name), "x y")
    environ[variable_of(name)] = "x y"
    by_variable = serve()
    for result in (by_option, by_variable):
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith(f"{variable_of(name)} ({option_of(name)}): ")
        assert result.stderr.count("\n") == 1
    assert not started


@pytest.mark.parametrize("variable", ["TRACKER_API_KEYS", "TRACKER_READ_API_KEYS", "API_KEY"])
def test_a_bad_key_is_one_line_that_does_not_show_it_and_exit_2(
    variable: str, started: Started, environ: dict[str, str]
) -> None:
    environ[variable] = "hum ble"
    result = serve()
    assert result.exit_code == 2
    assert result.stderr == f"{variable}: key 1 of 1 must be visible ASCII characters, without spaces\n"
    assert not started


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workers", "2"), "TRACKER_WORKERS (--workers): memory:// works with one worker only"),
        (("--host", "0.0.0.0"), 'TRACKER_HOST (--host): "0.0.0.0" is not a loopback address'),
        (("--store-url", "redis+cluster://x/1"), "TRACKER_STORE_URL (--store-url): must name no database"),
    ],
)
def test_a_refused_combination_is_one_line_and_exit_2(arguments: tuple[str, ...], says: str, started: Started) -> None:
    result = serve(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    assert not started


def test_an_option_that_does_not_exist_is_exit_2(started: Started) -> None:
    assert serve("--prot", "1").exit_code == 2
    assert serve("--api-keys", "k").exit_code == 2
    assert not started


def test_options_win_over_variables(started: Started, environ: dict[str, str]) -> None:
    environ |= {"TRACKER_PORT": "1", "TRACKER_SHARDS": "8"}
    assert serve("--port", "0").exit_code == 0
    assert (started[0].port, started[0].shards) == (0, 8)


def test_every_setting_but_the_keys_has_an_option_with_its_help() -> None:
    text = " ".join(serve("--help").stdout.split())
    for row in Settings.table():
        assert (f" {row.option} " in text) == bool(row.option)
        if row.option:
            assert f"({row.variable})." in text
    assert "Default: 1800 seconds (TRACKER_TTL_SECONDS)" in text


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)])
def test_the_command_tells_of_itself(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert f"tracker {__version__}\n" == result.stdout or "serve" in result.stdout


def test_a_port_in_use_is_one_line_and_exit_1(started: Started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve("--port", str(port))
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("TRACKER_HOST (--host), TRACKER_PORT (--port): cannot listen on 127.0.0.1 port ")
    assert result.stderr.endswith(f"{port}: Address already in use\n")
    assert not started


def test_a_host_that_is_none_is_one_line_and_exit_1(started: Started, environ: dict[str, str]) -> None:
    environ["API_KEY"] = "k"
    for host in ("a" * 300, "a..b", "fe80::1%none"):
        result = serve("--host", host, "--port", "0")
        assert result.exit_code == 1, host
        assert result.stderr.endswith(": no such address\n")
        assert result.stderr.count("\n") == 1
    assert not started


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.7"])
def test_it_listens_where_it_is_told_to(host: str) -> None:
    with serving.listen(Settings(host=host, port=0)) as listener:
        address, port = listener.getsockname()[:2]
        socket.create_connection((host, port), timeout=10).close()
    assert address == ("127.0.0.1" if host == "localhost" else host)


def greeting(settings: Settings, keys: Keyring) -> str:
    with serving.listen(settings) as listener:
        text = serving.greeting(settings, keys, listener)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert text.startswith(f"tracker {__version__} on {address}, store ")
    return text.partition(", store ")[2]


def test_the_greeting_tells_of_store_and_access(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("")
    memory = Settings(port=0)
    redis = Settings(port=0, store_url="redis://me:humble@host:1/2")
    keys = Settings.load({"TRACKER_API_KEYS": "a,b", "TRACKER_READ_API_KEYS": "c"}).keys
    assert greeting(memory, Keyring()) == (
        "memory:// (sessions are gone when it stops), no API keys: open to everyone on this machine, loopback only"
    )
    assert greeting(redis, Keyring(keys)) == "redis://***@host:1/2, API keys: 2 may write, 1 may only read"
    assert greeting(redis, Keyring([], path)).endswith(", API keys: none yet, nobody may call")


def test_variables_that_are_no_settings_are_told_of_by_name_only(
    started: Started, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    environ |= {"TRACKER_API_KEY": "humble", "TRACKER_COFFEE_MACHINE": "humble"}
    assert serve("--port", "0").exit_code == 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "TRACKER_API_KEY is not a setting; did you mean TRACKER_API_KEYS?",
        "TRACKER_COFFEE_MACHINE is not a setting",
    ]
    assert "humble" not in caplog.text


def test_a_store_laid_out_for_other_settings_is_one_line_and_exit_2(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verify(settings: Settings) -> None:
        raise SchemaMismatch("the store has 8 shards, not 1")

    monkeypatch.setattr("tracker.store.store.verify", verify)
    result = serve("--port", "0", "--store-url", "redis://host")
    assert (result.exit_code, result.stderr) == (2, "the store has 8 shards, not 1\n")
    assert not started


def test_a_store_that_is_away_is_a_warning_and_no_reason_not_to_start(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def verify(settings: Settings) -> None:
        raise StoreUnavailable("the store cannot be reached")

    monkeypatch.setattr("tracker.store.store.verify", verify)
    assert serve("--port", "0", "--store-url", "redis://host").exit_code == 0
    assert len(started) == 1
    assert "the store cannot be reached" in [record.getMessage() for record in caplog.records][-1]


def test_ctrl_c_is_no_error(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: Settings, listener: socket.socket) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "run", interrupted)
    result = serve("--port", "0")
    assert (result.exit_code, result.output) == (0, "")


def test_options_reach_the_workers_by_the_environment_and_keys_are_not_written_to_it(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    ran: list[tuple[uvicorn.Config, list[socket.socket]]] = []

    class Recorded(Workers):
        def run(self) -> None:
            ran.append((self.config, self.sockets))

    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(serving, "Workers", Recorded)
    environ["API_KEY"] = "k"
    settings = Settings.load(port=0, workers=3, store_url="redis://host", keep_alive_seconds=7)
    with serving.listen(settings) as listener:
        serving.run(settings, listener)
    for number, handler in before.items():
        signal.signal(number, handler)
    ((config, sockets),) = ran
    assert sockets == [listener]
    assert (config.app, config.factory, config.workers) == ("tracker.api.app:from_environment", True, 3)
    assert config.timeout_keep_alive == 7
    assert not config.access_log
    assert not config.server_header
    assert not config.proxy_headers
    assert not {"TRACKER_API_KEYS", "TRACKER_READ_API_KEYS"} & environ.keys()
    assert Settings.load(environ) == settings


# With real servers


class Server:
    """A server process, and the lines it has logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.wait_for(r" on (http://\S+?), store ")[1]

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line)
                self._queue.put(line)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in lines that nobody has waited for yet."""
        while True:
            try:
                line = self._queue.get(timeout=PATIENCE_SECONDS)
            except Empty:
                raise AssertionError(f"no line with {pattern!r} in {self.lines}") from None
            if match := re.search(pattern, line):
                return match

    def stop(self, how: int = signal.SIGINT) -> int:
        """Ends the server; what it exits with."""
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return code


@contextmanager
def running(*arguments: str, program: str = "", **variables: str) -> Iterator[Server]:
    """``program``: Python that runs before the command does."""
    start = ["-c", f"{program}\nfrom tracker.cli.main import main\nmain()"] if program else ["-m", "tracker"]
    process = subprocess.Popen(
        [sys.executable, *start, "serve", "--port", "0", *arguments],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # which waits for no drain
            process.wait(PATIENCE_SECONDS)


def refused(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit status and standard error of a server that does not come up."""
    done = subprocess.run(
        [sys.executable, "-m", "tracker", "serve", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_wrong_settings_end_the_process_with_their_lines_alone() -> None:
    code, said = refused("--port", "abc", TRACKER_LOG_LEVEL="loud", API_KEY="hum ble")
    assert code == 2
    assert said == (
        'TRACKER_PORT (--port): must be a whole number from 0 to 65535, not "abc"\n'
        'TRACKER_LOG_LEVEL (--log-level): must be debug, info, warning, error or critical, not "loud"\n'
        "API_KEY: key 1 of 1 must be visible ASCII characters, without spaces\n"
    )


def test_a_malformed_key_file_ends_the_process_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("ci write humble\n")
    code, said = refused("--api-keys-file", str(path))
    assert code == 2
    assert said == (
        f'TRACKER_API_KEYS_FILE (--api-keys-file): "{path}": line 1: the key must be given as sha256:<64 hex digits>\n'
    )


def test_a_server_starts_answers_and_ends_quietly_with_ctrl_c() -> None:
    with running() as server:
        with httpx.Client(base_url=server.url) as client:
            health = client.get("/health")
            assert (health.status_code, health.json()["version"]) == (200, __version__)
            assert "server" not in health.headers
            assert "date" in health.headers
            assert client.get("/api/active-sessions").status_code == 200
        assert server.stop() == 0
    assert "memory:// (sessions are gone when it stops), no API keys: open to everyone" in server.lines[0]
    assert not [line for line in server.lines if "Traceback" in line or " ERROR " in line or "/health" in line]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +[a-z]\S*  \S", line) for line in server.lines)


def test_keys_change_with_their_file_while_the_server_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(key_line("old", "humble-1"))
    with running("--api-keys-file", str(path), TRACKER_READ_API_KEYS="humble-2") as server:
        with httpx.Client(base_url=server.url) as client:

            def status(key: str, method: str = "GET", path: str = "/api/active-sessions") -> int:
                return client.request(method, path, headers={"Authorization": f"Bearer {key}"}).status_code

            assert client.get("/health").status_code == 200
            assert client.get("/api/active-sessions").status_code == 401
            assert client.get("/api/nowhere").status_code == 401
            assert (status("humble-1"), status("humble-2"), status("humble-3")) == (200, 200, 401)
            assert status("humble-1", path="/api/nowhere") == 404
            assert status("humble-2", "POST") == 403
            path.with_name("fresh").write_text(key_line("new", "humble-3"))
            path.with_name("fresh").rename(path)
            eventually(lambda: status("humble-3") == 200)
            assert (status("humble-1"), status("humble-2")) == (401, 200)
        server.stop()
    assert "API keys: 1 may write, 1 may only read" in server.lines[0]
    assert not [line for line in server.lines if "humble" in line]


def test_a_store_that_cannot_be_reached_keeps_no_server_from_starting_and_its_password_stays_unsaid(
    tmp_path: Path,
) -> None:
    url = f"unix://me:humble@{tmp_path}/no.sock"
    with running(
        "--log-format", "json", "--log-level", "DEBUG", TRACKER_STORE_URL=url, TRACKER_PROT="humble"
    ) as server:
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/ready").status_code == 503
            assert client.get("/api/active-sessions").status_code == 503
        assert server.stop() == 0
    entries = [json.loads(line) for line in server.lines]
    further = {"exception", "method", "route", "status", "durationMs", "requestId"}
    assert all(entry.keys() - further == {"time", "level", "logger", "message"} for entry in entries)
    messages = [entry["message"] for entry in entries if entry["level"] == "warning"]
    assert messages[0] == "TRACKER_PROT is not a setting; did you mean TRACKER_PORT?"
    assert messages[1].startswith("starting all the same, and answering 503 until the store is back: ")
    assert not [line for line in server.lines if "humble" in line]


def test_several_workers_share_the_port_and_have_the_options(redis_server: RedisServer, namespace: str) -> None:
    """What an option set for `tracker serve` holds in the processes it starts: here the limit of a body."""
    store = ("--store-url", redis_server.url, "--namespace", namespace)
    options = ("--workers", "2", "--max-body-bytes", "2048", "--log-format", "json")
    with running(*store, *options, API_KEY="humble") as server:
        for _ in range(2):
            server.wait_for("Application startup complete")
        body = {"agentId": "a", "triggerType": "t", "taskDescription": "x" * 3000}
        with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer humble"}) as client:
            assert client.post("/api/active-sessions", json=body).status_code == 413
            assert client.post("/api/active-sessions", json=body | {"taskDescription": "x"}).status_code == 201
        code, said = refused("--port", "0", *store, "--shards", "2")
        assert code == 2
        assert "shards" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert server.stop() == 0
    assert all(isinstance(json.loads(line), dict) for line in server.lines)
    assert not [line for line in server.lines if "Traceback" in line or "humble" in line]


def streams(url: str, count: int) -> list[socket.socket]:
    """Streams of events, each of which has begun."""
    opened = []
    for _ in range(count):
        address = url.removeprefix("http://").split(":")
        stream = socket.create_connection((address[0], int(address[1])), timeout=PATIENCE_SECONDS)
        stream.sendall(request(url))
        opened.append(stream)
    for stream in opened:
        begun = b""
        while b"id: " not in begun:
            chunk = stream.recv(4096)
            assert chunk, begun
            begun += chunk
    return opened


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_told_to_stop_it_ends_streams_in_order_and_itself_with_exit_0(
    redis_server: RedisServer, namespace: str, workers: int, how: int
) -> None:
    """It neither waits for what never ends by itself, nor breaks it off."""
    store = ("--store-url", redis_server.url, "--namespace", namespace)
    with running(*store, "--workers", str(workers)) as server:
        for _ in range(workers):
            server.wait_for("Application startup complete")
        opened = streams(server.url, 100)
        assert server.stop(how) == 0
        for stream in opened:
            with stream:
                last = b""
                while chunk := stream.recv(4096):
                    last += chunk
                assert last.endswith(b"0\r\n\r\n"), "broken off"
    assert not [line for line in server.lines if " ERROR " in line or "Traceback" in line or "Cancel" in line]


def test_told_to_stop_while_nothing_goes_on_it_ends_with_exit_0() -> None:
    with running() as server:
        httpx.get(server.url + "/health")
        assert server.stop(signal.SIGTERM) == 0


def test_whichever_worker_is_asked_tells_of_all_of_them_also_when_one_has_died(
    redis_server: RedisServer, namespace: str, tmp_path: Path
) -> None:
    """Request ids begin alike where one worker made them: so we know whom we talk to."""
    options = ("--workers", "2", "--store-url", redis_server.url, "--namespace", namespace, "--access-log", "errors")
    with running(*options, TMPDIR=str(tmp_path)) as server, ExitStack() as stack:
        for _ in range(2):
            server.wait_for("Application startup complete")
        clients: dict[str, httpx.Client] = {}

        def find_workers() -> bool:
            client = stack.enter_context(httpx.Client(base_url=server.url))
            clients.setdefault(client.get("/health").headers["x-request-id"][:16], client)
            return len(clients) == 2

        def tell(client: httpx.Client) -> tuple[float, float, float]:
            seen = Scrape(client.get("/metrics").text)
            requests = seen.value("tracker_http_requests_total", method="PUT", status=200)
            durations = seen.value("tracker_http_request_duration_seconds_count", method="PUT")
            return requests, durations, seen.value("tracker_heartbeats_total", outcome="missing")

        eventually(find_workers)
        for count, client in zip((30, 12), clients.values(), strict=True):
            for number in range(count):
                assert client.put(f"/api/active-sessions/heartbeat/t{number}").json() == {"updated": False}
        for client in clients.values():
            eventually(lambda client=client: tell(client) == (42, 42, 42))  # type: ignore[misc]

        (directory,) = tmp_path.glob("tracker-metrics-*")
        workers = {int(path.stem.rpartition("_")[2]) for path in directory.glob("*.db")}
        assert len(workers) == 2
        seen = Scrape(client.get("/metrics").text)
        assert seen.value("process_open_fds") > max(len(os.listdir(f"/proc/{worker}/fd")) for worker in workers)

        os.kill(workers.pop(), signal.SIGKILL)
        server.wait_for("Application startup complete")
        survivor = stack.enter_context(httpx.Client(base_url=server.url))
        assert tell(survivor) == (42, 42, 42)
        assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []


# Stopping

STOP_SECONDS = 10
HEARTBEAT = b"PUT /api/active-sessions/heartbeat/t HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may harm."""
    with running_redis(tmp_path) as server:
        yield server


@contextmanager
def callers(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Connections to a server, each of which has had an answer."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(address_of(server), timeout=60)) for _ in range(count)]
        for caller in sockets:
            caller.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(b"}"):
                received += caller.recv(65536) or b"nothing}"
            assert received.startswith(b"HTTP/1.1 200 ")
        yield sockets


def address_of(server: Server) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def rest(caller: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    while chunk := caller.recv(65536):
        received += chunk
    return received


def answer(caller: socket.socket) -> tuple[int, bytes]:
    """The status of what comes until the server closes the connection, and everything."""
    received = rest(caller)
    return int(received.split()[1]) if received else 0, received


def refuses(server: Server) -> bool:
    try:
        socket.create_connection(address_of(server), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def stops(server: Server, began: float) -> int:
    code = server.process.wait(PATIENCE_SECONDS)
    assert time.monotonic() - began < STOP_SECONDS
    return code


@pytest.mark.parametrize("workers", ["1", "2"])
def test_on_sigterm_what_is_under_way_is_finished_and_nothing_new_is_taken(
    own_redis: RedisServer, workers: str
) -> None:
    """The store is slow: requests wait for it as the signal comes, and get from it what they asked for."""
    options = ("--store-url", own_redis.url, "--store-timeout-seconds", "6", "--workers", workers)
    with running(*options) as server:
        for _ in range(int(workers)):
            server.wait_for("Application startup complete")
        with callers(server, 30) as sockets:
            busy, idle = sockets[:20], sockets[20:]
            own_redis.freeze()
            try:
                for caller in busy:
                    caller.sendall(HEARTBEAT)
                began = time.monotonic()
                server.process.terminate()
                eventually(lambda: refuses(server))
                assert {answer(caller)[1] for caller in idle} == {b""}, "they have nothing to wait for"
            finally:
                own_redis.thaw()
            answers = [answer(caller) for caller in busy]
        assert {status for status, _ in answers} == {200}
        assert all(body.endswith(b'{"updated":false}') for _, body in answers)
        assert stops(server, began) == 0
    assert not [line for line in server.lines if "Traceback" in line or " ERROR " in line]


def test_on_sigterm_a_store_that_says_nothing_is_answered_for_and_holds_nobody_up(own_redis: RedisServer) -> None:
    options = ("--store-url", own_redis.url, "--sweep-interval-seconds", "0.1")
    with running(*options) as server, callers(server, 30) as sockets:
        own_redis.freeze()
        try:
            for caller in sockets[:20]:
                caller.sendall(HEARTBEAT)
            began = time.monotonic()
            server.process.terminate()
            assert {answer(caller)[0] for caller in sockets[:20]} == {503}
            assert stops(server, began) == 0
        finally:
            own_redis.thaw()
    assert not [line for line in server.lines if "Traceback" in line]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_on_sigterm_neither_callers_who_stall_nor_long_deadlines_hold_it_up(
    own_redis: RedisServer, workers: str
) -> None:
    """With less time to finish than it has, so that the test does not take it."""
    options = ("--store-url", own_redis.url, "--store-timeout-seconds", "60", "--workers", workers)
    program = "import tracker.cli.serve as serving; serving.SHUTDOWN_SECONDS = 1"
    with running(*options, program=program) as server:
        for _ in range(int(workers)):
            server.wait_for("Application startup complete")
        with callers(server, 12) as sockets:
            own_redis.freeze()
            try:
                for caller in sockets[:6]:
                    caller.sendall(
                        b"PUT /api/active-sessions/heartbeat/t HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
                    )
                for caller in sockets[6:]:
                    caller.sendall(HEARTBEAT)
                began = time.monotonic()
                server.process.terminate()
                assert stops(server, began) == 0
            finally:
                own_redis.thaw()
    assert not [line for line in server.lines if "is killed" in line]


def test_what_is_granted_when_stopping_adds_up_to_less_than_ten_seconds() -> None:
    a_look_at_signals, the_store = 0.5, CLOSING_SECONDS
    assert a_look_at_signals + serving.SHUTDOWN_SECONDS + max(STRAGGLER_SECONDS, the_store) < STOP_SECONDS


def test_who_connects_as_it_stops_is_answered() -> None:
    """His request is on its way: so it is when a proxy connects, who asks at once."""
    with running(program="import tracker.cli.protocol as protocol; protocol.NEWCOMER_SECONDS = 60") as server:
        with callers(server, 1) as (idle,), socket.create_connection(address_of(server), timeout=60) as newcomer:
            eventually(lambda: established(server) == 2)
            server.process.terminate()
            assert answer(idle) == (0, b""), "now all that have nothing to wait for are closed"
            newcomer.sendall(HEARTBEAT)
            status, body = answer(newcomer)
            assert status == 200
            assert b"\r\nconnection: close\r\n" in body.lower()
        assert stops(server, time.monotonic()) == 0


def test_who_connects_and_says_nothing_does_not_hold_it_up() -> None:
    with running() as server, socket.create_connection(address_of(server), timeout=60) as newcomer:
        eventually(lambda: established(server) == 1)
        began = time.monotonic()
        server.process.terminate()
        assert answer(newcomer) == (0, b"")
        assert stops(server, began) == 0
    assert not [line for line in server.lines if " ERROR " in line]


# Draining

LONG_DRAIN = ("--drain-seconds", "300")


def ask(server: Server, path: str) -> httpx.Response:
    """On a connection of its own."""
    return httpx.get(server.url + path, trust_env=False, timeout=60)


def established(server: Server) -> int:
    """How many connections its only process has accepted."""
    inodes = {
        os.readlink(descriptor)
        for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir()
        if descriptor.is_symlink()
    }
    rows = [line.split() for line in Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]]
    port = f":{address_of(server)[1]:04X}"
    return sum(row[1].endswith(port) and row[3] == "01" and f"socket:[{row[9]}]" in inodes for row in rows)


def exchange(caller: socket.socket) -> tuple[int, bool]:
    """One heartbeat: its status, and whether the answer is the last on this connection."""
    caller.sendall(HEARTBEAT)
    received = b""
    while not received.endswith(b"}"):
        received += caller.recv(65536) or b"nothing}"
    head = received.lower()
    return int(received.split()[1]), b"\r\nconnection: close\r\n" in head


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("then", [signal.SIGTERM, signal.SIGINT])
def test_on_sigterm_it_drains_until_a_second_signal(
    redis_server: RedisServer, namespace: str, workers: str, then: int
) -> None:
    """All are served, and sent away with the answer; who only listens may stay to the end."""
    store = ("--store-url", redis_server.url, "--namespace", namespace)
    with running(*store, "--workers", workers, *LONG_DRAIN) as server, ExitStack() as stack:
        everyone = started_workers(server, int(workers))
        kept = stack.enter_context(callers(server, 20))
        (listening,) = (stack.enter_context(stream) for stream in streams(server.url, 1))
        server.process.terminate()
        for _ in everyone:
            server.wait_for(r"draining for 300 s")
        assert {exchange(caller) for caller in kept} == {(200, True)}
        assert {answer(caller) for caller in kept} == {(0, b"")}, "and so it was"
        ready, health = ask(server, "/ready"), ask(server, "/health")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (health.status_code, health.headers["connection"]) == (200, "close")
        begun = httpx.post(server.url + "/api/active-sessions", json={"agentId": "a", "triggerType": "t"})
        assert begun.status_code == 201
        received = b""
        while begun.json()["session"]["id"].encode() not in received:
            chunk = listening.recv(4096)
            assert chunk, "ended before the drain did"
            received += chunk
        began = time.monotonic()
        server.process.send_signal(then)
        assert rest(listening).endswith(b"0\r\n\r\n"), "broken off"
        assert stops(server, began) == 0
    assert not [line for line in server.lines if " ERROR " in line or "Traceback" in line]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_drain_takes_as_long_as_it_should(redis_server: RedisServer, namespace: str, workers: str) -> None:
    store = ("--store-url", redis_server.url, "--namespace", namespace)
    with running(*store, "--workers", workers, "--drain-seconds", "1") as server:
        started_workers(server, int(workers))
        began = time.monotonic()
        server.process.terminate()
        assert stops(server, began) == 0
        assert time.monotonic() - began > 1
    assert not [line for line in server.lines if " ERROR " in line or "Traceback" in line]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_does_not_wait_for_a_drain(redis_server: RedisServer, namespace: str, workers: str) -> None:
    """A terminal sends it to the workers as well; their parent passing it on does not break off what they end well."""
    store = ("--store-url", redis_server.url, "--namespace", namespace)
    with running(*store, "--workers", workers, *LONG_DRAIN) as server:
        everyone = started_workers(server, int(workers))
        opened = streams(server.url, 20)
        began = time.monotonic()
        for pid in {server.process.pid, *everyone}:
            os.kill(pid, signal.SIGINT)
        for stream in opened:
            with stream:
                assert rest(stream).endswith(b"0\r\n\r\n"), "broken off"
        assert stops(server, began) == 0
    assert not [line for line in server.lines if " ERROR " in line or "Traceback" in line]


def test_sigterm_to_parent_and_workers_alike_is_one_signal(redis_server: RedisServer, namespace: str) -> None:
    """As systemd sends it: what the parent passes on must not end the drain that has begun."""
    with running_workers(redis_server.url, namespace, *LONG_DRAIN) as (server, workers), callers(server, 10) as kept:
        for pid in (*workers, server.process.pid):
            os.kill(pid, signal.SIGTERM)
        for _ in workers:
            server.wait_for("Terminated child process")
        assert {exchange(caller) for caller in kept} == {(200, True)}
        assert ask(server, "/ready").json()["status"] == "draining"
        began = time.monotonic()
        server.process.terminate()
        assert stops(server, began) == 0


def test_sigterm_before_it_listens_ends_it_as_well() -> None:
    with pytest.raises(SystemExit) as ended, serving.ending_well():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# Several workers


def started_workers(server: Server, count: int) -> list[int]:
    """The process ids of all the workers there ever were, once so many are up."""
    eventually(lambda: sum("Application startup complete" in line for line in server.lines) >= count)
    started = [re.search(r"Started server process \[(\d+)\]", line) for line in server.lines]
    return [int(match[1]) for match in started if match]


@contextmanager
def running_workers(url: str, namespace: str, *options: str) -> Iterator[tuple[Server, list[int]]]:
    with running("--store-url", url, "--namespace", namespace, "--workers", "2", *options) as server:
        yield server, started_workers(server, 2)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_is_killed_is_replaced(redis_server: RedisServer, namespace: str) -> None:
    with running_workers(redis_server.url, namespace) as (server, workers):
        os.kill(workers[0], signal.SIGKILL)
        everyone = started_workers(server, 3)
        assert len(set(everyone)) == 3
        assert httpx.get(server.url + "/ready").status_code == 200
        assert server.stop(signal.SIGTERM) == 0
        assert not [pid for pid in everyone if is_running(pid)]


def lay_out(server: RedisServer, namespace: str, shards: int) -> None:
    """Writes what a worker that starts compares with its settings."""
    with redis.Redis.from_url(server.url) as client:
        client.hset(f"{{{namespace}:0}}:schema", "shards", shards)


def test_a_worker_that_cannot_start_leaves_the_others_alone_and_comes_when_it_can(
    redis_server: RedisServer, namespace: str
) -> None:
    with running_workers(redis_server.url, namespace) as (server, workers):
        lay_out(redis_server, namespace, 8)
        os.kill(workers[0], signal.SIGKILL)
        for _ in range(2):
            server.wait_for("before it served")
        assert httpx.get(server.url + "/health").status_code == 200
        assert is_running(workers[1])
        lay_out(redis_server, namespace, 1)
        started_workers(server, 3)
        assert server.stop(signal.SIGTERM) == 0


def test_when_no_worker_can_start_any_more_the_exit_status_says_so(redis_server: RedisServer, namespace: str) -> None:
    with running_workers(redis_server.url, namespace) as (server, workers):
        lay_out(redis_server, namespace, 8)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert server.process.wait(PATIENCE_SECONDS) == STARTUP_FAILURE


def test_replaced_workers_drain_beside_their_heirs_and_nobody_learns_of_it(
    redis_server: RedisServer, namespace: str
) -> None:
    """Callers who keep their connections alive, and try nothing twice, are sent over; a probe finds it ready always."""
    drain = ("--drain-seconds", "2")
    with running_workers(redis_server.url, namespace, *drain) as (server, workers), ExitStack() as stack:
        kept = stack.enter_context(callers(server, 20))
        server.process.send_signal(signal.SIGHUP)
        statuses, moved = set(), 0

        def replaced() -> bool:
            nonlocal moved
            statuses.add(ask(server, "/ready").status_code)
            for position, caller in enumerate(kept):
                status, last = exchange(caller)
                statuses.add(status)
                if last:
                    moved += 1
                    kept[position] = stack.enter_context(socket.create_connection(address_of(server), timeout=60))
            return not any(map(is_running, workers))

        eventually(replaced)
        assert statuses == {200}
        assert moved >= len(kept)
        assert server.stop(signal.SIGTERM) == 0
    assert not [line for line in server.lines if " ERROR " in line or "Traceback" in line]


def test_replaced_workers_end_with_the_others(redis_server: RedisServer, namespace: str) -> None:
    with running_workers(redis_server.url, namespace, *LONG_DRAIN) as (server, workers):
        server.process.send_signal(signal.SIGHUP)
        for _ in workers:
            server.wait_for("draining for 300 s")
        everyone = started_workers(server, 4)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert stops(server, began) == 0
        assert len(everyone) == 4
        assert not [pid for pid in everyone if is_running(pid)]


def test_sighup_replaces_the_workers_one_by_one_and_no_request_fails(redis_server: RedisServer, namespace: str) -> None:
    with running_workers(redis_server.url, namespace) as (server, workers):
        server.process.send_signal(signal.SIGHUP)
        statuses = set()

        def replaced() -> bool:
            statuses.add(httpx.get(server.url + "/api/active-sessions").status_code)
            return not any(map(is_running, workers))

        eventually(replaced)
        assert statuses == {200}
        assert server.stop(signal.SIGTERM) == 0
