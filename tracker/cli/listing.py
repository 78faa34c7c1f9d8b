"""`tracker list` and `tracker show`: what runs now."""

from __future__ import annotations

import json
import time
from itertools import islice
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tracker.cli.calling import NOTHING, Url, calling, give_up
from tracker.cli.printing import (
    console,
    duration,
    left_style,
    local_time,
    milliseconds,
    print_lines,
    printable,
    sheet,
    watched,
)
from tracker.client import Filters, TrackerClient
from tracker.client.errors import NotFound
from tracker.models import Session

__all__ = ["find", "list_sessions", "show", "table_of"]

PAGE = 1000


def list_sessions(
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task's.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Only those set off by this.")] = None,
    runner: Annotated[str | None, typer.Option(help="Only those of this runner session.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Only those of this runtime process.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many of the newest at most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: an array of sessions.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Nothing but session ids, one a line.")] = False,
    url: Url = None,
) -> None:
    """List what runs now, newest first.

    On a terminal a table; else lines of: id, agent, task, trigger type, started, expires, progress; tabs in between.
    """
    filters: Filters = {
        "agent_id": agent,
        "task_id": task,
        "trigger_type": trigger,
        "runner_session_id": runner,
        "runtime_instance_id": runtime,
    }
    with calling(url) as client:
        walk = client.walk_sessions(page=PAGE if limit is None else min(PAGE, limit + 1), **filters)
        sessions = [*islice(walk, limit)]
        more = next(walk, None) is not None
    if as_json:
        typer.echo(json.dumps(sessions, indent=2))
    elif ids:
        print_lines([session["id"]] for session in sessions)
    elif not watched():
        print_lines(
            (
                session["id"],
                session["agentId"],
                session["taskId"],
                session["triggerType"],
                session["startedAt"],
                session["expiresAt"],
                session["progress"],
            )
            for session in sessions
        )
    elif sessions:
        console().print(table_of(sessions, time.time() * 1000))
        rest = ", and there are more" if more else ""
        console().print(f"\n{len(sessions):,} running{rest}", style="dim")
    else:
        console().print("Nothing runs.", style="dim")


def table_of(sessions: list[Session], now: float) -> Table:
    """Sessions for people, as of a time (ms since 1970); one without a task shows its id in place of it."""
    table = sheet("task", "agent", "set off by", ">age", ">time left", "what")
    for session in sessions:
        left = milliseconds(session["expiresAt"]) - now
        table.add_row(
            Text(printable(session["taskId"]), "bold") if session["taskId"] else Text(session["id"], "dim"),
            Text(printable(session["agentId"])),
            Text(printable(session["triggerType"]), "dim"),
            duration(now - milliseconds(session["startedAt"])),
            Text(duration(left) if left > 0 else "silent", left_style(session, now)),
            Text(printable(session["progress"] or session["taskDescription"])),
        )
    task, agent, trigger, age, time_left, what = table.columns
    for column, ratio, least in ((task, 4, 12), (agent, 3, 10), (trigger, 2, 10), (what, 6, 10)):
        column.ratio, column.min_width = ratio, least
    for column in (age, time_left):
        column.width = 9
    table.expand = True
    return table


def show(
    which: Annotated[str, typer.Argument(metavar="SESSION|TASK", help="A session's id, or a task.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    url: Url = None,
) -> None:
    """Show all there is to know of a session."""
    with calling(url) as client:
        session = find(client, which)
    if as_json:
        typer.echo(json.dumps(session, indent=2))
        return
    rows = [(name, str(value)) for name, value in session.items() if value is not None and name != "metadata"]
    rows += [(f"metadata.{name}", value) for name, value in session["metadata"].items()]
    if not watched():
        print_lines(rows)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        shown = f"{local_time(value)} ({value})" if name.endswith("At") else printable(value)
        table.add_row(Text(printable(name), "dim"), Text(shown))
    console().print(table)


def find(client: TrackerClient, which: str) -> Session:
    """The live session with that id, or of that task; ends the command when there is none."""
    try:
        return client.read_session(which)["session"]
    except NotFound:
        pass
    try:
        return client.read_by_task(which)["session"]
    except NotFound:
        give_up(f"no live session has the id or the task {which}", NOTHING)
