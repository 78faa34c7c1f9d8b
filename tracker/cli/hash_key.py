"""`tracker hash-key`: a line for the key file, so that the file never holds a key itself."""

import secrets
import sys
from typing import Annotated

import typer

from tracker.settings import NAME, VISIBLE_ASCII, ApiKey, Scope, digest_of

LONGEST_KEY = 4096


def hash_key(
    name: Annotated[str | None, typer.Argument(help="What to call the key, in the file and in logs.")] = None,
    scope: Annotated[Scope, typer.Option(help="What the key may do; write includes reading.")] = "write",
    generate: Annotated[bool, typer.Option("--generate", help="Make a new random key and show it once.")] = False,
) -> None:
    """Make a line for TRACKER_API_KEYS_FILE from a key.

    The key comes from standard input, or is asked for on a terminal. The line goes to standard output; a generated key
    to standard error.
    """
    if name is not None and not NAME.fullmatch(name):
        raise _refused("the name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    key = secrets.token_urlsafe(32) if generate else _typed()
    if not VISIBLE_ASCII.fullmatch(key) or len(key) > LONGEST_KEY:
        raise _refused(f"the key must be 1 to {LONGEST_KEY} visible ASCII characters, without spaces")
    if generate:
        typer.echo(f"The new key, shown only this once: {key}", err=True)
    digest = digest_of(key)
    typer.echo(ApiKey(name or f"key-{digest.hex()[:8]}", scope, digest).line)


def _typed() -> str:
    if _on_terminal():
        typed: str = typer.prompt("API key", hide_input=True, err=True)
        return typed
    # Latin-1 takes any bytes: those that are not ASCII are refused with everything else that is no key.
    return sys.stdin.buffer.read(LONGEST_KEY + 3).decode("latin-1").removesuffix("\n").removesuffix("\r")


def _on_terminal() -> bool:
    return sys.stdin.isatty()


def _refused(problem: str) -> typer.Exit:
    typer.echo(f"hash-key: {problem}", err=True)
    return typer.Exit(2)
