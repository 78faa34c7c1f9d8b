"""Sessions that expired by the ten thousand."""

from __future__ import annotations

import time

from benchmarks import load
from benchmarks.alternation import check
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.spread import Spread
from benchmarks.stage import Stage

__all__ = ["sweep"]

STATS = "/api/active-sessions/stats"
LIVE = 1000
FIRST_EXPIRED = 10_000_000
TTL_SECONDS = 1
CONNECTIONS = 8
PAUSE_MS = 5
PER_SECOND = 20_000
HEARTBEAT_MS = 50


def sweep(stage: Stage) -> Outcome:
    """A cleanup of many expired sessions: how many it ends a second, and how heartbeats fare meanwhile."""
    server = stage.server("tracker")
    rates, p50s, p99s, longest, commands = [], [], [], [], []
    for number in range(stage.plan.sweeps):
        stage.redis.empty()
        stage.fill(range(LIVE))
        stage.fill(range(FIRST_EXPIRED, FIRST_EXPIRED + stage.plan.expired), ttl_seconds=TTL_SECONDS)
        stage.say(f"sweep: round {number + 1} of {stage.plan.sweeps}")
        with server.client() as client:
            # Also those that the tracker's own sweep, once a minute, may take away from ours.
            limit = time.monotonic() + 60
            while (before := client.get(STATS).raise_for_status().json())["sessions"] > LIVE:
                if time.monotonic() > limit:
                    stage.problems.append("sweep: sessions do not expire")
                    break
                time.sleep(0.1)
            stage.redis.watch()
            with stage.wrk.steady(server, load.heartbeats(server, LIVE), CONNECTIONS, PAUSE_MS) as beside:
                started = time.perf_counter()
                client.post("/api/active-sessions/cleanup").raise_for_status()
                seconds = time.perf_counter() - started
            after = client.get(STATS).raise_for_status().json()
        ended = after["ended"]["expired"] - before["ended"]["expired"]
        rates.append(ended / seconds)
        if after["ended"]["expired"] != stage.plan.expired or after["sessions"] != LIVE:
            stage.problems.append(f"sweep: {stage.plan.expired:,} sessions should have ended as expired: {after}")
        commands.append(stage.redis.longest_ms())
        if sample := beside.sample:
            check(stage.problems, "heartbeats beside a sweep", sample, None, CONNECTIONS)
            p50s.append(sample.p50_ms)
            p99s.append(sample.p99_ms)
            longest.append(sample.max_ms)
    figures = {
        "ended_per_second": Spread.of(rates),
        "heartbeat_p50_ms": Spread.of(p50s),
        "heartbeat_p99_ms": Spread.of(p99s),
        "heartbeat_max_ms": Spread.of(longest),
        "redis_longest_ms": Spread.of(commands),
    }
    return Outcome(
        [Row({"expired": stage.plan.expired}, figures)],
        [
            Target("expired sessions ended per second", figures["ended_per_second"].median, PER_SECOND, at_least=True),
            Target("p99 of heartbeats beside it", figures["heartbeat_p99_ms"].median, HEARTBEAT_MS, "ms"),
        ],
    )
