"""Client: a process with a dozen agents in it that call the pods and note every call and every answer.

Each kind of agent is out for something else: runs that go on and must survive, runs that fall silent and must die on
time, many that fight for the same few tasks, cleanups that race each other, readers that must see nothing else.
``python -m tests.torture.client <directory> <number> <until>`` (ms since 1970).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.torture.journal import Journal, moment
from tests.torture.plan import Plan

__all__ = ["brief"]

BASE = "/api/active-sessions"
SHARED_TASKS = [f"shared{number}" for number in range(6)]
RIVALS = ["rival0", "rival1", "rival2"]
HERDS = [f"herd{number}" for number in range(4)]
RUNTIMES = ["r0", "r1"]
SHUN_MS = 2000
"""How long a client leaves a pod alone that gave no answer, as balancers do."""


def brief(session: dict[str, Any]) -> dict[str, Any]:
    """What the checker wants of a session; times in ms."""
    return {
        "id": session["id"],
        "agent": session["agentId"],
        "task": session["taskId"],
        "tag": session["metadata"].get("tag"),
        "ttl": round(session["ttlSeconds"] * 1000),
        "due": datetime.fromisoformat(session["expiresAt"]).timestamp() * 1000,
    }


class Client:
    def __init__(self, plan: Plan, number: int, until: float, journal: Journal, http: httpx.AsyncClient) -> None:
        self.plan = plan
        self.number = number
        self.chance = random.Random(f"{plan.seed}:{number}")
        self._until = until
        self._journal = journal
        self._http = http
        self._tags = (f"c{number}-{count}" for count in itertools.count())
        self._shunned = dict.fromkeys(range(len(plan.pods)), 0.0)
        self._known = deque([("shared0", "0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10")], maxlen=20)

    @property
    def working(self) -> bool:
        return moment().wall < self._until

    async def work(self) -> None:
        agents = [*[self.steady] * 4, *[self.mortal] * 4, *[self.rival] * 3, self.janitor, self.reader, self.subscriber]
        async with asyncio.TaskGroup() as group:
            for number, agent in enumerate(agents):
                group.create_task(self._repeat(agent, number))

    async def _repeat(self, agent: Callable[[int], Awaitable[None]], number: int) -> None:
        while self.working:
            await agent(number)

    # The agents

    async def steady(self, number: int) -> None:
        """A run that heartbeats often, by all ways there are, and ends by a delete."""
        chance, agent, task = self.chance, f"steady{self.number}", f"steady{self.number}-{number}"
        session = await self.create(agent, task, chance.uniform(10, 20), key=True)
        calls = chance.randrange(10, 100)
        while session and calls and self.working:
            calls -= 1
            await self._pause(0.2, 0.7)
            ways: list[Callable[[], Awaitable[Any]]] = [
                lambda: self.beat(task=task),
                lambda: self.beat(task=task, guard=session["id"]),
                lambda: self.beat(id=session["id"]),
                lambda: self.beat_many([task, "nobody"], [session["id"]]),
                lambda: self.read(task=task),
                lambda: self.read(id=session["id"]),
                lambda: self.note_provider(task, session["id"]),
            ]
            answer = await chance.choices(ways, [4, 4, 4, 2, 1, 1, 1])[0]()
            if answer and answer.get("updated") is False:
                return  # which it should not be: the checker will tell
        if session:
            ends: list[Callable[[], Awaitable[Any]]] = [
                lambda: self.delete(task=task),
                lambda: self.delete(task=task, guard=session["id"]),
                lambda: self.delete(id=session["id"]),
            ]
            await chance.choice(ends)()

    async def mortal(self, number: int) -> None:
        """A run that heartbeats a few times and falls silent, looked at until well after its deadline."""
        chance, agent, task = self.chance, f"mortal{self.number}", f"mortal{self.number}-{number}"
        ttl = chance.uniform(1.2, 6)
        session = await self.create(agent, chance.choice([task, None]), ttl)
        if session is None:
            await self._pause(0.2, 0.5)
            return
        for _ in range(chance.randrange(4)):
            await self._pause(0.1, ttl / 2)
            await self.beat(id=session["id"])
        silent_until = moment().wall + ttl * 1000 + 1500
        while moment().wall < silent_until and self.working:
            await self._pause(0.2, 0.6)
            if chance.random() < 0.3:
                await self.list_agent(agent)
            else:
                await self.read(id=session["id"])
        await self.beat(id=session["id"])

    async def rival(self, number: int) -> None:
        """One of many that want the same tasks, and are not told when they lose them."""
        chance = self.chance
        task, mine = chance.choice(self._known)
        if chance.random() < 0.4:
            task = chance.choice(SHARED_TASKS)
        ways: list[Callable[[], Awaitable[Any]]] = [
            lambda: self.create(
                chance.choice(RIVALS),
                task,
                chance.choice([chance.uniform(1.5, 5), chance.uniform(20, 40), 300]),
                policy=chance.choice([None, None, "supersede", "reject", "replace", "reuse"]),
            ),
            lambda: self.beat(task=task, guard=mine),
            lambda: self.beat(id=mine),
            lambda: self.beat(task=task),
            lambda: self.note_provider(task, mine),
            lambda: self.delete(task=task, guard=mine),
            lambda: self.delete(id=mine),
            lambda: self.stop(mine),
            lambda: self.read(task=task),
        ]
        await chance.choices(ways, [5, 5, 2, 2, 1, 1, 1, 1, 2])[0]()
        await self._pause(0.05, 0.3)

    async def janitor(self, number: int) -> None:
        """Runs that end by cleanups of many callers at once."""
        chance, agent = self.chance, self.chance.choice(HERDS)
        for _ in range(chance.randrange(2, 6)):
            await self.create(agent, None, chance.uniform(60, 300), runtime=chance.choice(RUNTIMES))
        await self._pause(0, 0.5)
        asked: list[dict[str, Any]] = [
            {"agent": agent},
            {"agent": agent, "runtime": chance.choice(RUNTIMES)},
            {"agent": agent, "minutes": 0},
            {"agent": agent, "minutes": 1},
            {"minutes": 1},
            {},
        ]
        body = chance.choices(asked, [6, 3, 1, 1, 1, 3])[0]
        await asyncio.gather(*(self.clean(body) for _ in range(chance.choice([1, 2, 3]))))
        await self._pause(0.3, 1)

    async def reader(self, number: int) -> None:
        chance = self.chance
        await self._pause(0.2, 0.8)
        ways: list[Callable[[], Awaitable[Any]]] = [
            lambda: self.list_agent(chance.choice([f"steady{self.number}", *RIVALS, *HERDS])),
            lambda: self.list_agent(None),
            lambda: self.walk(chance.randrange(5, 40)),
            lambda: self._call("stats", "GET", "/stats", {}),
        ]
        await chance.choice(ways)()

    async def subscriber(self, number: int) -> None:
        """Reads the whole feed as it grows, and anew when its place in it is gone."""
        after = "0"
        while self.working:
            page = await self._call(
                "feed", "GET", "/events", {"after": after}, params={"after": after, "limit": 1000}, note=_positions
            )
            if page:
                after = page.get("next", "0")
            await self._pause(0.5, 1)

    # The calls: the answer's body when there was a definite one, else None

    async def create(
        self,
        agent: str,
        task: str | None,
        ttl: float,
        *,
        policy: str | None = None,
        runtime: str | None = None,
        key: bool = False,
    ) -> dict[str, Any] | None:
        """The session, if it is known that there is one. With a ``key`` the call is repeated until that is known."""
        tag = next(self._tags)
        body: dict[str, Any] = {"agentId": agent, "triggerType": "torture", "taskId": task, "ttlSeconds": round(ttl, 3)}
        body |= {"metadata": {"tag": tag}, "onConflict": policy, "runtimeInstanceId": runtime}
        asked = {"agent": agent, "task": task, "tag": tag, "ttl": round(ttl * 1000), "policy": policy, "key": key}
        headers = {"Idempotency-Key": tag} if key else {}
        answer = None
        while answer is None and self.working:
            answer = await self._call("create", "POST", "", asked, json=body, headers=headers, note=_one)
            if not key:
                break
            if answer is None:
                await self._pause(0.1, 0.5)
        session: dict[str, Any] | None = answer.get("session") if answer else None
        if session and task in SHARED_TASKS:
            self._known.append((task, session["id"]))  # also another's, that stands in the way
        return session

    async def beat(self, task: str | None = None, id: str | None = None, guard: str | None = None) -> Any:  # noqa: A002
        path = f"/heartbeat/{task}" if task else f"/{id}/heartbeat"
        body = {"sessionId": guard, "progress": next(self._tags)}
        return await self._call("beat", "PUT", path, {"task": task, "id": id, "guard": guard}, json=body, note=_beat)

    async def beat_many(self, tasks: list[str], ids: list[str]) -> Any:
        asked = {"tasks": tasks, "ids": ids}
        return await self._call("batch", "PUT", "/heartbeat", asked, json={"taskIds": tasks, "sessionIds": ids})

    async def note_provider(self, task: str, guard: str) -> Any:
        body = {"providerSessionId": next(self._tags), "sessionId": guard}
        asked = {"task": task, "guard": guard}
        return await self._call("provider", "PUT", f"/provider-session/{task}", asked, json=body, note=_one)

    async def stop(self, id: str) -> Any:  # noqa: A002
        return await self._call("stop", "PUT", f"/{id}/stop", {"id": id})

    async def read(self, task: str | None = None, id: str | None = None) -> Any:  # noqa: A002
        path = f"/by-task/{task}" if task else f"/{id}"
        return await self._call("read", "GET", path, {"task": task, "id": id}, note=_one)

    async def delete(self, task: str | None = None, id: str | None = None, guard: str | None = None) -> Any:  # noqa: A002
        path, params = (f"/by-task/{task}", {"sessionId": guard} if guard else {}) if task else (f"/{id}", {})
        asked = {"task": task, "id": id, "guard": guard}
        return await self._call("delete", "DELETE", path, asked, params=params, note=_one)

    async def clean(self, asked: dict[str, Any]) -> Any:
        names = {"agent": "agentId", "runtime": "runtimeInstanceId", "minutes": "maxAgeMinutes"}
        body = {names[name]: value for name, value in asked.items()}
        return await self._call("cleanup", "POST", "/cleanup", asked, json=body)

    async def list_agent(self, agent: str | None) -> Any:
        """All sessions of an agent, or of all."""
        params = {"agentId": agent} if agent else {}
        return await self._call("list", "GET", "", {"agent": agent}, params=params, note=_many)

    async def walk(self, limit: int) -> None:
        """All sessions page by page: one entry more, as of a single list, if every page came."""
        began, found, cursor = moment(), list[dict[str, Any]](), None
        while True:
            params = {"limit": limit, "cursor": cursor} if cursor else {"limit": limit}
            page = await self._call("page", "GET", "", {"limit": limit}, params=params, note=_many)
            if page is None or "sessions" not in page:
                return
            found += map(brief, page["sessions"])
            cursor = page["nextCursor"]
            if cursor is None:
                break
        ended = moment()
        self._note("walk", 0, {"agent": None}, (began.wall, ended.wall, began.mono), 200, None, {"sessions": found})

    async def _call(
        self,
        kind: str,
        method: str,
        path: str,
        asked: dict[str, Any],
        *,
        note: Callable[[Any], Any] = lambda answer: answer,
        **request: Any,
    ) -> Any:
        pod = self._choose()
        url = f"http://127.0.0.1:{self.plan.pods[pod]}{BASE}{path}"
        status, lost, answer, noted = None, None, None, None
        began = moment()
        try:
            response = await self._http.request(method, url, **request)
            status, answer = response.status_code, response.json()
        except httpx.TransportError as error:
            status, lost = None, type(error).__name__
            self._shunned[pod] = moment().wall + SHUN_MS
        except ValueError:
            lost = "NoJSON"
        ended = moment()
        if status is not None and lost is None:
            noted = note(answer) if status < 400 or status == 409 else answer
            if status == 503 and "retry-after" not in response.headers:
                lost = "NoRetryAfter"
        self._note(kind, pod, asked, (began.wall, ended.wall, began.mono), status, lost, noted)
        return answer if status is not None and status < 500 else None

    def _note(
        self,
        kind: str,
        pod: int,
        asked: dict[str, Any],
        times: tuple[float, float, float],
        status: int | None,
        lost: str | None,
        answer: Any,
    ) -> None:
        began, ended, mono = times
        entry = {"client": self.number, "kind": kind, "pod": pod, "asked": asked, "began": began, "ended": ended}
        self._journal.write({**entry, "mono": mono, "status": status, "lost": lost, "answer": answer})

    def _choose(self) -> int:
        now = moment().wall
        pods = [pod for pod, until in self._shunned.items() if until < now] or list(self._shunned)
        return self.chance.choice(pods)

    async def _pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.chance.uniform(least, most))


def _one(answer: Any) -> Any:
    return {**answer, "session": brief(answer["session"])} if answer.get("session") else answer


def _many(answer: Any) -> Any:
    return {**answer, "sessions": list(map(brief, answer["sessions"]))}


def _beat(answer: Any) -> Any:
    if answer.get("expiresAt"):
        return {"updated": True, "due": datetime.fromisoformat(answer["expiresAt"]).timestamp() * 1000}
    return _one(answer)


def _positions(answer: Any) -> Any:
    return {"positions": [event["id"] for event in answer["events"]], "next": answer["next"]}


async def main(directory: Path, number: int, until: float) -> None:
    plan = Plan.read(directory / "plan.json")
    journal = Journal(directory / f"client{number}.jsonl")
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    async with httpx.AsyncClient(timeout=plan.call_timeout, limits=limits, trust_env=False) as http:
        await Client(plan, number, until, journal, http).work()
    journal.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
