"""A run that is interrupted takes everything down with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60
WORKERS = 4


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def family(pid: int) -> dict[int, str]:
    """All that a process has started, and that has not ended: process ids and command lines."""
    parents = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    lines = {}
    for member in members[1:]:
        with contextlib.suppress(OSError):
            lines[member] = Path(f"/proc/{member}/cmdline").read_text().replace("\0", " ")
    return lines


@pytest.mark.parametrize(("options", "servers"), [([], 1), (["--cluster"], 6)], ids=["one Redis", "a cluster"])
def test_an_interrupted_run_leaves_no_process_behind(
    redis_server: RedisServer, tmp_path: Path, options: list[str], servers: int
) -> None:
    """It has a Redis of its own; the shared one is asked for so that this is skipped, or fails, where there is none."""
    words = [sys.executable, "-m", "tests.torture", "--seconds", "100", "--keep", str(tmp_path), *options]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as run:
        try:

            def under_way() -> bool:
                assert run.poll() is None
                return sum("spawn_main" in line for line in family(run.pid).values()) == WORKERS and (
                    len(list(tmp_path.glob("client*.jsonl"))) == 8
                )

            eventually(under_way)
            started = family(run.pid)
            assert sum("tests.torture.client" in line for line in started.values()) == 8
            assert sum("tracker serve" in line for line in started.values()) == 2
            assert sum("redis-server" in line or "valkey-server" in line for line in started.values()) == servers
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=PATIENCE_SECONDS)
        finally:
            run.kill()
    assert run.returncode == 130
    # Before Python 3.12 asyncio may add a line on a process that ended with the loop.
    assert said.startswith(b"interrupted: nothing judged\n")
    assert b"Traceback" not in said
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
