"""What a session takes in Redis."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.outcome import Outcome, Row, Target
from benchmarks.redis_server import RedisServer, running_redis
from benchmarks.sessions import AGENT_SESSIONS, body, fill, task
from benchmarks.spread import Spread
from benchmarks.stage import Stage
from tracker.settings import Settings
from tracker.store.keys import Shard

__all__ = ["memory"]

LARGEST_BYTES = 900
LOOKED_AT = 200
"""Keys of each kind that are measured one by one."""


def memory(stage: Stage) -> Outcome:
    """Memory in Redis per session, by kind of key, where sessions share agents and where each has its own."""
    outcome = Outcome([])
    with running_redis(stage.directory) as redis:
        for per_agent in (AGENT_SESSIONS, 1):
            row = _measure(stage, redis, per_agent)
            outcome.rows.append(row)
            if per_agent == AGENT_SESSIONS:
                what = f"memory of a session, {per_agent} to an agent"
                outcome.targets.append(Target(what, row.figures["total_bytes"].median, LARGEST_BYTES, "bytes"))
    outcome.notes.append(
        "The rest are entries for TTLs and the tables of keys. An event is kept only while it is among the newest of "
        "the feed (100,000 by default), so it is not part of the total; a session has two and those of its updates."
    )
    return outcome


def _measure(stage: Stage, redis: RedisServer, per_agent: int) -> Row:
    count = stage.plan.remembered
    stage.say(f"memory: {count:,} sessions, {per_agent} to an agent")
    prefix = Shard(Settings().namespace, 0).prefix
    fill(redis, [0])  # the scripts are in Redis from here on
    redis.empty()
    before = redis.used_bytes()
    fill(redis, range(count), per_agent=per_agent)
    feed = prefix + "events"
    event_bytes = _bytes(redis, feed) / redis.client.xlen(feed)
    redis.client.delete(feed)
    total = (redis.used_bytes() - before) / count

    numbers = range(0, count, max(count // LOOKED_AT, 1))
    tasks = [prefix + "task:" + task(number) for number in numbers]
    sessions = [prefix + "session:" + redis.client.get(key) for key in tasks]
    agents = {prefix + "agent:" + body(number, per_agent=per_agent)["agentId"] for number in numbers}
    parts = {
        "hash_bytes": _mean(redis, sessions),
        "task_bytes": _mean(redis, tasks),
        "sessions_bytes": _bytes(redis, prefix + "sessions") / count,
        "deadlines_bytes": _bytes(redis, prefix + "deadlines") / count,
        "agent_bytes": _mean(redis, agents) / per_agent,
        "agents_bytes": _bytes(redis, prefix + "agents") / count,
    }
    redis.empty()
    figures = {"total_bytes": total, **parts, "rest_bytes": total - sum(parts.values()), "event_bytes": event_bytes}
    return Row({"sessions per agent": per_agent}, {name: Spread.of([value]) for name, value in figures.items()})


def _bytes(redis: RedisServer, key: str) -> int:
    return int(redis.client.memory_usage(key, samples=0))


def _mean(redis: RedisServer, keys: Iterator[str] | list[str] | set[str]) -> float:
    sizes = [_bytes(redis, key) for key in keys]
    return sum(sizes) / len(sizes)
