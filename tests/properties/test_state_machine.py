"""Anything in any order: a store and a plain model of it get the same calls, and must agree about everything they say.

Real time flows too, a few seconds in a run at most, so all times are chosen to lie further apart: a session's deadline,
a hold's end or an age asked for never comes within 20 s of the time at which it is judged.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic_core import from_json

from tests import clockwork
from tests.audit import audit
from tests.properties.model import Answer, Model, Run, Told
from tests.store.wire import a_cleanup, a_list, a_run, some_events
from tracker.errors import Conflict, IdempotencyMismatch
from tracker.models import Cleanup, CreateSession, ListSessions, Session, Target
from tracker.settings import Settings
from tracker.store.store import open_store

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
"""The same, for much longer and with other examples each time."""
EXAMPLES = dict.fromkeys(("memory", "redis", "cluster"), 300) if LONG else {"memory": 20, "redis": 40, "cluster": 10}
STEPS = 100 if LONG else 50

# Deadlines are off by 50 s, outages by 300 s each, ages in minutes by 20 s from all that may be compared with them.
DEFAULT_TTL = 2550
TTLS = [None, 5550, 30_550]
PASSES = [1000, 3000, 8000]
DAY = 40_000
OUTAGES = [300, 2300, 4300, 20_300]
OUTAGES_IN_A_ROW = 3
MINUTES = [0, 32, 77]
TOLERANCE = 15
"""How far (s) real time may have moved what the store tells."""

TASKS = ["t1", "t2", "t/3 \N{ROBOT FACE}"]
AGENTS = ["a1", "a2"]
STRANGE_ID = "0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10"

creates = st.builds(
    a_run,
    task=st.sampled_from([*TASKS, None]),
    agent=st.sampled_from(AGENTS),
    triggerType=st.sampled_from(["x", "y"]),
    runtimeInstanceId=st.sampled_from([None, "r1", "r2"]),
    ttlSeconds=st.sampled_from(TTLS),
    onConflict=st.sampled_from([None, "supersede", "reject", "replace", "reuse"]),
    metadata=st.sampled_from([None, {"k": "v"}]),
)
places = st.integers(0, 30)
"""Which of the things that there are, counted from the newest."""
targets = st.one_of(st.sampled_from(TASKS), places)
guards = st.one_of(st.none(), places)
progresses = st.sampled_from([None, "", "1 of 2"])


class Fleet(RuleBasedStateMachine):
    """Two pods on one store, which differ in what a cleanup by agent spares; the calls take turns."""

    pod_settings: ClassVar[Settings]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(DEFAULT_TTL)
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.known: list[str] = [STRANGE_ID]
        self.sent: list[Callable[[], None]] = []
        self.losing = False
        self.position = "0"
        self.heard: defaultdict[str, list[Told]] = defaultdict(list)
        self.outages = 0
        self.pulsed = 0.0
        self.settings = self.pod_settings.model_copy(update={"namespace": f"test-{secrets.token_hex(8)}"})
        self.run(self._open())

    async def _open(self) -> None:
        first = await self.stack.enter_async_context(open_store(self.settings))
        sparing = self.settings.model_copy(update={"agent_cleanup": "expired"})
        client = first.scripts.client if self.settings.in_memory else None
        self.pods = [first, await self.stack.enter_async_context(open_store(sparing, client))]

    def teardown(self) -> None:
        try:
            self.everything_adds_up()
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @property
    def store(self) -> Any:
        """The pod whose turn it is."""
        return self.pods[len(self.sent) % 2]

    # --- calls, which may be lost, come late, or come again -----------------------------------------------------------

    def send(self, call: Callable[..., None], *arguments: Any) -> None:
        request = partial(call, *arguments)
        self.sent.append(request)
        if not self.losing:
            request()
        self.losing = False

    @rule()
    def the_next_call_does_not_get_there(self) -> None:
        self.losing = True

    @rule()
    def the_last_call_comes_again(self) -> None:
        self.sent[-1]()

    @rule(place=places)
    def a_call_comes_late_or_again(self, place: int) -> None:
        self.sent[-1 - place % len(self.sent)]()

    @initialize(requests=st.lists(creates, min_size=1, max_size=4))
    def some_run_already(self, requests: list[CreateSession]) -> None:
        for request in requests:
            self.send(self._create, request, None)

    @rule(request=creates)
    def create(self, request: CreateSession) -> None:
        self.send(self._create, request, None)

    @rule(request=creates, key=st.sampled_from(["k1", "k2"]))
    def create_with_key(self, request: CreateSession, key: str) -> None:
        self.send(self._create, request, key)

    @rule(which=targets, guard=guards, progress=progresses)
    def heartbeat(self, which: str | int, guard: int | None, progress: str | None) -> None:
        self.send(self._heartbeat, self.target(which), self.guard(guard), progress)

    @rule(many=st.lists(targets, max_size=6))
    def heartbeat_all(self, many: list[str | int]) -> None:
        self.send(self._heartbeat_all, [self.target(which) for which in many])

    @rule(which=targets, guard=guards, provider=st.sampled_from("pq"))
    def set_provider_session(self, which: str | int, guard: int | None, provider: str) -> None:
        self.send(self._set_provider_session, self.target(which), provider, self.guard(guard))

    @rule(which=targets)
    def request_stop(self, which: str | int) -> None:
        self.send(self._request_stop, self.target(which))

    @rule(which=targets, guard=guards)
    def delete(self, which: str | int, guard: int | None) -> None:
        self.send(self._delete, self.target(which), self.guard(guard))

    @rule(
        agent=st.sampled_from([None, *AGENTS]),
        runtime=st.sampled_from([None, None, "r1"]),
        minutes=st.sampled_from([None, None, *MINUTES]),
    )
    def cleanup(self, agent: str | None, runtime: str | None, minutes: int | None) -> None:
        request = a_cleanup(agentId=agent, runtimeInstanceId=runtime, maxAgeMinutes=minutes)
        self.send(self._cleanup, request, len(self.sent) % 2)

    def _create(self, request: CreateSession, key: str | None) -> None:
        async def call() -> tuple[Answer, Session]:
            created = await self.store.sessions.create(request, key)
            return (created.outcome, created.session["id"]), created.session

        answer, session = self.answer(call())

        def new_id() -> str:
            assert answer[0] == "created", f"{answer} to what makes a session"
            self.known.append(session["id"])
            return str(session["id"])

        self.agree(answer, self.model.create(request, key, new_id), session)

    def _heartbeat(self, target: Target, guard: str | None, progress: str | None) -> None:
        async def call() -> tuple[Answer, Any]:
            beat = await self.store.sessions.heartbeat(target, guard, progress)
            return ("renewed" if beat else "missing", None), beat

        answer, told = self.answer(call())
        outcome, renewed = self.model.heartbeat(target, guard, progress)
        if renewed and outcome == "renewed":
            assert answer[0] == "renewed"
            self.agree_about_beat(told, self.model.runs[renewed])
        else:
            self.agree(answer, (outcome, renewed), told)

    def _heartbeat_all(self, many: list[Target]) -> None:
        beats = self.run(self.store.sessions.heartbeat_all(many))
        assert list(beats) == list(dict.fromkeys(many))
        for target, beat in beats.items():
            outcome, renewed = self.model.heartbeat(target)
            assert (beat is not None) == (outcome == "renewed"), target
            if renewed:
                self.agree_about_beat(beat, self.model.runs[renewed])

    def _set_provider_session(self, target: Target, provider: str, guard: str | None) -> None:
        answer, told = self.answer(self.done(self.store.sessions.set_provider_session(target, provider, guard)))
        self.agree(answer, self.model.set_provider_session(target, provider, guard), told)

    def _request_stop(self, target: Target) -> None:
        answer, told = self.answer(self.done(self.store.sessions.request_stop(target)))
        self.agree(answer, self.model.request_stop(target), told)

    def _delete(self, target: Target, guard: str | None) -> None:
        answer, told = self.answer(self.done(self.store.sessions.delete(target, guard)))
        self.agree(answer, self.model.delete(target, guard), told)

    def _cleanup(self, request: Cleanup, pod: int) -> None:
        cleaned = self.run(self.pods[pod].sweeper.cleanup(request))
        assert cleaned == self.model.cleanup(request, spare_siblings=pod == 1)

    # --- time ---------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(PASSES))
    def time_passes(self, seconds: int) -> None:
        self.outages = 0
        self.run(clockwork.advance(self.store, seconds))
        self.model.advance(seconds)

    @precondition(lambda self: self.model.promises)
    @rule()
    def a_day_passes(self) -> None:
        """Somebody has swept before: nobody stays unswept for longer than Redis keeps it."""
        self.sweep()
        self.run(clockwork.advance(self.store, DAY))
        self.model.advance(DAY)

    @precondition(lambda self: self.model.pulse is not None and self.outages < OUTAGES_IN_A_ROW)
    @rule(seconds=st.sampled_from(OUTAGES))
    def an_outage(self, seconds: int) -> None:
        self.outages += 1
        self.run(clockwork.outage(self.store, seconds))
        self.model.outage(seconds)

    @rule(
        request=creates,
        hard=st.lists(
            st.tuples(st.sampled_from([300, 4300]), st.sampled_from([0, 1000, 3000])), min_size=1, max_size=4
        ),
        minutes=st.sampled_from([None, *MINUTES[1:]]),
    )
    def hard_times(self, request: CreateSession, hard: list[tuple[int, int]], minutes: int | None) -> None:
        """Somebody starts, and then comes outage upon outage, some of them within the hold of another."""
        self.sweep()
        self.create(request)
        for dark, light in hard:
            self.an_outage(dark)
            self.both_list_the_same()
            self.sweep()
            if minutes is not None:
                self.cleanup(None, None, minutes)
            self.time_passes(light)
            self.both_list_the_same()

    @rule()
    def sweep(self) -> None:
        self.outages = 0
        assert self.run(self.store.sweeper.sweep()) == self.model.sweep()

    # --- what is asked ------------------------------------------------------------------------------------------------

    @rule(which=targets)
    def read(self, which: str | int) -> None:
        session = self.run(self.store.sessions.get(self.target(which)))
        run = self.model.find(self.target(which))
        assert (session is None) == (run is None)
        if run is not None:
            self.agree_about(session, run)

    @rule(
        agentId=st.sampled_from([None, *AGENTS]),
        taskId=st.sampled_from([None, None, None, None, TASKS[0]]),
        triggerType=st.sampled_from([None, "x"]),
        runtimeInstanceId=st.sampled_from([None, "r1"]),
        limit=st.integers(1, 3),
    )
    def list_page_by_page(self, limit: int, **filters: str | None) -> None:
        query = a_list(**filters)
        sessions = self.listed(query)
        assert {session["id"] for session in sessions} == self.model.listed(query)

        async def walk() -> list[Session]:
            found: list[Session] = []
            cursor = None
            while True:
                page, cursor = await self.store.listing.page(query.model_copy(update={"cursor": cursor}), limit)
                found += map(from_json, page)
                if cursor is None:
                    return found
                assert len(page) == limit

        assert self.run(walk()) == sessions

    @rule()
    def everything_adds_up(self) -> None:
        model = self.model
        live = model.live()
        stats = self.run(self.store.stats())
        assert (stats["sessions"], stats["expiredUnswept"]) == (len(live), len(model.runs) - len(live))
        assert (stats["created"], {k: n for k, n in stats["ended"].items() if n}) == (model.created(), model.ended())
        agents = [run.request.agent_id for run in live]
        triggers = [run.request.trigger_type for run in live]
        assert stats["agents"] == len(set(agents))
        assert {row["agentId"]: row["sessions"] for row in stats["byAgent"]} == {a: agents.count(a) for a in agents}
        by_trigger = {row["triggerType"]: row["sessions"] for row in stats["byTriggerType"]}
        assert by_trigger == {trigger: triggers.count(trigger) for trigger in triggers}
        for told, moments in (
            (stats["oldestSessionAgeSeconds"], [run.started for run in live]),
            (stats["oldestHeartbeatAgeSeconds"], [run.beat for run in live]),
        ):
            assert (told is None) == (not moments)
            if moments:
                assert abs(told - (model.now - min(moments))) < TOLERANCE
        self.hear()
        assert self.heard == model.told
        assert self.run(audit(self.pods[0])) == len(model.runs)

    @invariant()
    def both_list_the_same(self) -> None:
        self.run(self._stay_there())
        sessions = self.listed(a_list())
        assert {session["id"] for session in sessions} == {run.id for run in self.model.live()}
        places = [(session["startedAt"], session["id"]) for session in sessions]
        assert places == sorted(places, reverse=True)
        for session in sessions:
            self.agree_about(session, self.model.runs[session["id"]])

    async def _stay_there(self) -> None:
        """A slow machine must not look like an outage: pods that are there say so each second."""
        if time.monotonic() - self.pulsed > 1 and self.model.pulse is not None and not self.model.silence:
            await self.pods[0].sweeper.pulse()
            self.pulsed = time.monotonic()

    # --- how answers are judged ---------------------------------------------------------------------------------------

    def target(self, chosen: str | int) -> Target:
        return Target.task(chosen) if isinstance(chosen, str) else Target.id(self.pick(chosen))

    def guard(self, chosen: int | None) -> str | None:
        return None if chosen is None else self.pick(chosen)

    def pick(self, place: int) -> str:
        return self.known[-1 - place % len(self.known)]

    async def done(self, call: Awaitable[bool]) -> tuple[Answer, None]:
        return ("done" if await call else "missing", None), None

    def answer(self, call: Any) -> tuple[Answer, Any]:
        """What came of it, and what was told."""
        try:
            answer: tuple[Answer, Any] = self.run(call)
        except Conflict as conflict:
            return ("conflict", conflict.session["id"]), conflict.session
        except IdempotencyMismatch:
            return ("mismatch", None), None
        return answer

    def agree(self, answer: Answer, expected: Answer, session: Session | None) -> None:
        assert answer == expected
        if session is not None:
            run = self.model.runs.get(session["id"])
            if run is not None:
                self.agree_about(session, run)
            else:
                assert expected[0] == "repeated", "only a repeat may be told of what has ended"

    def agree_about(self, session: Session, run: Run) -> None:
        request = run.request
        assert {name: value for name, value in session.items() if not name.endswith("At")} == {
            "id": run.id,
            "agentId": request.agent_id,
            "taskId": request.task_id,
            "triggerType": request.trigger_type,
            "inboxMessageId": None,
            "taskDescription": None,
            "runnerSessionId": None,
            "providerSessionId": run.provider,
            "runtimeInstanceId": request.runtime_instance_id,
            "ttlSeconds": run.ttl,
            "progress": run.progress,
            "metadata": request.metadata or {},
        }
        assert (session["stopRequestedAt"] is None) == (run.stop is None)
        for told, moment in (
            (session["startedAt"], run.started),
            (session["lastHeartbeatAt"], run.beat),
            (session["expiresAt"], run.due),
            (session["stopRequestedAt"], run.stop),
        ):
            if told is not None and moment is not None:
                ahead = datetime.fromisoformat(told).timestamp() - time.time()
                assert abs(ahead - (moment - self.model.now)) < TOLERANCE, told

    def agree_about_beat(self, beat: Any, run: Run) -> None:
        assert beat.stop_requested == (run.stop is not None)
        assert abs(beat.due / 1000 - time.time() - run.ttl) < TOLERANCE

    def listed(self, query: ListSessions) -> list[Session]:
        async def read() -> list[Session]:
            return [from_json(session) async for chunk in self.store.listing.chunks(query) for session in chunk]

        sessions: list[Session] = self.run(read())
        return sessions

    def hear(self) -> None:
        """Reads on in the feed."""
        while True:
            page = self.run(self.store.feed.page(some_events(after=self.position, limit=1000)))
            for event in page["events"]:
                session = event["session"]
                told = (session["providerSessionId"], session["progress"], session["stopRequestedAt"] is not None)
                self.heard[session["id"]].append((event["type"], event["reason"], *told))
            self.position = page["next"]
            if not page["events"]:
                return


@pytest.mark.timeout(7200 if LONG else 240)
@pytest.mark.parametrize("shards", [1, 3])
def test_whatever_comes_store_and_model_agree(settings: Settings, backend: str) -> None:
    class FleetHere(Fleet):
        pod_settings = settings.model_copy(update={"ttl_seconds": DEFAULT_TTL, "grace_seconds": 604_800})

    run_state_machine_as_test(
        FleetHere,
        settings=hypothesis_settings(
            max_examples=EXAMPLES[backend],
            stateful_step_count=STEPS,
            derandomize=not LONG,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
