"""Taking turns: in each round every subject runs once, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import Load
from benchmarks.servers import Server
from benchmarks.spread import Spread, ratios
from benchmarks.stage import Stage
from benchmarks.wire import answer_length
from benchmarks.wrk import Sample

__all__ = ["Run", "Subject", "alternate", "check", "cpu_us", "figures", "p50_ratio", "throughput_ratio"]

WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Subject:
    """Who answers which load on how many connections."""

    name: str
    server: Server
    load: Load
    connections: int


@dataclass(frozen=True)
class Run:
    """One run: what wrk saw, and the processor time that a request cost the server and its Redis (microseconds)."""

    sample: Sample
    server_us: float
    redis_us: float | None

    @property
    def cpu_us(self) -> float:
        return self.server_us + (self.redis_us or 0)


def alternate(stage: Stage, title: str, subjects: Sequence[Subject]) -> list[list[Run]]:
    """The runs of each subject, in the order of the rounds. Errors go to the stage's problems."""
    for subject in subjects:
        if subject.server.port not in stage.warm:
            stage.say(f"{title}: warming {subject.name} up")
            stage.warm.add(subject.server.port)
            stage.wrk.run(subject.server, subject.load, subject.connections, WARM_UP_SECONDS)
    lengths = [
        None if subject.load.sample is None else answer_length(subject.server, subject.load.sample)
        for subject in subjects
    ]
    runs: list[list[Run]] = [[] for _ in subjects]
    for number in range(stage.plan.rounds):
        # Back and forth, so that whatever drifts meets the first as much as the last.
        order = range(len(subjects)) if number % 2 == 0 else reversed(range(len(subjects)))
        for place in order:
            subject = subjects[place]
            stage.say(f"{title}: round {number + 1} of {stage.plan.rounds}, {subject.name}")
            run = _measure(stage, subject)
            check(stage.problems, f"{title}, {subject.name}", run.sample, lengths[place], subject.connections)
            runs[place].append(run)
    return runs


def check(problems: list[str], title: str, sample: Sample, length: int | None, connections: int) -> None:
    """Notes errors, and answers that were not as long as they had to be.

    wrk counts the bytes of answers that were under way at the end, but not the answers.
    """
    if sample.errors:
        errors = ", ".join(f"{count} {name}" for name, count in sample.errors.items())
        problems.append(f"{title}: errors in {sample.requests} requests: {errors}")
    elif not sample.requests:
        problems.append(f"{title}: not a single answer")
    elif length is not None and not 0 <= sample.received - sample.requests * length <= connections * length:
        problems.append(
            f"{title}: {sample.requests} answers of {length} bytes should be "
            f"{sample.requests * length} bytes, but {sample.received} came: some are not what they should be"
        )


def figures(runs: Sequence[Run]) -> dict[str, Spread]:
    """What stands in a row of the table, but for ratios."""
    known = {
        "requests_per_second": Spread.of(run.sample.per_second for run in runs),
        "p50_ms": Spread.of(run.sample.p50_ms for run in runs),
        "p99_ms": Spread.of(run.sample.p99_ms for run in runs),
        "p999_ms": Spread.of(run.sample.p999_ms for run in runs),
        "server_cpu_us": Spread.of(run.server_us for run in runs),
    }
    if redis := [run.redis_us for run in runs if run.redis_us is not None]:
        known["redis_cpu_us"] = Spread.of(redis)
    return known


def throughput_ratio(runs: Sequence[Run], floor: Sequence[Run]) -> Spread:
    return ratios([run.sample.per_second for run in runs], [run.sample.per_second for run in floor])


def p50_ratio(runs: Sequence[Run], floor: Sequence[Run]) -> Spread:
    return ratios([run.sample.p50_ms for run in runs], [run.sample.p50_ms for run in floor])


def cpu_us(runs: Sequence[Run]) -> list[float]:
    """Per request, of server and Redis together."""
    return [run.cpu_us for run in runs]


def _measure(stage: Stage, subject: Subject) -> Run:
    server, redis = subject.server, subject.server.redis
    server_before, redis_before = server.process.cpu_seconds(), redis.cpu_seconds() if redis else 0.0
    sample = stage.wrk.run(server, subject.load, subject.connections, stage.plan.seconds)
    each = 1e6 / max(sample.requests, 1)
    return Run(
        sample,
        (server.process.cpu_seconds() - server_before) * each,
        (redis.cpu_seconds() - redis_before) * each if redis else None,
    )
