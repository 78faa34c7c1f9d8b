"""Runs wrk, and reads what it says."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Load
from benchmarks.servers import Server

__all__ = ["Sample", "SteadyLoad", "Wrk", "WrkError", "parse"]

TIMEOUT_SECONDS = 10
"""An answer that takes longer is an error."""
FOREVER_SECONDS = 3600
APART = 1 << 24
"""Between the numbers at which two runs start."""


class WrkError(Exception):
    """wrk did not do what it was asked to; the message has what it said."""


@dataclass(frozen=True)
class Sample:
    """One run: answers, time, bytes received, latencies in milliseconds, and how often which error came."""

    requests: int
    seconds: float
    received: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    errors: dict[str, int]

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def parse(output: str) -> Sample:
    """The run that wrk's output tells of. Raises WrkError when it tells of none."""
    match = re.search(r"^benchmark (\{.*\})$", output, re.MULTILINE)
    if match is None:
        raise WrkError(f"wrk gave no result: {output.strip()}")
    said = json.loads(match[1])
    return Sample(
        requests=said["requests"],
        seconds=said["microseconds"] / 1e6,
        received=said["bytes"],
        p50_ms=said["p50"] / 1000,
        p99_ms=said["p99"] / 1000,
        p999_ms=said["p999"] / 1000,
        max_ms=said["max"] / 1000,
        errors={name: said[name] for name in ("connect", "read", "write", "status", "timeout") if said[name]},
    )


class SteadyLoad:
    """A load that goes on beside something else; ``sample`` once that is over."""

    def __init__(self) -> None:
        self.sample: Sample | None = None


class Wrk:
    """wrk with one thread, its scripts in a directory of ours."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self._runs = itertools.count(1)

    def run(self, server: Server, load: Load, connections: int, seconds: int) -> Sample:
        """As much load as so many connections bring, each sending as soon as it is answered. Raises WrkError."""
        with self._started(server, load.script, connections, seconds) as running:
            return parse(running.communicate()[0])

    @contextmanager
    def steady(self, server: Server, load: Load, connections: int, pause_ms: int) -> Iterator[SteadyLoad]:
        """A load beside what the caller does: each connection pauses before every request. Raises WrkError."""
        script = f"{load.script}\nfunction delay() return {pause_ms} end\n"
        steady = SteadyLoad()
        with self._started(server, script, connections, FOREVER_SECONDS) as running:
            yield steady
            running.send_signal(signal.SIGINT)  # it stops, and tells how it was
            steady.sample = parse(running.communicate()[0])

    @contextmanager
    def _started(self, server: Server, script: str, connections: int, seconds: int) -> Iterator[subprocess.Popen[str]]:
        run = next(self._runs)
        path = self._directory / f"load-{run}.lua"
        path.write_text(script)
        words = [self._binary, "--threads", "1", "--connections", str(connections), "--script", str(path)]
        words += ["--duration", f"{seconds}s", "--timeout", f"{TIMEOUT_SECONDS}s"]
        words += [f"http://127.0.0.1:{server.port}", "--", str(run * APART)]
        with subprocess.Popen(  # noqa: S603 - no words but ours
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            try:
                yield running
            finally:
                running.kill()
