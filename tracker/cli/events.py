"""`tracker events`: the change feed, its end or as it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

import typer
from rich.text import Text

from tracker.cli.calling import Url, calling
from tracker.cli.printing import console, local_time, print_lines, printable, watched, word_of
from tracker.client import TrackerClient
from tracker.models import Event

__all__ = ["line_of", "show_events"]


def show_events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, max=1000, help="So many of the newest first.")] = 20,
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    kind: Annotated[
        Literal["created", "updated", "ended"] | None, typer.Option("--type", help="Only what was this.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Instead of the newest: all behind this event id; 0: all that the feed holds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, one event a line.")] = False,
    url: Url = None,
) -> None:
    """Show what happened: the newest events, oldest first.

    On a terminal for people; else lines of: id, time, what, reason, session, agent, task, provider session; with tabs
    in between.
    """
    filters = {"agent_id": agent, "type": f"session.{kind}" if kind else None}
    with calling(url) as client:
        for event in _events(client, follow, last, after, filters):
            if as_json:
                typer.echo(json.dumps(event))
            elif watched():
                console().print(line_of(event), soft_wrap=True)
            else:
                session = event["session"]
                what = event["type"].removeprefix("session.")
                told = (session["id"], session["agentId"], session["taskId"], session["providerSessionId"])
                print_lines([(event["id"], event["at"], what, event["reason"], *told)])


def _events(
    client: TrackerClient, follow: bool, last: int, after: str | None, filters: dict[str, str | None]
) -> Iterator[Event]:
    position = after
    if after is None:
        page = client.list_events(last=max(last, 1), **filters)  # type: ignore[arg-type]
        yield from page["events"][-last:] if last else ()
        position = page["next"]
    elif not follow:
        while True:
            page = client.list_events(after=position, limit=1000, **filters)  # type: ignore[arg-type]
            yield from page["events"]
            position = page["next"]
            if not page["events"]:
                return
    if follow:
        yield from client.events(after=position, **filters)  # type: ignore[arg-type]


def line_of(event: Event) -> Text:
    """An event on one line, for people."""
    session = event["session"]
    word = word_of(event)
    word.pad_right(9 - len(word))
    line = Text.assemble(
        (local_time(event["at"]), "dim"),
        "  ",
        word,
        (printable(session["taskId"]) or session["id"], "bold"),
        "  ",
        (printable(session["agentId"]), "dim"),
    )
    if event["reason"] == "expired" and session["providerSessionId"] is not None:
        line.append(f"  resume {printable(session['providerSessionId'])}", "yellow")
    return line
