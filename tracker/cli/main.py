"""The `tracker` command."""

from typing import Annotated

import typer

from tracker import __version__
from tracker.cli.doctor import doctor
from tracker.cli.ending import cleanup, end, stop
from tracker.cli.events import show_events
from tracker.cli.hash_key import hash_key
from tracker.cli.listing import list_sessions, show
from tracker.cli.reshard import reshard
from tracker.cli.run import run
from tracker.cli.serve import serve
from tracker.cli.simulate import simulate
from tracker.cli.stats import show_stats
from tracker.cli.watch import watch

# No pretty exceptions: they print local variables, and some of those are secrets.
app = typer.Typer(
    name="tracker",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tracker {__version__}")
        raise typer.Exit


@app.callback()
def tracker(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The session tracker that fleets of AI agents run on: who is running what, and who died."""


app.command()(serve)
app.command("list")(list_sessions)
app.command()(show)
app.command()(watch)
app.command("events")(show_events)
app.command("stats")(show_stats)
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command()(stop)
app.command()(end)
app.command()(cleanup)
app.command()(doctor)
app.command()(reshard)
app.command()(simulate)
app.command("hash-key")(hash_key)


def main() -> None:
    """The entry point of the `tracker` command."""
    app(prog_name="tracker")
