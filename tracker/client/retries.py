"""When to try again, and when to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tracker.client.errors import TrackerClientError, Unavailable

__all__ = ["Attempts", "Retries", "backoff"]

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5.0
DOUBLINGS = 16


def backoff(
    failures: int, longest: float = LONGEST_DELAY_SECONDS, chance: Callable[[], float] = random.random
) -> float:
    """Seconds to wait after so many failures in a row: doubling, and spread by half, lest all come back at once."""
    delay: float = FIRST_DELAY_SECONDS * 2 ** min(failures - 1, DOUBLINGS)
    return min(longest, delay) * (0.5 + chance() / 2)


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a call may take: ``timeout_seconds`` for the server to say anything, ``deadline_seconds`` in all."""

    timeout_seconds: float = 5.0
    deadline_seconds: float = 30.0

    def attempts(self, repeatable: bool, clock: Callable[[], float] = time.monotonic) -> Attempts:
        return Attempts(self, repeatable, clock)


class Attempts:
    """The tries of one call."""

    def __init__(self, retries: Retries, repeatable: bool, clock: Callable[[], float]) -> None:
        self._retries = retries
        self._repeatable = repeatable
        self._clock = clock
        self._failures = 0
        self.deadline = clock() + retries.deadline_seconds
        """By when all is over, on the clock."""

    @property
    def timeout(self) -> float:
        """Seconds that the server has, in the next try, to say anything."""
        return max(0.001, min(self._retries.timeout_seconds, self.deadline - self._clock()))

    def delay_after(self, error: TrackerClientError) -> float:
        """Seconds to wait before the next try. Raises the error when there should be none."""
        if not isinstance(error, Unavailable) or not (self._repeatable or not error.sent):
            raise error
        self._failures += 1
        delay = max(backoff(self._failures), error.retry_after or 0)
        if self._clock() + delay >= self.deadline:
            raise error
        return delay
