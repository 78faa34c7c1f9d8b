"""Lists of all sessions."""

from __future__ import annotations

import gc
import json
import re
import time

from benchmarks import load
from benchmarks.alternation import check
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.servers import Server
from benchmarks.spread import Spread, ratios
from benchmarks.stage import Stage
from benchmarks.wire import read_all

__all__ = ["listing"]

PATH = "/api/active-sessions"
STARTED = b'"startedAt":'
MEGABYTE = 1_000_000
PAUSE_MS = 2
DUMPS_RATIO = 1.2
GROWTH_MEGABYTES = 50
HEARTBEAT_MS = 50
REDIS_MS = 5


def listing(stage: Stage) -> Outcome:
    """Lists of all sessions: time beside json.dumps, growth of the server, heartbeats and Redis meanwhile."""
    stage.redis.empty()
    server = stage.server("tracker")
    outcome = Outcome([])
    filled = 0
    resident = server.process.resident_bytes()
    for count in stage.plan.listed:
        stage.fill(range(filled, count))
        filled = count
        row = _measure(stage, server, count, resident)
        outcome.rows.append(row)
        figures = row.figures
        if count == 20_000:
            what = "a list of 20,000 sessions, as a multiple of json.dumps of the same"
            outcome.targets.append(Target(what, figures["of_dumps"].median, DUMPS_RATIO))
        elif count == 100_000:
            megabytes = figures["growth_mb"].high
            outcome.targets.extend(
                [
                    Target("growth of the server by a list of 100,000", megabytes, GROWTH_MEGABYTES, "MB"),
                    Target("longest heartbeat beside it", figures["heartbeat_max_ms"].high, HEARTBEAT_MS, "ms"),
                    Target("longest command of Redis for it", figures["redis_longest_ms"].high, REDIS_MS, "ms"),
                ]
            )
    return outcome


def _measure(stage: Stage, server: Server, count: int, resident: int) -> Row:
    title = f"list of {count:,}"
    listed = json.loads(_json_of(read_all(server, PATH)))["sessions"]
    if len({session["id"] for session in listed}) != count:
        stage.problems.append(f"{title}: has {len(listed)} sessions")
    lists, dumps, growths, longest_heartbeats, longest_commands, p99s = [], [], [], [], [], []
    for number in range(stage.plan.rounds):
        stage.say(f"{title}: round {number + 1} of {stage.plan.rounds}")
        gc.collect()
        started = time.perf_counter()
        json.dumps(listed)
        between = time.perf_counter()
        answer = read_all(server, PATH)
        ended = time.perf_counter()
        dumps.append((between - started) * 1000)
        lists.append((ended - between) * 1000)
        if (found := answer.count(STARTED)) != count:
            stage.problems.append(f"{title}: a list had {found} sessions")
    heartbeats = load.heartbeats(server, count)
    for number in range(stage.plan.rounds):
        stage.say(f"{title}, beside heartbeats: round {number + 1} of {stage.plan.rounds}")
        stage.redis.watch()
        server.process.forget_peak()
        with stage.wrk.steady(server, heartbeats, connections=1, pause_ms=PAUSE_MS) as beside:
            read_all(server, PATH)
        growths.append((server.process.peak_resident_bytes() - resident) / MEGABYTE)
        longest_commands.append(stage.redis.longest_ms())
        if sample := beside.sample:
            check(stage.problems, f"heartbeats beside a {title}", sample, None, 1)
            longest_heartbeats.append(sample.max_ms)
            p99s.append(sample.p99_ms)
    return Row(
        {"sessions": count},
        {
            "list_ms": Spread.of(lists),
            "dumps_ms": Spread.of(dumps),
            "of_dumps": ratios(lists, dumps),
            "growth_mb": Spread.of(growths),
            "heartbeat_p99_ms": Spread.of(p99s),
            "heartbeat_max_ms": Spread.of(longest_heartbeats),
            "redis_longest_ms": Spread.of(longest_commands),
        },
    )


def _json_of(answer: bytearray) -> bytes:
    """The body of an answer, put together from its chunks where it came in some."""
    head, _, rest = bytes(answer).partition(b"\r\n\r\n")
    if not re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        return rest
    parts: list[bytes] = []
    at = 0
    while True:
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(rest[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
