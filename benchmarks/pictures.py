"""Which charts are drawn, and of what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.outcome import Outcome, Row
from benchmarks.plot import Bar, Line, bar_chart, line_chart
from benchmarks.report import SUBJECTS
from benchmarks.scenarios.heartbeats import FLOOR
from benchmarks.spread import Spread

__all__ = ["draw"]

ROUNDS = "Medians over rounds; thin lines show the spread."
COMPARED_AT = 32


def draw(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """SVG documents by file name, for the scenarios that ran."""
    pictures = {}
    for name, scenario, picture in PICTURES:
        if scenario in outcomes and (drawn := picture(outcomes[scenario])):
            pictures[name] = drawn
    return pictures


def _peers(outcome: Outcome) -> str | None:
    rows = [(subject, outcome.find(subject=subject, connections=COMPARED_AT)) for subject in SUBJECTS]
    bars = [Bar(SUBJECTS[name], name, row.figures["requests_per_second"]) for name, row in rows if row]
    bars.sort(key=lambda bar: -bar.value.median)
    title = f"Heartbeats per second on {COMPARED_AT} connections, one worker"
    return bar_chart(title, ROUNDS, bars) if bars else None


def _throughput(outcome: Outcome) -> str | None:
    places = _connections(outcome)
    points = _points(outcome, "tracker", "of_noop", places)
    return line_chart(
        "Heartbeats per second, as a part of what a no-op route answers",
        ROUNDS,
        [str(place) for place in places],
        [Line(SUBJECTS["tracker"], "tracker", points)],
        x_label="connections",
        target=(FLOOR, f"target on {COMPARED_AT} connections"),
    )


def _latency(outcome: Outcome) -> str | None:
    places = _connections(outcome)
    lines = [
        Line(f"{SUBJECTS[subject]}, {label}", subject, _points(outcome, subject, figure, places), dashed)
        for subject in ("tracker", "noop")
        for figure, label, dashed in (("p50_ms", "p50", False), ("p99_ms", "p99", True))
    ]
    return line_chart(
        "Latency of a heartbeat under full load, in milliseconds",
        ROUNDS,
        [str(place) for place in places],
        lines,
        x_label="connections",
        logarithmic=True,
    )


def _sizes(outcome: Outcome) -> str | None:
    lines = [
        Line("tracker", "tracker", _figures(outcome.rows, "server_cpu_us")),
        Line("Redis", "redis", _figures(outcome.rows, "redis_cpu_us")),
    ]
    return line_chart(
        "Processor time of a heartbeat, in microseconds",
        ROUNDS,
        [f"{row.setting['sessions']:,}" for row in outcome.rows],
        lines,
        x_label="live sessions",
    )


PICTURES: tuple[tuple[str, str, Callable[[Outcome], str | None]], ...] = (
    ("peers.svg", "heartbeats", _peers),
    ("throughput.svg", "heartbeats", _throughput),
    ("latency.svg", "heartbeats", _latency),
    ("sizes.svg", "sizes", _sizes),
)


def _connections(outcome: Outcome) -> list[int]:
    return sorted({int(row.setting["connections"]) for row in outcome.rows})


def _points(outcome: Outcome, subject: str, figure: str, places: list[int]) -> list[Spread | None]:
    rows = [outcome.find(subject=subject, connections=place) for place in places]
    return [row.figures.get(figure) if row else None for row in rows]


def _figures(rows: list[Row], figure: str) -> list[Spread | None]:
    return [row.figures.get(figure) for row in rows]
