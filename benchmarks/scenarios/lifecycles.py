"""Sessions that are created and deleted again."""

from __future__ import annotations

from benchmarks import load
from benchmarks.alternation import Subject, alternate, figures, throughput_ratio
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.servers import Server
from benchmarks.stage import Stage

__all__ = ["lifecycles"]

CONNECTIONS = 32
FLOOR = 0.5
LIVE = 1000


def lifecycles(stage: Stage) -> Outcome:
    """Creates and deletes, one of each in turn on 32 connections, beside the no-op route under the same requests."""
    stage.redis.empty()
    stage.fill(range(LIVE))
    tracker, noop = stage.server("tracker"), stage.server("noop")
    subjects = [Subject("noop", noop, load.lifecycles(noop, CONNECTIONS), CONNECTIONS)]
    subjects.append(Subject("tracker", tracker, load.lifecycles(tracker, CONNECTIONS), CONNECTIONS))
    floor, runs = alternate(stage, "creates and deletes", subjects)
    _check(stage, tracker)
    ratio = throughput_ratio(runs, floor)
    rows = [
        Row({"subject": "noop"}, figures(floor)),
        Row({"subject": "tracker"}, {**figures(runs), "of_noop": ratio}),
    ]
    what = "creates and deletes on 32 connections, as a part of the no-op route's"
    return Outcome(rows, [Target(what, ratio.median, FLOOR, at_least=True)])


def _check(stage: Stage, tracker: Server) -> None:
    """Every create made a session, and every delete but those still to come ended one: none was answered in vain."""
    with tracker.client() as client:
        stats = client.get("/api/active-sessions/stats").raise_for_status().json()
    runs = stage.plan.rounds + 1  # and the one to warm up
    if stats["ended"]["replaced"] or stats["sessions"] > LIVE + runs * (5 * CONNECTIONS):
        stage.problems.append(f"creates and deletes: more sessions are left than there should be: {stats}")
