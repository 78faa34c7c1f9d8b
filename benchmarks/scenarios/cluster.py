"""Heartbeats on clusters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from benchmarks import load
from benchmarks.alternation import Run, check, cpu_us, figures
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.redis_cluster import RedisCluster, running_cluster
from benchmarks.servers import Server, running_server
from benchmarks.sessions import fill
from benchmarks.spread import ratios
from benchmarks.stage import Stage
from benchmarks.wire import answer_length

__all__ = ["cluster"]

PODS = 2
CONNECTIONS = 32
"""Of each pod."""
SHARDS = 64
LIVE = 10_000
WARM_UP_SECONDS = 1
GROWTH = 1.2


def cluster(stage: Stage) -> Outcome:
    """Heartbeats on clusters of one, two and three masters, by two pods at once: processor time of pods and Redis."""
    outcome = Outcome([])
    with ExitStack() as started:
        pairs: list[tuple[RedisCluster, list[Server]]] = []
        for masters in stage.plan.masters:
            stage.say(f"cluster: starting {masters} masters and {PODS} pods")
            redis = started.enter_context(running_cluster(stage.directory, masters))
            fill(redis, range(LIVE), shards=SHARDS)
            pods = [
                started.enter_context(running_server("tracker", stage.directory, redis, shards=SHARDS))
                for _ in range(PODS)
            ]
            pairs.append((redis, pods))
            _measure(stage, redis, pods, WARM_UP_SECONDS)
        runs: list[list[list[Run]]] = [[] for _ in pairs]
        for number in range(stage.plan.rounds):
            order = range(len(pairs)) if number % 2 == 0 else reversed(range(len(pairs)))
            for place in order:
                masters = stage.plan.masters[place]
                stage.say(f"cluster: round {number + 1} of {stage.plan.rounds}, {masters} masters")
                runs[place].append(_measure(stage, *pairs[place], stage.plan.seconds))
        stage.say("ending what was started")
    together = [[_sum(of_pods) for of_pods in of_one] for of_one in runs]
    costs = [ratios(cpu_us(of_one), cpu_us(together[0])) for of_one in together]
    outcome.rows.extend(
        Row({"masters": masters, "pods": PODS}, {**figures(of_one), "cpu_of_fewest": cost})
        for masters, of_one, cost in zip(stage.plan.masters, together, costs, strict=True)
    )
    what = f"processor time of a heartbeat on {stage.plan.masters[-1]} masters, as a multiple of that on one"
    outcome.targets.append(Target(what, costs[-1].median, GROWTH))
    outcome.notes.append("p50 to p99.9: of the slower pod.")
    return outcome


def _measure(stage: Stage, redis: RedisCluster, pods: list[Server], seconds: int) -> list[Run]:
    """One run of each pod, all at once; the processor time of the cluster is shared by the pods' requests."""
    loads = [load.heartbeats(pod, LIVE) for pod in pods]
    lengths = [answer_length(pod, one.sample) if one.sample else None for pod, one in zip(pods, loads, strict=True)]
    before, redis_before = [pod.process.cpu_seconds() for pod in pods], redis.cpu_seconds()
    with ThreadPoolExecutor(len(pods)) as threads:
        running = [
            threads.submit(stage.wrk.run, pod, requests, CONNECTIONS, seconds)
            for pod, requests in zip(pods, loads, strict=True)
        ]
        samples = [one.result() for one in running]
    redis_us = (redis.cpu_seconds() - redis_before) * 1e6 / max(sum(sample.requests for sample in samples), 1)
    runs = []
    for pod, sample, length, earlier in zip(pods, samples, lengths, before, strict=True):
        check(stage.problems, f"cluster, pod on {len(redis.masters)} masters", sample, length, CONNECTIONS)
        runs.append(Run(sample, (pod.process.cpu_seconds() - earlier) * 1e6 / max(sample.requests, 1), redis_us))
    return runs


def _sum(runs: list[Run]) -> Run:
    """Of pods that worked side by side."""
    samples = [run.sample for run in runs]
    requests = sum(sample.requests for sample in samples)
    worst = max(samples, key=lambda sample: sample.p99_ms)
    whole = replace(worst, requests=requests, received=sum(sample.received for sample in samples))
    pods_us = sum(run.server_us * run.sample.requests for run in runs) / max(requests, 1)
    return Run(whole, pods_us, runs[0].redis_us)
