"""`tracker watch`: what runs, on a terminal of its own, and what the board knows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from tests.cli.conftest import Commands
from tracker.cli.calling import WRONG_USE
from tracker.cli.watch import FEED_LINES, Board
from tracker.models import Event, EventType, Session
from tracker.store.snapshot import decode, timestamp

SECONDS = 30
LINES = 30
NOW = 1_000_000_000_000


def a_session(number: int, left: float = 60) -> Session:
    due = NOW + round(left * 1000)
    fields = {"agent": "a", "task": f"t{number}", "trigger": "m", "started": NOW - 5000, "due": due, "ttl": 60_000}
    flat = [part for name, value in fields.items() for part in (name.encode(), str(value).encode())]
    return decode(f"0199b1f2-6c1e-7d1a-9a55-{number:012x}".encode(), flat)


def an_event(session: Session, kind: str, reason: str | None = None) -> Event:
    event = {"id": "1-1", "type": cast("EventType", kind), "at": timestamp(NOW), "reason": reason, "session": session}
    return cast("Event", event)


def shown(board: Board) -> list[str]:
    console = Console(width=120, height=LINES, color_system=None)
    with console.capture() as capture:
        console.print(board.render(LINES, NOW), end="")
    return [line.rstrip() for line in capture.get().splitlines()]


def test_an_empty_board_fills_the_terminal_and_no_more() -> None:
    assert "Nothing runs." in "\n".join(shown(Board()))
    assert len(shown(Board())) <= LINES


def test_the_least_time_left_comes_first_and_the_rest_is_counted() -> None:
    board = Board()
    board.replace([a_session(number, left=100 - number) for number in range(60)], False)
    lines = shown(board)
    tasks = re.findall(r"^(t\d+) ", "\n".join(lines), re.MULTILINE)
    assert tasks == [f"t{59 - number}" for number in range(len(tasks))]
    assert f"... and {60 - len(tasks)} more with more time left" in lines
    assert len(lines) <= LINES
    assert "60 live  1 agents" in lines[0]


def test_what_ended_while_a_listing_was_read_stays_ended() -> None:
    board = Board()
    session = a_session(1)
    board.add(an_event(session, "session.created"))
    assert board.sessions.keys() == {session["id"]}
    board.add(an_event(session, "session.ended", "deleted"))
    board.replace([session, a_session(2)], False)
    assert [held["taskId"] for held in board.sessions.values()] == ["t2"]


def test_the_feed_shows_the_newest_on_top() -> None:
    board = Board()
    for number in range(20):
        board.add(an_event(a_session(number), "session.created"))
    assert re.findall(r"created +(t\d+)", "\n".join(shown(board))) == [f"t{19 - n}" for n in range(FEED_LINES)]


def test_it_wants_a_terminal(commands: Commands) -> None:
    result = commands("watch")
    assert result.exit_code == WRONG_USE
    assert "watch needs a terminal" in result.stderr


@pytest.mark.parametrize("leave", ["q", "ctrl-c"])
def test_on_a_terminal_it_follows_what_happens_and_ends_well(commands: Commands, agent: str, leave: str) -> None:
    commands.start("before-" + agent, agent)
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, 120, 0, 0))
    before = termios.tcgetattr(secondary)
    process = subprocess.Popen(
        [sys.executable, "-m", "tracker", "watch", "--agent", agent],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRACKER_URL": commands.url, "TRACKER_API_KEY": commands.key, "TERM": "xterm-256color"},
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
    )
    try:
        _read_until(primary, "before-" + agent)
        commands.start("during-" + agent, agent)
        _read_until(primary, "during-" + agent)
        commands.client.put(f"/api/active-sessions/heartbeat/during-{agent}", json={"progress": "3 of 7"})
        _read_until(primary, "3 of 7")
        if leave == "q":
            os.write(primary, b"q")
        else:
            process.send_signal(signal.SIGINT)
        _read_until(primary, "\x1b[?1049l")
        assert process.wait(SECONDS) == (0 if leave == "q" else 130)
        assert termios.tcgetattr(secondary)[3] == before[3], "the terminal is as it was"
    finally:
        process.kill()
        process.wait()
        os.close(primary)
        os.close(secondary)


def _read_until(primary: int, text: str) -> None:
    seen = ""
    limit = time.monotonic() + SECONDS
    while text not in seen:
        assert time.monotonic() < limit, f"{text!r} never came: {seen[-2000:]!r}"
        if select.select([primary], [], [], 0.1)[0]:
            seen += os.read(primary, 65536).decode(errors="replace")
