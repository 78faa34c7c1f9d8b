"""The agents and their runs: each call as runners make it, with every answer noted and none heeded."""

from __future__ import annotations

import asyncio
import math
from urllib.parse import quote

from tracker.cli.fleet.audit import Audit, Session
from tracker.cli.fleet.calls import Calls, Kind
from tracker.cli.fleet.plan import DESCRIPTION_CUT, Attempt, Plan, Run


class Fleet:
    """Agents that boot, run tasks side by side and wind down. `nonce` sets this fleet's ids apart from any other's."""

    def __init__(self, plan: Plan, nonce: str, calls: Calls) -> None:
        self._plan = plan
        self._nonce = nonce
        self._calls = calls
        self._begun = math.nan
        self.agents = [plan.agent_id(nonce, agent) for agent in range(plan.agents)]

    async def work(self, audit: Audit) -> None:
        """Run for the planned seconds. Cancelled, it stops where it stands and ends nothing."""
        self._begun = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as agents:
            for agent in range(self._plan.agents):
                agents.create_task(self._agent(agent, audit))

    async def clean(self) -> None:
        """End whatever the tracker still holds of these agents."""
        await asyncio.gather(*(self._clean(agent) for agent in self.agents))

    async def _clean(self, agent_id: str) -> None:
        await self._calls.send(Kind.CLEANUP, "POST", "/cleanup", body={"agentId": agent_id})

    async def _agent(self, agent: int, audit: Audit) -> None:
        await asyncio.sleep(self._plan.boot(agent))
        await self._clean(self.agents[agent])
        async with asyncio.TaskGroup() as slots:
            for slot in range(self._plan.runs_per_agent):
                slots.create_task(self._slot(agent, slot, audit))

    async def _slot(self, agent: int, slot: int, audit: Audit) -> None:
        until = self._begun + self._plan.last_call(agent, slot)
        number = 0
        while await _rest((run := self._plan.run(agent, slot, number)).idle, until):
            task = f"sim-{self._nonce}-agent{agent}-slot{slot}-task{number}"
            await self._run(self.agents[agent], task, run, until, audit)
            number += 1

    async def _run(self, agent_id: str, task: str, run: Run, until: float, audit: Audit) -> None:
        session: Session | None = None
        for count, attempt in enumerate(run.attempts):
            session = await self._start(agent_id, task, run, count, session, audit)
            if not await self._attempt(task, f"provider-{task}-{count}", attempt, session, until, audit):
                if self._plan.leave:
                    return
                break
            if session:
                session.ending = attempt.ending != "crashed"
            if attempt.ending == "crashed":
                audit.crashed(session)
                return
        if session:
            session.ending = True
        audit.deleted(session, await self._calls.send(Kind.DELETE, "DELETE", f"/by-task/{quote(task, safe='')}"))

    async def _start(
        self, agent_id: str, task: str, run: Run, count: int, earlier: Session | None, audit: Audit
    ) -> Session | None:
        body = {
            "agentId": agent_id,
            "triggerType": run.trigger,
            "taskId": task,
            "taskDescription": run.description[:DESCRIPTION_CUT],
            "runnerSessionId": f"runner-{task}-{count}",
            "runtimeInstanceId": f"sim-{self._nonce}",
            "ttlSeconds": self._plan.ttl,
        }
        return audit.created(agent_id, task, await self._calls.send(Kind.CREATE, "POST", body=body), earlier)

    async def _attempt(
        self, task: str, provider: str, attempt: Attempt, session: Session | None, until: float, audit: Audit
    ) -> bool:
        """The tool calls of one attempt: False if time ran out before the last."""
        loop = asyncio.get_running_loop()
        path, beaten = quote(task, safe=""), -math.inf
        for number, wait in enumerate(attempt.waits):
            if not await _rest(wait, until):
                return False
            if number == 0:
                body = {"providerSessionId": provider}
                answer = await self._calls.send(Kind.PROVIDER, "PUT", f"/provider-session/{path}", body=body)
                audit.reported(session, provider, answer)
            if loop.time() - beaten >= self._plan.beat:
                beaten = loop.time()
                audit.renewed(session, await self._calls.send(Kind.HEARTBEAT, "PUT", f"/heartbeat/{path}"))
        return True


async def _rest(seconds: float, until: float) -> bool:
    """Sleep, but not beyond `until` (event loop time): False if that has come."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, min(seconds, until - loop.time())))
    return loop.time() < until
