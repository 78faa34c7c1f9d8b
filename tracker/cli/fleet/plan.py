"""What a simulated fleet means to do: the options with their bounds, and every run drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal
from uuid import UUID

THROTTLE_SECONDS = 5.0  # runners send at most one heartbeat in 5 s (API.md, section 1)
DESCRIPTION_CUT = 200  # characters of the task description that runners send (the same)
AGENTS_MAX = 10_000
RUNS_MAX = 20_000  # at the same time: each is an asyncio task with a pending call
SECONDS_MAX = 86_400.0
ATTEMPTS_MAX = 3

TRIGGERS = ("task_assigned", "task_resumed", "inbox_message", "schedule")
WORDS = ("fix", "flaky", "test", "rebase", "review", "release", "notes", "slow", "query", "rename", "dead", "code")

Ending = Literal["deleted", "crashed", "superseded"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One session of a run: the waits before each of its tool calls (seconds), and how it ends."""

    waits: tuple[float, ...]
    ending: Ending


@dataclass(frozen=True, slots=True)
class Run:
    """One task as one agent works on it. Each attempt but the last is superseded by the next."""

    idle: float
    trigger: str
    description: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of a simulation. The same seed draws the same runs for each agent, whatever the tracker answers.

    Raises ValueError, one clear line, for an option out of bounds.
    """

    agents: int = 20
    seconds: float = 30.0
    runs_per_agent: int = 2
    ttl: float = 10.0
    crash_rate: float = 0.1
    retry_rate: float = 0.1
    sweep: float = 5.0
    seed: int = 0
    leave: bool = False

    def __post_init__(self) -> None:
        bounds: tuple[tuple[str, float, float, float], ...] = (
            ("--agents", self.agents, 1, AGENTS_MAX),
            ("--seconds", self.seconds, 1, SECONDS_MAX),
            ("--runs-per-agent", self.runs_per_agent, 1, 100),
            ("--ttl", self.ttl, 1, SECONDS_MAX),
            ("--crash-rate", self.crash_rate, 0, 1),
            ("--retry-rate", self.retry_rate, 0, 1),
            ("--sweep-interval", self.sweep, 0, 3600),
            ("--seed", self.seed, 0, 2**64 - 1),
        )
        for option, value, low, high in bounds:
            if not low <= value <= high:  # also refuses NaN
                raise ValueError(f"{option} must be between {low:,.0f} and {high:,.0f}, not {value:g}")
        if self.agents * self.runs_per_agent > RUNS_MAX:
            raise ValueError(f"--agents times --runs-per-agent must be at most {RUNS_MAX:,} runs at the same time")

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats of a run: the runners' throttle, or less where the TTL asks for it."""
        return min(THROTTLE_SECONDS, self.ttl / 3)

    def agent_id(self, nonce: str, agent: int) -> str:
        """A UUID 4 that no other simulation has, whatever its seed."""
        return str(UUID(int=self._dice(nonce, agent).getrandbits(128), version=4))

    def boot(self, agent: int) -> float:
        """Seconds until an agent boots: not all at the same moment."""
        return self._dice(agent).uniform(0, min(self.beat, self.seconds / 4))

    def last_call(self, agent: int, slot: int) -> float:
        """Seconds until a slot of an agent takes no further tool call: the fleet winds down, it does not stop dead."""
        return self.seconds - self._dice(agent, slot).uniform(0, min(self.beat, self.seconds / 4))

    def run(self, agent: int, slot: int, number: int) -> Run:
        """The run that an agent does in one of its slots as its `number`-th."""
        dice = self._dice(agent, slot, number)
        again = 0
        while again < ATTEMPTS_MAX - 1 and dice.random() < self.retry_rate:
            again += 1
        endings: list[Ending] = ["superseded"] * again
        endings.append("crashed" if dice.random() < self.crash_rate else "deleted")
        return Run(
            idle=dice.uniform(0, self.beat),
            trigger=dice.choice(TRIGGERS),
            description=" ".join(dice.choices(WORDS, k=dice.randint(3, 80))),
            attempts=tuple(Attempt(self._waits(dice), ending) for ending in endings),
        )

    def _waits(self, dice: Random) -> tuple[float, ...]:
        """Most tool calls come faster than the throttle lets heartbeats through. The throttle and one wait together
        stay below two thirds of the TTL, so a run that keeps its pace never expires."""
        total = dice.uniform(1, 5) * self.beat
        waits = []
        while total > 0:
            waits.append(min(self.beat, dice.expovariate(2 / self.beat)))
            total -= waits[-1]
        return tuple(waits)

    def _dice(self, *of: object) -> Random:
        return Random("/".join(map(str, (self.seed, *of))))  # noqa: S311 - a plan to repeat, not a secret
