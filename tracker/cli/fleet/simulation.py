"""One simulation from the first look at the tracker to the closing report."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal, TypedDict

import httpx

from tracker.cli.fleet.audit import Audit
from tracker.cli.fleet.calls import Calls, Kind
from tracker.cli.fleet.feed import Feed
from tracker.cli.fleet.plan import Plan
from tracker.cli.fleet.runs import Fleet


class Refused(Exception):
    """There is no tracker to simulate against, or the key does not open it. The message says what to do."""


class CallReport(TypedDict):
    """The calls of one kind: how often each status came, latencies in milliseconds."""

    kind: str
    calls: int
    statuses: dict[str, int]
    p50Ms: float
    p99Ms: float
    maxMs: float


class EndingReport(TypedDict):
    """The sessions that had to end in one way. Those neither right nor wrong could not be judged."""

    reason: str
    sessions: int
    right: int
    wrong: int


class Problem(TypedDict):
    problem: str
    count: int
    example: str


class Report(TypedDict):
    """`ok`: everything is as it should be. `late`: runs that expired since their heartbeats came late or got lost.
    `left`: sessions still running when the fleet stopped. `longestWaitMs`: of a call for a free connection."""

    ok: bool
    stopped: bool
    seed: int
    agents: int
    runsPerAgent: int
    seconds: float
    ttlSeconds: float
    feed: Literal["followed", "none", "lost"]
    late: int
    left: int
    longestWaitMs: float
    calls: list[CallReport]
    endings: list[EndingReport]
    problems: list[Problem]


class Simulation:
    """A fleet against the tracker that `client` reaches. Its parts are there to be watched.

    `worked` is set once the fleet is done and only ends are awaited.
    """

    def __init__(self, client: httpx.AsyncClient, plan: Plan, nonce: str) -> None:
        self._client = client
        self._nonce = nonce
        self.plan = plan
        self.calls = Calls(client)
        self.feed = Feed(self.calls)
        self.fleet = Fleet(plan, nonce, self.calls)
        self.audit = Audit(self.calls, self.feed, plan, self.fleet.agents)
        self.worked = asyncio.Event()
        self.stopped = False
        self.left = 0

    async def check(self) -> None:
        """Raise Refused unless a tracker answers and the key may read and write."""
        where = str(self._client.base_url).rstrip("/")
        calls = Calls(self._client)
        for kind, method, path, body in (
            (Kind.LIST, "GET", f"?agentId=sim-{self._nonce}", None),
            (Kind.CLEANUP, "POST", "/cleanup", {"agentId": f"sim-{self._nonce}"}),
        ):
            answer = await calls.send(kind, method, path, body=body)
            if answer.status in {"no answer", "timeout"}:
                raise Refused(
                    f"no tracker answers at {where}: start one with `tracker serve`, "
                    "or name one with --url or TRACKER_URL"
                )
            if answer.status == "401":
                raise Refused(f"the tracker at {where} refuses the key: set TRACKER_API_KEY to one of its write keys")
            if answer.status == "403":
                raise Refused(f"the key may only read at {where}: set TRACKER_API_KEY to one of its write keys")
            if not answer.ok:
                said = calls.failures[kind, answer.status]
                raise Refused(
                    f"what answers at {where} is no working tracker: {method} /api/active-sessions{path} gave "
                    f"{answer.status}{said and f' ({said})'}; see to it, or name another with --url or TRACKER_URL"
                )

    async def run(self) -> None:
        """Work, wait until every end can be judged, clean up. Cancelled once, it goes straight to the end of that."""
        try:
            await self.feed.skip()
            await self._work()
            await self.audit.settle()
        except asyncio.CancelledError:
            if task := asyncio.current_task():
                task.uncancel()
            self.stopped = True
            self.left += self.audit.abandon()
            await self.audit.look()
        if not self.plan.leave:
            await self.fleet.clean()

    async def _work(self) -> None:
        watching = asyncio.create_task(self.audit.watch())
        try:
            await self.fleet.work(self.audit)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        self.left = self.audit.abandon()
        self.worked.set()

    def report(self) -> Report:
        problems = [
            Problem(problem=failure_of(kind, status), count=self.calls.tallies[kind].statuses[status], example=said)
            for (kind, status), said in self.calls.failures.items()
        ]
        problems += [
            Problem(problem=what, count=count, example=example)
            for what, (count, example) in self.audit.problems.items()
        ]
        if self.feed.state == "lost":
            what = "the feed dropped events before they could be read"
            problems.append(Problem(problem=what, count=1, example="ends are judged by the listing from then on"))
        return Report(
            ok=not problems,
            stopped=self.stopped,
            seed=self.plan.seed,
            agents=self.plan.agents,
            runsPerAgent=self.plan.runs_per_agent,
            seconds=self.plan.seconds,
            ttlSeconds=self.plan.ttl,
            feed=self.feed.state,
            late=self.audit.late,
            left=self.left,
            longestWaitMs=round(self.calls.longest_wait * 1000, 3),
            calls=[
                CallReport(
                    kind=kind,
                    calls=tally.statuses.total(),
                    statuses=dict(sorted(tally.statuses.items())),
                    p50Ms=round(tally.percentile(50) * 1000, 3),
                    p99Ms=round(tally.percentile(99) * 1000, 3),
                    maxMs=round(tally.longest * 1000, 3),
                )
                for kind, tally in self.calls.tallies.items()
                if tally.statuses
            ],
            endings=[
                EndingReport(
                    reason=reason,
                    sessions=self.audit.ended[reason],
                    right=self.audit.right[reason],
                    wrong=self.audit.wrong[reason],
                )
                for reason in ("deleted", "replaced", "expired")
            ],
            problems=problems,
        )


def failure_of(kind: str, status: str) -> str:
    """How a report calls the problem that calls of a kind got a status that they should not get."""
    return f"{kind}: {status}"
