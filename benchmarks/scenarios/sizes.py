"""Stores of all sizes."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load
from benchmarks.alternation import Subject, alternate, cpu_us, figures
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.redis_server import running_redis
from benchmarks.servers import running_server
from benchmarks.spread import ratios
from benchmarks.stage import Stage

__all__ = ["sizes"]

CONNECTIONS = 32
GROWTH = 1.2
SESSION_BYTES = 2000
"""More than Redis takes for one."""


def sizes(stage: Stage) -> Outcome:
    """Heartbeats with 1,000 to 1,000,000 live sessions, each number in a Redis of its own, on 32 connections."""
    outcome = Outcome([])
    room = _available_bytes() // SESSION_BYTES
    counts = [count for count in stage.plan.sizes if count <= room]
    if left_out := [f"{count:,}" for count in stage.plan.sizes if count > room]:
        outcome.notes.append(f"Left out, for want of memory: {', '.join(left_out)} sessions.")
    with ExitStack() as started:
        subjects = []
        for count in counts:
            redis = started.enter_context(running_redis(stage.directory))
            server = started.enter_context(running_server("tracker", stage.directory, redis))
            stage.fill(range(count), redis)
            stage.say(f"starting the tracker on {count:,} sessions")
            subjects.append(Subject(f"{count:,} sessions", server, load.heartbeats(server, count), CONNECTIONS))
        runs = alternate(stage, "sizes", subjects)
        stage.say("ending what was started")
    costs = [ratios(cpu_us(of_one), cpu_us(runs[0])) for of_one in runs]
    outcome.rows.extend(
        Row({"sessions": count}, {**figures(of_one), "cpu_of_fewest": cost})
        for count, of_one, cost in zip(counts, runs, costs, strict=True)
    )
    what = f"processor time of a heartbeat with {counts[-1]:,} live sessions, as a multiple of that with {counts[0]:,}"
    outcome.targets.append(Target(what, costs[-1].median, GROWTH))
    return outcome


def _available_bytes() -> int:
    match = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
