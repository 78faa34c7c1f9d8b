"""When a call is tried again: only where that is safe, spread, in growing steps, and never past the deadline."""

from __future__ import annotations

import pytest

from tracker.client.errors import Refused, TrackerClientError, Unavailable
from tracker.client.retries import Retries, backoff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_delays_double_to_a_limit_and_are_spread_by_half() -> None:
    assert [backoff(n, 5, lambda: 1.0) for n in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert backoff(3, 5, lambda: 0.0) == pytest.approx(0.2)
    assert backoff(10_000, 5, lambda: 1.0) == 5


def test_an_unanswered_call_is_repeated_only_when_that_is_safe() -> None:
    lost = Unavailable("lost")
    assert Retries().attempts(True).delay_after(lost) > 0
    with pytest.raises(Unavailable):
        Retries().attempts(False).delay_after(lost)
    assert Retries().attempts(False).delay_after(Unavailable("never left", sent=False)) > 0


@pytest.mark.parametrize("error", [Refused("no"), TrackerClientError("?")])
def test_a_refusal_is_never_repeated(error: TrackerClientError) -> None:
    with pytest.raises(type(error)):
        Retries().attempts(True).delay_after(error)


def test_the_server_says_how_long_to_wait() -> None:
    assert Retries().attempts(True).delay_after(Unavailable("busy", retry_after=7)) == 7


def test_no_try_begins_behind_the_deadline() -> None:
    clock = Clock()
    attempts = Retries(timeout_seconds=4, deadline_seconds=10).attempts(True, clock)
    assert attempts.timeout == 4
    clock.now += 8
    assert attempts.timeout == 2
    with pytest.raises(Unavailable):
        attempts.delay_after(Unavailable("busy", retry_after=2))
    clock.now += 1.95
    with pytest.raises(Unavailable):
        attempts.delay_after(Unavailable("lost"))
