"""`tracker end`, `tracker stop` and `tracker cleanup`: what ends runs."""

from __future__ import annotations

from typing import Annotated

import typer

from tracker.cli.calling import NOTHING, WRONG_USE, Url, calling, give_up
from tracker.cli.listing import find
from tracker.cli.printing import asked, printable

__all__ = ["cleanup", "end", "stop"]

CLEANUP_SECONDS = 60.0
"""A million sessions take a while."""

Which = Annotated[list[str], typer.Argument(metavar="SESSION|TASK...", help="Sessions' ids, or tasks.")]


def end(which: Which, url: Url = None) -> None:
    """End sessions: they are no longer tracked. Exit status 1 when one of them was not there."""
    _each(which, url, "ended")


def stop(which: Which, url: Url = None) -> None:
    """Ask runs to stop: each learns of it from its next heartbeat. Exit status 1 when one of them was not there."""
    _each(which, url, "asked to stop")


def _each(which: list[str], url: str | None, done: str) -> None:
    missing = 0
    with calling(url) as client:
        for name in which:
            try:
                session_id = find(client, name)["id"]
            except typer.Exit:
                missing += 1
                continue
            if done == "ended":
                client.delete_session(session_id)
            else:
                client.request_stop(session_id)
            typer.echo(f"{session_id} {done}")
    if missing:
        raise typer.Exit(NOTHING)


def cleanup(
    agent: Annotated[str | None, typer.Option(help="All of this agent's sessions, live or not.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Only the sessions of this runtime process.")] = None,
    max_age_minutes: Annotated[
        int | None, typer.Option(min=0, help="Those whose last heartbeat is older, live or not.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
) -> None:
    """End sessions: without options those whose time has run out, which harms no live one.

    With options live ones end too, so it asks first; where nobody can answer it wants --yes.
    """
    filters = [
        f"of agent {printable(agent)}" if agent else "",
        f"of runtime {printable(runtime)}" if runtime else "",
        f"without a heartbeat for {max_age_minutes} minutes" if max_age_minutes is not None else "",
    ]
    if any(filters) and not yes:
        question = f"End all sessions {', '.join(filter(None, filters))}, live ones too?"
        if not asked():
            give_up("this may end live sessions: say --yes", WRONG_USE)
        typer.confirm(question, abort=True, err=True)
    with calling(url, CLEANUP_SECONDS) as client:
        answer = client.cleanup(agent_id=agent, runtime_instance_id=runtime, max_age_minutes=max_age_minutes)
    typer.echo(f"{answer['cleaned']} ended")
