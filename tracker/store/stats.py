"""The sessions in numbers, over all shards, at a cost that does not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tracker.models import END_REASONS, Stats
from tracker.store.scripts import Scripts, together
from tracker.store.snapshot import seconds

__all__ = ["Gauges", "read_gauges", "read_stats"]

NAMED = 100
"""Agents and trigger types named at most."""
REACH = 1000
"""Entries looked through at most where one must be looked for: some 1 ms of Redis's time."""


class Gauges(NamedTuple):
    """The store at a glance. ``agents``: one with sessions in several shards counts in each, as do expired sessions.

    ``ended`` by reason; ``sweep_lag``: seconds since the last sweep of the shard that waits longest, None before the
    first; ``hold``: seconds for which, after an outage, no session expires yet, 0 without one.
    """

    live: int
    expired: int
    agents: int
    created: int
    ended: dict[str, int]
    sweep_lag: float | None
    hold: float


async def read_gauges(scripts: Scripts) -> Gauges:
    """Costs Redis a few counts per shard, whatever it holds."""
    replies: list[Any] = await together(scripts.run("stats", shard, 1, 1) for shard in scripts.shards)
    heads = [reply[0] for reply in replies]
    counted: Counter[str] = Counter()
    for reply in replies:
        counted.update(_pairs(reply[1]))
    lags = [int(head[7]) for head in heads if head[7]]
    return Gauges(
        live=sum(int(head[0]) for head in heads),
        expired=sum(int(head[1]) for head in heads),
        agents=sum(int(head[6]) for head in heads),
        created=counted["created"],
        ended={reason: counted[f"ended:{reason}"] for reason in END_REASONS},
        sweep_lag=max(lags) / 1000 if lags else None,
        hold=max(int(head[8]) - int(head[5]) if head[8] else 0 for head in heads) / 1000,
    )


async def read_stats(scripts: Scripts) -> Stats:
    """What runs now and what ever did.

    Counts per agent and trigger type leave out expired sessions as long as no more than 1,000 per shard await the
    sweep. The oldest heartbeat is exact when all sessions have one TTL; with several it is the oldest among the 1,000
    sessions per shard that are nearest their deadlines.
    """
    replies: list[Any] = await together(scripts.run("stats", shard, NAMED, REACH) for shard in scripts.shards)
    by_agent: Counter[str] = Counter()
    by_trigger: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    for _, counted, agents, triggers, unswept in replies:
        counters.update(_pairs(counted))
        by_agent.update(_pairs(agents))
        by_trigger.update(_pairs(triggers))
        by_agent.subtract(Counter(agent.decode() for agent in unswept[::2]))
        by_trigger.subtract(Counter(trigger.decode() for trigger in unswept[1::2]))
    heads = [reply[0] for reply in replies]
    busiest = _most(by_agent)
    named = sum(len(reply[2]) // 2 for reply in replies)
    return {
        "sessions": sum(int(head[0]) for head in heads),
        # Exact as long as all agents are named; beyond that an agent in several shards counts once in each.
        "agents": len(busiest) if named == sum(int(head[6]) for head in heads) else sum(int(head[6]) for head in heads),
        "byAgent": [{"agentId": agent, "sessions": count} for agent, count in busiest[:NAMED]],
        "byTriggerType": [{"triggerType": trigger, "sessions": count} for trigger, count in _most(by_trigger)[:NAMED]],
        "expiredUnswept": sum(int(head[1]) for head in heads),
        "created": sum(int(head[2]) for head in heads),
        "ended": {
            "deleted": counters["ended:deleted"],
            "expired": counters["ended:expired"],
            "replaced": counters["ended:replaced"],
            "cleaned": counters["ended:cleaned"],
        },
        "oldestSessionAgeSeconds": _oldest((head[3], head[5]) for head in heads),
        "oldestHeartbeatAgeSeconds": _oldest((head[4], head[5]) for head in heads),
    }


def _pairs(flat: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    """Those that count anything, the largest first, equals by name."""
    return sorted(((name, n) for name, n in counts.items() if n > 0), key=lambda pair: (-pair[1], pair[0]))


def _oldest(moments: Iterable[tuple[bytes, bytes]]) -> float | None:
    """The greatest age in seconds among (moment or '', now), both in ms."""
    ages = [int(now) - int(moment) for moment, now in moments if moment]
    return seconds(max(0, *ages)) if ages else None
