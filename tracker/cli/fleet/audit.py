"""Whether the tracker kept its word: every session that the fleet made, judged by the listing and by the feed."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tracker.cli.fleet.calls import Answer, Calls, Kind
from tracker.cli.fleet.feed import Feed
from tracker.cli.fleet.plan import Plan

SLACK_SECONDS = 2.0  # for the answers' way here, on top of TTL and sweep interval
PATIENCE_SECONDS = 10.0  # with a tracker that does not answer the audit itself
HOLD_SECONDS_MAX = 3600.0
POLL_SECONDS = 1.0
REMEMBERED = 100_000  # judged sessions, to tell a second end event from the first
LISTINGS = 16  # at a time: heartbeats go first

STILL_LISTED = {
    "deleted": "a session is still listed after its delete",
    "replaced": "a session is still listed after its task was started anew",
    "expired": "a dead session is still listed after its TTL",
}


@dataclass(slots=True, eq=False)
class Session:
    """One session as far as its answers told. Times are event loop time (seconds)."""

    id: str
    agent: str
    task: str
    kept: float  # until then the tracker has to keep it: TTL after the last renewal was sent
    gone: float  # from then on it may not: TTL after the last possible renewal was answered
    providers: tuple[str | None, ...] = (None,)  # what its end event may tell as provider session
    ending: bool = False  # a call that ends it is under way
    reasons: tuple[str, ...] = ()  # how it may end; empty while it runs
    due: float = math.inf  # when it must have ended for everybody to see
    told: str | None = None  # the reason in its end event
    faulty: bool = False  # something else is wrong with its end event


class Audit:
    """Takes note of each answer, follows the feed, and judges every session once it must have ended.

    `ended`, `right` and `wrong` count sessions by the way they had to end; the rest of `ended` is not judged.
    `problems` maps each kind of problem to its count and one example. `late`: runs that the fleet itself let expire.
    `held`: the tracker had an outage and lets nothing expire yet.
    """

    def __init__(self, calls: Calls, feed: Feed, plan: Plan, agents: Iterable[str]) -> None:
        self._calls = calls
        self._feed = feed
        self._plan = plan
        self._agents = frozenset(agents)
        self._judged: dict[str, bool] = {}  # session id: whether its end event was seen
        self._made_unseen = False
        self.live: dict[str, Session] = {}
        self.pending: dict[str, Session] = {}
        self.ended: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.problems: dict[str, tuple[int, str]] = {}
        self.late = 0
        self.held = False
        self._held_at = -math.inf

    # --- what the fleet tells, call by call ---------------------------------------------------------------------------

    def created(self, agent: str, task: str, answer: Answer, earlier: Session | None) -> Session | None:
        """A run began; `earlier` is its session before the retry. None if nobody knows what the tracker made of it."""
        told = answer.value
        if told is None:
            self._made_unseen = True
            if earlier:
                self._forget(earlier)
            return None
        if (told.get("agentId"), told.get("taskId")) != (agent, task) or not isinstance(told.get("id"), str):
            self._problem("create was answered with another run's session", task)
            self._made_unseen = True
            return None
        ttl = told.get("ttlSeconds")
        if not isinstance(ttl, int | float) or not math.isclose(ttl, self._plan.ttl, abs_tol=0.001):
            self._problem("create did not take ttlSeconds: crashed runs will outlive the simulation", task)
        if earlier and not earlier.reasons:
            in_time = answer.received < earlier.kept
            reasons = ("replaced",) if in_time else ("replaced", "expired")
            self._end(earlier, reasons, answer.received + (0 if in_time else self._plan.sweep))
        session = Session(told["id"], agent, task, answer.sent + self._plan.ttl, answer.received + self._plan.ttl)
        self.live[session.id] = session
        return session

    def renewed(self, session: Session | None, answer: Answer) -> None:
        if session and self._lives(session, answer):
            session.gone = answer.received + self._plan.ttl  # a lost call may have come through
            if answer.ok:
                session.kept = answer.sent + self._plan.ttl

    def reported(self, session: Session | None, provider: str, answer: Answer) -> None:
        if session and self._lives(session, answer):
            session.providers = (provider,) if answer.ok else (None, provider)

    def deleted(self, session: Session | None, answer: Answer) -> None:
        if session and self._lives(session, answer):
            if answer.ok:
                self._end(session, ("deleted",), answer.received)
            else:
                self._end(session, ("expired", "deleted"), session.gone + self._plan.sweep)

    def crashed(self, session: Session | None) -> None:
        if session and not session.reasons:
            self._end(session, ("expired",), session.gone + self._plan.sweep)

    def abandon(self) -> int:
        """The fleet stopped where it stood: how many sessions it left running. They are not judged."""
        self._made_unseen = True
        left = list(self.live.values())
        for session in left:
            self._forget(session)
        return len(left)

    def _lives(self, session: Session, answer: Answer) -> bool:
        """Whether the session runs on, or ran until this call. A tracker may drop it once the fleet was late."""
        if session.reasons:
            if answer.value:
                self._problem("a session that had ended was renewed", session.task)
            return False
        if answer.value is not False:
            return True
        if answer.received < session.kept:
            self._problem("a live run vanished", session.task)
            self._forget(session)
        else:
            self.late += 1
            self._end(session, ("expired",), answer.received + self._plan.sweep)
        return False

    def _end(self, session: Session, reasons: tuple[str, ...], by: float) -> None:
        session.reasons = reasons
        session.due = by + SLACK_SECONDS
        self.ended[reasons[0]] += 1
        self.pending[session.id] = session
        self.live.pop(session.id, None)

    def _forget(self, session: Session) -> None:
        """Nobody can tell any more what has to become of it."""
        session.reasons = session.reasons or ("unknown",)
        self._close(session)

    # --- what the tracker tells ---------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(min(POLL_SECONDS, self._plan.ttl / 4))
            await self.look()

    async def settle(self) -> None:
        """Look until every session that has ended is judged: bounded by TTL, sweep interval and patience."""
        while self.pending:
            await asyncio.sleep(min(POLL_SECONDS, self._plan.ttl / 4))
            await self.look()
        await self.look()  # a second end event comes after the first

    async def look(self) -> None:
        """Read the feed, then list the agents whose sessions must have gone, and judge those."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        async for event in self._feed.read():
            self._hear(event, loop.time())
        await self._respect_hold(now)
        ripe: defaultdict[str, list[Session]] = defaultdict(list)
        for session in self.pending.values():
            if session.told or self._due(session, now):
                ripe[session.agent].append(session)
        running: defaultdict[str, list[Session]] = defaultdict(list)
        for session in self.live.values():
            running[session.agent].append(session)
        agents = list(ripe)
        for start in range(0, len(agents), LISTINGS):
            batch = agents[start : start + LISTINGS]
            await asyncio.gather(*(self._list(agent, ripe[agent], running[agent], now) for agent in batch))

    async def _respect_hold(self, now: float) -> None:
        """After an outage a tracker lets no session expire for a while. That is as it should be: wait for it."""
        patience = self._plan.sweep + SLACK_SECONDS  # it notices an outage with the first sweep after it
        overdue = [
            session
            for session in self.pending.values()
            if not session.told and "expired" in session.reasons and self._due(session, now)
        ]
        self.held = (self.held or bool(overdue)) and await self._calls.held()
        if self.held:
            self._held_at = now
        recovering = now - max(self._held_at, self._calls.failed_at) < patience
        for session in overdue:
            if (self.held or (recovering and self._heard(session))) and now < session.gone + HOLD_SECONDS_MAX:
                session.due = now + patience

    def _due(self, session: Session, now: float) -> bool:
        return session.due <= now and (self._heard(session) or session.due + PATIENCE_SECONDS <= now)

    def _heard(self, session: Session) -> bool:
        """Whether its end event must have been read by now."""
        return not self._feed.followed or self._feed.read_until >= session.due

    def _hear(self, event: dict[str, Any], now: float) -> None:
        told, reason = event["session"], str(event.get("reason"))
        name = str(told.get("id"))
        session = self.live.get(name) or self.pending.get(name)
        if self._judged.get(name) or (session and session.told):
            self._fault("a session has two end events", session, name)
        elif session:
            session.told = reason
            if reason == "expired" and now < session.kept:
                self._fault("a session expired before its TTL", session, name)
            if told.get("providerSessionId") not in session.providers:
                self._fault("an end event does not tell the provider session that was reported", session, name)
        elif name in self._judged:
            self._judged[name] = True
        elif told.get("agentId") in self._agents and not self._made_unseen:
            self._problem("an end event tells of a session that nobody made", name)

    async def _list(self, agent: str, ripe: list[Session], running: list[Session], now: float) -> None:
        answer = await self._calls.send(Kind.LIST, "GET", params={"agentId": agent})
        if not answer.ok:
            for session in ripe:
                if session.due + PATIENCE_SECONDS <= now:
                    self._close(session)
            return
        listed = {str(entry.get("id")) for entry in answer.value if isinstance(entry, dict)}
        for session in running:
            if session.id not in listed and answer.received < session.kept and not (session.ending or session.reasons):
                self._problem("a live run is not listed", session.task)
        for session in ripe:
            self._judge(session, session.id in listed)

    def _judge(self, session: Session, listed: bool) -> None:
        way = session.reasons[0]
        if listed:
            self._problem(STILL_LISTED[way], session.task)
            self.wrong[way] += 1
        elif session.told:
            if session.told not in session.reasons:
                self._fault(f"a session ended as {session.told} instead of {way}", session, session.task)
            (self.wrong if session.faulty else self.right)[way] += 1
        elif not self._feed.followed:
            self.right[way] += 1
        elif self._heard(session):
            self._problem(f"a session has no end event, it should have one as {way}", session.task)
            self.wrong[way] += 1
        self._close(session)

    def _close(self, session: Session) -> None:
        self.live.pop(session.id, None)
        self.pending.pop(session.id, None)
        self._judged[session.id] = session.told is not None
        if len(self._judged) > REMEMBERED:
            del self._judged[next(iter(self._judged))]

    def _fault(self, what: str, session: Session | None, name: str) -> None:
        if session:
            session.faulty = True
        self._problem(what, session.task if session else name)

    def _problem(self, what: str, example: str) -> None:
        count, first = self.problems.get(what, (0, example))
        self.problems[what] = (count + 1, first)
