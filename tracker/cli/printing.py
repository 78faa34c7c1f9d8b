"""How sessions, events and times look on a terminal, and plain where nobody watches.

What a session brings may hold anything: control characters never reach the terminal, and markup is text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from tracker.models import Event, Session

__all__ = [
    "REASON_STYLES",
    "asked",
    "console",
    "duration",
    "left_style",
    "local_time",
    "milliseconds",
    "print_lines",
    "printable",
    "say",
    "sheet",
    "watched",
    "word_of",
]

# C0, DEL, C1, and what turns the direction of the text around it.
HIDDEN = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
ESCAPES = {code: f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}" for code in HIDDEN} | {0x0A: "\\n", 0x09: "\\t"}

REASON_STYLES = {
    "created": "green",
    "updated": "blue",
    "deleted": "dim",
    "replaced": "yellow",
    "cleaned": "magenta",
    "expired": "bold red",
}
STALE, DYING = 1 / 3, 1 / 10


def console() -> Console:
    """For people, on standard output."""
    return Console(highlight=False, markup=False)


def watched() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def asked() -> bool:
    """Whether standard input is a terminal, where somebody may answer."""
    return sys.stdin.isatty()


def printable(text: str | None) -> str:
    """A text that a terminal shows as it is; nothing for None."""
    return "" if text is None else text.translate(ESCAPES)


def say(text: str) -> None:
    """A line on standard error. Where nobody reads that any more, it is lost, and nothing else changes."""
    try:
        typer.echo(f"tracker: {printable(text)}", err=True)
    except OSError:
        sys.stderr = None  # the line waits in it to fail once more when Python exits, which would change the status


def print_lines(rows: Iterable[Sequence[str | None]]) -> None:
    """Rows as lines of fields with tabs between them, for programs; they are out when it returns."""
    for row in rows:
        sys.stdout.write("\t".join(map(printable, row)) + "\n")
    sys.stdout.flush()


def sheet(*columns: str) -> Table:
    """A table for people; a column that begins with `>` is aligned right."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="ellipsis", no_wrap=True)
    return table


def milliseconds(timestamp: str) -> float:
    """A time of the wire as milliseconds since 1970."""
    return datetime.fromisoformat(timestamp).timestamp() * 1000


def local_time(timestamp: str) -> str:
    """A time of the wire as the clock on the wall shows it; with the date unless it is today's."""
    moment = datetime.fromisoformat(timestamp).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def duration(ms: float) -> str:
    """A duration in its two largest units: 42 s, 3 m 07 s, 2 h 15 m, 4 d 1 h."""
    seconds = max(0, int(ms // 1000))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds // 60 % 60:02} m"
    return f"{seconds // 86400} d {seconds // 3600 % 24} h"


def left_style(session: Session, now: float) -> str:
    """The colour of a session's time left."""
    part = (milliseconds(session["expiresAt"]) - now) / (session["ttlSeconds"] * 1000)
    return "red" if part < DYING else "yellow" if part < STALE else "green"


def word_of(event: Event) -> Text:
    """What an event was, in a word: created, updated, or the reason of an end."""
    word = event["reason"] or event["type"].removeprefix("session.")
    return Text(word, REASON_STYLES.get(word, ""))
