"""A second worker."""

from __future__ import annotations

import os

from benchmarks import load
from benchmarks.alternation import Subject, alternate, cpu_us, figures, throughput_ratio
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.spread import ratios
from benchmarks.stage import Stage

__all__ = ["workers"]

CONNECTIONS = 64
LIVE = 1000
COUNTS = (1, 2)
GAIN = 1.6
SURCHARGE = 1.1
ENOUGH_CORES = 4
"""For two workers, Redis and wrk."""


def workers(stage: Stage) -> Outcome:
    """One worker and two, on 64 connections: throughput, and processor time per heartbeat."""
    stage.redis.empty()
    stage.fill(range(LIVE))
    outcome = Outcome([])
    subjects = []
    for kind in stage.plan.scaled:
        for count in COUNTS:
            server = stage.server(kind, count)
            name = f"{kind}, {count} workers"
            subjects.append(Subject(name, server, load.heartbeats(server, LIVE), CONNECTIONS))
    runs = iter(alternate(stage, "workers", subjects))
    gain, surcharge = {}, {}
    for kind in stage.plan.scaled:
        one, two = next(runs), next(runs)
        gain[kind], surcharge[kind] = throughput_ratio(two, one), ratios(cpu_us(two), cpu_us(one))
        doubled = {"of_one_worker": gain[kind], "cpu_of_one_worker": surcharge[kind]}
        outcome.rows.append(Row({"subject": kind, "workers": 1}, figures(one)))
        outcome.rows.append(Row({"subject": kind, "workers": 2}, {**figures(two), **doubled}))
    cores = os.cpu_count() or 1
    if cores >= ENOUGH_CORES:
        what = "throughput of two workers, as a multiple of one's"
        outcome.targets.append(Target(what, gain["tracker"].median, GAIN, at_least=True))
    else:
        what = "processor time of a heartbeat with two workers, as a multiple of one's"
        outcome.targets.append(Target(what, surcharge["tracker"].median, SURCHARGE))
        outcome.notes.append(f"{cores} cores for two workers, Redis and wrk: too few to tell by throughput.")
    return outcome
