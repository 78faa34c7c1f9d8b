"""`tracker stats`: what runs and what ever did, in numbers."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.columns import Columns
from rich.text import Text

from tracker.cli.calling import Url, calling
from tracker.cli.printing import REASON_STYLES, console, duration, print_lines, printable, sheet, watched
from tracker.models import Stats

__all__ = ["show_stats"]

SHOWN = 10


def show_stats(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    url: Url = None,
) -> None:
    """Tell in numbers what runs and what ever did.

    On a terminal tables; else lines of name and number, with a tab in between.
    """
    with calling(url) as client:
        stats = client.stats()
    if as_json:
        typer.echo(json.dumps(stats, indent=2))
    elif watched():
        _show(stats)
    else:
        ages = ("oldestSessionAgeSeconds", "oldestHeartbeatAgeSeconds")
        print_lines(
            [
                *((name, str(stats[name])) for name in ("sessions", "agents", "expiredUnswept", "created")),
                *((f"ended.{reason}", str(count)) for reason, count in stats["ended"].items()),
                *((name, "" if stats[name] is None else str(stats[name])) for name in ages),  # type: ignore[literal-required]
                *((f"agent.{row['agentId']}", str(row["sessions"])) for row in stats["byAgent"]),
                *((f"trigger.{row['triggerType']}", str(row["sessions"])) for row in stats["byTriggerType"]),
            ]
        )


def _show(stats: Stats) -> None:
    oldest, silent = stats["oldestSessionAgeSeconds"], stats["oldestHeartbeatAgeSeconds"]
    out = console()
    out.print(f"{stats['sessions']:,} sessions of {stats['agents']:,} agents", style="bold")
    if oldest is not None and silent is not None:
        out.print(f"the oldest runs for {duration(oldest * 1000)}, the longest silence is {duration(silent * 1000)}")
    if stats["expiredUnswept"]:
        out.print(f"{stats['expiredUnswept']:,} expired and not yet swept", style="yellow")
    ended = sheet("ended", ">sessions")
    for reason, count in stats["ended"].items():
        ended.add_row(Text(reason, REASON_STYLES[reason]), f"{count:,}")
    ended.add_row(Text("ever created", "dim"), f"{stats['created']:,}")
    agents = sheet("busiest agents", ">sessions")
    for row in stats["byAgent"][:SHOWN]:
        agents.add_row(Text(printable(row["agentId"])), f"{row['sessions']:,}")
    triggers = sheet("set off by", ">sessions")
    for trigger in stats["byTriggerType"][:SHOWN]:
        triggers.add_row(Text(printable(trigger["triggerType"])), f"{trigger['sessions']:,}")
    out.print()
    out.print(Columns([ended, agents, triggers], padding=(0, 4)))
