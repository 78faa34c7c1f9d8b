"""`tracker simulate`: a fleet as it really calls, against any tracker, and whether the tracker kept its word."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from contextlib import suppress
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

import httpx
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from tracker.cli.fleet.calls import CONNECTIONS, TIMEOUT_SECONDS
from tracker.cli.fleet.lanes import Lanes
from tracker.cli.fleet.plan import AGENTS_MAX, Plan
from tracker.cli.fleet.simulation import Refused, Report, Simulation, failure_of

REFRESH_SECONDS = 0.25
LONG_WAIT_MS = 1000
DEFAULTS = Plan()
ENDINGS = {"deleted": "done, deleted", "replaced": "retried, replaced", "expired": "crashed, expired"}


def simulate(
    agents: Annotated[int, typer.Option(help=f"Agents in the fleet, at most {AGENTS_MAX:,}.")] = DEFAULTS.agents,
    seconds: Annotated[float, typer.Option(help="How long they work, before crashed runs are awaited.")] = (
        DEFAULTS.seconds
    ),
    runs_per_agent: Annotated[int, typer.Option(help="Runs of one agent at the same time.")] = DEFAULTS.runs_per_agent,
    ttl: Annotated[float, typer.Option(help="ttlSeconds of each session.")] = DEFAULTS.ttl,
    crash_rate: Annotated[float, typer.Option(help="Share of the runs that crash, 0 to 1.")] = DEFAULTS.crash_rate,
    retry_rate: Annotated[float, typer.Option(help="Share of the runs that start anew, 0 to 1.")] = DEFAULTS.retry_rate,
    sweep_interval: Annotated[float, typer.Option(help="The tracker's sweep interval (seconds).")] = DEFAULTS.sweep,
    seed: Annotated[int | None, typer.Option(help="Draws the same runs again.", show_default="random")] = None,
    url: Annotated[str, typer.Option(envvar="TRACKER_URL", help="The tracker.")] = "http://127.0.0.1:3013",
    leave: Annotated[bool, typer.Option("--leave", help="Leave what still runs at the end to itself.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a fleet of agents as it really calls, and see whether the tracker keeps its word.

    Agents boot, start runs, heartbeat, report provider sessions, crash, retry and end. The key comes from
    TRACKER_API_KEY (or API_KEY). Exit status: 0 all is as it should be, 1 something is wrong, 2 nothing was simulated.
    """
    try:
        plan = Plan(
            agents=agents,
            seconds=seconds,
            runs_per_agent=runs_per_agent,
            ttl=ttl,
            crash_rate=crash_rate,
            retry_rate=retry_rate,
            sweep=sweep_interval,
            seed=secrets.randbelow(2**32) if seed is None else seed,
            leave=leave,
        )
        address, key = _address(url), _key()
    except ValueError as problem:
        _refuse(str(problem))
    try:
        report = asyncio.run(_simulate(plan, address, key))
    except Refused as problem:
        _refuse(str(problem))
    if as_json:
        typer.echo(json.dumps({"url": url, **report}, indent=2))
    else:
        Console().print(closing(report))
    raise typer.Exit(0 if report["ok"] else 1)


def _refuse(problem: str) -> NoReturn:
    typer.echo(f"tracker simulate: {problem}", err=True)
    raise typer.Exit(2)


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("--url (TRACKER_URL) must be the address of a tracker, such as http://127.0.0.1:3013")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("--url (TRACKER_URL) must be a plain address: the key goes into TRACKER_API_KEY")
    return url


def _key() -> str | None:
    key = os.environ.get("TRACKER_API_KEY", "").strip() or os.environ.get("API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise ValueError("TRACKER_API_KEY (or API_KEY) must be visible ASCII characters")
    return key or None


async def _simulate(plan: Plan, url: str, key: str | None) -> Report:
    """Run a simulation and show on stderr how it goes."""
    async with _client(url, key) as client:
        simulation = Simulation(client, plan, secrets.token_hex(4))
        await simulation.check()
        console = Console(stderr=True, highlight=False)
        console.print(
            f"{plan.agents:,} agents, {plan.runs_per_agent} runs each, {plan.seconds:g} s against {escape(url)} "
            f"[dim](seed {plan.seed})[/]",
            soft_wrap=True,
        )
        show = _bars if console.is_terminal else _lines
        showing = asyncio.create_task(show(simulation, console))
        try:
            await simulation.run()
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing
        return simulation.report()


def _client(url: str, key: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=TIMEOUT_SECONDS,
        transport=Lanes(CONNECTIONS),
    )


async def _bars(simulation: Simulation, console: Console) -> None:
    """Two progress bars on a terminal: the time the fleet works, and the crashed runs that have expired."""
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    audit, begun = simulation.audit, asyncio.get_running_loop().time()
    with Progress(*columns, console=console, transient=True) as progress:
        work = progress.add_task("working", total=round(simulation.plan.seconds), note="")
        expiry = progress.add_task("expired", total=None, note="")
        while True:
            elapsed = int(asyncio.get_running_loop().time() - begun)
            note = f"s  {len(audit.live):,} live, {simulation.calls.total:,} calls"
            progress.update(work, completed=min(elapsed, simulation.plan.seconds), note=note)
            done = audit.right["expired"] + audit.wrong["expired"]
            note = "crashed runs" + (" (the tracker had an outage and lets none expire yet)" if audit.held else "")
            progress.update(expiry, completed=done, total=audit.ended["expired"] or None, note=note)
            await asyncio.sleep(REFRESH_SECONDS)


async def _lines(simulation: Simulation, console: Console) -> None:
    """Where nobody watches: a line when the waiting begins."""
    await simulation.worked.wait()
    console.print(f"waiting for {len(simulation.audit.pending):,} sessions to end")


def closing(report: Report) -> Group:
    """What is printed at the end: the calls, how the sessions ended, and the verdict."""
    return Group("", _calls(report), "", _endings(report), "", *_verdict(report))


def _table(first: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, width=17)
    return table


def _calls(report: Report) -> Table:
    table = _table("call")
    for name in ("calls", "p50", "p99", "max"):
        table.add_column(name, justify="right", min_width=7)
    table.add_column("status")
    failures = {problem["problem"] for problem in report["problems"]}
    for row in report["calls"]:
        statuses = [
            Text(
                status if len(row["statuses"]) == 1 else f"{status}: {count:,}",
                style="red" if failure_of(row["kind"], status) in failures else "",
            )
            for status, count in row["statuses"].items()
        ]
        times = (_time(row["p50Ms"]), _time(row["p99Ms"]), _time(row["maxMs"]))
        table.add_row(row["kind"], f"{row['calls']:,}", *times, Text(", ").join(statuses))
    return table


def _endings(report: Report) -> Table:
    """How the sessions ended; columns for what is wrong or not judged only where there is any."""
    rows = report["endings"]
    columns: list[tuple[str, list[int], str]] = [
        ("sessions", [row["sessions"] for row in rows], ""),
        ("right", [row["right"] for row in rows], ""),
        ("wrong", [row["wrong"] for row in rows], "red"),
        ("not judged", [row["sessions"] - row["right"] - row["wrong"] for row in rows], "yellow"),
    ]
    shown = [column for column in columns if not column[2] or any(column[1])]
    table = _table("run")
    for name, _, style in shown:
        table.add_column(name, justify="right", min_width=7, style=style)
    for number, row in enumerate(rows):
        table.add_row(ENDINGS[row["reason"]], *(f"{counts[number]:,}" for _, counts, _ in shown))
    return table


def _verdict(report: Report) -> list[Text]:
    notes = []
    if report["stopped"]:
        notes.append("Stopped early: what was not yet due is not judged.")
    if report["feed"] == "none":
        notes.append("No feed: judged by the listing alone.")
    if report["late"]:
        notes.append(f"{report['late']:,} runs expired: their heartbeats came late or got lost.")
    if report["longestWaitMs"] > LONG_WAIT_MS:
        notes.append(
            f"Calls waited up to {_time(report['longestWaitMs'])} to be sent: try fewer agents, a longer --ttl."
        )
    if report["left"]:
        notes.append(f"{report['left']:,} sessions still ran when the fleet stopped.")
    lines = [Text(note, style="yellow") for note in notes]
    told = {""}
    for problem in report["problems"]:
        example = "" if problem["example"] in told else f", e.g. {problem['example']}"
        told.add(problem["example"])
        lines.append(Text(f"{problem['count']:,} x {problem['problem']}{example}", style="red"))
    if report["ok"]:
        verdict = "So far everything is as it should be." if report["stopped"] else "Everything is as it should be."
        return [*lines, Text(verdict, style="bold green")]
    return [*lines, Text(f"Something is wrong. The same runs again: --seed {report['seed']}", style="bold red")]


def _time(milliseconds: float) -> str:
    return f"{milliseconds:,.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:,.2f} s"
