"""Providers' session ids, noted on live sessions."""

from __future__ import annotations

from benchmarks import load
from benchmarks.alternation import Subject, alternate, figures, throughput_ratio
from benchmarks.outcome import Outcome, Row
from benchmarks.stage import Stage

__all__ = ["provider_sessions"]

CONNECTIONS = 32
LIVE = 1000


def provider_sessions(stage: Stage) -> Outcome:
    """Provider sessions, a new one with each of the calls on 32 connections, beside the no-op route."""
    stage.redis.empty()
    stage.fill(range(LIVE))
    subjects = [
        Subject(name, stage.server(name), load.provider_sessions(stage.server(name), LIVE), CONNECTIONS)
        for name in ("noop", "tracker")
    ]
    floor, runs = alternate(stage, "provider sessions", subjects)
    return Outcome(
        [
            Row({"subject": "noop"}, figures(floor)),
            Row({"subject": "tracker"}, {**figures(runs), "of_noop": throughput_ratio(runs, floor)}),
        ]
    )
