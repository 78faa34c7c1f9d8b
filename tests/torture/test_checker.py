"""The checker on small logs made by hand: silent on one that is right, and sure of what each other one breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import pytest

from tests.torture.checker import INVARIANTS, judge
from tests.torture.history import Call, Clock, Fault, History
from tests.torture.plan import Plan

PLAN = Plan(seed=0, seconds=40, store_url="", pods=(1, 2), clients=1, shards=1)


class Log:
    """A run of 40 s, of its sessions, and what their callers were told. Times in ms.

    ==  ========  =============================================================================================
    a   task t1   created, heartbeated, then replaced by d
    b   task t2   created, silent, expired at its deadline
    c   of herd   created, ended by a cleanup
    d   task t1   deleted
    e   task t3   lives to the end
    f   task t4   alive when Redis is frozen from 20,000 to 25,000; heartbeats after its deadline, within the hold
    ==  ========  =============================================================================================
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.calls: dict[str, Call] = {}
        self.living = {"e": 69_500}
        self.now = 40_000.0
        self.audit = ""
        self.faults = [Fault("freeze redis", ["redis"], 19_990, 25_010, [20_000, 25_000])]
        pulses = [*range(600, 20_000, 1000), *range(25_100, 40_000, 1000)]
        self.clocks = [
            Clock(0, at, 19_600, 30_600, swept=at) if at > 20_000 else Clock(0, at, swept=at) for at in pulses
        ]
        self.sessions = {
            name: {"id": name, "agent": agent, "task": task, "tag": name, "ttl": ttl, "due": 0}
            for name, agent, task, ttl in [
                ("a", "x", "t1", 10_000),
                ("b", "w", "t2", 4000),
                ("c", "herd", None, 60_000),
                ("d", "x", "t1", 60_000),
                ("e", "y", "t3", 60_000),
                ("f", "y", "t4", 8000),
            ]
        }
        for name, at in [("a", 1000), ("b", 1100), ("c", 1200)]:
            self.create(name, at)
        self.end("b", "expired", 5600)
        self.end("c", "cleaned", 7005)
        self.end("a", "replaced", 8000)
        self.create("d", 8000)
        self.end("d", "deleted", 9005)
        self.create("e", 9500)
        self.create("f", 15_000)
        self.end("f", "expired", 35_600)
        self.call("beat a", "beat", 4000, {"task": "t1", "guard": None}, {"updated": True, "due": 14_005})
        self.call("read a", "read", 5000, {"id": "a"}, {"session": self.sessions["a"]})
        self.call("list x", "list", 5020, {"agent": "x"}, {"sessions": [self.sessions["a"]]})
        self.call("read b", "read", 6000, {"id": "b"}, {"error": ""}, status=404)
        self.call("late beat b", "beat", 6100, {"id": "b"}, {"updated": False})
        self.call("cleanup", "cleanup", 7000, {"agent": "herd"}, {"cleaned": 1})
        fenced = {"error": "", "session": self.sessions["d"]}
        self.call("fenced", "beat", 8500, {"task": "t1", "guard": "a"}, fenced, status=409)
        self.call("delete d", "delete", 9000, {"id": "d"}, {"deleted": True})
        self.call("batch", "batch", 11_000, {"tasks": ["t3", "t9"], "ids": ["b"]}, {"updated": 1})
        self.calls["batch"].answer["missing"] = {"taskIds": ["t9"], "sessionIds": ["b"]}
        self.call("stats", "stats", 12_000, {}, {"sessions": 1})
        self.call("held off", "read", 21_000, {"id": "e"}, {"error": ""}, status=503)
        self.call("beat f", "beat", 27_000, {"id": "f"}, {"updated": True, "due": 35_005})
        self.call("feed", "feed", 39_000, {"after": "0"}, {"positions": [event["position"] for event in self.events]})

    def create(self, name: str, at: float) -> Self:
        session = self.sessions[name]
        asked = {**{key: session[key] for key in ("agent", "task", "tag", "ttl")}, "policy": None, "key": False}
        self.call(f"create {name}", "create", at - 10, asked, {"session": session}, status=201)
        return self.event(name, "session.created", "", at)

    def end(self, name: str, reason: str, at: float) -> Self:
        return self.event(name, "session.ended", reason, at)

    def event(self, name: str, kind: str, reason: str, at: float) -> Self:
        facts = {"position": f"{len(self.events) + 1}-0", "type": kind, "reason": reason, "at": at, "runtime": None}
        self.events.append({**self.sessions[name], **facts})
        return self

    def call(
        self, name: str, kind: str, began: float, asked: dict[str, Any], answer: Any, status: int | None = 200
    ) -> Self:
        self.calls[name] = Call(kind, asked, began, began + 20, status, answer)
        return self

    def change(self, name: str, **fields: Any) -> Self:
        self.calls[name] = replace(self.calls[name], **fields)
        return self

    def forget(self, *names: str) -> Self:
        for name in names:
            del self.calls[name]
        return self

    def silence_f(self) -> Self:
        """Somebody else is served instead, so that the pod is seen to be back."""
        return self.change("beat f", kind="read", asked={"id": "e"}, answer={"session": self.sessions["e"]})

    def lives_on(self, name: str, due: float) -> Self:
        """Takes its end back, which is the last event; nobody reads the feed."""
        del self.events[-1]
        self.living[name] = round(due)
        return self.forget("feed")

    def ends_at(self, name: str, at: float) -> Self:
        for event in self.events:
            if event["id"] == name and event["reason"]:
                event["at"] = at
        return self

    @property
    def history(self) -> History:
        calls = sorted(self.calls.values(), key=lambda call: call.began)
        shards = [{"events": self.events, "living": self.living}]
        return History(PLAN, calls, self.faults, self.clocks, shards, self.now, self.audit)


def test_a_run_that_is_as_it_must_be_is_green() -> None:
    assert judge(Log().history) == []


Change = Callable[[Log], object]


def lose_a_master(log: Log, at: float, shard: int = 0) -> Log:
    """Killed then, and replaced by a replica that may not have heard of its last second."""
    log.faults.append(Fault("kill a master", ["node"], at - 10, at + 2500, shards=[shard], losses=[[at, at]]))
    return log


def swap_ends(log: Log) -> None:
    """The successor comes before the end of the session that it replaces."""
    place = next(number for number, event in enumerate(log.events) if event["reason"] == "replaced")
    log.events[place : place + 2] = log.events[place + 1], log.events[place]
    log.calls.pop("feed")


def serve_nobody_again(log: Log) -> None:
    for began in (26_000, 33_000):
        log.call(f"refused {began}", "read", began, {"id": "e"}, {"error": ""}, status=503)
        log.change(f"refused {began}", pod=1)


WRONG: dict[str, tuple[str, Change]] = {
    "a session expires before its deadline": ("I1", lambda log: log.ends_at("f", 33_000)),
    "a live session is not found": (
        "I1",
        lambda log: log.call("lost", "read", 12_000, {"id": "e"}, {"error": ""}, status=404),
    ),
    "a live task is not found": (
        "I1",
        lambda log: log.call("lost", "beat", 12_000, {"task": "t3"}, {"updated": False}),
    ),
    "a batch does not find a live session": (
        "I1",
        lambda log: log.calls["batch"].answer["missing"]["taskIds"].append("t3"),
    ),
    "a listing leaves a live session out": ("I1", lambda log: log.change("list x", answer={"sessions": []})),
    "an acknowledged create is lost": (
        "I1",
        lambda log: log.change("create e", answer={"session": {**log.sessions["e"], "id": "g"}}),
    ),
    "a task has two sessions": ("I2", swap_ends),
    "an end is told twice": ("I3", lambda log: log.end("b", "expired", 6600)),
    "an end is not told": ("I3", lambda log: log.forget("feed").events.pop()),
    "an update is told after the end": ("I3", lambda log: log.event("b", "session.updated", "", 6600)),
    "a session lives that nobody has heard of": ("I3", lambda log: log.living.update(g=50_000)),
    "two callers ended one session": ("I3", lambda log: log.calls.update(again=log.calls["delete d"])),
    "a delete ended nothing": ("I3", lambda log: log.call("none", "delete", 12_000, {"id": "e"}, {"deleted": True})),
    "nobody asked for a delete": ("I3", lambda log: log.calls.pop("delete d")),
    "nobody asked for a session": ("I3", lambda log: log.calls.pop("create e")),
    "a refused create made a session": (
        "I3",
        lambda log: log.change("create b", status=409, answer={"session": log.sessions["b"]}),
    ),
    "an event is lost to a subscriber": ("I3", lambda log: log.calls["feed"].answer["positions"].pop(3)),
    "an event is repeated": ("I3", lambda log: log.calls["feed"].answer["positions"].insert(3, "3-0")),
    "the raw keys do not agree": ("I4", lambda log: setattr(log, "audit", "an entry is left behind")),
    "nobody asked for a cleanup": ("I5", lambda log: log.calls.pop("cleanup")),
    "a cleanup by age ends a young session": (
        "I5",
        lambda log: log.change("cleanup", asked={"agent": "herd", "minutes": 1}),
    ),
    "a cleanup ends another agent's session": (
        "I5",
        lambda log: log.change("cleanup", asked={"agent": "x"}, answer={"cleaned": 0}),
    ),
    "a cleanup counts too many": ("I6", lambda log: log.change("cleanup", answer={"cleaned": 2})),
    "a cleanup counts too few": ("I6", lambda log: log.change("cleanup", answer={"cleaned": 0})),
    "two cleanups count the same session": ("I6", lambda log: log.calls.update(again=log.calls["cleanup"])),
    "a fence is ignored": ("I7", lambda log: log.change("fenced", status=200, answer={"updated": True, "due": 18_510})),
    "a call acts on the dead": ("I7", lambda log: log.call("late", "stop", 5300, {"id": "b"}, {"updated": True})),
    "a batch revives the dead": ("I7", lambda log: log.calls["batch"].answer["missing"]["sessionIds"].clear()),
    "a task without a session is renewed": (
        "I7",
        lambda log: log.call("nothing", "beat", 12_000, {"task": "t9"}, {"updated": True, "due": 0}),
    ),
    "an answer is a 500": ("I8", lambda log: log.change("stats", status=500)),
    "an answer is not documented": ("I8", lambda log: log.change("stats", status=404)),
    "a 503 does not say when to retry": ("I8", lambda log: log.change("held off", lost="NoRetryAfter")),
    "an answer takes too long": ("I8", lambda log: log.change("stats", ended=18_000)),
    "a frozen Redis silences a pod": ("I8", lambda log: log.change("held off", status=None, lost="ReadTimeout")),
    "a pod does not come back": ("I8", serve_nobody_again),
    "an outage ends a session": ("I9", lambda log: log.silence_f().ends_at("f", 25_100)),
    "a hold is too short": ("I9", lambda log: log.silence_f().ends_at("f", 29_000)),
    "a read shows another session": ("I10", lambda log: log.change("read a", asked={"id": "e"})),
    "a create is answered with another's": (
        "I10",
        lambda log: log.change("create e", answer={"session": {**log.sessions["e"], "tag": "a"}}),
    ),
    "a heartbeat has another's deadline": (
        "I10",
        lambda log: log.change("beat a", answer={"updated": True, "due": 8005}),
    ),
    "a listing shows another agent's session": ("I10", lambda log: log.change("list x", asked={"agent": "z"})),
    "a listing shows a session twice": (
        "I10",
        lambda log: log.change("list x", answer={"sessions": [log.sessions["a"]] * 2}),
    ),
    "a session changes its fields": (
        "I10",
        lambda log: log.change("read a", answer={"session": {**log.sessions["a"], "agent": "z"}}),
    ),
    "a fence refuses its own session": (
        "I10",
        lambda log: log.change("fenced", asked={"task": "t1", "guard": "d"}, began=8980, ended=8990),
    ),
    "an expired session is shown": (
        "I11",
        lambda log: log.call("late", "read", 5300, {"id": "b"}, {"session": log.sessions["b"]}),
    ),
    "an expired session is listed": (
        "I11",
        lambda log: log.call("late", "list", 5300, {"agent": None}, {"sessions": list(log.sessions.values())[:3]}),
    ),
    "an end comes late": ("I11", lambda log: log.ends_at("b", 9700)),
    "a dead session stays for ever": ("I11", lambda log: log.lives_on("f", 35_005)),
    "nobody sweeps": ("I11", lambda log: setattr(log, "clocks", [replace(one, swept=600) for one in log.clocks])),
    "nobody pulses": ("I11", lambda log: log.clocks.__delitem__(slice(6, 20))),
    "a hold comes from nowhere": ("I11", lambda log: log.clocks.insert(11, Clock(0, 10_650, 9600, 16_000))),
    "a hold is too long": (
        "I11",
        lambda log: setattr(log, "clocks", [replace(one, hold_end=one.hold_end and 32_000) for one in log.clocks]),
    ),
    "somebody sets the clock": ("run", lambda log: log.change("stats", mono=12_000).change("fenced", mono=1)),
}


def refuse_bystanders(log: Log) -> None:
    """Six of them, while only another shard's master is away."""
    log.faults.append(Fault("kill a master", ["node"], 12_400, 13_500, [12_500, 13_400], shards=[1]))
    for number in range(6):
        log.call(f"refused {number}", "read", 12_600 + number, {"id": "e"}, {"error": ""}, status=503)


WRONG["others are refused while a master is lost"] = ("I8", refuse_bystanders)


@pytest.mark.parametrize("what", WRONG)
def test_a_run_in_which(what: str) -> None:
    """Each is a change of one thing in a log that is green, and told as a breach of its invariant, and no other."""
    invariant, change = WRONG[what]
    log = Log()
    change(log)
    assert {breach.invariant for breach in judge(log.history)} == {invariant}


def test_every_check_has_been_seen_to_fail() -> None:
    silent = {check.__name__ for _, check in INVARIANTS}
    for _, change in WRONG.values():
        log = Log()
        change(log)
        history = log.history
        silent -= {check.__name__ for _, check in INVARIANTS if any(check(history))}
    assert silent == set()


def freeze_a_pod(log: Log) -> None:
    log.faults.append(Fault("freeze a pod", ["pod0"], 11_900, 13_000))
    log.change("stats", status=None, lost="ReadTimeout", ended=18_000)


def share_the_machine(log: Log) -> None:
    log.faults[0] = replace(log.faults[0], load=9)
    log.change("stats", ended=21_000)


UNSURE: dict[str, Change] = {
    "a delete without an answer": lambda log: log.change("delete d", status=503, began=8800, ended=8900),
    "a cleanup without an answer": lambda log: log.change("cleanup", status=503, began=6000, ended=6100),
    "a create without an answer": lambda log: log.change("create e", status=503, answer={"error": ""}),
    "a heartbeat without an answer": lambda log: (
        log.call("maybe", "beat", 4500, {"id": "b"}, {"error": ""}, status=503)
        .call("seen", "read", 5300, {"id": "b"}, {"session": log.sessions["b"]})
        .forget("read b", "late beat b")
        .ends_at("b", 9700)
    ),
    "a pod that is frozen": freeze_a_pod,
    "a machine that many share": share_the_machine,
}


@pytest.mark.parametrize("what", UNSURE)
def test_the_checker_allows_for(what: str) -> None:
    """What may have happened, or not, is no breach either way."""
    log = Log()
    UNSURE[what](log)
    assert judge(log.history) == []


def tell_of_what_is_undone(log: Log) -> None:
    """An event is read that is not there any more, and then everything anew."""
    log.call("again", "feed", 39_200, {"after": "10000-0"}, log.calls["feed"].answer)
    log.change("feed", answer={"positions": [*log.calls["feed"].answer["positions"], "10000-0"]})
    log.call("gone", "feed", 39_100, {"after": "10000-0"}, {"error": ""}, status=410)


def create_in_vain(log: Log) -> None:
    asked = {**log.calls["create e"].asked}
    log.call("create g", "create", 10_000, asked, {"session": {**log.sessions["e"], "id": "g"}}, status=201)


def heartbeat_in_vain(log: Log) -> None:
    """The session ends as if it had not been."""
    log.sessions["h"] = {**log.sessions["b"], "id": "h", "task": "t5", "tag": "h"}
    log.create("h", 8600).end("h", "expired", 13_000).forget("feed")
    log.call("undone", "beat", 10_000, {"id": "h"}, {"updated": True, "due": 14_010})


def delete_in_vain(log: Log) -> None:
    log.call("undone", "delete", 10_000, {"id": "e"}, {"deleted": True})


def miss_what_comes_back(log: Log) -> None:
    log.call("missing", "read", 10_000, {"id": "e"}, {"error": ""}, status=404)


UNDONE: dict[str, tuple[set[str], Change]] = {
    "an acknowledged create": ({"I1"}, create_in_vain),
    "an acknowledged delete": ({"I3"}, delete_in_vain),
    "an acknowledged heartbeat": ({"I1"}, heartbeat_in_vain),
    "an end that was seen": ({"I1"}, miss_what_comes_back),
    "an event that was told": ({"I3", "I8"}, tell_of_what_is_undone),
}
"""At 10,000."""


@pytest.mark.parametrize("what", UNDONE)
def test_a_failover_may_undo(what: str) -> None:
    """Within a second before the master was lost, in its own shards; nothing else."""
    invariants, change = UNDONE[what]
    log = Log()
    change(log)
    assert {breach.invariant for breach in judge(log.history)} == invariants
    log = lose_a_master(Log(), 10_900)
    change(log)
    assert judge(log.history) == []
    for at, shard in [(11_100, 0), (9900, 0), (10_900, 1)]:
        log = lose_a_master(Log(), at, shard)
        change(log)
        assert {breach.invariant for breach in judge(log.history)} >= {min(invariants)}, (at, shard)


def test_who_has_read_what_a_failover_undid_is_not_led_on() -> None:
    """He would miss what came instead."""
    log = lose_a_master(Log(), 500)
    positions = log.calls["feed"].answer["positions"]
    positions.insert(7, "7-5")
    assert {breach.invariant for breach in judge(log.history)} == {"I3"}


def test_a_pulse_that_a_failover_undid_makes_the_hold_longer() -> None:
    log = Log()
    log.clocks.insert(20, Clock(0, 19_900, swept=19_600))
    assert {breach.invariant for breach in judge(log.history)} == {"I11"}
    assert judge(lose_a_master(log, 19_950).history) == []


def test_a_sweep_that_a_failover_undid_is_none() -> None:
    """One of the three that an end may take."""
    log = Log().ends_at("b", 9000)
    assert {breach.invariant for breach in judge(log.history)} == {"I11"}
    assert judge(lose_a_master(log, 6000).history) == []


def test_a_lost_master_is_an_outage_of_its_own_shards_only() -> None:
    """Who lives in another has no right to a hold by it."""
    log = Log().silence_f().ends_at("f", 25_100)
    assert {breach.invariant for breach in judge(log.history)} == {"I9"}
    log.faults = [replace(log.faults[0], kind="kill a master", hits=["node"], shards=[1])]
    assert "I9" not in {breach.invariant for breach in judge(log.history)}
