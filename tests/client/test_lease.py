"""One run's hold on its session, with time and answers at hand: what it tells when, and what it makes of answers."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from tracker.client.calls import BASE
from tracker.client.errors import (
    Conflict,
    IdempotencyMismatch,
    Invalid,
    NotFound,
    ServerFault,
    TrackerClientError,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)
from tracker.client.heartbeats import Heartbeats
from tracker.client.lease import Errand, Lease, Lost

TTL = 60.0
PERIOD = 20.0


class Bench:
    """A lease among heartbeats whose server is the test. Jitter is at its most: beats come a whole third of the TTL."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.lost: list[Lost] = []
        fields = {"agent_id": "a", "trigger_type": "t", "task_id": "t1", "ttl_seconds": TTL}
        fields |= {name: options.pop(name) for name in ("task_id", "on_conflict", "metadata") if name in options}
        self.lease = Lease(fields, self.now, on_lost=self.lost.append, chance=lambda: 1.0, **options)  # type: ignore[arg-type]
        self.heartbeats = Heartbeats(5, chance=lambda: 1.0)
        self.heartbeats.add(self.lease)
        self.sent = ""
        self.body: dict[str, Any] = {}
        self.key = ""

    def take(self) -> Errand:
        """The next errand, which must be due by now."""
        step = self.heartbeats.next(self.now)
        assert isinstance(step, Errand), step
        self.sent = step.call.method + step.call.path.removeprefix(BASE)
        self.body = json.loads(step.call.body or b"{}")
        self.key = step.call.headers.get("Idempotency-Key", "")
        return step

    def answer(self, answer: Any) -> str:
        """Answers the next errand; what it was."""
        self._tell(self.heartbeats.answered(self.take(), answer, self.now))
        return self.sent

    def fail(self, error: TrackerClientError) -> str:
        self._tell(self.heartbeats.failed(self.take(), error, self.now))
        return self.sent

    def _tell(self, losses: Any) -> None:
        for callback, lost in losses:
            callback(lost)

    def register(self, session_id: str = "s1") -> None:
        assert self.answer({"session": session(session_id)}) == "POST"

    def visible_loss(self) -> Lost | None:
        return self.lease.lost

    def rest(self) -> float | None:
        """How long nothing is to be sent."""
        step = self.heartbeats.next(self.now)
        assert not isinstance(step, Errand), step.call
        return step


def session(session_id: str) -> Any:
    return {"id": session_id, "ttlSeconds": TTL}


BEATEN = {"updated": True, "stopRequested": False}
GONE = {"updated": False}
AWAY = Unavailable("away")


def test_a_run_is_registered_beaten_every_third_of_its_ttl_and_deleted() -> None:
    bench = Bench()
    bench.register()
    for _ in range(3):
        assert bench.rest() == pytest.approx(PERIOD)
        bench.now += PERIOD
        assert bench.answer(BEATEN) == "PUT/s1/heartbeat"
    bench.lease.end()
    assert bench.answer({"deleted": True}) == "DELETE/s1"
    assert bench.rest() is None
    assert not bench.heartbeats


def test_jitter_makes_heartbeats_earlier_never_later() -> None:
    bench = Bench()
    bench.lease._chance = lambda: 0.0
    bench.register()
    assert bench.rest() == pytest.approx(PERIOD * 0.75)


def test_while_the_server_is_away_it_is_tried_again_in_growing_steps_with_one_key() -> None:
    bench = Bench()
    rests, keys = [], set()
    for _ in range(9):
        bench.fail(AWAY)
        keys.add(bench.key)
        rests.append(bench.rest() or 0)
        bench.now += rests[-1]
    assert rests == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])
    assert len(keys) == 1
    assert bench.lost == []
    bench.register()
    assert bench.answer(BEATEN) == "PUT/s1/heartbeat", "at once: what an unanswered try made may have expired"
    assert bench.rest() == pytest.approx(PERIOD)


def test_what_is_told_before_it_is_registered_is_delivered_after() -> None:
    bench = Bench()
    bench.fail(AWAY)
    bench.lease.set_provider_session("p", bench.now)
    bench.lease.set_progress("early", bench.now)
    bench.lease.set_progress("late", bench.now)
    bench.now += 1
    bench.register()
    assert bench.answer({"updated": True}) == "PUT/provider-session/t1"
    assert bench.body == {"providerSessionId": "p", "sessionId": "s1"}
    assert bench.answer(BEATEN) == "PUT/s1/heartbeat"
    assert bench.body == {"progress": "late"}
    assert bench.rest() == pytest.approx(PERIOD)


def test_an_unanswered_registration_that_expired_meanwhile_is_made_anew_under_another_key() -> None:
    bench = Bench()
    bench.fail(AWAY)
    bench.now += 100
    bench.register()
    first = bench.key
    assert bench.answer(GONE) == "PUT/s1/heartbeat"
    assert bench.fail(NotFound("nobody")) == "GET/by-task/t1"
    bench.register("s2")
    assert bench.key != first
    assert bench.body["onConflict"] == "reject", "whoever took the task meanwhile keeps it"
    assert bench.lost == []


def test_progress_is_told_at_once_then_once_a_second_by_its_latest_word() -> None:
    bench = Bench()
    bench.register()
    bench.lease.set_progress("1", bench.now)
    assert bench.answer(BEATEN) == "PUT/s1/heartbeat"
    for text in ("2", "3"):
        bench.lease.set_progress(text, bench.now)
    assert bench.rest() == pytest.approx(1)
    bench.now += 1
    bench.answer(BEATEN)
    assert bench.body == {"progress": "3"}
    assert bench.rest() == pytest.approx(PERIOD), "it was a heartbeat as well"


def test_progress_that_is_told_while_an_earlier_one_is_under_way_is_not_forgotten() -> None:
    bench = Bench()
    bench.register()
    bench.lease.set_progress("1", bench.now)
    errand = bench.take()
    bench.lease.set_progress("2", bench.now)
    bench.heartbeats.answered(errand, BEATEN, bench.now)
    bench.now += 1
    bench.answer(BEATEN)
    assert bench.body == {"progress": "2"}


@pytest.mark.parametrize(
    ("text", "sent"), [("x" * 600, "x" * 511 + "…"), ("a\ud800b", "a?b"), ("", ""), ("x" * 512, "x" * 512)]
)
def test_progress_is_made_to_fit(text: str, sent: str) -> None:
    bench = Bench()
    bench.register()
    bench.lease.set_progress(text, bench.now)
    bench.answer(BEATEN)
    assert bench.body == {"progress": sent}


def test_a_stop_is_learned_from_a_heartbeat_and_not_forgotten() -> None:
    bench = Bench()
    bench.register()
    for stopping in (True, False):
        bench.now += PERIOD
        bench.answer({"updated": True, "stopRequested": stopping})
        assert bench.lease.stop_requested


def test_a_run_that_was_replaced_learns_by_whom_and_says_no_more() -> None:
    bench = Bench(reregister=True)
    bench.register()
    bench.now += PERIOD
    bench.answer(GONE)
    assert bench.answer({"session": session("other")}) == "GET/by-task/t1"
    assert bench.lost == [Lost("replaced", "s1", session("other"))]
    assert bench.lease.lost == bench.lost[0]
    assert bench.rest() is None
    bench.lease.end()
    assert bench.rest() is None
    assert not bench.heartbeats


def test_a_provider_session_is_guarded_and_a_successor_found_by_it() -> None:
    bench = Bench()
    bench.register()
    bench.lease.set_provider_session("p", bench.now)
    bench.fail(Conflict("another", session("other")))
    assert bench.lost == [Lost("replaced", "s1", session("other"))]
    assert not bench.lease.told_provider("p")


@pytest.mark.parametrize(("silence", "reason"), [(PERIOD, "ended"), (TTL, "expired")])
def test_a_session_that_is_gone_expired_or_was_ended(silence: float, reason: str) -> None:
    bench = Bench(task_id=None)
    bench.register()
    bench.now += silence
    bench.answer(GONE)
    assert [lost.reason for lost in bench.lost] == [reason]
    assert bench.rest() is None


def test_by_choice_it_registers_anew_and_tells_all_again() -> None:
    bench = Bench(reregister=True)
    bench.register()
    bench.lease.set_provider_session("p", bench.now)
    bench.answer({"updated": True})
    bench.lease.set_progress("half", bench.now)
    bench.answer(BEATEN)
    bench.now += PERIOD
    bench.answer(GONE)
    bench.fail(NotFound("nobody"))
    assert [lost.reason for lost in bench.lost] == ["ended"]
    assert bench.visible_loss() == bench.lost[0]
    bench.register("s2")
    assert bench.body["onConflict"] == "reject"
    assert bench.visible_loss() is None
    assert bench.answer({"updated": True}) == "PUT/provider-session/t1"
    assert bench.answer(BEATEN) == "PUT/s2/heartbeat"
    assert bench.body == {"progress": "half"}


def test_it_does_not_register_anew_over_a_successor() -> None:
    bench = Bench(reregister=True)
    bench.register()
    bench.now += PERIOD
    bench.answer(GONE)
    bench.fail(NotFound("nobody"))
    bench.fail(Conflict("another", session("other")))
    assert [lost.reason for lost in bench.lost] == ["ended", "replaced"]
    assert bench.rest() is None


def test_a_registration_that_is_refused_later_is_a_loss() -> None:
    bench = Bench()
    bench.fail(AWAY)
    bench.now += 1
    error = Invalid("no", [])
    bench.fail(error)
    assert bench.lost == [Lost("refused", error=error)]
    assert bench.rest() is None


def test_a_key_that_is_refused_for_a_while_loses_nothing() -> None:
    bench = Bench()
    bench.register()
    bench.now += PERIOD
    bench.fail(Unauthorized("rotated"))
    bench.now += bench.rest() or 0
    assert bench.answer(BEATEN) == "PUT/s1/heartbeat"
    assert bench.lost == []


def test_what_hangs_is_not_kept_alive() -> None:
    bench = Bench(max_silence=30.0)
    bench.register()
    bench.now += PERIOD
    bench.answer(BEATEN)
    bench.now += PERIOD
    assert bench.rest() is None, "the work has told nothing for 40 s"
    bench.lease.set_progress("again", bench.now)
    assert bench.answer(BEATEN) == "PUT/s1/heartbeat"
    bench.now += PERIOD
    bench.lease.touch(bench.now)
    bench.answer(BEATEN)
    bench.now += PERIOD
    bench.answer(BEATEN)


def test_what_hangs_is_not_registered_either_but_ended_all_the_same() -> None:
    bench = Bench(max_silence=30.0)
    bench.fail(AWAY)
    bench.now += 30
    assert bench.rest() is None
    bench.lease.end()
    bench.register()
    assert bench.answer({"deleted": True}) == "DELETE/s1"


def test_what_is_left_to_tell_at_the_end_is_told_before_the_delete() -> None:
    bench = Bench()
    bench.register()
    bench.lease.set_progress("1", bench.now)
    bench.answer(BEATEN)
    bench.lease.set_provider_session("p", bench.now)
    bench.lease.set_progress("done", bench.now)
    bench.lease.end()
    told = [bench.answer({"updated": True}), bench.answer(BEATEN), bench.answer({"deleted": True})]
    assert told == ["PUT/provider-session/t1", "PUT/s1/heartbeat", "DELETE/s1"]


def test_a_run_that_ends_before_it_was_ever_sent_leaves_nothing_to_tell() -> None:
    bench = Bench()
    bench.fail(Unavailable("refused", sent=False))
    bench.lease.end()
    bench.now += 10
    assert bench.rest() is None
    assert not bench.heartbeats


def test_a_run_that_may_have_been_registered_is_found_by_its_key_and_deleted() -> None:
    bench = Bench()
    bench.fail(AWAY)
    key = bench.key
    bench.lease.end()
    bench.now += 10
    bench.register()
    assert bench.key == key
    assert bench.answer({"deleted": True}) == "DELETE/s1"


def test_a_delete_is_tried_for_as_long_as_the_session_can_live() -> None:
    bench = Bench()
    bench.register()
    bench.lease.end()
    bench.fail(AWAY)
    bench.now += TTL - 1
    bench.fail(AWAY)
    bench.now += 5
    assert bench.rest() is None
    assert not bench.heartbeats


def test_a_run_that_is_over_takes_the_task_from_nobody() -> None:
    """Its registration had no answer: maybe it has not arrived, and by now the task is another run's."""
    bench = Bench()
    bench.fail(AWAY)
    key = bench.key
    bench.lease.end()
    bench.now += 10
    bench.fail(Conflict("held", session("s2")))
    assert (bench.sent, bench.key, bench.body["onConflict"]) == ("POST", key, "reject")
    assert bench.rest() is None
    assert not bench.heartbeats
    assert bench.lost == []


def test_a_run_that_is_over_and_had_arrived_is_found_by_its_first_body() -> None:
    bench = Bench(on_conflict="replace")
    bench.fail(AWAY)
    first = bench.key, bench.body
    bench.lease.end()
    bench.now += 10
    bench.fail(IdempotencyMismatch("another body"))
    assert bench.body == {**first[1], "onConflict": "reject"}
    bench.fail(AWAY)
    assert (bench.key, bench.body) == first
    bench.now += 10
    bench.register()
    assert (bench.key, bench.body) == first
    assert bench.answer({"deleted": True}) == "DELETE/s1"


@pytest.mark.parametrize("error", [UnexpectedAnswer("a proxy's page"), ServerFault("bug"), Unauthorized("key")])
def test_nothing_that_is_never_taken_keeps_a_run_from_being_ended(error: TrackerClientError) -> None:
    bench = Bench()
    bench.register()
    bench.lease.set_provider_session("p", bench.now)
    bench.lease.set_progress("1", bench.now)
    for _ in range(3):
        assert bench.fail(error) == "PUT/provider-session/t1"
        bench.now += 10
    bench.lease.end()
    told = []
    for _ in range(2):
        told.append(bench.fail(error))
        bench.now += 10
    told.append(bench.answer({"deleted": True}))
    assert told == ["PUT/provider-session/t1", "PUT/s1/heartbeat", "DELETE/s1"]


def test_what_can_never_be_sent_is_raised_to_who_tells_it_and_forgotten() -> None:
    bench = Bench()
    bench.register()
    with pytest.raises(TypeError):
        bench.lease.set_provider_session(uuid4(), bench.now)  # type: ignore[arg-type]
    assert bench.rest() == PERIOD
    with pytest.raises(TypeError):
        Bench(metadata={"key": uuid4()})


def test_a_session_without_an_id_is_no_answer() -> None:
    bench = Bench()
    assert bench.answer({"session": {"id": 5, "ttlSeconds": TTL}}) == "POST"
    bench.now += 1
    bench.register()


def test_a_run_without_a_task_has_no_provider_session() -> None:
    with pytest.raises(ValueError, match="task_id"):
        Bench(task_id=None).lease.set_provider_session("p", 0)
