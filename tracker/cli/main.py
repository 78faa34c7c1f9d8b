"""The `tracker` command."""

from typing import Annotated

import typer

from tracker import __version__
from tracker.cli.doctor import doctor
from tracker.cli.hash_key import hash_key
from tracker.cli.serve import serve
from tracker.cli.simulate import simulate

# No pretty exceptions: they print local variables, and some of those are secrets.
app = typer.Typer(
    name="tracker",
    no_args_is_help=True,
    add_completion=False,
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
app.command()(doctor)
app.command("hash-key")(hash_key)
app.command()(simulate)


def main() -> None:
    """The entry point of the `tracker` command."""
    app(prog_name="tracker")
