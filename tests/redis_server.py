"""A Redis of our own: on a free port of 127.0.0.1 and a unix socket, with nothing on disk, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["BINARIES", "RedisServer", "free_port", "is_installed", "running_redis"]

BINARIES = ("redis-server", "valkey-server")
START_SECONDS = 10
ATTEMPTS = 5


class RedisServer:
    """A running server. ``freeze`` makes it deaf while its connections stay open, as a stalled host would."""

    def __init__(self, directory: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.unix_url = f"unix://{directory / 'redis.sock'}"
        self._process = process
        # Ends the server when the pipe to it closes: should the tests themselves be killed, nothing is left running.
        self._watchdog = subprocess.Popen(["sh", "-c", f"cat; kill -9 {process.pid}"], stdin=subprocess.PIPE)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash: nothing is said to anybody. Once more does no harm."""
        self._watchdog.kill()
        self._watchdog.communicate()
        self._process.kill()
        self._process.wait()


def is_installed() -> bool:
    return any(map(shutil.which, BINARIES))


def _binary() -> str:
    for name in BINARIES:
        if path := shutil.which(name):
            return path
    missing = "needs a real Redis: install redis-server or valkey-server"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_redis(
    directory: Path, *options: str, port: int | None = None, sentinel: Path | None = None
) -> Iterator[RedisServer]:
    """A server in that directory; ``port`` only to come back where one was before. With a file: a sentinel.

    Skips the test where neither Redis nor Valkey is installed; under CI that fails it.
    """
    binary = _binary()
    log = directory / "redis.log"
    for _ in range(ATTEMPTS):
        # Between our look and the server's start somebody may take the port: then it ends, and we look again.
        chosen = free_port() if port is None else port
        server = _start([binary, *([str(sentinel), "--sentinel"] if sentinel else [])], directory, log, chosen, options)
        if server is not None:
            break
    else:
        pytest.fail(f"{binary} does not start:\n{log.read_text()}")
    try:
        yield server
    finally:
        server.kill()


def _start(program: list[str], directory: Path, log: Path, port: int, options: tuple[str, ...]) -> RedisServer | None:
    unix_socket = directory / "redis.sock"
    words = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(unix_socket)]
    words += ["--save", "", "--appendonly", "no", "--dir", str(directory), "--logfile", str(log), *options]
    process = subprocess.Popen([*program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        # On the port another server may answer. The unix socket is nobody else's, and comes after the port is taken.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(1)
            caller.connect(str(unix_socket))
            caller.sendall(b"PING\r\n")
            if caller.recv(100):
                return RedisServer(directory, port, process)
        time.sleep(0.01)
    process.kill()
    process.wait()
    return None
