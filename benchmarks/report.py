"""What people see on the terminal: a table for each scenario, then how the figures stand against the targets."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.outcome import Outcome, Target
from benchmarks.spread import Spread

__all__ = ["COLUMNS", "SUBJECTS", "show_outcome", "show_targets"]

SUBJECTS = {
    "tracker": "tracker",
    "noop": "no-op route",
    "raw": "raw ASGI",
    "plain": "one EVALSHA a call",
    "etcd": "etcd keepalive",
}

COLUMNS = {
    "created_per_second": "created/s",
    "requests_per_second": "req/s",
    "of_noop": "of no-op",
    "of_one_worker": "of one's",
    "p50_ms": "p50 ms",
    "p50_of_noop": "of no-op",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "server_cpu_us": "server CPU µs",
    "redis_cpu_us": "Redis CPU µs",
    "cpu_of_one_worker": "CPU, of one's",
    "cpu_of_fewest": "CPU, of fewest",
    "list_ms": "list ms",
    "dumps_ms": "json.dumps ms",
    "of_dumps": "of dumps",
    "growth_mb": "growth MB",
    "ended_per_second": "ended/s",
    "failover_ms": "failover ms",
    "others_p99_ms": "others' p99 ms meanwhile",
    "heartbeat_p50_ms": "heartbeat p50 ms",
    "heartbeat_p99_ms": "heartbeat p99 ms",
    "heartbeat_max_ms": "heartbeat max ms",
    "redis_longest_ms": "Redis longest ms",
    "total_bytes": "bytes",
    "hash_bytes": "session hash",
    "task_bytes": "task key",
    "sessions_bytes": "sessions",
    "deadlines_bytes": "deadlines",
    "agent_bytes": "agent",
    "agents_bytes": "agents",
    "rest_bytes": "rest",
    "event_bytes": "an event",
}
"""Heads of the columns, in their order, by the names of figures."""

SPREAD_OUT = {
    "requests_per_second",
    "of_noop",
    "p50_of_noop",
    "of_one_worker",
    "cpu_of_one_worker",
    "cpu_of_fewest",
    "of_dumps",
}
"""Figures that are shown with their spread; of all others it is in the JSON."""


def show_outcome(console: Console, title: str, outcome: Outcome) -> None:
    """A table with the medians; of the main figures also the least and the greatest."""
    names = [name for name in COLUMNS if any(name in row.figures for row in outcome.rows)]
    settings = list(dict.fromkeys(name for row in outcome.rows for name in row.setting))
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in settings:
        table.add_column(name, justify="left" if name == "subject" else "right", no_wrap=True)
    for name in names:
        table.add_column(COLUMNS[name], justify="right", no_wrap=name in SPREAD_OUT)
    for row in outcome.rows:
        labels = [_label(row.setting.get(name, "")) for name in settings]
        figures = [_cell(row.figures.get(name), name in SPREAD_OUT) for name in names]
        table.add_row(*labels, *figures)
    console.print(table)
    for note in outcome.notes:
        console.print(note, style="dim")


def show_targets(console: Console, targets: Iterable[Target]) -> None:
    """Each target beside its figure: reached, or short by how much."""
    table = Table(title="Targets", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for head, side in (("", "left"), ("figure", "right"), ("target", "right"), ("", "left")):
        table.add_column(head, justify="right" if side == "right" else "left")
    for target in targets:
        bound = f"{'at least' if target.at_least else 'at most'} {number(target.bound)} {target.unit}".strip()
        verdict = "[green]reached[/]" if target.reached else f"[red]short by {target.short_by:.0%}[/]"
        table.add_row(target.what, f"{number(target.figure)} {target.unit}".strip(), bound, verdict)
    console.print(table)


def number(value: float) -> str:
    """Three significant digits, and whole numbers in full."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _label(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else SUBJECTS.get(value, value)


def _cell(spread: Spread | None, with_spread: bool) -> str:
    if spread is None:
        return ""
    middle = number(spread.median)
    if not with_spread or spread.low == spread.high:
        return middle
    return f"{middle}\n[dim]{number(spread.low)}..{number(spread.high)}[/]"
