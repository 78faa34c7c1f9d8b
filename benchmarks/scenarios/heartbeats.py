"""Heartbeats by task, from one connection to hundreds."""

from __future__ import annotations

from benchmarks import load
from benchmarks.alternation import Subject, alternate, figures, p50_ratio, throughput_ratio
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.servers import BASELINES, etcd_is_installed
from benchmarks.stage import Stage

__all__ = ["heartbeats"]

LIVE = 1000
FLOOR = 0.75
SLOWEST = 2.0


def heartbeats(stage: Stage) -> Outcome:
    """Heartbeats by connections beside the no-op route; at some also raw ASGI, one EVALSHA a call, and etcd."""
    stage.redis.empty()
    stage.fill(range(LIVE))
    outcome = Outcome([])
    if not etcd_is_installed():
        outcome.notes.append("etcd is not on the PATH, so it was left out.")
    for connections in stage.plan.connections:
        _compare(stage, connections, outcome)
    return outcome


def _compare(stage: Stage, connections: int, outcome: Outcome) -> None:
    names = ["noop", "tracker"]
    if connections in stage.plan.peers_at:
        names += [name for name in BASELINES if name not in names]
        names += ["etcd"] if etcd_is_installed() else []
    subjects = []
    for name in names:
        server = stage.server(name)
        requests = load.etcd_keepalives(server) if name == "etcd" else load.heartbeats(server, LIVE)
        subjects.append(Subject(name, server, requests, connections))
    runs = dict(zip(names, alternate(stage, f"heartbeats, {connections} connections", subjects), strict=True))
    throughput = {name: throughput_ratio(of_one, runs["noop"]) for name, of_one in runs.items()}
    p50 = {name: p50_ratio(of_one, runs["noop"]) for name, of_one in runs.items()}
    outcome.rows.extend(
        Row(
            {"connections": connections, "subject": name},
            {**figures(of_one), "of_noop": throughput[name], "p50_of_noop": p50[name]},
        )
        for name, of_one in runs.items()
    )
    if connections == 1:
        what = "p50 of a heartbeat on one connection, in p50s of the no-op route"
        outcome.targets.append(Target(what, p50["tracker"].median, SLOWEST))
    elif connections == 32:
        what = "heartbeats on 32 connections, as a part of the no-op route's"
        outcome.targets.append(Target(what, throughput["tracker"].median, FLOOR, at_least=True))
    elif connections == 512:
        errors = sum(sum(run.sample.errors.values()) for run in runs["tracker"])
        outcome.targets.append(Target("errors on 512 connections", errors, 0))
