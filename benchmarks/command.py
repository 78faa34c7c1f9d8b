"""The command line."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Collection
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Never

import httpx
import typer
from rich.console import Console

from benchmarks.machine import describe
from benchmarks.outcome import Outcome
from benchmarks.plan import FULL, SHORT, Plan
from benchmarks.process import ROOT, StartError
from benchmarks.report import show_outcome, show_targets
from benchmarks.results import write
from benchmarks.scenarios import ON_DEMAND, SCENARIOS
from benchmarks.stage import ENDING, Stage
from benchmarks.tools import MissingTool, check_tools
from benchmarks.wire import WireError
from benchmarks.wrk import WrkError
from tracker.errors import StoreError

__all__ = ["app", "choose", "main"]

FAILED = 1
CANNOT_START = 2
INTERRUPTED = 130
LEAST_WIDTH = 140

Name = StrEnum("Name", {name: name for name in SCENARIOS})  # type: ignore[misc]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _help() -> str:
    lines = [
        f"{name}: {(scenario.__doc__ or '').partition(chr(10))[0]}{' With --only.' * (name in ON_DEMAND)}"
        for name, scenario in SCENARIOS.items()
    ]
    intro = "Measure the tracker beside its baselines; some 13 minutes, or one with --short. The scenarios:"
    return "\n\n".join([intro, *lines])


@app.command(help=_help())
def bench(
    short: Annotated[bool, typer.Option("--short", help="About a minute: fewer rounds, seconds and sizes.")] = False,
    only: Annotated[list[Name] | None, typer.Option("--only", help="Just this scenario; may be repeated.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, of which the medians are taken.")] = None,
    seconds: Annotated[int | None, typer.Option(min=1, help="Length of one run of wrk.")] = None,
    connections: Annotated[
        list[int] | None, typer.Option(min=1, help="Connections of the heartbeats scenario; may be repeated.")
    ] = None,
    to_write: Annotated[
        bool, typer.Option("--write", help="Write docs/performance, as a full run of all scenarios does anyway.")
    ] = False,
) -> None:
    plan = SHORT if short else FULL
    plan = replace(plan, rounds=rounds or plan.rounds, seconds=seconds or plan.seconds)
    if connections:
        plan = replace(plan, connections=tuple(connections), peers_at=tuple(connections))
    names = choose(only)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, LEAST_WIDTH))
    for number in ENDING:
        signal.signal(number, _interrupt)
    try:
        problems = _run(console, plan, names, to_write or not (short or only))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (MissingTool, StartError, WrkError, WireError, httpx.HTTPError, StoreError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(CANNOT_START) from None
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(FAILED)


def choose(only: Collection[str] | None = None) -> list[str]:
    """The scenarios to run, in their order: those asked for, or all but those on demand."""
    return [name for name in SCENARIOS if (name in only if only else name not in ON_DEMAND)]


def main() -> None:
    app(prog_name="python -m benchmarks")


def _run(console: Console, plan: Plan, names: list[str], to_write: bool) -> list[str]:
    """The problems that there were; nothing is written when there were any."""
    check_tools()
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="tracker-bench-") as directory:
        with Stage(plan, Path(directory), console) as stage:
            machine = describe(stage.redis)
            for name in names:
                began = time.monotonic()
                outcomes[name] = SCENARIOS[name](stage)
                show_outcome(console, f"{name} ({time.monotonic() - began:.0f} s)", outcomes[name])
        problems = stage.problems
    show_targets(console, [target for outcome in outcomes.values() for target in outcome.targets])
    minutes = (time.monotonic() - started) / 60
    console.print(f"{plan.mode} plan, {plan.rounds} rounds of {plan.seconds} s, {minutes:.1f} minutes", style="dim")
    console.print(", ".join(f"{name} {value}" for name, value in machine.items() if name != "packages"), style="dim")
    if to_write and not problems:
        for path in write(outcomes, plan, machine):
            console.print(f"wrote {path.relative_to(ROOT)}")
    return problems


def _interrupt(number: int, frame: object) -> Never:
    raise KeyboardInterrupt
