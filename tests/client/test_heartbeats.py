"""Many runs in one process: what they share, and that none is in the way of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client.test_lease import AWAY, BEATEN, PERIOD, TTL, session
from tracker.client.errors import ServerFault, Unavailable
from tracker.client.heartbeats import Heartbeats
from tracker.client.lease import Errand, Lease
from tracker.models import BATCH_TARGETS

NOTHING_MISSING: dict[str, list[str]] = {"taskIds": [], "sessionIds": []}


def registered(heartbeats: Heartbeats, count: int, now: float, **options: Any) -> list[Lease]:
    leases = []
    for _ in range(count):
        lease = Lease({"agent_id": "a", "trigger_type": "t", "ttl_seconds": TTL}, now, **options)
        errand = lease.errand(now)
        assert errand
        heartbeats.add(lease)
        heartbeats.answered(errand, {"session": session(f"s{len(heartbeats.leases)}")}, now)
        leases.append(lease)
    return leases


def taken(heartbeats: Heartbeats, now: float) -> tuple[Errand, list[str]]:
    """The next errand, and the ids that it beats for."""
    errand = heartbeats.next(now)
    assert isinstance(errand, Errand)
    return errand, json.loads(errand.call.body or b"{}").get("sessionIds", [])


def test_runs_that_are_due_together_share_a_call() -> None:
    heartbeats = Heartbeats(5)
    registered(heartbeats, 200, 0)
    errand, ids = taken(heartbeats, PERIOD)
    assert len(set(ids)) == 200
    heartbeats.answered(errand, {"updated": 200, "missing": NOTHING_MISSING}, PERIOD)
    step = heartbeats.next(PERIOD)
    assert isinstance(step, float)
    assert step > PERIOD / 2


def test_runs_that_began_at_different_times_come_to_share() -> None:
    heartbeats = Heartbeats(5)
    for moment in range(0, 20, 2):
        registered(heartbeats, 1, moment)
    now, sizes = 20.0, []
    while now < 200:
        step = heartbeats.next(now)
        if isinstance(step, Errand):
            ids = json.loads(step.call.body or b"{}").get("sessionIds", [])
            sizes.append(len(ids) or 1)
            heartbeats.answered(step, {"updated": len(ids), "missing": NOTHING_MISSING} if ids else BEATEN, now)
        else:
            assert step
            now += step
    assert sizes[-5:] == [10] * 5


def test_a_batch_has_a_limit_and_the_rest_follows_at_once() -> None:
    heartbeats = Heartbeats(5)
    registered(heartbeats, BATCH_TARGETS + 5, 0)
    errand, first = taken(heartbeats, PERIOD)
    heartbeats.answered(errand, {"updated": len(first), "missing": NOTHING_MISSING}, PERIOD)
    _, second = taken(heartbeats, PERIOD)
    assert (len(first), len(second)) == (BATCH_TARGETS, 5)
    assert len({*first, *second}) == BATCH_TARGETS + 5


def test_a_batch_tells_who_is_missing_and_who_is_to_stop() -> None:
    heartbeats = Heartbeats(5)
    lost: list[Any] = []
    one, two, three = registered(heartbeats, 3, 0, on_lost=lost.append)
    errand, _ = taken(heartbeats, PERIOD)
    answer = {
        "updated": 2,
        "missing": {"taskIds": [], "sessionIds": [one.session_id]},
        "stopRequested": {"taskIds": [], "sessionIds": [two.session_id]},
    }
    losses = heartbeats.answered(errand, answer, PERIOD)
    assert [told.session_id for _, told in losses] == [one.session_id]
    assert (two.stop_requested, three.stop_requested) == (True, False)


def test_a_missing_id_that_the_run_has_left_behind_is_no_loss() -> None:
    heartbeats = Heartbeats(5)
    leases = registered(heartbeats, 2, 0)
    errand, ids = taken(heartbeats, PERIOD)
    leases[0].session = session("new")
    heartbeats.answered(errand, {"updated": 1, "missing": {"taskIds": [], "sessionIds": [ids[0]]}}, PERIOD)
    assert leases[0].lost is None


def test_what_hangs_is_left_out() -> None:
    heartbeats = Heartbeats(5)
    registered(heartbeats, 2, 0)
    registered(heartbeats, 2, 0, max_silence=1.0)
    _, ids = taken(heartbeats, PERIOD)
    assert len(ids) == 2


def test_however_many_runs_one_probe_goes_out_while_the_server_is_away() -> None:
    heartbeats = Heartbeats(5, chance=lambda: 1.0)
    for _ in range(100):
        heartbeats.add(Lease({"agent_id": "a", "trigger_type": "t"}, 0))
    probes, now = 0, 0.0
    while now < 60:
        step = heartbeats.next(now)
        if isinstance(step, Errand):
            probes += 1
            heartbeats.failed(step, AWAY, now)
        else:
            assert step
            now += step
    assert probes < 25


def test_the_server_says_how_long_to_wait_but_not_beyond_what_the_runs_can_bear() -> None:
    heartbeats = Heartbeats(5, chance=lambda: 1.0)
    registered(heartbeats, 2, 0)
    errand, _ = taken(heartbeats, PERIOD)
    heartbeats.failed(errand, Unavailable("busy", retry_after=3), PERIOD)
    assert heartbeats.next(PERIOD) == 3
    errand, _ = taken(heartbeats, PERIOD + 3)
    heartbeats.failed(errand, Unavailable("busy", retry_after=3600), PERIOD + 3)
    assert heartbeats.next(PERIOD + 3) == TTL / 6


def test_runs_that_are_over_are_not_told_of_once_their_sessions_would_have_expired() -> None:
    """However many they are: one probe goes out per backoff, and none of them waits for its turn."""
    heartbeats = Heartbeats(5, chance=lambda: 1.0)
    leases = [Lease({"agent_id": "a", "trigger_type": "t", "ttl_seconds": TTL}, 0) for _ in range(100)]
    for lease in leases:
        heartbeats.add(lease)
        errand = lease.errand(0)
        assert errand
        heartbeats.failed(errand, AWAY, 0)
        lease.end()
    errand, _ = taken(heartbeats, TTL - 1)
    heartbeats.failed(errand, AWAY, TTL - 1)
    assert heartbeats.next(TTL) is None
    assert not heartbeats


def test_who_closes_waits_for_no_long_backoff() -> None:
    heartbeats = Heartbeats(5, chance=lambda: 1.0)
    registered(heartbeats, 1, 0)
    now = PERIOD
    for _ in range(6):
        errand, _ = taken(heartbeats, now)
        heartbeats.failed(errand, AWAY, now)
        now += 5
    now -= 5
    assert heartbeats.next(now) == pytest.approx(3.2)
    heartbeats.close(now)
    for _ in range(5):
        assert heartbeats.next(now) == pytest.approx(0.2)
        now += 0.21
        errand, _ = taken(heartbeats, now)
        assert errand.call.method == "DELETE"
        heartbeats.failed(errand, Unavailable("busy", retry_after=3), now)


def test_one_that_always_fails_is_in_nobodys_way() -> None:
    heartbeats = Heartbeats(5, chance=lambda: 1.0)
    bad, good = registered(heartbeats, 2, 0)
    now = 0.0
    for lease in (bad, good):
        lease.set_progress("x", now)
    told = 0
    for _ in range(40):
        step = heartbeats.next(now)
        if not isinstance(step, Errand):
            now += step or 1
            good.set_progress("x", now)
        elif str(bad.session_id) in step.call.path:
            heartbeats.failed(step, ServerFault("bug"), now)
        else:
            told += 1
            heartbeats.answered(step, BEATEN, now)
    assert told >= 3


def test_an_answer_that_makes_no_sense_is_a_failure_and_tried_again() -> None:
    heartbeats = Heartbeats(5, chance=lambda: 1.0)
    lease = Lease({"agent_id": "a", "trigger_type": "t"}, 0)
    heartbeats.add(lease)
    errand, _ = taken(heartbeats, 0)
    heartbeats.answered(errand, {"session": {"id": "s1"}}, 0)
    assert lease.session is None
    assert heartbeats.next(0) == 0.1
    errand, _ = taken(heartbeats, 1)
    heartbeats.answered(errand, {"session": session("s1")}, 1)
    assert lease.session_id == "s1"


def test_an_answer_may_not_take_a_whole_ttl() -> None:
    heartbeats = Heartbeats(5)
    assert heartbeats.timeout == 5
    heartbeats.add(Lease({"agent_id": "a", "trigger_type": "t", "ttl_seconds": 6}, 0))
    assert heartbeats.timeout == 2
    heartbeats.add(Lease({"agent_id": "a", "trigger_type": "t", "ttl_seconds": 1}, 0))
    assert heartbeats.timeout == 0.5
