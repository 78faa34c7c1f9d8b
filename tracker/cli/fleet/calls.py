"""The calls of a simulated fleet: one shared client, every call tallied by kind and status."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

SESSIONS = "/api/active-sessions"
TIMEOUT_SECONDS = 5.0  # for one call, all in all
CONNECTIONS = 64


class Kind(StrEnum):
    CLEANUP = "cleanup"
    CREATE = "create"
    HEARTBEAT = "heartbeat"
    PROVIDER = "provider-session"
    DELETE = "delete"
    LIST = "list"
    EVENTS = "events"


# What a tracker has to answer: the status, and a field of the JSON object with its type.
EXPECTED: dict[Kind, tuple[int, str, type]] = {
    Kind.CLEANUP: (200, "cleaned", int),
    Kind.CREATE: (201, "session", dict),
    Kind.HEARTBEAT: (200, "updated", bool),
    Kind.PROVIDER: (200, "updated", bool),
    Kind.DELETE: (200, "deleted", bool),
    Kind.LIST: (200, "sessions", list),
    Kind.EVENTS: (200, "events", list),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `sent` and `received` are event loop time (seconds); `value` is the expected field, else None."""

    status: str
    sent: float
    received: float
    value: Any = None
    body: Any = None

    @property
    def ok(self) -> bool:
        return self.value is not None


@dataclass(slots=True)
class Tally:
    """The calls of one kind: statuses, and latencies (seconds) rounded to three digits so that memory is bounded."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies: Counter[float] = field(default_factory=Counter)
    longest: float = 0.0

    def add(self, status: str, seconds: float) -> None:
        self.statuses[status] += 1
        self.latencies[_three_digits(seconds)] += 1
        self.longest = max(self.longest, seconds)

    def percentile(self, percent: float) -> float:
        """The latency (seconds) that this share of the calls did not exceed; 0 without calls."""
        rank = self.latencies.total() * percent / 100
        for seconds in sorted(self.latencies):
            rank -= self.latencies[seconds]
            if rank <= 0:
                return seconds
        return self.longest


class Calls:
    """Sends calls, at most CONNECTIONS at a time, and keeps count. A failed call is an answer too: nothing raises.

    `failures` maps (kind, status) to what the tracker said first; `longest_wait`: for a free connection (seconds);
    `failed_at`: event loop time of the last failure, listings aside.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        # Not left to the connection pool: waiting for a place here is the simulator's delay, not the tracker's latency.
        self._places = asyncio.Semaphore(CONNECTIONS)
        self.tallies: dict[Kind, Tally] = {kind: Tally() for kind in Kind}
        self.failures: dict[tuple[Kind, str], str] = {}
        self.longest_wait = 0.0
        self.failed_at = -math.inf

    @property
    def total(self) -> int:
        return sum(tally.statuses.total() for tally in self.tallies.values())

    def excuse(self, kind: Kind, status: str) -> None:
        """Do not count a status as a failure after all."""
        self.failures.pop((kind, status), None)

    async def send(
        self,
        kind: Kind,
        method: str,
        path: str = "",
        *,
        body: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
    ) -> Answer:
        """Make one call. `path` is what follows the base path, percent-encoded."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._places:
            sent = loop.time()
            self.longest_wait = max(self.longest_wait, sent - asked)
            response, status = None, "timeout"
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    response = await self._client.request(method, SESSIONS + path, json=body, params=params)
                status = str(response.status_code)
            except (TimeoutError, httpx.TimeoutException):
                pass
            except httpx.HTTPError:
                status = "no answer"
            received = loop.time()
        answer = _judge(kind, response, status, sent, received)
        self.tallies[kind].add(answer.status, received - sent)
        if not answer.ok:
            self.failures.setdefault((kind, answer.status), _sentence(answer.body))
            if kind is not Kind.LIST:
                self.failed_at = received
        return answer

    async def held(self) -> bool:
        """Whether the tracker says that after an outage no session expires yet. Not tallied: no runner asks this."""
        try:
            async with self._places:
                response = await self._client.get("/ready")
            body = response.json()
        except (httpx.HTTPError, ValueError):
            return False
        store = body.get("store") if isinstance(body, dict) else None
        return isinstance(store, dict) and bool(store.get("heldUntil"))


def _judge(kind: Kind, response: httpx.Response | None, status: str, sent: float, received: float) -> Answer:
    if response is None:
        return Answer(status, sent, received)
    try:
        body = response.json()
    except ValueError:
        body = None
    expected, name, shape = EXPECTED[kind]
    if response.status_code != expected:
        return Answer(status, sent, received, body=body)
    value = body.get(name) if isinstance(body, dict) else None
    if type(value) is not shape:
        return Answer(f"{status} unreadable", sent, received, body=body)
    return Answer(status, sent, received, value, body)


def _sentence(body: Any) -> str:
    """What the tracker said about a refusal, in one line that fits."""
    error = body.get("error") if isinstance(body, dict) else None
    return " ".join(error.split())[:120] if isinstance(error, str) else ""


def _three_digits(seconds: float) -> float:
    return round(seconds, 2 - math.floor(math.log10(seconds))) if seconds > 0 else 0.0
