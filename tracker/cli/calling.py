"""Calling the tracker from a command: where it is, the key, and what is said and returned when it goes wrong.

Exit statuses, of all commands that call: 0 done; 1 nothing was there to do it to; 2 wrong use; 3 the tracker refused
(key, conflict, bad value); 4 the tracker cannot be reached, or its store is away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from tracker.cli.printing import say
from tracker.client import AsyncTrackerClient, Retries, TrackerClient
from tracker.client.endpoint import DEFAULT_URL
from tracker.client.errors import (
    Forbidden,
    Misconfigured,
    Refused,
    ServerFault,
    TrackerClientError,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)

__all__ = ["AWAY", "NOTHING", "REFUSED", "WRONG_USE", "Url", "asynchronously", "calling", "failing", "give_up", "key"]

NOTHING = 1
WRONG_USE = 2
REFUSED = 3
AWAY = 4

Url = Annotated[
    str | None, typer.Option("--url", envvar="TRACKER_URL", help="The tracker. Default: http://localhost:3013.")
]

ADVICE: dict[type[TrackerClientError], tuple[int, str]] = {
    Misconfigured: (WRONG_USE, ""),
    Unauthorized: (REFUSED, "the tracker does not know this key: set TRACKER_API_KEY to one that it does"),
    Forbidden: (REFUSED, "this key may only read: set TRACKER_API_KEY to one that may write"),
    Refused: (REFUSED, ""),
    ServerFault: (AWAY, ""),
    UnexpectedAnswer: (AWAY, ""),
    Unavailable: (AWAY, "{error} ({url}; start a tracker with `tracker serve`, set TRACKER_URL, or try again)"),
    TrackerClientError: (AWAY, ""),
}
"""The exit status, and what to say in place of the error's own words, by the nearest kind."""
PATIENCE_SECONDS = 5.0


def key() -> str | None:
    """The key for calls: TRACKER_API_KEY, else API_KEY."""
    return os.environ.get("TRACKER_API_KEY") or os.environ.get("API_KEY") or None


def give_up(problem: str, status: int) -> NoReturn:
    """Says in one line why the command ends here."""
    say(problem)
    raise typer.Exit(status)


@contextmanager
def failing(url: str | None) -> Iterator[None]:
    """Turns what calls raise into a line and an exit status; Ctrl-C into the shell's own."""
    try:
        yield
    except TrackerClientError as error:
        status, advice = next(ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE)
        give_up((advice or "{error}").format(error=error, url=url or DEFAULT_URL), status)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def calling(url: str | None, seconds: float = PATIENCE_SECONDS) -> Iterator[TrackerClient]:
    """A client for one command; each of its calls may take so many seconds, tries and all."""
    with failing(url), TrackerClient(url, api_key=key(), retries=Retries(seconds, seconds)) as client:
        yield client


def asynchronously(url: str | None) -> AsyncTrackerClient:
    """The same for commands that do several things at once; open it under ``failing``."""
    return AsyncTrackerClient(url, api_key=key())
