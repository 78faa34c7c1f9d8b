"""A Redis of our own, with nothing on disk, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from benchmarks.process import Process, free_port
from benchmarks.tools import find_tool

__all__ = ["RedisServer", "running_redis"]

BINARIES = ("redis-server", "valkey-server")
WATCHED_MICROSECONDS = 100
WATCHED_COMMANDS = 100_000


class RedisServer:
    """``client`` is a synchronous one, for looks from outside of what is measured."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client: Any = redis.Redis(port=port, decode_responses=True)

    def cpu_seconds(self) -> float:
        return self.process.cpu_seconds()

    def empty(self) -> None:
        self.client.flushall()

    def used_bytes(self) -> int:
        """Memory in use, as Redis accounts for it."""
        return int(self.client.info("memory")["used_memory"])

    @property
    def version(self) -> str:
        info = self.client.info("server")
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    def watch(self) -> None:
        """From here on it notes every command that takes longer than 0.1 ms."""
        self.client.config_set("slowlog-max-len", WATCHED_COMMANDS)
        self.client.config_set("slowlog-log-slower-than", WATCHED_MICROSECONDS)
        self.client.slowlog_reset()

    def longest_ms(self) -> float:
        """The longest command since `watch`, which ends here; 0.1 when none took longer than that."""
        entries = self.client.slowlog_get(WATCHED_COMMANDS)
        self.client.config_set("slowlog-log-slower-than", -1)
        return max([WATCHED_MICROSECONDS, *(int(entry["duration"]) for entry in entries)]) / 1000


@contextmanager
def running_redis(directory: Path, *options: str, port: int | None = None) -> Iterator[RedisServer]:
    """A server, on a free port unless told otherwise. Raises MissingTool, StartError."""
    port = free_port() if port is None else port
    words = [find_tool(*BINARIES), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    words += ["--save", "", "--appendonly", "no", "--slowlog-log-slower-than", "-1", *options]
    with Process(words, directory / f"redis-{port}.log") as process:
        server = RedisServer(process, port)
        try:
            process.wait_until(lambda: _is_up(server))
            yield server
        finally:
            server.client.close()


def _is_up(server: RedisServer) -> bool:
    try:
        return int(server.client.info("server")["process_id"]) == server.process.pid
    except redis.ConnectionError:
        return False
