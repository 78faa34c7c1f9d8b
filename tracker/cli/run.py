"""`tracker run -- COMMAND`: tracks any command from the shell, for as long as it runs."""

from __future__ import annotations

import getpass
import logging
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Literal

import typer

from tracker.cli.calling import Url, failing, give_up, key
from tracker.cli.printing import say
from tracker.client import Run, TrackerClient

__all__ = ["passing_signals", "run"]

NOT_EXECUTABLE, NOT_FOUND = 126, 127
LOOK_SECONDS = 0.2
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
DESCRIPTION_LENGTH = 200


def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run, with its arguments.")],
    agent: Annotated[
        str | None, typer.Option(envvar="TRACKER_AGENT_ID", help="Who runs it.", show_default="user@host")
    ] = None,
    task: Annotated[str | None, typer.Option(envvar="TRACKER_TASK_ID", help="Which task it works on.")] = None,
    trigger: Annotated[str, typer.Option(help="What set it off.")] = "manual",
    description: Annotated[
        str | None, typer.Option(help="What it is about.", show_default="the command line, cut to 200 characters")
    ] = None,
    ttl: Annotated[float, typer.Option(min=1, max=86400, help="Seconds of silence after which it is dead.")] = 60,
    on_conflict: Annotated[
        Literal["supersede", "reject", "replace"], typer.Option(help="What to do when the task already runs.")
    ] = "supersede",
    stop: Annotated[
        bool, typer.Option("--stop/--no-stop", help="Whether SIGTERM goes to the command when it is asked to stop.")
    ] = True,
    url: Url = None,
) -> None:
    """Run a command and track it: registers, heartbeats while it runs, and deletes the session when it ends.

    Signals are passed on to the command, and its exit status becomes ours (128 and the number of the signal that ended
    it; 127 not found, 126 not executable). A tracker that is away does not keep the command from running.
    """
    logging.getLogger("tracker.client").addHandler(logging.NullHandler())  # what matters of it is told below
    with (
        passing_signals() as start,
        failing(url),
        TrackerClient(url, api_key=key()) as client,
        client.track(
            agent_id=agent or f"{_user()}@{socket.gethostname()}",
            task_id=task,
            trigger_type=trigger,
            task_description=_line_of(command) if description is None else description,
            ttl_seconds=ttl,
            on_conflict=on_conflict,
            max_silence=None,  # whether the command hangs is not ours to tell
        ) as tracked,
    ):
        try:
            process = start(command)
        except FileNotFoundError:
            give_up(f"{command[0]}: command not found", NOT_FOUND)
        except OSError as error:
            give_up(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE)
        status = _wait(process, tracked, stop)
    raise typer.Exit(status if status >= 0 else 128 - status)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.13
        return str(os.getuid())


def _line_of(command: list[str]) -> str:
    """A command as one would type it; bytes that are no UTF-8 are shown by their number."""
    line = shlex.join(command).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return line[:DESCRIPTION_LENGTH]


def _wait(process: subprocess.Popen[bytes], tracked: Run, stop: bool) -> int:
    """Waits for the command's end, and tells meanwhile what becomes of its session."""
    asked = lost = False
    while True:
        try:
            return process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        if tracked.stop_requested and not asked:
            asked = True
            if stop:
                process.send_signal(signal.SIGTERM)
            say("the run is asked to stop" + (": sending SIGTERM" if stop else ""))
        if tracked.lost and not lost:
            lost = True
            say(f"the session is lost ({tracked.lost.reason}); the command goes on untracked")


@contextmanager
def passing_signals() -> Iterator[Callable[[list[str]], subprocess.Popen[bytes]]]:
    """Starts a command, and passes on to it what is sent to us; before that a signal ends us in order.

    What is typed on a terminal reaches the command by itself. What is ignored stays so, for the command as well.
    """
    process: subprocess.Popen[bytes] | None = None
    waiting: list[int] | None = None

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        nonlocal process, waiting
        waiting = []
        process = subprocess.Popen(command)  # noqa: S603 - to run what the user says is what this is for
        for number in waiting:
            process.send_signal(number)
        return process

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is not None:
            if not (number in FROM_KEYBOARD and _in_foreground()):
                process.send_signal(number)
        elif waiting is not None:
            waiting.append(number)  # it may run already, before we know of it
        else:
            raise SystemExit(128 + number)

    heeded = [number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        yield start
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether what is typed on our terminal reaches us, and so the command; standard input may be another file."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
