"""Figures: a run in numbers, so that a green one shows what it has been through, and that it was enough."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.torture.checker import bystanders, cleanup_rounds, losses_of_masters, outages, recoveries
from tests.torture.history import Call, History

__all__ = ["shortcomings", "tell"]

LONG_SECONDS = 90
"""A run of so long must have shown everything."""
LOST_MASTERS = 2
REASONS = ("deleted", "expired", "replaced", "cleaned")


def tell(history: History) -> Iterator[str]:
    """Lines for people."""
    plan, calls = history.plan, history.calls
    pods = f"{len(plan.pods)} pods with {plan.workers} workers each"
    yield f"seed {plan.seed}, {plan.seconds:g} s, {pods}, {plan.clients} clients"
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for call in history.answers:
        outcomes[call.kind][_outcome(call)] += 1
    yield f"calls: {len(calls)}, {sum(call.unsure for call in calls)} of unknown fate"
    for kind, counts in sorted(outcomes.items()):
        yield f"  {kind}: " + ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
    yield "faults: " + ", ".join(f"{kind} {n}" for kind, n in sorted(Counter(f.kind for f in history.faults).items()))
    reasons = Counter(life.reason for life in history.lives.values())
    ends = ", ".join(f"{reason} {reasons[reason]}" for reason in REASONS)
    yield f"sessions: {len(history.lives)} created, {ends}, {reasons['']} still live"
    holds = {hold for found in history.holds.values() for hold in found}
    gaps = [ended - began for _, began, ended in outages(history)]
    yield (
        f"outages: {len(gaps)} beyond the patience, the longest {max(gaps, default=0) / 1000:.1f} s; {len(holds)} "
        f"holds; {_spared(history)} sessions outlived their deadline by one"
    )
    rounds = list(cleanup_rounds(history))
    yield f"cleanups that must add up: {len(rounds)} rounds, {sum(counted for _, _, counted in rounds)} sessions"
    late = sorted(_delays(history))
    if late:
        yield (
            f"end events after their deadline: median {late[len(late) // 2]:.0f} ms, "
            f"99% {late[len(late) * 99 // 100]:.0f} ms, the latest {late[-1]:.0f} ms (outages included)"
        )
    if any(fault.losses for fault in history.faults):
        yield _failovers(history)
    back = [after for _, _, after in recoveries(history)]
    yield f"load: up to {max((fault.load for fault in history.faults), default=0):.1f} processes per core"
    yield f"longest time without any definite answer: {_longest_silence(history):.1f} s"
    yield f"after each fault both pods served again within {max(back, default=0):.0f} ms"


def shortcomings(history: History) -> Iterator[str]:
    """What a long run should have shown, and did not: a green one would mean little then."""
    if history.plan.seconds < LONG_SECONDS:
        return
    reasons = Counter(life.reason for life in history.lives.values())
    fenced = sum(call.status == 409 and bool(call.named) for call in history.of("beat", "delete", "provider"))
    shown = {
        **{f"sessions that end as {reason}": reasons[reason] for reason in REASONS},
        "calls of unknown fate": sum(call.unsure for call in history.calls),
        "calls stopped by a fence": fenced,
        "sessions that outlived their deadline by a hold": _spared(history),
        "rounds of cleanups that add up": sum(counted > 0 for _, _, counted in cleanup_rounds(history)),
        "events read by subscribers": sum(
            len(call.answer["positions"]) for call in history.of("feed") if call.status == 200
        ),
    }
    yield from (f"only {count} {name}" for name, count in shown.items() if count < 10)
    if history.plan.on_cluster and sum(1 for _ in losses_of_masters(history)) < LOST_MASTERS:
        yield f"fewer than {LOST_MASTERS} masters lost"
    if sum(1 for _ in outages(history)) < 2:
        yield "fewer than two outages"


def _outcome(call: Call) -> str:
    if call.lost:
        return call.lost
    if call.status == 200 and call.kind in ("beat", "provider", "stop", "delete"):
        return "200 done" if call.done else "200 missing"
    return str(call.status)


def _failovers(history: History) -> str:
    """What they may have undone, and have; and how those fared meanwhile whose masters were well."""
    undone = [call for call in history.answers if call.definite and history.undone(call)]
    gone = [call for call in undone if call.status == 201 and call.answer["session"]["id"] not in history.lives]
    downs = [ended - began for _, began, ended in losses_of_masters(history)]
    others = [call for _, calls in bystanders(history) for call in calls]
    refused = sum(call.status == 503 for call in others)
    return (
        f"masters lost: {len(downs)}, for {min(downs, default=0) / 1000:.1f} to {max(downs, default=0) / 1000:.1f} s; "
        f"meanwhile {len(others)} calls on others' shards, {refused} refused; {len(undone)} answers in doubt, "
        f"{len(gone)} acknowledged creates undone"
    )


def _spared(history: History) -> int:
    """Sessions that were renewed, or ended, after a deadline that fell into an outage or its hold."""
    count = 0
    for life in history.lives.values():
        due = life.created + life.ttl
        for began, _, call in sorted(life.chances, key=lambda chance: chance[0]):
            if call.done and began > due and any(held < due < end for held, end in history.holds.get(life.shard, ())):
                count += 1
                break
            due = max(due, min(began, call.ended) + life.ttl)
    return count


def _delays(history: History) -> Iterator[float]:
    for life in history.lives.values():
        if life.reason == "expired":
            yield max(life.ended - life.least_deadline, 0)


def _longest_silence(history: History) -> float:
    """In seconds, between one definite answer and the next."""
    ends = sorted(call.ended for call in history.calls if call.definite)
    return max((later - earlier for earlier, later in pairwise(ends)), default=0) / 1000
