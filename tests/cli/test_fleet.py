"""The simulated fleet against a tracker in this file, which keeps its word or breaks it on purpose; time is moved."""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar
from urllib.parse import unquote
from uuid import UUID

import httpx
import pytest

from tracker.cli.fleet.audit import Audit, Session
from tracker.cli.fleet.calls import CONNECTIONS, TIMEOUT_SECONDS, Answer, Calls, Kind, Tally
from tracker.cli.fleet.feed import Feed
from tracker.cli.fleet.lanes import Lanes
from tracker.cli.fleet.plan import DESCRIPTION_CUT, Plan
from tracker.cli.fleet.simulation import Refused, Report, Simulation

T = TypeVar("T")
SMALL = Plan(agents=6, seconds=20, ttl=3, sweep=1, crash_rate=0.3, retry_rate=0.3, seed=7)
LATENCY_SECONDS = 0.002


class MovedTime(selectors.DefaultSelector):
    """Does not wait for time to pass, but moves it."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing is going to happen"
        ready = super().select(0)
        self.now += 0 if ready else max(timeout, 0)
        return ready


class MovedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._moved = MovedTime()
        super().__init__(self._moved)

    def time(self) -> float:
        return self._moved.now


def moved(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        return runner.run(work)


@dataclass
class Request:
    at: float
    kind: Kind
    target: str
    body: dict[str, Any]


class Tracker:
    """A tracker as small as it can be that keeps its word. Subclasses break it, one way each."""

    sweep = 1.0

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.deadlines: dict[str, float] = {}
        self.events: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.at_once = 0
        self.most_at_once = 0
        self.swept = 0.0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(LATENCY_SECONDS)
        self.at_once -= 1
        return await self.answer(request)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self.now - self.swept >= self.sweep:
            self.swept = self.now
            for session in [name for name, deadline in self.deadlines.items() if deadline <= self.now]:
                self.end(session, "expired")
        if request.url.path == "/ready":
            return httpx.Response(200, json=self.ready())
        path = request.url.raw_path.decode().partition("?")[0].removeprefix("/api/active-sessions").strip("/")
        body = json.loads(request.content or b"{}")
        noun, _, target = path.partition("/")
        kind: Kind
        act: Callable[[], httpx.Response]
        match request.method, noun:
            case "POST", "":
                kind, act = Kind.CREATE, lambda: self.create(body)
            case "POST", "cleanup":
                kind, act = Kind.CLEANUP, lambda: self.cleanup(body)
            case "PUT", "heartbeat":
                kind, act = Kind.HEARTBEAT, lambda: self.heartbeat(unquote(target))
            case "PUT", "provider-session":
                kind, act = Kind.PROVIDER, lambda: self.provider(unquote(target), body)
            case "DELETE", "by-task":
                kind, act = Kind.DELETE, lambda: self.delete(unquote(target))
            case "GET", "":
                kind, act = Kind.LIST, lambda: self.listing(request.url.params["agentId"])
            case "GET", "events":
                kind, act = Kind.EVENTS, lambda: self.feed(dict(request.url.params))
            case _:
                raise AssertionError(f"no runner makes this call: {request.method} {request.url}")
        self.requests.append(Request(self.now, kind, unquote(target), body))
        return act()

    def ready(self) -> dict[str, Any]:
        return {"status": "ready", "store": {}}

    def live(self, task: str) -> dict[str, Any] | None:
        for name, session in self.sessions.items():
            if session["taskId"] == task and self.deadlines[name] > self.now:
                return session
        return None

    def end(self, name: str, reason: str) -> None:
        del self.deadlines[name]
        self.tell(self.sessions.pop(name), reason)

    def tell(self, session: dict[str, Any], reason: str) -> None:
        event = {"id": str(len(self.events) + 1), "type": "session.ended", "reason": reason, "session": session}
        self.events.append(event)

    def create(self, body: dict[str, Any]) -> httpx.Response:
        if earlier := self.live(body["taskId"]):
            self.end(earlier["id"], "replaced")
        session = {"id": f"session-{len(self.requests)}", "providerSessionId": None} | body
        self.sessions[session["id"]] = session
        self.deadlines[session["id"]] = self.now + body["ttlSeconds"]
        return httpx.Response(201, json={"session": session})

    def cleanup(self, body: dict[str, Any]) -> httpx.Response:
        mine = [name for name, session in self.sessions.items() if session["agentId"] == body["agentId"]]
        for name in mine:
            self.end(name, "cleaned")
        return httpx.Response(200, json={"cleaned": len(mine)})

    def heartbeat(self, task: str) -> httpx.Response:
        if session := self.live(task):
            self.deadlines[session["id"]] = self.now + session["ttlSeconds"]
        return httpx.Response(200, json={"updated": session is not None})

    def provider(self, task: str, body: dict[str, Any]) -> httpx.Response:
        if session := self.live(task):
            session |= body
        return httpx.Response(200, json={"updated": session is not None})

    def delete(self, task: str) -> httpx.Response:
        if session := self.live(task):
            self.end(session["id"], "deleted")
        return httpx.Response(200, json={"deleted": session is not None})

    def listing(self, agent: str) -> httpx.Response:
        mine = [session for name, session in self.sessions.items() if session["agentId"] == agent]
        return httpx.Response(200, json={"sessions": [session for session in mine if self.live(session["taskId"])]})

    def feed(self, params: dict[str, str]) -> httpx.Response:
        assert params["type"] == "session.ended"
        after = int(params.get("after", 0))
        page = self.events[after : after + int(params["limit"])]
        return httpx.Response(200, json={"events": page, "next": str(after + len(page))})


def client_of(tracker: Tracker) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(tracker), base_url="http://tracker.test")


def simulate(tracker: Tracker, plan: Plan = SMALL, *, nonce: str = "n", interrupt_after: float | None = None) -> Report:
    """Run a whole simulation in moved time; `interrupt_after` so many seconds comes a Ctrl-C."""

    async def run() -> Report:
        async with client_of(tracker) as client:
            simulation = Simulation(client, plan, nonce)
            running = asyncio.create_task(simulation.run())
            if interrupt_after is not None:
                await asyncio.sleep(interrupt_after)
                running.cancel()
            await running
            return simulation.report()

    return moved(run())


def problems(report: Report) -> dict[str, int]:
    return {problem["problem"]: problem["count"] for problem in report["problems"]}


def by_run(tracker: Tracker, kind: Kind) -> dict[str, list[Request]]:
    requests = defaultdict(list)
    for request in tracker.requests:
        if request.kind is kind:
            requests[request.target or request.body["taskId"]].append(request)
    return requests


# --- a tracker that keeps its word ------------------------------------------------------------------------------------


def test_a_tracker_that_keeps_its_word_is_found_right() -> None:
    report = simulate(Tracker())
    assert report["ok"]
    assert problems(report) == {}
    for ending in report["endings"]:
        assert ending["sessions"] == ending["right"] > 0, ending
    assert (report["feed"], report["late"], report["left"], report["stopped"]) == ("followed", 0, 0, False)


def test_the_report_counts_the_calls_that_arrived_by_kind_and_status() -> None:
    tracker = Tracker()
    report = simulate(tracker)
    arrived = Counter(request.kind for request in tracker.requests)
    assert {row["kind"]: row["calls"] for row in report["calls"]} == arrived
    statuses = {row["kind"]: row["statuses"] for row in report["calls"]}
    assert statuses["create"] == {"201": arrived[Kind.CREATE]}
    assert statuses["heartbeat"] == {"200": arrived[Kind.HEARTBEAT]}
    for row in report["calls"]:
        assert row["p50Ms"] == pytest.approx(2) == row["p99Ms"] == row["maxMs"]


def test_every_session_is_accounted_for() -> None:
    tracker = Tracker()
    report = simulate(tracker)
    assert sum(ending["sessions"] for ending in report["endings"]) == len(tracker.events)
    assert tracker.sessions == {}


def test_an_agent_boots_with_a_cleanup_of_its_own_and_leaves_with_one() -> None:
    tracker = Tracker()
    simulate(tracker)
    agents: dict[str, list[Kind]] = defaultdict(list)
    for request in tracker.requests:
        if agent := request.body.get("agentId"):
            agents[agent].append(request.kind)
    assert len(agents) == SMALL.agents
    for kinds in agents.values():
        assert kinds[0] is kinds[-1] is Kind.CLEANUP
        assert Kind.CLEANUP not in kinds[1:-1]


def test_heartbeats_of_a_run_keep_the_throttle_and_never_let_the_ttl_pass() -> None:
    tracker = Tracker()
    simulate(tracker, Plan(agents=5, seconds=60, ttl=30, crash_rate=0, retry_rate=0, seed=3))
    gaps = [
        after.at - before.at
        for requests in by_run(tracker, Kind.HEARTBEAT).values()
        for before, after in pairwise(requests)
    ]
    assert len(gaps) > 20
    assert min(gaps) >= 5
    assert max(gaps) < 20


def test_a_short_ttl_makes_heartbeats_faster() -> None:
    assert (Plan(ttl=3).beat, Plan(ttl=15).beat, Plan(ttl=1800).beat) == (1, 5, 5)


def test_a_run_reports_its_provider_session_once_per_attempt() -> None:
    tracker = Tracker()
    simulate(tracker)
    creates = by_run(tracker, Kind.CREATE)
    for task, requests in by_run(tracker, Kind.PROVIDER).items():
        assert len(requests) <= len(creates[task])
        assert len({request.body["providerSessionId"] for request in requests}) == len(requests)


def test_creates_carry_what_runners_send_with_the_description_cut() -> None:
    tracker = Tracker()
    simulate(tracker)
    bodies = [request.body for requests in by_run(tracker, Kind.CREATE).values() for request in requests]
    assert max(len(body["taskDescription"]) for body in bodies) == DESCRIPTION_CUT
    for body in bodies:
        assert UUID(body["agentId"]).version == 4
        assert body["ttlSeconds"] == SMALL.ttl
        assert set(body) == {
            "agentId",
            "triggerType",
            "taskId",
            "taskDescription",
            "runnerSessionId",
            "runtimeInstanceId",
            "ttlSeconds",
        }


def test_some_runs_are_retried_by_the_same_agent_and_some_never_delete() -> None:
    tracker = Tracker()
    simulate(tracker)
    creates, deletes = by_run(tracker, Kind.CREATE), by_run(tracker, Kind.DELETE)
    retried = [requests for requests in creates.values() if len(requests) > 1]
    assert retried
    assert all(len({request.body["agentId"] for request in requests}) == 1 for requests in retried)
    assert creates.keys() - deletes.keys()
    assert all(len(requests) == 1 for requests in deletes.values())


def test_rates_of_zero_and_one_mean_never_and_always() -> None:
    never = simulate(Tracker(), replace(SMALL, crash_rate=0, retry_rate=0))
    assert [ending["sessions"] > 0 for ending in never["endings"]] == [True, False, False]
    tracker = Tracker()
    always = simulate(tracker, replace(SMALL, crash_rate=1, retry_rate=1))
    assert always["ok"]
    assert always["endings"][2]["right"] > 0
    assert max(len(requests) for requests in by_run(tracker, Kind.CREATE).values()) == 3


def test_the_same_seed_draws_the_same_runs_and_another_seed_others() -> None:
    def drawn(plan: Plan) -> list[object]:
        return [plan.run(agent, slot, number) for agent in range(3) for slot in range(2) for number in range(3)]

    assert drawn(Plan(seed=1)) == drawn(Plan(seed=1))
    assert drawn(Plan(seed=1)) != drawn(Plan(seed=2))


def test_two_simulations_with_one_seed_run_side_by_side_and_share_nothing() -> None:
    tracker = Tracker()

    async def both() -> list[Report]:
        async with client_of(tracker) as client:
            sides = [Simulation(client, SMALL, nonce) for nonce in ("a", "b")]
            await asyncio.gather(*(side.run() for side in sides))
            return [side.report() for side in sides]

    assert [report["ok"] for report in moved(both())] == [True, True]
    creates = [request.body for request in tracker.requests if request.kind is Kind.CREATE]
    for name in ("agentId", "taskId", "runnerSessionId"):
        here, there = ({body[name] for body in creates if body["runtimeInstanceId"] == f"sim-{x}"} for x in "ab")
        assert here
        assert there
        assert not here & there


def test_the_fleet_winds_down_in_its_time() -> None:
    tracker = Tracker()
    simulate(tracker)
    last = {kind: max(request.at for request in tracker.requests if request.kind is kind) for kind in Kind}
    assert 18 < last[Kind.HEARTBEAT] - tracker.requests[0].at < 20.1
    assert last[Kind.DELETE] - tracker.requests[0].at < 20.1


def test_a_large_feed_from_before_is_skipped_page_by_page() -> None:
    tracker = Tracker()
    for number in range(2500):
        tracker.tell({"id": f"old-{number}", "agentId": "somebody", "providerSessionId": None}, "deleted")
    assert simulate(tracker)["ok"]
    first = [request.at for request in tracker.requests if request.kind is Kind.EVENTS][:4]
    assert len(first) == 4
    assert max(first) < min(request.at for request in tracker.requests if request.kind is Kind.CREATE)


def test_connections_are_bounded_however_many_runs_there_are() -> None:
    tracker = Tracker()
    report = simulate(tracker, Plan(agents=150, seconds=3, runs_per_agent=2, ttl=1, sweep=1, seed=1))
    assert report["ok"]
    assert 20 < tracker.most_at_once <= CONNECTIONS


# --- trackers that break it -------------------------------------------------------------------------------------------


class Immortal(Tracker):
    """Never lets a session expire."""

    sweep = 1e9

    def live(self, task: str) -> dict[str, Any] | None:
        return next((session for session in self.sessions.values() if session["taskId"] == task), None)


class Unlisted(Tracker):
    """Lists nothing."""

    def listing(self, agent: str) -> httpx.Response:
        return httpx.Response(200, json={"sessions": []})


class Lingering(Tracker):
    """Lists deleted sessions for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: dict[str, dict[str, Any]] = {}

    def create(self, body: dict[str, Any]) -> httpx.Response:
        response = super().create(body)
        self.ever |= self.sessions
        return response

    def listing(self, agent: str) -> httpx.Response:
        return httpx.Response(200, json={"sessions": list(self.ever.values())})


class Forgetful(Tracker):
    """Loses each tenth session at its first heartbeat."""

    def heartbeat(self, task: str) -> httpx.Response:
        session = self.live(task)
        if session and session["id"].endswith("0"):
            del self.sessions[session["id"]], self.deadlines[session["id"]]
        return super().heartbeat(task)


class Hasty(Tracker):
    """Lets sessions expire after half their TTL."""

    def create(self, body: dict[str, Any]) -> httpx.Response:
        response = super().create(body)
        self.deadlines[list(self.deadlines)[-1]] = self.now + body["ttlSeconds"] / 2
        return response

    def heartbeat(self, task: str) -> httpx.Response:
        response = super().heartbeat(task)
        if session := self.live(task):
            self.deadlines[session["id"]] = self.now + session["ttlSeconds"] / 2
        return response


class Repeating(Tracker):
    """Tells each end twice."""

    def tell(self, session: dict[str, Any], reason: str) -> None:
        super().tell(session, reason)
        super().tell(session, reason)


class RepeatingLate(Tracker):
    """Tells an end a second time once the session is long judged."""

    def tell(self, session: dict[str, Any], reason: str) -> None:
        super().tell(session, reason)
        asyncio.get_running_loop().call_later(5, super().tell, session, reason)


class Silent(Tracker):
    """Tells no ends."""

    def tell(self, session: dict[str, Any], reason: str) -> None:
        pass


class Mistaken(Tracker):
    """Calls every end a cleanup."""

    def tell(self, session: dict[str, Any], reason: str) -> None:
        super().tell(session, "cleaned")


class Mute(Tracker):
    """Tells ends without the provider session."""

    def tell(self, session: dict[str, Any], reason: str) -> None:
        super().tell(session | {"providerSessionId": None}, reason)


class Inventive(Tracker):
    """Tells of sessions that were never made."""

    def delete(self, task: str) -> httpx.Response:
        if session := self.live(task):
            self.tell(session | {"id": f"invented-{task}"}, "deleted")
        return super().delete(task)


class Confused(Tracker):
    """Answers each create with the session made before."""

    def create(self, body: dict[str, Any]) -> httpx.Response:
        before = list(self.sessions.values())[-1:]
        response = super().create(body)
        return httpx.Response(201, json={"session": before[0]}) if before else response


class Deaf(Tracker):
    """Knows no ttlSeconds."""

    def create(self, body: dict[str, Any]) -> httpx.Response:
        response = super().create(body)
        return httpx.Response(201, json={"session": response.json()["session"] | {"ttlSeconds": 1800}})


class Unwell(Tracker):
    """Fails each seventh call."""

    def heartbeat(self, task: str) -> httpx.Response:
        if len(self.requests) % 7 == 0:
            return httpx.Response(503, json={"error": "The store cannot answer in time"}, headers={"Retry-After": "1"})
        return super().heartbeat(task)


class Broken(Tracker):
    """Fails each create, delete and provider report."""

    def create(self, body: dict[str, Any]) -> httpx.Response:
        super().create(body)
        return httpx.Response(500, json={"error": "Internal error"})


class Undeleting(Tracker):
    """Fails each delete."""

    def delete(self, task: str) -> httpx.Response:
        return httpx.Response(500, text="oops")


class Unreporting(Tracker):
    """Takes the provider session, then says that it failed."""

    def provider(self, task: str, body: dict[str, Any]) -> httpx.Response:
        super().provider(task, body)
        return httpx.Response(500, json=["oops"])


class Garbled(Tracker):
    """Answers heartbeats with something else."""

    def heartbeat(self, task: str) -> httpx.Response:
        super().heartbeat(task)
        return httpx.Response(200, json={"updated": "yes"})


class Slow(Tracker):
    """Hangs on each delete."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            await asyncio.sleep(60)
        return await super().answer(request)


class Gone(Tracker):
    """Drops the connection on each delete."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            raise httpx.ReadError("connection reset")
        return await super().answer(request)


class Babbling(Tracker):
    """Puts nonsense between its events and its sessions."""

    def feed(self, params: dict[str, str]) -> httpx.Response:
        page = super().feed(params).json()
        odd = {"type": "session.ended", "reason": {}, "session": {"id": [1], "providerSessionId": [2]}}
        nonsense: list[Any] = [
            None,
            [],
            {"type": "session.ended"},
            {"type": "session.created", "session": {"id": []}},
            odd,
        ]
        events = [*nonsense, *page["events"]] if page["events"] else []
        return httpx.Response(200, json={"events": events, "next": page["next"]})

    def listing(self, agent: str) -> httpx.Response:
        return httpx.Response(200, json={"sessions": [None, 5, {"id": {}}, *super().listing(agent).json()["sessions"]]})


@pytest.mark.parametrize(
    ("tracker", "found"),
    [
        (Immortal, {"a dead session is still listed after its TTL"}),
        (Unlisted, {"a live run is not listed"}),
        (
            Lingering,
            {
                "a session is still listed after its delete",
                "a session is still listed after its task was started anew",
                "a dead session is still listed after its TTL",
            },
        ),
        (Forgetful, {"a live run vanished"}),
        (Hasty, {"a session expired before its TTL", "a live run vanished"}),
        (Repeating, {"a session has two end events"}),
        (RepeatingLate, {"a session has two end events"}),
        (
            Silent,
            {
                "a session has no end event, it should have one as deleted",
                "a session has no end event, it should have one as replaced",
                "a session has no end event, it should have one as expired",
            },
        ),
        (
            Mistaken,
            {
                "a session ended as cleaned instead of deleted",
                "a session ended as cleaned instead of replaced",
                "a session ended as cleaned instead of expired",
            },
        ),
        (Mute, {"an end event does not tell the provider session that was reported"}),
        (Inventive, {"an end event tells of a session that nobody made"}),
        (Confused, {"create was answered with another run's session"}),
        (Deaf, {"create did not take ttlSeconds: crashed runs will outlive the simulation"}),
        (Unwell, {"heartbeat: 503"}),
        (Broken, {"create: 500"}),
        (Undeleting, {"delete: 500"}),
        (Unreporting, {"provider-session: 500"}),
        (Garbled, {"heartbeat: 200 unreadable"}),
        (Slow, {"delete: timeout"}),
        (Gone, {"delete: no answer"}),
    ],
)
def test_a_broken_promise_is_found_and_told(tracker: type[Tracker], found: set[str]) -> None:
    report = simulate(tracker())
    assert not report["ok"]
    assert problems(report).keys() == found


@pytest.mark.parametrize("tracker", [Immortal, Lingering, Repeating, Silent, Mistaken, Mute])
def test_the_sessions_of_a_broken_promise_are_counted_as_wrong(tracker: type[Tracker]) -> None:
    for ending in simulate(tracker())["endings"]:
        wrong = 0 if tracker is Immortal and ending["reason"] != "expired" else ending["sessions"]
        if tracker is not Mute:  # some of its runs ended before they reported a provider session
            assert (ending["wrong"], ending["right"]) == (wrong, ending["sessions"] - wrong)
        assert ending["wrong"] or not wrong


def test_nonsense_in_the_feed_and_the_listing_is_no_end_of_anything() -> None:
    report = simulate(Babbling())
    assert report["ok"], report["problems"]


class Tardy(Tracker):
    """Ends sessions at once, but answers late."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        response = await super().answer(request)
        if request.method in {"DELETE", "POST"}:
            await asyncio.sleep(2)
        return response


def test_a_run_whose_end_is_under_way_need_not_be_listed_any_more() -> None:
    report = simulate(Tardy(), replace(SMALL, ttl=6, seconds=40))
    assert report["ok"], report["problems"]


def test_a_failed_call_is_told_with_what_the_tracker_said() -> None:
    (problem,) = simulate(Unwell())["problems"]
    assert problem["example"] == "The store cannot answer in time"
    assert problem["count"] > 1


def test_a_call_is_given_up_after_the_timeout() -> None:
    row = next(row for row in simulate(Slow())["calls"] if row["kind"] == "delete")
    assert row["statuses"].keys() == {"timeout"}
    assert row["maxMs"] == pytest.approx(TIMEOUT_SECONDS * 1000)


# --- older trackers, small feeds, outages -----------------------------------------------------------------------------


class Feedless(Tracker):
    """An older tracker, which has no feed."""

    def feed(self, params: dict[str, str]) -> httpx.Response:
        return httpx.Response(404, json={"error": "Not found"})


class FeedlessImmortal(Feedless, Immortal):
    pass


class Shortlived(Tracker):
    """Its feed holds no position for long."""

    def feed(self, params: dict[str, str]) -> httpx.Response:
        if len(self.events) > 10:
            return httpx.Response(410, json={"error": "The feed no longer holds this position"})
        return super().feed(params)


class Unreadable(Tracker):
    """Its feed and its listing cannot be read."""

    def feed(self, params: dict[str, str]) -> httpx.Response:
        return httpx.Response(503, json={"error": "The store cannot answer in time"})

    def listing(self, agent: str) -> httpx.Response:
        return httpx.Response(503, json={"error": "The store cannot answer in time"})


class Held(Immortal):
    """Had an outage: nothing expires for its first minute, and it says so. It sweeps some time after that."""

    begun: float | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.begun = self.begun or self.now
        if self.now > self.begun + 61:
            self.sweep = 1.0
        return await super().answer(request)

    def live(self, task: str) -> dict[str, Any] | None:
        held = self.begun and self.now < self.begun + 60
        return super().live(task) if held else Tracker.live(self, task)

    def ready(self) -> dict[str, Any]:
        held = self.begun and self.now < self.begun + 60
        return {"status": "ready", "store": {"heldUntil": "later"} if held else {}}


class HeldForEver(Held):
    """Never comes out of it."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.begun = self.now
        return await super().answer(request)


def test_without_a_feed_the_listing_alone_is_judged() -> None:
    report = simulate(Feedless())
    assert (report["ok"], report["feed"]) == (True, "none")
    assert all(ending["sessions"] == ending["right"] > 0 for ending in report["endings"])
    broken = simulate(FeedlessImmortal())
    assert problems(broken).keys() == {"a dead session is still listed after its TTL"}


class Nextless(Tracker):
    """Says where to go on only where there is something to go on from."""

    def feed(self, params: dict[str, str]) -> httpx.Response:
        page = super().feed(params).json()
        return httpx.Response(200, json=page if page["events"] else {"events": [], "next": None})


def test_a_feed_is_at_its_end_where_it_names_no_next_page() -> None:
    tracker, usual = Nextless(), Tracker()
    report = simulate(tracker)
    assert report["ok"], report["problems"]
    simulate(usual)
    reads, usual_reads = (sum(request.kind is Kind.EVENTS for request in side.requests) for side in (tracker, usual))
    assert 0 < reads <= usual_reads


def test_a_feed_that_drops_events_unread_is_told_and_the_listing_judged_from_then_on() -> None:
    report = simulate(Shortlived())
    assert problems(report) == {"the feed dropped events before they could be read": 1}
    assert report["feed"] == "lost"
    assert all(ending["sessions"] == ending["right"] for ending in report["endings"])


def test_what_a_tracker_does_not_let_one_see_is_not_judged() -> None:
    report = simulate(Unreadable())
    assert problems(report).keys() == {"list: 503", "events: 503"}
    assert all(ending["right"] == ending["wrong"] == 0 < ending["sessions"] for ending in report["endings"])


def test_a_hold_after_an_outage_is_waited_for() -> None:
    report = simulate(Held())
    assert report["ok"], report["problems"]
    assert report["endings"][2]["right"] > 0


class Restarted(Tracker):
    """Fails for ten seconds; then it lets nothing expire until it has noticed that, three seconds later."""

    begun: float | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.begun = self.begun or self.now
        if 8 <= self.now - self.begun < 18:
            return httpx.Response(503, json={"error": "The store cannot answer now"})
        if 18 <= self.now - self.begun < 21:
            self.deadlines = dict.fromkeys(self.deadlines, self.now + 1)
        return await super().answer(request)


def test_an_outage_is_told_as_failed_calls_and_nothing_else() -> None:
    report = simulate(Restarted(), replace(SMALL, sweep=3))
    assert {problem.partition(": ")[2] for problem in problems(report)} == {"503"}
    assert not any(ending["wrong"] for ending in report["endings"])


def test_a_hold_without_end_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.cli.fleet.audit.HOLD_SECONDS_MAX", 120)
    report = simulate(HeldForEver(), replace(SMALL, seconds=5))
    assert problems(report).keys() == {"a dead session is still listed after its TTL"}


# --- stopping early ---------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_at_once_reports_and_cleans_up() -> None:
    tracker = Tracker()
    report = simulate(tracker, interrupt_after=10)
    assert report["ok"], report["problems"]
    assert report["stopped"]
    assert report["left"] > 0
    assert tracker.requests[-1].at - tracker.requests[0].at < 10.5
    assert tracker.sessions == {}
    assert sum(ending["right"] for ending in report["endings"]) > 0


def test_ctrl_c_while_crashed_runs_are_awaited_leaves_those_unjudged() -> None:
    tracker = Tracker()
    report = simulate(tracker, replace(SMALL, ttl=300, crash_rate=1, retry_rate=0), interrupt_after=60)
    assert (report["ok"], report["stopped"]) == (True, True)
    (ending,) = (ending for ending in report["endings"] if ending["reason"] == "expired")
    assert ending["sessions"] > ending["right"] == ending["wrong"] == 0
    assert tracker.sessions == {}


def test_leave_leaves_what_still_runs() -> None:
    tracker = Tracker()
    report = simulate(tracker, replace(SMALL, crash_rate=0, leave=True))
    assert report["ok"], report["problems"]
    assert report["left"] > 0
    cleanups = [request.at for request in tracker.requests if request.kind is Kind.CLEANUP]
    assert len(cleanups) == SMALL.agents
    assert "cleaned" not in {event["reason"] for event in tracker.events}


# --- whether there is a tracker at all --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (httpx.ConnectError("refused"), "no tracker answers at http://tracker.test: start one with `tracker serve`"),
        (httpx.ReadTimeout("slow"), "no tracker answers at http://tracker.test: start one with `tracker serve`"),
        (httpx.Response(401, json={"error": "Unauthorized"}), "set TRACKER_API_KEY to one of its write keys"),
        (httpx.Response(403, json={"error": "Read only"}), "may only read at http://tracker.test: set TRACKER_API_KEY"),
        (httpx.Response(503, json={"error": "The store is down"}), "gave 503 (The store is down); see to it"),
        (httpx.Response(200, text="<html>hello</html>"), "is no working tracker"),
        (httpx.Response(404), "gave 404; see to it, or name another with --url or TRACKER_URL"),
    ],
)
def test_without_a_tracker_to_use_it_says_in_one_line_what_to_do(
    answer: httpx.Response | httpx.HTTPError, advice: str
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return answer

    async def check() -> None:
        transport = httpx.MockTransport(respond)
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker.test") as client:
            await Simulation(client, SMALL, "n").check()

    with pytest.raises(Refused) as refused:
        moved(check())
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_check_ends_nobodys_session() -> None:
    tracker = Tracker()

    async def check() -> None:
        async with client_of(tracker) as client:
            await Simulation(client, SMALL, "n").check()

    moved(check())
    assert [(request.kind, request.body) for request in tracker.requests] == [
        (Kind.LIST, {}),
        (Kind.CLEANUP, {"agentId": "sim-n"}),
    ]


# --- the parts --------------------------------------------------------------------------------------------------------


def an_audit() -> Audit:
    calls = Calls(client_of(Tracker()))
    return Audit(calls, Feed(calls), Plan(ttl=10), ["a"])


def created(audit: Audit) -> Session:
    body = {"id": "s", "agentId": "a", "taskId": "t", "ttlSeconds": 10.0}
    session = audit.created("a", "t", Answer("201", 0.0, 0.1, body), None)
    assert session
    return session


def test_a_run_that_missed_its_own_deadline_may_have_expired() -> None:
    audit = an_audit()
    audit.renewed(created(audit), Answer("200", 10.0, 10.1, False))
    assert (audit.late, audit.problems, audit.ended) == (1, {}, {"expired": 1})


def test_a_run_that_is_gone_before_its_deadline_has_vanished() -> None:
    audit = an_audit()
    audit.renewed(created(audit), Answer("200", 9.8, 9.9, False))
    assert audit.problems == {"a live run vanished": (1, "t")}


def test_an_expired_session_that_takes_a_heartbeat_has_come_back_from_the_dead() -> None:
    audit = an_audit()
    session = created(audit)
    audit.renewed(session, Answer("200", 10.0, 10.1, False))
    audit.renewed(session, Answer("200", 12.0, 12.1, True))
    assert audit.problems == {"a session that had ended was renewed": (1, "t")}


def test_a_late_retry_may_find_its_session_expired_or_replace_it() -> None:
    for received, reasons in ((9.9, ("replaced",)), (10.1, ("replaced", "expired"))):
        audit = an_audit()
        session = created(audit)
        body = {"id": "s2", "agentId": "a", "taskId": "t", "ttlSeconds": 10}
        audit.created("a", "t", Answer("201", received - 0.1, received, body), session)
        assert session.reasons == reasons


def test_a_heartbeat_that_got_no_answer_may_have_renewed_or_not() -> None:
    audit = an_audit()
    session = created(audit)
    audit.renewed(session, Answer("timeout", 3.0, 8.0))
    assert (session.kept, session.gone) == (10.0, 18.0)


async def test_lanes_reuse_the_latest_connection_and_open_no_more_than_are_used_at_once() -> None:
    opened: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        while await reader.readline():
            while await reader.readline() != b"\r\n":
                pass
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(transport=Lanes(5), base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(4):
            assert (await client.get("/")).json() == {}
        assert len(opened) == 1
        await asyncio.gather(*(client.get("/") for _ in range(3)))
        assert len(opened) == 3


async def test_a_lane_is_free_again_after_a_failed_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with httpx.AsyncClient(transport=Lanes(1), base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await client.get("/")


def test_only_so_many_judged_sessions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.cli.fleet.audit.REMEMBERED", 5)
    assert simulate(Tracker())["ok"]
    assert "an end event tells of a session that nobody made" in problems(simulate(RepeatingLate()))


def test_percentiles_are_those_of_all_calls_with_three_digits() -> None:
    tally = Tally()
    for number in range(1, 1001):
        tally.add("200", number / 10_000)
    assert tally.percentile(50) == pytest.approx(0.05)
    assert tally.percentile(99) == pytest.approx(0.099)
    assert (tally.percentile(100), tally.longest) == (0.1, 0.1)
    tally.add("200", 0.0)
    assert tally.percentile(0) == 0


def test_latencies_take_bounded_memory() -> None:
    tally = Tally()
    for number in range(100_000):
        tally.add("200", 0.001 + number / 1e6)
    assert len(tally.latencies) < 2000


def test_without_calls_a_percentile_is_zero() -> None:
    assert Tally().percentile(99) == 0


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("agents", 0, "--agents must be between 1 and 10,000, not 0"),
        ("agents", 10_001, "--agents must be between 1 and 10,000, not 10001"),
        ("seconds", 86_401, "--seconds must be between 1 and 86,400, not 86401"),
        ("seconds", float("nan"), "--seconds must be between 1 and 86,400, not nan"),
        ("ttl", 0.5, "--ttl must be between 1 and 86,400, not 0.5"),
        ("runs_per_agent", 0, "--runs-per-agent must be between 1 and 100, not 0"),
        ("crash_rate", 1.5, "--crash-rate must be between 0 and 1, not 1.5"),
        ("retry_rate", -1, "--retry-rate must be between 0 and 1, not -1"),
        ("sweep", -1, "--sweep-interval must be between 0 and 3,600, not -1"),
    ],
)
def test_an_option_out_of_bounds_is_one_clear_line(option: str, value: float, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        Plan(**{option: value})  # type: ignore[arg-type]


def test_many_agents_with_many_runs_are_too_many() -> None:
    with pytest.raises(ValueError, match="at most 20,000 runs at the same time"):
        Plan(agents=10_000, runs_per_agent=3)
