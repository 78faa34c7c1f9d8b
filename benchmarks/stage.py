"""What the scenarios share: the plan, wrk, one Redis, servers that stay up once started, and the list of problems."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.status import Status

from benchmarks.plan import Plan
from benchmarks.redis_server import RedisServer, running_redis
from benchmarks.servers import Server, running_etcd, running_server
from benchmarks.sessions import fill
from benchmarks.tools import find_tool
from benchmarks.wrk import Wrk

__all__ = ["ENDING", "Stage"]

ENDING = (signal.SIGINT, signal.SIGTERM)
"""What ends a run early."""

T = TypeVar("T")


class Stage:
    """Leaving it ends everything that was started on it. ``problems``: a sentence for each thing that went wrong."""

    def __init__(self, plan: Plan, directory: Path, console: Console) -> None:
        self.plan = plan
        self.directory = directory
        self.console = console
        self.problems: list[str] = []
        self.warm: set[int] = set()
        """Ports of the servers that have worked already."""
        self.wrk = Wrk(find_tool("wrk"), directory)
        self._servers: dict[tuple[str, int], Server] = {}
        self._open = ExitStack()
        self._status = Status("", console=console)

    def __enter__(self) -> Self:
        self._open.enter_context(self._status)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.say("ending what was started")
        before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}  # impatience must not stop us
        self._open.__exit__(kind, error, trace)
        for number, handler in before.items():
            signal.signal(number, handler)

    @cached_property
    def redis(self) -> RedisServer:
        """The Redis of all scenarios but those that need one of their own."""
        return self.keep(running_redis(self.directory))

    def server(self, kind: str, workers: int = 1) -> Server:
        """The tracker, a baseline or etcd; started when first asked for. Raises StartError."""
        if (kind, workers) not in self._servers:
            self.say(f"starting {kind}")
            self._servers[kind, workers] = self.keep(
                running_etcd(self.directory)
                if kind == "etcd"
                else running_server(kind, self.directory, self.redis, workers)
            )
        return self._servers[kind, workers]

    def keep(self, started: AbstractContextManager[T]) -> T:
        """Enters it, and leaves it when the stage is left."""
        return self._open.enter_context(started)

    def say(self, what: str) -> None:
        """Tells what is going on, until the next such word."""
        self._status.update(what)

    def fill(self, numbers: Iterable[int], redis: RedisServer | None = None, ttl_seconds: float | None = None) -> None:
        """Puts sessions of these numbers into the stage's Redis, or into another."""
        self.say("creating sessions")
        fill(redis or self.redis, numbers, ttl_seconds=ttl_seconds)
