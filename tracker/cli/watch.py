"""`tracker watch`: what runs now, live, as `top` shows processes."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from tracker.cli.calling import WRONG_USE, Url, asynchronously, failing, give_up
from tracker.cli.events import line_of
from tracker.cli.listing import table_of
from tracker.cli.printing import console, milliseconds, watched
from tracker.client import AsyncTrackerClient
from tracker.client.errors import Refused, TrackerClientError
from tracker.models import Event, Session, Stats

__all__ = ["Board", "watch"]

DRAW_SECONDS = 0.25
READ_SECONDS = 2.0
MOST_SESSIONS = 5000
FEED_LINES = 8
STALE = 1 / 3


def watch(
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    url: Url = None,
) -> None:
    """Watch what runs now: the sessions with the least time left first, and the feed below. Ends with q or Ctrl-C."""
    if not watched() or not sys.stdin.isatty():
        give_up("watch needs a terminal; for programs there is: tracker events --follow --json", WRONG_USE)
    with failing(url):
        asyncio.run(_watch(asynchronously(url), agent))


class Board:
    """What is known, and how it looks in so many lines."""

    def __init__(self, agent: str | None = None) -> None:
        self.agent = agent
        self.sessions: dict[str, Session] = {}
        self.more = False
        self.stats: Stats | None = None
        self.events: deque[Event] = deque(maxlen=FEED_LINES)
        self.trouble = "connecting"
        self._ended: deque[str] = deque(maxlen=MOST_SESSIONS)

    def add(self, event: Event) -> None:
        """Takes in what happened."""
        self.events.appendleft(event)
        session = event["session"]
        if event["type"] == "session.ended":
            self.sessions.pop(session["id"], None)
            self._ended.append(session["id"])
        else:
            self.sessions[session["id"]] = session

    def replace(self, sessions: list[Session], more: bool) -> None:
        """Takes in a whole listing; who ended while it was read stays ended."""
        ended = set(self._ended)
        self.sessions = {session["id"]: session for session in sessions if session["id"] not in ended}
        self.more = more

    def render(self, lines: int, now: float) -> RenderableType:
        """The board as of a time (ms since 1970)."""
        sessions = sorted(self.sessions.values(), key=lambda session: session["expiresAt"])
        shown = sessions[: max(1, lines - FEED_LINES - 6)]
        rest = len(sessions) - len(shown)
        body: RenderableType = table_of(shown, now) if shown else Text("Nothing runs.", "dim")
        filling = [Text()] * max(0, lines - FEED_LINES - 6 - len(shown))
        below = Text(f"... and {rest:,} more with more time left" if rest else "", "dim")
        return Group(self._head(sessions, now), Text(), body, below, *filling, Rule(style="dim"), *self._feed())

    def _head(self, sessions: list[Session], now: float) -> Text:
        stale = sum((milliseconds(s["expiresAt"]) - now) < STALE * s["ttlSeconds"] * 1000 for s in sessions)
        agents = len({session["agentId"] for session in sessions})
        live = self.stats["sessions"] if self.stats and self.more and not self.agent else len(sessions)
        head = Text.assemble((f"{live:,}", "bold"), " live  ", (f"{agents:,}", "bold"), " agents  ")
        head.append(f"{stale:,} going stale  ", "yellow" if stale else "dim")
        if self.stats:
            ended = self.stats["ended"]
            head.append(f"{ended['deleted']:,} ended well  ", "dim")
            head.append(f"{ended['expired']:,} crashed  ", "red" if ended["expired"] else "dim")
        head.append(self.trouble, "bold red")
        return head

    def _feed(self) -> Iterator[Text]:
        for event in self.events:
            yield line_of(event)
        for _ in range(FEED_LINES - len(self.events)):
            yield Text()


async def _watch(client: AsyncTrackerClient, agent: str | None) -> None:
    board = Board(agent)
    quitting = asyncio.Event()
    async with client:
        past = await client.list_events(last=FEED_LINES, agent_id=agent)
        board.events.extend(reversed(past["events"]))
        following = _follow(client, board, past["next"])
        tasks = [asyncio.create_task(work) for work in (following, _read(client, board), quitting.wait())]
        try:
            with _keys(quitting), Live(console=console(), screen=True, auto_refresh=False) as live:
                while not any(task.done() for task in tasks):
                    live.update(board.render(live.console.height, time.time() * 1000), refresh=True)
                    await asyncio.wait(tasks, timeout=DRAW_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _follow(client: AsyncTrackerClient, board: Board, after: str) -> None:
    async for event in client.events(after=after, agent_id=board.agent):
        board.add(event)


async def _read(client: AsyncTrackerClient, board: Board) -> None:
    """Heartbeats are not in the feed, so deadlines are read anew every few seconds."""
    while True:
        try:
            sessions: list[Session] = []
            more = False
            async for session in client.walk_sessions(agent_id=board.agent):
                if more := len(sessions) == MOST_SESSIONS:
                    break
                sessions.append(session)
            board.replace(sessions, more)
            board.stats = await client.stats()
            board.trouble = ""
        except Refused:
            raise
        except TrackerClientError as error:
            board.trouble = str(error)
        await asyncio.sleep(READ_SECONDS)


@contextmanager
def _keys(quitting: asyncio.Event) -> Iterator[None]:
    """Reads keys one by one; q quits."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        with suppress(OSError):
            if b"q" in os.read(stdin, 64).lower():
                quitting.set()

    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
