"""Checker: judges a run, offline, by I1 to I11 of the design. Everything it says is a breach of one of them.

It knows nothing of how the tracker works but the rules that are promised, and says nothing that could be explained by
a call whose fate is unknown.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from tests.torture.history import MARGIN_MS, Call, Fault, History, Life

__all__ = ["INVARIANTS", "Breach", "judge"]

POD_SLACK_MS = 4000
"""So long after a pod is back its clients may still find dead connections, and its workers start."""
ANSWER_SLACK_MS = 4000
"""What a busy machine may add to the store's deadline; more where many share it, as with all that is about time."""
RECOVERY_MS = 2000
STORE_CALLS = {"cleanup": 3, "list": 3, "walk": math.inf}
"""How many deadlines, one after the other, an answer may take; one if it is not here."""
STALL_MS = 10_000
"""So long a sweep may be late without a fault, on a loaded machine."""
SWEEPS_TO_END = 3
"""A sweep ends all that is due; one may have begun just before, and one die midway with its pod."""
CLOCK_DRIFT_MS = 100
REFUSED_CALLS, REFUSED_SHARE = 5, 0.02
"""How many calls may be refused while the master of others is lost, for a busy machine may miss a deadline."""

TRAITS = ("agent", "task", "tag", "ttl")
"""What a session keeps from its create to its end."""

DOCUMENTED: dict[str, set[int | None]] = {
    "create": {200, 201, 409},
    "read": {200, 404},
    "beat": {200, 409},
    "batch": {200},
    "provider": {200, 409},
    "stop": {200},
    "delete": {200, 409},
    "cleanup": {200},
    "list": {200},
    "page": {200},
    "walk": {200},
    "feed": {200},
    "stats": {200},
}


class Breach(NamedTuple):
    """What must not be: of which invariant, and what was seen."""

    invariant: str
    text: str


def judge(history: History) -> list[Breach]:
    """All breaches found; none: the run was as it must be."""
    return [Breach(name, text) for name, check in INVARIANTS for text in check(history)]


# I1, I5


def _heartbeated_sessions_live(history: History) -> Iterator[str]:
    """Nobody is ended as expired before a TTL has passed since its last acknowledged heartbeat."""
    for life in history.lives.values():
        if life.reason == "expired" and life.ended < life.least_deadline - MARGIN_MS:
            early = life.least_deadline - life.ended
            yield f"{_tell(life)} ended as expired {early:.0f} ms before its deadline by acknowledged heartbeats"


def _the_living_are_found(history: History) -> Iterator[str]:
    """No answer says that a session is not there which was live all the while."""
    for call in history.calls:
        for life in _denied(history, call):
            if life.surely_lived(call.began, call.ended):
                yield f"{_tell(life)} was live, but {call} did not find it"


def _denied(history: History, call: Call) -> Iterator[Life]:
    """The sessions that an answer says are not there."""
    if call.kind in ("read", "beat", "provider", "stop", "delete") and call.definite and not call.done:
        life = history.named(call)
        if life is not None and call.asked.get("task") in (None, life.task):
            yield life
        if call.status != 409 and call.asked.get("task"):
            yield from (life for life in history.meant(call) if life.id != call.named)
    elif call.kind == "batch" and call.definite:
        missing = call.answer["missing"]
        yield from (history.lives[name] for name in missing["sessionIds"] if name in history.lives)
        for task in missing["taskIds"]:
            yield from history.meant(call, task)
    elif call.kind in ("list", "walk") and call.definite:
        listed, agent = {session["id"] for session in call.answer["sessions"]}, call.asked["agent"]
        for life in history.lives.values():
            if life.id not in listed and agent in (None, life.agent):
                yield life


def _acknowledged_sessions_exist(history: History) -> Iterator[str]:
    for call in history.of("create"):
        if call.status == 201 and call.answer["session"]["id"] not in history.lives:
            yield f"{call} was acknowledged, but the feed does not know the session: the write is lost"


def _cleanups_spare_whoever_heartbeats(history: History) -> Iterator[str]:
    """What ended as cleaned was in the reach of a cleanup of that time, and silent for as long as that one asks."""
    cleanups = [call for call in history.of("cleanup") if call.definite or call.unsure]
    for life in history.lives.values():
        if life.reason == "cleaned" and not any(_may_clean(history, call, life) for call in cleanups):
            yield f"{_tell(life)} ended as cleaned at {life.ended:.0f}, which no cleanup asked for"


def _may_clean(history: History, call: Call, life: Life) -> bool:
    asked = call.asked
    latest = call.ended if call.definite else history.settled(call.ended)
    if not call.began - MARGIN_MS <= life.ended <= latest + MARGIN_MS:
        return False
    if asked.get("agent") is None and asked.get("minutes") is None:
        return False
    if asked.get("agent") not in (None, life.agent) or asked.get("runtime") not in (None, life.runtime):
        return False
    least_age: float = asked.get("minutes", 0) * 60_000
    last_beat = life.least_deadline_at(life.ended) - life.ttl
    return life.ended - last_beat >= least_age - MARGIN_MS


# I2


def _one_live_session_per_task(history: History) -> Iterator[str]:
    for shard in history.shards:
        holders: dict[str, str] = {}
        for event in shard["events"]:
            task, holder = event["task"], holders.get(event["task"] or "")
            if task is None:
                continue
            if event["type"] == "session.created":
                if holder is not None:
                    yield f"task {task} has {event['id']} while {holder} has not ended"
                holders[task] = event["id"]
            elif event["type"] == "session.ended" and holder == event["id"]:
                del holders[task]


# I3


def _each_end_is_told_once(history: History) -> Iterator[str]:
    for shard in history.shards:
        told: defaultdict[str, list[str]] = defaultdict(list)
        for event in shard["events"]:
            told[event["id"]].append(event["type"].removeprefix("session."))
        for name, types in told.items():
            living = name in shard["living"]
            expected = ["created", *["updated"] * types.count("updated"), *([] if living else ["ended"])]
            if types != expected:
                yield f"{name}, which {'lives' if living else 'is gone'}, has the events {', '.join(types)}"
        for name in shard["living"].keys() - told.keys():
            yield f"{name} lives, and the feed has not heard of it"


def _deletes_and_ends_agree(history: History) -> Iterator[str]:
    """Who was told that it ended a session did, alone; and who ended as deleted was asked for by somebody."""
    deletes = [call for call in history.of("delete") if call.unsure or call.done]
    owners: Counter[str] = Counter()
    for call in deletes:
        if call.done:
            met = [life] if (life := history.named(call)) else history.meant(call)
            ended = [one for one in met if one.reason == "deleted" and _during(one.ended, call.began, call.ended)]
            if not ended:
                yield f"{call} was acknowledged, but no session ended so"
            elif call.named:
                owners[ended[0].id] += 1
    for name, count in owners.items():
        if count > 1:
            yield f"{count} callers were told that they ended {name}"
    by_target: defaultdict[str, list[Call]] = defaultdict(list)
    for call in deletes:
        by_target[call.named or call.asked["task"]].append(call)
    for life in history.lives.values():
        calls = [*by_target[life.id], *by_target[life.task or ""]]
        if life.reason == "deleted" and not any(
            _during(life.ended, call.began, call.ended if call.definite else history.settled(call.ended))
            for call in calls
        ):
            yield f"{_tell(life)} ended as deleted at {life.ended:.0f}, which nobody asked for"


def _each_create_makes_one(history: History) -> Iterator[str]:
    """By the tags that clients put on what they create."""
    attempts: defaultdict[str, list[Call]] = defaultdict(list)
    for call in history.of("create"):
        attempts[call.asked["tag"]].append(call)
    made = Counter(life.tag for life in history.lives.values())
    for life in history.lives.values():
        calls = attempts.get(life.tag or "", [])
        if not any(call.status in (200, 201) or call.unsure for call in calls):
            yield f"{_tell(life)} was created, which nobody asked for, or everybody was refused"
    for tag, count in made.items():
        if count > 1:
            yield f"{count} sessions were made by the create {tag}"


def _subscribers_miss_nothing(history: History) -> Iterator[str]:
    """Who reads on behind each page has every event of a shard once, in order. Behind one that a failover has undone
    he is not led on, but told to begin anew."""
    orders = [[_place(event["position"]) for event in shard["events"]] for shard in history.shards]
    ranks = [{place: number for number, place in enumerate(order)} for order in orders]

    def stand(shard: int, part: str) -> tuple[float, str]:
        """How many events of the shard come before that one; (-1, '') before all, a half and its name if undone."""
        place = _place(part)
        if place not in ranks[shard] and history.lost(shard, place[0]):
            return bisect.bisect(orders[shard], place) - 0.5, part
        return ranks[shard].get(place, -1), ""

    places: dict[int, list[tuple[float, str]]] = {}
    for call in history.answers:
        if call.kind == "feed" and call.status == 410:
            places.pop(call.client, None)
        if call.kind != "feed" or call.status != 200:
            continue
        at = places.setdefault(call.client, [(-1, "")] * len(orders))
        for position in call.answer["positions"]:
            now = [stand(shard, part) for shard, part in enumerate(position.split("."))]
            moved = [shard for shard, rank in enumerate(now) if rank != at[shard]]
            if len(moved) != 1 or not _follows(at[moved[0]], now[moved[0]]):
                yield f"{call} goes on from {at} with {now}: an event is lost or repeated"
            at[:] = now


def _place(position: str) -> tuple[int, int]:
    ms, _, sequence = position.partition("-")
    return int(ms), int(sequence)


def _follows(earlier: tuple[float, str], later: tuple[float, str]) -> bool:
    steps = later[0] - earlier[0]
    return steps in (0, 0.5) if later[1] else steps == 1


# I4


def _keys_agree(history: History) -> Iterator[str]:
    if history.audit:
        yield history.audit


# I6


def _cleanups_add_up(history: History) -> Iterator[str]:
    """Cleanups of one agent that overlap in time and all have an answer: their counts are what ended by them."""
    for agent, calls, _ in cleanup_rounds(history):
        began, ended = min(call.began for call in calls), max(call.ended for call in calls)
        reasons = Counter(
            life.reason
            for life in history.lives.values()
            if agent in (None, life.agent) and _during(life.ended, began, ended)
        )
        counted = sum(call.answer["cleaned"] for call in calls)
        least = 0 if agent is None else reasons["cleaned"]
        if not least <= counted <= reasons["cleaned"] + reasons["expired"]:
            yield (
                f"{len(calls)} cleanups of {agent or 'all'} at {began:.0f}-{ended:.0f} counted {counted}, but "
                f"{reasons['cleaned']} ended as cleaned and {reasons['expired']} as expired"
            )


def cleanup_rounds(history: History) -> Iterator[tuple[str | None, Sequence[Call], int]]:
    """Agent (None: all), the calls of a round, what they counted; no round in which a call's fate is unknown."""
    spans = [
        (call.began, call.ended if call.definite else history.settled(call.ended), call)
        for call in history.of("cleanup")
        if call.sent
    ]
    for agent in {call.asked.get("agent") for _, _, call in spans}:
        reach = 0.0
        rounds: list[list[Call]] = []
        for began, ended, call in spans:
            if agent is not None and call.asked.get("agent") not in (None, agent):
                continue
            if agent is not None and call.asked.get("agent") is None and call.asked.get("minutes") is None:
                continue  # ends the expired ones only, which are allowed for
            if began > reach + 2 * MARGIN_MS:
                rounds.append([])
            rounds[-1].append(call)
            reach = max(reach, ended)
        for calls in rounds:
            if all(call.definite and call.asked.get("agent") == agent for call in calls):
                yield agent, calls, sum(call.answer["cleaned"] for call in calls)


# I7, I11


def _the_dead_stay_dead(history: History) -> Iterator[str]:
    """I7: nobody acts on a session that has ended, or whose deadline has passed, by its id or its fence."""
    for call in history.of("beat", "provider", "stop", "delete"):
        if call.done and call.named:
            life = history.named(call)
            if life is None:
                yield f"{call} was acknowledged for a session that never was"
            elif not history.may_have_lived(life, call):
                yield f"{call} was acknowledged, but {_tell(life)} {_death(history, life, call)}"
    for call in history.of("batch"):
        if call.status == 200:
            for name in set(call.asked["ids"]) - set(call.answer["missing"]["sessionIds"]):
                life = history.lives.get(name)
                if life is None or not history.may_have_lived(life, call):
                    yield f"{call} was acknowledged for {name}, which was not live"


def _tasks_without_a_session_have_none(history: History) -> Iterator[str]:
    """I7, by task alone: where something was done there was a live session."""
    for call in history.of("beat", "provider", "delete", "read"):
        if call.done and call.asked.get("task") and not call.named:
            lives = history.meant(call)
            if not any(history.may_have_lived(life, call) for life in lives):
                yield f"{call} was acknowledged, but the task had no live session"


def _the_dead_leave_at_their_deadline(history: History) -> Iterator[str]:
    """No answer shows a session that was not live at any moment of the call."""
    for call in history.calls:
        shown = []
        if call.status == 409 or (call.kind == "read" and call.status == 200):
            shown = [call.answer["session"]]
        elif call.kind in ("list", "walk", "page") and call.status == 200:
            shown = call.answer["sessions"]
        for session in shown:
            life = history.lives.get(session["id"])
            if life is None:
                yield f"{call} shows {session['id']}, of which the feed has not heard"
            elif not history.may_have_lived(life, call):
                yield f"{call} shows {_tell(life)}, which {_death(history, life, call)}"


def _ends_come_with_the_next_sweep(history: History) -> Iterator[str]:
    """I11: by the sweeps that the witness saw. What was due at a sweep has ended with it."""
    living = {name for shard in history.shards for name in shard["living"]}
    for life in history.lives.values():
        if life.reason != "expired" and life.id not in living:
            continue
        due = history.greatest_deadline(life, min(life.ended, history.now))
        sweeps = history.sweeps.get(life.shard, [])
        later = sweeps[bisect.bisect_right(sweeps, due + MARGIN_MS) :]
        if len(later) >= SWEEPS_TO_END:
            limit = later[SWEEPS_TO_END - 1] + history.plan.store_timeout * 1000
            if min(life.ended, history.now) > limit:
                yield f"{_tell(life)} was due at {due:.0f}, and was not ended by {SWEEPS_TO_END} sweeps after it"


def _sweeps_come_in_time(history: History) -> Iterator[str]:
    """I11: while a pod and Redis were up there were sweeps and pulses; and holds are no longer than their outages."""
    plan = history.plan
    for shard, moments in [*history.sweeps.items(), *history.pulses.items()]:
        for earlier, later in pairwise([*moments, history.now]):
            faults = [fault for fault in history.faults if fault.concerns(shard) and _overlaps(fault, earlier, later)]
            down = sum(fault.ended - fault.began for fault in faults)
            if later - earlier > plan.sweep_interval * 1000 + STALL_MS * history.crowding + down:
                span = f"from {earlier:.0f} to {later:.0f}, {down:.0f} ms of it with a fault"
                yield f"shard {shard} had no sweep, or no pulse, {span}"
    before: dict[int, tuple[float, float]] = {}
    for clock in history.clocks:
        if history.lost(clock.shard, clock.pulse):
            continue
        pulse, hold_end = before.get(clock.shard, (0.0, 0.0))
        if clock.hold_end is not None and clock.hold_end != hold_end and pulse:
            gap = clock.pulse - pulse
            longest = clock.pulse + max(gap, hold_end - pulse)
            if gap <= plan.patience * 1000 or clock.hold_end > longest + MARGIN_MS:
                yield f"after {gap:.0f} ms without a pulse shard {clock.shard} is held until {clock.hold_end:.0f}"
        before[clock.shard] = (clock.pulse, clock.hold_end or 0)


# I8


def _answers_are_documented(history: History) -> Iterator[str]:
    for call in history.answers:
        documented = DOCUMENTED[call.kind] | {None, 503}
        if call.kind == "delete" and not call.asked.get("guard"):
            documented = documented - {409}
        if call.kind == "feed" and any(since <= call.ended for fault in history.faults for since, _ in fault.losses):
            documented = documented | {410}
        if call.status not in documented:
            yield f"{call} was answered {call.status}: {call.answer}"
        if call.lost in ("NoJSON", "NoRetryAfter"):
            yield f"{call} was answered {call.status}, but {call.lost}"


def _answers_come_in_time(history: History) -> Iterator[str]:
    """A frozen or dead Redis is no excuse, only a frozen, dead or starting pod is."""
    for call in history.answers:
        limit = history.plan.store_timeout * 1000 * STORE_CALLS.get(call.kind, 1) + ANSWER_SLACK_MS * history.crowding
        silent = call.status is None
        if call.kind == "list" and silent and any(_overlaps(fault, call.began, call.ended) for fault in history.faults):
            continue  # a list that cannot be finished is cut
        if (silent or call.ended - call.began > limit) and not _excused(history, call):
            what = call.lost if silent else f"took {call.ended - call.began:.0f} ms"
            yield f"{call} {what}, and nothing was wrong with pod{call.pod}"


def _excused(history: History, call: Call) -> bool:
    return any(
        f"pod{call.pod}" in fault.hits
        and fault.began - MARGIN_MS <= call.ended
        and call.began <= fault.ended + POD_SLACK_MS * history.crowding
        for fault in history.faults
    )


def recoveries(history: History) -> Iterator[tuple[Fault, int, float]]:
    """How long (ms) after each fault's end each pod first did what it was asked; inf: never, though it was asked to.

    Not told where the next fault came before that.
    """
    for fault in history.faults:
        for pod in range(len(history.plan.pods)):
            following = min(
                (other.began for other in history.faults if other.began > fault.ended and other is not fault),
                default=math.inf,
            )
            answers = [call for call in history.answers if call.pod == pod and fault.ended <= call.began < following]
            served = [call.ended - fault.ended for call in answers if call.definite]
            asked_for = max((call.began - fault.ended for call in answers), default=0)
            if served:
                yield fault, pod, min(served)
            elif asked_for > RECOVERY_MS + ANSWER_SLACK_MS * history.crowding:
                yield fault, pod, math.inf


def _service_comes_back(history: History) -> Iterator[str]:
    for fault, pod, after in recoveries(history):
        if after > RECOVERY_MS + ANSWER_SLACK_MS * history.crowding:
            yield f"after {fault.kind} at {fault.began:.0f}-{fault.ended:.0f} pod{pod} did not serve for {after:.0f} ms"


def losses_of_masters(history: History) -> Iterator[tuple[Fault, float, float]]:
    """When certainly nobody held the shards of a master."""
    for fault in history.faults:
        if fault.down and fault.shards is not None:
            yield fault, fault.down[0], fault.down[1]


def bystanders(history: History) -> Iterator[tuple[Fault, list[Call]]]:
    """With each loss of a master: the calls meanwhile that had an answer, and nothing to do with its shards."""
    for fault, began, ended in losses_of_masters(history):
        calls = history.of("beat", "read", "provider", "stop", "delete")
        yield (
            fault,
            [
                call
                for call in calls
                if call.status is not None and began <= call.began <= ended and not history.concerned(call, fault)
            ],
        )


def _bystanders_are_served(history: History) -> Iterator[str]:
    """A master that is lost is nothing to those whose sessions others hold; but the machine may be slow."""
    for fault, calls in bystanders(history):
        refused = sum(call.status == 503 for call in calls)
        if refused > max(REFUSED_CALLS, len(calls) * REFUSED_SHARE):
            yield f"{fault.kind} at {fault.began:.0f}: {refused} of {len(calls)} calls on others' shards were refused"


# I9


def outages(history: History) -> Iterator[tuple[Fault, float, float]]:
    """When certainly nobody whom a fault concerns could heartbeat for longer than the patience."""
    for fault in history.faults:
        if fault.down and fault.down[1] - fault.down[0] > history.plan.patience * 1000 + MARGIN_MS:
            yield fault, fault.down[0], fault.down[1]


def _outages_end_nobody(history: History) -> Iterator[str]:
    """Who was alive when an outage began is not ended for silence until as long again has passed after it."""
    for fault, began, ended in outages(history):
        hold = min(ended - began, history.plan.ttl * 1000)
        for life in filter(lambda life: fault.concerns(life.shard), history.lives.values()):
            lived = life.created < began and life.least_deadline_at(began) > began + MARGIN_MS
            if lived and life.reason == "expired" and began < life.ended < ended + hold - MARGIN_MS:
                after = life.ended - ended
                yield f"{_tell(life)} was ended {after:.0f} ms after an outage of {ended - began:.0f} ms"


# I10


def _answers_are_ones_own(history: History) -> Iterator[str]:
    for call in history.answers:
        if not call.definite or call.kind in ("feed", "stats"):
            continue
        asked, answer = call.asked, call.answer
        session = answer.get("session")
        own = call.kind == "create" and session and asked["policy"] != "reuse" and call.status != 409
        if own and any(session[name] != asked[name] for name in TRAITS):
            yield f"{call} was answered with {session}"
        if session and asked.get("task") and session["task"] != asked["task"]:
            yield f"{call} was answered with a session of task {session['task']}"
        if call.status == 409 and session["id"] == call.named:
            yield f"{call} was refused for the sake of the very session that it names"
        if call.kind == "read" and session and asked.get("id") and session["id"] != asked["id"]:
            yield f"{call} was answered with session {session['id']}"
        if call.kind == "beat" and call.done and not history.undone(call):
            named = history.named(call)
            lives = [named] if named else history.meant(call)
            if lives and not any(
                _during(answer["due"], call.began + life.ttl, call.ended + life.ttl) for life in lives
            ):
                yield f"{call} was answered with a deadline at {answer['due']:.0f}, which is not its own"
        if call.kind == "batch":
            missing = answer["missing"]
            if not {*missing["taskIds"]} <= {*asked["tasks"]} or not {*missing["sessionIds"]} <= {*asked["ids"]}:
                yield f"{call} was told of others: {missing}"
        if call.kind in ("list", "walk"):
            names = [session["id"] for session in answer["sessions"]]
            if len(names) != len(set(names)):
                yield f"{call} shows a session twice"
            if asked["agent"] and any(session["agent"] != asked["agent"] for session in answer["sessions"]):
                yield f"{call} shows sessions of other agents"
        for shown in [session] if session else answer.get("sessions", ()):
            life = history.lives.get(shown["id"])
            if life and any(shown[name] != getattr(life, name) for name in TRAITS):
                yield f"{call} shows {shown}, which was created as {_tell(life)}"


# Of the run itself


def _the_clock_was_left_alone(history: History) -> Iterator[str]:
    offsets = [call.began - call.mono for call in history.answers if call.mono]
    if offsets and max(offsets) - min(offsets) > CLOCK_DRIFT_MS:
        yield "the machine's clock was set during the run: nothing can be judged by it"


Check = Callable[[History], Iterator[str]]

INVARIANTS: tuple[tuple[str, Check], ...] = (
    ("I1", _heartbeated_sessions_live),
    ("I1", _the_living_are_found),
    ("I1", _acknowledged_sessions_exist),
    ("I2", _one_live_session_per_task),
    ("I3", _each_end_is_told_once),
    ("I3", _deletes_and_ends_agree),
    ("I3", _each_create_makes_one),
    ("I3", _subscribers_miss_nothing),
    ("I4", _keys_agree),
    ("I5", _cleanups_spare_whoever_heartbeats),
    ("I6", _cleanups_add_up),
    ("I7", _the_dead_stay_dead),
    ("I7", _tasks_without_a_session_have_none),
    ("I8", _answers_are_documented),
    ("I8", _answers_come_in_time),
    ("I8", _service_comes_back),
    ("I8", _bystanders_are_served),
    ("I9", _outages_end_nobody),
    ("I10", _answers_are_ones_own),
    ("I11", _the_dead_leave_at_their_deadline),
    ("I11", _ends_come_with_the_next_sweep),
    ("I11", _sweeps_come_in_time),
    ("run", _the_clock_was_left_alone),
)


def _during(moment: float, began: float, ended: float) -> bool:
    return began - MARGIN_MS <= moment <= ended + MARGIN_MS


def _overlaps(fault: Fault, began: float, ended: float) -> bool:
    return fault.began <= ended and began <= fault.ended


def _tell(life: Life) -> str:
    return f"session {life.id} ({life.agent}, task {life.task}, TTL {life.ttl:.0f} ms, from {life.created:.0f})"


def _death(history: History, life: Life, call: Call) -> str:
    if not life.exists(call.began, call.ended):
        return f"ended as {life.reason} at {life.ended:.0f}"
    return f"was dead from {history.greatest_deadline(life, call.ended, but=call):.0f} on"
